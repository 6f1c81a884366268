"""Join datasets into a new one without writing a tar again.

Knows manifests, shards and indexes; knows nothing of what is in a recording.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ManifestError, OutputError, ShardError
from ..format.groups import linked_group
from ..format.index import ShardIndex, index_path
from ..format.manifest import Manifest, ShardRecord, config_hash
from ..format.repeated_keys import key_hashes, repeated_keys
from ..format.shard_settings import DEFAULT_PATTERN, shard_name
from ..format.shards import ShardSet, open_shards
from ..storage.atomic import StagedDirectory, fsync_path
from .config import Output
from .joining import join_manifests, manifest_of
from .place import refuse_inside, staging


def merge(
    datasets: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    how: Literal["link", "copy"] = "link",
    overwrite: bool = False,
    repeat_keys: bool = False,
) -> dict[str, Any]:
    """Join datasets into a new one that holds their shards, in the order given, without writing a tar again.

    Args:
        datasets: directories of shards, with manifests or without (then the units of their fields are unknown).
        output_dir: the new dataset's directory; new or empty unless `overwrite` is set.
        how: "link": hard links to the old shards, which take no space; both must be on one file system. "copy": copies.
        overwrite: replace an existing dataset, in one step.
        repeat_keys: let a key occur in several shards. A tar holds its keys, so they cannot be changed here; a
            dataset converted with a ``key_prefix`` of its own has keys that no other has.

    Returns:
        The new manifest.

    Raises:
        ManifestError: the datasets differ in compression, or in fields, their dtypes, units or numbers of dimensions.
        ShardError: a shard is missing or damaged, or a key occurs twice and `repeat_keys` is not set.
        OutputError: the output is not empty, or cannot be written.
        ValueError: no dataset, or an unknown `how`.
    """
    if how not in ("link", "copy"):
        raise ValueError(f'how={how!r}: must be "link" or "copy"')
    if not datasets:
        raise ValueError("datasets=[]: there must be at least one")
    sets = [(Path(each), open_shards(each, shard_pattern="*.tar*")) for each in datasets]
    parts = [(where, manifest_of(where, shards)) for where, shards in sets]
    for where, part in parts:
        if linked_group(part) is not None:
            remedy = "merge the original datasets, and link the group from the result"
            problem = "it is a group of another dataset; merging would add the whole of that dataset"
            raise ManifestError(problem, file=where, remedy=remedy)
        _check_alike(parts[0], (where, part))
    refuse_inside(datasets, output_dir)
    with atomic_dataset(output_dir, overwrite) as staged:
        joined = join_manifests([part for _, part in parts])
        records = [*_add_all(sets, joined.compression, staged.path, how)]
        if not repeat_keys:
            _reject_repeated(staged.path, records, [where for where, shards in sets for _ in shards.paths])
        config = _config_of([part for _, part in parts], repeat_keys)
        replace(joined, shards=records, config=config).save(staged.path)
        return Manifest.load(staged.path).summary()


@contextlib.contextmanager
def atomic_dataset(output_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[StagedDirectory]:
    """Yield a staging directory; at the end it becomes the dataset, or is removed if an error occurred.

    Raises:
        OutputError: as :func:`neurofmx_wds.convert.place.staging`.
    """
    with staging(Output(output_dir, overwrite)) as staged:
        staged.clear()
        try:
            yield staged
            staged.commit()
        except BaseException:
            staged.discard()
            raise


def _check_alike(first: tuple[Path, Manifest], other: tuple[Path, Manifest]) -> None:
    (where, a), (file, b) = first, other
    differences = [] if a.compression == b.compression else [f"compression is {b.compression!r}, not {a.compression!r}"]
    for name in sorted(set(a.modalities) | set(b.modalities)):
        if name in a.modalities and name in b.modalities:
            differences += _field_differences(name, a.modalities[name], b.modalities[name])
        elif not name.endswith("_mask"):  # only datasets with missing values have masks
            differences.append(f"{name} is only in {file if name in b.modalities else where}")
    if differences:
        remedy = "convert them with the same settings, or do not merge them"
        raise ManifestError(f"it differs from {where}: {'; '.join(differences)}", file=file, remedy=remedy)


def _field_differences(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    def rank(about: Mapping[str, Any]) -> int | None:
        return None if about.get("shape") is None else len(about["shape"])

    compared = [(key, a[key], b[key]) for key in ("dtype", "unit", "rate", "format") if key in a and key in b]
    compared.append(("number of dimensions", rank(a), rank(b)))
    return [f"{name}'s {what} is {theirs!r}, not {ours!r}" for what, ours, theirs in compared if ours != theirs]


def _config_of(parts: Sequence[Manifest], repeat_keys: bool) -> dict[str, Any]:
    """Return the settings that all parts have in common, and a hash of the settings of each."""
    common = {k: v for k, v in parts[0].config.items() if all(k in p.config and p.config[k] == v for p in parts)}
    return {**common, "merged": [config_hash(part.config) for part in parts], "repeat_keys": repeat_keys}


def _add_all(
    sets: Sequence[tuple[Path, ShardSet]], compression: Any, directory: Path, how: str
) -> Iterator[ShardRecord]:
    """Link or copy all shards into `directory` under new names, with their index files; yield their records."""
    k = 0
    for _, shards in sets:
        for i, path in enumerate(shards.paths):
            index, name = shards.index(i), shard_name(DEFAULT_PATTERN, k, compression)
            if path.stat().st_size != index.file_size:
                problem = f"the shard has {path.stat().st_size} bytes, its index says {index.file_size}"
                raise ShardError(problem, file=path, remedy="restore it, or convert again")
            _bring(path, directory / name, how)
            replace(index, shard_name=name).save(index_path(directory / name))
            yield replace(shards.records[i], shard_name=name)
            k += 1


def _bring(path: Path, place: Path, how: str) -> None:
    try:
        if how == "link":
            os.link(os.path.realpath(path), place)
        else:
            shutil.copyfile(path, place)
            fsync_path(place)
    except OSError as error:
        remedy = "free disk space, or choose another output directory"
        if how == "link":
            across = error.errno in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)
            remedy = 'use how="copy" (--copy): hard links do not work between these directories' if across else remedy
        raise OutputError(f"cannot {how} {path}: {error.strerror}", file=place, remedy=remedy) from error


def _reject_repeated(directory: Path, records: Sequence[ShardRecord], datasets: Sequence[Path]) -> None:
    """Reject a key that occurs twice in these shards, of these datasets."""

    def keys(i: int) -> list[str]:
        return ShardIndex.load(index_path(directory / records[i].shard_name)).sample_keys

    for key, first, again in repeated_keys([key_hashes(keys(i)) for i in range(len(records))], keys):
        raise ShardError(
            f"the key {key!r} is in {datasets[first]} and in {datasets[again]}",
            remedy="allow it with repeat_keys=True (--repeat-keys): loaders tell samples apart by shard and "
            "place; or convert with a key_prefix (--key-prefix) for each",
        )
