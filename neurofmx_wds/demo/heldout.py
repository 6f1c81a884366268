"""Decode held-out windows, and compare the error with that of a constant guess.

Knows the loader and the model; it must know nothing of the training or of plotting.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import Windows, create_webdataset_dataloader
from .decoder import Decoder


@dataclass(frozen=True)
class HeldOut:
    """Windows of a dataset in temporal order, and the position decoded from them.

    Attributes:
        start_s: (windows,) float64, start of each window in seconds.
        spikes: (windows, bins, units) float32 counts.
        lfp: (windows, samples, channels) float32, volts.
        position: (windows, bins, 2) float32, true position in metres.
        known: (windows, bins, 2) bool, where the position is known.
        decoded: (windows, bins, 2) float32, decoded position in metres.
        guess: (2,) float32, mean position during training in metres.
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
        """Median distance between decoded and true position, in centimetres."""
        return self._median_cm(self.decoded)

    @property
    def baseline_cm(self) -> float:
        """Median distance between the guess and the true position, in centimetres."""
        return self._median_cm(self.guess)

    def _median_cm(self, decoded: Tensor) -> float:
        distance = (decoded - self.position).norm(dim=-1)
        return 100 * distance[self.known.all(dim=-1)].median().item()


def decode(weights: dict[str, Tensor], shards: Path, held_out: Windows, training: Windows) -> HeldOut:
    """Decode windows of a dataset.

    Args:
        weights: state of a trained :class:`~neurofmx_wds.demo.decoder.Decoder`.
        shards: the dataset.
        held_out: the windows to decode.
        training: the windows whose mean position is the guess.
    """
    data = _load(shards, held_out)
    decoder = Decoder(data["spikes"].shape[-1])
    decoder.load_state_dict(weights)
    with torch.no_grad():
        decoded = decoder(data["spikes"])
    known = _load(shards, training, ["behavior"])
    guess = known["behavior"].where(known["behavior_mask"], torch.nan).nanmean(dim=(0, 1))
    return HeldOut(
        start_s=torch.tensor([each["t_start_ns"] for each in data["metadata"]], dtype=torch.float64) / 1e9,
        spikes=data["spikes"],
        lfp=data["lfp"],
        position=data["behavior"],
        known=data["behavior_mask"],
        decoded=decoded,
        guess=guess,
    )


def _load(shards: Path, windows: Windows, modalities: list[str] | None = None) -> dict[str, Any]:
    """Return all windows as one batch, in the order of time."""
    options: dict[str, Any] = {"num_workers": 0, "shuffle": False, "modalities": modalities}
    loader = create_webdataset_dataloader(shards, batch_size=1_000_000, windows=windows, **options)
    batch: dict[str, Any] = next(iter(loader))
    return batch
