"""Draw the demo's results: decoded paths, the interrupted training, and one window of data.

Needs matplotlib, which is optional: without it, importing this module raises ImportError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..pictures.panels import Raster, Traces
from .heldout import HeldOut
from .recording import ARENA_M, N_BORDER, N_DIRECTION, N_PLACE

TRUE, DECODED, KILLED = "black", "tab:orange", "tab:red"


def draw(path: Path, heldout: HeldOut, log: list[dict[str, Any]], killed_after: int) -> None:
    """Draw a page of six panels.

    Args:
        path: the PNG file to write.
        heldout: the decoded windows.
        log: ``step`` and ``loss`` of every batch of the interrupted run; repeated batches occur twice.
        killed_after: number of entries in `log` when the run was killed.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplot_mosaic(
        [["map", "x", "x"], ["map", "y", "y"], ["loss", "raster", "raster"], ["loss", "lfp", "lfp"]]
    )
    _paths(axes["map"], axes["x"], axes["y"], heldout)
    _loss(axes["loss"], log, killed_after)
    _window(axes["raster"], axes["lfp"], heldout)
    figure.savefig(path, dpi=110)


def _paths(arena: Axes, x: Axes, y: Axes, heldout: HeldOut) -> None:
    # Neighbouring windows overlap by half. Their middle halves are contiguous, and have context on both sides.
    stride = heldout.position.shape[1] // 2
    middle = torch.arange(stride) + stride // 2
    bin_s = float(heldout.start_s[1] - heldout.start_s[0]) / stride
    time = (heldout.start_s[:, None] + bin_s * (middle + 0.5)).flatten()
    true, decoded = (each[:, middle].flatten(0, 1) for each in (heldout.position, heldout.decoded))
    for axis, panel in enumerate((x, y)):
        panel.plot(time, true[:, axis], color=TRUE, label="true")
        panel.plot(time, decoded[:, axis], color=DECODED, label="decoded", linewidth=1)
        panel.set(ylabel=f"{'xy'[axis]} (m)", ylim=(0, ARENA_M))
    x.set_title(f"held out: median error {heldout.error_cm:.1f} cm, guessing the mean {heldout.baseline_cm:.1f} cm")
    x.legend(loc="lower left", ncols=2)
    y.set_xlabel("time (s)")
    shown = time < time[0] + 20
    arena.plot(*true[shown].T, color=TRUE)
    arena.plot(*decoded[shown].T, color=DECODED, linewidth=1)
    arena.set(title="20 s of the path", xlabel="x (m)", ylabel="y (m)", xlim=(0, ARENA_M), ylim=(0, ARENA_M))
    arena.set_aspect("equal")


def _loss(panel: Axes, log: list[dict[str, Any]], killed_after: int) -> None:
    for name, lines, style in (
        ("before the kill", log[:killed_after], {"color": "tab:gray", "linewidth": 3}),
        ("resumed", log[killed_after:], {"color": "tab:blue", "linewidth": 1}),
    ):
        panel.semilogy([each["step"] for each in lines], [each["loss"] for each in lines], label=name, **style)
    panel.axvline(killed_after, color=KILLED, linestyle="--", label="SIGKILL")
    panel.set(title="training", xlabel="batch", ylabel="squared error (m²)")
    panel.legend()


def _window(raster: Axes, lfp: Axes, heldout: HeldOut) -> None:
    spikes, volts = heldout.spikes[0].numpy(), heldout.lfp[0].numpy()
    span = float(heldout.start_s[1] - heldout.start_s[0]) * 2
    bins, units = np.nonzero(spikes)
    names = ["place"] * N_PLACE + ["direction"] * N_DIRECTION + ["border"] * N_BORDER
    times, counts = (bins + 0.5) * span / len(spikes), spikes[bins, units].astype(int)
    raster.set_xlim(0, span)
    title = "one window, as the model receives it: spikes and LFP"
    Raster(times, units, spikes.shape[1], names, counts, title).draw(raster)
    raster.set(xlim=(0, span), xticklabels=[])
    Traces(np.arange(len(volts)) * span / len(volts), volts, unit="V", stacked=True).draw(lfp)
    lfp.set(xlabel="time in the window (s)", xlim=(0, span))
