"""Is a dataset what it says it is? Looks at everything, raises nothing, and says what to do about each finding.

Knows the format; knows nothing of recordings, order or loading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import INDEX_SHARDS, REBUILD_INDEX, RESTORE, ManifestError, NeurofmxError, ShardError
from ..storage.atomic import ASIDE_SUFFIX
from ..storage.cache import ShardCache
from ..storage.processes import ordered_map
from ..storage.progress import progress_bar
from . import html
from .decoding import decode
from .index import INDEX_SUFFIX, ShardIndex, index_path
from .manifest import MANIFEST_NAME, Manifest, ShardRecord
from .names import field_of
from .plain import build_index, open_plain

_REMAKE = f"remove it, and {INDEX_SHARDS}"
_NO_TARS = (INDEX_SUFFIX, ASIDE_SUFFIX)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

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
        """What an error says."""
        if isinstance(error, NeurofmxError):
            return cls(error.problem, error.file or file, error.sample, error.member, error.remedy)
        return cls(f"cannot be read: {getattr(error, 'strerror', None) or error}", file, remedy=RESTORE)


@dataclass
class Report:
    """What was looked at and what was found.

    Attributes:
        problems: what is wrong; empty where all is well.
        shards: shards looked at.
        samples: samples in them.
        members: members that were read and decoded (none unless `deep`).
        n_bytes: size of the shards.
        deep: whether every byte was read.
    """

    problems: list[Problem] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    members: int = 0
    n_bytes: int = 0
    deep: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def _repr_html_(self) -> str:
        about = {"shards": self.shards, "samples": self.samples, "every byte read": self.deep, "ok": self.ok}
        return html.facts(about) + html.items(map(str, self.problems))


@dataclass(frozen=True)
class _Checked:
    problems: list[Problem]
    samples: int = 0
    members: int = 0
    n_bytes: int = 0
    key_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))


def verify(
    shard_dir: str | os.PathLike[str],
    deep: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    show_progress: bool = False,
) -> Report:
    """Check a dataset's manifest, shards and indexes against each other.

    Args:
        shard_dir: the dataset's directory, with a manifest or without.
        deep: also read every byte: checksums, each index against its tar, every member decoded and compared with the
            manifest, keys unique over all shards.
        workers: processes to check with.
        executor: any executor to use instead.
        show_progress: show a bar, on a terminal.

    Returns:
        What was found. Damage is reported, never raised.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: it is a file, or a pattern.
    """
    directory = _directory(shard_dir)
    report = Report(deep=deep)
    manifest = _manifest_of(directory, report)
    shards = _shards_of(directory, manifest, report)
    check = functools.partial(_check_shard, directory, manifest.modalities if manifest else None, deep)
    with ordered_map(workers, executor) as apply:
        checked = [*progress_bar(apply(check, shards), len(shards), "shard", show_progress, desc="verifying")]
    for each in checked:
        report.problems += each.problems
        report.samples += each.samples
        report.members += each.members
        report.n_bytes += each.n_bytes
    report.shards = len(shards)
    if not (manifest and manifest.config.get("repeat_keys")):  # merge was told to let them repeat
        report.problems += _repeated_keys(directory, shards, [each.key_hashes for each in checked])
    return report


def _directory(shard_dir: str | os.PathLike[str]) -> Path:
    directory = Path(shard_dir)
    if directory.is_dir():
        return directory
    if glob.glob(str(directory)):
        remedy = f"give their directory, {directory.parent}: all tars in it are looked at"
        raise ShardError("it names files, and a directory is wanted", file=directory, remedy=remedy)
    raise FileNotFoundError(f"{directory}: there is no such directory")


def _manifest_of(directory: Path, report: Report) -> Manifest | None:
    try:
        return Manifest.load(directory)
    except FileNotFoundError:
        return None
    except (ManifestError, OSError) as error:
        report.problems.append(Problem.of(error, str(directory / MANIFEST_NAME)))
        return None


def _name_of(shard: str | ShardRecord) -> str:
    return shard.shard_name if isinstance(shard, ShardRecord) else shard


def _shards_of(directory: Path, manifest: Manifest | None, report: Report) -> Sequence[str | ShardRecord]:
    """The shards that the manifest lists, or, without one, those that are there."""
    present = sorted(entry.name for entry in os.scandir(directory) if entry.is_file())
    tars = [name for name in present if index_path(name).stem != name and not name.endswith(_NO_TARS)]
    _note(report, directory, [n for n in present if n.endswith(ASIDE_SUFFIX)], "left over from a run that was killed")
    if manifest is None:
        if not tars:
            report.problems.append(Problem("there are no shards", str(directory), remedy="check the directory"))
        return tars
    listed = {record.shard_name for record in manifest.shards}
    listed |= {index_path(name).name for name in listed}
    extra = [name for name in present if (name in tars or name.endswith(INDEX_SUFFIX)) and name not in listed]
    _note(report, directory, extra, "the manifest does not list it, so nothing will read it")
    return manifest.shards


def _note(report: Report, directory: Path, names: list[str], what: str) -> None:
    report.problems += [Problem(what, str(directory / name), remedy="remove it") for name in names]


def _check_shard(
    directory: Path, modalities: Mapping[str, Mapping[str, Any]] | None, deep: bool, shard: str | ShardRecord
) -> _Checked:
    record = shard if isinstance(shard, ShardRecord) else None
    path = directory / _name_of(shard)
    try:
        size = path.stat().st_size
        if record is not None and size != record.n_bytes:
            return _Checked([_wrong_size(path, size, record)], n_bytes=size)
        with tempfile.TemporaryDirectory(prefix="neurofmx-verify-") as cache:
            return _check_content(path, size, record, modalities, deep, ShardCache(cache))
    except FileNotFoundError:
        return _Checked([Problem("the shard is missing", str(path), remedy=RESTORE)])
    except (ShardError, OSError) as error:
        return _Checked([Problem.of(error, str(path))])


def _check_content(
    path: Path,
    size: int,
    record: ShardRecord | None,
    modalities: Mapping[str, Mapping[str, Any]] | None,
    deep: bool,
    cache: ShardCache,
) -> _Checked:
    index, problems = _load_index(path)
    if index is not None:
        problems += _compare_index(path, size, index, record)
    elif not problems and record is not None:  # plain webdataset's shards have none
        problems.append(Problem("the shard's index is missing", str(index_path(path)), remedy=REBUILD_INDEX))
    truth = build_index(path, cache, checksum=deep) if deep or index is None else index
    if not deep:
        return _Checked(problems, truth.n_samples, 0, size)
    wanted = (record and record.sha256) or (index and index.sha256)
    changed = np.zeros(len(truth.member_size), bool)
    if wanted and truth.sha256 != wanted:
        problems.append(Problem("the shard's bytes have changed: its checksum differs", str(path), remedy=RESTORE))
        if index is not None and len(index.member_crc32) == len(changed):
            changed = truth.member_crc32 != index.member_crc32
    elif index is not None and not problems and not _same_index(truth, index):
        problems.append(Problem("the index does not describe the tar", str(index_path(path)), remedy=_REMAKE))
    with open_tar(path, cache, truth) as tar:
        for (key, suffix, payload), other in zip(members(truth, tar), changed.tolist(), strict=True):
            what = "its bytes have changed" if other else _check_member(suffix, payload, modalities)
            if what:
                problems.append(Problem(what, str(path), key, suffix, RESTORE))
    hashes = np.array([_hash(key) for key in truth.sample_keys], np.uint64)
    return _Checked(problems, truth.n_samples, len(truth.member_size), size, hashes)


def _wrong_size(path: Path, size: int, record: ShardRecord) -> Problem:
    return Problem(f"the shard has {size} bytes, the manifest says {record.n_bytes}", str(path), remedy=RESTORE)


def _load_index(path: Path) -> tuple[ShardIndex | None, list[Problem]]:
    """A shard's sidecar, or what is wrong with it; neither where there is none."""
    sidecar = index_path(path)
    try:
        return ShardIndex.beside(path), []
    except FileNotFoundError:
        return None, []
    except (ShardError, OSError) as error:
        return None, [Problem.of(error, str(sidecar))]


