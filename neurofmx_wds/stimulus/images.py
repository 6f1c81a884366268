"""Operations on batches of images: sizes, crops, flips, colours, scales. Each works on the whole batch at once.

Random operations draw from one generator for each image, so that the result for an image does not depend on its batch.
uint8 images hold 0…255; operations that need fractions convert them to float32 in [0, 1] first (:func:`as_float`), the
others keep uint8. Knows tensors; knows nothing of loaders or fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from ..loading.memory import BatchMemory

Rngs = Sequence[np.random.Generator]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class ImageTransform(Protocol):
    """A function of images (B, C, H, W) that returns images (B, C', H', W')."""

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return the transformed images; `rngs` holds one generator for each."""


def as_float(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return images as floating-point numbers.

    Args:
        images: uint8 (scaled from 0…255 to [0, 1]), floating-point (unchanged) or of another dtype (values kept).
        dtype: dtype of the result, unless the images are already floating-point.
    """
    if images.is_floating_point():
        return images
    return images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype)


def formatted(
    images: torch.Tensor,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
    memory: BatchMemory | None = None,
) -> torch.Tensor:
    """Normalise, convert and lay out images in one pass.

    Arithmetic is in float32, one image at a time so that it stays in the processor's cache, and only the result is
    rounded to `dtype`. On a CPU this is as fast as float16 arithmetic, and more accurate.

    Args:
        images: (B, C, …); uint8 values stand for [0, 1].
        normalize: mean and standard deviation of each channel, in units of [0, 1]: ``(x − mean) / std``.
        dtype: floating-point dtype of the result; by default float32 if integers are normalised, else that of `images`.
        channels_last: make the channels of a pixel adjacent in memory (``torch.channels_last``); the shape stays
            (B, C, H, W).
        memory: where to allocate the result; by default it is new.

    Raises:
        ValueError: mean and std do not have one number for each channel, a std is not positive, `dtype` is not a
            floating-point type, or images are not (B, C, H, W) and `channels_last` is set.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point type such as torch.float16, not {dtype!r}")
    if channels_last and images.ndim != 4:
        raise ValueError(f"channels_last needs images (B, C, H, W), not {tuple(images.shape)}")
    kept = normalize is None or images.is_floating_point()
    target = dtype or (images.dtype if kept else torch.float32)
    if normalize is None and images.dtype == target:
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images
    scale, shift = (factor.to(images.device) for factor in _scale_and_shift(images, normalize))
    if images.device.type != "cpu":
        images = images.to(torch.float32).mul_(scale).add_(shift).to(target)
        return images.contiguous(memory_format=torch.channels_last) if channels_last else images
    out = empty_like_frames(images, None, target, channels_last, memory)
    scratch = torch.empty(images.shape[1:])
    for image, row in zip(images, out, strict=True):
        row.copy_(scratch.copy_(image).mul_(scale).add_(shift))
    return out


def _scale_and_shift(
    images: torch.Tensor, normalize: tuple[Sequence[float], Sequence[float]] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    unit = 1 / 255 if images.dtype == torch.uint8 else 1.0
    if normalize is None:
        return torch.tensor(unit), torch.tensor(0.0)
    mean, std = (torch.as_tensor(values, dtype=torch.float64).reshape(-1) for values in normalize)
    if images.ndim < 2 or not len(mean) == len(std) == images.shape[1] or not (std > 0).all():
        raise ValueError(
            f"normalize={normalize!r} does not fit images {tuple(images.shape)}: it must be (mean, std), each with one "
            "number for every channel (dimension 1), and std > 0"
        )
    column = (-1, *[1] * (images.ndim - 2))
    return (unit / std).float().view(column), (-mean / std).float().view(column)


def empty_like_frames(
    images: torch.Tensor,
    n_timesteps: int | None,
    dtype: torch.dtype,
    channels_last: bool,
    memory: BatchMemory | None = None,
) -> torch.Tensor:
    """Allocate images (B, …), or `n_timesteps` frames of each, (B, n_timesteps, …)."""
    time = () if n_timesteps is None else (n_timesteps,)
    rest = tuple(images.shape[1:])
    shape = (len(images), *time, *rest[1:], rest[0]) if channels_last else (len(images), *time, *rest)
    if memory is None or images.device.type != "cpu":
        out = torch.empty(shape, dtype=dtype, device=images.device)
    else:
        out = memory.empty(shape, dtype)
    return out.movedim(-1, len(time) + 1) if channels_last else out


def has_channels_last(images: torch.Tensor) -> bool:
    """Return whether the channels of a pixel are adjacent in memory, in images (B, C, H, W)."""
    return images.ndim == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def _drawn(rngs: Rngs | None, images: torch.Tensor, k: int, what: object) -> torch.Tensor:
    """Draw `k` numbers in [0, 1) for each image: (B, k) float64."""
    if rngs is None or len(rngs) != len(images):
        raise ValueError(
            f"{type(what).__name__} draws random numbers: call it with one numpy generator for each of the "
            f"{len(images)} images, or pass it to a loader as data_transform"
        )
    return torch.from_numpy(np.stack([rngs[i].random(k) for i in range(len(images))]))


def _gray(images: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(_LUMA if images.shape[1] == 3 else [1 / images.shape[1]] * images.shape[1])
    return (images * weights.view(-1, 1, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class Resize:
    """Resize images, bilinearly with antialiasing.

    Attributes:
        size: length of the shorter side, keeping the aspect ratio; or (height, width).
    """

    size: int | tuple[int, int]

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images (B, C, height, width) of the new size."""
        height, width = images.shape[-2:]
        if isinstance(self.size, int):
            short = min(height, width)
            size = (self.size * height // short, self.size * width // short)
        else:
            size = self.size
        if size == (height, width):
            return images
        return functional.interpolate(images, size, mode="bilinear", antialias=True)


@dataclass(frozen=True)
class CenterCrop:
    """Take the central `size` × `size` pixels; a smaller image is padded with zeros."""

    size: int

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images (B, C, size, size)."""
        images = _padded_to(images, self.size)
        top, left = (round((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]


def _padded_to(images: torch.Tensor, size: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    high, wide = max(0, size - height), max(0, size - width)
    if high == wide == 0:
        return images
    return functional.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


@dataclass(frozen=True)
class RandomCrop:
    """Take `size` × `size` pixels at a random position of each image, after padding it with `padding` zeros."""

    size: int
    padding: int = 0

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images (B, C, size, size); `rngs` holds one generator for each."""
        images = _padded_to(functional.pad(images, [self.padding] * 4), self.size)
        rooms = torch.tensor(images.shape[-2:]) - self.size + 1
        corners = (_drawn(rngs, images, 2, self) * rooms).long().tolist()
        crops = [image[:, y : y + self.size, x : x + self.size] for image, (y, x) in zip(images, corners, strict=True)]
        return torch.stack(crops)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Take a random part of each image and resize it: the usual training augmentation for ImageNet.

    Attributes:
        size: height and width of the result.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest ratio of width to height, drawn log-uniformly. A part that does not fit into the
            image is clipped.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images (B, C, size, size); `rngs` holds one generator for each."""
        height, width = images.shape[-2:]
        views = []
        for image, (area, shape, y, x) in zip(images, _drawn(rngs, images, 4, self).tolist(), strict=True):
            pixels = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** shape
            high = min(height, max(1, round(math.sqrt(pixels / ratio))))
            wide = min(width, max(1, round(math.sqrt(pixels * ratio))))
            top, left = int(y * (height - high + 1)), int(x * (width - wide + 1))
            part = image[None, :, top : top + high, left : left + wide]
            views.append(Resize((self.size, self.size))(part))
        return torch.cat(views)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Flip images left to right with probability `p`."""

    p: float = 0.5

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images of the same shape; `rngs` holds one generator for each."""
        flip = _drawn(rngs, images, 1, self)[:, 0] < self.p
        return torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)


@dataclass(frozen=True)
class RandomAffine:
    """Rotate images about their centre, then shift them; bilinear, with zeros outside.

    Attributes:
        degrees: the angle is uniform in [−degrees, degrees], positive counter-clockwise.
        translate: largest shift as a share of width and height; uniform, in whole pixels.
    """

    degrees: float = 0.0
    translate: tuple[float, float] = (0.0, 0.0)

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return float images of the same shape; `rngs` holds one generator for each."""
        images = as_float(images)
        height, width = images.shape[-2:]
        drawn = 2 * _drawn(rngs, images, 3, self) - 1
        angle = drawn[:, 0] * math.radians(self.degrees)
        largest = torch.tensor([self.translate[0] * width, self.translate[1] * height], dtype=torch.float64)
        shift = (drawn[:, 1:] * largest).round()
        # From pixels of the result back to pixels of the image: undo the shift, then the rotation. torch's
        # coordinates run from −1 to 1 over both sides, whatever their lengths.
        cos, sin = angle.cos(), angle.sin()
        x = -(cos * shift[:, 0] - sin * shift[:, 1]) * 2 / width
        y = -(sin * shift[:, 0] + cos * shift[:, 1]) * 2 / height
        rows = [torch.stack([cos, -sin * height / width, x], 1), torch.stack([sin * width / height, cos, y], 1)]
        grid = functional.affine_grid(torch.stack(rows, 1).to(images.dtype), list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast and saturation, in this order, each by a factor uniform in [1 − v, 1 + v].

    For images in [0, 1] or uint8; the values are clipped to [0, 1] after each step.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return float images of the same shape; `rngs` holds one generator for each."""
        images = as_float(images)
        spread = torch.tensor([self.brightness, self.contrast, self.saturation], dtype=torch.float64)
        factors = (1 + (2 * _drawn(rngs, images, 3, self) - 1) * spread).clamp_(min=0)
        brightness, contrast, saturation = factors.to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
        images = (images * brightness).clamp_(0, 1)
        middle = _gray(images).mean((-2, -1), keepdim=True)
        images = torch.lerp(middle.expand_as(images), images, contrast).clamp_(0, 1)
        if images.shape[1] == 1:
            return images
        return torch.lerp(_gray(images).expand_as(images), images, saturation).clamp_(0, 1)


@dataclass(frozen=True)
class Grayscale:
    """Convert red, green and blue to luma, in one channel or in several equal ones."""

    num_output_channels: int = 1

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return images (B, num_output_channels, H, W)."""
        gray = images if images.shape[1] == 1 else _gray(as_float(images))
        return gray.expand(-1, self.num_output_channels, -1, -1)


@dataclass(frozen=True)
class ToFloat:
    """Convert images to float32; uint8 is scaled to [0, 1]."""

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return float images of the same shape."""
        return as_float(images)


@dataclass(frozen=True)
class Normalize:
    """Compute ``(x − mean) / std`` for each channel, in units of [0, 1]; uint8 images are scaled to [0, 1] first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor, rngs: Rngs | None = None) -> torch.Tensor:
        """Return float images of the same shape."""
        return formatted(images, (self.mean, self.std))


@dataclass(frozen=True)
class Compose:
    """Apply several operations in order.

    Takes images (B, C, H, W); (B, H, W), which get one channel; or a list of B images (C, H, W) of unequal sizes, which
    become one tensor as soon as an operation has made their sizes equal.

    Attributes:
        steps: the operations.
    """

    steps: tuple[ImageTransform, ...]

    def __call__(self, images: Any, rngs: Rngs | None = None) -> Any:
        """Return the transformed images; `rngs` holds one generator for each."""
        if isinstance(images, (list, tuple)):
            images = _stacked([torch.as_tensor(image) for image in images])
        elif images.ndim == 3:
            images = images.unsqueeze(1)
        for step in self.steps:
            if isinstance(images, list):
                each = (step(image[None], rngs and [rngs[i]])[0] for i, image in enumerate(images))
                images = _stacked(list(each))
            else:
                images = step(images, rngs)
        return images

    def __iter__(self) -> Iterator[ImageTransform]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _stacked(images: list[torch.Tensor]) -> Any:
    return torch.stack(images) if len({(image.shape, image.dtype) for image in images}) == 1 else images
