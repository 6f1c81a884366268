"""When an image is shown, and what data holds at the other steps: whole batches over time.

Knows tensors and batches; knows nothing of loaders.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from typing import Any, Literal

import numpy as np
import torch

from ..errors import NeurofmxError
from ..loading.memory import BatchMemory
from .images import Rngs, as_float, empty_like_frames, has_channels_last
from .noise import Noise

Period = tuple[int, int]


def repeat_over_time(values: torch.Tensor, n_timesteps: int) -> torch.Tensor:
    """Repeat values at every step: (B, …) → (B, n_timesteps, …).

    The result is a view, as ``torch.expand`` returns it: nothing is copied, and all steps share memory. Call
    ``.clone()`` before writing to it.

    Example:
        >>> repeat_over_time(torch.zeros(2, 3), 4).shape
        torch.Size([2, 4, 3])
    """
    return values.unsqueeze(1).expand(-1, n_timesteps, *values.shape[1:])


def show(
    values: torch.Tensor,
    n_timesteps: int,
    periods: Sequence[Period],
    outside: float,
    contrast: float = 1.0,
    memory: BatchMemory | None = None,
) -> torch.Tensor:
    """Show values during some steps: (B, …) → (B, n_timesteps, …).

    Args:
        values: images, or any other tensor with one row for each sample.
        n_timesteps: number of steps.
        periods: (start, stop) of each presentation in steps, ascending.
        outside: value at all other steps.
        contrast: factor applied to the values that are shown.
        memory: where to allocate the result; by default it is new.

    Returns:
        A tensor that shares no memory with `values`. The memory layout of channels-last images (B, C, H, W) is kept.

    Raises:
        ValueError: the dtype of `values` cannot hold `outside`.
    """
    _check_holds(values.dtype, outside)
    out = empty_like_frames(values, n_timesteps, values.dtype, has_channels_last(values), memory)
    done, shown = 0, None
    for start, stop in periods:
        out[:, done:start] = outside
        if stop > start:
            if shown is None:
                shown = out[:, start].copy_(values)
                if contrast != 1:
                    shown.mul_(contrast)
            out[:, start:stop] = shown.unsqueeze(1)
        done = stop
    out[:, done:] = outside
    return out


def _check_holds(dtype: torch.dtype, value: float) -> None:
    if dtype.is_floating_point or dtype.is_complex:
        return
    least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    if value != int(value) or not least <= value <= most:
        raise ValueError(
            f"{dtype} data cannot hold {value!r}, the value of steps without a stimulus; convert it first (dtype=)"
        )


def as_labels(labels: Any) -> torch.Tensor:
    """Return labels as a tensor (B,), int64 if they are integers, so that −1 is representable.

    Raises:
        TypeError: the labels are not numbers.
    """
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        kind = type(labels[0]).__name__ if isinstance(labels, (list, tuple)) and labels else type(labels).__name__
        raise TypeError(f"labels must be numbers, not {kind}; map them first (target_transform=)") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels if labels.is_floating_point() else labels.to(torch.int64)


def field_of(batch: Any, name: str) -> Any:
    """Return a field of a batch.

    Raises:
        NeurofmxError: the field does not exist, or the batch is not a dict.
    """
    if not isinstance(batch, Mapping):
        raise NeurofmxError(
            f"a batch is a {type(batch).__name__}, not a dict of fields",
            remedy="let collate_fn and batch_transform return dicts",
        )
    if name not in batch:
        raise NeurofmxError(
            f"the batch has no field {name!r}; it has {', '.join(batch)}",
            remedy='name its fields: fields=("data", "label")',
        )
    return batch[name]


@dataclass(frozen=True)
class Presentation:
    """Base class of presentations, which define at which steps an image is shown.

    A presentation is a function of a batch: a dict with the fields `fields`, or a tuple (data, labels, …).

    Attributes:
        n_timesteps: number of steps.
        non_input_value: data at steps without a stimulus.
        non_label_index: label at steps without a stimulus.
        fields: names of data and labels, for batches that are dicts.
    """

    n_timesteps: int
    non_input_value: float = field(default=0.0, kw_only=True)
    non_label_index: int = field(default=-1, kw_only=True)
    fields: tuple[str, str] = field(default=("image", "label"), kw_only=True)

    def __post_init__(self) -> None:
        for each in fields_of(self):
            if each.name.endswith(("_timesteps", "_duration")) or each.name == "non_label_index":
                object.__setattr__(self, each.name, _whole(each.name, getattr(self, each.name)))
        if self.n_timesteps < 1:
            raise ValueError(f"n_timesteps must be positive, not {self.n_timesteps}")
        if self.outro_duration < 0:
            parts = self._parts()
            names = " + ".join(f"{name} {length}" for name, length in parts)
            total = sum(length for _, length in parts)
            raise ValueError(
                f"{names} = {total} steps do not fit into n_timesteps={self.n_timesteps}: "
                f"{self.outro_duration} would remain for the outro"
            )

    def _parts(self) -> list[tuple[str, int]]:
        """Return name and length of each part in order, without the outro."""
        raise NotImplementedError

    @property
    def outro_duration(self) -> int:
        """Steps that remain at the end."""
        return self.n_timesteps - sum(length for _, length in self._parts())

    @property
    def periods(self) -> list[Period]:
        """(start, stop) of each presentation of the image, in steps."""
        found, start = [], 0
        for name, length in self._parts():
            if name == "stimulus_duration":
                found.append((start, start + length))
            start += length
        return found

    @functools.cached_property
    def memory(self) -> BatchMemory:
        """Where data over time is allocated."""
        return BatchMemory()

    def data(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, …) over time: (B, n_timesteps, …)."""
        return show(images, self.n_timesteps, self.periods, self.non_input_value, memory=self.memory)

    def labels(self, labels: Any) -> torch.Tensor:
        """Return labels (B,) over time: (B, n_timesteps), int64."""
        return show(as_labels(labels), self.n_timesteps, self.periods, self.non_label_index)

    def __call__(self, batch: Any) -> Any:
        """Return the batch with data and labels over time and its other fields unchanged.

        Raises:
            NeurofmxError: the batch lacks a field.
        """
        return self._with(batch, self.data)

    def _with(self, batch: Any, data: Any) -> Any:
        if isinstance(batch, Mapping):
            image, label = self.fields
            return {**batch, image: data(field_of(batch, image)), label: self.labels(field_of(batch, label))}
        images, labels, *rest = batch
        return (data(images), self.labels(labels), *rest)


