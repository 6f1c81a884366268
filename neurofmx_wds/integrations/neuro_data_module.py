"""Our Lightning data module: loaders of batches behind a ``Trainer``, resumed from its checkpoints.

Knows the loaders of batches; knows nothing of recordings.

Example:
    >>> import tempfile
    >>> import numpy as np
    >>> from neurofmx_wds import create_shards_from_arrays
    >>> from neurofmx_wds.lightning import NeuroDataModule
    >>> out = tempfile.mkdtemp()
    >>> for split, n_samples in (("train", 64), ("val", 16)):
    ...     _ = create_shards_from_arrays(f"{out}/{split}", {"spikes": np.zeros((n_samples, 100, 96), "float32")})
    >>> data = NeuroDataModule(train=f"{out}/train", val=f"{out}/val", batch_size=16)
    >>> data.setup("fit")
    >>> len(data.train_dataloader()), next(iter(data.val_dataloader()))["spikes"].shape
    (4, torch.Size([16, 100, 96]))
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

from ..errors import refuse_unknown
from ..loading.batch_loader import WebDatasetDataLoader
from ..loading.loaders import create_webdataset_dataloader
from ..loading.mixture import Mixture
from ..loading.options import Datasets, Shuffle
from ..loading.windows import Windows
from .splits import Split, SplitModule, by_name

_OF_MIXTURES = {"weights", "epoch"}  # options that hold for those splits that are mixtures


class NeuroDataModule(SplitModule):
    """Datasets for a ``Trainer``, in a reproducible order, resumed exactly from Lightning's own checkpoints.

    A checkpoint that Lightning writes after any training batch holds the state of the loader. With
    ``trainer.fit(model, datamodule=data, ckpt_path=…)`` training continues with the very next sample: also if
    validation ran in between, and also with another number of ranks or another batch size, for which Lightning's count
    of batches is adjusted. Ranks are those of the trainer (also data-parallel ones beside model-parallel ones). Each
    gets its share, all the same number of batches; ``use_distributed_sampler`` makes no difference. Each Lightning
    epoch has an order of its own, also with ``limit_train_batches`` or ``reload_dataloaders_every_n_epochs``; with
    ``overfit_batches`` training data is not shuffled.

    Args:
        train, val, test, predict: datasets, as `shard_dir` of :func:`~neurofmx_wds.create_webdataset_dataloader`;
            only those that a stage needs. Each may be a mixture: :func:`~neurofmx_wds.mix`, or name → dataset (of
            `train` only with `weights` or `epoch`). The first may also be a mapping from split (name or
            :class:`~neurofmx_wds.lightning.Split`) to dataset. Without `predict`, prediction runs on `test`.
        batch_size: samples per batch and rank; also an attribute, as Lightning's batch size finder expects.
        num_workers: processes that read. 0 is fastest unless `transform` is costly.
        shuffle, drop_last: of `train`; the other splits are delivered whole and in stored order.
        per_split: options in which splits differ, such as ``{"val": {"batch_size": 64}, "test": {"shuffle": True}}``.
        **options: for all splits: every other argument of :func:`~neurofmx_wds.create_webdataset_dataloader`. `windows`
            with jitter are those of `train`; the other splits have the same without, unless `per_split` says otherwise.
            With ``split={"train": 0.8, "val": 0.2}`` each split reads the part of its name, unless `part` says another.
            With ``vocabulary=True`` and `normalize` the other splits have the indices of `train`, and its means and
            deviations for its sessions.

    Raises:
        ValueError, TypeError: an unknown split or option.

    Example:
        >>> data = NeuroDataModule(train="sets/train", val="sets/val", batch_size=64, per_split={"val": {"seed": 1}})
        >>> data.hparams["batch_size"]
        64
    """

    _SPLITS = ("train", "val", "test", "predict")

    def __init__(
        self,
        train: Datasets | Mapping[Any, Datasets] | None = None,
        val: Datasets | None = None,
        test: Datasets | None = None,
        predict: Datasets | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        shuffle: Shuffle = True,
        drop_last: bool = False,
        per_split: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        weighted = {*options, *by_name(per_split, self._SPLITS, "per_split").get("train", {})} & _OF_MIXTURES
        mapped: Mapping[str, Any] = {"train": train}
        if isinstance(train, Mapping) and not (weighted and {*self._SPLITS, *Split}.isdisjoint(train)):
            mapped = by_name(train, self._SPLITS, "train")
        datasets = {"val": val, "test": test, "predict": predict, **mapped}
        present = [split for split in self._SPLITS if datasets.get(split) is not None]
        self.shard_dirs = {split: _absolute(datasets[split]) for split in present}  # opened later, perhaps elsewhere
        self._training: tuple[Any, dict[str, Any]] | None = None
        self.batch_size = batch_size
        self.per_split = by_name(per_split, self._SPLITS, "per_split")
        self.options = {"num_workers": num_workers, **options}
        known = {*inspect.signature(create_webdataset_dataloader).parameters, *self._SPLITS}
        for each in (options, *self.per_split.values()):  # now, not when training starts
            refuse_unknown(type(self).__name__, each, known)
        self.train_options = {"shuffle": shuffle, "drop_last": drop_last}
        given = {**datasets, "batch_size": batch_size, **self.options, **self.train_options}
        self.save_hyperparameters(_plain({**given, "per_split": self.per_split}))

    def _open(self, split: str) -> None:
        self._make(split)

    def _make(self, split: str) -> WebDatasetDataLoader:
        options: dict[str, Any] = {"batch_size": self.batch_size, "shuffle": False, **self.options}
        if split == "train":
            options |= self.train_options
        options |= self.per_split.get(split, {})
        trainer: Any = self.trainer
        windows = options.get("windows")
        if windows is not None and split != "train" and "windows" not in self.per_split.get(split, {}):
            options["windows"] = dataclasses.replace(windows, jitter=False)
        if trainer is not None and split == "train" and trainer.overfit_batches:
            options["shuffle"] = False
        if trainer is not None and (share := trainer.distributed_sampler_kwargs):
            options = {"rank": share["rank"], "world_size": share["num_replicas"], **options}
        if "split" in options and split in options["split"]:
            options.setdefault("part", split)
        datasets = self.shard_dirs[split]
        if not isinstance(datasets, Mapping):
            options = {name: value for name, value in options.items() if name not in _OF_MIXTURES}
        loader = create_webdataset_dataloader(datasets, **options)
        shared = {} if split == "train" else self._shared_by_training(split, options, loader)
        return create_webdataset_dataloader(datasets, **{**options, **shared}) if shared else loader

    def _shared_by_training(
        self, split: str, options: Mapping[str, Any], loader: WebDatasetDataLoader
    ) -> dict[str, Any]:
        """Return the options of another split that come from the training data: indices, means and deviations."""
        own = self.per_split.get(split, {})
        wanted = {"vocabulary"} if options.get("vocabulary") is True else set()
        wanted |= {"normalize"} if loader.normalization else set()
        if "train" not in self.shard_dirs or not wanted - own.keys():
            return {}
        if self._training is None:
            training = self._make("train")
            self._training = training.vocabulary, training.normalization
        vocabulary, seen = self._training
        normalize = {name: {**known, **seen.get(name, {})} for name, known in loader.normalization.items()}
        return {name: value for name, value in (("vocabulary", vocabulary), ("normalize", normalize))
                if name in wanted - own.keys()}  # fmt: skip


def _absolute(datasets: Any) -> Any:
    """Return the address of a dataset, or of each of several, with local paths made absolute.

    Example:
        >>> _absolute({"a": "s3://bucket/a", "b": ["/data/{0..3}.tar"]})
        {'a': 's3://bucket/a', 'b': ['/data/{0..3}.tar']}
    """
    if isinstance(datasets, Mapping):
        return {name: _absolute_part(each) for name, each in datasets.items()}
    if isinstance(datasets, Mixture):
        return dataclasses.replace(datasets, datasets=_absolute(datasets.datasets))
    if isinstance(datasets, (list, tuple)):
        return [_absolute(each) for each in datasets]
    if not isinstance(datasets, (str, os.PathLike)):
        return datasets
    address = os.fspath(datasets)
    return address if ":" in address and not os.path.exists(address) else os.path.abspath(address)


def _absolute_part(part: Any) -> Any:
    """Return a dataset of a mixture, which may have options of its own, with local paths made absolute."""
    if isinstance(part, Mapping):
        return {**part, "shard_dir": _absolute(part["shard_dir"])} if "shard_dir" in part else part
    return _absolute(part)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments that a checkpoint can hold: no functions and the like.

    Example:
        >>> _plain({"batch_size": 4, "transform": len, "per_split": {"val": {"seed": 1, "transform": len}}})
        {'batch_size': 4, 'per_split': {'val': {'seed': 1}}}
    """
    plain: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(TypeError):
            value = value.to_json() if isinstance(value, Windows) else value
            nested = isinstance(value, Mapping)
            plain[name] = _plain(value) if nested else json.loads(json.dumps(value, default=os.fspath))
    return plain
