"""Spike trains and their counts, against numpy's integers and pynapple."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynwb.core import ElementIdentifiers, VectorData, VectorIndex
from recordings import make_recording

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.clock import MAX_NS, Grid, main_span
from neurofmx_wds.nwb.recording import Recording
from neurofmx_wds.nwb.units import _as_pairs, _on_clock, read_units, support_of


class Table:
    """The part of a pynwb Units table that is read, without a file."""

    name = "units"

    def __init__(self, spikes: list[Any], ends: list[int] | None = None) -> None:
        flat = VectorData(name="spike_times", description="s", data=np.concatenate([np.empty(0), *spikes]))
        ends = np.cumsum([len(s) for s in spikes]).tolist() if ends is None else ends
        self.id = ElementIdentifiers(name="id", data=list(range(7, 7 + len(spikes))))
        self._columns = {"spike_times": VectorIndex(name="spike_times_index", data=ends, target=flat)}
        self.colnames = tuple(self._columns)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]


spike_lists = st.lists(
    st.lists(st.one_of(st.floats(0, 3), st.just(float("nan")), st.floats(-2, -1e-6), st.just(np.inf)), max_size=30),
    min_size=1,
    max_size=5,
)


@given(spike_lists, st.fractions(Fraction(10**6), Fraction(10**8), max_denominator=1000), st.integers(0, 5))
def test_every_spike_is_counted_once_or_reported(spikes: list, width: Fraction, first: int) -> None:
    trains = read_units(Table([np.array(s, dtype=float) for s in spikes]), "x.nwb")
    valid = [[round(t * 1e9) for t in unit if 0 <= t < 1e6] for unit in spikes]
    assert trains.per_unit == [len(unit) for unit in valid]
    assert sum(trains.invalid.values()) + len(trains) == sum(map(len, spikes))
    assert (np.diff(trains.times) >= 0).all()
    expected = np.zeros((50, len(spikes)), dtype=int)
    for column, unit in enumerate(valid):
        for n in unit:
            k = n // width - first
            if 0 <= k < 50:
                expected[k, column] += 1
    np.testing.assert_array_equal(trains.counts(Grid(width), first, first + 50), expected)


@given(spike_lists)
def test_unsorted_units_are_named(spikes: list) -> None:
    trains = read_units(Table([np.array(s, dtype=float) for s in spikes]), "x.nwb")
    kept = [[t for t in unit if 0 <= t < 1e6] for unit in spikes]
    assert trains.unsorted_units == tuple(7 + i for i, unit in enumerate(kept) if unit != sorted(unit))


@given(spike_lists, st.integers(10**6, 10**8))
def test_binning_the_ragged_form_gives_the_dense_form(spikes: list, width: int) -> None:
    trains = read_units(Table([np.array(s, dtype=float) for s in spikes]), "x.nwb")
    grid = Grid(Fraction(width))
    times, units = trains.ragged(grid.start_of(3), grid.start_of(23))
    dense = np.zeros((20, len(spikes)), dtype=int)
    np.add.at(dense, (times // width, units), 1)
    np.testing.assert_array_equal(trains.counts(grid, 3, 23), dense)


@pytest.mark.parametrize("ends", [[2, 1], [1, 9], [1], [1, 2, 3]])
def test_an_index_that_does_not_fit_is_refused(ends: list[int]) -> None:
    with pytest.raises(SourceError, match=r"bad\.nwb.*index of units/spike_times"):
        read_units(Table([np.array([0.1]), np.array([0.2, 0.3])], ends), "bad.nwb")


def test_support_is_the_union_of_obs_intervals_else_first_to_last_spike(tmp_path: Path) -> None:
    spikes = [[0.5, 9.25], [], [1.0]]
    make_recording(tmp_path / "a.nwb", spike_times=spikes)
    trains = Recording(tmp_path / "a.nwb").spikes
    assert len(trains.ids) == 3 and trains.per_unit == [2, 0, 1]
    assert support_of(trains)[0].tolist() == [[500_000_000, 9_250_000_001]]
    observed = [[[0, 2], [4, 5]], [[1.5, 3]], [[4.5, 8]]]
    make_recording(tmp_path / "b.nwb", spike_times=spikes, obs_intervals=observed)
    support, rule, stray = support_of(Recording(tmp_path / "b.nwb").spikes)
    assert (support / 1e9).tolist() == [[0, 3], [4, 8]] and "obs_intervals" in rule and stray == 0
    make_recording(tmp_path / "c.nwb", spike_times=spikes, obs_intervals=[[[0, np.inf]]] * 3)
    assert support_of(Recording(tmp_path / "c.nwb").spikes)[0].tolist() == [[500_000_000, 9_250_000_001]]


def test_a_stray_time_does_not_stretch_the_support_but_a_long_recording_stays_whole() -> None:
    minute = np.arange(600, dtype=np.int64) * 10**8
    assert main_span(np.r_[minute, 10**18]) == slice(0, 600)
    assert main_span(np.r_[-(10**18), minute]) == slice(1, 601)
    assert main_span(np.r_[minute, minute + 20 * 3600 * 10**9]) == slice(0, 1200)
    assert main_span(np.empty(0, dtype=np.int64)) == slice(0, 0)


@pytest.mark.parametrize("days", [2, 30])
def test_of_a_long_recording_a_time_is_stray_more_than_20_spans_of_its_middle_away(days: int) -> None:
    times = np.linspace(0, days * 86_400e9, 1001).astype(np.int64)
    low, high = int(times[100]), int(times[-101])  # the middle 80 %
    edge = 20 * (high - low)
    for near in (high + edge, low - edge):
        assert main_span(np.sort(np.r_[times, near])) == slice(0, 1002)
    assert main_span(np.r_[times, high + edge + days * 86_400 * 10**9]) == slice(0, 1001)
    assert main_span(np.r_[low - edge - days * 86_400 * 10**9, times]) == slice(1, 1002)


@given(st.lists(st.integers(0, 364 * 86_400 * 10**9), max_size=9), st.integers(-(10**18), 10**18))
def test_of_few_times_only_one_over_a_year_away_is_stray(times: list[int], start: int) -> None:
    few = start + np.unique(np.array(times, dtype=np.int64))
    assert main_span(few) == slice(0, len(few))


@pytest.mark.parametrize("n", range(2, 20))
@pytest.mark.parametrize("stray", [10**18, MAX_NS, -MAX_NS])
def test_one_stray_time_is_told_from_however_few_but_one_other(n: int, stray: int) -> None:
    few = np.sort(np.random.default_rng(n).integers(0, 3600 * 10**9, n))
    with_stray = np.sort(np.r_[few, stray])
    assert with_stray[main_span(with_stray)].tolist() == few.tolist()
    two = np.array([0, 10**18])
    assert main_span(two) == slice(0, 2) and main_span(np.repeat(two, 5)) == slice(0, 10)
    halves = np.r_[few, few + 10**18]
    assert main_span(halves) == slice(0, 2 * n)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.sampled_from([0.001, 0.005, 0.01, 0.02, 0.1]), st.integers(0, 500))
def test_counts_equal_pynapples(seed: int, width: float, first: int) -> None:
    nap = pytest.importorskip("pynapple", reason="pynapple is the independent reference")
    rng = np.random.default_rng(seed)
    edges = np.round(rng.integers(0, 1000, 40) * width, 9)  # spikes on bin edges, where floats go wrong
    spikes = [np.sort(np.r_[rng.uniform(0, 1000 * width, 100), edges]) for _ in range(3)]
    n = 400
    ours = read_units(Table(spikes), "x").counts(Grid(Fraction(str(width)) * 10**9), first, first + n)
    group = nap.TsGroup({i: nap.Ts(t=s) for i, s in enumerate(spikes)}, time_support=nap.IntervalSet(0, 1001 * width))
    epoch = nap.IntervalSet(start=round(first * width, 9), end=round((first + n) * width, 9))
    np.testing.assert_array_equal(ours, group.count(width, ep=epoch).values[:n])


@pytest.mark.parametrize(
    ("values", "n"),
    [
        ([0.0, 1.0, 5.0, 6.0], 2),
        ([[0.0, 1.0], [5.0, 6.0]], 2),
        ([[5.0, 0.0], [6.0, 1.0]], 2),  # (2, n) with n = 2: a start that would be after its stop shows it
        ([[0.0, 5.0, 8.0], [1.0, 6.0, 9.0]], 3),
        ([[0.0, 1.0], [5.0, 6.0], [8.0, 9.0]], 3),
    ],
)
def test_pairs_are_read_in_each_form(values: list[Any], n: int) -> None:
    pairs = _as_pairs(np.array(values), n)
    assert sorted(pairs.tolist()) == [[0.0, 1.0], [5.0, 6.0], [8.0, 9.0]][: len(pairs)] and len(pairs) == n


@pytest.mark.parametrize("values", [[0.0, 1.0, 5.0], [[0.0], [1.0], [2.0]], [[[0.0, 1.0]]]])
def test_what_is_not_pairs_is_rejected(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="not pairs of start and stop"):
        _as_pairs(np.array(values), 2)


def test_times_are_scaled_and_shifted() -> None:
    times = np.array([0.0, 30_000.0, 45_000.0])
    assert _on_clock(times, (Fraction(1, 30_000), Fraction(2))).tolist() == [2.0, 3.0, 3.5]
    assert _on_clock(times, (Fraction(3, 1000), Fraction(0))).tolist() == [0.0, 90.0, 135.0]
    assert _on_clock(times, (Fraction(1), Fraction(0))) is times
