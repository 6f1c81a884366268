"""What the conversion asks of a source of samples, and how one is found for a file.

Knows the contract, not the formats: NWB is read in `.nwb`, arrays in `.arrays`, those along time in `.time_major`,
directories of files in `.files` and of images in `.images`, each imported on use.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import SourceError
from ...nwb.clock import MAX_NS, NS_PER_S, Grid, to_ns
from ...storage.location import is_url, is_zarr, name_of, open_binary
from .listing import list_files

if TYPE_CHECKING:
    from ...nwb.recording import Recording
    from .nwb import RecordingSource
    from .sweeps import SweepSource

FILE_FORMATS = ("nwb", "npz", "npy")
DIRECTORY_FORMATS = ("files", "mnist", "cifar10", "cifar100", "imagefolder")  # a source is a directory
FORMATS = ("auto", *FILE_FORMATS, *DIRECTORY_FORMATS)
SUBSETS = ("all", "train", "test")
BEHAVIOR_METHODS = ("auto", "bin_mean", "linear", "previous", "count")
LFP_METHODS = ("auto", "native", "bin_mean", "linear")
SPIKE_FORMATS = ("dense", "ragged", "both")
NOT_GIVEN = "outside the intervals given"  # why windows are dropped

_BY_SUFFIX = {".nwb": "nwb", ".npz": "npz", ".npy": "npy"}
_BY_SIGNATURE = {b"\x89HDF\r\n\x1a\n": "nwb", b"PK\x03\x04": "npz", b"\x93NUMPY": "npy"}


@dataclass(frozen=True)
class SourceConfig:
    """How recordings become samples.

    Args:
        format: "auto" (by suffix, else by the file's first bytes), "nwb" (HDF5; Zarr with the extra: zarr), "npz" or
            "npy"; or what a directory holds: "files" (those that share a name make a sample), "mnist", "cifar10",
            "cifar100" or "imagefolder" (a folder of image files for each class).
        modalities: which to convert; the first decides where windows can be: spikes, behavior, lfp, ophys, events, or
            the path of a series or group in the file, such as "acquisition/photodiode", whose series get fields of
            their own names. None: all of these that a file has, in this order. "video" must be asked for: the frames
            in the file, or the numbers of those in the files that it names. "icephys" stands alone: intracellular
            sweeps with their stimuli, which no window leaves; a file of nothing else gives them unasked.
            Of "files": the extensions that a complete sample has; None: every one that any sample has.
        bin_size_ms: bin width in ms. A float means its decimal digits (0.1 is a tenth); a string or Fraction may be any
            rational ("100/3").
        sequence_length: bins in a window.
        overlap: shared part of neighbouring windows, in [0, 1).
        spike_dtype: dtype of spike counts: float32, or another float or integer type.
        spike_format: "dense" (counts in bins, field ``spikes``), "ragged" (fields ``spike_times``, int64 ns from the
            window's start on, and ``spike_units``, int32 column numbers) or "both".
        time_scale: seconds in one unit of the Units table's times, where a file does not keep to NWB: 0.001 where they
            are in ms, "1/30000" where they are samples at 30 kHz.
        behavior_method: one of `BEHAVIOR_METHODS`, for behavior and all else but events and electrical series.
        lfp_method: one of `LFP_METHODS`, for electrical series.
        max_gap_s: a longer step (s) between samples of a series is a gap, which nothing is interpolated across.
        field: name of the field that an .npy file becomes.
        rate, timestamps: the first dimension of arrays is time, at this rate (samples/s) from 0 s on, or at the times
            (s) in the npz's array of this name; they are cut into windows like a recording. Neither: it counts samples.
        intervals: (start, stop) pairs in s; windows stay inside them. None: no limit. Floats become the nearest ns of
            ``rint(t · 1e9)``; a Fraction, or the string of one, is exact, also far from 0.
        origin_ns: start of bin 0, ns.
        align: name of a table of intervals ("trials", "epochs", …): one window for each of its rows, from `before_s` to
            `after_s` around the time in its column `event`. The event is then the start of bin 0, and these two, whole
            numbers of bins, decide the `sequence_length`. None: windows all along the recording.
        allow_missing: of "files", skip and count incomplete samples; of "imagefolder", files that are no images.
        keep_encoded: of "imagefolder", take the image files as they are, and not their pixels.
        subset: "train", "test" or "all" of a set of images that knows these.
        decode_video: videos in files beside the recording, below its directory, become uint8 (L, height, width, 3) and
            a mask, instead of numbers of files and frames (extra: video). Named URLs are never fetched.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    format: str = "auto"
    modalities: tuple[str, ...] | None = None
    bin_size_ms: float | str | Fraction = 10.0
    sequence_length: int = 100
    overlap: float = 0.5
    spike_dtype: str = "float32"
    behavior_method: str = "auto"
    lfp_method: str = "auto"
    max_gap_s: float = 0.25
    field: str = "data"
    intervals: tuple[tuple[float | Fraction, float | Fraction], ...] | None = None
    origin_ns: int = 0
    spike_format: str = "dense"
    time_scale: float | str | Fraction = 1.0
    align: str | None = None
    event: str = "start_time"
    before_s: float | str | Fraction = 0.0
    after_s: float | str | Fraction = 1.0
    rate: float | None = None
    timestamps: str | None = None
    allow_missing: bool = False
    keep_encoded: bool = False
    subset: str = "all"
    decode_video: bool = False

    def __post_init__(self) -> None:
        asked: Any = self.modalities
        if asked is not None:
            object.__setattr__(self, "modalities", (asked,) if isinstance(asked, str) else tuple(asked))
        if self.intervals is not None:
            object.__setattr__(self, "intervals", tuple((_seconds(a), _seconds(b)) for a, b in self.intervals))
        for name, choices in (
            ("format", FORMATS),
            ("behavior_method", BEHAVIOR_METHODS),
            ("lfp_method", LFP_METHODS),
            ("spike_format", SPIKE_FORMATS),
            ("subset", SUBSETS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        for good, name, rule in (
            (
                self.modalities is None or (self.modalities and len(set(self.modalities)) == len(self.modalities)),
                "modalities",
                "must name at least one, each once",
            ),
            (
                "icephys" not in (self.modalities or ()) or len(self.modalities or ()) == 1,
                "modalities",
                "sweeps (icephys) have clocks of their own: convert them into a dataset of their own",
            ),
            (self._bin_width() >= 1, "bin_size_ms", "must be a number of at least 0.000001 (1 ns)"),
            (_on_the_clock(self._bin_width()), "bin_size_ms", "too large, or too fine a fraction, for 64-bit time"),
            (_is_positive(self.time_scale), "time_scale", "must be a positive number of seconds"),
            (_whole(self.sequence_length) and self.sequence_length >= 1, "sequence_length", "must be at least 1"),
            (0 <= self.overlap < 1, "overlap", "must be at least 0 and less than 1"),
            (_is_count_dtype(self.spike_dtype), "spike_dtype", "must be an integer or floating dtype"),
            (0 < self.max_gap_s < float("inf"), "max_gap_s", "must be a positive number of seconds"),
            (bool(self.field), "field", "must not be empty"),
            (
                self.rate is None or 0 < self.rate < float("inf"),
                "rate",
                "must be a positive number of samples per second",
            ),
            (self.rate is None or self.timestamps is None, "timestamps", "give these or a rate, not both"),
            (all(a < b for a, b in self.intervals or ()), "intervals", "each must be (start, stop) with start < stop"),
            (
                _whole(self.origin_ns) and abs(self.origin_ns) <= MAX_NS,
                "origin_ns",
                "must be a whole number of nanoseconds, of 126 years at most",
            ),
            (not self.allow_missing or self.format in ("files", "imagefolder"), "allow_missing", "not in this format"),
            (not self.keep_encoded or self.format == "imagefolder", "keep_encoded", "only imagefolder has such files"),
            (
                self.subset == "all" or self.format in ("mnist", "cifar10", "cifar100"),
                "subset",
                "this format knows none: give the directory of one",
            ),
        ):
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r:.200}: {rule}")
        if self.align is not None:
            self._check_aligned()
        else:
            self._check_not_aligned()

    def _check_not_aligned(self) -> None:
        for each in fields(self):
            if each.name in ("event", "before_s", "after_s") and getattr(self, each.name) != each.default:
                raise ValueError(f"{each.name}={getattr(self, each.name)!r}: goes together with align")

    def _check_aligned(self) -> None:
        if self.origin_ns:
            raise ValueError(f"origin_ns={self.origin_ns!r}: where windows are aligned to an event, it is the origin")
        for name in ("before_s", "after_s"):
            if not self._whole_bins(getattr(self, name)):
                told = f"{name}={getattr(self, name)!r:.200}"
                raise ValueError(f"{told}: must be seconds that make a whole number of bins, of 126 years at most")
        if self.bins_before + self.bins_after < 1:
            if self.bins_before < 0:
                told = f"windows must begin before they end, {self.after_s} s after the event"
                raise ValueError(f"before_s={self.before_s!r}: {told}")
            told = f"windows must end after they begin, {self.before_s} s before the event"
            raise ValueError(f"after_s={self.after_s!r}: {told}")
        object.__setattr__(self, "sequence_length", self.bins_before + self.bins_after)

    def _whole_bins(self, seconds: float | str | Fraction) -> bool:
        try:
            ns = _number(seconds) * NS_PER_S
        except ValueError:
            return False
        return abs(ns) <= MAX_NS and (ns / self.bin_width_ns).denominator == 1

    @property
    def bins_before(self) -> int:
        """Bins from an aligned window's start to its event; negative where it begins after it."""
        return int(_number(self.before_s) * NS_PER_S / self.bin_width_ns)

    @property
    def bins_after(self) -> int:
        """Bins from an aligned window's event to its end."""
        return int(_number(self.after_s) * NS_PER_S / self.bin_width_ns)

    def _bin_width(self) -> Fraction:
        try:
            return self.bin_width_ns
        except ValueError:
            return Fraction(0)

    @property
    def bin_width_ns(self) -> Fraction:
        """Bin width in ns: exact, an integer wherever it is one."""
        return _number(self.bin_size_ms) * 1_000_000

    @property
    def intervals_ns(self) -> list[tuple[int, int]] | None:
        """`intervals` in ns."""
        return None if self.intervals is None else [(_ns(a), _ns(b)) for a, b in self.intervals]

    def within(self, start: int, stop: int) -> SourceConfig:
        """Gives the same with windows also inside [start, stop) (ns), exactly."""
        given = self.intervals_ns
        cut = [(max(a, start), min(b, stop)) for a, b in ([(start, stop)] if given is None else given)]
        exact = tuple((Fraction(a, NS_PER_S), Fraction(b, NS_PER_S)) for a, b in cut if a < b)
        return replace(self, intervals=exact)

    @property
    def seconds_per_time(self) -> Fraction:
        """`time_scale`, exact."""
        return _number(self.time_scale)

    def to_json(self) -> dict[str, Any]:
        """Gives the configuration as plain JSON values; a Fraction becomes its string, which reads back alike."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["modalities"] = None if self.modalities is None else list(self.modalities)
        values["intervals"] = None if self.intervals is None else [[*map(_plain, pair)] for pair in self.intervals]
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Fraction) else value


def _seconds(value: float | str | Fraction) -> float | Fraction:
    return _number(value) if isinstance(value, (str, Fraction)) else float(value)


def _ns(seconds: float | Fraction) -> int:
    if isinstance(seconds, Fraction):
        return max(-MAX_NS, min(MAX_NS, round(seconds * NS_PER_S)))
    return int(to_ns(seconds))


def _on_the_clock(bin_width: Fraction) -> bool:
    try:
        Grid(bin_width)
    except ValueError:
        return False
    return True


def _number(value: float | str | Fraction) -> Fraction:
    """Gives a number exactly as its digits say.

    Raises:
        ValueError: it is none.
    """
    try:
        return value if isinstance(value, Fraction) else Fraction(str(value))
    except ZeroDivisionError:
        raise ValueError(f"{value!r} is no number") from None


def _is_positive(value: float | str | Fraction) -> bool:
    try:
        return _number(value) > 0
    except ValueError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_count_dtype(name: str) -> bool:
    try:
        return np.dtype(name).kind in "iuf"
    except TypeError:
        return False


@dataclass(frozen=True)
class SourceDescription:
    """What a source holds: small, plain JSON values, and never growing with the number of samples.

    Attributes:
        n_samples: how many samples `Source.read` can give.
        fields: field → {"dtype", "shape", "unit", "columns", …} of one sample.
        report: the source's entry in the manifest: identity, support, segments, units, series, what was emitted,
            what was dropped, and why.
        empty: where there are no samples, what keeps them from being there, and what helps.
    """

    n_samples: int
    fields: dict[str, dict[str, Any]]
    report: dict[str, Any]
    empty: str = ""


class Source(Protocol):
    """A file or directory that gives samples by number: a pure function of (file, configuration, index)."""

    def describe(self) -> SourceDescription:
        """Counts the samples and describes them, without reading bulk data."""
        ...

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Gives (fields, metadata) of the samples [start, stop) in order; memory does not grow with their number.

        A sample that has a key of its own gives it as ``__key__``; another's is its number in the dataset.
        """
        ...

    def close(self) -> None:
        """Closes the file."""
        ...


def open_source(path: str | os.PathLike[str], config: SourceConfig) -> Source:
    """Opens a file, or a URL, as a source of samples.

    Raises:
        SourceError: the file is missing, damaged, or of no known format.
    """
    path = os.fspath(path)
    if is_zarr(path):
        return _open_zarr(path, config)
    kind = format_of(path) if config.format == "auto" else config.format
    if kind == "files":
        from .files import FilesSource

        return FilesSource(path, config)
    if kind in DIRECTORY_FORMATS:
        from .images import open_images

        return open_images(path, config)
    if kind == "nwb":
        from ...nwb.recording import Recording

        stream = open_binary(path) if is_url(path) else None
        return _of_recording(Recording(path, config.seconds_per_time, stream, config.decode_video), config)
    if config.rate is not None or config.timestamps is not None:
        from .time_major import TimeMajorSource

        return TimeMajorSource(path, config)
    from .arrays import ArraySource

    return ArraySource(path, config)


def _of_recording(recording: Recording, config: SourceConfig) -> SweepSource | RecordingSource:
    from .nwb import RecordingSource
    from .sweeps import SweepSource

    nothing_else = not (config.modalities or recording.modalities)
    if (nothing_else or config.modalities == ("icephys",)) and recording.sweeps:
        return SweepSource(recording, config)
    return RecordingSource(recording, config)


def _open_zarr(path: str, config: SourceConfig) -> Source:
    """Opens an NWB file in a Zarr store; its files, as they are found now, are the source's listing."""
    if config.format not in ("auto", "nwb"):
        remedy = "of stores only NWB files are read: leave out the format"
        raise SourceError("is a Zarr store", file=path, remedy=remedy)
    try:
        from .zarr_store import open_zarr
    except ImportError as error:
        problem = f"is a Zarr store, and hdmf-zarr cannot be imported: {error}"
        raise SourceError(problem, file=path, remedy="pip install 'neurofmx-wds[zarr]'") from None
    from ...nwb.recording import Recording

    listing = list_files(path, hidden=True)
    make_io = functools.partial(open_zarr, listing)
    source = _of_recording(Recording(path, config.seconds_per_time, None, config.decode_video, make_io), config)
    source.listing = listing
    return source


def format_of(path: str) -> str:
    """Says which of `FILE_FORMATS` a file has, by its name or else its first bytes.

    Raises:
        SourceError: it cannot be read, or has none.
    """
    known = _BY_SUFFIX.get(os.path.splitext(name_of(path))[1].lower())
    if known:
        return known
    try:
        with open_binary(path) as file:
            start = file.read(8)
    except OSError as error:
        raise SourceError(
            f"cannot be opened: {error.strerror or error}", file=path, remedy="check the path and the permissions"
        ) from error
    for signature, kind in _BY_SIGNATURE.items():
        if start.startswith(signature):
            return kind
    raise SourceError(
        "neither its name nor its first bytes are those of an NWB, NPZ or NPY file",
        file=path,
        remedy=f"name its format (--format {', '.join(FILE_FORMATS)}), or convert it to one of these; for other "
        "files that belong together give their directory and --format files",
    )
