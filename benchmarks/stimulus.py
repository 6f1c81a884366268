"""Speed of stimulus experiments: preparing images and adding the time axis on whole batches, and sample by sample.

Knows what is done to images; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.stimulus import StandardDataLoader, StimulusDurationDataLoader, StimulusNoiseDataLoader
from neurofmx_wds.stimulus.presets import STATISTICS

from .datasets import made
from .harness import Case, Group, Setting, Target, Work

OURS = "neurofmx_wds, on batches"
IN_TRANSFORM = "neurofmx_wds, in a transform of each sample"
IN_DATASET = "torch's DataLoader, in the dataset"
STEPS, SHOWN, INTRO, SIZE, BATCH = 20, 14, 2, 64, 32
MEAN, STD = (np.array(values, "float32").reshape(3, 1, 1) for values in STATISTICS["imagenet"])
EXPERIMENT: dict[str, Any] = {
    "batch_size": BATCH, "n_timesteps": STEPS, "normalize": STATISTICS["imagenet"], "dtype": torch.float16,
}  # fmt: skip
SHOW: dict[str, Any] = {"stimulus_duration": SHOWN, "intro_duration": INTRO}


def images_of(setting: Setting) -> tuple[Path, np.ndarray, np.ndarray]:
    """Make random images, in shards and in memory."""
    n = 320 if setting.quick else 3200
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (n, 3, SIZE, SIZE), "uint8"), rng.integers(0, 100, n)
    path = made(
        setting.root / "images" / str(n), lambda out: create_shards_from_arrays(out, {"image": images, "label": labels})
    )
    return path, images, labels


def normalised(image: np.ndarray) -> np.ndarray:
    """Normalise an image, as float32."""
    return (image.astype("float32") / 255 - MEAN) / STD


def repeated(image: np.ndarray, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Show an image at every step."""
    return np.repeat(normalised(image).astype("float16")[None], STEPS, 0), np.full(STEPS, label)


def for_a_while(image: np.ndarray, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Show an image during some steps."""
    film, labels = np.zeros((STEPS, *image.shape), "float16"), np.full(STEPS, -1)
    film[INTRO : INTRO + SHOWN], labels[INTRO : INTRO + SHOWN] = normalised(image), label
    return film, labels


def under_noise(image: np.ndarray, label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Show an image during some steps, with noise of the same power at every step."""
    film, labels = for_a_while(image, label)
    return film + film[INTRO].std(dtype="float32") * np.random.default_rng().standard_normal(film.shape), labels


class InMemory(torch.utils.data.Dataset):
    """Images that are expanded over time one by one."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, film: Any) -> None:
        self.images, self.labels, self.film = images, labels, film

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        data, labels = self.film(self.images[index], self.labels[index])
        return torch.from_numpy(data.astype("float16", copy=False)), torch.from_numpy(labels)


def sample_film(film: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Expand a sample over time, as a transform."""
    data, labels = film(sample["image"], sample["label"])
    return {**sample, "image": data.astype("float16", copy=False), "label": labels}


def compared(setting: Setting, title: str, kind: Any, film: Any, at_least: float, **options: Any) -> Group:
    """Compare an experiment on batches with two that work sample by sample."""
    shards, images, labels = images_of(setting)

    def going_through(batches: Any) -> Work:
        def work() -> float:
            count, threads = 0, torch.get_num_threads()
            torch.set_num_threads(1)  # numpy has only one, too
            try:
                for batch in batches:
                    data = batch["image"] if isinstance(batch, dict) else batch[0]
                    if data.shape[1:] != (STEPS, 3, SIZE, SIZE) or data.dtype != torch.float16:
                        raise RuntimeError(f"received {data.dtype} {tuple(data.shape)}")
                    count += len(data)
            finally:
                torch.set_num_threads(threads)
            if count != len(images):
                raise RuntimeError(f"received {count} samples, not {len(images)}")
            return count

        return work

    by_sample = functools.partial(sample_film, film)
    plain: dict[str, Any] = {"batch_size": BATCH, "num_workers": 0}
    cases = [
        (OURS, lambda: kind(shards, **EXPERIMENT, **options)),
        (IN_TRANSFORM, lambda: create_webdataset_dataloader(shards, shuffle=False, transform=by_sample, **plain)),
        (IN_DATASET, lambda: torch.utils.data.DataLoader(InMemory(images, labels, film), **plain)),
    ]
    return Group(
        f"one thread, uint8 images (3, {SIZE}, {SIZE}) normalised to float16, {title} of {STEPS} steps",
        [
            Case(name, lambda make=make: going_through(make()), ours=name == OURS)  # type: ignore[misc]
            for name, make in cases
        ],
        [Target(OURS, other, at_least=at_least) for other in (IN_TRANSFORM, IN_DATASET)],
    )


def repetition(setting: Setting) -> Group:
    """Show the image at every step."""
    return compared(setting, "repeated: views", StandardDataLoader, repeated, 5)


def duration(setting: Setting) -> Group:
    """Show the image during some steps."""
    return compared(setting, f"shown during {SHOWN}", StimulusDurationDataLoader, for_a_while, 3, **SHOW)


def noise(setting: Setting) -> Group:
    """Draw new noise at every step and for every sample, which takes most of the time."""
    options = {**SHOW, "noise_type": "gaussian", "temporal_mode": "dynamic"}
    return compared(setting, "new gaussian noise at each", StimulusNoiseDataLoader, under_noise, 1, **options)


GROUPS = {"stimulus-repetition": repetition, "stimulus-duration": duration, "stimulus-noise": noise}
