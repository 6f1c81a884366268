"""Decodes windows that training never saw, and measures the error against a guess.

Knows the loader and the model; it must know nothing of the training or of plotting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import create_webdataset_dataloader
from .decoder import Decoder


@dataclass(frozen=True)
class HeldOut:
    """Windows of a dataset, in the order of time, and what was decoded from them.

    Attributes:
        start_s: (windows,) float64, where each begins.
        spikes: (windows, bins, units) float32 counts.
        lfp: (windows, samples, channels) float32, volts.
        position, decoded: (windows, bins, 2) float32, metres.
        known: (windows, bins, 2) bool, where the position is known.
        guess: (2,) float32, metres: the mean position in training.
    """

    start_s: Tensor
    spikes: Tensor
    lfp: Tensor
    position: Tensor
    known: Tensor
    decoded: Tensor
    guess: Tensor

    @property
    def error_cm(self) -> float:
        """Median distance between decoded and true position."""
        return self._median_cm(self.decoded)

    @property
    def baseline_cm(self) -> float:
        """Median distance between the guess and the true position."""
        return self._median_cm(self.guess)

    def _median_cm(self, decoded: Tensor) -> float:
        distance = (decoded - self.position).norm(dim=-1)
        return 100 * distance[self.known.all(dim=-1)].median().item()


def decode(weights: dict[str, Tensor], shards: Path, training_shards: Path) -> HeldOut:
    """Decodes every window of a dataset.

    Args:
        weights: a trained Decoder's state.
        shards: the dataset to decode.
        training_shards: the dataset whose mean position is the baseline's guess.
    """
    data = _load(shards)
    decoder = Decoder(data["spikes"].shape[-1])
    decoder.load_state_dict(weights)
    with torch.no_grad():
        decoded = decoder(data["spikes"])
    training = _load(training_shards, ["behavior", "behavior_mask"])
    guess = training["behavior"].where(training["behavior_mask"], torch.nan).nanmean(dim=(0, 1))
    return HeldOut(
        start_s=torch.tensor([each["t_start_ns"] for each in data["metadata"]], dtype=torch.float64) / 1e9,
        spikes=data["spikes"],
        lfp=data["lfp"],
        position=data["behavior"],
        known=data["behavior_mask"],
        decoded=decoded,
        guess=guess,
    )


def _load(shards: Path, modalities: list[str] | None = None) -> dict[str, Any]:
    """A whole dataset as one batch, in the order in which it was converted."""
    loader = create_webdataset_dataloader(
        shards, batch_size=1_000_000, num_workers=0, shuffle=False, modalities=modalities
    )
    batch: dict[str, Any] = next(iter(loader))
    return batch
