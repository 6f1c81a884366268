"""Clocks that start again, other clocks, times of trials and of low resolution: told, and never mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynwb import TimeSeries
from recordings import START, make_recording, read_all

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.restarts import kept_of

N = 1000
AT = np.arange(N) / 100  # s
UNIX = START.timestamp()
SPEED = "processing/behavior/speed"


def write(path: Path, times: Any, **options: Any) -> Path:
    def extra(nwb: pynwb.NWBFile) -> None:
        series = TimeSeries(
            "speed", data=np.arange(float(len(times))), unit="cm/s", timestamps=np.asarray(times, float)
        )
        nwb.create_processing_module("behavior", "x").add(series)

    make_recording(path, **{"extra": extra, **options})
    return path


def warnings_of(path: Path, **options: Any) -> list[str]:
    lines: list[str] = read_all(path, **options)[0].report["warnings"]
    return lines


def speed_of(path: Path, **options: Any) -> np.ndarray:
    given = {"overlap": 0, "intervals": [(0, 10)], "modalities": ["behavior"], "behavior_method": "bin_mean"}
    return np.concatenate([fields["behavior"][:, 0] for fields, _ in read_all(path, **{**given, **options})[1]])


@given(st.lists(st.integers(20, 60), min_size=1, max_size=3), st.integers(1, 50), st.data())
def test_a_clock_that_starts_again_is_cut_there(lengths: list[int], period: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(-1000, 1000))
    pieces = [start + np.arange(n) * period for n in lengths]
    times = np.concatenate(pieces).astype(np.int64)
    np.testing.assert_array_equal(kept_of(times), np.arange(len(times)) < lengths[0])


@given(st.integers(0, 99), st.sampled_from(["blocks", "permuted", "jitter", "outliers", "packets"]))
def test_what_is_only_out_of_order_is_kept(seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(600) * 10
    if how == "blocks":
        times = np.concatenate([times[k : k + 60] for k in rng.permutation(np.arange(0, 600, 60))])
    if how == "permuted":
        times = rng.permutation(times)
    if how == "jitter":
        times = times + rng.integers(-30, 30, 600)
    if how == "outliers":
        times[rng.permutation(np.arange(0, 600, 20))[:3]] = rng.integers(-(10**6), 10**6, 3)
    if how == "packets":
        at = rng.permutation(np.arange(5, 590, 10))[:5]
        times[at], times[at + 1] = times[at + 1].copy(), times[at].copy()
    assert kept_of(times.astype(np.int64)).all()


@given(st.integers(10, 40))
def test_a_clock_that_goes_back_a_little_goes_on_where_it_was(back: int) -> None:
    times = np.r_[np.arange(1000), np.arange(1000 - back, 2000)].astype(np.int64)
    kept = kept_of(times)
    np.testing.assert_array_equal(times[kept], np.arange(2000))


@pytest.mark.parametrize("second", [600, 900])
def test_no_bin_has_samples_of_two_recordings(second: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", np.r_[AT[:600], AT[:second]])
    np.testing.assert_array_equal(speed_of(path)[:600], np.arange(600))
    assert any(line.startswith(f"{SPEED}: {second} samples left out, since the clock") for line in warnings_of(path))


def test_spikes_of_a_second_recording_are_dropped_and_those_of_merged_units_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ascending = [np.sort(rng.uniform(0, 10, 60)) for _ in range(6)]
    twice = [np.r_[a, b] for a, b in zip(ascending[:3], ascending[3:], strict=True)]
    description, samples = read_all(write(tmp_path / "a.nwb", AT, spike_times=twice), overlap=0)
    first = {float(t) for times in ascending[:3] for t in times}
    assert description.report["spikes"]["total"] == 360 and description.report["spikes"]["invalid"] == 180
    assert sum(fields["spikes"].sum() for fields, _ in samples) <= len(first)
    assert any(
        "180 spike times dropped: after the clock starts again" in line for line in description.report["warnings"]
    )
    merged = read_all(write(tmp_path / "b.nwb", AT, spike_times=[twice[0], *ascending[1:4]]), overlap=0)[0]
    assert merged.report["spikes"]["invalid"] == 0
    assert any("out of order and sorted: [100]" in line for line in merged.report["warnings"])


CLOCKS = {
    "ms": (AT * 1000, "1/1000 0"),
    "half of it in ms": ((AT / 2 + 3) * 1000, "1/1000 0"),
    "samples": (np.round(AT * 30000), "1/30000 0"),
    "unix": (AT + UNIX, f"1 -{UNIX:.0f}"),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_another_clock_is_told_with_the_option_that_corrects_it(name: str, tmp_path: Path) -> None:
    times, clock = CLOCKS[name]
    path = write(tmp_path / "a.nwb", times)
    [line] = [line for line in warnings_of(path) if "corrects" in line]
    assert line.startswith(f"{SPEED}: its 1,000 samples are at ") and f"--clock {SPEED} {clock} corrects" in line
    scale, start = clock.split()
    corrected = {"clock": [(SPEED, scale, start)]}
    assert not [line for line in warnings_of(path, **corrected) if "corrects" in line]
    if "half" not in name:
        np.testing.assert_array_equal(speed_of(path, **corrected)[:900], np.arange(900))


def test_spikes_on_another_clock_than_all_else_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trains = [np.sort(rng.uniform(0, 10, 100)) for _ in range(3)]
    path = write(tmp_path / "a.nwb", AT, spike_times=[UNIX + times for times in trains])
    [line] = [line for line in warnings_of(path) if "corrects" in line]
    assert f"--clock units 1 -{UNIX:.0f} corrects" in line
    _, samples = read_all(path, overlap=0, clock=[("units", 1, -UNIX)], modalities=["behavior", "spikes"])
    counts = np.concatenate([fields["spikes"] for fields, _ in samples])
    expected = [np.bincount((times * 100).astype(int), minlength=1000)[: len(counts)] for times in trains]
    assert np.abs(counts - np.stack(expected, axis=1)).sum() <= 2  # the times are known to 0.2 µs only


def test_clocks_that_agree_are_not_doubted(tmp_path: Path) -> None:
    for name, times in {"same": AT, "late": AT[700:], "longer": np.arange(5000) / 100}.items():
        path = write(tmp_path / f"{name}.nwb", times, trials=5, lfp_channels=1)
        assert not [line for line in warnings_of(path) if "clock" in line]


@pytest.mark.parametrize("relative", [True, False])
def test_events_outside_their_own_trial_are_told_with_what_aligns_to_them(relative: bool, tmp_path: Path) -> None:
    def extra(nwb: pynwb.NWBFile) -> None:
        nwb.add_trial_column("cue_time", "x")
        for i in range(10):
            nwb.add_trial(start_time=float(i), stop_time=i + 0.9, cue_time=0.4 + (0 if relative else i))

    make_recording(tmp_path / "a.nwb", extra=extra)
    right, wrong = ("start_time+cue_time", "cue_time") if relative else ("cue_time", "start_time+cue_time")
    given = {"align": "trials", "after_s": 0.1}
    [line] = [line for line in warnings_of(tmp_path / "a.nwb", **given, event=wrong) if "own row" in line]
    assert line.startswith(f"trials/{wrong}: 9 of 10 times") and line.endswith(f"align to --event {right}")
    assert not [line for line in warnings_of(tmp_path / "a.nwb", **given, event=right) if "own row" in line]


@pytest.mark.parametrize(("dtype", "start", "told"), [("f4", 13800.0, True), ("f4", 10.0, False), ("f8", 1e6, False)])
def test_spike_times_of_low_resolution_are_told(dtype: str, start: float, told: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", start + AT, spike_times=[start + np.arange(100) / 10.03] * 2)
    with h5py.File(path, "r+") as file:
        units = file["units"]
        times, about = units["spike_times"][:], dict(units["spike_times"].attrs)
        del units["spike_times"]
        units.create_dataset("spike_times", data=times.astype(dtype)).attrs.update(about)
        units["spike_times_index"].attrs["target"] = units["spike_times"].ref
    lines = [line for line in warnings_of(path) if "stored as" in line]
    assert len(lines) == told
    if told:
        assert "200 of 200 are known to ±0.00049 s at worst" in lines[0]


def test_times_beyond_the_clock_are_left_out_with_the_option_that_corrects_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", (AT + UNIX) * 1e9)
    assert any("no usable timestamp" in line and f"--clock {SPEED}" in line for line in warnings_of(path))
    with pytest.raises(SourceError, match=f"--clock {SPEED}"):
        read_all(path, modalities=["behavior"])
