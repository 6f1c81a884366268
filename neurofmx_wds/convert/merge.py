"""Datasets that grow: recordings appended to one, or several joined into a new one, without a tar being written again.

Knows manifests, shards and indexes; knows nothing of what is in a recording.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import ManifestError, OutputError, ShardError, SourceError
from ..format.groups import linked_group
from ..format.index import ShardIndex, index_path, modalities_of
from ..format.manifest import MANIFEST_NAME, Manifest, ShardRecord, config_hash
from ..format.shard_settings import COMPRESSIONS, DEFAULT_PATTERN, shard_name
from ..format.shards import ShardSet, open_shards
from ..storage.atomic import StagedDirectory, fsync_path, refuse_url
from ..storage.location import Given, on_disk
from ..version import CREATED_BY
from .config import Output, Work, Workers
from .look import Notes, look_at, reject_conflicts
from .place import refuse_inside, staging, staging_beside
from .plan import ConversionPlan, PlannedSource, differences, identity_of
from .run import Conversion, NothingToWrite, build
from .shards import files_of
from .sources import SourceConfig
from .staged import noted, remove_notes


def append(
    paths: Sequence[Given],
    output: Output,
    config: SourceConfig = SourceConfig(),
    workers: Workers = Workers(),
) -> Conversion:
    """Add recordings to a dataset that :func:`neurofmx_wds.convert.run.convert` made, as new shards behind its own.

    The shards that are there stay as they are, also a last one that is not full, and keys are counted on. Readers see
    the old dataset until the manifest is replaced, in one step, and the new one from then on. Killed and run again, it
    is finished; a recording that the dataset has already (the same bytes) is not taken twice.

    Args:
        paths: NWB, npz or npy files, URLs or open files, as :func:`neurofmx_wds.convert.run.convert`.
        output: the dataset's directory, and how its shards were written.
        config: how the files are read; as it was for the dataset.
        workers: who does the work.

    Returns:
        What was added (an empty plan when all was there already) and the manifest of the whole dataset.

    Raises:
        SourceError: no file gives any sample.
        OutputError: there is no such dataset, it was made with other settings, or it cannot be written.
        ManifestError: its manifest is damaged.
        ValueError: an impossible setting.
    """
    plan = ConversionPlan((), config, output)
    what_is_there(output.directory, plan)
    with (
        on_disk(paths) as names,
        staging_beside(output.directory) as staged,
        workers.start() as work,
    ):
        plan = replace(plan, entries=look_at(names, config, work, Notes(staged.path)))
        return append_plan(plan, staged, work)


def what_is_there(dataset_dir: str | os.PathLike[str], plan: ConversionPlan) -> Manifest:
    """The manifest of a dataset that a plan is to be added to.

    Raises:
        OutputError: there is no such dataset, or it was made with other settings.
        ManifestError: its manifest is damaged.
    """
    refuse_url(dataset_dir)
    if not (Path(dataset_dir) / MANIFEST_NAME).is_file():
        raise OutputError("there is no dataset to append to", file=dataset_dir, remedy="convert without --append")
    old = Manifest.load(Path(dataset_dir))
    told = differences(old.config, plan.to_json())
    if told:
        raise OutputError(
            f"the dataset was made with other settings: {'; '.join(told)}",
            file=dataset_dir,
            remedy="append with the same settings, or convert into a dataset of its own",
        )
    return old


def append_plan(plan: ConversionPlan, staged: StagedDirectory, work: Work) -> Conversion:
    """Add to a dataset what a plan gives and the dataset has not yet.

    Args:
        plan: what to add.
        staged: the dataset and the place to make new shards in.
        work: how the work is spread.

    Returns:
        As :func:`append`.

    Raises:
        SourceError, OutputError, ManifestError: as :func:`append`.
    """
    old = what_is_there(staged.target, plan)
    entries = plan.entries
    labels = old.modalities.get("label", {}).get("names")
    keys = _keys_in(staged.target, old) if plan.config.format == "files" else ()
    plan = replace(
        plan,
        entries=reject_conflicts(_not_yet_in(old, entries), plan.config, labels, keys),
        first_shard=len(old.shards),
        first_sample=old.total_samples,
    )
    _take_back(staged, old)
    if not plan.sources and len(plan.entries) < len(entries):  # a file that cannot be read is no news, either
        remove_notes(staged.path)
        return Conversion(plan, old.summary())
    try:  # what was begun of a recording that has changed since is thrown away: no reader has seen it
        plan, new = build(plan, staged.path, work, anew=True)
    except NothingToWrite:
        if plan.n_samples:  # seen, but unreadable; what cannot even be seen may be there again tomorrow
            staged.discard()
        raise
    joined = _added(old, new)
    _put_in(staged, joined, new)
    return Conversion(plan, joined.summary())


def _not_yet_in(
    manifest: Manifest, entries: Sequence[PlannedSource | SourceError]
) -> tuple[PlannedSource | SourceError, ...]:
    known = {report["path"]: identity for report in manifest.sources if (identity := identity_of(report))}
    there = set(known.values())
    fresh: list[PlannedSource | SourceError] = []
    for entry in entries:
        if isinstance(entry, SourceError):
            fresh.append(entry)
            continue
        name = entry.file.name
        if entry.file.identity in there:
            continue
        there.add(entry.file.identity)
        if name in known:
            problem = "the dataset has a recording of this name with other content"
            remedy = "if it is another recording, rename it; if it was changed, convert the dataset anew"
            fresh.append(SourceError(problem, file=entry.file.path, remedy=remedy))
        else:
            fresh.append(entry)
    return tuple(fresh)


def _keys_in(directory: Path, manifest: Manifest) -> Iterator[str]:
    for record in manifest.shards:
        yield from ShardIndex.load(index_path(directory / record.shard_name)).sample_keys


def _take_back(staged: StagedDirectory, old: Manifest) -> None:
    """Take back the shards of a run that was killed after it had put some in place, before its manifest was."""
    listed = {each for record in old.shards for each in files_of(record.shard_name)}
    for name in noted(staged.path):
        for file in files_of(name):
            if file not in listed and (staged.target / file).exists():
                os.replace(staged.target / file, staged.path / file)


def _put_in(staged: StagedDirectory, joined: Manifest, new: Manifest) -> None:
    """Put the new shards beside the old ones, then the manifest that tells of both in the old one's place."""
    target = staged.target
    names = [file for record in new.shards for file in files_of(record.shard_name)]
    taken = [name for name in names if os.path.lexists(target / name)]
    if taken:
        problem = f"there are files with the names of the new shards: {', '.join(taken[:3])}"
        raise OutputError(problem, file=target, remedy="move them away: the manifest does not list them")
    try:
        joined.save(staged.path)
        for name in names:
            os.rename(staged.path / name, target / name)
        fsync_path(target)
        os.rename(staged.path / MANIFEST_NAME, target / MANIFEST_NAME)
        fsync_path(target)
    except OSError as error:
        problem = f"cannot put the new shards in place: {error.strerror}"
        raise OutputError(problem, file=target, remedy="mend that and run again: what is made is kept") from error
    remove_notes(staged.path)


