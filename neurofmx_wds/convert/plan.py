"""What a conversion will write, decided before anything is written: which windows of which source go to which shard.

Knows sources by their descriptions and shards by their names; reads and writes no samples.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import FieldError, NeurofmxError, SourceError, hide_secrets, missing_package
from ..format.encoding import FieldFormat
from ..format.index import file_sha256
from ..format.manifest import config_hash
from ..format.names import check_key
from ..format.shard_file import Compression
from ..format.writer import DEFAULT_PATTERN, check_config, shard_name
from ..storage.location import Version, as_utf8, failure_of, is_url, is_zarr, name_of, version_of
from ..version import CREATED_BY
from .sources import Source, SourceConfig, SourceDescription, open_source
from .sources.listing import Listing, list_files

DEFAULT_KEY_PREFIX = "sample_"
_FROM_SHARDS = ("dtype", "shape")


@dataclass(frozen=True)
class FileState:
    """A source file, or directory of files, as it was when it was planned.

    Attributes:
        path: where it is, a path or a URL.
        size: bytes.
        mtime_ns: when it was last changed; 0 of a URL.
        sha256: its checksum; of a directory, that of its files' names, sizes and times, so that none is read twice;
            empty of a URL, which is not read whole.
        tag: what the server says of a URL's content; of a directory, its checksum again.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    tag: str = ""

    @classmethod
    def of(cls, path: str, seen: Version | None = None) -> FileState:
        """The state of a file now, or as it was when it was seen."""
        seen = seen or stamp(path)
        return cls(path, seen.size, seen.mtime_ns, "" if is_url(path) else seen.tag or file_sha256(path), seen.tag)

    @property
    def name(self) -> str:
        """The file's name."""
        return name_of(self.path)

    @property
    def place(self) -> str:
        """Where it is, the same however it was named, as it may be written down."""
        return hide_secrets(self.path) if is_url(self.path) else os.path.realpath(self.path)

    @property
    def identity(self) -> str:
        """What its content is known by: its checksum; of a URL the place, the size and what the server says."""
        return self.sha256 or f"{self.place}, {self.size} bytes, {self.tag or 'no ETag'}"

    def open(self, config: SourceConfig) -> Source:
        """Open the file as a source.

        Raises:
            SourceError: it cannot be read, or has changed.
        """
        source = open_source(self.path, config)
        try:
            self.check(getattr(source, "listing", None))
        except BaseException:
            source.close()
            raise
        return source

    def check(self, listing: Listing | None = None) -> None:
        """Refuse what has changed since; of a directory, whose files are looked at as they are read, only its listing.

        Raises:
            SourceError: it has.
        """
        if listing is None and os.path.isdir(self.path):
            return
        now = version_of(self.path) if listing is None else stamp_of(listing)
        if now != Version(self.size, self.mtime_ns, self.tag):
            raise SourceError("changed while it was converted", file=self.path, remedy="convert it when it is finished")


def stamp(path: str) -> Version:
    """What tells that a source has changed, without reading it; of a directory, the checksum of its listing."""
    return stamp_of(list_files(path, hidden=is_zarr(path))) if os.path.isdir(path) else version_of(path)


def stamp_of(listing: Listing) -> Version:
    """The same of a directory whose files are known."""
    return Version(listing.size, listing.mtime_ns, listing.sha256())


@dataclass(frozen=True)
class PlannedSource:
    """A source and what it will give.

    Attributes:
        file: the file, as it was found.
        description: what it will give.
        config: how it is read, where that differs from the plan's.
    """

    file: FileState
    description: SourceDescription
    config: SourceConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """What was found, as JSON values; without `config`, nor the path, which may hold credentials."""
        return {"file": {**asdict(self.file), "path": ""}, "description": asdict(self.description)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: str) -> PlannedSource:
        """What :meth:`to_json` gave of the file at `path`."""
        return cls(FileState(**{**data["file"], "path": path}), SourceDescription(**data["description"]))


