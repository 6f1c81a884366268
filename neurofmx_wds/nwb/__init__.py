"""NWB recordings to arrays: clock, units, continuous series, the file itself.

Knows nothing of shards, torch or webdataset.
"""
