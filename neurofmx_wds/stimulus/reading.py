"""What is done to images in the process that reads them: transforms, normalisation, dtype, memory layout, noise.

Knows batches of images; knows nothing of loaders or time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import NeurofmxError
from ..loading.labels import label_column, labels_of
from ..loading.memory import BatchMemory
from .images import Compose, Rngs, formatted
from .presentations import StimulusNoise, field_of

Normalization = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class ImageLayout:
    """The form in which images are delivered; see :func:`~neurofmx_wds.stimulus.images.formatted`.

    Attributes:
        normalize: mean and standard deviation of each channel, in units of images in [0, 1]; None: not normalised.
        dtype: floating-point dtype; None: unchanged.
        channels_last: whether the channels of a pixel are adjacent in memory.
        memory: where batches are allocated.

    Raises:
        ValueError: a value that no image could satisfy.
    """

    normalize: Normalization | None = None
    dtype: torch.dtype | None = None
    channels_last: bool = False
    memory: BatchMemory = field(default_factory=BatchMemory)

    def __post_init__(self) -> None:
        if self.normalize is not None and (not np.iterable(self.normalize) or len(self.normalize) != 2):
            raise ValueError(f"normalize must be (mean, std), not {self.normalize!r}")
        n_channels = 1 if self.normalize is None else np.size(self.normalize[0])
        self(torch.zeros(1, n_channels, 1, 1))  # rejects the other bad values now, not in a worker

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (B, C, H, W) in this form."""
        return formatted(images, self.normalize, self.dtype, self.channels_last, self.memory)


@dataclass(frozen=True)
class ImageReading:
    """A `batch_transform` that prepares the images and labels of a batch.

    Attributes:
        image, label: names of the two fields.
        transform: of images.
        target_transform: of one label; None: labels stay as they are.
        layout: form of the images; None: it is applied later, on another device.
        noise: a presentation with noise; it depends on the sample's own random generator, so it runs here.

    Raises:
        ValueError: both `transform` and `layout` normalise.
    """

    image: str
    label: str
    transform: Compose
    target_transform: Callable[[Any], Any] | None
    layout: ImageLayout | None
    noise: StimulusNoise | None

    def __call__(self, batch: Any, rngs: Rngs) -> dict[str, Any]:
        """Return the batch with its images and labels prepared.

        Args:
            batch: dict with images (B, C, H, W), or a list of B images, and labels (B,).
            rngs: one random generator for each sample.

        Raises:
            NeurofmxError: a field is missing, or images of unequal sizes remain.
        """
        images = field_of(batch, self.image)
        if self.target_transform is not None:
            given = labels_of(batch.get(self.label), batch.get("metadata", ()))
            batch = {**batch, self.label: label_column(list(map(self.target_transform, given)))}
        if len(self.transform):
            images = self.transform(images, rngs)
        if not isinstance(images, torch.Tensor):
            first = type(images[0]).__name__ if isinstance(images, list) and images else type(images).__name__
            raise NeurofmxError(
                f"field {self.image!r} is a list of {first}, not a tensor",
                remedy="images of unequal sizes need a data_transform that resizes them, encoded images a transform= "
                "that decodes them",
            )
        if self.layout is not None:
            images = self.layout(images)
        if self.noise is not None:
            images = self.noise.noisy(images, rngs)
        return {**batch, self.image: images.movedim(-3, -1) if self._packs else images}

    @property
    def _packs(self) -> bool:
        """Whether images are sent as (…, H, W, C): batches of a worker always arrive contiguous."""
        return self.layout is not None and self.layout.channels_last

    def unpacked(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (…, C, H, W) from the layout in which they were sent."""
        return images.movedim(-1, -3) if self._packs else images
