"""PyTorch Lightning data modules: ours, and bionemo-webdatamodule's by the same names.

:class:`NeuroDataModule` puts :func:`~neurofmx_wds.create_webdataset_dataloader` behind a ``Trainer``; checkpoints that
Lightning writes in the middle of an epoch resume at the very next sample. :class:`WebDataModule` and
:class:`PickledDataWDS` take what bionemo's classes take, over our reader. Knows the loaders and the writer; knows
nothing of recordings. Needs ``pip install 'neurofmx-wds[lightning]'``.

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
import inspect
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Any, cast

from ..errors import NeurofmxError, refuse_unknown
from ..format.shards import ShardDir
from ..loading.batch_loader import WebDatasetDataLoader
from ..loading.loaders import create_webdataset_dataloader
from ..loading.pipeline import ResumablePipeline
from ..order import cursor as cursors
from .packing import pack_files
from .webloader import WebLoader, composed, invoked, open_members

try:
    from lightning import LightningDataModule
except ImportError as error:
    raise NeurofmxError("lightning is not installed", remedy="pip install 'neurofmx-wds[lightning]'") from error

logger = logging.getLogger("neurofmx_wds")


class Split(Enum):
    """The parts of a dataset. Wherever a split is asked for, its name will do."""

    train = auto()
    val = auto()
    test = auto()


_SERVES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class _SplitModule(LightningDataModule):
    """Which split serves which of the trainer's stages; how it is opened and loaded is said by subclasses.

    Attributes:
        shard_dirs: split → where its shards are.
    """

    shard_dirs: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._loaders: dict[str, WebDatasetDataLoader | WebLoader] = {}

    def __str__(self) -> str:
        given = ", ".join(f"{split}={where!r}" for split, where in self.shard_dirs.items())
        return f"{type(self).__name__}({given})"

    def _open(self, split: str) -> None:
        """Open a split's dataset, so that what is wrong with it is said before training starts."""
        raise NotImplementedError

    def _make(self, split: str) -> WebDatasetDataLoader | WebLoader:
        raise NotImplementedError

    def _loader(self, split: str) -> WebDatasetDataLoader | WebLoader:
        if split not in self.shard_dirs:
            raise ValueError(f"{type(self).__name__} was given no split {split!r}")
        self._loaders[split] = self._make(split)
        return self._loaders[split]

    def setup(self, stage: str | None = None) -> None:
        """Open what a stage needs.

        Args:
            stage: ``"fit"`` (train, and val where it is given), ``"validate"``, ``"test"``, ``"predict"``, or None: all
                splits that were given.

        Raises:
            ValueError: no such stage, or a split that it needs is not given.
            FileNotFoundError, ShardError, ManifestError: a split's dataset cannot be opened.
        """
        stage = stage if stage is None else str.lower(stage)  # Lightning's is an enumeration
        if stage is not None and stage not in _SERVES:
            raise ValueError(f"stage must be one of {', '.join(_SERVES)}, not {stage!r}")
        for split in dict.fromkeys(itertools.chain(*_SERVES.values())) if stage is None else _SERVES[stage]:
            served_by = self._served_by(split)
            if served_by in self.shard_dirs:
                self._open(served_by)
            elif stage is not None and (stage, split) != ("fit", "val"):
                raise ValueError(f"Trainer.{stage} needs the split {split!r}: give it to {type(self).__name__}")

    def teardown(self, stage: str) -> None:
        """Stop persistent workers, which the garbage collector would find late and wait for."""
        while self._loaders:
            self._loaders.popitem()[1].close()

    def _served_by(self, split: str) -> str:
        return "test" if split == "predict" and split not in self.shard_dirs else split

    def train_dataloader(self) -> Any:
        """Batches to train on."""
        loader, trainer = self._loader("train"), cast(Any, self.trainer)
        return loader if trainer is None or trainer.overfit_batches else TrainLoader(loader, trainer)

    def val_dataloader(self) -> Any:
        """Batches to validate on; none where no such split was given."""
        if "val" not in self.shard_dirs:
            logger.warning("%s was given no val split: nothing is validated", type(self).__name__)
            return []
        return self._loader("val")

    def test_dataloader(self) -> Any:
        """Batches to test on."""
        return self._loader("test")

    def predict_dataloader(self) -> Any:
        """Batches to predict on; those to test on where no such split was given."""
        return self._loader(self._served_by("predict"))


