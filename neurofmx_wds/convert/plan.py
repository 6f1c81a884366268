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
        storage: how shards are written.
        first_shard: shards that the dataset has already, which these come after.
        first_sample: samples that it has already.
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
        pattern, size = self.storage.shard_name_pattern, self.storage.shard_size
        names = (shard_name(pattern, k, self.storage.compression) for k in itertools.count(self.first_shard))
        cuts = range(0, self._ends[-1], size)
        return [self.shard(name, first, first + size) for name, first in zip(names, cuts, strict=False)]

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
            key_prefix=self.storage.key_prefix,
            compression=self.storage.compression,
            field_format=self.storage.field_format,
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
        return {**self.config.to_json(), **self.storage.to_json()}

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
        return in_utf8({"path": name_of(entry.file or ""), "error": entry.problem, **told})
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


def in_utf8(value: Any) -> Any:
    """The same JSON value in texts that can be written down: in a file may stand units in an encoding of its own."""
    if isinstance(value, dict):
        return {in_utf8(key): in_utf8(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_utf8(each) for each in value]
    return as_utf8(value) if isinstance(value, str) else value
