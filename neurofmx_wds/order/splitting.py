"""How samples and recordings are dealt to parts (train, val, test; folds): pure arithmetic.

Knows neither files nor torch. Whoever changes it puts samples of existing datasets into other parts.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from .epoch import key_of
from .hashing import splitmix64


def deal(
    sizes: Mapping[str, int], shares: Mapping[str, float], there: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, str]:
    """Give each group to a name so that the shares come out as nearly as they can, largest first.

    A pure function of its arguments, whatever their order: groups of one size go by the hash of their name. No name
    stays empty if there are enough groups.

    Args:
        sizes: group → its samples.
        shares: name → its share; they sum to 1.
        there: name → samples that it has already.
        seed: other than 0: groups come in an order that depends on it, whatever their sizes.

    Returns:
        group → name.

    Example:
        >>> deal({"monday": 60, "tuesday": 30, "wednesday": 10}, {"train": 0.7, "val": 0.3})
        {'monday': 'train', 'tuesday': 'val', 'wednesday': 'train'}
    """
    given = {name: (there or {}).get(name, 0) for name in shares}
    total, dealt = sum(sizes.values()) + sum(given.values()), {}
    empty = {name for name, n in given.items() if not n}
    order = sorted(sizes, key=lambda group: (0 if seed else -sizes[group], _hash(group, seed)))
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        among = [name for name in shares if name in empty] if left <= len(empty) else list(shares)
        name = max(among, key=lambda each: shares[each] * total - given[each])
        dealt[group] = name
        given[name] += sizes[group]
        empty.discard(name)
    return dealt


def _hash(group: str, seed: int) -> bytes:
    return hashlib.sha256((f"{seed} {group}" if seed else group).encode()).digest()


def deal_at_random(n: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """Give each of n samples to a part; the parts' sizes are as near to their shares as they can be.

    Args:
        n: number of samples.
        shares: of each part; they sum to 1.
        seed: decides which samples.

    Returns:
        int64 (n,), the number of each sample's part.

    Example:
        >>> deal_at_random(6, [0.5, 0.5], seed=0)
        array([0, 0, 1, 1, 0, 1])
    """
    order = np.argsort(splitmix64(key_of(seed, "split"), np.arange(n, dtype=np.uint64)), kind="stable")
    ends = [round(n * end) for end in itertools.accumulate(shares)]
    part = np.empty(n, np.int64)
    part[order] = np.minimum(np.searchsorted(ends, np.arange(n), side="right"), len(shares) - 1)
    return part


def time_blocks(
    segments: Sequence[tuple[int, int]], shares: Sequence[float], length: int
) -> list[tuple[int, int] | None]:
    """Cut a recording into contiguous blocks of whole bins, at least `length` bins apart.

    Args:
        segments: (first bin, stop bin) of where windows can be, ascending and disjoint.
        shares: share of each block in the bins that are left when the guards are taken off; they sum to 1.
        length: bins in a window, and in a guard.

    Returns:
        (first bin, stop bin) of each block, None if it is empty. A recording too short for the guards goes whole to
        the largest share.

    Example:
        >>> time_blocks([(0, 60), (100, 150)], [0.8, 0.2], length=10)
        [(0, 120), (130, 150)]
    """
    ends = [0, *itertools.accumulate(stop - first for first, stop in segments)]
    usable = ends[-1] - (len(shares) - 1) * length
    if usable <= 0:
        largest = shares.index(max(shares))
        whole = (segments[0][0], segments[-1][1]) if segments else None
        return [whole if i == largest else None for i in range(len(shares))]

    def bin_at(place: int) -> int:
        i = bisect.bisect_right(ends, place) - 1
        return segments[i][0] + place - ends[i]

    cuts = [0, *(round(usable * share) for share in itertools.accumulate(shares[:-1])), usable]
    places = [(a + i * length, b + i * length) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    return [(bin_at(a), bin_at(b - 1) + 1) if a < b else None for a, b in places]
