"""The parts of a picture, each drawn on axes of its own over one axis of time: rasters, traces, events, frames.

Knows arrays and matplotlib; knows nothing of recordings or samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import printable

Floats = npt.NDArray[np.floating[Any]]

#: Colors of populations, columns and labels, one after the other.
COLORS = ("#1f5fa8", "#d1661a", "#2e8540", "#a4282e", "#6b4ea0", "#7a5340", "#c2559b", "#5f6b73", "#8f8a1c", "#1799a5")
INK, MUTED, GAP = "#22272b", "#6c757d", "#eceef0"
#: Of more spikes than this in a picture, the numbers in small boxes are drawn instead of single marks.
MOST_MARKS = 20_000
#: Of more points than this along time, the lowest and the highest in each piece are drawn.
MOST_POINTS = 4000
#: Traces, labels and thumbnails that are told apart in one panel.
MOST_TRACES, MOST_LABELS, MOST_FRAMES = 12, 16, 6


class Panel(Protocol):
    """One part of a picture.

    Attributes:
        height: how tall it is, beside the others.
        own_time: whether its axis of time is its own, and not that of the others.
    """

    @property
    def height(self) -> float:
        """How tall it is."""

    @property
    def own_time(self) -> bool:
        """Whether its axis of time is its own."""

    def draw(self, axes: Axes) -> None:
        """Draw it."""


@dataclass(frozen=True)
class Raster:
    """Spikes of units over time, in bands of populations.

    Attributes:
        times: float (n,), s.
        units: int (n,), the row of each spike's unit.
        n_units: rows.
        populations: name of each row's population; empty: all are of one.
        counts: int (n,), how many spikes each mark stands for.
        title: what is said above it.
    """

    times: Floats
    units: npt.NDArray[np.integer[Any]]
    n_units: int
    populations: Sequence[str] = ()
    counts: npt.NDArray[np.integer[Any]] | None = None
    title: str = "spikes"
    own_time: bool = False

    @property
    def height(self) -> float:
        """From 1.2 for few units to 3.2 for many."""
        return float(np.clip(0.8 + self.n_units / 25, 1.2, 3.2))

    def draw(self, axes: Axes) -> None:
        """Draw a mark for each spike, or how many there are in small boxes."""
        names = list(self.populations) or [""] * self.n_units
        order = np.argsort(names, kind="stable")  # rows of one population side by side
        row_of = np.empty(self.n_units, np.int64)
        row_of[order] = np.arange(self.n_units)
        rows = row_of[self.units] if self.n_units else np.empty(0, np.int64)
        edges = _bands([names[i] for i in order])
        axes.set_ylim(self.n_units - 0.5, -0.5)
        if len(self.times) > MOST_MARKS:
            self._boxes(axes, rows)
        else:
            for number, (_, low, high) in enumerate(edges):
                own = (rows >= low) & (rows < high)
                size = 0.8 if self.counts is None else np.minimum(0.6 + 0.5 * self.counts[own], 3)
                axes.vlines(self.times[own], rows[own] - 0.42, rows[own] + 0.42, color=_color(number), linewidth=size)
        for number, (name, low, high) in enumerate(edges):
            if low:
                axes.axhline(low - 0.5, color=MUTED, linewidth=0.6)
            if name:
                middle, label = (low + high - 1) / 2, f"{shortened(name)} ({high - low})"
                beside = axes.get_yaxis_transform()
                axes.text(1.006, middle, label, transform=beside, color=_color(number), va="center", fontsize=8)
        axes.set(ylabel="unit")
        _title(axes, self.title)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))

    def _boxes(self, axes: Axes, rows: npt.NDArray[np.int64]) -> None:
        start, stop = axes.get_xlim()
        weights = None if self.counts is None else self.counts
        boxes, xs, ys = np.histogram2d(
            self.times, rows, bins=[600, min(self.n_units, 300)], range=[[start, stop], [-0.5, self.n_units - 0.5]],
            weights=weights,
        )  # fmt: skip
        top = np.quantile(boxes[boxes > 0], 0.98) if boxes.any() else 1
        axes.pcolormesh(xs, ys, boxes.T, cmap="Greys", vmin=0, vmax=max(top, 1), rasterized=True)


@dataclass(frozen=True)
class Traces:
    """Values over time, with a gap where there are none.

    Attributes:
        times: float (n,), s, ascending.
        values: float (n, columns), NaN where nothing was measured.
        columns: names of the columns.
        unit: of the values.
        stacked: draw the columns one below the other, as channels of one amplifier; else in one pair of axes.
        gaps: (start, stop) in s, where nothing was measured; shaded.
        title: what is said above it.
    """

    times: Floats
    values: Floats
    columns: Sequence[str] = ()
    unit: str = ""
    stacked: bool = False
    gaps: Sequence[tuple[float, float]] = ()
    title: str = ""
    own_time: bool = False

    @property
    def height(self) -> float:
        """Taller for stacked channels."""
        return float(np.clip(0.9 + 0.18 * self._shown, 1.2, 2.8)) if self.stacked else 1.3

    @property
    def _shown(self) -> int:
        return min(self.values.shape[1], MOST_TRACES)

    def draw(self, axes: Axes) -> None:
        """Draw a line for each column, at most `MOST_TRACES` of them."""
        gaps = [(start, stop - start) for start, stop in self.gaps]
        axes.broken_barh(gaps, (0, 1), facecolors=GAP, linewidth=0, transform=axes.get_xaxis_transform())
        n = self.values.shape[1]
        chosen = evenly(n, MOST_TRACES)
        names = [*map(_tail, self.columns)] if len(self.columns) == n else [str(i) for i in range(n)]
        times, values = thinned(self.times, self.values[:, chosen])
        more = f", {len(chosen)} of {n} shown" if len(chosen) < n else ""
        _title(axes, f"{self.title}{more}")
        if not np.isfinite(values).any():
            axes.text(0.5, 0.5, "nothing measured here", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
        elif self.stacked:
            self._stack(axes, times, values, [names[i] for i in chosen])
        else:
            for k, i in enumerate(chosen):
                axes.plot(times, values[:, k], color=_color(k), linewidth=1, label=shortened(names[i]))
            axes.set_ylabel(printable(self.unit))
            if len(chosen) > 1:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)
            axes.margins(y=0.08)

    def _stack(self, axes: Axes, times: Floats, values: Floats, names: Sequence[str]) -> None:
        spread = np.nanstd(values, axis=0)
        step = 5 * float(np.nanmedian(spread[spread > 0])) if (spread > 0).any() else 1.0
        places = -step * np.arange(values.shape[1])
        axes.plot(times, values - np.nanmean(values, axis=0) + places, color=COLORS[0], linewidth=0.6)
        axes.set_yticks(places, [shortened(name, 18) for name in names], fontsize=7)
        axes.set_ylim(places[-1] - step, step)
        bar = float(f"{step:.1g}")
        axes.plot([1.01, 1.01], [places[0] - bar / 2, places[0] + bar / 2], color=INK, linewidth=1.5, clip_on=False,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        label = printable(_in_prefixed_unit(bar, self.unit))
        axes.text(1.018, places[0], label, transform=axes.get_yaxis_transform(), va="center", fontsize=7)


@dataclass(frozen=True)
class Marks:
    """Intervals and events over time: a row for each label.

    Attributes:
        spans: (start, stop, label) in s; an event has the same start and stop.
        title: what is said above it.
    """

    spans: Sequence[tuple[float, float, str]]
    title: str = ""
    own_time: bool = False

    @property
    def _labels(self) -> list[str]:
        return sorted({label for _, _, label in self.spans})[:MOST_LABELS]

    @property
    def height(self) -> float:
        """Taller for more labels."""
        return 0.32 + 0.16 * max(1, len(self._labels))

    def draw(self, axes: Axes) -> None:
        """Draw a bar for each interval, and a line for each event."""
        labels = self._labels
        for row, label in enumerate(labels):
            own = [(start, stop) for start, stop, each in self.spans if each == label]
            bars = [(start, stop - start) for start, stop in own if stop > start]
            axes.broken_barh(bars, (row - 0.38, 0.76), facecolors=_color(row), alpha=0.55, edgecolor="white")
            events = [start for start, stop in own if stop == start]
            axes.vlines(events, row - 0.38, row + 0.38, color=_color(row), linewidth=1.3)
        axes.set_yticks(range(len(labels)), [shortened(label) for label in labels], fontsize=7)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        left_out = len({label for _, _, label in self.spans}) - len(labels)
        _title(axes, f"{self.title}, {left_out} labels not shown" if left_out else self.title)


@dataclass(frozen=True)
class Frames:
    """Frames of a video, side by side, each with its time.

    Attributes:
        times: s, of each frame.
        frames: arrays (H, W), (H, W, 3) or (3, H, W), at most `MOST_FRAMES`.
        title: what is said above it.
    """

    times: Sequence[float]
    frames: Sequence[npt.NDArray[Any]]
    title: str = ""
    height: float = 1.4
    own_time: bool = True

    def draw(self, axes: Axes) -> None:
        """Draw the frames."""
        axes.set_axis_off()
        _title(axes, self.title)
        n = max(1, len(self.frames))
        for k, (time, frame) in enumerate(zip(self.times, self.frames, strict=True)):
            part = axes.inset_axes((k / n, 0, 0.97 / n, 0.9))
            part.imshow(pixels(frame), cmap="gray", interpolation="nearest")
            part.set_axis_off()
            if np.isfinite(time):
                part.set_title(f"{time:.6g} s", fontsize=7, pad=2)


@dataclass(frozen=True)
class Matrix:
    """An array that is not over time, as an image or a line.

    Attributes:
        values: array of one or two dimensions, or three where it is an image.
        title: what is said above it.
    """

    values: npt.NDArray[Any]
    title: str = ""
    own_time: bool = True

    @property
    def height(self) -> float:
        """Taller for images."""
        return 1.3 if self.values.ndim < 2 else 2.2

    def draw(self, axes: Axes) -> None:
        """Draw it."""
        _title(axes, self.title)
        if self.values.ndim < 2:
            values = np.atleast_1d(self.values).astype(float)
            axes.plot(values, color=COLORS[0], linewidth=1, marker="." if len(values) < 50 else None)
            axes.set_xlabel("index", fontsize=8)
        elif self.values.ndim == 3 or self.values.dtype == np.uint8:
            axes.imshow(pixels(self.values), cmap="gray", interpolation="nearest")
            axes.set_axis_off()
        else:
            drawn = axes.imshow(np.asarray(self.values, float), aspect="auto", interpolation="nearest", cmap="viridis")
            axes.set(xlabel="dimension 1", ylabel="dimension 0")
            axes.figure.colorbar(drawn, ax=axes, pad=0.01)


@dataclass(frozen=True)
class Coverage:
    """What was measured when, over a whole recording.

    Attributes:
        rows: (name, intervals float (n, 2) in s) of each thing that can be measured.
        span: from when to when the axis goes, s.
        shown: the part that the rest of the picture shows, s.
        title: what is said above it.
        marks: so many of the last rows are intervals of tables, not what was measured.
    """

    rows: Sequence[tuple[str, Floats]]
    span: tuple[float, float]
    shown: tuple[float, float] | None = None
    title: str = "measured"
    marks: int = 0
    own_time: bool = True

    @property
    def height(self) -> float:
        """Taller for more rows."""
        return 0.45 + 0.16 * max(1, len(self.rows))

    def draw(self, axes: Axes) -> None:
        """Draw a bar for each stretch that was measured."""
        seconds = self.span[1] - self.span[0]
        for row, (_, intervals) in enumerate(self.rows):
            bars = [(float(start), float(stop - start)) for start, stop in intervals]
            told = row < len(self.rows) - self.marks
            color = COLORS[0] if told else MUTED
            axes.broken_barh(bars, (row - 0.35, 0.7), facecolors=color, edgecolor=color, linewidth=0.4)
            share = min(1.0, sum(length for _, length in bars) / seconds) if seconds > 0 else 1.0
            axes.text(1.006, row, f"{share:.0%}", transform=axes.get_yaxis_transform(), va="center", fontsize=7)
        if self.shown is not None:
            axes.axvspan(*self.shown, color=INK, alpha=0.18, linewidth=0)
            axes.axvline(self.shown[0], color=INK, linewidth=0.8)
        axes.set_yticks(range(len(self.rows)), [shortened(_tail(name, 2)) for name, _ in self.rows], fontsize=7)
        axes.set(xlim=self.span, ylim=(len(self.rows) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        _title(axes, self.title)
        axes.set_xlabel("time in the recording (s)", fontsize=8)


def thinned(times: Floats, values: Floats, most: int = MOST_POINTS) -> tuple[Floats, Floats]:
    """Return at most `most` points that look like all: the lowest and the highest of each piece.

    A piece that has no value stays a gap.

    Args:
        times: (n,).
        values: (n, columns).
        most: how many points.

    Example:
        >>> times, values = thinned(np.arange(100_000.0), np.sin(np.arange(100_000.0))[:, None])
        >>> len(times) <= MOST_POINTS, bool(values.max() > 0.999), bool(values.min() < -0.999)
        (True, True, True)
    """
    if len(times) <= most:
        return times, values
    firsts = np.linspace(0, len(times), max(1, most // 2) + 1).astype(int)[:-1]
    lowest = np.minimum.reduceat(np.where(np.isnan(values), np.inf, values), firsts, axis=0)
    highest = np.maximum.reduceat(np.where(np.isnan(values), -np.inf, values), firsts, axis=0)
    pairs = np.stack([lowest, highest], axis=1).reshape(-1, values.shape[1])
    return np.repeat(times[firsts], 2), np.where(np.isinf(pairs), np.nan, pairs)


def pixels(frame: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an image as matplotlib draws it: (H, W) or (H, W, 3), integers as uint8, floats from 0 to 1."""
    if frame.ndim == 3 and frame.shape[0] in (1, 3) and frame.shape[2] not in (1, 3, 4):
        frame = np.moveaxis(frame, 0, 2)
    if frame.ndim == 3 and frame.shape[2] not in (3, 4):
        frame = frame[:, :, 0]
    if frame.ndim == 2 or frame.dtype == np.uint8:
        return frame
    low, high = float(frame.min()), float(frame.max())
    return np.asarray((frame - low) / ((high - low) or 1.0))


def shortened(name: str, most: int = 26) -> str:
    """Return the end of a long name."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _title(axes: Axes, text: str) -> None:
    axes.set_title(printable(text), loc="left")


def evenly(n: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most `most` of n numbers, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _tail(path: str, parts: int = 1) -> str:
    return "/".join(path.split("/")[-parts:]) or path


def _in_prefixed_unit(value: float, unit: str) -> str:
    """Return a voltage in mV or µV, and any other value as it is."""
    if unit not in ("volts", "volt", "V") or not 0 < abs(value) < 1:
        return f"{value:g} {unit}"
    return f"{value * 1e3:g} mV" if abs(value) >= 1e-3 else f"{value * 1e6:g} µV"


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _bands(names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return (name, first row, row after the last) of each run of equal names."""
    edges = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    return [(names[a], a, b) for a, b in zip(edges, [*edges[1:], len(names)], strict=True)]