def _whole(name: str, value: Any) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if whole < 0 and name != "non_label_index":
        raise ValueError(f"{name} must not be negative, not {value!r}")
    return whole


@dataclass(frozen=True)
class StimulusRepetition(Presentation):
    """Show the image at every step; data and labels are views (see :func:`repeat_over_time`).

    Example:
        >>> StimulusRepetition(3).labels(torch.tensor([7]))
        tensor([[7, 7, 7]])
    """

    n_timesteps: int = 20

    def _parts(self) -> list[tuple[str, int]]:
        return [("stimulus_duration", self.n_timesteps)]

    def data(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, …) over time: (B, n_timesteps, …), a view."""
        return repeat_over_time(images, self.n_timesteps)

    def labels(self, labels: Any) -> torch.Tensor:
        """Return labels (B,) over time: (B, n_timesteps), int64, a view."""
        return repeat_over_time(as_labels(labels), self.n_timesteps)


@dataclass(frozen=True)
class StimulusDuration(Presentation):
    """Show nothing for `intro_duration` steps, the image for `stimulus_duration` steps, then nothing (the outro).

    Raises:
        ValueError: the durations do not fit into `n_timesteps`.

    Example:
        >>> StimulusDuration(6, 2, 1).labels(torch.tensor([7]))
        tensor([[-1,  7,  7, -1, -1, -1]])
    """

    n_timesteps: int = 30
    stimulus_duration: int = 20
    intro_duration: int = 1

    def _parts(self) -> list[tuple[str, int]]:
        return [("intro_duration", self.intro_duration), ("stimulus_duration", self.stimulus_duration)]


@dataclass(frozen=True)
class StimulusInterval(Presentation):
    """Show the image twice, each time for `stimulus_duration` steps, with `interval_duration` empty steps between.

    Raises:
        ValueError: the durations do not fit into `n_timesteps`.

    Example:
        >>> StimulusInterval(8, 2, 1, 3).labels(torch.tensor([7]))
        tensor([[-1,  7,  7, -1, -1, -1,  7,  7]])
    """

    n_timesteps: int = 30
    stimulus_duration: int = 2
    intro_duration: int = 0
    interval_duration: int = 2

    def _parts(self) -> list[tuple[str, int]]:
        shown = ("stimulus_duration", self.stimulus_duration)
        return [
            ("intro_duration", self.intro_duration), shown, ("interval_duration", self.interval_duration), shown,
        ]  # fmt: skip


@dataclass(frozen=True)
class StimulusContrast(StimulusDuration):
    """Show the image as :class:`StimulusDuration` does, its values multiplied by `stimulus_contrast` in [0, 1].

    At contrast 0 the image is 0 everywhere, which is its mean only if it is normalised: normalise images first. uint8
    images become float32 in [0, 1].

    Raises:
        ValueError: the contrast is not in [0, 1], or the durations do not fit into `n_timesteps`.

    Example:
        >>> StimulusContrast(4, 2, 1, stimulus_contrast=0.25).data(torch.ones(1, 1)).flatten()
        tensor([0.0000, 0.2500, 0.2500, 0.0000])
    """

    n_timesteps: int = 15
    stimulus_duration: int = 10
    intro_duration: int = 2
    stimulus_contrast: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.stimulus_contrast <= 1:
            raise ValueError(f"stimulus_contrast must be in [0, 1], not {self.stimulus_contrast!r}")

    def data(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, …) over time: (B, n_timesteps, …), floating-point."""
        contrast = self.stimulus_contrast
        return show(
            as_float(images), self.n_timesteps, self.periods, self.non_input_value, contrast, memory=self.memory
        )


