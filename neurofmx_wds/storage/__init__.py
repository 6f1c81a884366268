"""Local and remote files: atomic replacement, locks, checksums, the cache.

Knows nothing of samples, tars or recordings.
"""
