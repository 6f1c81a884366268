"""Loaders for stimulus experiments, under the names that DynVision uses.

A loader applies a *presentation* (:mod:`~neurofmx_wds.stimulus.presentations`) to any dataset and yields tuples
(data, labels): data (B, …) becomes (B, n_timesteps, …), labels (B,) become (B, n_timesteps). At steps without a
stimulus the data is `non_input_value` and the label is `non_label_index`.

Differences from DynVision: data keeps its dtype unless `dtype` is given; the memory of a batch is reused only once
nothing refers to the batch (in DynVision all batches share one buffer); unknown arguments are errors; noise depends on
the sample, not on the batch (see :class:`~neurofmx_wds.stimulus.noise.Noise`).

Example:
    >>> import tempfile
    >>> import numpy as np
    >>> import torch
    >>> from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
    >>> shards = tempfile.mkdtemp()
    >>> images = np.random.default_rng(0).integers(0, 256, (100, 3, 32, 32), "uint8")
    >>> _ = create_shards_from_arrays(shards, {"image": images, "label": np.arange(100) % 10})
    >>> loader = get_data_loader(shards, "StimulusDuration", batch_size=16, n_timesteps=30, stimulus_duration=20,
    ...                          intro_duration=5, normalize=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), dtype=torch.float16)
    >>> data, labels = next(iter(loader))
    >>> data.shape, data.dtype, labels[0].tolist().count(-1)
    (torch.Size([16, 30, 3, 32, 32]), torch.float16, 10)

    A map-style dataset, resumed in another process with another batch size:

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any, ClassVar

import torch

from ..loading.labels import as_target_transform
from ..loading.options import Shuffle
from ..loading.transforms import as_batch_transforms
from .batches import batches_of
from .images import Normalize
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
from .presets import Transforms, get_data_transform, get_target_transform
from .reading import ImageLayout, ImageReading, Normalization

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

_ORDERS: Mapping[str, Shuffle] = {"random": "full", "quasi_random": True, "sequential": False}
_SHORT_NAMES = {  # of DynVision's configurations
    "tsteps": "n_timesteps", "dsteps": "n_timesteps", "data_timesteps": "n_timesteps", "repeat": "n_timesteps",
    "stim": "stimulus_duration", "intro": "intro_duration", "interval": "interval_duration",
    "contrast": "stimulus_contrast", "noisetype": "noise_type", "noiselevel": "ssnr", "noiseseed": "noise_seed",
    "noisevoid": "noise_void", "tempmode": "temporal_mode", "spatialcorr": "spatially_correlated",
    "voidid": "non_label_index", "voidinput": "non_input_value", "void_value": "non_input_value",
    "use_channels_last": "channels_last",
}  # fmt: skip


class StandardDataLoader:
    """Yield (data, labels) with each image at every one of `n_timesteps` steps: (B, n_timesteps, …), (B, n_timesteps).

    Data and labels are views in which all steps share memory, as ``torch.expand`` returns them.

    The order is reproducible, and the loader resumes exactly after any batch, also with another number of workers and
    ranks, as :func:`~neurofmx_wds.create_webdataset_dataloader` does. This holds for map-style datasets too, provided
    that an index always returns the same item: do random augmentation in `data_transform` or `transform`.

    Args:
        dataset: a shard directory (or a brace pattern or list of tars), a :class:`~neurofmx_wds.WebDatasetLoader`, the
            result of :func:`~neurofmx_wds.create_webdataset_dataloader`, or a map-style dataset whose items are
            (data, label, …), dicts, or Pillow images with their label. Order, selection and position of a loader
            are kept.
        batch_size: samples per batch and rank; 32 by default.
        n_timesteps: number of time steps.
        fields: names of the data and labels in the dataset, then of further fields to return as third and later
            entries of the tuples (``"metadata"``, ``"__key__"``).
        order: ``"sequential"`` (default), ``"random"`` (uniform, as ``shuffle="full"``) or ``"quasi_random"`` (mixed
            with sequential reads, as ``shuffle=True``). Alternatively give `shuffle`.
        data_transform: a name, a list of names, or a function of images and optionally of their random generators; see
            :func:`get_data_transform`. It runs on whole batches, in the process that reads them.
        target_transform: a function of a label, a mapping, or a name; see :func:`get_target_transform`.
        normalize: mean and standard deviation of each channel, in units of images in [0, 1].
        dtype: floating-point dtype of the data, such as ``torch.float16``. Arithmetic is in float32. uint8 images that
            become floating-point are scaled from 0…255 to [0, 1].
        channels_last: make the channels of a pixel adjacent in memory.
        device: move data and labels there before the time axis is added and, except with noise, before they are
            normalised, so that images are transferred rather than sequences of frames.
        **options: `non_input_value`, `non_label_index`, and the arguments of
            :func:`~neurofmx_wds.create_webdataset_dataloader` (`num_workers`, by default 0, `seed`, `drop_last`,
            `pin_memory`, `transform`, `batch_transform`, …; `memory_limit` counts images, not the frames that are made
            from them on delivery). The short names of DynVision's configurations work too: ``tsteps``, ``stim``,
            ``intro``, ….

    With several ranks, a row that another rank also delivers (when fewer samples than ranks remain at the end of an
    epoch) has the label `non_label_index` at every step.

    Raises:
        ValueError: an argument has a bad value.
        TypeError: an argument has a bad type, is unknown, or is given twice.
        NeurofmxError: while loading: a batch lacks a field, or the field is not a tensor.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(StandardDataLoader(dataset, batch_size=4, n_timesteps=5)))
        >>> data.shape, labels[1].tolist()
        (torch.Size([4, 5, 3, 8, 8]), [1, 1, 1, 1, 1])
    """

    presentation_type: ClassVar[type[Presentation]] = StimulusRepetition
    defaults: ClassVar[Mapping[str, Any]] = {"n_timesteps": 1}

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        fields: Sequence[str] = ("image", "label"),
        order: object = None,
        data_transform: Transforms | None = None,
        target_transform: str | Mapping[Any, Any] | Callable[[Any], Any] | None = None,
        normalize: Normalization | None = None,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        options = {"channels_last": channels_last, **_with_full_names(options)}
        layout = ImageLayout(normalize, dtype, options.pop("channels_last"))
        if len(fields) < 2 or isinstance(fields, str):
            raise ValueError(f"fields must name the data and the labels, not {fields!r}")
        transform = get_data_transform(data_transform)
        if normalize is not None and any(isinstance(step, Normalize) for step in transform):
            raise ValueError(f"data_transform={data_transform!r} already normalises; leave out normalize=")
        if isinstance(target_transform, str):
            target_transform = get_target_transform(target_transform)
        target = as_target_transform(target_transform)
        self.dataset = dataset
        self.fields = tuple(fields)
        self.device = None if device is None else torch.device(device)
        self.presentation = self._presentation(options)
        noise = self.presentation if isinstance(self.presentation, StimulusNoise) else None
        self._late = layout if self.device is not None and noise is None else None  # applied on the device
        early = layout if self._late is None else None
        self._reading = ImageReading(fields[0], fields[1], transform, target, early, noise)
        before = as_batch_transforms(options.pop("batch_transform", None))
        options = _loader_options(options, order, batch_size)
        self.batches = batches_of(dataset, self.fields, (*before, self._reading), options)
        # Batches of workers are page-locked when they arrive; batches of this process are allocated page-locked.
        here = self.batches.num_workers == 0
        layout.memory.pinned = self.batches.pin_memory and here
        self.presentation.memory.pinned = self.batches.pin_memory and (here or noise is None)

    def _presentation(self, options: dict[str, Any]) -> Presentation:
        """Make the presentation from those `options` that it has, and remove these."""
        names = {each.name for each in fields_of(self.presentation_type)} - {"fields"}
        given = {name: options.pop(name) for name in names & set(options)}
        return self.presentation_type(fields=(self.fields[0], self.fields[1]), **{**self.defaults, **given})

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
        # DynVision's loaders have n_timesteps, outro_duration, … as attributes; here the presentation has them.
        if name.startswith("_") or "presentation" not in vars(self):
            raise AttributeError(name)
        return getattr(self.presentation, name)

    def __len__(self) -> int:
        """Return the number of batches that this rank receives in a whole epoch."""
        return len(self.batches)

    @property
    def batch_size(self) -> int:
        """Samples per batch and rank."""
        return self.batches.batch_size

    @property
    def epoch(self) -> int:
        """Epoch of the running iteration, or of the next one."""
        return self.batches.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at this epoch; a state that was loaded for this epoch stays in effect."""
        self.batches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in training: a JSON-serialisable dict under 1 KiB, equal on all ranks."""
        return self.batches.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the next iteration where `state` was taken.

        Raises:
            StateError: the state is damaged, or belongs to another dataset, selection, seed or shuffle. Of map-style
                datasets only the length is compared.
        """
        self.batches.load_state_dict(state)

    get_state = state_dict
    set_state = load_state_dict


