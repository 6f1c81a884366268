"""One manifest made of several, or of the shards alone.

Knows manifests; copies no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ManifestError
from ..format.manifest import Manifest
from ..format.modalities import modalities_of
from ..format.shard_settings import COMPRESSIONS
from ..format.shards import ShardSet
from ..format.units import with_unit_keys
from ..version import CREATED_BY

Fields = Mapping[str, Mapping[str, Any]]


def join_manifests(parts: Sequence[Manifest]) -> Manifest:
    """Join manifests; what they state differently of a field is stated for each source instead."""
    modalities: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, about in part.modalities.items():
            modalities[name] = _common(modalities[name], about) if name in modalities else dict(about)
    return Manifest(
        shard_size=max(part.shard_size for part in parts),
        compression=parts[0].compression,
        modalities=dict(sorted(modalities.items())),
        shards=[record for part in parts for record in part.shards],
        sources=with_unit_keys(
            [_with_own_fields(report, part.modalities, modalities) for part in parts for report in part.sources]
        ),
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


def _with_own_fields(report: Mapping[str, Any], own: Fields, common: Fields) -> dict[str, Any]:
    """Return a source's report, with all that the joined manifest no longer states of its fields."""
    if not isinstance(report.get("fields"), dict):
        return dict(report)
    fields = {
        name: {key: value for key, value in {**own.get(name, {}), **about}.items() if common[name].get(key) != value}
        if name in common
        else about
        for name, about in report["fields"].items()
    }
    return {**report, "fields": fields}


def manifest_of(directory: Path, shards: ShardSet) -> Manifest:
    """Return a dataset's manifest, made of its indexes if it has none.

    Raises:
        ManifestError: it has none, and its shards are compressed in several ways.
    """
    if shards.manifest is not None:
        return replace(shards.manifest, shards=shards.records)
    endings = {path.name.rpartition(".tar")[2].lstrip(".") or "none" for path in shards.paths}
    if len(endings) > 1 or not endings <= set(COMPRESSIONS):
        raise ManifestError("its shards are compressed in several ways", file=directory, remedy="merge each kind alone")
    modalities = modalities_of(shards.index(i) for i in range(len(shards.paths)))
    size = max(int(shards.counts.max(initial=1)), 1)
    return Manifest(size, endings.pop(), modalities, shards.records)
