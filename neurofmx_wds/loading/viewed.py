"""Opening a dataset so that its batches hold what was asked for: chosen units, normalized fields and the like.

Knows opened datasets and views; knows nothing of files, order or batches' sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .dataset import OpenDataset
from .normalizing import Normalized, as_mapping, scales_of
from .options import ReadOptions
from .views import TakeUnits, View, ViewedReader


def with_views(opened: OpenDataset, read: ReadOptions) -> OpenDataset:
    """Return a dataset, or a mixture, whose batches are changed as the options of its loader say.

    Raises:
        ValueError: an option does not fit what the samples hold.
        NeurofmxError: a sample cannot be read.
    """
    views: list[View] = _chosen_units(opened)
    if read.normalize is not None:
        parts = [(ViewedReader(_sourced(each), _chosen_units(each)), each.sessions, len(each.order))
                 for each in opened.parts or (opened,)]  # fmt: skip
        scales = scales_of(read.normalize, parts, opened.reader.fields)
        views.append(Normalized(scales))
        sessions = [name for _, each, _ in parts for name in each.names]
        opened = replace(opened, normalization=as_mapping(scales, sessions))
    return replace(opened, reader=ViewedReader(_sourced(opened), views)) if views else opened


def _chosen_units(opened: OpenDataset) -> list[View]:
    return [] if opened.sessions.to_take is None else [TakeUnits(opened.sessions.to_take)]


def _sourced(opened: OpenDataset) -> Any:
    return opened.reader
