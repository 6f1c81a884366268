"""The time series of an NWB file: where each is, and which modality it belongs to.

Knows pynwb's types; reads no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hdmf.common import DynamicTable
from hdmf.utils import LabelledDict
from pynwb import NWBFile, TimeSeries
from pynwb.behavior import (
    BehavioralEvents,
    BehavioralTimeSeries,
    CompassDirection,
    EyeTracking,
    Position,
    PupilTracking,
    SpatialSeries,
)
from pynwb.core import MultiContainerInterface
from pynwb.ecephys import LFP, ElectricalSeries, SpikeEventSeries
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries
from pynwb.ophys import RoiResponseSeries

from .tables import TimedColumn, timed_columns

BEHAVIOR_CONTAINERS = (
    Position,
    CompassDirection,
    BehavioralTimeSeries,
    BehavioralEvents,
    EyeTracking,
    PupilTracking,
)
#: The modalities that are converted by default, in this order.
MODALITIES = ("spikes", "behavior", "lfp", "ophys", "events")


@dataclass(frozen=True)
class Found:
    """A time series of a file.

    Attributes:
        path: where it is in the file, such as ``processing/behavior/Position/xy``.
        place: the name of its module, or "acquisition".
        holder: the pynwb container that holds it; None if it lies in the module itself.
        series: the pynwb TimeSeries, or a `TimedColumn` of a table.
    """

    path: str
    place: str
    holder: Any
    series: Any

    @property
    def is_voltage(self) -> bool:
        """Whether it is a continuous recording from electrodes."""
        return isinstance(self.series, ElectricalSeries) and not isinstance(self.series, SpikeEventSeries)

    @property
    def is_ophys(self) -> bool:
        """Whether it holds responses of ROIs or optical fibers."""
        photometry = self.series.neurodata_type == "FiberPhotometryResponseSeries"  # of an often absent extension
        return isinstance(self.series, RoiResponseSeries) or photometry

    @property
    def is_behavior(self) -> bool:
        """Whether it is of behavior: by its container, by its type, or, a plain series, by its module's name."""
        plain = type(self.series) in (TimeSeries, TimedColumn) and self.place == "behavior"
        return isinstance(self.holder, BEHAVIOR_CONTAINERS) or isinstance(self.series, SpatialSeries) or plain


def find_series(nwb: NWBFile) -> list[Found]:
    """Return the time series in acquisition and in the processing modules, by path, each once."""
    places = [("acquisition", "acquisition", nwb.acquisition)]
    places += [(f"processing/{m.name}", m.name, m.data_interfaces) for m in nwb.processing.values()]
    found = [
        each
        for path, place, items in places
        for name, item in items.items()
        for each in _series_in(f"{path}/{name}", place, None, item)
    ]
    return list({id(each.series): each for each in sorted(found, key=lambda each: each.path)}.values())


def _series_in(path: str, place: str, holder: Any, item: Any) -> Iterator[Found]:
    if isinstance(item, TimeSeries):
        yield Found(path, place, holder, item)
    elif isinstance(item, MultiContainerInterface):
        for group in item.fields.values():
            for name, child in group.items() if isinstance(group, LabelledDict) else ():
                yield from _series_in(f"{path}/{name}", place, item, child)
    elif isinstance(item, DynamicTable):
        yield from (Found(f"{path}/{each.name}", place, item, each) for each in timed_columns(item))


def of_modality(every: list[Found], modality: str) -> list[Found]:
    """Return the series of a modality other than spikes, or those at or below a path such as ``acquisition/x``."""
    if "/" in modality:
        return [f for f in every if f"{f.path}/".startswith(f"{modality.strip('/')}/")]
    if modality == "behavior":
        return [f for f in every if f.is_behavior]
    if modality == "events":
        return [f for f in every if isinstance(f.series, AnnotationSeries)]
    if modality == "ophys":
        return [f for f in every if f.is_ophys]
    if modality == "video":
        return [f for f in every if isinstance(f.series, ImageSeries)]
    electrical = [f for f in every if modality == "lfp" and f.is_voltage]
    return [f for f in electrical if isinstance(f.holder, LFP)] or electrical
