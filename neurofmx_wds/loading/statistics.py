"""Statistics of the samples of a dataset, counted by reading them: of all of it, or of those that are selected.

Knows readers and the recordings that samples are of; knows nothing of order, batches or training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ManifestError
from ..format.manifest import MANIFEST_NAME, Manifest
from ..format.shards import open_shards
from ..format.statistics import Collector, Moments, merged, statistics_of
from .readers import ShardReader
from .sessions import Sessions
from .views import SourcedReader

logger = logging.getLogger("neurofmx_wds")
_AT_ONCE = 64

Counted = list[dict[str, Moments | None]]
"""For each source in the manifest, what was counted of each field; None where its samples differ in columns."""


def count_samples(reader: SourcedReader, ids: np.ndarray, n_sources: int) -> Counted:
    """Count the fields of some samples, for each source.

    Args:
        reader: reads them.
        ids: of the samples, int64, ascending.
        n_sources: sources in the manifest.

    Raises:
        NeurofmxError: a sample cannot be read.
    """
    collectors = [Collector() for _ in range(n_sources)]
    for first in range(0, len(ids), _AT_ONCE):
        some = ids[first : first + _AT_ONCE]
        for sample, source in zip(reader.read_samples(some), reader.sources(some).tolist(), strict=True):
            collectors[source].add(sample)
    return [each.finish() for each in collectors]


def count_dataset(shard_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Count all samples of a dataset, shard by shard, as a conversion does, and write the result into its manifest.

    Returns:
        The statistics of each source in the manifest, as it holds them: field → count, nan, mean, std, min, max.

    Raises:
        FileNotFoundError: there is no such dataset.
        ManifestError: it has no manifest that says which sample is of which source.
        ShardError: a sample is damaged.
    """
    if not Path(shard_dir, MANIFEST_NAME).is_file():
        Path(shard_dir).stat()
        raise ManifestError("there is no manifest to write statistics into", file=shard_dir, remedy="convert again")
    shards = open_shards(shard_dir)
    reader = ShardReader(shards)
    sessions = Sessions.of(shards.manifest, reader.where, shards.n_samples)
    try:
        sessions.require(shards.n_samples, "statistics")
    except ValueError as error:
        raise ManifestError(str(error), file=shard_dir) from None
    parts: list[list[dict[str, Moments | None]]] = [[] for _ in sessions.sources]
    for source, ids in _pieces(shards.counts, sessions.ends):
        parts[source] += [count_samples(reader, ids, len(sessions.sources))[source]]
    manifest = Manifest.load(Path(shard_dir))
    if not manifest.sources:
        raise ManifestError("the manifest lists no sources to write statistics of", file=shard_dir)
    found = [statistics_of(each, source) for each, source in zip(parts, manifest.sources, strict=True)]
    pairs = zip(manifest.sources, parts, found, strict=True)
    sources = [{**source, "statistics": about} if part else source for source, part, about in pairs]
    replace(manifest, sources=sources).save(Path(shard_dir))
    return found


def _pieces(counts: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the samples of each source in each shard, in order: number of the source, and ids."""
    cuts = np.unique(np.concatenate([[0], np.cumsum(counts), ends]))
    for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        yield int(np.searchsorted(ends, start, side="right")), np.arange(start, stop)


def counted_of(reader: Any, sessions: Sessions, n_samples: int, fields: Sequence[str] | None) -> Counted:
    """Return what is known of the selected samples of each source: by the manifest if these are all, else by reading.

    Args:
        reader: reads the selected samples, as they are normalized.
        sessions: the sources.
        n_samples: how many samples are selected.
        fields: the fields that are needed; None: all.
    """
    ids = np.arange(n_samples)
    sources = reader.sources(ids)
    known = [_from_manifest(sessions, i, int((sources == i).sum()), fields) for i in range(len(sessions.sources))]
    to_read = np.isin(sources, [i for i, each in enumerate(known) if each is None])
    if to_read.any():
        logger.warning("normalize: reading %d samples of %s for their statistics", to_read.sum(), reader.where)
        read = count_samples(reader, ids[to_read], len(known))
        known = [read[i] if each is None else each for i, each in enumerate(known)]
    return [each or {} for each in known]


def _from_manifest(
    sessions: Sessions, number: int, n: int, fields: Sequence[str] | None
) -> dict[str, Moments | None] | None:
    """Return what the manifest says of a source; None where it says nothing, or not of exactly the selected samples."""
    source = sessions.sources[number]
    about = source.get("statistics")
    if n == 0:
        return {}
    if about is None or "stored" in source or n != source["windows"]["emitted"]:
        return None
    if fields is not None and not set(fields) <= about.keys():
        return None
    rows = None if sessions.to_take is None else sessions.to_take[number]
    found: dict[str, Moments | None] = {name: Moments.from_json(each) for name, each in about.items()}
    spikes = found.get("spikes")
    if rows is not None and spikes is not None:
        found["spikes"] = spikes.take(rows)
    return found


def pooled_over_sources(counted: Counted, field: str) -> Moments | None:
    """Return what is known of a field in all sources together; None where they differ in columns."""
    return merged(each[field] for each in counted if field in each)