class TrainLoader:
    """Training batches as Lightning's fit loop deals with them: it says when an epoch starts, and counts batches.

    Args:
        loader: the batches.
        trainer: Lightning's.
    """

    def __init__(self, loader: WebDatasetDataLoader | WebLoader, trainer: Any) -> None:
        self.loader = loader
        self.trainer = trainer
        self._resumed_epoch = 0

    def __iter__(self) -> Iterator[Any]:
        if self._resumed_epoch <= self.trainer.current_epoch:  # else it was saved when all of this one was delivered
            yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> TrainLoader:
        """Whom Lightning tells that an epoch starts."""
        return self

    def set_epoch(self, _: int) -> None:
        """Let the next iteration be of the trainer's epoch; a state loaded for this very epoch stays."""
        # Not the number that Lightning passes: after some resumes that is one too large.
        self.loader.set_epoch(max(self.trainer.current_epoch, self._resumed_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: for JSON, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, and let the trainer count the batches before it as they are here.

        Raises:
            StateError: it is of another dataset, selection, seed or shuffle.
        """
        loader = self.loader
        loader.load_state_dict(state)
        self._resumed_epoch = loader.epoch
        epoch_loop = self.trainer.fit_loop.epoch_loop
        progress = epoch_loop.batch_progress.current
        done = progress.ready if isinstance(loader, WebLoader) else len(loader)
        if isinstance(loader, WebDatasetDataLoader) and loader.epoch <= self.trainer.current_epoch:
            size = (len(loader.order), loader.batch_size, loader.world_size, loader.drop_last)
            done -= cursors.n_steps(loader.state_dict()["position"], *size)
        unfinished = progress.ready - progress.completed  # 1 where it was saved in on_train_batch_end
        progress.ready = progress.started = progress.processed = done
        progress.completed = done - unfinished if hasattr(epoch_loop, "update_restart_stage") else done  # before 2.5.1


def _by_name(given: Mapping[Any, Any] | None, allowed: Iterable[str], what: str) -> dict[str, Any]:
    """A mapping by split, with the splits' names as keys."""
    named = {key.name if isinstance(key, Split) else key: value for key, value in (given or {}).items()}
    if unknown := [key for key in named if key not in allowed]:
        raise ValueError(f"{what}: no such split {unknown[0]!r}; there are {', '.join(allowed)}")
    return named


def _by_split(given: Mapping[Any, Any] | None, what: str) -> dict[Split, Any]:
    """A mapping by split, with bionemo's keys."""
    return {Split[name]: value for name, value in _by_name(given, Split.__members__, what).items()}


# --- ours -------------------------------------------------------------------------------------------------------------


class NeuroDataModule(_SplitModule):
    """Datasets for a ``Trainer``, in a reproducible order, resumed exactly from Lightning's own checkpoints.

    A checkpoint that Lightning writes after any training batch holds the loader's state. With
    ``trainer.fit(model, datamodule=data, ckpt_path=…)`` training goes on with the very next sample: also when
    validation ran meanwhile, and also with another number of ranks or another batch size, for which Lightning's count
    of batches is put right. Ranks are found through the trainer (also data-parallel ones beside model-parallel ones),
    and each gets its share, all the same number of batches; ``use_distributed_sampler`` makes no difference. Each
    Lightning epoch has an order of its own, also with ``limit_train_batches`` or
    ``reload_dataloaders_every_n_epochs``; with ``overfit_batches`` training data is unshuffled, as usual.

    Args:
        train, val, test, predict: datasets, as `shard_dir` of :func:`~neurofmx_wds.create_webdataset_dataloader`;
            only those that a stage needs. Or a mapping from split (name or :class:`Split`) to dataset, in first place.
            Without `predict`, prediction runs on `test`.
        batch_size: samples per batch and rank; an attribute, too, as Lightning's batch size finder wants it.
        num_workers: processes that read. 0 is fastest where there is no costly `transform`.
        shuffle, drop_last: of `train`; the others are delivered whole and as stored.
        per_split: what differs between splits, such as ``{"val": {"batch_size": 64}, "test": {"shuffle": True}}``.
        **options: for all splits: every other argument of :func:`~neurofmx_wds.create_webdataset_dataloader`.

    Raises:
        ValueError, TypeError: a split or option that does not exist.

    Example:
        >>> data = NeuroDataModule(train="sets/train", val="sets/val", batch_size=64, per_split={"val": {"seed": 1}})
        >>> data.hparams["batch_size"]
        64
    """

    _SPLITS = ("train", "val", "test", "predict")

    def __init__(
        self,
        train: ShardDir | Mapping[Any, ShardDir] | None = None,
        val: ShardDir | None = None,
        test: ShardDir | None = None,
        predict: ShardDir | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        shuffle: Any = True,
        drop_last: bool = False,
        per_split: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        mapped = _by_name(train, self._SPLITS, "train") if isinstance(train, Mapping) else {"train": train}
        given = {"val": val, "test": test, "predict": predict, **mapped}
        self.shard_dirs = {split: given[split] for split in self._SPLITS if given.get(split) is not None}
        self.batch_size = batch_size
        self.per_split = _by_name(per_split, self._SPLITS, "per_split")
        self.options = {"num_workers": num_workers, **options}
        known = {*inspect.signature(create_webdataset_dataloader).parameters, *self._SPLITS}
        for each in (options, *self.per_split.values()):  # now, not when training starts
            refuse_unknown(type(self).__name__, each, known)
        self.train_options = {"shuffle": shuffle, "drop_last": drop_last}
        about = {**given, "batch_size": batch_size, **self.options, **self.train_options, "per_split": self.per_split}
        self.save_hyperparameters(_plain(about))

    def _open(self, split: str) -> None:
        self._make(split)

    def _make(self, split: str) -> WebDatasetDataLoader:
        options: dict[str, Any] = {"batch_size": self.batch_size, "shuffle": False, **self.options}
        if split == "train":
            options |= self.train_options
        options |= self.per_split.get(split, {})
        trainer: Any = self.trainer
        if trainer is not None and split == "train" and trainer.overfit_batches:
            options["shuffle"] = False
        if trainer is not None and (dealt := trainer.distributed_sampler_kwargs):
            options = {"rank": dealt["rank"], "world_size": dealt["num_replicas"], **options}
        return create_webdataset_dataloader(self.shard_dirs[split], **options)


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a checkpoint may hold them: without functions and the like."""
    plain: dict[str, Any] = {}
    for name, value in given.items():
        with contextlib.suppress(TypeError):
            each = isinstance(value, Mapping)
            plain[name] = _plain(value) if each else json.loads(json.dumps(value, default=os.fspath))
    return plain


# --- bionemo's --------------------------------------------------------------------------------------------------------


class WebDataModule(_SplitModule):
    """Tars per split through stages of webdataset, with the interface of bionemo-webdatamodule, over our reader.

    What differs from bionemo's: tars may be fewer than workers or ranks; every rank gets the same number of samples
    (the few that fill up come twice); the order depends on dataset, seed and epoch only; values of pickles go through
    the allow-list of array types; arguments by split may leave splits out; a checkpoint resumes in mid-epoch, on as
    many ranks. It resumes exactly if the stages hand on one item for each that they take, or ``batched`` ones, and if
    the number of batches is known: from `n_samples`, or by ``with_epoch`` in `invoke_wld`. A stage that holds samples
    back, such as ``wds.shuffle``, loses those that it holds: prefer ``kwargs_wds={split: {"shardshuffle": True}}``,
    which mixes samples too. :class:`NeuroDataModule` has none of these conditions.

    In the newer form, ``WebDataModule(suffix_keys_wds, dirs_tars_wds, …)``, an epoch ends with the data or as
    `invoke_wds` and `invoke_wld` say, and torch's ``batch_size=1`` applies unless `kwargs_wld` says otherwise.

    Args:
        dirs_tars_wds: split → directory; its tars are ``{prefix_tars_wds}-*.tar``.
        n_samples: split → samples in an epoch. One has ``ceil(n_samples / global_batch_size)`` batches.
        suffix_keys_wds: one suffix of members (``"tensor.pyd"``, or a pattern), or several. Each sample becomes the
            tuple of their values, decoded as webdataset does.
        global_batch_size: samples in a step of all ranks. Batches themselves are made by `pipeline_prebatch_wld`.
        prefix_tars_wds: as above.
        pipeline_wds: split → what is composed on the dataset, in the workers: a stage or several.
        pipeline_prebatch_wld: split → what is composed on the loader, in the trainer's process, such as
            ``wds.batched(8)``: a stage or several.
        kwargs_wds: split → arguments of ``webdataset.WebDataset``: `shardshuffle`, `seed`, `handler`, `cache_dir`,
            `cache_size` and ``nodesplitter=None`` (all samples on every rank) do what they say; or of
            :class:`~neurofmx_wds.WebDatasetLoader`.
        kwargs_wld: split → arguments of ``webdataset.WebLoader``, such as `num_workers`.
        invoke_wds, invoke_wld: split → ``[(method, arguments)]``, called on the dataset and on the loader at last.

    Raises:
        ValueError, TypeError: a bad split or argument, or one of ``webdataset.WebDataset`` that has no meaning here.

    Example:
        >>> import webdataset as wds
        >>> data = WebDataModule(
        ...     {Split.train: "tars"}, {Split.train: 1000}, "spikes.npy", 16,
        ...     pipeline_wds={Split.train: wds.map(lambda sample: sample[0])},
        ...     pipeline_prebatch_wld={Split.train: wds.batched(16)},
        ...     kwargs_wds={Split.train: {"shardshuffle": True, "seed": 1}},
        ... )
    """

    def __init__(
        self,
        dirs_tars_wds: Mapping[Any, Any] | str | Sequence[str],
        n_samples: Mapping[Any, Any] | None = None,
        suffix_keys_wds: str | Iterable[str] | None = None,
        global_batch_size: int | None = None,
        prefix_tars_wds: str = "wdshards",
        pipeline_wds: Mapping[Any, Any] | None = None,
        pipeline_prebatch_wld: Mapping[Any, Any] | None = None,
        kwargs_wds: Mapping[Any, Mapping[str, Any] | None] | None = None,
        kwargs_wld: Mapping[Any, Mapping[str, Any] | None] | None = None,
        invoke_wds: Mapping[Any, Sequence[tuple[str, Mapping[str, Any]]]] | None = None,
        invoke_wld: Mapping[Any, Sequence[tuple[str, Mapping[str, Any]]]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(dirs_tars_wds, Mapping):  # the newer form's order
            if suffix_keys_wds is not None:
                raise TypeError("after suffix_keys_wds and dirs_tars_wds, give all arguments by name")
            dirs_tars_wds, n_samples, suffix_keys_wds = n_samples or {}, None, dirs_tars_wds
        if suffix_keys_wds is None or not dirs_tars_wds:
            raise TypeError("WebDataModule needs dirs_tars_wds and suffix_keys_wds")
        if (n_samples is None) != (global_batch_size is None):
            raise TypeError("give n_samples and global_batch_size together, or neither")
        self._dirs_tars_wds = _by_split(dirs_tars_wds, "dirs_tars_wds")
        self.shard_dirs = {split.name: directory for split, directory in self._dirs_tars_wds.items()}
        self._n_samples = _by_split(n_samples, "n_samples")
        if n_samples is not None and self._n_samples.keys() != self._dirs_tars_wds.keys():
            raise ValueError("n_samples and dirs_tars_wds must have the same splits")
        self._suffix_keys_wds = suffix_keys_wds if isinstance(suffix_keys_wds, str) else list(suffix_keys_wds)
        self._global_batch_size = global_batch_size
        self._prefix_tars_wds = prefix_tars_wds
        self._pipeline_wds = _by_split(pipeline_wds, "pipeline_wds")
        self._pipeline_prebatch_wld = _by_split(pipeline_prebatch_wld, "pipeline_prebatch_wld")
        self._kwargs_wds = _by_split(kwargs_wds, "kwargs_wds")
        self._kwargs_wld = _by_split(kwargs_wld, "kwargs_wld")
        self._invoke_wds = _by_split(invoke_wds, "invoke_wds")
        self._invoke_wld = _by_split(invoke_wld, "invoke_wld")
        self._dataset: dict[Split, ResumablePipeline] = {}

    def prepare_data(self) -> None:
        """Nothing: the tars are there."""

    @property
    def _suffixes(self) -> list[str]:
        return [self._suffix_keys_wds] if isinstance(self._suffix_keys_wds, str) else self._suffix_keys_wds

    def _open(self, split: str) -> None:
        which = Split[split]
        pattern = f"{self._prefix_tars_wds}-*.tar"
        kwargs = self._kwargs_wds.get(which) or {}
        samples = open_members(self._dirs_tars_wds[which], pattern, self._suffixes, kwargs)
        dataset = composed(samples, self._pipeline_wds.get(which))
        self._dataset[which] = invoked(dataset, self._invoke_wds.get(which))

    def _make(self, split: str) -> WebLoader:
        which = Split[split]
        if which not in self._dataset:
            raise RuntimeError(f"the split {which.name!r} is not set up: call setup() first")
        options: dict[str, Any] = dict(self._kwargs_wld.get(which) or {})
        if self._n_samples:
            options["batch_size"] = None
        loader = composed(WebLoader(self._dataset[which], **options), self._pipeline_prebatch_wld.get(which))
        if self._n_samples:
            loader = loader.with_epoch(nbatches=-(-self._n_samples[which] // self._global_batch_size))
        made: WebLoader = invoked(loader, self._invoke_wld.get(which))
        return made


class PickledDataWDS(WebDataModule):
    """A :class:`WebDataModule` over tars that it first packs from files ``{dir_pickles}/{name}.{suffix}``.

    The files are packed as they are, unread: what a pickle may hold is checked when a sample is decoded. Directories
    appear whole or not at all. Packing again does nothing as long as names, sizes and files are the same; files that
    have changed, or other names, are packed anew.

    In the newer form, ``PickledDataWDS(dir_pickles, names_subset, suffix_keys_wds, dirs_tars_wds, …)``, there may be
    several suffixes, and `dirs_tars_wds` names each split's directory.

    Args:
        dir_pickles: where the files are.
        suffix_pickles: their suffix, such as ``"tensor.pyd"``.
        names_subset: split → names of its samples; a sample's key is its name with ``-`` for every dot.
        prefix_dir_tars_wds: tars go to ``{prefix_dir_tars_wds}{train|val|test}``.
        *args: `global_batch_size`, and the arguments of :class:`WebDataModule` after it.
        n_tars_wds: make at least so many tars of each split, as far as there are samples.
        **kwargs: arguments of :class:`WebDataModule`.

    Raises:
        ValueError, TypeError: as :class:`WebDataModule`.
    """

    def __init__(
        self,
        dir_pickles: str | os.PathLike[str],
        suffix_pickles: str | Mapping[Any, Sequence[str]] | None = None,
        names_subset: Any = None,
        prefix_dir_tars_wds: Any = None,
        *args: Any,
        n_tars_wds: int | None = None,
        **kwargs: Any,
    ) -> None:
        if n_tars_wds is not None and n_tars_wds < 1:
            raise ValueError(f"n_tars_wds must be positive, not {n_tars_wds}")
        if isinstance(suffix_pickles, Mapping):  # the newer form's order
            newer = {"suffix_keys_wds": names_subset, "dirs_tars_wds": prefix_dir_tars_wds}
            kwargs |= {name: value for name, value in newer.items() if value is not None}
            names_subset, suffix_pickles = suffix_pickles, None
        if names_subset is None:
            raise TypeError("PickledDataWDS needs names_subset")
        names = _by_split(names_subset, "names_subset")
        if suffix_pickles is None:
            if args:
                raise TypeError("after suffix_keys_wds and dirs_tars_wds, give all arguments by name")
            super().__init__(**kwargs)
        else:
            directories = {split: f"{prefix_dir_tars_wds}{split.name}" for split in names}
            n_samples = {split: len(names[split]) for split in names}
            super().__init__(directories, n_samples, suffix_pickles, *args, **kwargs)
        if names.keys() - self._dirs_tars_wds.keys():
            raise ValueError("dirs_tars_wds must have every split of names_subset")
        self._dir_pickles = dir_pickles
        self._names_subset = names
        self._n_tars_wds = n_tars_wds

    def prepare_data(self) -> None:
        """Pack each split's files into tars. Lightning calls it in one process of each machine.

        Raises:
            SourceError: a file is missing, or two names give one key.
            OutputError: the directory for the tars holds something else.
        """
        source, n_tars = Path(self._dir_pickles), self._n_tars_wds or 1
        for split, names in self._names_subset.items():
            target = Path(self._dirs_tars_wds[split])
            pack_files(source, names, self._suffixes, target, self._prefix_tars_wds, n_tars)
