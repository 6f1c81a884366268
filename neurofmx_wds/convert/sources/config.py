"""How the inputs of one conversion become samples, whatever their kinds.

Joins the settings of every kind. Knows nothing of files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict

from ...errors import refuse_unknown
from ..options import NamedOption, Number, Option, as_json, check_options, exact, option, options_of, refused
from .kinds import ARRAYS, FILE_FORMATS, FORMATS, TIMED
from .settings import ArrayConfig, FilesConfig, ImageConfig
from .windows import NEWER, WindowConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MoreOptions(TypedDict, total=False):
    """The settings that :class:`~neurofmx_wds.NWBToWebDatasetConverter` takes by name, for type checkers."""

    format: str
    intervals: Sequence[tuple[Number, Number]] | None
    origin_ns: int
    spike_dtype: str
    spike_format: str
    time_scale: Number
    behavior_method: str
    lfp_method: str
    max_gap_s: float
    decode_video: bool
    layout: str
    segment_s: float
    align: str | None
    event: str
    before_s: Number
    after_s: Number
    event_values: bool
    min_confidence: float
    units: str | None
    electrodes: str | None
    rois: str | None
    clock: Sequence[tuple[str, Number, Number]] | None
    scale: Sequence[tuple[str, Number, Number]] | None
    transposed: Sequence[str] | None
    field: str
    rate: float | None
    timestamps: str | None
    allow_missing: bool
    keep_encoded: bool
    subset: str


class SourceOptions(MoreOptions, total=False):
    """The settings of :class:`SourceConfig` by name, for type checkers; :meth:`SourceConfig.of` takes them."""

    modalities: str | Sequence[str] | None
    bin_size_ms: Number
    sequence_length: int
    overlap: float


# The order in which the manifest lists them, so that its bytes stay the same. New ones go to the end.
_IN_MANIFEST = (
    "format", "modalities", "bin_size_ms", "sequence_length", "overlap", "spike_dtype", "behavior_method", "lfp_method",
    "max_gap_s", "field", "intervals", "origin_ns", "spike_format", "time_scale", "align", "event", "before_s",
    "after_s", "rate", "timestamps", "allow_missing", "keep_encoded", "subset", "decode_video", "layout", "segment_s",
    "event_values", "min_confidence", "units", "electrodes", "rois", "clock", "scale", "transposed",
)  # fmt: skip
_OF_SEGMENTS = ("layout", "segment_s")  # which datasets of windows do not list: they were made before there were others


@dataclass(frozen=True)
class SourceConfig:
    """How the inputs of one conversion become samples, whatever their kinds.

    Attributes:
        format: what the inputs are.
        windows: of recordings and arrays along time.
        arrays: of .npz and .npy files.
        files: of directories of files that belong together.
        images: of sets of labelled images.

    Raises:
        ValueError: a setting is out of range; the message begins with its name.

    Example:
        >>> config = SourceConfig.of(bin_size_ms=20, modalities=["spikes"])
        >>> config.windows.bin_width_ns, config.arrays.modalities
        (Fraction(20000000, 1), ('spikes',))
    """

    format: str = option(
        "auto",
        Option(
            "What the inputs are. auto: by their names, or else their first bytes. Directories: files (those that "
            "share a name make a sample), mnist, cifar10, cifar100, imagefolder (a folder of images for each class).",
            choices=FORMATS,
        ),
    )
    windows: WindowConfig = WindowConfig()
    arrays: ArrayConfig = ArrayConfig()
    files: FilesConfig = FilesConfig()
    images: ImageConfig = ImageConfig()

    def __post_init__(self) -> None:
        check_options(self)
        shared: dict[str, Any] = {}
        for part in self.parts.values():
            for each in options_of(part):
                if shared.setdefault(each.name, value := getattr(part, each.name)) != value:
                    raise refused(part, each.name, "must be the same for every kind of input: see SourceConfig.of")
        self.refuse_unheeded({self.format} if self.format != "auto" else set(FILE_FORMATS))

    @property
    def parts(self) -> dict[str, Any]:
        """The settings of each kind of input, by attribute."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "format"}

    @classmethod
    def options(cls) -> list[NamedOption]:
        """Return all settings by name, each once."""
        stated = (each for part in (cls, *cls().parts.values()) for each in options_of(part))
        return list({each.name: each for each in stated}.values())

    @classmethod
    def of(cls, **given: Unpack[SourceOptions]) -> SourceConfig:
        """Make a configuration of settings by name; a setting that several kinds of input have is given to each.

        Of arrays with a rate, a bin is a row, kept as it is, if no width of bins is given.

        Raises:
            TypeError: an unknown setting, with the name most like it.
            ValueError: a setting is out of range; the message begins with its name.
        """
        settings: dict[str, Any] = dict(given)
        refuse_unknown(cls.__name__, settings, (each.name for each in cls.options()))
        if settings.get("rate") is not None and settings.get("layout") != "segments" and "bin_size_ms" not in settings:
            with contextlib.suppress(ValueError, ZeroDivisionError):  # rates that cannot be are refused below
                settings["bin_size_ms"] = (1000 / exact(settings["rate"])).limit_denominator(1_000_000)
                settings.setdefault("lfp_method", "native")
        parts = {}
        for name, part in cls().parts.items():
            own = {each.name for each in options_of(part)} & settings.keys()
            parts[name] = type(part)(**{each: settings[each] for each in own})
        return cls(settings.get("format", cls.format), **parts)

    def refuse_unheeded(self, kinds: Set[str]) -> None:
        """Refuse settings that differ from their default and that no input of these kinds heeds.

        Raises:
            ValueError: naming one of them.
        """
        if self.arrays.along_time and kinds & set(ARRAYS):
            kinds = kinds | {TIMED}
        heeded = {each.name for part in self.parts.values() for each in options_of(part) if kinds & set(each.kinds)}
        for part in self.parts.values():
            for each in options_of(part):
                if each.name not in heeded and getattr(part, each.name) != each.default:
                    raise refused(part, each.name, f"concerns only {' and '.join(each.kinds)}")

    def within(self, start: int, stop: int) -> SourceConfig:
        """Return the same settings with windows also inside [start, stop) (ns), exactly."""
        return replace(self, windows=self.windows.within(start, stop))

    def to_json(self) -> dict[str, Any]:
        """Return all settings by name as JSON values, of which :meth:`of` makes the same configuration again."""
        known = {
            each.name: as_json(getattr(part, each.name)) for part in self.parts.values() for each in options_of(part)
        }
        unset = [each.name for each in self.options() if each.name in NEWER and known[each.name] == each.default]
        left_out = (*unset, *(_OF_SEGMENTS if self.windows.layout == "windows" else ()))
        return {name: known.get(name, self.format) for name in _IN_MANIFEST if name not in left_out}
