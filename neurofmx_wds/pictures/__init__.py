"""Pictures of recordings and of samples, and pages that hold them.

Needs matplotlib (extra ``plot``). Knows what is in recordings and datasets; knows nothing of the command line.
"""
