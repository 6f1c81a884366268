"""Loaders for stimulus experiments, with the names that users of DynVision know.

Each puts a *presentation* (:mod:`~neurofmx_wds.stimulus.presentations`) behind any dataset and yields tuples
(data, labels): data (B, …) becomes (B, n_timesteps, …), labels (B,) become (B, n_timesteps). Where nothing is shown
the data is `non_input_value` and the label `non_label_index`.

What differs from DynVision: data keep their dtype unless `dtype` is given; a batch's memory is used again only when
nobody holds the batch any more (there every batch is the same memory); an argument that nobody takes is refused, not
ignored; noise is the sample's own (see :class:`~neurofmx_wds.stimulus.noise.Noise`).

Example:
    >>> import tempfile
    >>> from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
    >>> shards = tempfile.mkdtemp()
    >>> images = np.random.default_rng(0).integers(0, 256, (100, 3, 32, 32), "uint8")
    >>> _ = create_shards_from_arrays(shards, {"image": images, "label": np.arange(100) % 10})
    >>> loader = get_data_loader(shards, "StimulusDuration", batch_size=16, n_timesteps=30, stimulus_duration=20,
    ...                          intro_duration=5, normalize=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), dtype=torch.float16)
    >>> data, labels = next(iter(loader))
    >>> data.shape, data.dtype, labels[0].tolist().count(-1)
    (torch.Size([16, 30, 3, 32, 32]), torch.float16, 10)

    A map-style dataset, gone on with in another process, with other batches:

    >>> dataset = [(image, i % 10) for i, image in enumerate(images)]
    >>> options = {"order": "random", "noise_type": "gaussian", "ssnr": 0.7, "n_timesteps": 20}
    >>> loader = StimulusNoiseDataLoader(dataset, batch_size=16, **options)
    >>> for data, labels in loader:
    ...     break
    >>> later = StimulusNoiseDataLoader(dataset, batch_size=28, **options)
    >>> later.load_state_dict(loader.state_dict())
    >>> [len(data) for data, labels in later]
    [28, 28, 28]

    The same presentation as a stage of a pipeline of batches:

    >>> batches = create_webdataset_dataloader(shards, batch_size=16, num_workers=0).map(StimulusDuration(30, 20, 5))
    >>> next(iter(batches))["image"].shape
    torch.Size([16, 30, 3, 32, 32])
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils.data

from ..errors import NeurofmxError, refuse_unknown
from ..loading.batch_loader import WebDatasetDataLoader
from ..loading.collate import collate_webdataset
from ..loading.dataset import OpenDataset
from ..loading.labels import as_target_transform, label_column, labels_of
from ..loading.loaders import (
    ResumableWebDatasetLoader,
    WebDatasetLoader,
    create_webdataset_dataloader,
)
from ..loading.map_style import open_map_style
from ..loading.memory import BatchMemory
from ..loading.options import BatchOptions, OrderOptions, ProcessingOptions, WorkerOptions, take_options
from ..loading.transforms import as_batch_transforms
from .images import Compose, Normalize, Rngs, formatted
from .presentations import (  # fmt: skip
    Presentation,
    StimulusContrast,
    StimulusDuration,
    StimulusInterval,
    StimulusNoise,
    StimulusRepetition,
    as_labels,
    field_of,
    repeat_over_time,
    show,
)
from .presets import get_data_transform, get_target_transform

__all__ = [
    "StandardDataLoader",
    "StimulusContrast",
    "StimulusContrastDataLoader",
    "StimulusDuration",
    "StimulusDurationDataLoader",
    "StimulusInterval",
    "StimulusIntervalDataLoader",
    "StimulusNoise",
    "StimulusNoiseDataLoader",
    "StimulusRepetition",
    "StimulusRepetitionDataLoader",
    "get_data_loader",
    "get_data_transform",
    "get_target_transform",
    "repeat_over_time",
    "show",
]

Normalization = tuple[Sequence[float], Sequence[float]]
_ORDERS = {"random": "full", "quasi_random": True, "sequential": False}
_OTHER_NAMES = {  # that DynVision's configurations use
    "tsteps": "n_timesteps", "dsteps": "n_timesteps", "data_timesteps": "n_timesteps", "repeat": "n_timesteps",
    "stim": "stimulus_duration", "intro": "intro_duration", "interval": "interval_duration",
    "contrast": "stimulus_contrast", "noisetype": "noise_type", "noiselevel": "ssnr", "noiseseed": "noise_seed",
    "noisevoid": "noise_void", "tempmode": "temporal_mode", "spatialcorr": "spatially_correlated",
    "voidid": "non_label_index", "voidinput": "non_input_value", "void_value": "non_input_value",
    "use_channels_last": "channels_last",
}  # fmt: skip


class StandardDataLoader:
    """Yields (data, labels): each image at every one of `n_timesteps` steps, (B, n_timesteps, …) and (B, n_timesteps).

    Data and labels are views in which all steps share one memory, as with ``torch.expand``.

    Its order is reproducible and it resumes exactly after any batch, with other numbers of workers and ranks too, as
    :func:`~neurofmx_wds.create_webdataset_dataloader` does, also on a map-style dataset, as long as its items are
    always the same: what is random belongs into `data_transform` or `transform`.

    Args:
        dataset: a shard directory (or a brace pattern or list of tars), a :class:`WebDatasetLoader`, what
            :func:`create_webdataset_dataloader` gave, or a map-style dataset whose items are (data, label, …), dicts or
            Pillow images with their label. Of a loader the order, selection and position stay its own.
        batch_size: samples per batch and rank; 32 by default.
        n_timesteps: steps.
        fields: names of data and labels in the dataset, and of more fields to be handed on, which the tuples then hold
            as third and so on (``"metadata"``, ``"__key__"``).
        order: ``"sequential"`` (default), ``"random"`` (uniform; our ``shuffle="full"``) or ``"quasi_random"`` (mixed
            while reads stay sequential; ``shuffle=True``). Or give `shuffle`.
        data_transform: a name, a list of names or a function of images (and their generators), see
            :func:`get_data_transform`; it runs on whole batches in the process that reads them.
        target_transform: a function of a label, a mapping, or a name, see :func:`get_target_transform`.
        normalize: mean and standard deviation of each channel, in units of images in [0, 1].
        dtype: floating-point type of the data, such as ``torch.float16``; arithmetic is in float32 before. Whenever
            uint8 images become floating-point, they are scaled from 0…255 to [0, 1].
        channels_last: put a pixel's channels beside each other in memory.
        device: move data and labels there before they get a time axis (and, but for noise, are normalised): what
            crosses is a batch of images, not of films.
        **options: `non_input_value`, `non_label_index`, and what :func:`create_webdataset_dataloader` takes
            (`num_workers`, by default 0, `seed`, `drop_last`, `pin_memory`, `transform`, `batch_transform`, …; a
            `memory_limit` counts images, not the frames that are made of them when they are delivered). Short names
            from DynVision's configurations work too: ``tsteps``, ``stim``, ``intro``, ….

    With several ranks, a row that another rank has too (where fewer samples than ranks remain at the end of an epoch)
    has the label `non_label_index` at every step.

    Raises:
        ValueError, TypeError: a bad argument.
        NeurofmxError: while loading, a batch that has no such field, or no tensor in it.
    """

    presentation_type: ClassVar[type[Presentation]] = StimulusRepetition
    defaults: ClassVar[Mapping[str, Any]] = {"n_timesteps": 1}

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        fields: Sequence[str] = ("image", "label"),
        order: Any = None,
        data_transform: Any = None,
        target_transform: Any = None,
        normalize: Normalization | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        options = {"channels_last": channels_last, **_with_full_names(options)}
        channels_last = options.pop("channels_last")
        known = {each.name for each in fields_of(self.presentation_type)} - {"fields"}
        given = {**self.defaults, **{name: options.pop(name) for name in known & set(options)}}
        if len(fields) < 2 or isinstance(fields, str):
            raise ValueError(f"fields must name the data and the labels, not {fields!r}")
        self.dataset = dataset
        self.fields = tuple(fields)
        self.device = None if device is None else torch.device(device)
        self.presentation = self.presentation_type(fields=(fields[0], fields[1]), **given)
        transform = get_data_transform(data_transform)
        if normalize is not None and any(isinstance(step, Normalize) for step in transform):
            raise ValueError(f"data_transform={data_transform!r} normalises already; leave out normalize=")
        layout = _Layout(normalize, dtype, channels_last)
        if normalize is not None and (not np.iterable(normalize) or len(normalize) != 2):
            raise ValueError(f"normalize must be (mean, std), not {normalize!r}")
        n_channels = 1 if normalize is None else np.size(normalize[0])
        layout(torch.zeros(1, n_channels, 1, 1))  # refuses bad values now, not in a worker
        noise = self.presentation if isinstance(self.presentation, StimulusNoise) else None
        late = self.device is not None and noise is None
        self._late = layout if late else None
        if isinstance(target_transform, str):
            target_transform = get_target_transform(target_transform)
        self._reading = _Reading(
            fields[0], fields[1], transform, as_target_transform(target_transform), None if late else layout, noise
        )
        if order is not None:
            if "shuffle" in options:
                raise TypeError("give order or shuffle, not both")
            options["shuffle"] = _shuffle_of(order)
        if batch_size is not None:
            options["batch_size"] = batch_size
        before = as_batch_transforms(options.pop("batch_transform", None))
        self.batches = _batches_of(dataset, self.fields, (*before, self._reading), options)
        # Workers' batches become page-locked when they arrive; what this process makes is so from the start.
        here = self.batches.num_workers == 0
        layout.memory.pinned = self.batches.pin_memory and here
        self.presentation.memory.pinned = self.batches.pin_memory and (here or noise is None)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for batch in self.batches:
            yield self._delivered(batch)

    def _delivered(self, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        data, labels, *more = (field_of(batch, name) for name in self.fields)
        data, labels = self._reading.unpacked(data), as_labels(labels)
        if (mask := batch.get("__mask__")) is not None:
            labels = torch.where(mask.view(-1, *[1] * (labels.ndim - 1)), labels, self.presentation.non_label_index)
        if self.device is not None:
            data, labels = (values.to(self.device, non_blocking=True) for values in (data, labels))
        if self._late is not None:
            data = self._late(data)
        if self._reading.noise is None:
            data = self.presentation.data(data)
        return (data, self.presentation.labels(labels), *more)

    def __getattr__(self, name: str) -> Any:
        # What DynVision's loaders have as attributes, the presentation has: n_timesteps, outro_duration, ….
        if name.startswith("_") or "presentation" not in vars(self):
            raise AttributeError(name)
        return getattr(self.presentation, name)

    def __len__(self) -> int:
        """Batches that this rank gets in a whole epoch."""
        return len(self.batches)

    @property
    def batch_size(self) -> int:
        """Samples per batch and rank."""
        return self.batches.batch_size

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of, or the running one."""
        return self.batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch, from its start; a state loaded for this very epoch stays."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: one JSON object under 1 KiB, the same on every rank."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Raises:
            StateError: it is of another dataset, selection, seed or shuffle, or damaged. Of a map-style dataset nothing
                is known but its length.
        """
        self.batches.load_state_dict(state)

    get_state = state_dict
    set_state = load_state_dict


class StimulusRepetitionDataLoader(StandardDataLoader):
    """As :class:`StandardDataLoader`, with 20 steps by default (also as ``repeat=``)."""

    defaults = {}


class StimulusDurationDataLoader(StandardDataLoader):
    """Nothing, then the image, then nothing: see :class:`StimulusDuration` for `n_timesteps` (30), `stimulus_duration`
    (20) and `intro_duration` (1); everything else as :class:`StandardDataLoader`, but data and labels have memory of
    their own."""

    presentation_type = StimulusDuration
    defaults = {}


class StimulusIntervalDataLoader(StandardDataLoader):
    """The image twice: see :class:`StimulusInterval` for `n_timesteps` (30), `stimulus_duration` (2), `intro_duration`
    (0) and `interval_duration` (2); everything else as :class:`StimulusDurationDataLoader`."""

    presentation_type = StimulusInterval
    defaults = {}


class StimulusContrastDataLoader(StandardDataLoader):
    """The image at a lower contrast: see :class:`StimulusContrast` for `n_timesteps` (15), `stimulus_duration` (10),
    `intro_duration` (2) and `stimulus_contrast` (1.0); everything else as :class:`StimulusDurationDataLoader`."""

    presentation_type = StimulusContrast
    defaults = {}


class StimulusNoiseDataLoader(StandardDataLoader):
    """The image with noise: see :class:`StimulusNoise` for `n_timesteps` (20), `stimulus_duration` (15),
    `intro_duration` (1), `noise_type` ("uniform"), `ssnr` (0.5) and more; everything else as
    :class:`StimulusDurationDataLoader`. A sample's noise depends on seed, epoch and sample only; it is made in the
    process that reads the sample."""

    presentation_type = StimulusNoise
    defaults = {}


_LOADERS: Mapping[str, type[StandardDataLoader]] = {
    kind.__name__: kind
    for kind in (
        StandardDataLoader, StimulusRepetitionDataLoader, StimulusDurationDataLoader, StimulusIntervalDataLoader,
        StimulusContrastDataLoader, StimulusNoiseDataLoader,
    )
}  # fmt: skip


def get_data_loader(
    dataset: Any, dataloader: str | type[StandardDataLoader] | None = None, **options: Any
) -> StandardDataLoader:
    """The loader of a stimulus experiment.

    Args:
        dataset: a shard directory, a :class:`WebDatasetLoader`, a loader of batches, or a map-style dataset.
        dataloader: the class or its name, with or without the ending "DataLoader": ``"StimulusDuration"``; by default
            :class:`StandardDataLoader`.
        **options: as that class takes them.

    Raises:
        ValueError: there is no such loader.
    """
    if dataloader is None:
        dataloader = StandardDataLoader
    if isinstance(dataloader, str):
        name = dataloader if dataloader.endswith("DataLoader") else f"{dataloader}DataLoader"
        if name not in _LOADERS:
            raise ValueError(f"there is no loader {dataloader!r}; there are {', '.join(_LOADERS)}")
        dataloader = _LOADERS[name]
    if not (isinstance(dataloader, type) and issubclass(dataloader, StandardDataLoader)):
        raise TypeError(f"dataloader must be a name or a class of {__name__}, not {dataloader!r}")
    return dataloader(dataset, **options)


def _with_full_names(options: Mapping[str, Any]) -> dict[str, Any]:
    full: dict[str, Any] = {}
    for name, value in options.items():
        if (one := _OTHER_NAMES.get(name, name)) in full or (one != name and one in options):
            raise TypeError(f"{name} is another name of {one}; give it once")
        full[one] = value
    return full


def _shuffle_of(order: Any) -> Any:
    """FFCV's names of orders, or its OrderOption."""
    name = str(getattr(order, "name", order)).lower()
    if name not in _ORDERS:
        raise ValueError(f"order must be one of {', '.join(_ORDERS)}, not {order!r}")
    return _ORDERS[name]


