"""A Lightning data module that has one dataset for each split; the base of ours and of bionemo's.

Knows which split serves which of the trainer's stages; knows nothing of how a dataset is opened and loaded.
Needs ``pip install 'neurofmx-wds[lightning]'``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any, TypeVar

from ..errors import NeurofmxError
from ..loading.batch_loader import WebDatasetDataLoader
from .webloader import WebLoader

try:
    from lightning import LightningDataModule
except ImportError as error:
    raise NeurofmxError("lightning is not installed", remedy="pip install 'neurofmx-wds[lightning]'") from error

logger = logging.getLogger("neurofmx_wds")
Loader = WebDatasetDataLoader | WebLoader
Value = TypeVar("Value")

SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class Split(Enum):
    """The parts of a dataset. Wherever a split is an argument, its name is accepted too."""

    train = auto()
    val = auto()
    test = auto()


def by_name(values: Mapping[Any, Value] | None, allowed: Iterable[str], argument: str) -> dict[str, Value]:
    """Return a mapping by split with the names of the splits as keys.

    Args:
        values: split, or its name, → value; None: empty.
        allowed: the names that may occur.
        argument: the name of the argument, for messages.

    Raises:
        ValueError: a key that is not an allowed split.

    Example:
        >>> by_name({Split.train: 16, "val": 64}, ["train", "val"], "batch_size")
        {'train': 16, 'val': 64}
    """
    named = {key.name if isinstance(key, Split) else key: value for key, value in (values or {}).items()}
    if unknown := [key for key in named if key not in allowed]:
        raise ValueError(f"{argument}: no such split {unknown[0]!r}; available: {', '.join(allowed)}")
    return named


class SplitModule(LightningDataModule):
    """A data module with one dataset for each split. Subclasses open the datasets and make the loaders.

    Attributes:
        shard_dirs: name of a split → where its shards are.
    """

    shard_dirs: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._loaders: dict[str, Loader] = {}

    def __str__(self) -> str:
        datasets = ", ".join(f"{split}={where!r}" for split, where in self.shard_dirs.items())
        return f"{type(self).__name__}({datasets})"

    def _open(self, split: str) -> None:
        """Open the dataset of a split, so that its errors are raised before training starts."""
        raise NotImplementedError

    def _make(self, split: str) -> Loader:
        """Return a new loader of a split."""
        raise NotImplementedError

    def _loader(self, split: str) -> Loader:
        if split not in self.shard_dirs:
            raise ValueError(f"{type(self).__name__} has no split {split!r}")
        self._loaders[split] = self._make(split)
        return self._loaders[split]

    def setup(self, stage: str | None = None) -> None:
        """Open the datasets that a stage needs.

        Args:
            stage: ``"fit"`` (train, and val if there is one), ``"validate"``, ``"test"``, ``"predict"``, or None: every
                split that there is.

        Raises:
            ValueError: an unknown stage, or a stage whose split is missing.
            FileNotFoundError, ShardError, ManifestError: the dataset of a split cannot be opened.
        """
        stage = stage if stage is None else str.lower(stage)  # Lightning passes an enumeration
        if stage is not None and stage not in SPLITS_OF_STAGE:
            raise ValueError(f"stage must be one of {', '.join(SPLITS_OF_STAGE)}, not {stage!r}")
        for split in (
            dict.fromkeys(itertools.chain(*SPLITS_OF_STAGE.values())) if stage is None else SPLITS_OF_STAGE[stage]
        ):
            served_by = self._served_by(split)
            if served_by in self.shard_dirs:
                self._open(served_by)
            elif stage is not None and (stage, split) != ("fit", "val"):
                raise ValueError(f"Trainer.{stage} needs the split {split!r}: give it to {type(self).__name__}")

    def teardown(self, stage: str) -> None:
        """Stop persistent workers; the garbage collector would do it late, and wait for them."""
        while self._loaders:
            self._loaders.popitem()[1].close()

    def _served_by(self, split: str) -> str:
        return "test" if split == "predict" and split not in self.shard_dirs else split

    def train_dataloader(self) -> Loader:
        """Return the loader of training batches."""
        return self._loader("train")

    def val_dataloader(self) -> Loader | list[Any]:
        """Return the loader of validation batches, or an empty list if there is no such split."""
        if "val" not in self.shard_dirs:
            logger.warning("%s has no val split: nothing is validated", type(self).__name__)
            return []
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Return the loader of test batches."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """Return the loader of batches to predict on; the test batches if there is no such split."""
        return self._loader(self._served_by("predict"))
