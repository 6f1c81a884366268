"""The laws of nwb/clock.py, against Python's exact fractions and sets of integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurofmx_wds.nwb.clock import (
    MAX_NS,
    NS_PER_S,
    Aligned,
    Grid,
    Windows,
    difference,
    inside,
    intersection,
    intervals_of,
    main_span,
    stride_of,
    to_ns,
    union,
    usable,
)

widths = st.builds(Fraction, st.integers(1, 10**10), st.integers(1, 10**6)).filter(lambda w: w >= 1)
times = st.integers(-MAX_NS, MAX_NS)
small_sets = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8)


@given(st.lists(st.floats(-4e9, 4e9), max_size=20))
def test_to_ns_is_the_nearest_integer_of_the_float_product(seconds: list[float]) -> None:
    assert to_ns(seconds).tolist() == [round(s * 1e9) for s in seconds]


def test_unusable_times_are_told_and_nan_is_refused() -> None:
    assert usable([0.0, -3.5, np.nan, np.inf, 1e12]).tolist() == [True, True, False, False, False]
    assert to_ns([np.inf, -1e300]).tolist() == [MAX_NS, -MAX_NS]
    with pytest.raises(ValueError, match="NaN"):
        to_ns([1.0, np.nan])


@given(widths, times, st.lists(times, min_size=1, max_size=20))
def test_bins_are_exact_for_rational_widths(width: Fraction, origin: int, moments: list[int]) -> None:
    bins = Grid(width, origin).bin_of(np.array(moments, dtype=np.int64))
    assert bins.tolist() == [(n - origin) // width for n in moments]


@given(widths, times, st.integers(-(10**6), 10**6))
def test_start_of_is_the_first_nanosecond_of_its_bin(width: Fraction, origin: int, k: int) -> None:
    grid = Grid(width, origin)
    start = grid.start_of(k)
    if abs(start) < MAX_NS:
        assert grid.bin_of(np.array([start - 1, start])).tolist() == [(start - 1 - origin) // width, k]
        assert grid.bin_of(np.array([start - 1]))[0] < k


@given(widths, st.integers(-1000, 1000), st.integers(-(10**6), 10**6), st.integers(1, 30))
def test_centres_are_midway(width: Fraction, origin: int, first: int, n: int) -> None:
    grid = Grid(width, origin)
    exact = [origin + (first + i + Fraction(1, 2)) * width - grid.start_of(first) for i in range(n)]
    starts, lead = grid.starts_of(np.arange(first, first + n))
    assert starts.tolist() == [grid.start_of(k) for k in range(first, first + n)]
    centres = starts - grid.start_of(first) + lead
    np.testing.assert_allclose(centres, [float(c) for c in exact], rtol=1e-12, atol=1e-3)


@given(widths, st.integers(-1000, 1000), st.lists(st.tuples(times, times), max_size=6))
def test_whole_bins_shrink_inward_and_no_further(width: Fraction, origin: int, pairs: list[tuple[int, int]]) -> None:
    intervals = np.array([sorted(pair) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    grid = Grid(width, origin)
    assert grid.whole_bins(intervals) == [bins for each in intervals for bins in grid.whole_bins(each[None])]
    for start, stop in intervals.tolist():
        shrunk = grid.whole_bins(np.array([[start, stop]]))
        assert shrunk or stop - start < 2 * width
        for first, last in shrunk:
            assert start <= grid.start_of(first) < grid.start_of(last) <= stop
            assert grid.start_of(first - 1) < start and grid.start_of(last + 1) > stop


@given(widths, times, st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_the_interval_of_some_bins_holds_just_these(width: Fraction, origin: int, first: int, n: int) -> None:
    grid = Grid(width, origin)
    interval = [[grid.start_of(first), grid.start_of(first + n)]]
    assert grid.whole_bins(np.array(interval)) == [(first, first + n)]


@pytest.mark.parametrize(("width", "origin"), [(Fraction(1, 2), 0), (Fraction(2**61, 3), 0), (Fraction(5), MAX_NS + 1)])
def test_grids_that_would_overflow_are_refused(width: Fraction, origin: int) -> None:
    with pytest.raises(ValueError, match="ns"):
        Grid(width, origin)


def _points(intervals: np.ndarray) -> set[int]:
    return {n for start, stop in np.asarray(intervals).tolist() for n in range(start, stop)}


def _array(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@given(small_sets, small_sets, small_sets)
def test_interval_arithmetic_is_that_of_sets(a: list, b: list, c: list) -> None:
    a, b, c = _array(a), _array(b), _array(c)
    for result, expected in (
        (union([a, b, c]), _points(a) | _points(b) | _points(c)),
        (intersection([a, b]), _points(a) & _points(b)),
        (intersection([a, b, c]), _points(a) & _points(b) & _points(c)),
        (difference(a, b), _points(a) - _points(b)),
    ):
        assert _points(result) == expected
        edges = result.ravel()
        assert (np.diff(edges) > 0).all()  # sorted, disjoint, nothing empty, nothing touching


def test_intervals_of_counts_what_it_leaves_out() -> None:
    intervals, bad = intervals_of([0.0, 5.0, np.nan, 9.0, 1.0], [2.0, 4.0, 7.0, np.inf, 3.0])
    assert intervals.tolist() == [[0, 3 * 10**9], [9 * 10**9, MAX_NS]] and bad == 2


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=6),
    st.integers(1, 12),
    st.floats(0, 0.99),
    st.integers(1, 5),
    st.data(),
)
def test_windows_are_all_that_fit_and_none_crosses(
    pieces: list, length: int, overlap: float, most: int, data: st.DataObject
) -> None:
    segments, at = [], 0
    for gap, size in pieces:
        segments.append((at + gap, at + gap + size))
        at += gap + size
    stride = max(1, round(length * (1 - overlap)))
    assert stride_of(length, overlap) == stride
    expected = [w for a, b in segments for w in range(a, b - length + 1, stride)]
    windows = Windows(tuple(segments), length, stride)
    assert len(windows) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    runs = list(windows.runs(start, stop, most))
    assert [first + i * stride for _, first, n in runs for i in range(n)] == expected[start:stop]
    assert [index + i for index, _, n in runs for i in range(n)] == list(range(start, stop))
    assert all(1 <= n <= most for *_, n in runs)
    covered = {k for w in expected for k in range(w, w + length)}
    assert {k for a, b in windows.spans() for k in range(a, b)} == covered
    assert windows.tail_bins() == len({k for a, b in segments for k in range(a, b)} - covered)


def test_a_grid_begins_at_zero_by_default() -> None:
    assert Grid(Fraction(10)).start_of(0) == 0 and Grid(Fraction(10)).bin_of(np.array([-1, 0, 10])).tolist() == [
        -1,
        0,
        1,
    ]


@given(small_sets, small_sets)
def test_inside_means_that_one_interval_holds_the_whole_span(a: list, b: list) -> None:
    spans = np.array([(start, stop) for start, stop in a if start <= stop], np.int64).reshape(-1, 2)
    intervals = union([np.array(b, np.int64).reshape(-1, 2)])
    expected = [
        any(low <= start and stop <= high for low, high in intervals.tolist()) for start, stop in spans.tolist()
    ]
    assert inside(spans, intervals).tolist() == expected


def test_aligned_windows_span_their_bins() -> None:
    aligned = Aligned(np.array([0, 4]), np.array([1000, 2000]), Fraction(10), first=-2, length=5)
    assert aligned.spans().tolist() == [[980, 1030], [1980, 2030]]
    assert aligned.within(np.array([[0, 1030], [1981, 3000]])).rows.tolist() == [0]


HOURS, DAYS = 3600 * NS_PER_S, 86_400 * NS_PER_S


@pytest.mark.parametrize(
    ("times", "n_stray"),
    [
        ([0, 400 * DAYS], 0),  # of two times, nobody knows which one is wrong
        ([0, NS_PER_S, NS_PER_S + 365 * DAYS], 0),
        ([0, NS_PER_S, NS_PER_S + 365 * DAYS + 1], 1),
        ([*range(0, 8 * NS_PER_S, NS_PER_S), 300 * DAYS], 0),  # 9 distinct times: a year
        ([*range(0, 9 * NS_PER_S, NS_PER_S), 300 * DAYS], 1),  # 10: a day
        ([*range(0, 9 * NS_PER_S, NS_PER_S), 8 * NS_PER_S + DAYS], 0),
        ([*range(0, 9 * NS_PER_S, NS_PER_S), 8 * NS_PER_S + DAYS + 1], 1),
        ([*range(0, 11 * HOURS, HOURS), (10 + 20 * 9) * HOURS], 0),  # 20 times the middle's span of 9 hours
        ([*range(0, 11 * HOURS, HOURS), (10 + 20 * 9) * HOURS + 1], 1),
        ([*range(0, 27 * NS_PER_S, NS_PER_S), 400 * DAYS, 401 * DAYS, 402 * DAYS], 3),  # a tenth of 30
        ([*range(0, 10 * NS_PER_S, NS_PER_S), *[400 * DAYS] * 30], 30),  # one value, however often
        ([*[0] * 20, *range(NS_PER_S, 10 * NS_PER_S, NS_PER_S)], 0),
    ],
)
def test_stray_times_are_far_from_the_middle(times: list[int], n_stray: int) -> None:
    n = len(times)
    assert main_span(np.array(times)) == slice(0, n - n_stray)
    assert main_span(-np.array(times)[::-1]) == slice(n_stray, n)
