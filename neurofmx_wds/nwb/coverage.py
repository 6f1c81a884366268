"""How much of the windows was measured, told by times alone: no values are read.

Knows series, timelines and the bins that windows cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .clock import Grid, Int64, intersection
from .series import Series

#: Bins that are looked at in one go.
_BLOCK = 1_000_000


def share_of_bins(
    series: Series, way: str, grid: Grid, spans: Sequence[tuple[int, int]], max_gap: float
) -> tuple[int, int]:
    """Return how many bins of some spans have a value, and how many bins there are.

    Args:
        series: the series; NaN among its values is not known here.
        way: how it is brought into bins (see `Series.on_grid`).
        grid: the bins.
        spans: (first bin, stop bin) of each span.
        max_gap: ns; a longer step between samples is a gap.
    """
    total = sum(stop - first for first, stop in spans)
    if series.is_sparse or way == "count":
        return total, total
    zeros = np.broadcast_to(np.zeros(1, np.float32), (series.timeline.n,))
    timeline = replace(series.timeline, order=None)
    times = replace(series, columns=("",), data=zeros, timeline=timeline, scale=1.0, offset=0.0, turn=None)
    measured = 0
    for first, stop in spans:
        for low in range(first, stop, _BLOCK):
            values = times.on_grid(way, grid, low, min(stop, low + _BLOCK), max_gap)
            measured += int((~np.isnan(values)).sum())
    return measured, total


def share_of_time(series: Series, covered: Int64, max_gap: float) -> tuple[int, int]:
    """Return how much of some time (ns) a series has samples in, and how much time that is.

    Args:
        series: the series.
        covered: int64 (n, 2), ns, sorted and disjoint.
        max_gap: ns; a longer step between samples is a gap.
    """
    total = int(np.diff(covered).sum())
    if series.is_sparse:
        return total, total
    return int(np.diff(intersection([covered, series.timeline.support(max_gap)])).sum()), total
