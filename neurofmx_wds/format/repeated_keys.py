"""Find keys that several samples of a dataset share.

Knows keys; knows nothing of files. It holds 8 bytes for each key, so that large datasets fit into memory, and compares
the keys themselves only where these hashes agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np


def key_hashes(keys: Iterable[str]) -> np.ndarray:
    """Return a hash of each key.

    Returns:
        Shape (number of keys,), uint64.
    """
    return np.array([_hash(key) for key in keys], np.uint64)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def repeated_keys(
    hashes: Sequence[np.ndarray], keys_of: Callable[[int], Iterable[str]]
) -> Iterator[tuple[str, int, int]]:
    """Yield each key that an earlier sample has.

    Args:
        hashes: the hashes of each shard's keys.
        keys_of: returns the keys of a shard, given its number; called for suspected shards only.

    Yields:
        The key, the number of the first shard that has it, and the number of the shard that has it again.

    Example:
        >>> shards = [["a", "b"], ["c", "a"]]
        >>> list(repeated_keys([key_hashes(keys) for keys in shards], shards.__getitem__))
        [('a', 0, 1)]
    """
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    first: dict[str, int] = {}
    for i, own in enumerate(hashes):
        if suspects.isdisjoint(own.tolist()):
            continue
        for key in keys_of(i):
            if key in first:
                yield key, first[key], i
            elif _hash(key) in suspects:
                first[key] = i