@dataclass(frozen=True)
class _Layout:
    """How images are to be; see :func:`formatted`."""

    normalize: Normalization | None
    dtype: torch.dtype | None
    channels_last: bool
    memory: BatchMemory = field(default_factory=BatchMemory)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return formatted(images, self.normalize, self.dtype, self.channels_last, self.memory)


@dataclass(frozen=True)
class _Reading:
    """What is done to images in the process that reads them: a `batch_transform`."""

    field: str
    label: str
    transform: Compose
    target_transform: Callable[[Any], Any] | None
    layout: _Layout | None
    noise: StimulusNoise | None

    def __call__(self, batch: Any, rngs: Rngs) -> dict[str, Any]:
        images = field_of(batch, self.field)
        if self.target_transform is not None:
            given = labels_of(batch.get(self.label), batch.get("metadata", ()))
            batch = {**batch, self.label: label_column(list(map(self.target_transform, given)))}
        if len(self.transform):
            images = self.transform(images, rngs)
        if not isinstance(images, torch.Tensor):
            first = type(images[0]).__name__ if isinstance(images, list) and images else type(images).__name__
            raise NeurofmxError(
                f"field {self.field!r} is no tensor but a list of {first}",
                remedy="images of unequal sizes need a data_transform that resizes them, encoded ones a transform= "
                "that decodes them",
            )
        if self.layout is not None:
            images = self.layout(images)
        if self.noise is not None:
            images = self.noise.noisy(images, rngs)
        return {**batch, self.field: images.movedim(-3, -1) if self._packs else images}

    @property
    def _packs(self) -> bool:
        """Whether images travel as (…, H, W, C): a worker's batches arrive contiguous, whatever they were."""
        return self.layout is not None and self.layout.channels_last

    def unpacked(self, images: torch.Tensor) -> torch.Tensor:
        """Images as they were before they travelled."""
        return images.movedim(-1, -3) if self._packs else images