def _compare_index(path: Path, size: int, index: ShardIndex, record: ShardRecord | None) -> list[Problem]:
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


def _same_index(made: ShardIndex, index: ShardIndex) -> bool:
    crc32 = made.member_crc32 if index.has_checksums else index.member_crc32
    return dataclasses.replace(made, sha256=index.sha256, member_crc32=crc32).to_bytes() == index.to_bytes()


@contextlib.contextmanager
def open_tar(path: Path, cache: ShardCache, index: ShardIndex) -> Iterator[mmap.mmap]:
    """Map a shard's plain tar."""
    with open_plain(path, cache, index) as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            yield tar


def members(index: ShardIndex, tar: mmap.mmap, samples: range | None = None) -> Iterator[tuple[str, str, bytes]]:
    """The payloads of a shard's samples.

    Args:
        index: the shard's index.
        tar: its bytes, unpacked.
        samples: which of its samples; by default all.

    Yields:
        key, suffix, payload.
    """
    for i in range(index.n_samples) if samples is None else samples:
        for m in range(index.sample_start[i], index.sample_start[i + 1]):
            offset, size = int(index.member_offset[m]), int(index.member_size[m])
            yield index.sample_keys[i], index.suffixes[index.member_suffix[m]], tar[offset : offset + size]


def _check_member(suffix: str, data: bytes, modalities: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    try:
        value = decode(suffix, data)
    except ShardError as error:
        return error.problem
    name = field_of(suffix)
    if modalities is None or name == "metadata":
        return None
    if name not in modalities:
        return "the manifest knows no such field"
    about = modalities[name]
    if not isinstance(value, (np.ndarray, np.generic)) or "dtype" not in about:
        return None
    if about["dtype"] not in (None, value.dtype.name):
        return f"holds {value.dtype.name}, the manifest says {about['dtype']}"
    shape = about.get("shape")
    if shape is not None and not (
        len(shape) == value.ndim and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    ):
        return f"has the shape {list(value.shape)}, the manifest says {shape}"
    return None


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _repeated_keys(directory: Path, shards: Sequence[str | ShardRecord], hashes: Sequence[np.ndarray]) -> list[Problem]:
    """Keys that occur more than once; 8 bytes a key are held, so that large datasets fit."""
    values, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_counts=True)
    suspects = set(values[counts > 1].tolist())
    first: dict[str, str] = {}
    problems = []
    for shard, own in zip(shards, hashes, strict=True):
        if suspects.isdisjoint(own.tolist()):
            continue
        path = directory / _name_of(shard)
        for key in _keys_of(path):
            if _hash(key) in suspects:
                if key in first:
                    what = f"a sample of {first[key]} has the same key"
                    problems.append(Problem(what, str(path), key, remedy="convert again, with unique keys"))
                first.setdefault(key, path.name)
    return problems


