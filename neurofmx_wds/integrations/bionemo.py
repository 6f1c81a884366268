"""The data modules of bionemo-webdatamodule, by the same names and arguments, over our reader.

Knows webdataset's stages and the packing of files; knows nothing of our own data module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..loading.pipeline import ResumablePipeline
from .packing import pack_files
from .splits import Split, SplitModule, Value, by_name
from .webloader import Call, Stages, WebLoader, composed, invoked, open_members


class WebDataModule(SplitModule):
    """Tars for each split through stages of webdataset, with the interface of bionemo-webdatamodule, over our reader.

    Differences from bionemo's: there may be fewer tars than workers or ranks; every rank gets the same number of
    samples (the few that fill up come twice); the order depends on dataset, seed and epoch only; pickles may only hold
    allowed array types; arguments by split may leave splits out; a checkpoint resumes in mid-epoch, on the same number
    of ranks. It resumes exactly if the stages return one item for each item, or are ``batched``, and if the number of
    batches is known: from `n_samples`, or by ``with_epoch`` in `invoke_wld`. A stage that holds samples back, such as
    ``wds.shuffle``, loses those that it holds: prefer ``kwargs_wds={split: {"shardshuffle": True}}``, which mixes
    samples too. :class:`~neurofmx_wds.lightning.NeuroDataModule` has none of these conditions.

    In the newer form, ``WebDataModule(suffix_keys_wds, dirs_tars_wds, …)``, an epoch ends with the data or as
    `invoke_wds` and `invoke_wld` define it, and torch's ``batch_size=1`` applies unless `kwargs_wld` sets another.

    Args:
        dirs_tars_wds: split → directory; its tars are ``{prefix_tars_wds}-*.tar``.
        n_samples: split → samples in an epoch, which has ``ceil(n_samples / global_batch_size)`` batches.
        suffix_keys_wds: one suffix of members (``"tensor.pyd"``, or a pattern), or several. Each sample becomes the
            tuple of their values, decoded as webdataset does.
        global_batch_size: samples in a step of all ranks. The batches themselves are made by `pipeline_prebatch_wld`.
        prefix_tars_wds: as above.
        pipeline_wds: split → what is composed on the dataset, in the workers: a stage or several.
        pipeline_prebatch_wld: split → what is composed on the loader, in the trainer's process, such as
            ``wds.batched(8)``: a stage or several.
        kwargs_wds: split → arguments of ``webdataset.WebDataset``, of which `shardshuffle`, `seed`, `handler`,
            `cache_dir`, `cache_size` and ``nodesplitter=None`` (all samples on every rank) have their meaning; or of
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
        dirs_tars_wds: Mapping[Any, str | os.PathLike[str]] | str | Sequence[str],
        n_samples: Mapping[Any, Any] | None = None,
        suffix_keys_wds: str | Iterable[str] | None = None,
        global_batch_size: int | None = None,
        prefix_tars_wds: str = "wdshards",
        pipeline_wds: Mapping[Any, Stages] | None = None,
        pipeline_prebatch_wld: Mapping[Any, Stages] | None = None,
        kwargs_wds: Mapping[Any, Mapping[str, Any] | None] | None = None,
        kwargs_wld: Mapping[Any, Mapping[str, Any] | None] | None = None,
        invoke_wds: Mapping[Any, Sequence[Call]] | None = None,
        invoke_wld: Mapping[Any, Sequence[Call]] | None = None,
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
        self._n_samples: dict[Split, int] = _by_split(n_samples, "n_samples")
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
        """Do nothing: the tars exist."""

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
        if self._global_batch_size is not None:
            loader = loader.with_epoch(nbatches=-(-self._n_samples[which] // self._global_batch_size))
        return invoked(loader, self._invoke_wld.get(which))


class PickledDataWDS(WebDataModule):
    """A :class:`WebDataModule` over tars that it first packs from files ``{dir_pickles}/{name}.{suffix}``.

    The files are packed as they are, unread: the contents of a pickle are checked when a sample is decoded.
    Directories appear whole or not at all. Packing again does nothing as long as names, sizes and files are the same;
    changed files, or other names, are packed anew.

    In the newer form, ``PickledDataWDS(dir_pickles, names_subset, suffix_keys_wds, dirs_tars_wds, …)``, there may be
    several suffixes, and `dirs_tars_wds` names the directory of each split.

    Args:
        dir_pickles: where the files are.
        suffix_pickles: their suffix, such as ``"tensor.pyd"``.
        names_subset: split → names of its samples; the key of a sample is its name with ``-`` for every dot.
        prefix_dir_tars_wds: tars are written to ``{prefix_dir_tars_wds}{train|val|test}``.
        *args: `global_batch_size`, and the arguments of :class:`WebDataModule` after it.
        n_tars_wds: make at least this many tars of each split, if it has enough samples.
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
        names: dict[Split, Sequence[str]] = _by_split(names_subset, "names_subset")
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
        """Pack the files of each split into tars. Lightning calls this in one process of each machine.

        Raises:
            SourceError: a file is missing, or two names give one key.
            OutputError: the directory for the tars holds something else.
        """
        source, n_tars = Path(self._dir_pickles), self._n_tars_wds or 1
        for split, names in self._names_subset.items():
            target = Path(self._dirs_tars_wds[split])
            pack_files(source, names, self._suffixes, target, self._prefix_tars_wds, n_tars)


def _by_split(values: Mapping[Any, Value] | None, argument: str) -> dict[Split, Value]:
    """Return a mapping by split with the splits as keys."""
    return {Split[name]: value for name, value in by_name(values, Split.__members__, argument).items()}