def _added(old: Manifest, new: Manifest) -> Manifest:
    """The manifest of both; a recording that could not be read before and is there now is no failure any more."""
    read = {report["path"] for report in new.sources if "error" not in report}
    kept = [report for report in old.sources if not ("error" in report and report["path"] in read)]
    joined = _joined([replace(old, sources=kept), new])
    return replace(joined, shard_size=old.shard_size, config=old.config, created_by=old.created_by)


def _joined(parts: Sequence[Manifest]) -> Manifest:
    """One manifest of several; what the parts say differently of a field is said of each source instead."""
    modalities: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, about in part.modalities.items():
            modalities[name] = _common(modalities[name], about) if name in modalities else dict(about)
    return Manifest(
        shard_size=max(part.shard_size for part in parts),
        compression=parts[0].compression,
        modalities=dict(sorted(modalities.items())),
        shards=[record for part in parts for record in part.shards],
        sources=[_told_apart(report, part.modalities, modalities) for part in parts for report in part.sources],
        created_by=CREATED_BY,
    )


def _common(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    common = {key: value for key, value in a.items() if key in b and b[key] == value}
    if "dtype" in a and "dtype" in b:
        common.setdefault("dtype", None)
    if "shape" in a and "shape" in b:
        sizes, others = a["shape"], b["shape"]
        alike = sizes is not None and others is not None and len(sizes) == len(others)
        common["shape"] = [n if n == m else None for n, m in zip(sizes, others, strict=True)] if alike else None
    return common


def _told_apart(
    report: Mapping[str, Any], own: Mapping[str, Mapping[str, Any]], common: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A source's report, with all that the joined manifest no longer says of its fields."""
    if not isinstance(report.get("fields"), dict):
        return dict(report)
    told = {
        name: {key: value for key, value in {**own.get(name, {}), **about}.items() if common[name].get(key) != value}
        if name in common
        else about
        for name, about in report["fields"].items()
    }
    return {**report, "fields": told}


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
        datasets: directories of shards, with manifests or without (their fields' units are unknown then).
        output_dir: the new dataset's directory; new or empty unless `overwrite` is set.
        how: "link": its shards are hard links to the old ones, which take no space; both must be on one file system.
            "copy": they are copies.
        overwrite: replace an existing dataset, in one step.
        repeat_keys: let a key occur in several shards. A tar holds its keys, so they cannot be changed here; a
            dataset converted with a ``key_prefix`` of its own has keys that no other has.

    Returns:
        The new manifest.

    Raises:
        ManifestError: the datasets differ in compression, or in fields, their dtypes, units or numbers of dimensions.
        ShardError: a shard is missing or damaged, or a key occurs twice and `repeat_keys` is not set.
        OutputError: the output is not empty, or cannot be written.
        ValueError: no dataset, or another `how`.
    """
    if how not in ("link", "copy"):
        raise ValueError(f'how={how!r}: must be "link" or "copy"')
    if not datasets:
        raise ValueError("datasets=[]: there must be at least one")
    sets = [(Path(each), open_shards(each, shard_pattern="*.tar*")) for each in datasets]
    parts = [(where, manifest_of(where, shards)) for where, shards in sets]
    for where, part in parts:
        if linked_group(part) is not None:
            remedy = "merge the datasets that they were made of, and make the group of that"
            raise ManifestError(
                "it is a group of another dataset: merged, it would be all of it", file=where, remedy=remedy
            )
        _check_alike(parts[0], (where, part))
    refuse_inside(datasets, output_dir)
    with atomic_dataset(output_dir, overwrite) as staged:
        joined = _joined([part for _, part in parts])
        records = [*_shown(sets, joined.compression, staged.path, how)]
        if not repeat_keys:
            _refuse_repeated(staged.path, records, [where for where, shards in sets for _ in shards.paths])
        config = _config_of([part for _, part in parts], repeat_keys)
        replace(joined, shards=records, config=config).save(staged.path)
        return Manifest.load(staged.path).summary()


@contextlib.contextmanager
def atomic_dataset(output_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[StagedDirectory]:
    """A staging directory to make a dataset in at one go: it is in its place afterwards, or nothing is left of it.

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


def manifest_of(directory: Path, shards: ShardSet) -> Manifest:
    """A dataset's manifest, made up from its indexes where there is none."""
    if shards.manifest is not None:
        return replace(shards.manifest, shards=shards.records)
    endings = {path.name.rpartition(".tar")[2].lstrip(".") or "none" for path in shards.paths}
    if len(endings) > 1 or not endings <= set(COMPRESSIONS):
        raise ManifestError("its shards are compressed in several ways", file=directory, remedy="merge each kind alone")
    modalities = modalities_of(shards.index(i) for i in range(len(shards.paths)))
    size = max(int(shards.counts.max(initial=1)), 1)
    return Manifest(size, endings.pop(), modalities, shards.records)


def _check_alike(first: tuple[Path, Manifest], other: tuple[Path, Manifest]) -> None:
    (where, a), (file, b) = first, other
    told = [] if a.compression == b.compression else [f"compression is {b.compression!r}, not {a.compression!r}"]
    for name in sorted(set(a.modalities) | set(b.modalities)):
        if name in a.modalities and name in b.modalities:
            told += _field_differences(name, a.modalities[name], b.modalities[name])
        elif not name.endswith("_mask"):  # a mask is there where something can be missing
            told.append(f"{name} is only in {file if name in b.modalities else where}")
    if told:
        remedy = "convert them with the same settings, or keep them apart"
        raise ManifestError(f"does not agree with {where}: {'; '.join(told)}", file=file, remedy=remedy)


def _field_differences(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    def rank(about: Mapping[str, Any]) -> int | None:
        return None if about.get("shape") is None else len(about["shape"])

    compared = [(key, a[key], b[key]) for key in ("dtype", "unit", "rate", "format") if key in a and key in b]
    compared.append(("number of dimensions", rank(a), rank(b)))
    return [f"{name}'s {what} is {theirs!r}, not {ours!r}" for what, ours, theirs in compared if ours != theirs]


def _config_of(parts: Sequence[Manifest], repeat_keys: bool) -> dict[str, Any]:
    """What all were made with, and a name for all that each was made with."""
    common = {k: v for k, v in parts[0].config.items() if all(k in p.config and p.config[k] == v for p in parts)}
    return {**common, "merged": [config_hash(part.config) for part in parts], "repeat_keys": repeat_keys}


def _shown(sets: Sequence[tuple[Path, ShardSet]], compression: Any, directory: Path, how: str) -> Iterator[ShardRecord]:
    """Bring all shards into `directory` under new names, each with its index."""
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
        remedy = "free space, or choose another place"
        if how == "link":
            across = error.errno in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)
            remedy = 'use how="copy" (--copy): links do not work here' if across else remedy
        raise OutputError(f"cannot {how} {path}: {error.strerror}", file=place, remedy=remedy) from error


def _refuse_repeated(directory: Path, records: Sequence[ShardRecord], datasets: Sequence[Path]) -> None:
    """Refuse a key that occurs twice in these shards, of these datasets.

    8 bytes a key are held, so that large datasets fit; a key is looked for by name only where hashes meet.
    """

    def keys(record: ShardRecord) -> list[str]:
        return ShardIndex.load(index_path(directory / record.shard_name)).sample_keys

    hashes = np.concatenate([np.array([_hash(key) for key in keys(record)], np.uint64) for record in records])
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    seen: dict[str, Path] = {}
    for record, where in zip(records, datasets, strict=True) if suspects else ():
        for key in (key for key in keys(record) if _hash(key) in suspects):
            if key in seen:
                raise ShardError(
                    f"the key {key!r} is in {seen[key]} and in {where}",
                    remedy="allow it with repeat_keys=True (--repeat-keys): loaders tell samples apart by shard and "
                    "place; or convert with a key_prefix (--key-prefix) for each",
                )
            seen[key] = where


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
