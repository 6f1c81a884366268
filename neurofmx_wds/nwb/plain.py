"""Recordings that are nothing but series: arrays along time, a sweep.

Knows what windows ask of a recording; has nothing of what NWB files have besides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from .alignable import Alignable
from .clock import no_intervals
from .intervals import Intervals
from .series import Series
from .units import SpikeTrains
from .video import Video


class PlainRecording:
    """A recording of nothing but series; a modality is a slash and the name of a series.

    Attributes:
        path: the file that the series are in.
        series: the series, by name.
        warnings: what was left out or repaired, one line each.
    """

    path: str
    series: dict[str, Series]
    identity: dict[str, Any]
    behavior: tuple[Series, ...] = ()
    events: tuple[Series, ...] = ()
    alignable: tuple[str, ...] = ()
    unit_paths: tuple[str, ...] = ()
    to_align: tuple[Alignable, ...] = ()
    spikes = SpikeTrains(no_intervals()[:, 0], np.empty(0, np.int32), (), {}, (), None, 0)
    spike_support = no_intervals(), "no spikes", 0
    invalid_times = no_intervals()

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.intervals: dict[str, Intervals] = {}
        self.units_table: dict[str, list[Any]] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The series, each as a modality."""
        return tuple(f"/{name}" for name in self.series)

    @property
    def contents(self) -> str:
        """The names of the series, for errors."""
        return ", ".join(self.series)

    def has(self, modality: str) -> bool:
        """Return whether there is such a series."""
        return modality in self.modalities

    def fields_of(self, modality: str) -> dict[str, Series]:
        """Return a series by its field."""
        name = modality.removeprefix("/")
        return {name: self.series[name]}

    def videos_of(self, modality: str) -> dict[str, Video]:
        """Return no videos: frames in an array are a series like any other."""
        return {}

    def has_units(self, path: str) -> bool:
        """Return False: there are no units."""
        return False

    def align_table(self, name: str) -> Intervals | None:
        """Return None: there are no tables."""
        return None

    def why_not(self, path: str) -> str:
        """Return "": every series can be asked for."""
        return ""

    def not_taken(self, modalities: Sequence[str], paths: Collection[str]) -> list[dict[str, str]]:
        """Return an empty list: a series is left out only if others are asked for."""
        return []

    def unused(self) -> list[Any]:
        """Return an empty list, as `not_taken` does."""
        return []

    def warn(self, *lines: str) -> None:
        """Add lines about what was left out or repaired to the warnings, each once."""
        self.warnings += [line for line in dict.fromkeys(lines) if line not in self.warnings]
