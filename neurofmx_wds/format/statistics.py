"""Count, mean, standard deviation and extremes of the columns of a dataset's fields, for each of its recordings.

Parts are merged in a fixed order, so the same samples give the same bytes whoever counted them. Knows arrays; knows
nothing of files or order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Fields with more columns are pooled into one.
MOST_COLUMNS = 4096
_CHUNK = 1 << 16  # values that are counted at once, few enough for a processor's cache
_WIDTH = 1024
_JOIN = (np.add, np.add, np.minimum, np.maximum)


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the values of a field, column by column: arrays of shape (columns,).

    Attributes:
        n: values, without those that are missing.
        missing: values that are NaN or infinite.
        mean: their mean; 0 where there are none.
        squares: the sum of their squared distances from the mean.
        low, high: the least and the greatest; inf and -inf where there are none.
    """

    n: Int64
    missing: Int64
    mean: Float64
    squares: Float64
    low: Float64
    high: Float64

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Moments:
        """Count values of shape (rows, columns).

        Example:
            >>> found = Moments.of(np.array([[1.0, 5.0], [3.0, np.nan]]))
            >>> found.n, found.mean, found.std
            (array([2, 1]), array([2., 5.]), array([1., 0.]))
        """
        counter = _Counter(values.dtype, values.shape[1])
        counter.add(values)
        found = counter.finish()
        return cls.nothing(values.shape[1]) if found is None else found

    @classmethod
    def nothing(cls, columns: int) -> Moments:
        """Return what is known where there are no values."""
        none, zero = np.zeros(columns, np.int64), np.zeros(columns)
        return cls(none, none, zero, zero, np.full(columns, np.inf), np.full(columns, -np.inf))

    @classmethod
    def precisely(cls, values: npt.NDArray[Any]) -> Moments:
        """Count values of which some may be missing, in two passes."""
        exact = values.astype(np.float64)
        usable = np.isfinite(exact)
        n = usable.sum(axis=0)
        low = np.where(usable, exact, np.inf).min(axis=0)
        high = np.where(usable, exact, -np.inf).max(axis=0)
        exact[~usable] = 0
        mean = exact.sum(axis=0) / np.maximum(n, 1)
        exact -= mean
        exact[~usable] = 0
        return cls(n, len(values) - n, mean, np.square(exact).sum(axis=0), low, high)

    def with_others(self, other: Moments) -> Moments:
        """Return what is known of both together."""
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        apart = other.mean - self.mean
        return Moments(
            n,
            self.missing + other.missing,
            self.mean + apart * share,
            self.squares + other.squares + apart**2 * self.n * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def take(self, columns: Sequence[int]) -> Moments:
        """Return some of the columns."""
        return Moments(*(each[list(columns)] for each in vars(self).values()))

    def scaled(self, scale: Float64 | float, offset: float) -> Moments:
        """Return what is known of ``values · scale + offset``."""
        ends = np.sort(np.stack([self.low * scale + offset, self.high * scale + offset]), axis=0)
        low, high = (np.where(self.n > 0, end, bound) for end, bound in zip(ends, (np.inf, -np.inf), strict=True))
        mean = np.where(self.n > 0, self.mean * scale + offset, 0)
        return Moments(self.n, self.missing, mean, self.squares * np.square(scale), low, high)

    @property
    def std(self) -> Float64:
        """The standard deviation of each column (divided by n)."""
        return np.asarray(np.sqrt(self.squares / np.maximum(self.n, 1)))

    def to_json(self) -> dict[str, list[Any]]:
        """Return them as JSON values: count, nan, mean, std, min and max, with None where a column has no values."""
        columns = {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}
        known = [bool(n) for n in self.n]
        return {
            "count": self.n.tolist(),
            "nan": self.missing.tolist(),
            **{name: [v if there else None for v, there in zip(values.tolist(), known, strict=True)]
               for name, values in columns.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, about: Mapping[str, Sequence[Any]]) -> Moments:
        """Make them of what :meth:`to_json` returned."""
        n, missing = (np.array(about[name], np.int64) for name in ("count", "nan"))
        empty = {"mean": 0.0, "std": 0.0, "min": np.inf, "max": -np.inf}
        mean, std, low, high = (
            np.array([empty[name] if v is None else v for v in about[name]], np.float64) for name in empty
        )
        return cls(n, missing, mean, np.square(std) * n, low, high)

    def to_parts(self) -> list[list[Any]]:
        """Return them as JSON values without rounding; the least and greatest as text where they are infinite."""
        return [[repr(v) if isinstance(v, float) and np.isinf(v) else v for v in each.tolist()]
                for each in vars(self).values()]  # fmt: skip

    @classmethod
    def from_parts(cls, parts: Sequence[Sequence[Any]]) -> Moments:
        """Make them of what :meth:`to_parts` returned."""
        arrays: list[Any] = [
            np.array([float(v) if isinstance(v, str) else v for v in each], np.int64 if i < 2 else np.float64)
            for i, each in enumerate(parts)
        ]
        return cls(*arrays)


def merged(parts: Iterable[Moments | None]) -> Moments | None:
    """Return what is known of all parts together, merged in their order; None if they differ in columns or are none."""
    whole: Moments | None = None
    for part in parts:
        if part is None or (whole is not None and len(whole.n) != len(part.n)):
            return None
        whole = part if whole is None else whole.with_others(part)
    return whole


class _Counter:
    """Counts the rows of one field, in memory that is used again and again: new memory takes longer than counting.

    Args:
        dtype: of the values.
        columns: how many there are.
    """

    def __init__(self, dtype: np.dtype[Any], columns: int) -> None:
        self.side_by_side = max(1, _WIDTH // columns)  # numpy is slow where rows are short
        n = max(1, _CHUNK // (self.side_by_side * columns))
        self._wide = np.empty((n, self.side_by_side * columns), dtype)
        self._exact = np.empty(self._wide.shape)
        self.rows = self._wide.reshape(-1, columns)
        self._filled = self._n = 0
        self._shift: Float64 | None = None
        self._sums: tuple[npt.NDArray[Any], ...] | None = None  # total, squares, least and greatest
        self._others: Moments | None = None  # of chunks in which values are missing

    def takes(self, value: Any) -> bool:
        """Return whether a value can be counted as it is: an array (rows, columns) of the same dtype and columns."""
        rows = self.rows
        return type(value) is np.ndarray and value.dtype is rows.dtype and value.shape[1:] == rows.shape[1:]

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Count values of shape (rows, columns)."""
        start, end = 0, self._filled + len(rows)
        if end < len(self.rows):  # quickly: most values
            self.rows[self._filled : end] = rows
            self._filled = end
            return
        while start < len(rows):
            n = min(len(rows) - start, len(self.rows) - self._filled)
            self.rows[self._filled : self._filled + n] = rows[start : start + n]
            start, self._filled = start + n, self._filled + n
            if self._filled == len(self.rows):
                self._count()

    def _count(self) -> None:
        """Count the rows that wait: their distances from the mean of the first chunk, side by side."""
        n, columns = self._filled, self.rows.shape[1]
        self._filled = 0
        if self._shift is None:
            self._shift = Moments.precisely(self.rows[:n]).mean
        whole = n + -n % self.side_by_side
        self.rows[n:whole] = self.rows[:1]
        wide, apart = (each[: whole // self.side_by_side] for each in (self._wide, self._exact))
        np.copyto(apart, wide)
        apart -= np.tile(self._shift, self.side_by_side)
        apart.reshape(-1, columns)[n:] = 0
        total = np.add.reduce(apart, axis=0)
        if not np.isfinite(total).all():
            found = Moments.precisely(self.rows[:n])
            self._others = found if self._others is None else self._others.with_others(found)
            return
        np.multiply(apart, apart, out=apart)
        sums = total, np.add.reduce(apart, axis=0), np.minimum.reduce(wide, axis=0), np.maximum.reduce(wide, axis=0)
        self._n += n
        if self._sums is None:
            self._sums = sums
        else:
            for function, known, new in zip(_JOIN, self._sums, sums, strict=True):
                function(known, new, out=known)

    def finish(self) -> Moments | None:
        """Return what was found; None where there was nothing."""
        if self._filled:
            self._count()
        if self._sums is None or self._shift is None:
            return self._others
        columns = self.rows.shape[1]
        total, squares, low, high = (
            function.reduce(each.reshape(-1, columns), axis=0).astype(np.float64)
            for function, each in zip(_JOIN, self._sums, strict=True)
        )
        around_mean = np.maximum(squares - total**2 / self._n, 0)
        every, none = np.full(columns, self._n, np.int64), np.zeros(columns, np.int64)
        found = Moments(every, none, self._shift + total / self._n, around_mean, low, high)
        return found if self._others is None else found.with_others(self._others)


class Collector:
    """Counts the fields of samples as they come.

    Floating fields are counted, and integers along time; times in ns, labels, masks, images and ragged spikes are not.
    The last axis of a sample's array counts its columns; where that has more than MOST_COLUMNS, or there are three axes
    or more, all values are one column. A field whose samples differ in columns has no statistics.
    """

    def __init__(self) -> None:
        self._counters: dict[str, _Counter | None] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count the fields of a sample."""
        known = self._counters
        for name, value in sample.items():
            counter = known.get(name)
            if counter is not None and counter.takes(value):  # quickly: most values
                counter.add(value)
            elif isinstance(value, np.ndarray) and is_counted(value.dtype, value.ndim):
                self.add_rows(name, as_rows(value))

    def add_rows(self, name: str, rows: npt.NDArray[Any]) -> None:
        """Count values of a field, of shape (rows, columns)."""
        if not rows.size:
            return
        counter = self._counters.get(name)
        if counter is None:
            if name in self._counters:
                return
            counter = self._counters[name] = _Counter(rows.dtype, rows.shape[1])
        if rows.shape[1] != counter.rows.shape[1] or not np.can_cast(rows.dtype, counter.rows.dtype):
            self._counters[name] = None
        else:
            counter.add(rows)

    def finish(self) -> dict[str, Moments | None]:
        """Return what was found of each field; None where its samples differ in columns."""
        return {name: None if each is None else each.finish() for name, each in sorted(self._counters.items())}


def is_counted(dtype: np.dtype[Any], ndim: int) -> bool:
    """Return whether a sample's array is counted."""
    return (dtype.kind == "f" and ndim > 0) or (dtype.kind in "iu" and dtype.itemsize < 8 and ndim == 2)


def as_rows(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of a sample as (rows, columns)."""
    pooled = value.ndim > 2 or value.shape[-1] > MOST_COLUMNS
    columns = 1 if pooled else value.shape[-1]
    return value.reshape(value.size // columns if columns else 0, columns)  # -1 needs a column to divide by


def statistics_of(parts: Sequence[Mapping[str, Moments | None]], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the statistics of a source as its report in the manifest holds them: field → what is known, as JSON.

    Args:
        parts: what was counted of its samples, in their order.
        source: its report; of a source of segments it tells how stored values are scaled.
    """
    stored = source.get("stored", {}).get("series", ())
    scales = {each["field"]: (np.array(each["scale"], np.float64), float(each["offset"])) for each in stored}
    found: dict[str, Any] = {}
    for name in sorted({name for part in parts for name in part}):
        whole = merged(part[name] for part in parts if name in part)
        if whole is not None:
            found[name] = (whole.scaled(*scales[name]) if name in scales else whole).to_json()
    return found


def shares_measured(statistics: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the values of each field that are not missing.

    Example:
        >>> shares_measured({"behavior": {"count": [3, 4], "nan": [1, 0]}})
        {'behavior': 0.875}
    """
    sums = {name: (sum(about["count"]), sum(about["nan"])) for name, about in statistics.items()}
    return {name: round(n / (n + missing), 4) for name, (n, missing) in sums.items() if n + missing}


def pooled(moments: Moments) -> Moments:
    """Return what is known of all columns together, as one column."""
    columns = [moments.take([i]) for i in range(len(moments.n))]
    return merged(columns) or Moments.nothing(1)
