"""The settings of windows that are cut from segments while training, as a frozen value.

Knows lengths, bins and names; knows nothing of recordings or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, Literal, NoReturn

import numpy as np

from ..nwb.clock import MAX_NS, NS_PER_S, Grid, exact_number, stride_of
from ..nwb.methods import BEHAVIOR_METHODS, LFP_METHODS

Seconds = float | str | Fraction
SpikeForm = Literal["dense", "ragged", "events"]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How the windows of a dataset of segments are cut while it is loaded.

    Times are exact: ``0.1``, ``"1/3"`` and ``Fraction(1, 3)`` mean just that. Windows of ``length_s`` begin every
    ``stride_s`` seconds wherever the first modality was recorded, or one lies around each event of a table (`align`).

    Args:
        length_s: seconds in a window, a whole number of bins; not with `align`.
        stride_s: seconds from the start of a window to the next, a whole number of bins; by default `length_s`.
        overlap: instead of `stride_s`: share of a window that the next one has in common with it, 0 up to 1.
        jitter: move each window by a random time below `stride_s`, another one in each epoch, within the stretch that
            it lies in. The times depend on the loader's seed, the epoch and the window only.
        bin_ms: width of a bin, ms.
        spikes: "dense": counts, (B, bins, units); "ragged": ``spike_times`` (B, n) int64, ns from the window's start,
            ``spike_units`` (B, n) int32 and ``spike_mask`` (B, n) bool, n a multiple of 8; "events": ``spike_times``
            and ``spike_units`` (n,) of all windows one after the other, and ``spike_offsets`` (B + 1,) int64.
        spike_dtype: dtype of dense counts; a count that does not fit is an error.
        behavior_method: how behavior goes onto the bins, as of ``convert``: "auto", "bin_mean", "linear", "previous",
            "count".
        lfp_method: how electrical series do: "auto", "native" (their own rate), "bin_mean", "linear".
        max_gap_s: seconds; a longer step between samples is a gap. At least that of the conversion.
        align: name or path of a table of intervals or events, of a series of events, or of a container of events of
            behavior: one window around each of its rows, whose cells are metadata.
        event: the column of that table with the time of the event; events have a time of their own.
        before_s: seconds from the window's start to the event, a whole number of bins.
        after_s: seconds from the event to the window's stop, a whole number of bins.
        within: keep windows inside these intervals: pairs of seconds, or the name of a table of intervals.
        origin_ns: where bin 0 starts, ns.

    Raises:
        ValueError: a value is out of range or does not go together with another; the message names it.

    Example:
        >>> windows = Windows(length_s=1, overlap=0.5, bin_ms=20)
        >>> windows.sequence_length, windows.stride
        (50, 25)
    """

    length_s: Seconds | None = None
    stride_s: Seconds | None = None
    overlap: float | None = None
    jitter: bool = False
    bin_ms: Seconds = 10
    spikes: SpikeForm = "dense"
    spike_dtype: str = "float32"
    behavior_method: str = "auto"
    lfp_method: str = "auto"
    max_gap_s: float = 0.25
    align: str | None = None
    event: str = "start_time"
    before_s: Seconds | None = None
    after_s: Seconds | None = None
    within: str | Sequence[tuple[Seconds, Seconds]] | None = None
    origin_ns: int = 0
    modalities: tuple[str, ...] | None = None
    """Set by the loader: what is read; the first decides where windows are."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("spikes", ("dense", "ragged", "events")),
            ("behavior_method", BEHAVIOR_METHODS),
            ("lfp_method", LFP_METHODS),
        ):
            if getattr(self, name) not in choices:
                self._refuse(name, f"must be one of {', '.join(choices)}")
        self._check_grid()
        if self.align is None:
            self._check_strided()
        else:
            self._check_aligned()
        if self.within is not None and not isinstance(self.within, str):
            pairs = tuple((exact_number(a), exact_number(b)) for a, b in self.within)
            if not all(a < b for a, b in pairs):
                self._refuse("within", "each must be (start, stop) in seconds with start < stop")
            object.__setattr__(self, "within", pairs)

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise ValueError(f"{name}={getattr(self, name)!r}: {rule}")

    def _check_grid(self) -> None:
        try:
            Grid(self.bin_width_ns, self.origin_ns)
        except (ValueError, TypeError) as error:
            self._refuse("bin_ms", f"must be a number of at least 0.000001 (1 ns): {error}")
        try:
            is_count = np.dtype(self.spike_dtype).kind in "iuf"
        except TypeError:
            is_count = False
        if not is_count:
            self._refuse("spike_dtype", "must be an integer or floating dtype")
        if not 0 < self.max_gap_s < float("inf"):
            self._refuse("max_gap_s", "must be a positive number of seconds")

    def _check_strided(self) -> None:
        for name in ("before_s", "after_s"):
            if getattr(self, name) is not None:
                self._refuse(name, "goes together with align")
        if self.length_s is None:
            self._refuse("length_s", "must be given: the seconds in a window")
        if self.stride_s is not None and self.overlap is not None:
            self._refuse("overlap", "give it or stride_s, not both")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            self._refuse("overlap", "must be at least 0 and less than 1")
        for name in ("length_s", "stride_s"):
            if getattr(self, name) is not None and self._bins(name) < 1:
                self._refuse(name, "must be at least one bin")

    def _check_aligned(self) -> None:
        for name in ("length_s", "stride_s", "overlap"):
            if getattr(self, name) is not None:
                self._refuse(name, "does not go together with align: before_s and after_s decide where windows are")
        if self.jitter:
            self._refuse("jitter", "windows around events are not moved")
        if self.origin_ns:
            self._refuse("origin_ns", "with align the event is the origin")
        if self._bins("before_s") + self._bins("after_s", default=1) < 1:
            self._refuse("after_s", "a window must end after it begins")

    def _bins(self, name: str, default: Seconds = 0) -> int:
        """Return a time of this name in bins."""
        given = getattr(self, name)
        try:
            bins = exact_number(default if given is None else given) * NS_PER_S / self.bin_width_ns
        except ValueError:
            self._refuse(name, "must be a number of seconds")
        if bins.denominator != 1 or abs(bins * self.bin_width_ns) > MAX_NS:
            self._refuse(name, f"must be a whole number of bins of {self.bin_ms} ms")
        return int(bins)

    @property
    def bin_width_ns(self) -> Fraction:
        """Width of a bin, ns."""
        return exact_number(self.bin_ms) * 1_000_000

    @property
    def sequence_length(self) -> int:
        """Bins in a window."""
        if self.align is None:
            return self._bins("length_s")
        return self._bins("before_s") + self._bins("after_s", default=1)

    @property
    def stride(self) -> int:
        """Bins from the start of a window to the next."""
        if self.stride_s is not None:
            return self._bins("stride_s")
        return stride_of(self.sequence_length, self.overlap or 0.0)

    @property
    def bins_before(self) -> int:
        """Bins from an aligned window's start to its event."""
        return self._bins("before_s")

    @property
    def intervals_ns(self) -> list[tuple[int, int]] | None:
        """`within` in ns; None where it is not given."""
        if self.within is None or isinstance(self.within, str):
            return None
        return [(_ns(exact_number(a)), _ns(exact_number(b))) for a, b in self.within]

    @property
    def spike_format(self) -> str:
        """The form of the spikes, as a conversion calls it."""
        return "dense" if self.spikes == "dense" else "ragged"

    @property
    def seconds_per_time(self) -> Fraction:
        """Seconds per unit of spike times: stored ones are in ns."""
        return Fraction(1)

    def inside(self, intervals: np.ndarray) -> Windows:
        """Return the same kept inside some intervals, int64 (n, 2), ns."""
        return replace(
            self, within=tuple((Fraction(a, NS_PER_S), Fraction(b, NS_PER_S)) for a, b in intervals.tolist())
        )

    def to_json(self) -> dict[str, Any]:
        """Return all settings as JSON values, in one form however they were written."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        exact = {
            name: exact_number(values[name])
            for name in ("length_s", "stride_s", "bin_ms", "before_s", "after_s")
            if values[name] is not None
        }
        values |= {name: str(value) for name, value in exact.items()}
        if self.within is not None and not isinstance(self.within, str):
            values["within"] = [[str(a), str(b)] for a, b in self.within]
        return values


def _ns(seconds: Fraction) -> int:
    return max(-MAX_NS, min(MAX_NS, round(seconds * NS_PER_S)))
