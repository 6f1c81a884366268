"""Batches of samples that belong together: of one session, or of nearly equal length.

Knows what sessions and lengths samples have; knows nothing of ranks or training.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import available_hint
from ..order.grouped import Alike, GroupedOrder, NearlyAsLong, Values, padded
from ..order.mixture import MixtureOrder
from .dataset import OpenDataset
from .mixture import DATASET, MixtureReader
from .readers import ShardReader
from .values import as_stored, column_of

logger = logging.getLogger("neurofmx_wds")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Batches of samples of nearly equal length, for fields whose first dimension differs.

    Args:
        of: the field whose length counts.
        tokens: the most that a batch holds once it is padded to its longest sample: that length times its samples. A
            sample that is longer is a batch of its own. None: batches of `batch_size` samples.

    Raises:
        ValueError: a value that is not allowed.

    Example:
        >>> Budget(of="spike_times", tokens=4096)
        Budget(of='spike_times', tokens=4096)
    """

    of: str
    tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.of, str) or not self.of:
            raise ValueError(f"of must be the name of a field, not {self.of!r}")
        tokens = self.tokens
        if tokens is not None and (
            isinstance(tokens, bool) or not isinstance(tokens, (int, np.integer)) or not 1 <= tokens < 1 << 62
        ):
            raise ValueError(f"tokens must be a positive whole number, not {tokens!r}")


BatchBy = str | Budget


def batched_by(opened: OpenDataset, by: BatchBy | None, batch_size: int) -> OpenDataset:
    """Return a dataset whose order puts together what is in one batch.

    Args:
        opened: the dataset or mixture.
        by: what the samples of a batch have in common; None: nothing.
        batch_size: samples in a batch, at most.

    Raises:
        ValueError: the samples do not have it, or it is not known without reading them.
    """
    if by is None:
        return opened
    if not isinstance(opened.order, GroupedOrder):
        rule = _by_length(opened, by, batch_size) if isinstance(by, Budget) else _by_value(opened, by, batch_size)
        return replace(opened, order=GroupedOrder(opened.order, rule))
    return opened


def _by_length(opened: OpenDataset, by: Budget, batch_size: int) -> NearlyAsLong:
    lengths = Lengths(opened.reader, by.of)
    longest = lengths.longest
    text = f"{by.of} up to {by.tokens} tokens" if by.tokens else f"{batch_size} samples of like {by.of}"
    if by.tokens is None:
        return NearlyAsLong(text, lengths, batch_size)
    if longest > by.tokens:
        logger.warning(
            "Budget(of=%r, tokens=%d): the longest sample has %d; such samples are batches of their own",
            by.of, by.tokens, longest,
        )  # fmt: skip
    return NearlyAsLong(text, lengths, max(1, by.tokens // max(1, longest)), int(by.tokens))


def _by_value(opened: OpenDataset, by: object, batch_size: int) -> Alike:
    if not isinstance(by, str):
        raise ValueError(f"batch_by must be a name such as 'session_id', or a Budget, not {by!r}")
    return Alike(f"{by}, up to {batch_size} samples", _values(opened, by), batch_size)


def _values(opened: OpenDataset, by: str) -> Values:
    if by == DATASET:
        if not isinstance(opened.order, MixtureOrder):
            raise ValueError("batch_by='__dataset__' goes together with a mixture of datasets")
        return OfDataset(opened.order)
    return column_of(opened, by, "batch_by")


@dataclass(frozen=True)
class OfDataset:
    """The dataset of each sample of a mixture."""

    order: MixtureOrder

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's dataset."""
        return self.order.split(ids)[0]


class Lengths:
    """The length of a field of each sample, as the shards' indexes know it: no payload is read.

    Args:
        reader: reads stored samples, or mixes readers of these.
        of: the field.

    Raises:
        ValueError: the field is not there, or its lengths are not in the index.
    """

    def __init__(self, reader: Any, of: str) -> None:
        self._reader = as_stored(reader)
        self._of = of
        mixed = isinstance(self._reader, MixtureReader)
        parts: list[Any] = self._reader.readers if mixed else [self._reader]
        self._lengths = {id(part): _lengths(part, of) for part in parts}
        self._parts = parts
        self.longest = max(int(each.max(initial=0)) for each in self._lengths.values())

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Return the length of each sample: int64 (n,)."""
        if not isinstance(self._reader, MixtureReader):
            return self._of_part(self._reader, ids)
        lengths = np.empty(len(ids), np.int64)
        for reader, own, rows in self._reader.shares(ids):
            lengths[rows] = self._of_part(reader, own)
        return lengths

    def _of_part(self, reader: Any, ids: np.ndarray) -> np.ndarray:
        return np.asarray(self._lengths[id(reader)][reader.dataset_ids(ids)])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lengths": [self._lengths[id(part)] for part in self._parts]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = dict(zip(map(id, state["_parts"]), state["_lengths"], strict=True))
        self.__dict__.update(state, _lengths=found)


def _lengths(reader: object, of: str) -> np.ndarray:
    if not isinstance(reader, ShardReader):
        raise ValueError("Budget: the lengths of windows that are cut while loading are not known before they are cut")
    found = []
    for i in range(len(reader.shards.paths)):
        index = reader.shards.index(i)
        column = index.columns.get(of)
        if column is None or not len(column.layout_id) or (column.layout_id < 0).any():
            problem = f"Budget(of={of!r}): {reader.shards.paths[i]} does not tell how long this field is"
            raise ValueError(f"{problem}; {available_hint(index.columns, of)}")
        known = np.array([layout.shape[0] if layout.shape else 1 for layout in index.layouts], np.int64)
        found.append(known[column.layout_id])
    return np.concatenate([np.empty(0, np.int64), *found])


def padding(order: GroupedOrder) -> dict[str, float] | None:
    """Return the share of real tokens in an epoch's batches once they are padded, and what it were without `batch_by`.

    Args:
        order: of the epoch.

    Returns:
        ``{"real": …, "real_without": …}``; None where batches are not by length.
    """
    if not isinstance(order.rule, NearlyAsLong):
        return None
    real = held = held_without = n_batches = 0
    for w in range(order.n_windows):
        ids, ends = order.window(w)
        lengths = order.rule.values(ids)
        real += int(lengths.sum())
        held += padded(lengths, ends)
        n_batches += len(ends)
    size = max(1, round(len(order) / max(1, n_batches)))
    for w in range(order.n_windows):
        start = w * order.buffer_size
        ids = order.base.sample_ids(start, min(start + order.buffer_size, len(order)))
        ends = [*range(size, len(ids), size), len(ids)]
        held_without += padded(order.rule.values(ids), ends)
    return {"real": real / max(1, held), "real_without": real / max(1, held_without)}
