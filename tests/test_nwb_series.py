"""Continuous series on a grid, against pynapple, plain numpy and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb import series as module
from neurofmx_wds.nwb.clock import Grid
from neurofmx_wds.nwb.series import Series
from neurofmx_wds.nwb.timeline import timeline_at_rate, timeline_of_timestamps

GAP = 0.25e9
MS = 10**6


def make_series(data: Any, times: Any = None, rate: float = 100.0, start: float = 0.0, **options: Any) -> Series:
    n_columns = data.shape[1] if data.ndim == 2 else 1
    timeline = timeline_at_rate(len(data), start, rate) if times is None else timeline_of_timestamps(times, len(data))
    columns = tuple(str(i) for i in range(n_columns))
    return Series("acquisition/x", "x.nwb", columns, "m", "continuous", data, timeline, **options)


def irregular(rng: np.random.Generator, n: int, period: float) -> np.ndarray:
    return np.round(5 + np.cumsum(period * rng.uniform(0.5, 1.5, n)), 6)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**31), st.sampled_from([0.001, 0.005, 0.02, 0.1]), st.sampled_from([0.002, 0.013]))
def test_bin_mean_and_linear_equal_pynapples(seed: int, width: float, period: float) -> None:
    nap = pytest.importorskip("pynapple", reason="pynapple is the independent reference")
    rng = np.random.default_rng(seed)
    times = irregular(rng, 600, period)
    values = rng.standard_normal((600, 3))
    values[rng.integers(0, 600, 5), 1] = np.nan
    series, grid = make_series(values, times), Grid(Fraction(str(width)) * 10**9)
    assert series.timeline.rate is None
    first = int(5 // width) + 1
    n = int((times[-1] - 5) / width) - 1
    frame = nap.TsdFrame(t=times, d=values)
    epoch = nap.IntervalSet(start=round(first * width, 9), end=round((first + n) * width, 9))
    mean = frame.bin_average(width, ep=epoch)
    found = series.on_grid("bin_mean", grid, first, first + n, GAP)
    np.testing.assert_allclose(found, mean.values[:n], rtol=1e-12, atol=1e-14)  # values of size 1 can cancel out
    centres = nap.Ts(t=(np.arange(first, first + n) + 0.5) * width)
    interpolated = frame[:, [0, 2]].interpolate(centres, ep=nap.IntervalSet(0, 1000), left=np.nan, right=np.nan)
    ours = series.on_grid("linear", grid, first, first + n, GAP)[:, [0, 2]]
    np.testing.assert_allclose(ours, interpolated.values, rtol=1e-7, atol=1e-9)
    assert len(ours) == n and np.isfinite(ours).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.integers(0, 200), st.integers(1, 150))
def test_ways_do_not_depend_on_how_the_range_is_cut(seed: int, n: int, first: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    series = make_series(rng.standard_normal((n, 2)), np.sort(rng.uniform(0, 3, n)))
    grid = Grid(Fraction(50 * MS, 3))
    for way in ("bin_mean", "linear", "previous", "count"):
        whole = series.on_grid(way, grid, first, first + size, GAP)
        single = [series.on_grid(way, grid, k, k + 1, GAP) for k in range(first, first + size)]
        np.testing.assert_allclose(whole, np.concatenate(single), rtol=1e-9, atol=1e-9)


def test_a_small_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    data, times = rng.standard_normal((5000, 3)), irregular(rng, 5000, 0.002)
    grid = Grid(10 * MS)
    ways = ("bin_mean", "linear", "previous", "count")
    large = [make_series(data, times).on_grid(way, grid, 490, 1600, GAP) for way in ways]
    native = make_series(data).native(Fraction(3 * 10**9), 4000)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    for way, expected in zip(ways, large, strict=True):
        np.testing.assert_array_equal(make_series(data, times).on_grid(way, grid, 490, 1600, GAP), expected)
    np.testing.assert_array_equal(make_series(data).native(Fraction(3 * 10**9), 4000), native)


def test_linear_crosses_no_gap_and_does_not_extrapolate() -> None:
    times = np.r_[np.arange(1, 2, 0.013), np.arange(2.5, 3, 0.011)]
    series = make_series(times * 2, times)
    values = series.on_grid("linear", Grid(10 * MS), 0, 400, GAP)[:, 0]
    centres = (np.arange(400) + 0.5) * 0.01
    inside = ((centres >= 1) & (centres <= times[76])) | ((centres >= 2.5) & (centres <= times[-1]))
    np.testing.assert_allclose(values[inside], 2 * centres[inside])
    assert np.isnan(values[~inside]).all()
    bridged = series.on_grid("linear", Grid(10 * MS), 0, 400, 0.6e9)[:, 0]
    np.testing.assert_allclose(bridged[100:299], 2 * centres[100:299])
    assert series.timeline.gaps(GAP)["n"] == 1 and series.timeline.gaps(0.6e9)["n"] == 0
    assert len(series.timeline.support(GAP)) == 2 and len(series.timeline.support(0.6e9)) == 1


def test_a_slow_series_has_no_gap_at_every_sample() -> None:
    series = make_series(np.arange(10.0), rate=2.0)
    values = series.on_grid("linear", Grid(100 * MS), 0, 45, GAP)[:, 0]
    np.testing.assert_allclose(values, 2 * (np.arange(45) + 0.5) * 0.1)


def test_previous_holds_states_until_the_next_and_a_stream_only_briefly() -> None:
    sparse = make_series(np.array([1.0, 0, 1, 0]), np.array([1.0, 3, 8, 12]))
    values = sparse.on_grid("previous", Grid(1000 * MS), 0, 20, GAP)[:, 0]
    np.testing.assert_array_equal(values[1:12], [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1])
    assert np.isnan(values[0]) and values[12] == 0 and np.isnan(values[17:]).all()
    times = np.r_[np.arange(0, 1, 0.0101), np.arange(3, 4, 0.0099)]
    stream = make_series(np.ones(len(times), dtype=bool), times)
    values = stream.on_grid("previous", Grid(10 * MS), 0, 400, GAP)[:, 0]
    assert (values[1:100] == 1).all() and np.isnan(values[130:300]).all() and (values[301:395] == 1).all()


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
@pytest.mark.parametrize("lowest", [0.0, -0.5])
def test_angles_are_averaged_and_interpolated_round_the_circle(turn: float, lowest: float) -> None:
    rng = np.random.default_rng(3)
    lowest *= turn
    true = np.cumsum(rng.normal(0.1, 0.2, 2000)) * turn / (2 * np.pi)
    wrapped = np.mod(true - lowest, turn) + lowest
    times = irregular(rng, 2000, 0.004)
    series = make_series(wrapped, times, turn=turn, lowest=lowest)
    straight = make_series(true, times)
    for way, width, tolerance in (("linear", 2 * MS, 1e-9), ("bin_mean", 20 * MS, 0.02)):
        grid = Grid(width)
        first, stop = 6 * 10**9 // width, 12 * 10**9 // width
        ours = series.on_grid(way, grid, first, stop, GAP)
        plain = straight.on_grid(way, grid, first, stop, GAP)
        off = np.mod(ours - plain + turn / 2, turn) - turn / 2
        assert np.nanmax(np.abs(off)) < tolerance * turn
        assert (ours >= lowest).all() and (ours < lowest + turn).all()
    edge = make_series(np.array([0.99, 0.01] * 50) * turn, rate=100.0, turn=turn)
    mean = edge.on_grid("bin_mean", Grid(20 * MS), 0, 50, GAP)[:, 0]
    assert (np.minimum(mean, turn - mean) < 1e-9 * turn).all()


def test_regularity_is_told_by_the_largest_displacement() -> None:
    n = 2000
    regular = 12.5 + np.arange(n) / 1250
    for shift, rate in ((0.9e-6, 1250), (1.2e-6, None)):
        times = regular.copy()
        times[n // 2] += shift
        assert timeline_of_timestamps(times, n).rate == rate
    fast = np.arange(n) / 30_000_000  # a tenth of this period is less than a microsecond
    fast[n // 2] += 0.2 / 30_000_000
    assert timeline_of_timestamps(fast, n).rate is None
    third = timeline_of_timestamps(np.arange(n) * 0.003, n)
    assert third.rate == pytest.approx(1000 / 3) and third.times is None


def test_regular_between_gaps_and_search() -> None:
    times = np.r_[1 + np.arange(500) / 1000, 3.00037 + np.arange(700) / 1000, 9 + np.arange(50) / 1000]
    timeline = timeline_of_timestamps(times, len(times))
    assert timeline.rate == 1000 and timeline.regularity == "regular between gaps" and len(timeline.runs) == 3
    ns = np.rint(times * 1e9).astype(np.int64)
    np.testing.assert_array_equal(timeline.between(0, len(times)), ns)
    for time in np.r_[ns[::37], ns[::41] - 1, ns[::43] + 1, 0, 2 * 10**9, 10**11].tolist():
        assert timeline.search(time) == np.searchsorted(ns, time)
    series = make_series(np.arange(len(times), dtype=float), times)
    out = series.native(Fraction(1_400 * MS), 2000)[:, 0]
    expected = np.full(2000, np.nan)
    expected[:100] = np.arange(400, 500)
    expected[1600:2000] = np.arange(500, 900)
    np.testing.assert_array_equal(out, expected.astype(np.float32))


@given(st.integers(1, 40_000), st.floats(0, 1e5), st.integers(0, 2**40))
def test_search_in_a_regular_series_equals_numpys(rate: int, start: float, probe: int) -> None:
    timeline = timeline_at_rate(300, start, float(rate))
    all_times = timeline.between(0, 300)
    exact = [round(start * 1e9) + Fraction(i * 10**9, rate) for i in range(300)]
    assert max(abs(int(a) - e) for a, e in zip(all_times, exact, strict=True)) <= Fraction(51, 100)
    for time in (probe, *all_times[::29].tolist(), int(all_times[7]) + 1, int(all_times[-1]) + 1):
        assert timeline.search(time) == np.searchsorted(all_times, time)


@settings(deadline=None)
@given(st.integers(0, 2**31))
def test_disordered_timestamps_give_what_sorting_the_file_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = irregular(rng, 800, 0.004)
    values = rng.standard_normal((800, 2))
    times[::7] = times[3]  # ties keep their order
    shuffled = rng.permutation(800) if seed % 2 else np.arange(800)
    times, values = times[shuffled], values[shuffled]
    times[[5, 600]] = [np.nan, 1e12]
    times[17] = 2e9  # a stray one
    timeline = timeline_of_timestamps(times, 800)
    assert timeline.notes["unusable timestamps dropped"] == 2 and timeline.notes["stray timestamps dropped"] == 1
    keep = np.isfinite(times) & (times < 1e9)
    order = np.argsort(times[keep], kind="stable")
    ours, clean = make_series(values, times), make_series(values[keep][order], times[keep][order])
    for way in ("bin_mean", "linear", "previous", "count"):
        np.testing.assert_array_equal(
            ours.on_grid(way, Grid(10 * MS), 480, 900, GAP), clean.on_grid(way, Grid(10 * MS), 480, 900, GAP)
        )


def test_values_are_scaled_by_channel_and_nan_stays() -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(-3000, 3000, (500, 3)).astype(np.int16)
    series = make_series(raw, scale=0.195e-6 * np.array([1.0, 2.0, 0.5]), offset=1e-4)
    np.testing.assert_allclose(series.values(20, 70), raw[20:70] * 0.195e-6 * np.array([1.0, 2.0, 0.5]) + 1e-4)
    holes = rng.standard_normal((100, 1))
    holes[10] = np.nan
    assert np.isnan(make_series(holes).native(Fraction(0), 100)).ravel().nonzero()[0].tolist() == [10]


@pytest.mark.parametrize("rate", [0.0, -5.0, np.nan, np.inf])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        timeline_at_rate(10, 0.0, rate)


def test_an_unreadable_block_names_series_and_file() -> None:
    class Broken(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, slice) and key.stop:
                raise OSError("inflate() failed")
            return super().__getitem__(key)

    with pytest.raises(SourceError, match=r"x\.nwb.*acquisition/x cannot be read: inflate"):
        make_series(np.zeros((10, 1)).view(Broken)).values(0, 10)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("way", ["native", "bin_mean", "linear"])
def test_windows_read_one_after_another_read_every_chunk_once(way: str, overlap: float) -> None:
    class Counting:
        """An HDF5 dataset's face on an array, which counts how often each row is read."""

        chunks, ndim = (64, 2), 2

        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype
            self.reads = np.zeros(len(array), dtype=int)

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, rows: slice) -> np.ndarray:
            assert (rows.start or 0) % 64 == 0 and (rows.stop % 64 == 0 or rows.stop == len(self))
            self.reads[rows] += 1
            return self.array[rows]

    data = np.random.default_rng(0).standard_normal((5000, 2))
    counted = Counting(data)
    series = make_series(counted, rate=1000.0)
    for first in range(0, 480 - 30, round(30 * (1 - overlap))):
        if way == "native":
            got = series.native(Fraction(first * 10 * MS), 300)
            np.testing.assert_array_equal(got, data[first * 10 : first * 10 + 300].astype(np.float32))
        else:
            series.on_grid(way, Grid(10 * MS), first, first + 30, GAP)
    assert counted.reads.max() == 1 and counted.reads.sum() >= 4500
