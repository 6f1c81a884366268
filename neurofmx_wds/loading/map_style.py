"""Map-style datasets, read like shards: the same order, batches, workers, ranks and exact resuming.

Knows datasets that can be indexed; knows nothing of shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import NeurofmxError
from .collate import collate_webdataset
from .dataset import OpenDataset
from .memory import Memory
from .options import OrderOptions


class MapStyle(Protocol):
    """An object with a length and items: a map-style dataset of torch, a list, an array of samples."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, index: int, /) -> Any:
        """Return an item."""


class MapStyleReader:
    """Reads the items of a map-style dataset as samples and batches.

    Args:
        dataset: its items are dicts, tuples (the values of `names`, in order) or single values (that of the first).
            Images of Pillow become uint8 tensors (C, H, W).
        names: of a tuple's values.
    """

    def __init__(self, dataset: MapStyle, names: Sequence[str]) -> None:
        self.dataset = dataset
        self.names = tuple(names)

    @property
    def where(self) -> str:
        """The dataset's kind."""
        return type(self.dataset).__name__

    @property
    def fields(self) -> Sequence[str]:
        """None that every item must have."""
        return ()

    @property
    def sample_bytes(self) -> None:
        """Unknown: a dataset's items may be any work."""
        return None

    @property
    def open_bytes(self) -> int:
        """Nothing is opened."""
        return 0

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Return the samples with these ids, each a dict of its values, ``metadata`` and ``__key__``."""
        return [self._sample(i) for i in ids.tolist()]

    def expect_share(self, share: float) -> None:
        """Do nothing: a dataset's items may be any work."""

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Return these samples as a batch."""
        return collate_webdataset(self.read_samples(ids)) if len(ids) else {}

    def of_epoch(self, seed: int, epoch: int) -> MapStyleReader:
        """Return itself: what the dataset holds does not depend on the epoch."""
        return self

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return the samples' places in the whole dataset, which are their ids: there is no selection here."""
        return ids

    def file(self, sample_id: int) -> None:
        """Items are in no file."""

    def name(self, sample_id: int) -> tuple[None, str]:
        """Return the file of a sample, None, and its key."""
        return None, str(sample_id)

    def _sample(self, i: int) -> dict[str, Any]:
        try:
            item = self.dataset[i]
        except Exception as error:
            problem = f"item {i} of the dataset raised {type(error).__name__}: {error}"
            raise NeurofmxError(problem, sample=str(i)) from error
        if not isinstance(item, dict):
            values = item if isinstance(item, (tuple, list)) else [item]
            names = [*self.names, *(f"value_{n}" for n in range(len(self.names), len(values)))]
            item = dict(zip(names, values, strict=False))
        sample = {name: _plain(value) for name, value in item.items()}
        return {"__key__": str(i), "metadata": {}, **sample}


def _plain(value: Any) -> Any:
    if not type(value).__module__.startswith("PIL."):
        return value
    pixels = torch.from_numpy(np.array(value))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def open_map_style(dataset: MapStyle, names: Sequence[str], order: OrderOptions) -> OpenDataset:
    """Open a map-style dataset. Its states are known by its length, as nothing else is known of it.

    Items are read one by one anyway, so ``shuffle=True`` mixes single items over the whole dataset.

    Args:
        dataset: anything with a length and items.
        names: of a tuple's values.
        order: in which order they come.
    """
    fingerprint = hashlib.sha256(f"map-style {len(dataset)}".encode()).hexdigest()[:32]
    return OpenDataset(MapStyleReader(dataset, names), order.order([len(dataset)], 1), fingerprint)
