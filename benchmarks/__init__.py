"""Benchmarks of reading, writing and conversion against other libraries, with targets; see README.md in this folder."""
