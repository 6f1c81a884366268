"""The order of a mixture of datasets: which sample of which dataset stands at which position.

Pure integer arithmetic: knows neither files nor torch, and keeps no state. A change breaks saved states: increase
ORDER_VERSION with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from .epoch import LIMIT, EpochOrder, key_of
from .hashing import splitmix64

Weight = int | float | str | Fraction
Length = Literal["shortest", "longest"] | int
_BLOCK = 1000  # positions in a block at most, where weights are no small whole numbers
_DESCRIBED = 400  # bytes of a state that may describe the datasets


def block_counts(weights: Sequence[Weight]) -> tuple[int, ...]:
    """Return how many places each dataset gets in a block: the smallest whole numbers in these proportions.

    Where they add up to more than 1000 (or 16 for each dataset), the nearest that add up to that: whole parts first,
    the rest to the largest remainders.

    Args:
        weights: a number >= 0 for each dataset; 0.1 and "1/3" mean just that.

    Raises:
        ValueError: a weight is not such a number, all are 0, or one is too small.

    Example:
        >>> block_counts([2, 1]), block_counts([0.7, 0.2, 0.1]), block_counts([math.pi, 1])
        ((2, 1), (7, 2, 1), (759, 241))
    """
    exact = [_exact(weight) for weight in weights]
    total = sum(exact, Fraction(0))
    if not total:
        raise ValueError("weights must not all be 0")
    shares = [weight / total for weight in exact]
    block = math.lcm(*(share.denominator for share in shares))
    if block <= max(_BLOCK, 16 * len(shares)):
        return tuple(int(share * block) for share in shares)
    block = max(_BLOCK, 16 * len(shares))
    counts = [int(share * block) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i] * block)
    for i in by_remainder[: block - sum(counts)]:
        counts[i] += 1
    for weight, share, count in zip(weights, shares, counts, strict=True):
        if share and not count:
            raise ValueError(f"the weight {weight!r} is less than one part in {block} of all weights")
    return tuple(counts)


def _exact(weight: Weight) -> Fraction:
    try:
        exact = Fraction(str(weight)) if not isinstance(weight, bool) else Fraction(-1)
    except (ValueError, ZeroDivisionError):
        exact = Fraction(-1)
    if exact < 0:
        raise ValueError(f"a weight must be a number >= 0, not {weight!r}")
    return exact


def epoch_length(sizes: Sequence[int], counts: Sequence[int], length: Length) -> int:
    """Return the number of samples in a mixture's epoch.

    Args:
        sizes: samples in each dataset.
        counts: places of each in a block.
        length: "longest": as many blocks as it takes until each dataset was read at least once; "shortest": as many
            as no dataset is read more than once in, but at least one; or a number of samples.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> [epoch_length([100, 30], [2, 1], length) for length in ("longest", "shortest", 10)]
        [150, 90, 10]
    """
    drawn = [(size, count) for size, count in zip(sizes, counts, strict=True) if count]
    if length == "longest":
        return sum(counts) * max(-(-size // count) for size, count in drawn)
    if length == "shortest":
        return sum(counts) * max(1, min(size // count for size, count in drawn))
    if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or not 0 < length < LIMIT:
        raise ValueError(f'epoch must be "shortest", "longest" or a number of samples, not {length!r}')
    return int(length)


@dataclass(frozen=True)
class Stage:
    """The proportions of a mixture from an epoch on.

    Attributes:
        first_epoch: the first epoch with them.
        counts: places of each dataset in a block.
    """

    first_epoch: int
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class MixtureOrder:
    """Which sample of which dataset stands at which position of an epoch.

    Positions come in blocks, which go on from epoch to epoch. A block of a stage with `counts` holds ``counts[i]``
    places of dataset i, in the order of the hashes of their numbers. The k-th place of dataset i since epoch 0 gets
    the sample at position ``k % n`` of epoch ``k // n`` of its own order of n samples.

    Sample ids count the samples of one dataset after the other. One that is met in a dataset's next own epoch within
    the same epoch of the mixture has the number of all samples added, so that it gets other random numbers.

    Attributes:
        parts: the order of epoch 0 of each dataset.
        names: of the datasets.
        stages: the proportions, by ascending epochs, the first 0.
        length: samples in an epoch.
        seed: of the blocks.
        epoch: 0, 1, …

    Raises:
        ValueError: a dataset that is drawn has no samples, or an epoch is too long.

    Example:
        >>> parts = [EpochOrder([n], 0, 0, False, 1, 1) for n in (4, 2)]
        >>> order = MixtureOrder(parts, ["a", "b"], [Stage(0, (2, 1))], length=6, seed=0)
        >>> order.sample_ids(0, 6), order.of_epoch(1).sample_ids(0, 6)
        (array([0, 4, 1, 2, 5, 3]), array([0, 1, 4, 2, 3, 5]))
    """

    parts: Sequence[EpochOrder]
    names: Sequence[str]
    stages: Sequence[Stage]
    length: int
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        for part, name, count in zip(self.parts, self.names, self._most, strict=True):
            if count and not len(part):
                raise ValueError(f"the dataset {name!r} of the mixture has no samples")
            if count and (self.length // len(part) + 2) * self._total >= LIMIT:
                raise ValueError(f"an epoch of {self.length} samples is too long")
        epoch = self.parts[0].of_epoch(self.epoch).epoch  # rejects bad values
        object.__setattr__(self, "epoch", epoch)

    @functools.cached_property
    def _most(self) -> list[int]:
        return [max(counts) for counts in zip(*(stage.counts for stage in self.stages), strict=True)]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(part) for part in self.parts])]).astype(np.int64)

    @functools.cached_property
    def _total(self) -> int:
        return int(self._starts[-1])

    @property
    def shuffle(self) -> bool | Literal["full"]:
        """How each dataset is shuffled."""
        return self.parts[0].shuffle

    @property
    def buffer_size(self) -> int:
        """Positions in a window of each dataset's own order."""
        return self.parts[0].buffer_size

    @property
    def block_size(self) -> int:
        """Positions in a block of the mixture."""
        return sum(self._stage.counts)

    @property
    def about(self) -> dict[str, Any]:
        """Further entries of a state: places in a block, and samples, of each dataset."""
        counts = zip(*(stage.counts for stage in self.stages), strict=True)
        blocks = [sum(stage.counts) for stage in self.stages]
        since = [f" from epoch {stage.first_epoch}" if stage.first_epoch else "" for stage in self.stages]
        datasets = {
            name: ", ".join(f"{n}/{block}{when}" for n, block, when in zip(each, blocks, since, strict=True))
            for name, each in zip(self.names, counts, strict=True)
        }
        text = json.dumps(datasets)
        if len(text) > _DESCRIBED:
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            return {"mixture": {"datasets": len(datasets), "names and weights": digest}}
        return {"mixture": datasets}

    def __len__(self) -> int:
        return self.length

    def of_epoch(self, epoch: int) -> MixtureOrder:
        """Return the order of another epoch."""
        return replace(self, epoch=epoch)

    @property
    def first_positions(self) -> np.ndarray:
        """Positions at which samples of every kind stand: the first of each dataset in the epoch's first block."""
        block = min(self.length, self.block_size)
        return np.unique(_datasets(self.seed, self._stage, self._first, self._first + block), return_index=True)[1]

    def sample_ids(self, start: int, stop: int) -> np.ndarray:
        """Return the ids of the samples at positions `start` to `stop`.

        Returns:
            Shape (stop - start,), int64.

        Raises:
            IndexError: positions outside the epoch.
        """
        if not 0 <= start <= stop <= self.length:
            raise IndexError(f"positions {start} to {stop} are not in an epoch of {self.length} samples")
        datasets = _datasets(self.seed, self._stage, self._first + start, self._first + stop)
        drawn = self._drawn(start)
        ids = np.empty(stop - start, np.int64)
        for i in np.unique(datasets).tolist():
            here = np.flatnonzero(datasets == i)
            ids[here] = self._ids_of(i, drawn[i], len(here))
        return ids

    def _ids_of(self, i: int, first: int, n: int) -> np.ndarray:
        """Return the ids at the places `first` to ``first + n`` of dataset i."""
        part, found = self.parts[i], []
        while n:
            own_epoch, start = divmod(first, len(part))
            stop = min(len(part), start + n)
            lap = own_epoch - self.own_epochs[i]
            ids = part.of_epoch(own_epoch % LIMIT).sample_ids(start, stop)
            found.append(ids + (self._starts[i] + lap * self._total))
            first, n = first + stop - start, n - (stop - start)
        return np.concatenate(found)

    @functools.cached_property
    def own_epochs(self) -> list[int]:
        """The own epoch that each dataset is in at the epoch's start."""
        return [drawn // max(1, len(part)) for drawn, part in zip(self._drawn(0), self.parts, strict=True)]

    def numbers(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset of each id, and its number among the samples of all datasets, both int64."""
        numbers = ids % self._total
        return self._starts.searchsorted(numbers, side="right") - 1, numbers

    def split(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the dataset of each id, its place in that, and own epochs begun before it in this epoch, all int64."""
        laps, places = np.divmod(ids, self._total)
        dataset = self._starts.searchsorted(places, side="right") - 1
        return dataset, places - self._starts[dataset], laps

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return shard (counted over all datasets) and place in it of each sample, both int64."""
        dataset, places, _ = self.split(ids)
        shard, offset = np.empty_like(ids), np.empty_like(ids)
        first = 0
        for i, part in enumerate(self.parts):
            here = dataset == i
            in_part, offset[here] = part.locate(places[here])
            shard[here] = in_part + first
            first += part.n_shards
        return shard, offset

    def sample_id(self, shard_idx: int, sample_offset: int) -> int:
        """Raise: a sample may stand at several positions or at none.

        Raises:
            IndexError: always.
        """
        raise IndexError("in a mixture, a shard and an offset do not say which position is meant")

    def positions(self, sample_ids: np.ndarray) -> np.ndarray:
        """Raise, as :meth:`sample_id`.

        Raises:
            IndexError: always.
        """
        raise IndexError("in a mixture, a sample does not say which position is meant")

    @functools.cached_property
    def _stage(self) -> Stage:
        return [stage for stage in self.stages if stage.first_epoch <= self.epoch][-1]

    @property
    def _first(self) -> int:
        """The epoch's first place, counted from its stage's start."""
        return (self.epoch - self._stage.first_epoch) * self.length

    def _drawn(self, position: int) -> list[int]:
        """Return how many places each dataset has had before a position, since epoch 0."""
        total = [0] * len(self.parts)
        for stage, after in zip(self.stages, [*self.stages[1:], None], strict=True):
            if stage.first_epoch > self.epoch:
                break
            if after is not None and after.first_epoch <= self.epoch:
                places = (after.first_epoch - stage.first_epoch) * self.length
            else:
                places = self._first + position
            total = [a + b for a, b in zip(total, _counts_before(self.seed, stage, places), strict=True)]
        return total


def _counts_before(seed: int, stage: Stage, place: int) -> list[int]:
    """Return how many of the first places of a stage each dataset has."""
    block = sum(stage.counts)
    whole = place // block
    rest = np.bincount(_datasets(seed, stage, whole * block, place), minlength=len(stage.counts)).tolist()
    return [count * whole + more for count, more in zip(stage.counts, rest, strict=True)]


def _datasets(seed: int, stage: Stage, start: int, stop: int) -> np.ndarray:
    """Return which dataset has each place from `start` to `stop`, counted from the stage's start: int64."""
    block = sum(stage.counts)
    first = start // block
    n_blocks = -(-stop // block) - first
    key = key_of(seed, stage.first_epoch, "mixture")
    places = np.arange(n_blocks * block, dtype=np.uint64) + np.uint64(first * block % 2**64)
    order = np.argsort(splitmix64(key, places).reshape(n_blocks, block), axis=1, kind="stable")
    owners = np.repeat(np.arange(len(stage.counts)), stage.counts)
    return owners[order].reshape(-1)[start - first * block : stop - first * block]


def differences(there: object, here: Mapping[str, str]) -> str:
    """Return how the mixture that a state describes differs from this one, in words; empty if it does not.

    Example:
        >>> differences({"mouse": "2/3", "rat": "1/3"}, {"mouse": "1/2", "monkey": "1/2"})
        "it has no dataset 'monkey'; the dataset 'rat' is not here; 'mouse' has 2/3 of it there and 1/2 here"
    """
    if not isinstance(there, Mapping):
        return "it is of a single dataset"
    found = [f"it has no dataset {name!r}" for name in here if name not in there]
    found += [f"the dataset {name!r} is not here" for name in there if name not in here]
    found += [
        f"{name!r} has {there[name]} of it there and {here[name]} here"
        for name in here
        if name in there and there[name] != here[name]
    ]
    return "; ".join(found)
