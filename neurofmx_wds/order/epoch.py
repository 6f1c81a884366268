"""The order of an epoch: which sample stands at which position, by pure integer arithmetic.

Knows neither files nor torch, and keeps no state. A change of a permutation breaks saved states: increase ORDER_VERSION
with it.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

ORDER_VERSION = 1
_ROUNDS, _ROUNDS_IF_SMALL, _SMALL = 8, 24, 64  # few elements need more rounds to mix
_M1 = np.uint64(0x9E3779B97F4A7C15)  # the golden ratio's bits, as in splitmix64
_M2 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's first multiplier
_S32 = np.uint64(32)
_Turn = Callable[[np.ndarray, np.ndarray, np.uint64], np.ndarray]
LIMIT = 1 << 62  # of samples, epochs and sizes: sums of two stay within 64 bits
_SEEDS = 1 << 128  # a state holds the seed and must stay small


def key_of(*words: int | str) -> np.uint64:
    """Return a permutation's key: blake2b of the version and the words with commas between, 8 bytes, little endian."""
    text = ",".join(str(word) for word in (ORDER_VERSION, *words))
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


@dataclass(frozen=True)
class Bijection:
    """A keyed permutation of 0…n−1 without a table: a Feistel network on a mixed radix, with cycle walking.

    With b = ⌈√n⌉, or one more to make it even, and a = ⌈n/b⌉, a number x < a·b is (L, R) = divmod(x, b). Round i of 8
    (24 where n < 64) adds ``F(k + i·M1, R)`` to L modulo a (i even) or ``F(k + i·M1, L)`` to R modulo b (i odd).
    F(k, v) is ``h = (v ^ k) · M1; h ^= h >> 32; h = h · M2; F = ((h >> 32) · modulus) >> 32``, all modulo 2^64.
    A result ≥ n is permuted again until it is below n.
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.)

    Attributes:
        n: size of the domain.
    """

    n: int

    @functools.cached_property
    def _radix(self) -> tuple[np.uint64, np.uint64]:
        b = math.isqrt(max(0, self.n - 1)) + 1
        b += b % 2  # were a and b odd, every round would be an even permutation, and so would all of them
        return np.uint64(max(1, -(-self.n // b))), np.uint64(b)

    @property
    def _n_rounds(self) -> int:
        return _ROUNDS_IF_SMALL if self.n < _SMALL else _ROUNDS

    def forward(self, x: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Return the images of `x` (uint64, below n) under the permutations of `key` (uint64, one for each)."""
        return self._walk(x, key, range(self._n_rounds), _add)

    def inverse(self, x: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Return the numbers whose images are `x`."""
        return self._walk(x, key, range(self._n_rounds - 1, -1, -1), _subtract)

    def _walk(self, x: np.ndarray, key: np.ndarray, rounds: range, turn: _Turn) -> np.ndarray:
        y = self._rounds(x, key, rounds, turn)
        out = np.flatnonzero(y >= np.uint64(self.n))
        while len(out):
            y[out] = self._rounds(y[out], key[out], rounds, turn)
            out = out[y[out] >= np.uint64(self.n)]
        return y

    def _rounds(self, x: np.ndarray, key: np.ndarray, rounds: range, turn: _Turn) -> np.ndarray:
        a, b = self._radix
        left, right = _divmod(x, b)
        for i in rounds:
            k = key + np.uint64(i * int(_M1) % 2**64)
            if i % 2 == 0:
                left = turn(left, _round(right, k, a), a)
            else:
                right = turn(right, _round(left, k, b), b)
        return left * b + right


# Modular sums and differences as the smaller of two unsigned numbers, and remainders by multiplication: dividing arrays
# is slow.


def _add(value: np.ndarray, shift: np.ndarray, modulus: np.uint64) -> np.ndarray:
    total = value + shift
    return np.minimum(total, total - modulus)


def _subtract(value: np.ndarray, shift: np.ndarray, modulus: np.uint64) -> np.ndarray:
    difference = value - shift
    return np.minimum(difference, difference + modulus)


def _divmod(x: np.ndarray, by: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    quotient = x // by
    return quotient, x - quotient * by


def _round(value: np.ndarray, key: np.ndarray, modulus: np.uint64) -> np.ndarray:
    h = (value ^ key) * _M1
    h ^= h >> _S32
    h *= _M2
    return ((h >> _S32) * modulus) >> _S32


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """Which sample stands at which position of an epoch.

    Sample ids count the samples of a dataset, shard after shard. ``shuffle=False`` keeps their order. ``shuffle=True``
    permutes blocks of `block_size` consecutive samples over the whole dataset, then the samples inside each window of
    `buffer_size` positions. ``shuffle="full"`` permutes all samples with equal probability.

    Attributes:
        shard_counts: number of samples in each shard (or in all).
        seed: any integer of up to 128 bits, also negative.
        epoch: 0, 1, …
        shuffle: False, True or ``"full"``.
        buffer_size: positions in a window.
        block_size: samples in a block.

    Raises:
        ValueError: an impossible value.

    Example:
        >>> order = EpochOrder([3, 2], seed=0, epoch=0, shuffle=False, buffer_size=1000, block_size=1)
        >>> order.sample_ids(2, 5)
        array([2, 3, 4])
        >>> order.locate(order.sample_ids(2, 5))
        (array([0, 1, 1]), array([2, 0, 1]))
    """

    shard_counts: Sequence[int] | np.ndarray | int
    seed: int
    epoch: int
    shuffle: bool | Literal["full"]
    buffer_size: int
    block_size: int

    def __post_init__(self) -> None:
        counts = np.atleast_1d(np.asarray(self.shard_counts))
        if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu") or (counts < 0).any():
            raise ValueError(f"shard_counts must be whole numbers >= 0, not {self.shard_counts!r}")
        if not (isinstance(self.shuffle, bool) or self.shuffle == "full"):
            raise ValueError(f'shuffle must be False, True or "full", not {self.shuffle!r}')
        if (total := sum(counts.tolist())) > LIMIT:
            raise ValueError(f"shard_counts add up to {total} samples, more than {LIMIT}")
        bounds = (("seed", -_SEEDS, _SEEDS), ("epoch", 0, LIMIT), ("buffer_size", 1, LIMIT), ("block_size", 1, LIMIT))
        for name, least, most in bounds:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= int(value) <= most:
                raise ValueError(f"{name} must be a whole number from {least:g} to {most:g}, not {value!r}")
            object.__setattr__(self, name, int(value))  # numpy's narrow integers would overflow

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        counts = np.atleast_1d(np.asarray(self.shard_counts, np.int64))
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self._starts) - 1

    @property
    def about(self) -> dict[str, Any]:
        """Further entries of a state: none."""
        return {}

    @property
    def first_positions(self) -> np.ndarray:
        """Positions at which samples of every kind stand: none in particular."""
        return np.empty(0, np.int64)

    def sample_ids(self, start: int, stop: int) -> np.ndarray:
        """Return the ids of the samples at positions `start` to `stop`.

        Returns:
            Shape (stop - start,), int64.

        Raises:
            IndexError: positions outside the epoch.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start} to {stop} are not in an epoch of {len(self)} samples")
        positions = np.arange(start, stop, dtype=np.int64)
        if self.shuffle is False:
            return positions
        p = positions.view(np.uint64)
        if self.shuffle == "full":
            return self._all.forward(p, self._keys("all", len(p))).view(np.int64)
        return self._from_blocks(self._in_windows(p, inverse=False)).view(np.int64)

    def positions(self, sample_ids: np.ndarray) -> np.ndarray:
        """Return the positions of the samples with these ids: the inverse of :meth:`sample_ids`.

        Args:
            sample_ids: shape (n,), integer.

        Returns:
            Shape (n,), int64.

        Raises:
            IndexError: an id outside the dataset.
        """
        ids = np.ascontiguousarray(sample_ids, np.int64)
        if ids.size and not (0 <= ids.min() and ids.max() < len(self)):
            raise IndexError(f"sample ids {ids.min()} to {ids.max()} are not in a dataset of {len(self)} samples")
        if self.shuffle is False:
            return ids.copy()
        x = ids.view(np.uint64)
        if self.shuffle == "full":
            return self._all.inverse(x, self._keys("all", len(x))).view(np.int64)
        return self._in_windows(self._to_blocks(x), inverse=True).view(np.int64)

    def locate(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the shard of each sample and its place there, both int64."""
        shard = np.searchsorted(self._starts, sample_ids, side="right") - 1
        return shard, sample_ids - self._starts[shard]

    def sample_id(self, shard_idx: int, sample_offset: int) -> int:
        """Return the id of a sample, at the dataset's end its length; ``(i, count of shard i)`` means ``(i + 1, 0)``.

        Raises:
            IndexError: there is no such place.
        """
        n_shards = self.n_shards
        if shard_idx == n_shards and sample_offset == 0:
            return len(self)
        if not 0 <= shard_idx < n_shards:
            raise IndexError(f"there is no shard {shard_idx}; the dataset has {n_shards}")
        count = int(self._starts[shard_idx + 1] - self._starts[shard_idx])
        if not 0 <= sample_offset <= count:
            raise IndexError(f"there is no sample {sample_offset} in shard {shard_idx}; it has {count}")
        return int(self._starts[shard_idx]) + sample_offset

    def of_epoch(self, epoch: int) -> EpochOrder:
        """Return the order of another epoch."""
        return replace(self, epoch=epoch)

    # Two levels: position --window--> place in the sequence of permuted blocks --block--> sample.

    @functools.cached_property
    def _all(self) -> Bijection:
        return Bijection(len(self))

    @functools.cached_property
    def _blocks(self) -> Bijection:
        return Bijection(-(-len(self) // self.block_size))

    def _keys(self, purpose: str, n: int) -> np.ndarray:
        return np.broadcast_to(key_of(self.seed, self.epoch, purpose), n)

    def _in_windows(self, x: np.ndarray, inverse: bool) -> np.ndarray:
        """Permute inside windows; w has the key ``h · M1`` with ``h = (w + 1) · M2 ^ K; h ^= h >> 32``, modulo 2^64."""
        size = np.uint64(self.buffer_size)
        window = x // size
        first = window * size
        keys = (window + np.uint64(1)) * _M2 ^ key_of(self.seed, self.epoch, "window")
        keys ^= keys >> _S32
        keys *= _M1
        place = x - first
        last = np.uint64(len(self) // self.buffer_size)
        for here, n in ((window < last, self.buffer_size), (window == last, len(self) % self.buffer_size)):
            if n > 1 and here.any():
                bijection = Bijection(n)
                place[here] = (bijection.inverse if inverse else bijection.forward)(place[here], keys[here])
        return first + place

    @functools.cached_property
    def _short_block(self) -> tuple[int, int]:
        """Return where the last, shorter block begins among the permuted blocks, and its size."""
        n = self._blocks.n
        slot = self._blocks.inverse(np.array([n - 1], np.uint64), self._keys("blocks", 1))[0]
        return int(slot) * self.block_size, len(self) - (n - 1) * self.block_size

    def _from_blocks(self, x: np.ndarray) -> np.ndarray:
        if not len(x):
            return x
        size = np.uint64(self.block_size)
        begin, short = self._short_block
        behind = x >= np.uint64(begin + short)
        inside = (x >= np.uint64(begin)) & ~behind
        x = x + behind.astype(np.uint64) * np.uint64(self.block_size - short)  # as if that block were whole
        slot, place = _divmod(x, size)
        place[inside] = x[inside] - np.uint64(begin)
        slots, which = slot, np.arange(len(slot), dtype=np.uint64)
        first = slot.min()
        n_slots = int(slot.max() - first) + 1
        if n_slots < len(slot):  # permute each once
            slots, which = first + which[:n_slots], slot - first
        return self._blocks.forward(slots, self._keys("blocks", len(slots)))[which] * size + place

    def _to_blocks(self, ids: np.ndarray) -> np.ndarray:
        if not len(ids):
            return ids
        size = np.uint64(self.block_size)
        begin, short = self._short_block
        block, place = _divmod(ids, size)
        x = self._blocks.inverse(block, self._keys("blocks", len(ids))) * size + place
        behind = x >= np.uint64(begin + self.block_size)
        return x - behind.astype(np.uint64) * np.uint64(self.block_size - short)
