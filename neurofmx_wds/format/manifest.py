"""``dataset_metadata.json``: what a dataset holds, in a file that does not grow with its samples.

Knows nothing of tars or loading.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ManifestError, OutputError
from ..storage.atomic import write_atomic
from ..storage.regular import read_regular

MANIFEST_NAME = "dataset_metadata.json"
_MAX_BYTES = 1 << 30
# shards, indexes (ours, DALI's, wids'), and what a killed run or a network file system leaves beside them
_OWN = re.compile(r".*\.(tar|tar\.(gz|bz2|xz)|index|idx)|(dataset_metadata|shardindex)\.json|\..*\.part|\.nfs\w+")


def refuse_to_replace(directory: str | os.PathLike[str]) -> None:
    """Refuse to replace a directory that holds anything but a dataset, or the datasets of a split: it would be lost.

    Raises:
        OutputError: naming a file that belongs to no dataset.
    """
    found, inode = "", None
    while inode != (inode := _inode_of(directory)):  # else it was replaced while it was listed
        found = _foreign_file(directory)
    if found:
        problem = f"holds {found!r}, which is no part of a dataset: overwriting would delete it"
        raise OutputError(problem, file=directory, remedy="move it away, or choose another directory")


def _foreign_file(directory: str | os.PathLike[str]) -> str:
    top = _names_in(directory)
    for part in [directory] if MANIFEST_NAME in top else [os.path.join(directory, name) for name in top]:
        names = _names_in(part)
        others = [name for name in names if not _OWN.fullmatch(name)] if MANIFEST_NAME in names else names or [""]
        if others:
            return os.path.relpath(os.path.join(part, others[0]), directory)
    return ""


def _inode_of(directory: str | os.PathLike[str]) -> int:
    try:
        return os.stat(directory).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return -1


def _names_in(directory: str | os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


@dataclass(frozen=True)
class ShardRecord:
    """One shard of a dataset.

    Attributes:
        shard_name: file name, relative to the manifest.
        n_samples: samples in it.
        n_bytes: size of the file.
        sha256: its checksum, or None where it is unknown.
    """

    shard_name: str
    n_samples: int
    n_bytes: int
    sha256: str | None


@dataclass(frozen=True)
class Manifest:
    """The content of ``dataset_metadata.json``.

    Attributes:
        shard_size: samples that a full shard holds.
        compression: ``none``, ``gz``, ``bz2`` or ``xz``.
        modalities: field → its dtype, shape (None where it differs between samples), unit, columns and the like.
        shards: the shards, in order.
        sources: what each recording held, what was taken and what was left out.
        config: the settings that the dataset was made with.
        created_by: program and version.
    """

    shard_size: int
    compression: str
    modalities: dict[str, dict[str, Any]]
    shards: list[ShardRecord]
    sources: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    created_by: str = ""

    @property
    def total_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.n_samples for shard in self.shards)

    def summary(self) -> dict[str, Any]:
        """Return the manifest as a plain dictionary, as in the file."""
        return {
            "total_samples": self.total_samples,
            "total_shards": len(self.shards),
            "shard_size": self.shard_size,
            "compression": self.compression,
            "modalities": self.modalities,
            "shards": [asdict(shard) for shard in self.shards],
            "sources": self.sources,
            "config": self.config,
            "config_hash": config_hash(self.config),
            "created_by": self.created_by,
        }

    def save(self, directory: str | Path) -> None:
        """Write ``dataset_metadata.json`` into `directory`, whole or not at all."""
        text = json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n"
        write_atomic(Path(directory) / MANIFEST_NAME, text.encode("utf-8"))

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Read ``dataset_metadata.json`` from `directory`.

        Raises:
            FileNotFoundError: there is none.
            ManifestError: it is damaged or contradicts itself.
        """
        path = Path(directory) / MANIFEST_NAME
        return cls.from_bytes(read_regular(path, _MAX_BYTES, ManifestError), path)

    @classmethod
    def from_bytes(cls, text: bytes, path: str | os.PathLike[str]) -> Manifest:
        """Parse the content of ``dataset_metadata.json``; `path` names it in errors.

        Raises:
            ManifestError: it is damaged or contradicts itself.
        """
        try:
            return cls._parse(json.loads(text))
        except ManifestError as error:
            raise ManifestError(error.problem, file=path, remedy="restore it, or convert again") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            problem = f"the manifest is damaged: {type(error).__name__}: {error}"
            raise ManifestError(problem, file=path, remedy="restore it, or convert again") from error

    @classmethod
    def _parse(cls, data: Mapping[str, Any]) -> Manifest:
        shards = []
        for entry in data["shards"]:
            name, count, size = entry["shard_name"], entry["n_samples"], entry["n_bytes"]
            if not isinstance(name, str) or not name or "/" in name or name.startswith(".") or "\0" in name:
                raise ManifestError(f"the manifest names a shard outside its directory: {name!r}")
            if not _is_count(count) or not _is_count(size) or count > _most_samples(name, size):
                raise ManifestError(f"the manifest gives {name!r} an impossible size")
            if not isinstance(entry["sha256"], (str, type(None))):
                raise ManifestError(f"the manifest gives {name!r} an impossible checksum")
            shards.append(ShardRecord(name, count, size, entry["sha256"]))
        if len({shard.shard_name for shard in shards}) != len(shards):
            raise ManifestError("the manifest names a shard twice")
        _check_types(data)
        manifest = cls(
            shard_size=data["shard_size"],
            compression=data["compression"],
            modalities=data["modalities"],
            shards=shards,
            sources=data.get("sources", []),
            config=data.get("config", {}),
            created_by=data.get("created_by", ""),
        )
        if data["total_samples"] != manifest.total_samples or data["total_shards"] != len(shards):
            raise ManifestError("the manifest's totals do not match its list of shards")
        if data.get("config_hash") not in (None, config_hash(manifest.config)):  # a group's labels stand there, too
            raise ManifestError("the manifest's settings are not those that the dataset was made with")
        return manifest


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _most_samples(name: str, n_bytes: int) -> int:
    """Bound the samples in a shard: each takes a header of 512 bytes, which compression may shrink."""
    return n_bytes // 512 if name.endswith(".tar") else n_bytes * 64


