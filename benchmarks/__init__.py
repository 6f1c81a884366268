"""Measurements of reading, writing and conversion beside the peers, and the targets that they must meet."""
