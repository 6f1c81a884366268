"""A finished dataset compared with what a plan would make: the same again is done, and only differences are refused.

Knows manifests and plans; reads no samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OVERWRITE, REPAIR_DATASET, OutputError
from ..format.manifest import MANIFEST_NAME, Manifest
from ..storage.objects import ObjectPath, Objects, is_bucket_url
from ..storage.uploading import exists
from .config import Output
from .plan import ConversionPlan, differences, identity_of


def is_finished(output: Output, parts: Iterable[str] = ("",)) -> bool:
    """Return whether finished datasets are there, which are not to be replaced.

    Args:
        output: where to write.
        parts: the directories in it that are datasets; by default it is one itself.
    """
    if is_bucket_url(output.directory):
        return exists(ObjectPath(str(output.directory)) / MANIFEST_NAME, Objects())
    return not output.overwrite and all(Path(output.directory, part, MANIFEST_NAME).is_file() for part in parts)


def load_same(plan: ConversionPlan, directory: str | os.PathLike[str]) -> Manifest:
    """Load the manifest of a finished dataset that is what a plan would make.

    Raises:
        OutputError: it is another one; the message names the settings and sources that differ. Or a shard is missing.
        ManifestError: its manifest is damaged.
    """
    manifest, sizes = _load(directory)
    found = differences(manifest.config, plan.to_json()) or _source_differences(manifest.sources, plan.reports())
    if found:
        raise OutputError(
            f"a finished dataset is there already, and differs: {'; '.join(found)}",
            file=directory,
            remedy=f"choose another directory, append to it, or {OVERWRITE}",
        )
    for record in manifest.shards:
        if sizes.get(record.shard_name) != record.n_bytes:
            problem = "the dataset is finished, but this shard is missing or damaged"
            raise OutputError(problem, file=os.path.join(directory, record.shard_name), remedy=REPAIR_DATASET)
    return manifest


def _load(directory: str | os.PathLike[str]) -> tuple[Manifest, dict[str, int]]:
    """Return a dataset's manifest, and the size of each of its files."""
    if not is_bucket_url(directory):
        manifest = Manifest.load(Path(directory))
        return manifest, {entry.name: entry.stat().st_size for entry in os.scandir(directory) if entry.is_file()}
    objects, where = Objects(), ObjectPath(str(directory))
    manifest = Manifest.from_bytes(objects.read(where / MANIFEST_NAME)[0], where / MANIFEST_NAME)
    return manifest, objects.sizes(where)


def _source_differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe how the sources of a dataset differ from those of a plan, given the reports on both."""

    def known_by(report: Mapping[str, Any]) -> tuple[str, str | None, Any]:
        return report["path"], identity_of(report), report.get("split")

    old, new = [known_by(report) for report in before], [known_by(report) for report in now]
    if old == new:
        return []
    there = {name: identity for name, identity, _ in old}
    found = []
    for name, identity, _ in (each for each in new if each not in old):
        if name not in there:
            found.append(f"{name} is not in it")
        elif identity == there[name]:
            found.append(f"{name} is split in another way")
        elif identity is None:
            found.append(f"{name} cannot be read now")
        else:
            found.append(f"{name} " + ("has changed" if there[name] else "could not be read then"))
    names = {name for name, _, _ in new}
    found += [f"{name} is only there" for name, _, _ in old if name not in names]
    return found or ["its sources are in another order"]
