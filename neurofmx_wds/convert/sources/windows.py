"""How a recording is cut into windows, or stored as segments: a value that refuses bad settings when it is made.

Each setting is stated here and nowhere else. Knows the clock; knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from ...nwb.choosing import Choice
from ...nwb.clock import MAX_NS, NS_PER_S, Grid, to_ns
from ...nwb.methods import BEHAVIOR_METHODS, LFP_METHODS
from ...nwb.options import RecordingOptions
from ..options import (
    Number,
    Option,
    decimal,
    exact,
    integer,
    is_positive,
    is_whole,
    names,
    number,
    option,
    options_of,
    refused,
)
from .kinds import TIMED
from .settings import Chosen

LAYOUTS = ("windows", "segments")
SPIKE_FORMATS = ("dense", "ragged", "both")

_NWB = ("nwb",)
_ALONG_TIME = ("nwb", TIMED)


def _is_bin_width(value: Number) -> bool:
    try:
        return exact(value) * 1_000_000 >= 1
    except ValueError:
        return False


def _is_count_dtype(name: str) -> bool:
    try:
        return np.dtype(name).kind in "iuf"
    except TypeError:
        return False


def _are_lines(value: tuple[tuple[str, Number, Number], ...] | None) -> bool:
    """Return whether each is a path and two numbers."""
    try:
        return all(isinstance(path, str) and path and [exact(a), exact(b)] for path, a, b in value or ())
    except (TypeError, ValueError):
        return False


#: Settings that the manifest lists only where they are set, so that older datasets stay the same.
_CHOICES = ("units", "electrodes", "rois")
NEWER = ("event_values", "min_confidence", *_CHOICES, "clock", "scale", "transposed")


@dataclass(frozen=True)
class WindowConfig(Chosen):
    """How a recording, or arrays along time, are cut into windows.

    Raises:
        ValueError: a setting is out of range; the message begins with its name.
    """

    bin_size_ms: Number = option(
        10.0,
        Option(
            "Width of a time bin in ms, exact: 0.1 is a tenth, 100/3 a third of 100.",
            parse=number,
            metavar="MS",
            check=_is_bin_width,
            rule="must be a number of at least 0.000001 (1 ns)",
            kinds=_ALONG_TIME,
        ),
    )
    sequence_length: int = option(
        100,
        Option(
            "Bins in a window.",
            parse=integer,
            metavar="N",
            check=lambda value: is_whole(value, least=1),
            rule="must be at least 1",
            kinds=_ALONG_TIME,
        ),
    )
    overlap: float = option(
        0.5,
        Option(
            "Share of a window that the next one has in common with it, in [0, 1).",
            parse=decimal,
            metavar="SHARE",
            check=lambda value: 0 <= value < 1,
            rule="must be at least 0 and less than 1",
            kinds=_ALONG_TIME,
        ),
    )
    intervals: tuple[tuple[float | Fraction, float | Fraction], ...] | None = option(
        None,
        Option(
            "Keep windows inside these seconds; may be given several times. In Python: a list of (start, stop), where "
            "floats become the nearest ns, and a Fraction or a string is exact.",
            parse=decimal,
            metavar="START STOP",
            check=lambda value: all(start < stop for start, stop in value or ()),
            rule="each must be (start, stop) with start < stop",
            kinds=_ALONG_TIME,
            flag="interval",
            unset="no limit",
            rare=True,
        ),
    )
    origin_ns: int = option(
        0,
        Option(
            "Start of bin 0 in ns.",
            check=lambda value: is_whole(value) and abs(value) <= MAX_NS,
            rule="must be a whole number of nanoseconds, of 126 years at most",
            kinds=_ALONG_TIME,
            flag=None,
        ),
    )
    spike_dtype: str = option(
        "float32",
        Option(
            "Data type of spike counts, such as uint8; a count that does not fit is an error.",
            metavar="DTYPE",
            check=_is_count_dtype,
            rule="must be an integer or floating dtype",
            kinds=_NWB,
            rare=True,
        ),
    )
    spike_format: str = option(
        "dense",
        Option(
            "dense: counts in bins (spikes). ragged: the time of each spike in ns from the start of the window "
            "(spike_times) and its unit (spike_units). both: all three.",
            choices=SPIKE_FORMATS,
            kinds=_NWB,
        ),
    )
    time_scale: Number = option(
        1.0,
        Option(
            "Seconds per unit of spike times, for files whose times are not in seconds: 0.001 for ms, 1/30000 for "
            "samples at 30 kHz.",
            metavar="S",
            check=is_positive,
            rule="must be a positive number of seconds",
            kinds=_NWB,
            rare=True,
        ),
    )
    behavior_method: str = option(
        "auto",
        Option(
            "How series other than electrical ones and events are brought into bins. auto: the mean of each bin, or "
            "linear interpolation where there is less than one sample in half a bin; previous for states.",
            choices=BEHAVIOR_METHODS,
            kinds=_ALONG_TIME,
            rare=True,
        ),
    )
    lfp_method: str = option(
        "auto",
        Option(
            "The same for electrical series and arrays. native keeps their own rate, which auto does where there are "
            "at least two samples in a bin.",
            choices=LFP_METHODS,
            kinds=_ALONG_TIME,
            rare=True,
        ),
    )
    max_gap_s: float = option(
        0.25,
        Option(
            "A longer step between samples is a gap: nothing is interpolated across it.",
            parse=decimal,
            metavar="S",
            check=lambda value: 0 < value < float("inf"),
            rule="must be a positive number of seconds",
            kinds=_ALONG_TIME,
            rare=True,
        ),
    )
    decode_video: bool = option(
        False,
        Option(
            "Store the frames of video files that lie beside the recording, instead of their numbers (extra: video). "
            "URLs are never fetched.",
            parse=bool,
            kinds=_NWB,
            rare=True,
        ),
    )
    align: str | None = option(
        None,
        Option(
            "Make one window for each row of this table of intervals or events, such as trials, instead of windows all "
            "along the recording: its name or its path in the file.",
            metavar="TABLE",
            kinds=_NWB,
            unset="off",
        ),
    )
    event: str = option(
        "start_time",
        Option(
            "The table's column of times to align to, in seconds, or a sum such as start_time+cue_time. Events have a "
            "time of their own.",
            metavar="COLUMN",
            kinds=_NWB,
        ),
    )
    before_s: Number = option(
        0.0, Option("Seconds from the start of a window to its event.", metavar="S", kinds=_NWB, flag="before")
    )
    after_s: Number = option(
        1.0, Option("Seconds from the event to the end of its window.", metavar="S", kinds=_NWB, flag="after")
    )
    event_values: bool = option(
        False,
        Option(
            "Beside the counts of events, store the numbers that belong to them, such as amounts of reward: the mean "
            "of each bin, NaN where there is no event.",
            parse=bool,
            kinds=_NWB,
            rare=True,
        ),
    )
    min_confidence: float = option(
        0.0,
        Option(
            "Pose of a lower confidence becomes NaN.",
            parse=decimal,
            metavar="C",
            check=lambda value: 0 <= value < float("inf"),
            rule="must be a number that is not negative",
            kinds=_NWB,
            unset="all",
            rare=True,
        ),
    )
    clock: tuple[tuple[str, Number, Number], ...] | None = option(
        None,
        Option(
            "Times of an object that are not seconds of the session: its path in the file, the seconds in one unit of "
            "its times (1/1000 for ms, 1/30000 for samples at 30 kHz; of a series without a usable rate, the seconds "
            "from sample to sample), and the second at which they are 0. May be given several times.",
            metavar="PATH SCALE START",
            check=lambda value: _are_lines(value) and all(exact(scale) > 0 for _, scale, _ in value or ()),
            rule="each must be (path, seconds per unit, second of 0)",
            kinds=_NWB,
            unset="seconds",
            rare=True,
        ),
    )
    scale: tuple[tuple[str, Number, Number], ...] | None = option(
        None,
        Option(
            "Values of a series: its path in the file, and the factor and the offset that make values of what is "
            "stored, instead of its own conversion and offset. May be given several times.",
            metavar="PATH FACTOR OFFSET",
            check=lambda value: _are_lines(value),
            rule="each must be (path, factor, offset)",
            kinds=_NWB,
            unset="as the file says",
            rare=True,
        ),
    )
    transposed: tuple[str, ...] | None = option(
        None,
        Option(
            "Paths of series that have time on the second axis of their data, where the file does not tell.",
            parse=names,
            metavar="PATH,PATH",
            check=lambda value: value is None or len(value) > 0,
            rule="must name at least one",
            kinds=_NWB,
            unset="found out",
            rare=True,
        ),
    )
    layout: str = option(
        "windows",
        Option(
            "What a sample is: windows, or segments: everything stored once, for windows that are cut while training.",
            choices=LAYOUTS,
            kinds=_ALONG_TIME,
        ),
    )
    segment_s: float = option(
        60.0,
        Option(
            "Seconds in a segment.",
            parse=decimal,
            metavar="S",
            check=lambda value: 0.001 <= value <= 1e6,
            rule="must be seconds from 0.001 to 1000000",
            kinds=_ALONG_TIME,
        ),
    )

    units: str | None = option(
        None,
        Option(
            "Take only the units for which this is true: comparisons of columns of the units table, or of their "
            "electrodes' location, with values, joined by and, or, not.",
            metavar="EXPR",
            kinds=_NWB,
            unset="all",
        ),
    )
    electrodes: str | None = option(
        None,
        Option(
            "The same for the channels of electrical series, by the electrodes table.",
            metavar="EXPR",
            kinds=_NWB,
            unset="all",
            rare=True,
        ),
    )
    rois: str | None = option(
        None,
        Option("The same for the ROIs of ophys, by their table.", metavar="EXPR", kinds=_NWB, unset="all", rare=True),
    )

    def __post_init__(self) -> None:
        self._normalize()
        super().__post_init__()
        self._check_modalities()
        self._check_layout()
        if self.align is not None:
            self._check_aligned()
            object.__setattr__(self, "sequence_length", self.bins_before + self.bins_after)
        for each in options_of(self):
            if each.name in ("event", "before_s", "after_s") and self.align is None:
                if getattr(self, each.name) != each.default:
                    raise refused(self, each.name, "goes together with align")

    def _normalize(self) -> None:
        """Bring values into the form that JSON holds, so that a configuration read from a manifest is equal."""
        if self.intervals is not None:
            pairs = tuple((_seconds(start), _seconds(stop)) for start, stop in self.intervals)
            object.__setattr__(self, "intervals", pairs)
        for name in ("clock", "scale"):
            if (lines := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(tuple(map(_as_text, line)) for line in lines))
        if self.transposed is not None:
            object.__setattr__(self, "transposed", tuple(self.transposed))
        for each in options_of(self):
            if isinstance(value := getattr(self, each.name), Fraction):
                object.__setattr__(self, each.name, str(value))

    def _check_modalities(self) -> None:
        for name in _CHOICES:
            if getattr(self, name) is not None:
                try:
                    Choice(getattr(self, name))
                except ValueError as error:
                    raise refused(self, name, str(error)) from None
        if "icephys" in (self.modalities or ()) and len(self.modalities or ()) > 1:
            why = "sweeps (icephys) have clocks of their own: convert them into a dataset of their own"
            raise refused(self, "modalities", why)
        try:
            Grid(self.bin_width_ns)
        except ValueError:
            why = "too large, or too fine a fraction, for 64-bit time"
            raise refused(self, "bin_size_ms", why) from None

    def _check_layout(self) -> None:
        """Refuse settings that the layout does not heed."""
        heeded = ("modalities", "layout", "segment_s", "time_scale", "max_gap_s", "decode_video", *NEWER)
        for each in options_of(self):
            if getattr(self, each.name) == each.default:
                continue
            if self.layout == "segments" and each.name not in heeded:
                raise refused(self, each.name, "segments hold no windows: choose it when they are loaded (Windows)")
            if self.layout == "windows" and each.name == "segment_s":
                raise refused(self, each.name, "goes together with layout segments")

    def _check_aligned(self) -> None:
        if self.origin_ns:
            raise refused(self, "origin_ns", "where windows are aligned to an event, it is the origin")
        for name in ("before_s", "after_s"):
            if not self._whole_bins(getattr(self, name)):
                raise refused(self, name, "must be seconds that make a whole number of bins, of 126 years at most")
        if self.bins_before + self.bins_after < 1:
            if self.bins_before < 0:
                raise refused(self, "before_s", f"windows must begin before they end, {self.after_s} s after the event")
            raise refused(self, "after_s", f"windows must end after they begin, {self.before_s} s before the event")

    def _whole_bins(self, seconds: Number) -> bool:
        try:
            ns = exact(seconds) * NS_PER_S
        except ValueError:
            return False
        return abs(ns) <= MAX_NS and (ns / self.bin_width_ns).denominator == 1

    @property
    def bins_before(self) -> int:
        """Bins from the start of an aligned window to its event; negative where it begins after it."""
        return int(exact(self.before_s) * NS_PER_S / self.bin_width_ns)

    @property
    def bins_after(self) -> int:
        """Bins from the event of an aligned window to its end."""
        return int(exact(self.after_s) * NS_PER_S / self.bin_width_ns)

    @property
    def bin_width_ns(self) -> Fraction:
        """Bin width in ns: exact, an integer wherever it is one."""
        return exact(self.bin_size_ms) * 1_000_000

    @property
    def intervals_ns(self) -> list[tuple[int, int]] | None:
        """`intervals` in ns."""
        return None if self.intervals is None else [(_ns(start), _ns(stop)) for start, stop in self.intervals]

    @property
    def reading(self) -> RecordingOptions:
        """How a recording is read."""
        return RecordingOptions(
            self.seconds_per_time, self.decode_video, self.event_values, self.min_confidence, self.modalities,
            self.units, self.electrodes, self.rois,
            clocks=_lines(self.clock), scales=_lines(self.scale), transposed=self.transposed or (),
        )  # fmt: skip

    @property
    def seconds_per_time(self) -> Fraction:
        """`time_scale`, exact."""
        return exact(self.time_scale)

    def within(self, start: int, stop: int) -> WindowConfig:
        """Return the same settings with windows also inside [start, stop) (ns), exactly."""
        given = self.intervals_ns
        cut = [(max(a, start), min(b, stop)) for a, b in ([(start, stop)] if given is None else given)]
        inside = tuple((Fraction(a, NS_PER_S), Fraction(b, NS_PER_S)) for a, b in cut if a < b)
        return replace(self, intervals=inside)


def _as_text(value: Any) -> Any:
    """Return a number as its digits, so that JSON holds it exactly."""
    return str(value) if isinstance(value, (int, float, Fraction)) and not isinstance(value, bool) else value


def _lines(lines: tuple[tuple[str, Number, Number], ...] | None) -> dict[str, tuple[Fraction, Fraction]]:
    return {path: (exact(a), exact(b)) for path, a, b in lines or ()}


def _seconds(value: Number) -> float | Fraction:
    return exact(value) if isinstance(value, (str, Fraction)) else float(value)


def _ns(seconds: float | Fraction) -> int:
    if isinstance(seconds, Fraction):
        return max(-MAX_NS, min(MAX_NS, round(seconds * NS_PER_S)))
    return int(to_ns(seconds))
