"""Intracellular sweeps as a source of windows: each sweep is a recording by itself, and no window leaves it.

Sees a sweep as a recording of two series; knows nothing of shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from ...errors import SourceError
from ...nwb.plain import PlainRecording
from ...nwb.recording import Recording
from ...nwb.sweeps import Sweep
from ...storage.location import name_of
from .contract import SourceDescription
from .listing import Listing
from .nwb import Fields, RecordingSource
from .windows import WindowConfig

#: What the sweeps of a file are called among its modalities.
MODALITY = "icephys"
_MASK = "_mask"
_SAID = ("dtype", "unit", "rate", "ways")


class SweepRecording(PlainRecording):
    """One sweep, seen as a recording of nothing but its response and its stimulus.

    Args:
        recording: the file that it is in.
        sweep: the sweep.
    """

    def __init__(self, recording: Recording, sweep: Sweep) -> None:
        super().__init__()
        self.path, self.identity = recording.path, recording.identity
        series = {"response": sweep.response, "stimulus": sweep.stimulus}
        self.series = {name: each for name, each in series.items() if each is not None}

    def close(self) -> None:
        """Leave the file open: other sweeps are in it."""


class SweepSource:
    """The windows of the sweeps of one file, sweep after sweep.

    The first window of a sweep begins where the sweep does. The response, and the stimulus wherever any sweep of the
    file has one, keep their own rate where it is at least two samples a bin (``lfp_method``).

    Args:
        recording: an open NWB file.
        config: bins, windows and ways; its intervals hold for every sweep.
    """

    listing: Listing | None = None

    def __init__(self, recording: Recording, config: WindowConfig) -> None:
        self.recording = recording
        self._config = replace(config, modalities=None)

    def close(self) -> None:
        """Close the file."""
        self.recording.close()

    @cached_property
    def _sources(self) -> list[RecordingSource]:
        return [self._source(sweep) for sweep in self.recording.sweeps]

    def _source(self, sweep: Sweep) -> RecordingSource:
        if self._config.align is not None:
            problem = f"its sweeps have no table {self._config.align} to align to"
            raise SourceError(problem, file=self.recording.path, remedy="convert them without align")
        timeline = sweep.response.timeline
        origin = int(timeline.between(0, 1)[0]) if sweep.span is None else sweep.span[0]
        within = self._config if sweep.span is None else self._config.within(*sweep.span)
        return RecordingSource(SweepRecording(self.recording, sweep), replace(within, origin_ns=origin))

    @cached_property
    def _ends(self) -> list[int]:
        """How many windows there are up to the end of each sweep."""
        return np.cumsum([0, *(len(source.plan.windows) for source in self._sources)]).tolist()

    @cached_property
    def _described(self) -> list[SourceDescription]:
        return [source.describe() for source in self._sources]

    @cached_property
    def _fields(self) -> dict[str, dict[str, Any]]:
        """The fields of all samples; of what differs between sweeps, None."""
        seen = [described.fields for described in self._described if described.n_samples]
        fields: dict[str, dict[str, Any]] = {}
        for name in ("response", "stimulus"):
            about = [each[name] for each in seen if name in each]
            if about:
                shapes = {tuple(each.get(name, each["response"])["shape"]) for each in seen}
                shape = list(shapes.pop()) if len(shapes) == 1 else [None, 1]
                known = {key: about[0][key] if _agree(about, key) else None for key in _SAID}
                fields[name] = {**known, "shape": shape, "columns": [name]}
                fields[name + _MASK] = {"dtype": "bool", "shape": shape, "unit": "", "columns": [name]}
        return fields

    def describe(self) -> SourceDescription:
        """Count the windows and says what is in them.

        Raises:
            SourceError: the file is damaged.
        """
        dropped: Counter[str] = Counter()
        for each in self._described:
            dropped.update(each.report["windows"]["dropped"])
        sweeps = self.recording.sweeps
        short = sum(not each.n_samples for each in self._described)
        if short:
            self.recording.warn(f"{short} of {len(sweeps)} sweeps are shorter than a window")
        clamps = Counter(str(sweep.metadata["clamp"]) for sweep in sweeps)
        report = {
            "path": name_of(self.recording.path),
            **self.recording.identity,
            "support_rule": "each sweep by itself",
            "windows": {"emitted": self._ends[-1], "dropped": dict(dropped)},
            "bins_in_tails": sum(each.report["bins_in_tails"] for each in self._described),
            "sweeps": {
                "total": len(sweeps),
                "without_windows": short,
                "without_stimulus": sum(sweep.stimulus is None for sweep in sweeps),
                "clamp": dict(sorted(clamps.items())),
            },
            "warnings": list(self.recording.warnings),
        }
        empty = "" if self._ends[-1] else "no window fits: no sweep is as long (give a smaller sequence_length)"
        return SourceDescription(self._ends[-1], self._fields, report, empty)

    def read(self, start: int, stop: int) -> Iterator[tuple[Fields, dict[str, Any]]]:
        """Return the windows [start, stop) in order.

        Yields:
            (fields, metadata): response and, where any sweep of the file has one, stimulus, float32 (n, 1), with masks,
            bool; a sweep without a stimulus has NaN. The metadata tell of the sweep: its number, clamp, electrode,
            protocol and series. Times are on the sweep's own clock, which in many files begins at 0 for every sweep.

        Raises:
            IndexError: there are no such windows.
            SourceError: the file is damaged.
        """
        if not 0 <= start <= stop <= self._ends[-1]:
            raise IndexError(f"windows [{start}, {stop}) of {self._ends[-1]} in {self.recording.path}")
        for i, (source, sweep) in enumerate(zip(self._sources, self.recording.sweeps, strict=True)):
            before, after = self._ends[i : i + 2]
            first, last = max(start, before) - before, min(stop, after) - before
            for number, (read, metadata) in enumerate(source.read(first, last) if first < last else ()):
                missing = np.full_like(read["response"], np.nan)
                fields = {name: read.get(name, missing) for name in self._fields if not name.endswith(_MASK)}
                masks = {f"{name}{_MASK}": ~np.isnan(values) for name, values in fields.items()}
                about = {"window_index": before + first + number, "sweep": i, **sweep.metadata}
                yield {**fields, **masks}, {**metadata, **about}
            for each in filter(None, (sweep.response, sweep.stimulus)):
                each.release()


def _agree(about: list[dict[str, Any]], key: str) -> bool:
    return all(each[key] == about[0][key] for each in about)
