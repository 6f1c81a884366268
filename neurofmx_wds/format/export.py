"""Index files with which wids and NVIDIA DALI read the shards at random places.

Knows the format; knows nothing of order or loading.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import GroupError, OutputError, ShardError
from ..storage.atomic import refuse_url, write_atomic
from ..storage.cache import is_packed
from ..storage.regular import open_regular
from .grouping import Sample, read_samples
from .groups import linked_group
from .index import index_path
from .shards import ShardSet, open_shards
from .tar import FILES, Member, read_members

WIDS_NAME = "shardindex.json"  # as the wids-index command calls it
_DALI_VERSION = "v1.2"


def export(
    shard_dir: str | os.PathLike[str],
    wids: bool = True,
    dali: bool = True,
    output_dir: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write what wids and DALI need to read a dataset's shards. Files that are there are replaced, each in one step.

    Every tar's headers are read; give it again when the dataset has grown.

    Args:
        shard_dir: the dataset's directory, with a manifest or without.
        wids: write ``shardindex.json``, for ``wids.ShardListDataset``.
        dali: write an ``.idx`` file for each shard, in the format v1.2 of DALI's ``wds2idx``, for
            ``fn.readers.webdataset(index_paths=…)``.
        output_dir: where; by default beside the shards.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: there is no such directory.
        ShardError: a shard is damaged, compressed, or holds what the other program would read wrongly.
        GroupError: the dataset is a group of another, made by link_group.
        OutputError: a file cannot be written.
    """
    refuse_url(output_dir or "")
    shards = open_shards(shard_dir)
    if linked_group(shards.manifest) is not None:
        problem = "a group's shards hold other samples too, and wids and DALI know no groups"
        raise GroupError(problem, file=shard_dir, remedy="export the dataset that the group was made of")
    directory = shards.paths[0].parent if output_dir is None and shards.paths else Path(output_dir or shard_dir)
    indexes: dict[str, str] = {}
    for path in shards.paths:
        samples = _read(path, wids)
        if dali:
            indexes[index_path(path).stem + ".idx"] = _dali_index(path, samples)
    if wids:
        indexes[WIDS_NAME] = _wids_index(shards, directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in indexes.items():
            write_atomic(directory / name, text.encode())
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise OutputError(problem, file=directory, remedy="choose another directory") from error
    return [directory / name for name in indexes]


def _read(path: Path, wids: bool) -> list[Sample]:
    """Return the samples of a shard that the other programs can read at their place in it."""
    if is_packed(path):
        remedy = 'convert with compression="none": wids and DALI map the tar itself'
        raise ShardError("a compressed shard cannot be exported", file=path, remedy=remedy)
    with open_regular(path) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        samples = read_samples(tar, path)
        if wids:
            used = {member.name for _, members in samples for _, member in members if not member.link}
            _check_for_wids(path, read_members(tar), used)
    for key, members in samples:
        if any(member.pieces is not None for _, member in members):
            remedy = "pack its files again without tar's --sparse"
            raise ShardError("a sparse file cannot be exported", file=path, sample=key, remedy=remedy)
    return samples


def _check_for_wids(path: Path, members: Iterable[Member], used: set[str]) -> None:
    """Refuse what wids reads wrongly: it parses the plain headers only, and finds members by their names."""
    seen: set[str] = set()
    for member in members:
        name, is_file = member.name, member.kind in FILES
        problems = {
            "its name is long or not ASCII": len(name) > 100 or not name.isascii(),
            "its name is there twice": name in seen,
            "it is a link": bool(member.link),
            "its name is no sample's": is_file and "." in name and name not in used,
        }
        for problem in (problem for problem, found in problems.items() if found):
            problem = f"wids would read this member wrongly: {problem}"
            raise ShardError(problem, file=path, member=name, remedy="export for DALI alone")
        if is_file:
            seen.add(name)


def _dali_index(path: Path, samples: list[Sample]) -> str:
    """Return a line for each sample: extension, offset and size of the payload, and name, of each of its members."""
    lines = [f"{_DALI_VERSION} {len(samples)}"]
    for key, members in samples:
        for _, member in members:
            if len(member.name.split()) != 1:
                problem = "DALI's index cannot hold a name with a space"
                raise ShardError(problem, file=path, member=member.name, remedy="export for wids alone")
        suffixes = [member.name[len(key) + 1 :] for _, member in members]  # with their capitals
        places = [f"{suffix} {m.offset} {m.size} {m.name}" for suffix, (_, m) in zip(suffixes, members, strict=True)]
        lines.append(" ".join(places))
    return "\n".join(lines) + "\n"


def _wids_index(shards: ShardSet, directory: Path) -> str:
    shardlist = [
        {
            "url": os.path.relpath(path, directory),
            "nsamples": record.n_samples,
            "filesize": record.n_bytes,
        }
        for path, record in zip(shards.paths, shards.records, strict=True)
    ]
    about = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": directory.name, "shardlist": shardlist}
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"
