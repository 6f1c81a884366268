"""What is wrong with a dataset, as far as names, sizes and index files show it.

Knows the manifest and index files; opens no tar.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import REBUILD_INDEX, RESTORE, ManifestError, NeurofmxError, ShardError
from ..storage.atomic import ASIDE_SUFFIX
from .index import INDEX_SUFFIX, ShardIndex, index_path
from .manifest import MANIFEST_NAME, Manifest, ShardRecord

_NO_TARS = (INDEX_SUFFIX, ASIDE_SUFFIX)


@dataclass(frozen=True)
class Problem:
    """A thing that is wrong.

    Attributes:
        what: what is wrong, one sentence.
        file: the file at fault.
        sample: the key of the sample at fault.
        member: the field or tar member at fault.
        remedy: what the user can do about it.
    """

    what: str
    file: str | None = None
    sample: str | None = None
    member: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        return str(NeurofmxError(self.what, file=self.file, sample=self.sample, member=self.member, remedy=self.remedy))

    @classmethod
    def of(cls, error: Exception, file: str) -> Problem:
        """Return the problem that an error describes."""
        if isinstance(error, NeurofmxError):
            return cls(error.problem, error.file or file, error.sample, error.member, error.remedy)
        return cls(f"cannot be read: {getattr(error, 'strerror', None) or error}", file, remedy=RESTORE)


def dataset_directory(shard_dir: str | os.PathLike[str]) -> Path:
    """Return the directory of a dataset.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: it is a file, or a pattern.
    """
    directory = Path(shard_dir)
    if directory.is_dir():
        return directory
    if glob.glob(str(directory)):
        remedy = f"give their directory, {directory.parent}: all tars in it are read"
        raise ShardError("it names files, not a directory", file=directory, remedy=remedy)
    raise FileNotFoundError(f"{directory}: there is no such directory")


def load_manifest(directory: Path, problems: list[Problem]) -> Manifest | None:
    """Return the manifest; None if there is none, or if it is damaged: then `problems` says so."""
    try:
        return Manifest.load(directory)
    except FileNotFoundError:
        return None
    except (ManifestError, OSError) as error:
        problems.append(Problem.of(error, str(directory / MANIFEST_NAME)))
        return None


def name_of(shard: str | ShardRecord) -> str:
    """Return the file name of a shard."""
    return shard.shard_name if isinstance(shard, ShardRecord) else shard


def list_shards(directory: Path, manifest: Manifest | None, problems: list[Problem]) -> Sequence[str | ShardRecord]:
    """Return the shards that the manifest lists, or without a manifest those in the directory.

    Args:
        directory: the dataset.
        manifest: its manifest, if there is one.
        problems: files that are missing or that should not be there are added to it.
    """
    present = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    tars = [name for name in present if index_path(name).stem != name and not name.endswith(_NO_TARS)]
    _note(problems, directory, [n for n in present if n.endswith(ASIDE_SUFFIX)], "left over from a killed run")
    if manifest is None:
        if not tars:
            problems.append(Problem("there are no shards", str(directory), remedy="check the directory"))
        return tars
    listed = {record.shard_name for record in manifest.shards}
    listed |= {index_path(name).name for name in listed}
    extra = [name for name in present if (name in tars or name.endswith(INDEX_SUFFIX)) and name not in listed]
    _note(problems, directory, extra, "the manifest does not list it, so it is never read")
    return manifest.shards


def _note(problems: list[Problem], directory: Path, names: list[str], what: str) -> None:
    problems += [Problem(what, str(directory / name), remedy="remove it") for name in names]


def wrong_size(path: Path, size: int, record: ShardRecord) -> Problem:
    """Return the problem of a shard that does not have the size in the manifest."""
    return Problem(f"the shard has {size} bytes, the manifest says {record.n_bytes}", str(path), remedy=RESTORE)


def load_sidecar(path: Path) -> tuple[ShardIndex | None, list[Problem]]:
    """Return a shard's index file, or what is wrong with it; `(None, [])` if absent."""
    sidecar = index_path(path)
    try:
        return ShardIndex.beside(path), []
    except FileNotFoundError:
        return None, []
    except (ShardError, OSError) as error:
        return None, [Problem.of(error, str(sidecar))]


def compare_sidecar(path: Path, size: int, index: ShardIndex, record: ShardRecord | None) -> list[Problem]:
    """Compare what an index says of its shard with the shard and with the manifest."""
    pairs = [("file name", index.shard_name, path.name), ("size", index.file_size, size)]
    if record is not None:
        pairs += [("number of samples", index.n_samples, record.n_samples)]
        pairs += [("checksum", index.sha256, record.sha256)] if index.sha256 and record.sha256 else []
    sidecar = str(index_path(path))
    return [
        Problem(f"the index says {said!r} of the shard's {what}, it is {true!r}", sidecar, remedy=REBUILD_INDEX)
        for what, said, true in pairs
        if said != true
    ]
