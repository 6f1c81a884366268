"""Datasets seen in another way: the interface that `Series` needs of its data, without reading more than is asked for.

Each view has ``shape``, ``dtype``, ``chunks``, a length, and rows by slice or by ascending numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt


class Transposed:
    """A (columns, time) dataset seen with time first.

    Args:
        stored: 2-D sliceable dataset.

    Example:
        >>> Transposed(np.zeros((4, 1000)))[10:20].shape
        (10, 4)
    """

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.shape: tuple[int, ...] = stored.shape[::-1]
        self.dtype: np.dtype[Any] = stored.dtype
        self.chunks = stored.chunks[::-1] if getattr(stored, "chunks", None) else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._stored[:, rows].T)


class Flattened:
    """A dataset of more than two dimensions, time first, seen with one dimension of columns.

    Args:
        stored: N-D sliceable dataset.

    Example:
        >>> Flattened(np.zeros((1000, 4, 3)))[10:20].shape
        (10, 12)
    """

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.shape = (stored.shape[0], math.prod(stored.shape[1:]))
        self.dtype: np.dtype[Any] = stored.dtype
        self.chunks = stored.chunks[:1] if getattr(stored, "chunks", None) else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        values = np.asarray(self._stored[rows])
        return values.reshape(len(values), self.shape[1])


class Confident:
    """Data with NaN where the confidence of a row, or of a value, is below a threshold or unknown.

    Args:
        stored: sliceable dataset of numbers, time first.
        confidence: sliceable dataset, one value for each row, or for each value of `stored`.
        least: the threshold.

    Example:
        >>> Confident(np.array([[1, 2], [3, 4]]), np.array([0.9, 0.2]), 0.5)[0:2].tolist()
        [[1.0, 2.0], [nan, nan]]
    """

    dtype = np.dtype(np.float64)

    def __init__(self, stored: Any, confidence: Any, least: float) -> None:
        self._stored, self._confidence, self._least = stored, confidence, least
        self.shape: tuple[int, ...] = stored.shape
        self.chunks = getattr(stored, "chunks", None)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[np.float64]:
        values = np.array(self._stored[rows], np.float64)
        sure = np.asarray(self._confidence[rows]) >= self._least
        values[~sure] = np.nan
        return values


class SomeColumns:
    """Some columns of a dataset.

    Args:
        stored: 2-D sliceable dataset, time first.
        columns: their numbers.

    Example:
        >>> SomeColumns(np.arange(8).reshape(2, 4), [0, 3])[0:2].tolist()
        [[0, 3], [4, 7]]
    """

    def __init__(self, stored: Any, columns: Sequence[int]) -> None:
        self._stored, self._columns = stored, list(columns)
        self.shape = (stored.shape[0], len(self._columns))
        self.dtype: np.dtype[Any] = stored.dtype
        self.chunks = stored.chunks[:1] if getattr(stored, "chunks", None) else None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        return np.ascontiguousarray(np.asarray(self._stored[rows])[:, self._columns])


class Rescaled:
    """Numbers seen on another scale: ``stored · factor + offset``, in float64.

    Args:
        stored: sliceable dataset of numbers.
        factor: what they are multiplied by; offset: what is added.

    Example:
        >>> Rescaled(np.array([0, 500]), Fraction(1, 1000), Fraction(10))[0:2].tolist()
        [10.0, 10.5]
    """

    dtype = np.dtype(np.float64)

    def __init__(self, stored: Any, factor: Fraction, offset: Fraction) -> None:
        self._stored, self._factor, self._offset = stored, factor, offset
        self.shape = (len(stored),)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: Any) -> Any:
        stored = np.asarray(self._stored[rows], np.float64)
        return stored * self._factor.numerator / self._factor.denominator + float(self._offset)
