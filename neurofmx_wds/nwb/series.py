"""Series: the values of a recording's samples, scaled, and on a bin grid.

Data are read along time in bounded blocks, never whole. Knows nothing of modalities, windows or other series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import NS_PER_S, Grid, Int64
from .gridding import Centres, Circle, Float64, bin_mean, label_counts, linear, previous
from .timeline import BLOCK_BYTES, Run, Timeline

Float32 = npt.NDArray[np.float32]

#: HDF5 chunks up to this size are read whole and kept, so that none is decompressed twice.
CHUNK_BYTES = 64 * 2**20
#: Values that are scaled in one go, few enough to stay in a processor's own cache.
_CACHED_BYTES = 2**18


@dataclass
class Series:
    """One series of a recording: ``value = data · conversion (· channel conversion) + offset``, on its timeline.

    Attributes:
        path: where it is in the file; file: the file, for errors.
        columns: names of its columns.
        unit: unit of the values.
        kind: "continuous", "voltage" (electrical), "states" (booleans or codes: a value holds until the next),
            "labels" (events; each column marks those of one kind), "values" (numbers that belong to events), or
            "epochs" (each column is a state, 1 or 0 from one sample to the next, and 0 before the first).
        data: sliceable dataset (rows, …) with `columns` columns.
        scale: float64, scalar or (columns,); offset: float.
        turn: a full turn in `unit` where values are angles, which are averaged on the circle; else None.
        lowest: where the circle is cut, of each column or of all: values lie in [lowest, lowest + turn).
        about: what the table of its electrodes or ROIs says of each column: name → values, as JSON.

    Example:
        >>> from .timeline import timeline_at_rate
        >>> data = np.arange(300.0)[:, None] * [1, 2]
        >>> at_100_hz = timeline_at_rate(300, 0.0, 100.0)
        >>> speed = Series("a/speed", "x.nwb", ("x", "y"), "cm/s", "continuous", data, at_100_hz)
        >>> bins = speed.on_grid("bin_mean", Grid(Fraction(100_000_000)), 0, 5, 250_000_000.0)
        >>> bins.shape, bins[0].tolist()  # 5 bins of 100 ms, 10 samples each
        ((5, 2), [4.5, 9.0])
        >>> speed.native(Fraction(1_000_000_000), 50).shape  # 50 samples from 1 s on, at their own rate
        (50, 2)
    """

    path: str
    file: str
    columns: tuple[str, ...]
    unit: str
    kind: str
    data: Any
    timeline: Timeline
    scale: Float64 | float = 1.0
    offset: float = 0.0
    turn: float | None = None
    lowest: float | tuple[float, ...] = 0.0
    about: Mapping[str, list[Any]] = field(default_factory=dict)
    _held: tuple[int, npt.NDArray[Any]] | None = field(default=None, init=False)  # not in a copy, whose data may differ

    @cached_property
    def scaling(self) -> tuple[bytes, float]:
        """Scale and offset, to be compared."""
        return np.asarray(self.scale, np.float64).tobytes(), self.offset

    def on_grid(self, way: str, grid: Grid, first: int, stop: int, max_gap: float) -> Float64:
        """Return the values on bins [first, stop) of the grid.

        Args:
            grid: the bins.
            first: the first bin.
            stop: the bin after the last.
            way: "bin_mean" (mean of the samples in the bin, NaN where there is none; one NaN sample makes the bin NaN),
                "linear" (interpolated at the bin's centre, never across a gap nor outside the samples), "previous" (the
                last sample at or before the bin's centre), "inside" (the same, however old it is, and 0 before the
                first) or "count" (number of samples in the bin).
            max_gap: ns; a longer step between samples is a gap.

        Returns:
            float64 (stop − first, columns); NaN where there is no data.
        """
        low = self.timeline.search(grid.start_of(first))
        high = self.timeline.search(grid.start_of(stop))
        if stop - first > 1 and max((high - low), stop - first) * len(self.columns) * 8 > BLOCK_BYTES:
            middle = (first + stop) // 2
            halves = [self.on_grid(way, grid, a, b, max_gap) for a, b in ((first, middle), (middle, stop))]
            return np.concatenate(halves)
        if way in ("bin_mean", "count"):
            bins = grid.bin_of(self.timeline.between(low, high)) - first
            return self.binned(way, bins, self.values(low, high) if self.needs_values(way) else None, stop - first)
        low, high = max(0, low - 1), min(self.timeline.n, high + 1)
        starts, lead = grid.starts_of(np.arange(first, stop)[None])
        since = grid.start_of(first)
        times = self.timeline.between(low, high) - since
        centres = Centres(starts - since, lead, times, np.array([high - low]))
        complete = np.array([high == self.timeline.n])
        return at_centres(way, [self], centres, self.values(low, high), complete, max_gap)

    @property
    def is_sparse(self) -> bool:
        """Whether it tells of single events or epochs, so that between them nothing is missing."""
        return self.kind in ("labels", "values", "epochs")

    def extent(self) -> tuple[int, int]:
        """Return the time of the first sample, and the ns after the last one."""
        firsts, lasts = self.timeline.pieces_at(np.inf)
        return int(firsts[0]), int(lasts[-1]) + 1

    def needs_values(self, way: str) -> bool:
        """Return whether a way looks at the samples' values, not only at their times."""
        return way != "count" or self.kind == "labels"

    def binned(self, way: str, bins: Int64, values: Float64 | None, n_bins: int) -> Float64:
        """Return the means or counts of samples in bins: float64 (n_bins, columns).

        Args:
            way: "bin_mean" or "count".
            bins: int64 (n_samples,), ascending: the bin of each sample, from 0.
            values: (n_samples, columns); None where the way does not need them.
            n_bins: number of bins.
        """
        if values is not None:
            return (
                bin_mean(bins, values, n_bins, self.circle) if way == "bin_mean" else label_counts(bins, values, n_bins)
            )
        counts = np.bincount(bins, minlength=n_bins)
        return np.repeat(counts[:, None].astype(np.float64), len(self.columns), axis=1)

    @property
    def circle(self) -> Circle | None:
        """The circle that the values are angles on; None where they are not angles."""
        return None if self.turn is None else Circle(self.turn, self.lowest)

    def native_start(self, start: Fraction, run: Run) -> int:
        """Return the sample nearest to `start` (ns) on a run's clock: ``round((start − t0) · rate)``."""
        return run.first + round((start - run.start) * (self.timeline.rate or 0) / NS_PER_S)

    def native(self, start: Fraction, n: int) -> Float32:
        """Return n samples at the series' own rate from `start` (ns) on.

        Returns:
            float32 (n, columns); NaN where the recording has none.
        """
        out = np.full((n, len(self.columns)), np.nan, dtype=np.float32)
        for run in self.timeline.runs:
            i0 = self.native_start(start, run)
            low, high = max(i0, run.first), min(i0 + n, run.first + run.n)
            if low < high:
                self._fill(out[low - i0 : high - i0], low)
        return out

    def natives(self, start: Fraction, step: Fraction, count: int, n: int) -> Iterator[Float32]:
        """Yield `native` of `count` windows, one every `step` ns; inside one run they share read-only memory."""
        per_ns = Fraction(self.timeline.rate or 0) / NS_PER_S
        for run in self.timeline.runs:
            low, high = (self.native_start(start + w * step, run) for w in (0, count - 1))
            if run.first <= low and high + n <= run.first + run.n:
                values = np.empty((high + n - low, len(self.columns)), np.float32)
                self._fill(values, low)
                values.flags.writeable = False
                i0, by = (start - run.start) * per_ns, step * per_ns
                firsts = (run.first - low + round(i0 + w * by) for w in range(count))
                yield from (values[first : first + n] for first in firsts)
                return
        yield from (self.native(start + w * step, n) for w in range(count))

    def native_covers(self, start: Fraction, n: int) -> bool:
        """Return whether one run has all n samples from `start` (ns) on."""
        firsts = ((self.native_start(start, run), run) for run in self.timeline.runs)
        return any(run.first <= i0 and i0 + n <= run.first + run.n for i0, run in firsts)

    def values(self, low: int, high: int) -> Float64:
        """Return the values of samples [low, high): float64 (high − low, columns), NaN kept."""
        out = np.empty((high - low, len(self.columns)))
        self._fill(out, low)
        return out

    def blocks(self) -> Iterator[Float64]:
        """Yield the values of all samples, block by block: float64 (rows, columns), NaN kept."""
        block = self._rows_per_block()
        for low in range(0, self.timeline.n, block):
            yield self.values(low, min(self.timeline.n, low + block))

    def _rows_per_block(self) -> int:
        return max(1, BLOCK_BYTES // (8 * len(self.columns)))

    def _fill(self, out: npt.NDArray[Any], low: int) -> None:
        """Scale samples [low, low + len(out)) into `out`, block by block."""
        block = self._rows_per_block()
        for done in range(0, len(out), block):
            part = out[done : done + block]
            raw = self._samples(low + done, low + done + len(part)).reshape(part.shape)
            step = max(1, _CACHED_BYTES // (8 * len(self.columns)))
            for i in range(0, len(part), step):
                values = raw[i : i + step].astype(np.float64)
                values *= self.scale
                values += self.offset
                part[i : i + step] = values

    def stored(self, low: int, high: int) -> npt.NDArray[Any]:
        """Return samples [low, high) as they are stored, in time order: (high − low, columns)."""
        return self._samples(low, high).reshape(high - low, len(self.columns))

    def _samples(self, low: int, high: int) -> npt.NDArray[Any]:
        """Return samples [low, high) in time order, wherever their rows are in the file."""
        if self.timeline.order is None:
            return self._rows(low, high)
        rows = self.timeline.order[low:high]
        if not len(rows):
            return np.asarray(self.data[0:0])
        first, stop = int(rows.min()), int(rows.max()) + 1
        if stop - first <= 2 * len(rows) + 1024:
            return np.asarray(self._rows(first, stop)[rows - first])
        ascending, where = np.unique(rows, return_inverse=True)
        return np.asarray(self._guarded(lambda: self.data[ascending])[where])

    def _rows(self, low: int, high: int) -> npt.NDArray[Any]:
        """Return rows [low, high); whole HDF5 chunks are read and kept, as the next window mostly needs the same."""
        start, held = self._held or (0, self.data[:0])
        if not (start <= low and high <= start + len(held)):
            step = self._rows_per_chunk()
            first, stop = low // step * step, min(-(-high // step) * step, len(self.data))
            if start <= first < start + len(held) < stop:
                fresh = self._guarded(lambda: self.data[start + len(held) : stop])
                held = np.concatenate([held[first - start :], fresh])
            else:
                held = self._guarded(lambda: self.data[first:stop])
            start, self._held = first, (first, held)
        return held[low - start : high - start]

    def release(self) -> None:
        """Free the rows that are kept for the next window."""
        self._held = None

    def _rows_per_chunk(self) -> int:
        chunks = getattr(self.data, "chunks", None)
        rows = int(chunks[0]) if chunks else 1
        return rows if rows * len(self.columns) * self.data.dtype.itemsize <= CHUNK_BYTES else 1

    def _guarded(self, read: Callable[[], Any]) -> npt.NDArray[Any]:
        try:
            return np.asarray(read())
        except (OSError, RuntimeError, ValueError) as error:
            raise SourceError(
                f"the data of {self.path} cannot be read: {error}",
                file=self.file,
                remedy="the file is damaged or cut short; copy it again, or leave this modality out",
            ) from error


def at_centres(
    way: str,
    series: Sequence[Series],
    centres: Centres,
    values: Float64,
    complete: npt.NDArray[np.bool_],
    max_gap: float,
) -> Float64:
    """Return the values at the centres of bins: float64 (n_windows · n_bins, columns), NaN where there are none.

    Args:
        way: "linear", "previous" or "inside".
        series: the series of each window, or the one of all; alike but for their times.
        centres: the bins, and when the samples are.
        values: (n_samples, columns).
        complete: bool (n_windows,): whether the last sample of each window is the series' last.
        max_gap: ns; a longer step between samples is a gap.
    """
    period = np.array([each.timeline.period for each in series])
    longest_step = np.array([each.timeline.longest_step(max_gap) for each in series])
    if way == "linear":
        return linear(centres, values, longest_step, series[0].circle)
    if way == "inside":
        held = previous(centres, values, np.inf, np.zeros_like(complete), period)
        return np.where(np.isnan(held), 0.0, held)
    # A stream of states is missing in its gaps; states noted only when they change hold until the next one.
    stale_after = np.where(period <= max_gap, longest_step, np.inf)
    return previous(centres, values, stale_after, complete, period)