def _keys_of(path: Path) -> list[str]:
    index, _ = _load_index(path)
    if index is None:
        with tempfile.TemporaryDirectory(prefix="neurofmx-verify-") as cache:
            index = build_index(path, ShardCache(cache))
    return index.sample_keys


@dataclass(frozen=True)
class IndexReport:
    """What :func:`write_indexes` did.

    Attributes:
        made: the sidecars written.
        kept: how many were there and good.
        problems: what could not be done.
    """

    made: list[str]
    kept: int
    problems: list[Problem]


def write_indexes(
    shard_dir: str | os.PathLike[str], repair: bool = False, workers: int = 1, executor: Executor | None = None
) -> IndexReport:
    """Write the sidecar indexes that a directory of tars lacks, with the shards' checksums.

    Args:
        shard_dir: a directory of shards, ours or any that webdataset reads.
        repair: also make anew what is damaged or does not belong to its shard.
        workers: processes to do it with.
        executor: any executor to use instead.

    Returns:
        What was done. Damaged shards are reported, never raised.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: it is a file, or a pattern.
    """
    directory = _directory(shard_dir)
    report = Report()
    shards = _shards_of(directory, _manifest_of(directory, report), report)
    with ordered_map(workers, executor) as apply:
        done = list(apply(functools.partial(_write_index, directory, repair), shards))
    made = [index_path(_name_of(shard)).name for shard, each in zip(shards, done, strict=True) if each is True]
    return IndexReport(made, done.count(False), report.problems + [each for each in done if isinstance(each, Problem)])


def _write_index(directory: Path, repair: bool, shard: str | ShardRecord) -> bool | Problem:
    """Whether an index was made, or why not."""
    record = shard if isinstance(shard, ShardRecord) else None
    path = directory / _name_of(shard)
    try:
        size = path.stat().st_size
        if record is not None and size != record.n_bytes:
            return _wrong_size(path, size, record)
        index, problems = _load_index(path)
        if index is not None:
            problems = _compare_index(path, size, index, record)
        if index is not None and not problems and index.sha256 and index.has_checksums:
            return False
        if problems and not repair:
            return problems[0]
        wanted = (record and record.sha256) or (index and not problems and index.sha256)
        with tempfile.TemporaryDirectory(prefix="neurofmx-index-") as cache:
            index = build_index(path, ShardCache(cache), checksum=True)
        if wanted and index.sha256 != wanted:
            return Problem("the shard's bytes have changed: its checksum differs", str(path), remedy=RESTORE)
        index.save(index_path(path))
        return True
    except FileNotFoundError:
        return Problem("the shard is missing", str(path), remedy=RESTORE)
    except (ShardError, OSError) as error:
        return Problem.of(error, str(path))
