"""Index files with which wids and NVIDIA DALI read the shards at random places.

Knows the format; knows nothing of order or loading.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import GroupError, OutputError, ShardError
from ..storage.atomic import refuse_url, write_atomic
from ..storage.cache import is_compressed
from .groups import linked_group
from .index import index_path, key_and_suffix, read_members
from .shards import ShardSet, open_shards

WIDS_NAME = "shardindex.json"  # as the wids-index command calls it
_DALI_VERSION = "v1.2"

Members = list[tuple[str, str, tarfile.TarInfo]]


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
        if is_compressed(path):
            remedy = 'convert with compression="none": wids and DALI map the tar itself'
            raise ShardError("a compressed shard cannot be exported", file=path, remedy=remedy)
        samples = [list(group) for _, group in itertools.groupby(_members(path, wids), key=lambda member: member[0])]
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


def _members(path: Path, wids: bool) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    seen: set[str] = set()
    for info in read_members(path):
        key, suffix = key_and_suffix(info.name)
        if wids:  # it parses the plain headers only, and finds members by their names
            odd = len(info.name) > 100 or not info.name.isascii()
            if odd or info.name in seen or (key is None and "." in info.name):
                problem = "wids would read this member wrongly: its name is " + (
                    "long or not ASCII" if odd else "there twice" if info.name in seen else "no sample's"
                )
                raise ShardError(problem, file=path, member=info.name, remedy="export for DALI alone")
            seen.add(info.name)
        if key is not None:
            yield key, suffix, info


def _dali_index(path: Path, samples: list[Members]) -> str:
    """A line for each sample: extension, offset and size of the payload, and name, of each of its members."""
    lines = [f"{_DALI_VERSION} {len(samples)}"]
    for members in samples:
        for _, _, info in members:
            if len(info.name.split()) != 1:
                remedy = "export for wids alone"
                raise ShardError(
                    "DALI's index cannot hold a name with a space", file=path, member=info.name, remedy=remedy
                )
        lines.append(" ".join(f"{suffix} {info.offset_data} {info.size} {info.name}" for _, suffix, info in members))
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
