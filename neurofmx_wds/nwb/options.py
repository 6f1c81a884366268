"""How a recording is read, as one value.

Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
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