def _check_types(data: Mapping[str, Any]) -> None:
    """Refuse a manifest whose parts are not of the types that whoever reads it relies on.

    Raises:
        ManifestError: naming the part and what it is.
    """
    _require_entries("", data, _OF_MANIFEST)
    for name, about in data["modalities"].items():
        _require_entries(f"modalities.{name}", about, _OF_MODALITY)
    for i, source in enumerate(data.get("sources", [])):
        _require_entries(f"sources[{i}]", source, _OF_SOURCE)


def _require_entries(where: str, about: Any, checks: Mapping[str, Callable[[Any], bool]]) -> None:
    if not isinstance(about, dict):
        raise ManifestError(f"the manifest is damaged: {where} cannot be {repr(about)[:60]}")
    for name, fits in checks.items():
        absent = name not in about or (about[name] is None and name in _MAY_BE_NULL)
        if not absent and not fits(about[name]):
            problem = f"the manifest is damaged: {where}{'.' if where else ''}{name} cannot be {repr(about[name])[:60]}"
            raise ManifestError(problem)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_counts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _is_windows(value: object) -> bool:
    return isinstance(value, dict) and _is_count(value.get("emitted", 0)) and _is_counts(value.get("dropped", {}))


def _is_spikes(value: object) -> bool:
    if not isinstance(value, dict) or not _is_counts(value.get("outside_because", {})):
        return False
    return all(_is_count(value.get(kind) or 0) for kind in SPIKE_COUNTS)


def _is_subject(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("subject_id") or "", str)


def _is_table(value: object) -> bool:
    """Return whether a value is a table of columns, all equally long."""
    if not isinstance(value, dict) or not all(isinstance(each, list) for each in value.values()):
        return False
    return len({len(each) for each in value.values()}) < 2


def _is_statistics(value: object) -> bool:
    names = ("count", "nan", "mean", "std", "min", "max")
    return isinstance(value, dict) and set(names) <= value.keys() and _is_table(value) and all(
        number is None or isinstance(number, (int, float)) for name in names for number in value[name]
    )  # fmt: skip


SPIKE_COUNTS = ("total", "binned", "outside", "invalid")
# What is read of the manifest, of a field's entry and of a source's, where it is there.
_MAY_BE_NULL = {"dtype", "shape", "unit", "columns", "session_id", "subject"}
_OF_MANIFEST: dict[str, Callable[[Any], bool]] = {
    "shard_size": _is_count,
    "compression": _is_text,
    "modalities": lambda value: isinstance(value, dict),
    "sources": lambda value: isinstance(value, list),
    "config": lambda value: isinstance(value, dict),
    "created_by": _is_text,
}
_OF_MODALITY: dict[str, Callable[[Any], bool]] = {
    "dtype": _is_text,
    "format": lambda value: _is_text(value) or _is_list_of(_is_text)(value),
    "shape": _is_list_of(lambda n: n is None or _is_count(n)),
    "unit": _is_text,
    "columns": lambda value: isinstance(value, list),
}
_OF_SOURCE: dict[str, Callable[[Any], bool]] = {
    "path": _is_text,
    "session_id": _is_text,
    "subject": _is_subject,
    "windows": _is_windows,
    "spikes": _is_spikes,
    "measured": lambda value: (
        isinstance(value, dict) and all(isinstance(each, (int, float)) for each in value.values())
    ),
    "fields": lambda value: isinstance(value, (dict, list)),
    "warnings": _is_list_of(_is_text),
    "error": _is_text,
    "support_rule": _is_text,
    "bins_in_tails": _is_count,
    "units": _is_table,
    "statistics": lambda value: isinstance(value, dict) and all(map(_is_statistics, value.values())),
}


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration's canonical JSON, in hexadecimal."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()  # a path may be no UTF-8


def recording_group(source: Mapping[str, Any], by: str) -> str | None:
    """Return what a source shares with others that a split keeps together with it; None if it does not say.

    Args:
        source: what the manifest reports on it.
        by: "subject" or "session" (of a subject, where that is named).

    Example:
        >>> source = {"path": "a.nwb", "session_id": "monday", "subject": {"subject_id": "mouse"}}
        >>> recording_group(source, "session"), recording_group(source, "subject"), recording_group({}, "session")
        ('mouse/monday', 'mouse', None)
    """
    subject, session = (source.get("subject") or {}).get("subject_id"), source.get("session_id")
    if by == "subject":
        return str(subject) if subject else None
    return "/".join(str(each) for each in (subject, session) if each) if session else None
