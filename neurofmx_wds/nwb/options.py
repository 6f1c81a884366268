"""How a recording is read, as one value.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

#: The modalities that are converted by default, in this order.
MODALITIES = ("spikes", "behavior", "lfp", "ophys", "events")


@dataclass(frozen=True)
class RecordingOptions:
    """How a recording is read.

    Attributes:
        time_scale: seconds per unit of the Units table's times, where a file does not use seconds: 1/1000 for ms.
        decode_video: decode the video files that it names below its directory, instead of only numbering their frames.
        event_values: beside the counts of events, give the numbers that belong to them.
        min_confidence: pose of a lower confidence becomes NaN.
        clocks: path of an object → seconds in one unit of its times, and the second that is its 0.
        scales: path of a series → factor and offset that turn what is stored into values, instead of its own.
        transposed: paths of series that have time on their second axis.
        modalities: what is asked for; the paths of Units tables in it say which are read, and "events" asked for by
            name has those of behavior, too.
        units, electrodes, rois: expressions (see `choosing.Choice`) that choose rows of these tables; None: all.
    """

    time_scale: Fraction = Fraction(1)
    decode_video: bool = False
    event_values: bool = False
    min_confidence: float = 0.0
    modalities: tuple[str, ...] | None = None
    units: str | None = None
    electrodes: str | None = None
    rois: str | None = None
    clocks: Mapping[str, tuple[Fraction, Fraction]] = field(default_factory=dict)
    scales: Mapping[str, tuple[Fraction, Fraction]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
