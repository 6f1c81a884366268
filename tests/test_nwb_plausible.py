"""What a recording says of itself is compared with its data: angles, states, scales, axes and clocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynwb import TimeSeries
from pynwb.behavior import CompassDirection, Position, SpatialSeries
from recordings import make_recording, read_all
from windows import assert_same_batches, convert_both, load

from neurofmx_wds import Windows
from neurofmx_wds.errors import SourceError

AT = np.arange(1000) / 100  # s
MEAN: dict[str, Any] = {"behavior_method": "bin_mean"}


def write(path: Path, *series: Any, module: str = "behavior", **options: Any) -> Path:
    def extra(nwb: pynwb.NWBFile) -> None:
        nwb.create_processing_module(module, "x").add(list(series))

    make_recording(path, extra=extra, **options)
    return path


def values_of(path: Path, field: str = "behavior", **options: Any) -> tuple[np.ndarray, list[str]]:
    """Returns a field's values in windows that do not overlap, from 0 s on, and the warnings."""
    description, samples = read_all(path, overlap=0, intervals=[(0, 10)], modalities=["behavior"], **options)
    return np.concatenate([fields[field] for fields, _ in samples]), description.report["warnings"]


def circular_mean(values: np.ndarray, per_bin: int, turn: float) -> np.ndarray:
    angles = values.reshape(-1, per_bin, *values.shape[1:]) * 2 * np.pi / turn
    return np.angle(np.exp(1j * angles).mean(axis=1)) * turn / (2 * np.pi)


def off(a: np.ndarray, b: np.ndarray, turn: float) -> float:
    return float(np.abs(np.mod(a - b + turn / 2, turn) - turn / 2).max())


turning = np.cumsum(np.random.default_rng(0).normal(0.02, 0.3, 1000))  # radians, over several turns


@pytest.mark.parametrize("unit", ["degrees", "deg", "°", "radians", "rad", "n.a.", ""])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["head_direction", "HeadAngle", "phase"])
def test_angles_are_averaged_on_the_circle_whatever_says_so(
    unit: str, centred: bool, name: str, tmp_path: Path
) -> None:
    turn = 2 * np.pi if unit.startswith("rad") else 360.0
    angles = np.mod(turning * turn / (2 * np.pi), turn) - centred * turn / 2
    path = write(tmp_path / "a.nwb", TimeSeries(name, data=angles, unit=unit, rate=100.0))
    values, warnings = values_of(path, bin_size_ms=50)
    assert off(values[:, 0], circular_mean(angles, 5, turn), turn) < 1e-4
    assert angles.min() - 1e-3 <= values.min() and values.max() <= angles.max() + 1e-3 * turn + turn / 100
    said = any("averaged as angles in degrees" in line for line in warnings)
    assert said == (unit in ("n.a.", ""))


@pytest.mark.parametrize(("unit", "turn"), [("radians", 360.0), ("degrees", 2 * np.pi)])
def test_angles_of_another_unit_than_they_say_are_told(unit: str, turn: float, tmp_path: Path) -> None:
    angles = np.mod(turning * turn / (2 * np.pi), turn)
    series = SpatialSeries("direction", data=angles, reference_frame="x", unit=unit, rate=100.0)
    values, warnings = values_of(write(tmp_path / "a.nwb", CompassDirection(spatial_series=series)), bin_size_ms=50)
    assert off(values[:, 0], circular_mean(angles, 5, turn), turn) < 1e-4
    assert any("CompassDirection/direction" in line and repr(unit) in line for line in warnings)


