"""A hash of integers, for random numbers that are a pure function of their place.

Knows neither files nor torch. A change breaks saved states: increase ORDER_VERSION with it.
"""

from __future__ import annotations

import numpy as np

_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(key: np.uint64, numbers: np.ndarray) -> np.ndarray:
    """Return ``splitmix64(key + (number + 1) · 0x9E37…)`` of some numbers.

    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)

    Args:
        key: uint64.
        numbers: uint64 of any shape.

    Returns:
        uint64 of the same shape.

    Example:
        >>> splitmix64(np.uint64(7), np.arange(3, dtype=np.uint64)) % np.uint64(1000)
        array([487, 804, 346], dtype=uint64)
    """
    x = key + (numbers + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    x ^= x >> np.uint64(31)
    return x
