"""Opening a dataset so that its batches hold what was asked for: chosen units and the like.

Knows opened datasets and views; knows nothing of files, order or batches' sizes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .dataset import OpenDataset
from .options import ReadOptions
from .views import TakeUnits, View, ViewedReader


def with_views(opened: OpenDataset, read: ReadOptions) -> OpenDataset:
    """Return a dataset, or a mixture, whose batches are changed as the options of its loader say."""
    views: list[View] = []
    if opened.sessions.to_take is not None:
        views.append(TakeUnits(opened.sessions.to_take))
    reader: Any = opened.reader
    return replace(opened, reader=ViewedReader(reader, views)) if views else opened
