"""From shards to batches: the loaders, their pipeline stages, and what they do with samples.

Knows nothing of recordings.
"""
