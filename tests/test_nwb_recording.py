"""NWB files opened and cut into windows, against pynapple on real recordings and the truth of made-up ones."""

from __future__ import annotations

import json
import os
import pickle
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from conversions import RECORDINGS
from counting import some
from hdmf.backends.hdf5 import H5DataIO
from hypothesis import given
from hypothesis import strategies as st
from pynwb import behavior as nwb_behavior
from pynwb.ecephys import ElectricalSeries, SpikeEventSeries
from recordings import make_recording

from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.clock import MAX_NS
from neurofmx_wds.nwb.recording import Recording

HEAD = "A2929-200711.nwb"
TRIALS = "sub-anm00239123_ses-20170627T093549.nwb"


def config(**options: Any) -> SourceConfig:
    return SourceConfig.of(**{"bin_size_ms": 10, "sequence_length": 50, **options})


@pytest.fixture
def opened() -> Iterator[Any]:
    sources = []

    def open_one(path: Path, **options: Any) -> Any:
        sources.append(open_source(path, config(**options)))
        return sources[-1]

    yield open_one
    for source in sources:
        source.close()


def real(name: str) -> Path:
    if not (RECORDINGS / name).is_file():
        pytest.skip(f"{name} is not in {RECORDINGS} (set NEUROFMX_TEST_DATA to the folder that holds it)")
    return RECORDINGS / name


def everything(source: Any) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    return list(source.read(0, source.describe().n_samples))


# -- real recordings against pynapple -------------------------------------------------------------------------------


@pytest.mark.parametrize("ms", [1, 5, 10, 20])
@pytest.mark.parametrize("name", [HEAD, TRIALS])
def test_every_window_of_the_real_recordings_equals_pynapples(name: str, ms: int, opened: Any) -> None:
    nap = pytest.importorskip("pynapple", reason="pynapple is the independent reference")
    source = opened(real(name), bin_size_ms=ms, sequence_length=100)
    description = source.describe()
    with pynwb.NWBHDF5IO(str(real(name)), "r") as io:
        units = io.read().units
        spikes = [units["spike_times"][i] for i in range(len(units))]
    ends = np.max(np.concatenate(spikes))
    group = nap.TsGroup({i: nap.Ts(t=t) for i, t in enumerate(spikes)}, time_support=nap.IntervalSet(0, ends + 1))
    width, (low, high) = ms / 1000, description.report["segments"][0]
    a, b = low // (ms * 10**6), high // (ms * 10**6)
    reference = group.count(width, ep=nap.IntervalSet(round(a * width, 9), round(b * width, 9))).values[: b - a]
    assert description.n_samples == (b - a - 100) // 50 + 1 > 1000
    for w, (fields, metadata) in some(enumerate(source.read(0, description.n_samples))):
        assert metadata["window_index"] == w and metadata["t_start_ns"] == (a + 50 * w) * ms * 10**6
        np.testing.assert_array_equal(fields["spikes"], reference[50 * w : 50 * w + 100])
    assert w == description.n_samples - 1
    spikes_in = description.report["spikes"]
    assert spikes_in["total"] == sum(map(len, spikes)) == spikes_in["binned"] + spikes_in["outside"]
    assert spikes_in["binned"] == reference[: 50 * w + 100].sum()


@pytest.mark.parametrize(("ms", "way"), [(1, "linear"), (5, "linear"), (10, "linear"), (20, "bin_mean")])
def test_the_real_positions_equal_pynapples(ms: int, way: str, opened: Any) -> None:
    nap = pytest.importorskip("pynapple", reason="pynapple is the independent reference")
    source = opened(real(HEAD), bin_size_ms=ms, sequence_length=100, overlap=0.0, intervals=[(668.0, 700.0)])
    field = source.describe().fields["behavior"]
    assert field["columns"][3:] == ["Position/x", "Position/y", "Position/z"] and field["ways"] == [way] * 6
    windows = everything(source)
    values = np.concatenate([fields["behavior"] for fields, _ in windows])[:, 3:]
    mask = np.concatenate([fields["behavior_mask"] for fields, _ in windows])[:, 3:]
    with h5py.File(real(HEAD)) as file:
        position = file["acquisition/Position"]
        frame = nap.TsdFrame(
            t=position["x/timestamps"][:], d=np.stack([position[f"{axis}/data"][:] for axis in "xyz"], axis=1)
        )
    width, n, first = ms / 1000, len(values), 668_000 // ms
    if way == "bin_mean":
        frame = nap.TsdFrame(t=frame.t, d=frame.d, time_support=nap.IntervalSet(600, 1300))
        expected = frame.bin_average(width, ep=nap.IntervalSet(668, round((first + n) * width, 9))).values[:n]
    else:
        centres = nap.Ts(t=(first + np.arange(n) + 0.5) * width)
        expected = frame.interpolate(centres, ep=nap.IntervalSet(600, 1300), left=np.nan, right=np.nan).values
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(mask, ~np.isnan(expected))
    assert 0 < mask.sum() < mask.size


