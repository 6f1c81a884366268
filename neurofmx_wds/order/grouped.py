"""An order whose samples are rearranged inside each window of positions, so that those that belong together follow.

Pure integer arithmetic: knows neither files nor torch. Whoever changes it breaks saved states, and must raise
ORDER_VERSION.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from .epoch import EpochOrder, key_of
from .hashing import splitmix64
from .mixture import MixtureOrder

Values = Callable[[np.ndarray], np.ndarray]  # ids (n,) → a number of each, int64 (n,)
_KEPT = 32  # arranged windows that are kept


@dataclass(frozen=True)
class Alike:
    """Batches of samples that have one value in common, such as that of their session.

    Attributes:
        text: what it is, for a state.
        values: the value of each sample, as a number.
        batch_size: samples in a batch, at most.
    """

    text: str
    values: Values
    batch_size: int

    def cut(self, ids: np.ndarray) -> list[np.ndarray]:
        """Return the places of each batch's samples among some samples, in the order of the first of each value."""
        values = self.values(ids)
        order = np.argsort(values, kind="stable")
        edges = np.flatnonzero(np.diff(values[order])) + 1
        groups = sorted(np.split(order, edges), key=lambda group: int(group[0]))
        return [group[i : i + self.batch_size] for group in groups for i in range(0, len(group), self.batch_size)]


@dataclass(frozen=True)
class NearlyAsLong:
    """Batches of samples of nearly equal length, so that little is padded.

    Attributes:
        text: what it is, for a state.
        values: the length of each sample.
        batch_size: samples in a batch, at most; with `tokens` only an estimate.
        tokens: the most that a batch may hold once it is padded to its longest sample; None: any number.
    """

    text: str
    values: Values
    batch_size: int
    tokens: int | None = None

    def cut(self, ids: np.ndarray) -> list[np.ndarray]:
        """Return the places of each batch's samples among some samples, shorter samples first."""
        lengths = self.values(ids)
        order = np.argsort(lengths, kind="stable")
        if self.tokens is None:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        ascending = np.maximum(lengths[order], 1).tolist()
        batches, first = [], 0
        for i, length in enumerate(ascending):
            if i > first and (i + 1 - first) * length > self.tokens:
                batches.append(order[first:i])
                first = i
        return [*batches, order[first:]]


Rule = Alike | NearlyAsLong


class Arranged(NamedTuple):
    """A window of positions as it is delivered.

    Attributes:
        ids: of its samples, int64 (n,).
        ends: where each of its batches ends, counted from the window's start.
    """

    ids: np.ndarray
    ends: list[int]


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """Another order, rearranged inside each window of `buffer_size` positions, batch by batch.

    A rule cuts the samples of a window into batches; these come in the order of the hashes of their numbers, or as
    they are cut where nothing is shuffled.

    Attributes:
        base: the order.
        rule: how a window is cut.

    Example:
        >>> base = EpochOrder(8, seed=0, epoch=0, shuffle=False, buffer_size=6, block_size=1)
        >>> order = GroupedOrder(base, Alike("odd", lambda ids: ids % 2, batch_size=2))
        >>> order.sample_ids(0, 8), list(order.batches(0))
        (array([0, 2, 4, 1, 3, 5, 6, 7]), [(0, 2), (2, 1), (3, 2), (5, 1), (6, 1), (7, 1)])
    """

    base: EpochOrder | MixtureOrder
    rule: Rule
    _kept: OrderedDict[tuple[int, int], Arranged] = field(default_factory=OrderedDict)

    @property
    def seed(self) -> int:
        """As of the order."""
        return self.base.seed

    @property
    def epoch(self) -> int:
        """As of the order."""
        return self.base.epoch

    @property
    def shuffle(self) -> bool | Literal["full"]:
        """As of the order."""
        return self.base.shuffle

    @property
    def buffer_size(self) -> int:
        """Positions in a window."""
        return self.base.buffer_size

    @property
    def block_size(self) -> int:
        """As of the order."""
        return self.base.block_size

    @property
    def about(self) -> dict[str, Any]:
        """What a state says of it beside the rest."""
        return {**self.base.about, "batch_by": f"{self.rule.text}, windows of {self.buffer_size}"}

    @property
    def first_positions(self) -> np.ndarray:
        """Some positions that show samples of every kind."""
        return self.base.first_positions

    def __len__(self) -> int:
        return len(self.base)

    def of_epoch(self, epoch: int) -> GroupedOrder:
        """Return the order of another epoch."""
        return replace(self, base=self.base.of_epoch(epoch))

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return shard and place in it of each sample, both int64."""
        return self.base.locate(ids)

    def sample_id(self, shard_idx: int, sample_offset: int) -> int:
        """Raise: which position a sample has depends on the samples near it.

        Raises:
            IndexError: always.
        """
        raise IndexError("with batch_by, a shard and an offset do not say which position is meant")

    def positions(self, sample_ids: np.ndarray) -> np.ndarray:
        """Raise, as :meth:`sample_id`.

        Raises:
            IndexError: always.
        """
        raise IndexError("with batch_by, a sample does not say which position is meant")

    def sample_ids(self, start: int, stop: int) -> np.ndarray:
        """Return the ids of the samples at positions `start` to `stop`.

        Returns:
            Shape (stop - start,), int64.

        Raises:
            IndexError: positions outside the epoch.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"positions {start} to {stop} are not in an epoch of {len(self)} samples")
        if start == stop:
            return np.empty(0, np.int64)
        size = self.buffer_size
        windows = range(start // size, -(-stop // size))
        ids = np.concatenate([self.window(w).ids for w in windows])
        return ids[start - windows[0] * size : stop - windows[0] * size]

    @property
    def n_windows(self) -> int:
        """Number of windows in an epoch."""
        return -(-len(self) // self.buffer_size)

    def window(self, w: int) -> Arranged:
        """Return a window as it is delivered."""
        found = self._kept.get((self.epoch, w))
        if found is None:
            found = self._kept[self.epoch, w] = self._arrange(w)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _arrange(self, w: int) -> Arranged:
        start = w * self.buffer_size
        ids = self.base.sample_ids(start, min(start + self.buffer_size, len(self)))
        batches = self.rule.cut(ids)
        if self.shuffle is not False:
            key = key_of(self.seed, self.epoch, "batches", w)
            order = np.argsort(splitmix64(key, np.arange(len(batches), dtype=np.uint64)), kind="stable")
            batches = [batches[i] for i in order.tolist()]
        return Arranged(ids[np.concatenate(batches)], np.cumsum([len(batch) for batch in batches]).tolist())

    def batches(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield the first position and the number of samples of each batch from a position on."""
        for w in range(position // self.buffer_size, self.n_windows):
            first = w * self.buffer_size
            start = max(first, position)
            for end in self.window(w).ends:
                if first + end > start:
                    yield start, first + end - start
                    start = first + end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}


ResumableOrder = EpochOrder | MixtureOrder | GroupedOrder


def padded(lengths: Sequence[int] | np.ndarray, ends: Sequence[int]) -> int:
    """Return how many tokens batches hold once each is padded to its longest sample.

    Example:
        >>> padded([3, 5, 1, 1], [2, 4])
        12
    """
    starts = [0, *ends[:-1]]
    longest = np.maximum.reduceat(np.asarray(lengths), starts)
    return int((longest * np.diff([0, *ends])).sum())
