"""Opening a dataset so that its batches hold what was asked for: chosen units, normalized fields and the like.

Knows opened datasets and views; knows nothing of files, order or batches' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from .dataset import OpenDataset
from .filling import Filled, filling
from .normalizing import Normalized, as_mapping, scales_of
from .options import ReadOptions
from .views import AsDtype, FromSource, TakeUnits, View, ViewedReader, dtypes_of
from .vocabulary import UNIT, Indexed, Indices, Vocabulary


def with_views(opened: OpenDataset, read: ReadOptions) -> OpenDataset:
    """Return a dataset, or a mixture, whose batches are changed as the options of its loader say.

    Raises:
        ValueError: an option does not fit what the samples hold.
        NeurofmxError: a sample cannot be read.
    """
    views: list[View] = _chosen_units(opened)
    parts = opened.parts or (opened,)
    width = None
    if read.as_dtype is not None:
        views.append(AsDtype(dtypes_of(read.as_dtype, opened.reader.fields)))
    if read.normalize is not None:
        readers = [ViewedReader(_sourced(each), _chosen_units(each)) for each in parts]
        looked_at = [(reader, each.sessions, len(each.order)) for reader, each in zip(readers, parts, strict=True)]
        scales = scales_of(read.normalize, looked_at, opened.reader.fields)
        views.append(Normalized(scales))
        sessions = [name for each in parts for name in each.sessions.names]
        opened = replace(opened, normalization=as_mapping(read.normalize, scales, sessions))
    if read.pad_units or read.fill:
        views.append(_filling(parts, views, read, opened.reader.fields))
        width = views[-1].width if read.pad_units else None  # type: ignore[attr-defined]
    if read.vocabulary is not False:
        opened = replace(opened, vocabulary=read.vocabulary if isinstance(read.vocabulary, Vocabulary) else None)
        views.append(Indexed(_indices(opened), width))
        if "spike_units" in opened.ragged:  # of each of which there is one
            opened = replace(opened, ragged={**opened.ragged, UNIT: torch.empty(0, dtype=torch.int64)})
    return replace(opened, reader=ViewedReader(_sourced(opened), views)) if views else opened


def _filling(parts: Sequence[OpenDataset], views: Sequence[View], read: ReadOptions, fields: Sequence[str]) -> Filled:
    """Return how batches are brought into one form, by looking at samples as the views before leave them."""
    n_before, looked_at = 0, []
    for each in parts:
        n = len(each.sessions.sources)
        numbered = [FromSource(view, n_before) for view in views]
        looked_at.append((ViewedReader(_sourced(each), numbered), n, len(each.order)))
        n_before += n
    return filling(looked_at, read.pad_units, read.fill, fields)


def _indices(opened: OpenDataset) -> Indices:
    """Return the indices of sessions and of the units that are chosen."""
    known: Vocabulary = opened.vocabulary or Vocabulary()
    found = known.extended(opened.sessions).indices_of(opened.sessions)
    chosen = opened.sessions.units
    if chosen is None:
        return found
    return replace(found, units=[each[list(rows)] for each, rows in zip(found.units, chosen, strict=True)])


def _chosen_units(opened: OpenDataset) -> list[View]:
    return [] if opened.sessions.to_take is None else [TakeUnits(opened.sessions.to_take)]


def _sourced(opened: OpenDataset) -> Any:
    return opened.reader