def test_the_real_trials_are_those_that_hold_the_window_starts(opened: Any) -> None:
    source = opened(real(TRIALS), bin_size_ms=100)
    with h5py.File(real(TRIALS)) as file:
        starts, stops = (file[f"intervals/trials/{name}"][:] for name in ("start_time", "stop_time"))
    for _, metadata in some(source.read(0, 300)):
        moment = metadata["t_start_ns"] / 1e9
        holding = np.flatnonzero((starts <= moment) & (moment < stops))
        assert metadata["trial"] == (holding[-1] if len(holding) else None)


# -- made-up recordings against their truth -------------------------------------------------------------------------


def test_all_modalities_of_a_window_are_of_the_same_time(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.nwb"
    truth = make_recording(
        path, lfp_channels=3, behavior_rate=250, trials=4, invalid_times=[(3.0, 3.333)], obs_intervals=[[[0, 10]]] * 4
    )
    source = opened(path, bin_size_ms=20, overlap=0.7)
    description = source.describe()
    fields = description.fields
    samples = everything(source)
    assert list(samples[0][0]) == list(fields) == ["spikes", "behavior", "behavior_mask", "lfp"]
    assert description.report["segments"] == [[0, 3_000_000_000], [3_340_000_000, 10_000_000_000]]
    assert len(samples) == description.n_samples == (150 - 50) // 15 + 1 + (333 - 50) // 15 + 1
    for values, metadata in some(samples):
        assert {name: [str(v.dtype), list(v.shape)] for name, v in values.items()} == {
            name: [f["dtype"], f["shape"]] for name, f in fields.items()
        }
        start = metadata["t_start_ns"]
        assert metadata["t_stop_ns"] == start + 50 * 20_000_000 and metadata["bin_ns"] == 20_000_000
        edges = start + np.arange(51) * 20_000_000
        for unit, times in enumerate(truth["spike_times"]):
            counts = np.histogram(np.rint(times * 1e9).astype(np.int64), edges)[0]
            counts[-1] -= (np.rint(times * 1e9) == edges[-1]).sum()  # np.histogram closes the last bin
            np.testing.assert_array_equal(values["spikes"][:, unit], counts)
        first = start // 4_000_000
        mean = truth["position"][first : first + 250].reshape(50, 5, 2).mean(axis=1)
        np.testing.assert_allclose(values["behavior"], mean, rtol=1e-5, atol=1e-6)
        assert values["behavior_mask"].all()
        np.testing.assert_array_equal(values["lfp"], truth["lfp"][start // MS : start // MS + 1000].astype(np.float32))
        trial = [i for i, (a, b) in enumerate(truth["trials"]) if a <= start / 1e9 < b]
        assert metadata["trial"] == (trial[0] if trial else None)
        assert list(metadata) == [
            *("session_id", "source", "window_index", "t_start_ns", "t_stop_ns", "bin_ns"),
            *("trial", "trial_start_time", "trial_stop_time"),
        ]
    json.dumps([metadata for _, metadata in samples])


MS = 10**6


@pytest.mark.parametrize("width", [20, "100/3", Fraction(25, 3)])
def test_any_range_gives_what_the_whole_gives(tmp_path: Path, opened: Any, width: Any, monkeypatch: Any) -> None:
    path = tmp_path / "a.nwb"
    make_recording(path, lfp_channels=2, behavior_rate=120, invalid_times=[(4.0, 4.1)], compass_unit="degrees")
    whole = everything(opened(path, bin_size_ms=width))
    monkeypatch.setattr("neurofmx_wds.convert.sources.nwb.BLOCK_BYTES", 4000)
    rng = np.random.default_rng(0)
    source = opened(path, bin_size_ms=width)
    for start, stop in np.sort(rng.integers(0, len(whole) + 1, (10, 2)), axis=1).tolist():
        part = list(source.read(start, stop))
        assert [m for _, m in part] == [m for _, m in whole[start:stop]]
        for (ours, _), (theirs, _) in zip(part, whole[start:stop], strict=True):
            for name, values in theirs.items():
                np.testing.assert_allclose(ours[name], values, rtol=1e-6, atol=1e-6)
                assert ours[name].flags.owndata or not ours[name].flags.writeable
    if isinstance(width, str):
        assert whole[0][1]["bin_ns"] == {"numerator": 100_000_000, "denominator": 3}
    with pytest.raises(IndexError):
        list(source.read(0, len(whole) + 1))


def test_lfp_that_misses_windows_has_a_mask_in_every_one(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "a.nwb"
    truth = make_recording(path, lfp_channels=2, lfp_start=2.0, obs_intervals=[[[0, 10]]] * 4)
    source = opened(path)
    assert list(source.describe().fields) == ["spikes", "lfp", "lfp_mask"]
    for values, metadata in some(everything(source)):
        expected = np.full((500, 2), np.nan, dtype=np.float32)
        i0 = metadata["t_start_ns"] // MS - 2000
        rows = np.arange(i0, i0 + 500)
        there = (rows >= 0) & (rows < 10_000)
        expected[there] = truth["lfp"][rows[there]]
        np.testing.assert_array_equal(values["lfp"], expected)
        np.testing.assert_array_equal(values["lfp_mask"], ~np.isnan(expected))
    only = opened(path, modalities=("lfp",))
    assert list(only.describe().fields) == ["lfp"] and only.describe().report["segments"] == [[2 * 10**9, 12 * 10**9]]
    with_gap = np.r_[np.arange(0, 3, 0.001), np.arange(5, 8, 0.001)]
    make_recording(tmp_path / "b.nwb", lfp_channels=2, lfp_times=with_gap, n_units=0)
    gapped = opened(tmp_path / "b.nwb")
    assert gapped.describe().report["segments"] == [[0, 3 * 10**9], [5 * 10**9, 8 * 10**9]]
    assert list(gapped.describe().fields) == ["lfp"]


def test_lfp_is_scaled_and_slow_or_irregular_lfp_goes_onto_the_grid(tmp_path: Path, opened: Any) -> None:
    raw = np.random.default_rng(0).integers(-1000, 1000, (2000, 2)).astype(np.int16)
    scaling = {"conversion": 1e-6, "channel_conversion": [1.0, 2.5], "offset": 0.001}
    path = tmp_path / "a.nwb"
    make_recording(path, lfp_channels=2, lfp_data=raw, lfp_scaling=scaling, n_units=0)
    source = opened(path)
    whole = np.concatenate([f["lfp"] for f, _ in everything(opened(path, overlap=0.0))])
    np.testing.assert_allclose(whole, raw * 1e-6 * np.array([1.0, 2.5]) + 0.001, rtol=1e-6)
    assert source.describe().fields["lfp"]["rate"] == 1000
    assert list(opened(path, bin_size_ms=1).describe().fields) == ["lfp", "lfp_mask"]  # linear: one sample a bin
    times = np.cumsum(np.random.default_rng(0).uniform(0.5e-3, 1.5e-3, 2000))
    path = tmp_path / "b.nwb"
    make_recording(path, lfp_channels=2, lfp_data=raw, lfp_times=times, n_units=0)
    assert opened(path).describe().fields["lfp"]["ways"] == ["bin_mean"]
    with pytest.raises(SourceError, match=r"b\.nwb.*irregular.*bin_mean"):
        opened(path, lfp_method="native").describe()


def test_behavior_alone_sets_its_own_support(tmp_path: Path, opened: Any) -> None:
    times = np.r_[np.arange(1, 3, 0.01), np.arange(6, 9, 0.01)] + 0.003
    make_recording(tmp_path / "a.nwb", behavior_times=times, n_units=0, seconds=10)
    report = opened(tmp_path / "a.nwb").describe().report
    assert report["segments"] == [[1_010 * MS, 3_000 * MS], [6_010 * MS, 9_000 * MS]]
    assert report["windows"]["dropped"]["outside the support of behavior"] > 0
    assert report["series"][0]["gaps"]["n"] == 1


def test_spike_account_and_windows_add_up(tmp_path: Path, opened: Any) -> None:
    spikes = [[2.0, 1.0, np.nan, -0.5, 9.0], [], [0.0, 9.999, 5.0, 4.2]]
    make_recording(tmp_path / "a.nwb", spike_times=spikes, obs_intervals=[[[0, 4], [5, 10]]] * 3)
    description = opened(tmp_path / "a.nwb", intervals=[(0, 9.5)], sequence_length=100, overlap=0.0).describe()
    report = description.report
    because = report["spikes"].pop("outside_because")
    assert sorted(because.values()) == [1, 1, 1]
    assert report["spikes"] == {"total": 9, "binned": 4, "outside": 3, "invalid": 2}
    assert report["windows"] == {
        "emitted": 8,
        "dropped": {"outside the support of spikes": 1, "outside the intervals given": 1},
    }
    assert report["bins_in_tails"] == 50 and report["units"]["n_spikes"] == [3, 0, 4]
    text = " | ".join(report["warnings"])
    assert "1 spike times dropped: NaN" in text and "1 spike times dropped: negative" in text
    assert "out of order and sorted: [100, 102]" in text
    assert pickle.loads(pickle.dumps(description)) == description and json.loads(json.dumps(report)) == report


def test_one_absurd_spike_time_does_not_size_the_grid(tmp_path: Path, opened: Any) -> None:
    spikes = [np.r_[np.arange(0, 10, 0.1), 1.7e9]]
    make_recording(tmp_path / "a.nwb", spike_times=spikes)
    report = opened(tmp_path / "a.nwb").describe().report
    assert report["windows"]["emitted"] < 40 and report["spikes"]["outside"] >= 1
    assert "1 spikes more than a day away" in " ".join(report["warnings"])


@pytest.mark.parametrize(
    ("spikes", "emitted", "told"),
    [
        ([0.5, 1.5, 2.5, 1e9], 7, "1 spikes more than a day away"),
        (
            [0.0, 1e9],
            3_999_999_999,
            r"3,999,999,999 windows from 0 s to 1e\+09 s hold 1 spikes.*--interval.*--time-scale",
        ),
        ([0.0, 3.2, 51.0], 203, None),
    ],
)
def test_windows_of_hardly_any_spikes_are_doubted(
    spikes: list[float], emitted: int, told: str | None, tmp_path: Path, opened: Any
) -> None:
    make_recording(tmp_path / "a.nwb", spike_times=[spikes])
    report = opened(tmp_path / "a.nwb").describe().report
    assert report["windows"]["emitted"] == emitted
    warned = " ".join(report["warnings"])
    assert re.search(told, warned) if told else "hold" not in warned
    make_recording(tmp_path / "b.nwb", spike_times=[spikes], obs_intervals=[[[0, 1000]]])
    assert "hold" not in " ".join(opened(tmp_path / "b.nwb").describe().report["warnings"])


def test_integer_counts_that_overflow_are_an_error(tmp_path: Path, opened: Any) -> None:
    spikes = [np.r_[0.0, np.linspace(1.001, 1.009, 300), 2.0]]
    make_recording(tmp_path / "a.nwb", spike_times=spikes)
    with pytest.raises(SourceError, match=r"a\.nwb.*300 spikes of unit 100.*at 1\.0 s do not fit uint8"):
        everything(opened(tmp_path / "a.nwb", spike_dtype="uint8"))
    wide = everything(opened(tmp_path / "a.nwb", spike_dtype="uint16"))
    assert {fields["spikes"].dtype.name for fields, _ in wide} == {"uint16"}
    assert max(fields["spikes"].max() for fields, _ in wide) == 300


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sequence_length": 2000}, r"one takes 20 s; spikes: 9\.9 s, from 0 s to 9\.9 s \(first to last .*smaller"),
        ({"intervals": [(50, 60)]}, "in the intervals given: nothing \\(give intervals"),
        ({"intervals": [(1, 1.2), (3, 3.3)]}, r"given: 2 pieces of up to 0\.3 s, from 1 s to 3\.3 s \(give intervals"),
        ({"intervals": [(4, 5)]}, r"intervals given: 1 s, .*; outside invalid_times: 2 pieces of up to 0\.4.*smaller"),
        ({"time_scale": "1/1000"}, r"spikes: 0\.0099\d* s, .*\(is time_scale 1/1000 right\?"),
        ({"align": "trials", "before_s": 20}, r"of 2 around trials/start_time: 2 outside the support.*before_s"),
    ],
)
def test_what_keeps_every_window_from_fitting_is_told(options: Any, told: str, tmp_path: Path, opened: Any) -> None:
    times = [np.arange(0, 9.95, 0.1)]
    make_recording(tmp_path / "a.nwb", spike_times=times, invalid_times=[(4.4, 4.7)], trials=2)
    with pytest.raises(SourceError, match=rf"a\.nwb: no window fits: .*{told}"):
        convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), config(**options))
    assert re.search(told, opened(tmp_path / "a.nwb", **options).describe().report["warnings"][-1])


def test_no_room_for_a_window_is_reported(tmp_path: Path, opened: Any) -> None:
    make_recording(tmp_path / "a.nwb", spike_times=[[0.1, 0.2], []])
    description = opened(tmp_path / "a.nwb").describe()
    assert description.n_samples == 0 and list(opened(tmp_path / "a.nwb").read(0, 0)) == []
    assert description.report["windows"]["dropped"] == {"segment shorter than a window": 1}
    assert "no window fits" in description.report["warnings"][-1]
    make_recording(tmp_path / "b.nwb", spike_times=[[], []])
    assert opened(tmp_path / "b.nwb").describe().n_samples == 0


# -- what is found where --------------------------------------------------------------------------------------------


def _odd_series(nwb: pynwb.NWBFile) -> None:
    t = np.arange(1000) / 100
    spatial = {"timestamps": t, "reference_frame": "r"}
    nwb.add_acquisition(nwb_behavior.SpatialSeries(name="bare", data=np.ones((1000, 2)), unit="m", **spatial))
    heading = nwb_behavior.SpatialSeries(name="h", data=np.linspace(0, 100, 1000), unit="degrees", **spatial)
    nwb.add_acquisition(nwb_behavior.CompassDirection(spatial_series=heading))
    unwrapped = nwb_behavior.SpatialSeries(name="u", data=np.linspace(0, 1000, 1000), unit="degrees", **spatial)
    module = nwb.create_processing_module("eyes", "d")
    module.add(nwb_behavior.CompassDirection(spatial_series=unwrapped, name="Unwrapped"))
    series = [
        pynwb.TimeSeries(name="lick", data=t % 1 < 0.3, unit="n/a", timestamps=t),
        pynwb.TimeSeries(name="label", data=(t // 1).astype(np.int32), unit="n/a", timestamps=t),
        pynwb.TimeSeries(name="speed", data=(t * 10).astype(np.int16), conversion=0.1, unit="m/s", rate=100.0),
        pynwb.TimeSeries(name="text", data=["a"] * 1000, unit="n/a", timestamps=t),
        pynwb.TimeSeries(name="never", data=np.ones(3), unit="n/a", timestamps=[np.nan] * 3),
    ]
    module.add(nwb_behavior.BehavioralTimeSeries(time_series=series))
    reward = pynwb.TimeSeries(name="reward", data=np.ones(3), unit="ml", timestamps=[1.0, 1.001, 5.0])
    module.add(nwb_behavior.BehavioralEvents(time_series=reward))
    nwb.add_acquisition(pynwb.TimeSeries(name="unclaimed", data=np.ones(3), unit="V", rate=1.0))


def test_behavior_is_found_named_and_put_on_the_grid_by_its_nature(tmp_path: Path, opened: Any) -> None:
    make_recording(tmp_path / "a.nwb", extra=_odd_series, obs_intervals=[[[0, 9.5]]] * 4)
    source = opened(tmp_path / "a.nwb", overlap=0.0)
    description = source.describe()
    field = description.fields["behavior"]
    assert dict(zip(field["columns"], field["ways"], strict=True)) == {
        "CompassDirection/h": "linear",
        "acquisition/bare_x": "linear",
        "acquisition/bare_y": "linear",
        "BehavioralEvents/reward": "count",
        "BehavioralTimeSeries/label": "previous",
        "BehavioralTimeSeries/lick": "previous",
        "BehavioralTimeSeries/speed": "linear",
        "Unwrapped/u": "linear",
    }
    turns = {each.columns[0]: each.turn for each in source.recording.behavior}
    assert turns["CompassDirection/h"] == 360 and turns["Unwrapped/u"] is None
    report = description.report
    assert report["unused"] == ["acquisition/unclaimed"]
    left_out = [line for line in report["warnings"] if "left out" in line]
    assert len(left_out) == 2 and "text" in "".join(left_out) and "never" in "".join(left_out)
    values = np.concatenate([fields["behavior"] for fields, _ in everything(source)])
    column = {name: values[:, i] for i, name in enumerate(field["columns"])}
    centres = (np.arange(len(values)) + 0.5) * 0.01
    np.testing.assert_array_equal(column["BehavioralTimeSeries/label"], centres // 1)
    np.testing.assert_array_equal(np.flatnonzero(column["BehavioralEvents/reward"]), [100, 500])
    assert column["BehavioralEvents/reward"][100] == 2
    unwrapped = np.interp(centres, np.arange(1000) / 100, np.linspace(0, 1e3, 1000))
    np.testing.assert_allclose(column["Unwrapped/u"], unwrapped, rtol=1e-6)


def test_lfp_is_taken_from_lfp_containers_else_from_electrical_series(tmp_path: Path) -> None:
    def raw(nwb: pynwb.NWBFile) -> None:
        region = nwb.create_electrode_table_region([0], "one")
        for name in ("Raw", "raw", "b.c"):
            nwb.add_acquisition(ElectricalSeries(name=name, data=np.ones((100, 1)), electrodes=region, rate=100.0))
        nwb.add_acquisition(
            SpikeEventSeries(name="snippets", data=np.ones((3, 1)), electrodes=region, timestamps=[1.0, 2, 3])
        )

    make_recording(tmp_path / "a.nwb", lfp_channels=2, extra=raw)
    both = Recording(tmp_path / "a.nwb")
    assert [(name, s.path) for name, s in both.fields_of("lfp").items()] == [("lfp", "processing/ecephys/LFP/lfp")]
    assert both.fields_of("lfp")["lfp"].columns == ("10", "11") and len(both.unused()) == 4
    make_recording(tmp_path / "b.nwb", extra=raw)
    assert sorted(Recording(tmp_path / "b.nwb").fields_of("lfp")) == ["lfp_b_c", "lfp_raw", "lfp_raw_2"]


def test_two_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    def again(nwb: pynwb.NWBFile) -> None:
        series = nwb_behavior.SpatialSeries(name="xy", data=np.ones((10, 2)), unit="m", rate=1.0, reference_frame="r")
        nwb.add_acquisition(nwb_behavior.Position(spatial_series=series))

    make_recording(tmp_path / "a.nwb", behavior_rate=10, extra=again)
    columns = [c for series in Recording(tmp_path / "a.nwb").behavior for c in series.columns]
    assert columns == [
        *("acquisition/Position/xy_x", "acquisition/Position/xy_y"),
        *("processing/behavior/Position/xy_x", "processing/behavior/Position/xy_y"),
    ]


def test_a_missing_modality_is_named_with_what_there_is(tmp_path: Path, opened: Any) -> None:
    make_recording(tmp_path / "a.nwb", behavior_rate=20, n_units=0)
    with pytest.raises(SourceError, match=r"a\.nwb.*no spikes.*it has behavior"):
        opened(tmp_path / "a.nwb", modalities=("spikes", "behavior")).describe()
    make_recording(tmp_path / "b.nwb", n_units=0)
    with pytest.raises(SourceError, match=r"b\.nwb.*no time series at all"):
        opened(tmp_path / "b.nwb").describe()


# -- files that are no recordings -----------------------------------------------------------------------------------


def _hdf5(path: Path, version: str | None) -> None:
    with h5py.File(path, "w") as file:
        if version:
            file.attrs["nwb_version"] = version


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: None, "cannot be opened: No such file"),
        (lambda p: p.mkdir(), "is a directory"),
        (lambda p: p.touch(), "is empty"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-LFS pointer"),
        (lambda p: p.write_bytes(b"\x00" * 5000), "not an HDF5 file"),
        (lambda p: (make_recording(p), os.truncate(p, os.path.getsize(p) // 2)), "damaged HDF5 file.*truncated"),
        (lambda p: _hdf5(p, None), "no nwb_version"),
        (lambda p: _hdf5(p, "1.0.6"), "not NWB 2"),
        (lambda p: _hdf5(p, "2.5.0"), "pynwb cannot read it"),
    ],
)
def test_what_is_no_recording_gets_one_clear_error(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "x.nwb"
    make(path)
    with pytest.raises(SourceError, match=rf"(?s)x\.nwb: .*{reason}.*\(.+\)$"):
        open_source(path, config())


def test_formats_are_told_by_name_and_by_signature(tmp_path: Path, opened: Any) -> None:
    make_recording(tmp_path / "a.nwb")
    (tmp_path / "a.nwb").rename(tmp_path / "a.h5")
    assert opened(tmp_path / "a.h5").describe().n_samples > 0
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"a\.txt.*neither its name nor its first bytes"):
        open_source(tmp_path / "a.txt", config())
    with pytest.raises(SourceError, match="No such file"):
        open_source(tmp_path / "missing", config())


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "mat"},
        {"modalities": ()},
        {"modalities": ("lfp", "lfp")},
        {"bin_size_ms": 0},
        {"bin_size_ms": float("nan")},
        {"bin_size_ms": "ten"},
        {"bin_size_ms": 1e300},
        {"bin_size_ms": "123456789/987654321"},
        {"bin_size_ms": Fraction(10**400, 3)},
        {"sequence_length": 0},
        {"sequence_length": 2.5},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"spike_dtype": "object"},
        {"behavior_method": "cubic"},
        {"lfp_method": "count"},
        {"max_gap_s": 0.0},
        {"intervals": [(2.0, 1.0)]},
        {"origin_ns": 0.5},
        {"origin_ns": 10**19},
        {"after_s": 1e12, "align": "trials"},
    ],
)
def test_a_wrong_configuration_is_refused_naming_the_value(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"^{name}=") as refused:
        SourceConfig.of(**wrong)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(("size", "ns"), [(10.0, 10**7), (0.1, 10**5), (2.5, 2_500_000), ("100/3", Fraction(10**8, 3))])
def test_bin_width_is_exact_and_the_configuration_survives_json(size: Any, ns: Any) -> None:
    made = config(bin_size_ms=size, modalities=["lfp"], intervals=[(0, 1)])
    assert made.windows.bin_width_ns == ns
    assert SourceConfig.of(**json.loads(json.dumps(made.to_json()))) == made == pickle.loads(pickle.dumps(made))
    fraction = config(bin_size_ms=Fraction(1, 3))
    again = SourceConfig.of(**json.loads(json.dumps(fraction.to_json())))
    assert again.windows.bin_width_ns == fraction.windows.bin_width_ns


@given(st.integers(-(10**18), 10**18), st.integers(1, 10**18))
def test_intervals_of_fractions_are_exact_and_those_of_floats_the_nearest(start: int, n: int) -> None:
    made = config(intervals=[(Fraction(start, 10**9), Fraction(start + n, 10**9)), (start / 1e9, np.inf)])
    assert made.windows.intervals_ns == [(start, start + n), (round(start / 1e9 * 1e9), MAX_NS)]
    assert SourceConfig.of(**json.loads(json.dumps(made.to_json()))) == made
    assert n == 1 or (made.within(start + 1, start + n + 1).windows.intervals_ns or [])[0] == (start + 1, start + n)
    assert replace(made.windows, intervals=()).within(start, start + n).intervals_ns == []


# -- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["native", "bin_mean"])
def test_a_large_lfp_is_never_read_whole(tmp_path: Path, opened: Any, method: str) -> None:
    path, n = tmp_path / "big.nwb", 1_600_000
    empty = H5DataIO(
        shape=(n, 64), dtype=np.dtype("int16"), chunks=(8192, 64), fillvalue=3, compression="gzip"
    )  # 205 MB
    make_recording(path, seconds=n / 2000, lfp_channels=64, lfp_rate=2000, lfp_data=empty, n_units=1)
    source = opened(path, sequence_length=100, lfp_method=method, overlap=0.5)
    tracemalloc.start()
    n_samples = source.describe().n_samples
    seen = sum(float(fields["lfp"].min()) == 3 for fields, _ in source.read(0, n_samples // 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == n_samples // 4 > 300
    assert peak < 64 * 2**20
