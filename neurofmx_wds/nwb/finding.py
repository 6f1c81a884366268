"""The objects of an NWB file that hold data: where each is, what it is, and which modality it belongs to.

Knows pynwb's types, and those of extensions by their names and structure; reads no data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hdmf.common import DynamicTable
from hdmf.container import Data
from hdmf.utils import LabelledDict
from pynwb import NWBFile, ProcessingModule, TimeSeries
from pynwb.base import Images
from pynwb.behavior import (
    BehavioralEpochs,
    BehavioralEvents,
    BehavioralTimeSeries,
    CompassDirection,
    EyeTracking,
    Position,
    PupilTracking,
    SpatialSeries,
)
from pynwb.ecephys import LFP, ElectricalSeries, SpikeEventSeries
from pynwb.icephys import PatchClampSeries
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries, IntervalSeries
from pynwb.ophys import RoiResponseSeries

from .tables import TimedColumn, timed_columns
from .units import SECONDS, Clock
from .views import Rescaled

BEHAVIOR_CONTAINERS = (
    Position,
    CompassDirection,
    BehavioralTimeSeries,
    BehavioralEvents,
    BehavioralEpochs,
    EyeTracking,
    PupilTracking,
)
#: Words in the names of modules and series that are obviously of behavior.
_BEHAVIOR_WORDS = re.compile(
    "behav.*|run(ning)?|wheel.*|treadmill.*|locomot.*|speed|veloc.*|accel.*|position.*|eyes?|pupils?|gaze|saccades?"
    "|lick.*|whisk.*|pose|movements?|kinemat.*|heading|joystick|lever|encoder|cursor|hand|paws?|nose|posture|breath.*"
    "|respir.*|sniff.*|trajector.*"
)
#: Modules of these words hold recordings of neurons, whatever their series are called.
_NEURAL_WORDS = re.compile(
    ".*ephys|ophys|ogen|opto.*|lfp|spikes?|spikesorting|sorting|imaging|photometry|stim.*|fluor.*|calcium"
)
#: Types of extensions that hold the responses of ROIs or fibers, and images over time.
_RESPONSES, _IMAGES = re.compile("(FiberPhotometry|Microscopy)ResponseSeries"), re.compile("MicroscopySeries")
#: Names of NWBFile's groups in the file, where they differ.
_PLACES = {"stimulus": "stimulus/presentation", "stimulus_template": "stimulus/templates"}


@dataclass(frozen=True)
class Found:
    """An object of a file that holds data.

    Attributes:
        path: where it is in the file, such as ``processing/behavior/Position/xy``; with links, the last path by name.
        holder: the container that holds it; None if it lies in a module or in one of the file's groups itself.
        series: the pynwb object, or a `TimedColumn` of a table.
        kind: "series" (samples over time), "video", "sweep", "events", "epochs" (states with a start and a stop),
            "intervals" (a table of them), "units", or "timeless" (nothing says when).
        links: the other paths that lead to it.
        clock: seconds in one unit of its times, and the second that is its 0.
    """

    path: str
    holder: Any
    series: Any
    kind: str
    links: tuple[str, ...] = ()
    clock: Clock = SECONDS

    @property
    def type(self) -> str:
        """The name of its NWB type."""
        return str(getattr(self.series, "neurodata_type", type(self.series).__name__))

    def on_clock(self, times: Any) -> Any:
        """Return times (a sliceable dataset) in seconds of the session."""
        return times if self.own_clock is None else self.own_clock(times)

    @property
    def own_clock(self) -> Callable[[Any], Any] | None:
        """What makes seconds of the session of its times; None where they are in such seconds."""
        return None if self.clock == SECONDS else lambda times: Rescaled(times, *self.clock)

    @property
    def place(self) -> str:
        """The name of its processing module; else the group of the file, such as "acquisition"."""
        parts = self.path.split("/")
        return parts[1] if parts[0] == "processing" else parts[0]

    @property
    def holder_path(self) -> str:
        """The path of what it lies in."""
        return self.path.rsplit("/", 1)[0]

    @property
    def in_recording(self) -> bool:
        """Whether it is in acquisition, processing or events: stimulus, analysis and scratch are taken by path only."""
        return self.path.startswith(("acquisition/", "processing/", "events/"))

    @property
    def can_be_field(self) -> bool:
        """Whether it can be asked for by its path."""
        return self.kind not in ("timeless", "sweep")

    @property
    def is_voltage(self) -> bool:
        """Whether it is a continuous recording from electrodes."""
        return isinstance(self.series, ElectricalSeries) and not isinstance(self.series, SpikeEventSeries)

    @property
    def is_ophys(self) -> bool:
        """Whether it holds responses of ROIs or optical fibers."""
        return isinstance(self.series, RoiResponseSeries) or _is_a(self.series, _RESPONSES)

    @property
    def is_behavior(self) -> bool:
        """Whether it is obviously of behavior: by its container or type, or by its module's or its own name."""
        if self.kind not in ("series", "epochs"):
            return False
        if isinstance(self.holder, BEHAVIOR_CONTAINERS) or isinstance(self.series, SpatialSeries):
            return True
        if self.type == "LabelSeries":  # of ndx-labels: labels of behavior, frame by frame
            return True
        if type(self.series) not in (TimeSeries, TimedColumn, IntervalSeries):
            return False
        place = "" if self.place == "acquisition" else self.place
        if has_word(place, _BEHAVIOR_WORDS):
            return True
        named = isinstance(self.series, TimeSeries) and has_word(self.series.name, _BEHAVIOR_WORDS)
        return named and not has_word(place, _NEURAL_WORDS)