def _batches_of(
    dataset: Any,
    names: Sequence[str],
    batch_transforms: tuple[Callable[..., Any], ...],
    options: dict[str, Any],
) -> WebDatasetDataLoader:
    """A loader of batches of whatever there is."""
    if isinstance(dataset, (WebDatasetLoader, WebDatasetDataLoader)):
        return _batches_of_loader(dataset, batch_transforms, options)
    options = {"num_workers": 0, "shuffle": False, **options}
    tars = isinstance(dataset, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in dataset)
    if isinstance(dataset, (str, os.PathLike)) or tars:
        return create_webdataset_dataloader(dataset, batch_transform=batch_transforms, **options)
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        raise TypeError(f"dataset must be a shard directory, a WebDatasetLoader or a map-style dataset, not {kind}")
    opened = open_map_style(dataset, names, take_options(OrderOptions, options))
    given = take_options(ProcessingOptions, options, collate_fn=collate_webdataset, batch_transform=batch_transforms)
    return _loader(opened, given, options)


def _batches_of_loader(
    loader: WebDatasetLoader | WebDatasetDataLoader,
    batch_transforms: tuple[Callable[..., Any], ...],
    options: dict[str, Any],
) -> WebDatasetDataLoader:
    if isinstance(loader, ResumableWebDatasetLoader):
        raise TypeError(
            "a ResumableWebDatasetLoader would no longer write its checkpoints; give a WebDatasetLoader, and save this "
            "loader's state_dict()"
        )
    if loader.pipeline:
        raise TypeError(
            "the loader has further stages, which act on its samples or batches; give their functions as transform= or "
            "batch_transform= instead, or put the presentation behind them: loader.map(StimulusDuration(…))"
        )
    before = as_batch_transforms(loader.processing.batch_transform)
    processing = replace(loader.processing, batch_transform=(*before, *batch_transforms))
    if isinstance(loader, WebDatasetDataLoader):
        if options:
            raise TypeError(f"{', '.join(options)}: these are settings of the loader that was given")
        twin = copy.copy(loader)
        twin.processing = processing
        return twin
    options = {"rank": loader._rank, "world_size": loader._world_size, **options}
    batches = _loader(loader.opened, replace(processing, collate_fn=collate_webdataset), options)
    batches.progress = loader.progress
    return batches


def _loader(opened: OpenDataset, processing: ProcessingOptions, options: dict[str, Any]) -> WebDatasetDataLoader:
    """Make a loader of the batches of an open dataset, by the other `options` of a loader."""
    batches, workers = take_options(BatchOptions, options), take_options(WorkerOptions, options, num_workers=0)
    known = {
        each.name for kind in (OrderOptions, ProcessingOptions, BatchOptions, WorkerOptions) for each in fields_of(kind)
    }
    refuse_unknown("a loader of batches", options, known)
    return WebDatasetDataLoader(opened, processing, batches, workers)