@dataclass(frozen=True)
class Piece:
    """Samples ``[start, stop)`` of one source, read with `config`."""

    file: FileState
    start: int
    stop: int
    config: SourceConfig


@dataclass(frozen=True)
class ShardPlan:
    """One shard: all that is needed to make it, and nothing else.

    Attributes:
        name: its file name.
        first: number of its first sample in the dataset.
        pieces: what it is made of, in order.
        key_prefix: what its samples' keys begin with.
        compression: of the whole tar.
        field_format: how arrays are stored.
    """

    name: str
    first: int
    pieces: tuple[Piece, ...]
    key_prefix: str
    compression: Compression
    field_format: FieldFormat

    def __str__(self) -> str:
        return self.name

    @property
    def n_samples(self) -> int:
        """Samples in it."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def digest(self) -> str:
        """SHA-256 of all that decides the shard's bytes; wherever it is the same, so is the shard."""
        pieces = [[p.file.name, p.file.identity, p.start, p.stop, p.config.to_json()] for p in self.pieces]
        return config_hash(
            {
                "made_by": CREATED_BY,
                "first": self.first,
                "pieces": pieces,
                "storage": [self.name, self.key_prefix, self.compression, self.field_format],
            }
        )


@dataclass(frozen=True)
class ConversionPlan:
    """A conversion as a pure function: shard k holds windows ``[k·size, (k+1)·size)`` over the sources in their order.

    Attributes:
        entries: the sources in the order given; in the place of one that cannot be read stands what is wrong with it.
        config: how they are read.
        shard_size: samples per shard.
        shard_name_pattern: file name of a shard, with ``{shard_idx}``.
        compression: of the shards.
        field_format: how arrays are stored.
        key_prefix: what the samples' keys begin with; their number follows.
        first_shard: shards that the dataset has already, which these come after.
        first_sample: samples that it has already.

    Raises:
        ValueError: a bad shard size, pattern, compression, field format or key prefix.
    """

    entries: tuple[PlannedSource | SourceError, ...]
    config: SourceConfig
    shard_size: int = 1000
    shard_name_pattern: str = DEFAULT_PATTERN
    compression: Compression = "none"
    field_format: FieldFormat = "npy"
    key_prefix: str = DEFAULT_KEY_PREFIX
    first_shard: int = 0
    first_sample: int = 0

    def __post_init__(self) -> None:
        self._storage()
        try:
            check_key(f"{self.key_prefix}0")
        except FieldError as error:
            raise ValueError(f"key_prefix={self.key_prefix!r}: {error.problem}") from error

    def _storage(self) -> dict[str, Any]:
        checked = check_config(self.shard_size, self.shard_name_pattern, self.compression, self.field_format)
        return {**checked, "key_prefix": self.key_prefix}

    @functools.cached_property
    def sources(self) -> list[PlannedSource]:
        """The sources that can be read."""
        return [entry for entry in self.entries if isinstance(entry, PlannedSource)]

    @property
    def failures(self) -> list[SourceError]:
        """What is wrong with the others."""
        return [entry for entry in self.entries if isinstance(entry, SourceError)]

    @property
    def n_samples(self) -> int:
        """Samples in all sources."""
        return sum(source.description.n_samples for source in self.sources)

    @functools.cached_property
    def _ends(self) -> list[int]:
        """Where each source's samples end in the row of all samples, behind a 0."""
        return [0, *itertools.accumulate(source.description.n_samples for source in self.sources)]

    def shards(self) -> list[ShardPlan]:
        """The shards, in order."""
        names = (shard_name(self.shard_name_pattern, k, self.compression) for k in itertools.count(self.first_shard))
        cuts = range(0, self._ends[-1], self.shard_size)
        return [self.shard(name, first, first + self.shard_size) for name, first in zip(names, cuts, strict=False)]

    def shard(self, name: str, first: int, stop: int) -> ShardPlan:
        """The shard of this name that holds samples `first` to `stop` of all sources together, as far as there are."""
        ends = self._ends
        stop = min(stop, ends[-1])
        sources = range(bisect.bisect_right(ends, first) - 1, bisect.bisect_left(ends, stop))
        spans = [(i, max(first, ends[i]) - ends[i], min(stop, ends[i + 1]) - ends[i]) for i in sources]
        read = self.sources
        return ShardPlan(
            name=name,
            first=self.first_sample + first,
            pieces=tuple(
                Piece(read[i].file, start, end, read[i].config or self.config) for i, start, end in spans if start < end
            ),
            key_prefix=self.key_prefix,
            compression=self.compression,
            field_format=self.field_format,
        )

    def without(self, error: SourceError) -> ConversionPlan:
        """The plan with the source that `error` names taken out, the error standing in its place."""
        entries = (
            error if isinstance(entry, PlannedSource) and entry.file.path == error.file else entry
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def to_json(self) -> dict[str, Any]:
        """The settings, as the manifest holds them."""
        return {**self.config.to_json(), **self._storage()}

    def shared(self) -> dict[str, dict[str, Any]]:
        """What all sources agree on about a field, beside dtype and shape: its unit, columns, rate and the like."""
        return {
            name: {about: value for about, value in known.items() if about not in _FROM_SHARDS}
            for name, known in _agreed(s.description.fields for s in self.sources if s.description.n_samples).items()
        }

    def reports(self) -> list[dict[str, Any]]:
        """What the manifest says of each source; ``fields`` holds what differs between them, such as columns."""
        agreed = _agreed(source.description.fields for source in self.sources if source.description.n_samples)
        return [report_of(entry, agreed) for entry in self.entries]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ, as sentences; a setting that `before` does not know yet has its default there."""
    known = json.loads(json.dumps({**ConversionPlan((), SourceConfig()).to_json(), **before}))
    given = json.loads(json.dumps(now))
    return [
        f"{name} was {known.get(name)!r} and is {given.get(name)!r} now"
        for name in sorted(known | given)
        if known.get(name) != given.get(name)
    ]


def _agreed(described: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    agreed: dict[str, dict[str, Any]] = {}
    for fields in described:
        for name, about in fields.items():
            known = agreed.setdefault(name, dict(about))
            agreed[name] = {key: value for key, value in known.items() if key in about and about[key] == value}
    return agreed


def report_of(
    entry: PlannedSource | SourceError, agreed: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What is known of a source, or what is wrong with it, as JSON values.

    Args:
        entry: the source.
        agreed: what need not be said of its fields, since all sources agree on it.
    """
    if isinstance(entry, SourceError):
        told = {key: getattr(entry, key) for key in ("sample", "member", "remedy")}
        told = {key: value for key, value in told.items() if value}
        return _as_utf8({"path": name_of(entry.file or ""), "error": entry.problem, **told})
    own = {
        name: {key: value for key, value in about.items() if key not in (agreed or {}).get(name, {})}
        for name, about in entry.description.fields.items()
    }
    known_by = "version" if is_url(entry.file.path) else "sha256"
    about = {"size_bytes": entry.file.size, known_by: entry.file.identity}
    return {**entry.description.report, **about, "fields": own}


def why_empty(source: PlannedSource) -> SourceError:
    """What keeps a source from giving any sample."""
    return SourceError(source.description.empty or "gives no samples", file=source.file.path)


def identity_of(report: Mapping[str, Any]) -> str | None:
    """What a source's content is known by, of a report in a manifest; None where it could not be read."""
    return report.get("sha256") or report.get("version")


def plan_source(path: str, config: SourceConfig, seen: Version | None = None) -> PlannedSource | SourceError:
    """Look at one file, seen before: what it will give, or what is wrong with it."""
    try:
        state = FileState.of(path, seen)
    except Exception as error:  # whatever is wrong with one file, the others go on
        return as_source_error(error, path)
    try:
        return PlannedSource(state, _describe(state, config))
    except Exception as error:
        return what_went_wrong(error, state)


def plan_again(known: PlannedSource, config: SourceConfig) -> PlannedSource | SourceError:
    """Look at a known file once more: what it will give when it is read with `config` and not with the plan's."""
    try:
        return PlannedSource(known.file, _describe(known.file, config), config)
    except Exception as error:
        return what_went_wrong(error, known.file)


def beside(
    entries: Iterable[PlannedSource | SourceError],
    config: SourceConfig,
    labels: Sequence[str] | None = None,
    keys: Iterable[str] = (),
) -> tuple[PlannedSource | SourceError, ...]:
    """Let an error stand in the place of each source that cannot be in one dataset with those before it.

    Its labels stand for something else, or it gives its samples keys that are taken.

    Args:
        entries: the sources.
        config: how they are read.
        labels: names of the labels that the dataset has already.
        keys: keys that it has already.
    """
    taken, checked = set(keys), list(entries)
    keyed = config.format == "files" and (len(checked) > 1 or bool(taken))
    for i, entry in enumerate(checked):
        if isinstance(entry, PlannedSource):
            own = entry.description.fields.get("label", {}).get("names")
            labels = labels or own
            if own != labels:
                problem = f"its labels are {_shortened(own)}, those of the sources before it {_shortened(labels)}"
                checked[i] = SourceError(problem, file=entry.file.path, remedy="give each a dataset of its own")
            elif keyed:
                checked[i] = _with_own_keys(entry, config, taken)
    return tuple(checked)


def _shortened(names: Sequence[str] | None) -> str:
    told = ", ".join((names or ())[:5])
    return f"{told}, … ({len(names)})" if names and len(names) > 5 else told or "none"


def _with_own_keys(entry: PlannedSource, config: SourceConfig, taken: set[str]) -> PlannedSource | SourceError:
    from .sources.files import FilesSource

    try:
        keys = FilesSource(entry.file.path, config).keys
    except SourceError as error:
        return as_source_error(error, entry.file.path)
    common = taken.intersection(keys)
    if common:
        problem = f"{len(common):,} of its samples have keys that others have, such as {min(common)!r}"
        remedy = "give the directory that holds both: the folders' names then tell the keys apart"
        return SourceError(problem, file=entry.file.path, remedy=remedy)
    taken.update(keys)
    return entry


def _describe(file: FileState, config: SourceConfig) -> SourceDescription:
    source = file.open(config)
    try:
        found = source.describe()
        found = replace(found, fields=_as_utf8(found.fields), report=_as_utf8(found.report))
        file.check()
    finally:
        source.close()
    if not is_url(file.path) or file.tag:
        return found
    doubt = "the server names no version of it: a change that keeps its size would not be noticed"
    return replace(found, report={**found.report, "warnings": [*found.report.get("warnings", []), doubt]})


def _as_utf8(value: Any) -> Any:
    """The same JSON value in texts that can be written down: in a file may stand units in an encoding of its own."""
    if isinstance(value, dict):
        return {_as_utf8(key): _as_utf8(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_utf8(each) for each in value]
    return as_utf8(value) if isinstance(value, str) else value


def what_went_wrong(error: Exception, file: FileState) -> SourceError:
    """What went wrong with a source that was being read: before all else that the server failed, or that it changed."""
    error = failure_of(file.path) or error
    with contextlib.suppress(OSError):
        try:
            file.check()
        except SourceError as changed:
            error = changed
    return as_source_error(error, file.path)


def as_source_error(error: Exception, path: str) -> SourceError:
    """What went wrong with a source, as one kind of error that names the file exactly as it was given."""
    error = missing_package(error) or error
    if isinstance(error, NeurofmxError):
        told = {key: getattr(error, key) for key in ("sample", "member", "remedy")}
        found = SourceError(error.problem, file=path, **told)
    elif isinstance(error, OSError) and error.strerror:
        found = SourceError(f"cannot be read: {error.strerror}", file=path, remedy="check the path and the permissions")
    else:
        found = SourceError(
            f"cannot be read: {type(error).__name__}: {str(error)[:500]}",
            file=path,
            remedy="the file may be damaged: open it with the program that made it",
        )
    found.__cause__ = error
    return found
