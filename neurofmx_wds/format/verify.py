"""Check a dataset: report every problem with its remedy, and raise no error about damage.

Knows the format; knows nothing of recordings, order or loading.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import INDEX_SHARDS, REBUILD_INDEX, RESTORE, ShardError
from ..storage.cache import ShardCache
from ..storage.processes import ordered_map
from ..storage.progress import progress_bar
from . import html
from .decoding import decode
from .index import ShardIndex, index_path
from .manifest import ShardRecord
from .names import field_of
from .plain import build_index, members, open_tar
from .problems import (
    Problem,
    compare_sidecar,
    dataset_directory,
    list_shards,
    load_manifest,
    load_sidecar,
    name_of,
    wrong_size,
)
from .repeated_keys import key_hashes, repeated_keys

_REMAKE = f"remove it, and {INDEX_SHARDS}"


@dataclass
class Report:
    """The result of :func:`verify`.

    Attributes:
        problems: everything that is wrong; empty for a sound dataset.
        shards: number of shards checked.
        samples: number of samples in them.
        members: number of members read and decoded (0 unless `deep`).
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
        workers: number of processes.
        executor: an executor to use instead.
        show_progress: show a bar, on a terminal.

    Returns:
        A report. Damage is in the report, and raises no error.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: it is a file, or a pattern.
    """
    directory = dataset_directory(shard_dir)
    report = Report(deep=deep)
    manifest = load_manifest(directory, report.problems)
    shards = list_shards(directory, manifest, report.problems)
    check = functools.partial(_check_shard, directory, manifest.modalities if manifest else None, deep)
    with ordered_map(workers, executor) as apply:
        checked = [*progress_bar(apply(check, shards), len(shards), "shard", show_progress, desc="verifying")]
    for each in checked:
        report.problems += each.problems
        report.samples += each.samples
        report.members += each.members
        report.n_bytes += each.n_bytes
    report.shards = len(shards)
    if not (manifest and manifest.config.get("repeat_keys")):  # merge was asked to allow repeated keys
        report.problems += _repeated(directory, shards, [each.key_hashes for each in checked])
    return report


def _check_shard(
    directory: Path, modalities: Mapping[str, Mapping[str, Any]] | None, deep: bool, shard: str | ShardRecord
) -> _Checked:
    record = shard if isinstance(shard, ShardRecord) else None
    path = directory / name_of(shard)
    try:
        size = path.stat().st_size
        if record is not None and size != record.n_bytes:
            return _Checked([wrong_size(path, size, record)], n_bytes=size)
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
    index, problems = load_sidecar(path)
    if index is not None:
        problems += compare_sidecar(path, size, index, record)
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
    return _Checked(problems, truth.n_samples, len(truth.member_size), size, key_hashes(truth.sample_keys))


def _same_index(made: ShardIndex, index: ShardIndex) -> bool:
    crc32 = made.member_crc32 if index.has_checksums else index.member_crc32
    return dataclasses.replace(made, sha256=index.sha256, member_crc32=crc32).to_bytes() == index.to_bytes()


def _check_member(suffix: str, data: bytes, modalities: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    try:
        value = decode(suffix, data)
    except ShardError as error:
        return error.problem
    name = field_of(suffix)
    if modalities is None or name == "metadata":
        return None
    if name not in modalities:
        return "the manifest does not list this field"
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


def _repeated(directory: Path, shards: Sequence[str | ShardRecord], hashes: Sequence[np.ndarray]) -> list[Problem]:
    """Return a problem for each key that occurs more than once."""
    names = [name_of(shard) for shard in shards]
    remedy = "convert again, with unique keys"
    return [
        Problem(f"a sample of {names[first]} has the same key", str(directory / names[again]), key, remedy=remedy)
        for key, first, again in repeated_keys(hashes, lambda i: _keys_of(directory / names[i]))
    ]


def _keys_of(path: Path) -> list[str]:
    index, _ = load_sidecar(path)
    if index is None:
        with tempfile.TemporaryDirectory(prefix="neurofmx-verify-") as cache:
            index = build_index(path, ShardCache(cache))
    return index.sample_keys
