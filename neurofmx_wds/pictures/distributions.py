"""Histograms side by side, as one panel of a picture.

Knows arrays and matplotlib; knows nothing of datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from ..errors import printable
from .panels import COLORS, shortened

_A_ROW = 4  # histograms
_MOST_GROUPS = 6


@dataclass(frozen=True)
class Distributions:
    """Histograms of several quantities.

    Attributes:
        items: (title, unit, group → values) of each histogram; with one group its name is not shown.
        title: what is said above them.
    """

    items: Sequence[tuple[str, str, Mapping[str, npt.NDArray[Any]]]]
    title: str = ""
    own_time: bool = True

    @property
    def height(self) -> float:
        """Taller for more rows."""
        return 2.0 * max(1, -(-len(self.items) // _A_ROW))

    def draw(self, axes: Axes) -> None:
        """Draw the histograms, four in a row."""
        axes.set_axis_off()
        rows = max(1, -(-len(self.items) // _A_ROW))
        for k, (title, unit, groups) in enumerate(self.items):
            row, column = divmod(k, _A_ROW)
            width, height = 1 / _A_ROW, 1 / rows
            bounds = (column * width, 1 - (row + 1) * height + 0.24 / rows, 0.84 * width, height - 0.38 / rows)
            _histogram(axes.inset_axes(bounds), title, unit, groups)


def _histogram(axes: Axes, title: str, unit: str, groups: Mapping[str, npt.NDArray[Any]]) -> None:
    shown = dict(sorted(groups.items(), key=lambda each: -len(each[1]))[:_MOST_GROUPS])
    known = {name: np.asarray(values, float)[np.isfinite(values)] for name, values in shown.items()}
    every = np.concatenate([*known.values(), np.empty(0)])
    axes.set_title(printable(shortened(title, 34)), fontsize=8)
    axes.set_yticks([])
    axes.set_xlabel(printable(unit), fontsize=7)
    axes.tick_params(labelsize=7)
    if not len(every):
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", fontsize=7)
        return
    edges = np.histogram_bin_edges(every, bins=min(40, max(8, len(every) // 4)))
    values, labels = list(known.values()), [shortened(name, 20) for name in known]
    axes.hist(values, bins=[*edges], stacked=True, color=COLORS[: len(values)], label=labels)
    if len(known) > 1:
        axes.legend(fontsize=6, frameon=False)