class StimulusRepetitionDataLoader(StandardDataLoader):
    """Behave as :class:`StandardDataLoader`, with 20 steps by default (also called ``repeat=``).

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(StimulusRepetitionDataLoader(dataset, batch_size=4)))
        >>> data.shape
        torch.Size([4, 20, 3, 8, 8])
    """

    defaults = {}


class StimulusDurationDataLoader(StandardDataLoader):
    """Show nothing, then the image, then nothing; see :class:`StimulusDuration`.

    Adds `n_timesteps` (30), `stimulus_duration` (20) and `intro_duration` (1) to the arguments of
    :class:`StandardDataLoader`. Unlike there, data and labels are not views.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> options = {"n_timesteps": 5, "stimulus_duration": 2}
        >>> data, labels = next(iter(StimulusDurationDataLoader(dataset, batch_size=4, **options)))
        >>> labels[1].tolist()
        [-1, 1, 1, -1, -1]
    """

    presentation_type = StimulusDuration
    defaults = {}


class StimulusIntervalDataLoader(StandardDataLoader):
    """Show the image twice; see :class:`StimulusInterval`.

    Adds `n_timesteps` (30), `stimulus_duration` (2), `intro_duration` (0) and `interval_duration` (2) to the arguments
    of :class:`StandardDataLoader`.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(StimulusIntervalDataLoader(dataset, batch_size=4, n_timesteps=7)))
        >>> labels[1].tolist()
        [1, 1, -1, -1, 1, 1, -1]
    """

    presentation_type = StimulusInterval
    defaults = {}


