"""Random offsets of windows: a pure function of seed, epoch and window.

Knows neither files nor torch. Whoever changes it changes what saved states go on with, and must raise ORDER_VERSION.
"""

from __future__ import annotations

import numpy as np

from .epoch import key_of

_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # splitmix64's multipliers
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def jitter(seed: int, epoch: int, ids: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return an offset for each window, evenly spread over [0, below).

    The offset is ``splitmix64(key + id · 0x9E37…)`` modulo `below`, the key being made of seed and epoch.
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)

    Args:
        seed: the order's seed.
        epoch: 0, 1, …
        ids: int64 (n,), numbers of the windows.
        below: int64 (n,), at least 1.

    Returns:
        int64 (n,).

    Example:
        >>> jitter(42, 0, np.array([0, 1, 2]), np.array([1000, 1000, 1]))
        array([629, 974,   0])
    """
    x = key_of(seed, epoch, "jitter") + (ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    x ^= x >> np.uint64(31)
    return (x % below.astype(np.uint64)).astype(np.int64)