def test_columns_of_angles_have_a_circle_each_and_other_values_none(tmp_path: Path) -> None:
    angles = np.stack([np.mod(np.degrees(turning), 360), np.mod(np.degrees(turning) + 7, 360) - 180], axis=1)
    series = [
        TimeSeries("angles", data=angles, unit="degrees", rate=100.0),
        TimeSeries("a_speed", data=angles[:, 0], unit="degrees/s", rate=100.0),  # no angle
        TimeSeries("b_unwrapped", data=np.degrees(turning), unit="degrees", rate=100.0),
        TimeSeries("c_gaze", data=np.sin(AT) * 20, unit="degrees", rate=100.0),  # never jumps
        TimeSeries("d_temperature", data=angles[:, 0], unit="degrees Celsius", rate=100.0),
    ]
    values, _ = values_of(write(tmp_path / "a.nwb", *series), bin_size_ms=50)
    plain = [each.data.reshape(-1, 5).mean(axis=1) for each in series[1:]]
    np.testing.assert_allclose(values[:, [0, 3, 4, 5]], np.stack(plain, axis=1), rtol=1e-5, atol=1e-5)
    assert off(values[:, 1:3], circular_mean(angles, 5, 360.0), 360.0) < 1e-3
    assert values[:, 1].min() >= 0 and values[:, 2].min() < -90
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 2.0, bin_size_ms=50, sequence_length=20)
    windows = Windows(length_s=1, overlap=0.5, bin_ms=50)
    assert assert_same_batches(load(before), load(now, windows=windows))


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 60), st.sampled_from(["int8", "int16", "uint32", "int64"]), st.booleans())
def test_integers_are_averaged_unless_they_are_few_codes(
    tmp_path_factory: pytest.TempPathFactory, n_different: int, dtype: str, spatial: bool
) -> None:
    data = (np.arange(1000) * 7 // 3 % n_different).astype(dtype)
    kind: Any = SpatialSeries if spatial else TimeSeries
    frame = {"reference_frame": "x"} if spatial else {}
    series = kind("position", data=data, unit="px", rate=100.0, **frame)
    path = write(tmp_path_factory.mktemp("codes") / "a.nwb", series)
    values, _ = values_of(path, bin_size_ms=50)
    held = data.reshape(-1, 5)[:, 2]  # at the centre, from this sample on
    codes = n_different <= 16 and not spatial
    np.testing.assert_allclose(values[:, 0], held if codes else data.reshape(-1, 5).mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("low", [0, 2**24 + 1, 2**40])
def test_integers_beyond_float32_are_told_with_what_keeps_them(low: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", TimeSeries("encoder", data=low + np.arange(1000), unit="n.a.", rate=100.0))
    _, warnings = values_of(path)
    told = [line for line in warnings if "are rounded by up to" in line]
    assert len(told) == (low > 0)
    if low:
        assert f"--scale processing/behavior/encoder 1 -{low} " in told[0]
        values, warnings = values_of(path, scale=[("processing/behavior/encoder", 1, -low)], **MEAN)
        np.testing.assert_array_equal(values[:, 0], np.arange(1000))
        assert not any("are rounded" in line for line in warnings)


@pytest.mark.parametrize("what", ["conversion", "offset", "channels"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_scales_that_lose_all_values_are_told_and_replaced_on_request(what: str, value: float, tmp_path: Path) -> None:
    path, where = tmp_path / "a.nwb", "processing/behavior/speed"
    write(path, TimeSeries("speed", data=AT, unit="cm/s", rate=100.0), lfp_channels=2, lfp_rate=100.0, lfp_scaling={
        "channel_conversion": [value, 1.0] if what == "channels" else None})  # fmt: skip
    with h5py.File(path, "r+") as file:
        if what != "channels":
            file[where]["data"].attrs[what] = value
    if what == "channels":
        _, samples = read_all(path, modalities=["lfp"])
        where = "processing/ecephys/LFP/lfp"
        [line] = [x for x in read_all(path, modalities=["lfp"])[0].report["warnings"] if "--scale" in x]
        assert line.startswith(where) and " of " in line and samples
        return
    values, warnings = values_of(path)
    told = [line for line in warnings if f"--scale {where} 1 0" in line]
    assert len(told) == (what != "offset" or not np.isfinite(value))
    values, warnings = values_of(path, scale=[(where, "1/2", 3)], **MEAN)
    np.testing.assert_allclose(values[:, 0], AT / 2 + 3, rtol=1e-6)
    assert not any("--scale" in line for line in warnings)


def test_a_clock_is_given_to_series_events_and_intervals(tmp_path: Path) -> None:
    ms = AT * 1000
    events = pynwb.behavior.BehavioralEvents(
        time_series=TimeSeries("licks", timestamps=ms[::100], data=np.ones(10), unit="n")
    )
    states = pynwb.epoch.TimeIntervals(name="states", description="x")
    for k in range(3):
        states.add_row(start_time=k * 2000.0, stop_time=k * 2000.0 + 1000)
    path = write(tmp_path / "a.nwb", TimeSeries("speed", data=AT, unit="cm/s", timestamps=ms + 5000), events, states)
    with h5py.File(path, "r+") as file:
        file["processing/behavior/speed"].attrs["comments"] = "x"
    clock = [("processing/behavior/speed", "1/1000", -5), ("processing/behavior/BehavioralEvents/licks", 0.001, 0),
             ("processing/behavior/states", 0.001, 0)]  # fmt: skip
    values, _ = values_of(path, clock=clock, **MEAN)
    np.testing.assert_allclose(values[:, 1], AT, atol=1e-6)
    assert values[:, 0].nonzero()[0].tolist() == list(range(0, 1000, 100))
    _, samples = read_all(path, clock=clock, align="states", after_s=0.5)
    assert [m["event_ns"] for _, m in samples] == [0, 2 * 10**9, 4 * 10**9][-len(samples):]  # fmt: skip
    assert samples[-1][1]["states_start_time"] == 4.0


def test_a_series_without_a_rate_takes_one_from_its_clock(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nwb", TimeSeries("speed", data=AT, unit="cm/s", rate=100.0))
    with h5py.File(path, "r+") as file:
        file["processing/behavior/speed/starting_time"].attrs["rate"] = np.float32(0)
    with pytest.raises(SourceError, match=r"--clock processing/behavior/speed 1/HZ START"):
        read_all(path, modalities=["behavior"])
    values, _ = values_of(path, clock=[("processing/behavior/speed", "1/100", 0)], **MEAN)
    np.testing.assert_allclose(values[:, 0], AT, atol=1e-6)


def test_the_axis_of_time_is_said_or_the_series_left_out(tmp_path: Path) -> None:
    data = np.stack([AT, -AT, AT * 2], axis=0)
    path = write(tmp_path / "a.nwb", TimeSeries("speed", data=data[:, :900], unit="cm/s", rate=100.0))
    with pytest.raises(SourceError, match=r"would be 900 columns of 3 samples .*--transposed"):
        read_all(path, modalities=["behavior"])
    description, samples = read_all(
        path, modalities=["behavior"], transposed=["processing/behavior/speed"], overlap=0, **MEAN
    )
    np.testing.assert_allclose(np.concatenate([f["behavior"] for f, _ in samples]), data[:, :900].T, atol=1e-6)


@pytest.mark.parametrize("option", ["clock", "scale", "transposed"])
def test_an_object_that_is_not_there_is_refused(option: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.nwb", Position(spatial_series=SpatialSeries("p", data=AT, reference_frame="x", rate=100.0))
    )
    wrong = "processing/behavior/q"
    with pytest.raises(SourceError, match=f"there is no {wrong} in it"):
        read_all(path, **{option: [wrong] if option == "transposed" else [(wrong, 1, 0)]})
