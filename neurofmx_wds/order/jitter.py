"""Random offsets of windows: a pure function of seed, epoch and window.

Knows neither files nor torch. A change breaks saved states: increase ORDER_VERSION with it.
"""

from __future__ import annotations

import numpy as np

from .epoch import key_of
from .hashing import splitmix64


def jitter(seed: int, epoch: int, ids: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return an offset for each window, evenly spread over [0, below).

    The offset is :func:`splitmix64` of the id modulo `below`, the key being made of seed and epoch.

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
    x = splitmix64(key_of(seed, epoch, "jitter"), ids.astype(np.uint64))
    return (x % below.astype(np.uint64)).astype(np.int64)