@dataclass(frozen=True)
class StimulusNoise(StimulusDuration):
    """Show the image as :class:`StimulusDuration` does, with noise of :class:`~neurofmx_wds.stimulus.noise.Noise`.

    It is a function of a batch and of one numpy generator for each sample, for use as `batch_transform` of a loader:
    the noise of a sample then depends only on seed, epoch and sample, not on the batch. uint8 images become float32 in
    [0, 1].

    Attributes:
        noise_type: ``"uniform"``, ``"gaussian"``, ``"poisson"``, ``"saltpepper"`` or ``"phasescrambled"``.
        ssnr: signal power / (signal power + noise power), in [0, 1]; 1: no noise.
        noise_seed: changes the noise of every sample; None: the seed of the loader alone determines it.
        noise_void: whether steps without a stimulus have noise too.
        temporal_mode: ``"dynamic"``: new noise at every step; ``"static"``: constant noise during the intro, during the
            stimulus, and during the outro.
        spatially_correlated, correlation_kernel_size, salt_vs_pepper, use_image_spectrum, spectral_exponent: see
            :class:`~neurofmx_wds.stimulus.noise.Noise`.

    Raises:
        ValueError: the kind or mode is unknown, a number is out of range, or the durations do not fit into
            `n_timesteps`.

    Example:
        >>> batch = {"image": torch.ones(2, 3, 8, 8), "label": torch.tensor([4, 5])}
        >>> noise = StimulusNoise(6, 4, 1, noise_type="uniform", ssnr=0.5)
        >>> noise(batch, [np.random.default_rng(i) for i in range(2)])["image"].shape
        torch.Size([2, 6, 3, 8, 8])
    """

    n_timesteps: int = 20
    stimulus_duration: int = 15
    intro_duration: int = 1
    noise_type: str = "uniform"
    ssnr: float = 0.5
    noise_seed: int | None = None
    noise_void: bool = True
    temporal_mode: Literal["static", "dynamic"] = "static"
    spatially_correlated: bool = False
    correlation_kernel_size: int = 7
    salt_vs_pepper: float = 0.5
    use_image_spectrum: bool = False
    spectral_exponent: float = -1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temporal_mode not in ("static", "dynamic"):
            raise ValueError(f'temporal_mode must be "static" or "dynamic", not {self.temporal_mode!r}')
        if self.noise_seed is not None:
            object.__setattr__(self, "noise_seed", _whole("noise_seed", self.noise_seed))
        self.noise  # noqa: B018  # rejects bad values now

    @functools.cached_property
    def noise(self) -> Noise:
        """Kind and level of the noise."""
        shared = {each.name for each in fields_of(Noise)} & {each.name for each in fields_of(self)}
        return Noise(self.noise_type, **{name: getattr(self, name) for name in shared})

    def __call__(self, batch: Any, rngs: Rngs) -> Any:  # type: ignore[override]
        """Return the batch with data and labels over time; `rngs` holds one generator for each sample."""
        return self._with(batch, functools.partial(self.noisy, rngs=rngs))

    def data(self, images: torch.Tensor) -> torch.Tensor:
        """Raise TypeError: noise needs random numbers; call :meth:`noisy`."""
        raise TypeError("StimulusNoise draws random numbers: call noisy(images, rngs)")

    def noisy(self, images: torch.Tensor, rngs: Rngs) -> torch.Tensor:
        """Return images (B, …) over time with noise: (B, n_timesteps, …), floating-point.

        Args:
            images: (B, …), on the CPU.
            rngs: one numpy generator for each image.

        Raises:
            ValueError: there are not B generators.
        """
        if len(rngs) != len(images):
            raise ValueError(f"there must be one generator for each of {len(images)} images, not {len(rngs)}")
        images = as_float(images)
        out = empty_like_frames(images, self.n_timesteps, images.dtype, has_channels_last(images), self.memory)
        ((first, end),) = self.periods
        most = self.n_timesteps if self.temporal_mode == "dynamic" else 1
        for row, image in enumerate(images):
            rng = rngs[row]
            if self.noise_seed is not None:
                rng = np.random.default_rng([self.noise_seed, int(rng.integers(2**63))])
            pixels = image.to(torch.float32).numpy()
            void = np.full_like(pixels, self.non_input_value)
            clean = self.noise.image(pixels)
            for start, stop, shown in (0, first, void), (first, end, clean), (end, self.n_timesteps, void):
                if shown is clean or self.noise_void:
                    frames = np.broadcast_to(shown, (min(stop - start, most), *shown.shape))
                    out[row, start:stop] = torch.from_numpy(self.noise.on(frames, pixels, rng))
                else:
                    out[row, start:stop] = self.non_input_value
        return out
