"""NWB recordings as a source of windows: spikes, behavior and LFP of the same bins, side by side.

Decides where windows are and which way each series goes onto the grid; knows nothing of shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import SourceError
from ...nwb.clock import NS_PER_S, Grid, Int64, Windows, difference, intersection, intervals_of, stride_of, union
from ...nwb.recording import MODALITIES, Recording
from ...nwb.series import BLOCK_BYTES, Float64, Series
from ...nwb.units import support_of
from . import SourceConfig, SourceDescription

Fields = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """Where the windows of a recording are, and what kept others from being there.

    Attributes:
        modalities: what is converted; the first one's support decides.
        windows: the windows, in segments of whole bins.
        rule: how the support was found.
        dropped: windows that there are not, by reason.
    """

    modalities: tuple[str, ...]
    windows: Windows
    rule: str
    dropped: dict[str, int]


class NWBSource:
    """The windows of one NWB recording.

    Args:
        path: the .nwb file.
        config: bins, windows and ways.

    Raises:
        SourceError: the file cannot be read, or lacks a modality that was asked for.
    """

    def __init__(self, path: str | os.PathLike[str], config: SourceConfig) -> None:
        self.recording = Recording(path)
        self.config = config
        self.grid = Grid(config.bin_width_ns, config.origin_ns)
        self._max_gap = config.max_gap_s * NS_PER_S
        self._name = Path(path).name

    def close(self) -> None:
        """Closes the file."""
        self.recording.close()

    @cached_property
    def plan(self) -> Plan:
        """Finds the windows: support of the first modality ∩ intervals given − invalid_times, inward to the grid."""
        modalities = self._modalities()
        support, rule = self._support(modalities[0])
        stages = {
            f"outside the support of {modalities[0]}": union([support]),
            "outside the intervals given": support,
            "in invalid_times": support,
        }
        hull = np.array([[support[0, 0], support[-1, 1]]]) if len(support) else support
        if self.config.intervals is not None:
            given, _ = intervals_of(*np.array(self.config.intervals).T.reshape(2, -1))
            stages["outside the intervals given"] = intersection([support, given])
        stages["in invalid_times"] = difference(stages["outside the intervals given"], self.recording.invalid_times)
        before, dropped = len(self._windows(hull)), {}
        for reason, intervals in stages.items():
            left = len(self._windows(intervals))
            dropped[reason] = max(0, before - left)
            before = left
        windows = self._windows(stages["in invalid_times"])
        dropped["segment shorter than a window"] = windows.counts().count(0)
        return Plan(modalities, windows, rule, {reason: n for reason, n in dropped.items() if n})

    def _windows(self, intervals: Int64) -> Windows:
        length = self.config.sequence_length
        return Windows(tuple(self.grid.whole_bins(intervals)), length, stride_of(length, self.config.overlap))

    def _modalities(self) -> tuple[str, ...]:
        asked, present = self.config.modalities, self.recording.modalities
        missing = [name for name in asked or () if name not in present]
        if missing or not present:
            raise SourceError(
                f"there is no {' and no '.join(missing or MODALITIES)} in it; it has {self.recording.contents}",
                file=self.recording.path,
                remedy="ask for modalities that it has" if missing else "nothing in it can be converted yet",
            )
        return asked or present

    def _support(self, modality: str) -> tuple[Int64, str]:
        if modality == "spikes":
            support, rule, stray = support_of(self.recording.spikes)
            if stray:
                self.recording.warn(f"{stray} spikes more than a day away from the others do not stretch the support")
            return support, rule
        series = self.recording.behavior if modality == "behavior" else self.recording.lfp.values()
        supports = [each.timeline.support(self._max_gap) for each in series]
        return union(supports), f"where any {modality} series has samples, cut at gaps over {self.config.max_gap_s} s"

    @cached_property
    def _ways(self) -> dict[str, str]:
        """How each series (by path) goes onto the grid."""
        behavior = {s.path: self._behavior_way(s) for s in self._series("behavior").values()}
        return behavior | {s.path: self._lfp_way(s) for s in self._series("lfp").values()}

    def _series(self, modality: str) -> dict[str, Series]:
        if modality not in self.plan.modalities:
            return {}
        return self.recording.lfp if modality == "lfp" else {each.path: each for each in self.recording.behavior}

    def _behavior_way(self, series: Series) -> str:
        if self.config.behavior_method != "auto":
            return self.config.behavior_method
        if series.kind != "continuous":
            return {"states": "previous", "events": "count"}[series.kind]
        return "bin_mean" if 2 * series.timeline.period <= self.grid.width else "linear"

    def _lfp_way(self, series: Series) -> str:
        way, fast = self.config.lfp_method, 2 * series.timeline.period <= self.grid.width
        if way == "native" and series.timeline.rate is None:
            raise SourceError(
                f"{series.path} has irregular timestamps and so no native rate",
                file=self.recording.path,
                remedy="use lfp_method bin_mean or linear",
            )
        if way != "auto":
            return way
        return ("native" if series.timeline.rate is not None else "bin_mean") if fast else "linear"

    def _native_length(self, series: Series) -> int:
        rate = series.timeline.rate or 0
        return max(1, round(self.config.sequence_length * self.grid.width * rate / NS_PER_S))

    @cached_property
    def _masked(self) -> frozenset[str]:
        """Which LFP fields can miss samples in this recording's windows, told by time alone."""
        return frozenset(f for f, each in self._series("lfp").items() if not self._whole(each))

    def _whole(self, series: Series) -> bool:
        if self._ways[series.path] != "native":
            return False
        windows, n = self.plan.windows, self._native_length(series)
        return all(
            any(
                run.first <= series.native_start(self._start(first), run)
                and series.native_start(self._start(stop - windows.length), run) + n <= run.first + run.n
                for run in series.timeline.runs
            )
            for first, stop in windows.spans()
        )

    def _start(self, k: int) -> Any:
        return self.grid.origin + k * self.grid.width

    def describe(self) -> SourceDescription:
        """Counts the windows and says what is in them.

        Raises:
            SourceError: the file is damaged, or lacks what was asked for.
        """
        fields = self._fields()
        return SourceDescription(len(self.plan.windows), fields, self._report())

    def _fields(self) -> dict[str, dict[str, Any]]:
        length = self.config.sequence_length
        fields: dict[str, dict[str, Any]] = {}
        if "spikes" in self.plan.modalities:
            ids = [str(i) for i in self.recording.spikes.ids]
            dtype = np.dtype(self.config.spike_dtype).name
            fields["spikes"] = {"dtype": dtype, "shape": [length, len(ids)], "unit": "count", "columns": ids}
        series = list(self._series("behavior").values())
        if series:
            units = [each.unit for each in series for _ in each.columns]
            columns = [column for each in series for column in each.columns]
            fields["behavior"] = {
                "dtype": "float32",
                "shape": [length, len(columns)],
                "unit": units[0] if len(set(units)) == 1 else "various",
                "columns": columns,
                "units": units,
                "ways": [self._ways[each.path] for each in series for _ in each.columns],
                "paths": [each.path for each in series],
            }
            fields["behavior_mask"] = _mask_of(fields["behavior"])
        for field, each in self._series("lfp").items():
            native = self._ways[each.path] == "native"
            rate = each.timeline.rate if native else NS_PER_S / self.grid.width
            fields[field] = {
                "dtype": "float32",
                "shape": [self._native_length(each) if native else length, len(each.columns)],
                "unit": each.unit,
                "columns": list(each.columns),
                "rate": float(rate or 0),
                "ways": [self._ways[each.path]],
                "paths": [each.path],
            }
            if field in self._masked:
                fields[f"{field}_mask"] = _mask_of(fields[field])
        return fields

    def _report(self) -> dict[str, Any]:
        plan, recording = self.plan, self.recording
        report: dict[str, Any] = {
            "path": self._name,
            "size_bytes": os.path.getsize(recording.path),
            **recording.identity,
            "support_rule": plan.rule,
            "segments": [[self.grid.start_of(a), self.grid.start_of(b)] for a, b in plan.windows.segments],
            "windows": {"emitted": len(plan.windows), "dropped": plan.dropped},
            "bins_in_tails": plan.windows.tail_bins(),
        }
        if "spikes" in plan.modalities:
            report["units"] = recording.units_table
            report["spikes"] = self._spike_account()
        report["series"] = [
            {
                "path": each.path,
                "unit": each.unit,
                "way": self._ways[each.path],
                "samples": each.timeline.n,
                "rate": NS_PER_S / each.timeline.period if each.timeline.period else None,
                "regularity": each.timeline.regularity,
                "gaps": each.timeline.gaps(self._max_gap),
            }
            for modality in ("behavior", "lfp")
            for each in self._series(modality).values()
        ]
        report["unused"] = [found.path for found in recording.unused()]
        if not len(plan.windows):
            recording.warn("no window fits: the recording's segments are shorter than sequence_length bins")
        report["warnings"] = list(recording.warnings)
        return report

    def _spike_account(self) -> dict[str, int]:
        trains = self.recording.spikes
        spans = [trains.within(*map(self.grid.start_of, span)) for span in self.plan.windows.spans()]
        binned, invalid = sum(each.stop - each.start for each in spans), sum(trains.invalid.values())
        self.recording.warn(*(f"units: {n} spike times dropped: {reason}" for reason, n in trains.invalid.items()))
        if trains.unsorted_units:
            self.recording.warn(f"units: spike times were out of order and sorted: {list(trains.unsorted_units)}")
        if trains.bad_obs_intervals:
            self.recording.warn(f"units: {trains.bad_obs_intervals} obs_intervals have no usable start and stop")
        return {
            "total": len(trains) + invalid,
            "binned": binned,
            "outside": len(trains) - binned,
            "invalid": invalid,
        }

    def read(self, start: int, stop: int) -> Iterator[tuple[Fields, dict[str, Any]]]:
        """Gives the windows [start, stop) in order.

        Yields:
            (fields, metadata): spikes (L, n_units); behavior float32 (L, columns) and behavior_mask, bool; lfp float32
            (n, channels), with lfp_mask where this recording's windows can miss samples.

        Raises:
            IndexError: there are no such windows.
            SourceError: the file is damaged, or a count does not fit the integer dtype asked for.
        """
        windows = self.plan.windows
        if not 0 <= start <= stop <= len(windows):
            raise IndexError(f"windows [{start}, {stop}) of {len(windows)} in {self.recording.path}")
        for index, first, n in windows.runs(start, stop, self._windows_per_block()):
            block = self._block(first, first + (n - 1) * windows.stride + windows.length)
            for w in range(n):
                low = w * windows.stride
                yield (
                    {name: rows[low : low + windows.length].copy() for name, rows in block.items()}
                    | self._native(first + low),
                    self._metadata(index + w, first + low),
                )

    def _windows_per_block(self) -> int:
        windows = self.plan.windows
        widths = [len(self.recording.spikes.ids)] if "spikes" in self.plan.modalities else []
        widths += [len(s.columns) for m in ("behavior", "lfp") for s in self._series(m).values()]
        bins = BLOCK_BYTES // (8 * max(1, sum(widths)))
        return max(1, (bins - windows.length) // windows.stride + 1)

    def _block(self, first: int, stop: int) -> Fields:
        """Gives all fields that are on the grid, for bins [first, stop)."""
        fields: Fields = {}
        if "spikes" in self.plan.modalities:
            fields["spikes"] = self._counts(first, stop)
        series = self._series("behavior").values()
        if series:
            values = np.concatenate([self._on_grid(each, first, stop) for each in series], axis=1)
            fields["behavior"], fields["behavior_mask"] = values.astype(np.float32), ~np.isnan(values)
        for field, each in self._series("lfp").items():
            if self._ways[each.path] != "native":
                values = self._on_grid(each, first, stop)
                fields[field], fields[f"{field}_mask"] = values.astype(np.float32), ~np.isnan(values)
        return fields

    def _on_grid(self, series: Series, first: int, stop: int) -> Float64:
        return series.on_grid(self._ways[series.path], self.grid, first, stop, self._max_gap)

    def _counts(self, first: int, stop: int) -> npt.NDArray[Any]:
        counts = self.recording.spikes.counts(self.grid, first, stop)
        cast = counts.astype(self.config.spike_dtype)
        if not np.array_equal(cast, counts):
            k, unit = np.unravel_index(int(counts.argmax()), counts.shape)
            raise SourceError(
                f"{counts[k, unit]} spikes of unit {self.recording.spikes.ids[unit]} in the bin at "
                f"{self.grid.start_of(first + int(k)) / NS_PER_S} s do not fit {self.config.spike_dtype}",
                file=self.recording.path,
                member="spikes",
                remedy="use a wider spike_dtype (float32 is the default) or smaller bins",
            )
        return cast

    def _native(self, k: int) -> Fields:
        """Gives the fields at their own rate, and their masks, of the window that starts at bin k."""
        fields: Fields = {}
        for field, each in self._series("lfp").items():
            if self._ways[each.path] == "native":
                fields[field] = each.native(self._start(k), self._native_length(each))
                if field in self._masked:
                    fields[f"{field}_mask"] = ~np.isnan(fields[field])
        return fields

    def _metadata(self, index: int, k: int) -> dict[str, Any]:
        start = self.grid.start_of(k)
        metadata: dict[str, Any] = {
            "session_id": self.recording.identity["session_id"],
            "source": self._name,
            "window_index": index,
            "t_start_ns": start,
            "t_stop_ns": self.grid.start_of(k + self.config.sequence_length),
            "bin_ns": self.grid.to_json(),
        }
        if self.recording.trials is not None:
            metadata["trial"] = self.recording.trials.at(start)
        return metadata


def _mask_of(field: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": "bool", "shape": field["shape"], "unit": "", "columns": field["columns"]}
