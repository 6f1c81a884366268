"""What a conversion will write, decided before anything is written: which windows of which source go to which shard.

Knows sources by their descriptions and shards by their names; reads and writes no samples.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import SourceError
from ..format.encoding import FieldFormat
from ..format.manifest import config_hash
from ..format.shard_settings import Compression, shard_name
from ..storage.location import as_utf8, is_url, name_of
from ..version import CREATED_BY
from .config import ShardConfig
from .file_state import FileState
from .sources import SourceConfig, SourceDescription

_FROM_SHARDS = ("dtype", "shape")


@dataclass(frozen=True)
class PlannedSource:
    """A source and what it will give.

    Attributes:
        file: the file, as it was found.
        description: what it will give.
        config: how it is read, if that differs from the plan's.
    """

    file: FileState
    description: SourceDescription
    config: SourceConfig | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what was found as JSON values, without `config`, and without the path, which may hold credentials."""
        return {"file": {**asdict(self.file), "path": ""}, "description": asdict(self.description)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: str) -> PlannedSource:
        """Make it of what :meth:`to_json` returned for the file at `path`."""
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
        """Return the SHA-256 of all that decides the shard's bytes: shards with the same digest have the same bytes."""
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
        entries: the sources in the order given; in place of one that cannot be read, its error.
        config: how they are read.
        storage: how shards are written.
        first_shard: number of shards that the dataset has already; these come after them.
        first_sample: number of samples that it has already.
    """

    entries: tuple[PlannedSource | SourceError, ...]
    config: SourceConfig
    storage: ShardConfig = ShardConfig()
    first_shard: int = 0
    first_sample: int = 0

    @functools.cached_property
    def sources(self) -> list[PlannedSource]:
        """The sources that can be read."""
        return [entry for entry in self.entries if isinstance(entry, PlannedSource)]

    @property
    def failures(self) -> list[SourceError]:
        """The errors of the others."""
        return [entry for entry in self.entries if isinstance(entry, SourceError)]

    @property
    def n_samples(self) -> int:
        """Samples in all sources."""
        return sum(source.description.n_samples for source in self.sources)

    @functools.cached_property
    def _ends(self) -> list[int]:
        """0, then where each source's samples end in the sequence of all samples."""
        return [0, *itertools.accumulate(source.description.n_samples for source in self.sources)]

    def shards(self) -> list[ShardPlan]:
        """Return the shards, in order."""
        pattern, size = self.storage.shard_name_pattern, self.storage.shard_size
        names = (shard_name(pattern, k, self.storage.compression) for k in itertools.count(self.first_shard))
        cuts = range(0, self._ends[-1], size)
        return [self.shard(name, first, first + size) for name, first in zip(names, cuts, strict=False)]

    def shard(self, name: str, first: int, stop: int) -> ShardPlan:
        """Return the shard of this name, with samples [first, stop) of all sources together; the last may be short."""
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
            key_prefix=self.storage.key_prefix,
            compression=self.storage.compression,
            field_format=self.storage.field_format,
        )

    def without(self, error: SourceError) -> ConversionPlan:
        """Return the plan with the error in place of the source that it names."""
        entries = (
            error if isinstance(entry, PlannedSource) and entry.file.path == error.file else entry
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as the manifest holds them."""
        return {**self.config.to_json(), **self.storage.to_json()}

    def shared(self) -> dict[str, dict[str, Any]]:
        """Return what all sources state alike of a field, beside dtype and shape, such as its unit."""
        return {
            name: {about: value for about, value in known.items() if about not in _FROM_SHARDS}
            for name, known in _agreed(s.description.fields for s in self.sources if s.description.n_samples).items()
        }

    def stored_as(self) -> dict[str, dict[str, Any]]:
        """Return dtype and shape of each field, as the sources describe them, with None where they differ."""
        fields: dict[str, dict[str, Any]] = {}
        for source in self.sources:
            for name, about in source.description.fields.items() if source.description.n_samples else ():
                new = {"dtype": about.get("dtype"), "shape": about.get("shape")}
                fields[name] = _either(fields[name], new) if name in fields else new
        return fields

    def reports(self) -> list[dict[str, Any]]:
        """Return the manifest's report on each source; ``fields`` holds what differs between them, such as columns."""
        agreed = _agreed(source.description.fields for source in self.sources if source.description.n_samples)
        return [report_of(entry, agreed) for entry in self.entries]


def _either(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two descriptions of a field say alike of its dtype and shape, None where they differ."""
    a, b = one["shape"], other["shape"]
    alike = a is not None and b is not None and len(a) == len(b)
    shape = [n if n == m else None for n, m in zip(a, b, strict=True)] if alike else None
    return {"dtype": one["dtype"] if one["dtype"] == other["dtype"] else None, "shape": shape}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the settings that differ; one that `before` does not know yet has its default there.

    Example:
        >>> differences({"overlap": 0.5}, {**SourceConfig.of(overlap=0.25).to_json(), **ShardConfig().to_json()})
        ['overlap was 0.5 and is 0.25 now']
    """
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
    """Return what is known of a source, or what is wrong with it, as JSON values.

    Args:
        entry: the source.
        agreed: what all sources state alike of their fields, and the report leaves out.
    """
    if isinstance(entry, SourceError):
        where = {key: getattr(entry, key) for key in ("sample", "member", "remedy") if getattr(entry, key)}
        return in_utf8({"path": name_of(entry.file or ""), "error": entry.problem, **where})
    own = {
        name: {key: value for key, value in about.items() if key not in (agreed or {}).get(name, {})}
        for name, about in entry.description.fields.items()
    }
    known_by = "version" if is_url(entry.file.path) else "sha256"
    about = {"size_bytes": entry.file.size, known_by: entry.file.identity}
    return {**entry.description.report, **about, "fields": own}


def why_empty(source: PlannedSource) -> SourceError:
    """Return the error of a source that gives no samples."""
    return SourceError(source.description.empty or "gives no samples", file=source.file.path)


def identity_of(report: Mapping[str, Any]) -> str | None:
    """Return what identifies a source's content, from its report in a manifest; None if it could not be read."""
    return report.get("sha256") or report.get("version")


def in_utf8(value: Any) -> Any:
    """Return a JSON value with its texts as UTF-8: units in a file may be in another encoding."""
    if isinstance(value, dict):
        return {in_utf8(key): in_utf8(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_utf8(each) for each in value]
    return as_utf8(value) if isinstance(value, str) else value
