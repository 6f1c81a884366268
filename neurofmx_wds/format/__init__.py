"""What lies on the disk: fields, shards, their indexes and the manifest, and how they are written and checked.

Knows nothing of order, loading or recordings.
"""