def find_objects(nwb: NWBFile, path_of: Callable[[Any], str]) -> list[Found]:
    """Return the objects of a file that hold data, by path, each once.

    Args:
        nwb: the file, as pynwb reads it.
        path_of: returns the path of a pynwb object in the file.
    """
    found: dict[tuple[int, str], Found] = {}
    for path, holder, item in _walk(nwb, "", path_of, set()):
        for each in _found_in(path, holder, item):
            key = id(item), each.path.removeprefix(path)
            known = found.get(key, each)
            paths = sorted({known.path, *known.links, each.path})
            best = each if each.path == paths[-1] else known
            found[key] = replace(best, links=tuple(paths[:-1]))
    return sorted(found.values(), key=lambda each: each.path)


def _walk(container: Any, path: str, path_of: Callable[[Any], str], seen: set[int]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, holder, object) of all objects in a container, wherever they are stored or linked."""
    seen.add(id(container))
    holder = None if isinstance(container, (NWBFile, ProcessingModule)) else container
    for child in container.children:
        child_path = path_of(child)
        if not isinstance(child, Data) or child_path.startswith("scratch/"):
            yield child_path, holder, child
            if id(child) not in seen and not isinstance(child, (DynamicTable, Images)):
                yield from _walk(child, child_path, path_of, seen)
    for field, items in container.fields.items():
        linked = items.items() if isinstance(items, LabelledDict) else ()
        group = _PLACES.get(field, field) if isinstance(container, NWBFile) else path
        for name, child in linked:
            if isinstance(child, (TimeSeries, DynamicTable)) and child.parent is not container:
                yield f"{group}/{name}", holder, child


def _found_in(path: str, holder: Any, item: Any) -> Iterator[Found]:
    kind = _kind_of(item, path)
    if kind == "columns":
        yield from (Found(f"{path}/{each.name}", item, each, "series") for each in timed_columns(item))
    elif kind is not None:
        yield Found(path, holder, item, kind)


def _kind_of(item: Any, path: str) -> str | None:
    """Return what an object holds; "columns" of a table whose rows have times, None if it holds no data."""
    if isinstance(item, TimeSeries):
        return _kind_of_series(item)
    if path.startswith("general/"):
        return None
    if isinstance(item, DynamicTable):
        return _kind_of_table(item) if len(item) else None
    if isinstance(item, Images):
        return "timeless"
    times: Any = getattr(item, "timestamps", None)
    if len(getattr(times, "shape", ())) == 1 and times.dtype.kind in "iuf":
        return "events"
    arrays = [item.data] if isinstance(item, Data) else item.fields.values()
    holds_others = any(isinstance(each, (TimeSeries, DynamicTable)) for each in item.children)
    return "timeless" if not holds_others and any(_is_array(each) for each in arrays) else None


def _kind_of_series(item: TimeSeries) -> str:
    kinds = (
        ((AnnotationSeries, SpikeEventSeries), "events"),
        (IntervalSeries, "epochs"),
        (PatchClampSeries, "sweep"),
        (ImageSeries, "video"),
    )
    known = next((kind for types, kind in kinds if isinstance(item, types)), "series")
    return "video" if _is_a(item, _IMAGES) else known


def _kind_of_table(item: DynamicTable) -> str:
    columns = set(item.colnames)
    if "spike_times" in columns:
        return "units"
    if {"start_time", "stop_time"} <= columns:
        return "intervals"
    if ("timestamp" in columns and _is_a(item, re.compile("EventsTable"))) or {"event_times", "label"} <= columns:
        return "events"
    return "columns" if any(True for _ in timed_columns(item)) else "timeless"


def _is_array(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return shape is not None and len(shape) > 0 and 0 not in shape and np.dtype(value.dtype).kind in "biufc"


def _is_a(item: Any, name: re.Pattern[str]) -> bool:
    """Return whether an object's type, or one that it extends, has a name, as types of extensions have no class."""
    return any(name.fullmatch(each.__name__) for each in type(item).__mro__)


def has_word(name: str, words: re.Pattern[str]) -> bool:
    """Return whether one of the words of a name, such as "running" in "runningSpeed", matches."""
    return any(words.fullmatch(word.lower()) for word in re.findall("[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name))


def of_modality(every: list[Found], modality: str) -> list[Found]:
    """Return the objects of a modality other than spikes, or those at or below a path such as ``acquisition/x``."""
    if "/" in modality:
        return [f for f in at_path(every, modality) if f.can_be_field]
    if modality == "video":
        return [f for f in every if f.kind == "video"]
    every = [f for f in every if f.in_recording]
    if modality == "behavior":
        return [f for f in every if f.is_behavior]
    if modality == "events":
        return [f for f in every if f.kind == "events" and not isinstance(f.series, SpikeEventSeries)]
    if modality == "ophys":
        return [f for f in every if f.is_ophys]
    electrical = [f for f in every if modality == "lfp" and f.is_voltage]
    return [f for f in electrical if isinstance(f.holder, LFP)] or electrical


def at_path(every: list[Found], path: str) -> list[Found]:
    """Return the objects at or below a path."""
    below = f"{path.strip('/')}/"
    return [f for f in every if any(f"{path}/".startswith(below) for path in (f.path, *f.links))]