class StimulusContrastDataLoader(StandardDataLoader):
    """Show the image at a lower contrast; see :class:`StimulusContrast`.

    Adds `n_timesteps` (15), `stimulus_duration` (10), `intro_duration` (2) and `stimulus_contrast` (1.0) to the
    arguments of :class:`StandardDataLoader`.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(StimulusContrastDataLoader(dataset, batch_size=4, stimulus_contrast=0.5)))
        >>> float(data.max())
        0.5
    """

    presentation_type = StimulusContrast
    defaults = {}


class StimulusNoiseDataLoader(StandardDataLoader):
    """Show the image with noise; see :class:`StimulusNoise`.

    Adds `n_timesteps` (20), `stimulus_duration` (15), `intro_duration` (1), `noise_type` ("uniform"), `ssnr` (0.5) and
    the other attributes of :class:`StimulusNoise` to the arguments of :class:`StandardDataLoader`. The noise of a
    sample depends only on seed, epoch and sample; it is generated in the process that reads the sample.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(StimulusNoiseDataLoader(dataset, batch_size=4, noise_type="gaussian", ssnr=0.7)))
        >>> data.shape, data.dtype
        (torch.Size([4, 20, 3, 8, 8]), torch.float32)
    """

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
    """Make the loader of a stimulus experiment.

    Args:
        dataset: a shard directory, a :class:`~neurofmx_wds.WebDatasetLoader`, a loader of batches, or a map-style
            dataset.
        dataloader: the class or its name, with or without the ending "DataLoader" (``"StimulusDuration"``); by default
            :class:`StandardDataLoader`.
        **options: arguments of that class.

    Raises:
        ValueError: no loader has this name.
        TypeError: `dataloader` is neither a name nor such a class.

    Example:
        >>> dataset = [(torch.ones(3, 8, 8), label) for label in range(4)]
        >>> data, labels = next(iter(get_data_loader(dataset, "StimulusDuration", batch_size=4, n_timesteps=25)))
        >>> data.shape
        torch.Size([4, 25, 3, 8, 8])
    """
    if dataloader is None:
        dataloader = StandardDataLoader
    if isinstance(dataloader, str):
        name = dataloader if dataloader.endswith("DataLoader") else f"{dataloader}DataLoader"
        if name not in _LOADERS:
            raise ValueError(f"unknown loader {dataloader!r}; choose one of {', '.join(_LOADERS)}")
        dataloader = _LOADERS[name]
    if not (isinstance(dataloader, type) and issubclass(dataloader, StandardDataLoader)):
        raise TypeError(f"dataloader must be the name or class of a stimulus loader, not {dataloader!r}")
    return dataloader(dataset, **options)


def _with_full_names(options: Mapping[str, Any]) -> dict[str, Any]:
    full: dict[str, Any] = {}
    for name, value in options.items():
        long = _SHORT_NAMES.get(name, name)
        if long in full or (long != name and long in options):
            raise TypeError(f"{name} is a short name of {long}; give only one of them")
        full[long] = value
    return full


def _loader_options(options: dict[str, Any], order: object, batch_size: int | None) -> dict[str, Any]:
    """Return the arguments of a loader of batches, with `order` (FFCV's names, or its OrderOption) as `shuffle`."""
    if batch_size is not None:
        options = {**options, "batch_size": batch_size}
    if order is None:
        return options
    if "shuffle" in options:
        raise TypeError("give order or shuffle, not both")
    name = str(getattr(order, "name", order)).lower()
    if name not in _ORDERS:
        raise ValueError(f"order must be one of {', '.join(_ORDERS)}, not {order!r}")
    return {**options, "shuffle": _ORDERS[name]}
