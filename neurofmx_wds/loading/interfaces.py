"""The two interfaces that a kind of dataset implements: an order says which samples come when, a reader reads them.

Everything else of loading (batches, ranks, workers, transforms, resuming) works on any pair of them. Samples are known
by their *ids*, 0 … n-1; what an id means is the reader's own business.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .memory import Memory


class Order(Protocol):
    """Which sample stands at which position of an epoch: a pure function, the same in every process.

    :class:`~neurofmx_wds.order.epoch.EpochOrder` is the order of one dataset.
    """

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 0."""

    @property
    def seed(self) -> int:
        """What fixes the order, and the random numbers of transforms."""

    def __len__(self) -> int:
        """Return the number of positions in an epoch."""

    @property
    def first_positions(self) -> np.ndarray:
        """Some positions that show samples of every kind that there is, shape (n,), int64; none where all are alike."""

    def of_epoch(self, epoch: int) -> Order:
        """Return the order of another epoch."""

    def sample_ids(self, start: int, stop: int) -> np.ndarray:
        """Return the ids of the samples at positions `start` to `stop`, shape (stop - start,), int64."""


class Reader(Protocol):
    """Reads samples and batches by sample id. It is pickled to worker processes, and may be used by two threads.

    :class:`~neurofmx_wds.loading.readers.ShardReader` reads shards,
    :class:`~neurofmx_wds.loading.map_style.MapStyleReader` datasets of torch's map style.
    """

    @property
    def where(self) -> str:
        """Where the samples are, for people."""

    @property
    def fields(self) -> Sequence[str]:
        """Fields that every batch has, if only as a list of None."""

    @property
    def sample_bytes(self) -> int | None:
        """About how many bytes are copied for a sample; None where reading one is more work than copying."""

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that everything kept open for reading takes, roughly."""

    def expect_share(self, share: float) -> None:
        """Prepare for reading this share of the samples, 0 to 1, in this process; 0: others read."""

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Return the samples with these ids as one batch.

        Args:
            ids: sample ids, shape (B,), int64.
            memory: where its tensors are made.

        Returns:
            field → tensor of shape (B, …) or list of B; ``metadata``: B dictionaries; ``__key__``: B strings.

        Raises:
            NeurofmxError: a sample cannot be read; it names the file and the sample. Where the file as a whole is bad,
                it names no sample: a user's handler is then asked once, and the file's other samples are skipped.
        """

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Return the samples with these ids, each a dictionary of writable arrays, ``metadata`` and ``__key__``.

        Raises:
            NeurofmxError: as :meth:`read_batch`.
        """

    def of_epoch(self, seed: int, epoch: int) -> Reader:
        """Return the reader of an epoch: the same, where what a sample is does not depend on it."""

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return numbers that stay with the samples whatever is selected, for the random numbers of transforms."""

    def file(self, sample_id: int) -> Path | None:
        """Return the file that holds a sample, also where that cannot be read; None where no single file does."""

    def name(self, sample_id: int) -> tuple[Path | None, str]:
        """Return the file and the key of a sample, for error messages."""
