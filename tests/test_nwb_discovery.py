"""Everything in a recording is taken, can be taken by its path, or is named with the reason; numbers against numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import extensions
import h5py
import numpy as np
import pynwb
import pytest
from hdmf.common import DynamicTable, VectorData
from hypothesis import given, settings
from hypothesis import strategies as st
from pynwb import TimeSeries
from pynwb.base import Images
from pynwb.behavior import BehavioralEpochs, BehavioralEvents
from pynwb.ecephys import ElectricalSeries, SpikeEventSeries
from pynwb.epoch import TimeIntervals
from pynwb.image import GrayscaleImage, ImageSeries
from pynwb.misc import AnnotationSeries, DecompositionSeries, IntervalSeries, Units
from pynwb.ogen import OptogeneticSeries
from recordings import make_recording, read_all

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.options import RecordingOptions
from neurofmx_wds.nwb.recording import Recording

BIN = 0.01
ALONG = np.arange(1000) / 100


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("extensions")
    extensions.write(directory)
    return directory


def field(path: Path, name: str, **options: Any) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns a field's columns, the starts (ns) of its bins, and its values in all windows, none of which overlap."""
    description, samples = read_all(path, overlap=0, **options)
    assert samples
    starts = [metadata["t_start_ns"] + np.arange(50) * 10_000_000 for _, metadata in samples]
    values = np.concatenate([fields[name] for fields, _ in samples])
    return description.fields[name]["columns"], np.concatenate(starts), values


def counted(times: Any, starts: np.ndarray) -> np.ndarray:
    """Counts times (s) in bins of 10 ms that start at some times (ns)."""
    ns = np.rint(np.asarray(times, dtype=float) * 1e9).astype(np.int64)
    return ((ns >= starts[:, None]) & (ns < starts[:, None] + 10_000_000)).sum(axis=1)


def inside(intervals: Any, starts: np.ndarray) -> np.ndarray:
    """Tells whether the centres of bins are in any interval (s)."""
    centres = starts / 1e9 + BIN / 2
    return np.any([(a <= centres) & (centres < b) for a, b in intervals], axis=0)


def series(name: str, data: Any = None, **options: Any) -> TimeSeries:
    clock = {} if "timestamps" in options else {"rate": 100.0}
    return TimeSeries(name=name, data=np.sin(ALONG) if data is None else data, unit="a.u.", **clock, **options)


def named(path: Path, **options: Any) -> dict[str, dict[str, str]]:
    """Returns what the report says is not taken, by path."""
    description, _ = read_all(path, **options)
    json.dumps(description.report)
    return {each["path"]: each for each in description.report["not_taken"]}


# -- types of extensions, which only the file defines ---------------------------------------------------------------


def test_pose_is_behavior_in_any_module_and_can_be_cut_by_confidence(written: Path) -> None:
    columns, starts, values = field(written / "pose.nwb", "behavior")
    assert columns == ["DLC/nose_x", "DLC/nose_y", "DLC/tail_x", "DLC/tail_y"]
    centres = starts / 1e9 + BIN / 2
    known = (centres >= extensions.TIMES[0]) & (centres <= extensions.TIMES[-1])
    assert known.any() and np.isnan(values[~known]).all()
    for column, truth in enumerate(np.hstack([extensions.NOSE, extensions.TAIL]).T):
        expected = np.interp(centres[known], extensions.TIMES, truth)
        np.testing.assert_allclose(values[known, column], expected, atol=1e-5)
    [nose, tail] = Recording(written / "pose.nwb", RecordingOptions(min_confidence=0.5)).behavior
    sure = extensions.CONFIDENCE >= 0.5
    assert 0 < sure.sum() < len(sure)
    np.testing.assert_array_equal(nose.values(0, extensions.N), np.where(sure[:, None], extensions.NOSE, np.nan))
    np.testing.assert_array_equal(tail.values(0, extensions.N), extensions.TAIL)


def test_labels_of_behavior_are_states_called_by_their_words(written: Path) -> None:
    columns, starts, values = field(written / "labels.nwb", "behavior")
    assert columns == [f"deg/labels/{word}" for word in extensions.WORDS]
    at = np.searchsorted(extensions.TIMES, starts / 1e9 + BIN / 2, side="right") - 1
    known = (at >= 0) & (at < extensions.N - 1)
    np.testing.assert_array_equal(values[known], extensions.LABELS[at[known]])


def test_events_of_extensions_are_counted_by_their_labels(written: Path) -> None:
    columns, starts, values = field(written / "events.nwb", "events")
    cue = extensions.CUES["timestamps"]
    truth = {
        "annotated/Poke": extensions.TYPES["Poke"],
        "annotated/Reward": extensions.TYPES["Reward"],
        "cue/left": cue[[0, 2]],
        "cue/right": cue[[1]],
        "lick": extensions.LICKS,
        "ttl/camera": [3.0],
    }
    assert sorted(columns) == list(truth)
    for column, label in enumerate(columns):
        np.testing.assert_array_equal(values[:, column], counted(truth[label], starts))
        assert values[:, column].sum() == len(truth[label])


@pytest.mark.parametrize("name", ["cue", "processing/behavior/cue"])
def test_windows_align_to_events_of_extensions_with_their_labels(name: str, written: Path) -> None:
    _, samples = read_all(written / "events.nwb", align=name, before_s=0.5, after_s=0.5)
    told = [(m["event_ns"], m["cue"], m["cue_label"], m["cue_value"]) for _, m in samples]
    assert told == [(2_000_000_000, 0, "left", 0), (4_500_000_000, 1, "right", 2), (7_250_000_000, 2, "left", 0)]


def test_photometry_is_ophys(written: Path) -> None:
    columns, starts, values = field(written / "photometry.nwb", "ophys")
    centres = starts / 1e9 + BIN / 2
    known = (centres >= extensions.TIMES[0]) & (centres <= extensions.TIMES[-1])
    expected = np.stack([np.interp(centres, extensions.TIMES, each) for each in extensions.DFF.T], axis=1)
    np.testing.assert_allclose(values[known], expected[known], atol=1e-5)


# -- modules of any name, and the places that are taken by path only --------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "taken"),
    [
        ("running", "running_speed", True),
        ("eye_tracking", "pupil_area", True),
        ("Behavior", "x", True),
        ("behavioralData", "x", True),
        ("licking", "times", True),
        ("misc", "WheelPosition", True),
        ("misc", "velocity_x", True),
        ("acquisition", "rotary_encoder", True),
        ("acquisition", "TTL_1", False),
        ("acquisition", "headstage_sync", False),
        ("ecephys", "speed_cells", False),
        ("ophys", "eye_motion", False),
        ("misc", "theta_power", False),
    ],
)
def test_series_that_are_obviously_of_behavior_are_taken_wherever_they_are(
    module: str, name: str, taken: bool, tmp_path: Path
) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        if module == "acquisition":
            nwb.add_acquisition(series(name))
        else:
            nwb.create_processing_module(module, "m").add(series(name))

    make_recording(tmp_path / "a.nwb", extra=add)
    path = f"acquisition/{name}" if module == "acquisition" else f"processing/{module}/{name}"
    description, _ = read_all(tmp_path / "a.nwb")
    assert description.fields.get("behavior", {"paths": []})["paths"] == ([path] if taken else [])
    left = {each["path"]: each["take"] for each in description.report["not_taken"]}
    assert left == ({} if taken else {path: f"--modalities spikes,{path}"})


def test_stimulus_analysis_and_scratch_are_named_and_taken_by_their_path(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        laser = nwb.create_device("laser")
        site = nwb.create_ogen_site("site", device=laser, description="x", excitation_lambda=473.0, location="CA1")
        nwb.add_stimulus(OptogeneticSeries(name="laser", data=np.sin(ALONG), site=site, rate=100.0))
        nwb.add_stimulus_template(series("template"))
        nwb.add_analysis(series("speed"))
        nwb.add_scratch(series("pc1"))

    make_recording(tmp_path / "a.nwb", extra=add)
    paths = ["analysis/speed", "scratch/pc1", "stimulus/presentation/laser", "stimulus/templates/template"]
    left = named(tmp_path / "a.nwb")
    assert list(left) == paths
    for path in paths:
        option, asked = left[path]["take"].split(" ")
        assert (option, asked) == ("--modalities", f"spikes,{path}")
        _, starts, values = field(tmp_path / "a.nwb", path.rsplit("/", 1)[-1], modalities=asked.split(","))
        known = starts < 9_900_000_000
        expected = np.interp(starts[known] / 1e9 + BIN / 2, ALONG, np.sin(ALONG))
        np.testing.assert_allclose(values[known, 0], expected, atol=1e-6)


def test_series_of_no_modality_are_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        nwb.add_acquisition(series("TTL_1", (ALONG % 1 < 0.5).astype(float)))
        nwb.add_acquisition(series("words", ["a"] * 1000))

    make_recording(tmp_path / "a.nwb", n_units=0, extra=add)
    description, samples = read_all(tmp_path / "a.nwb", overlap=0)
    assert list(description.fields) == ["ttl_1", "ttl_1_mask"] and len(samples) == 20
    assert "acquisition/TTL_1 are taken instead" in " ".join(description.report["warnings"])


# -- units, intervals and events --------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_tables_of_units_in_processing_are_spikes_where_the_file_has_none_of_its_own(own: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trains = [[np.sort(rng.uniform(0, 10, 60)) for _ in range(2)] for _ in range(2)]

    def add(nwb: pynwb.NWBFile) -> None:
        module = nwb.create_processing_module("sorting", "x")
        for probe, times in zip("AB", trains, strict=True):
            table = Units(name=f"probe{probe}", description="x")
            for each in times:
                table.add_unit(spike_times=each)
            module.add(table)

    make_recording(tmp_path / "a.nwb", n_units=3 if own else 0, extra=add)
    paths = ["processing/sorting/probeA", "processing/sorting/probeB"]
    columns, starts, values = field(tmp_path / "a.nwb", "spikes")
    if own:
        assert columns == ["100", "101", "102"]
        left = named(tmp_path / "a.nwb")
        assert {path: each["take"] for path, each in left.items()} == {p: f"--modalities spikes,{p}" for p in paths}
        columns, starts, values = field(tmp_path / "a.nwb", "spikes", modalities=paths)
    else:
        assert named(tmp_path / "a.nwb") == {}
    assert values.shape[1] == 4
    for column, times in enumerate([each for both in trains for each in both]):
        np.testing.assert_array_equal(values[:, column], counted(times, starts))
    _, starts, values = field(tmp_path / "a.nwb", "spikes", modalities=paths[1])
    np.testing.assert_array_equal(values[:, 0], counted(trains[1][0], starts))
    assert values.shape[1] == 2


def test_several_tables_of_units_keep_their_observation_intervals(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        module = nwb.create_processing_module("ecephys", "x")
        for name, observed in (("a", {"obs_intervals": [[0.0, 4.0]]}), ("b", {})):
            table = Units(name=name, description="x")
            table.add_unit(spike_times=np.arange(0.5, 9.5, 0.25), **observed)
            module.add(table)

    make_recording(tmp_path / "a.nwb", n_units=0, extra=add)
    _, starts, mask = field(tmp_path / "a.nwb", "spikes_mask")
    assert (starts[0], starts[-1]) == (0, 8_990_000_000)  # of windows that fit
    np.testing.assert_array_equal(mask[:, 0], starts < 4_000_000_000)
    np.testing.assert_array_equal(mask[:, 1], starts >= 500_000_000)


def test_interval_tables_in_processing_become_metadata_and_can_be_aligned_to(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        table = TimeIntervals(name="sleep_states", description="x")
        table.add_column("label", "x")
        for i, label in enumerate(["wake", "nrem", "wake"]):
            table.add_row(start_time=i * 3.0, stop_time=i * 3.0 + 2, label=label)
        nwb.create_processing_module("behavior", "x").add(table)

    make_recording(tmp_path / "a.nwb", extra=add)
    _, samples = read_all(tmp_path / "a.nwb", overlap=0, modalities=["spikes"])
    for _, metadata in samples:
        row, since = divmod(metadata["t_start_ns"] / 1e9, 3)
        there = since < 2 and row < 3
        assert metadata["sleep_states_label"] == (["wake", "nrem", "wake"][int(row)] if there else None)
    for name in ("sleep_states", "processing/behavior/sleep_states"):
        _, samples = read_all(tmp_path / "a.nwb", align=name, before_s=-0.5, after_s=1)
        assert [m["sleep_states_label"] for _, m in samples] == ["wake", "nrem", "wake"]
    path = "processing/behavior/sleep_states"
    columns, starts, values = field(tmp_path / "a.nwb", "sleep_states", modalities=["spikes", path])
    assert columns == ["behavior/sleep_states/nrem", "behavior/sleep_states/wake"]
    np.testing.assert_array_equal(values[:, 0], inside([(3, 5)], starts))
    np.testing.assert_array_equal(values[:, 1], inside([(0, 2), (6, 8)], starts))


intervals = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=12)


@settings(max_examples=12)
@given(intervals, st.booleans(), st.booleans())
def test_interval_series_hold_between_start_and_stop(
    tmp_path_factory: pytest.TempPathFactory, gaps: Any, zeros: bool, shuffled: bool
) -> None:
    tmp_path = tmp_path_factory.mktemp("series")
    edges = np.cumsum(np.array(gaps).ravel()).astype(float) / 100 - 0.0015
    edges = edges[: len(edges) // 2 * 2]
    spans = edges.reshape(-1, 2)
    order = np.random.default_rng(0).permutation(len(edges)) if shuffled else np.arange(len(edges))
    data = np.tile(np.array([1, 0 if zeros else -1], "int8"), len(spans))

    def add(nwb: pynwb.NWBFile) -> None:
        bouts = IntervalSeries(name="grooming", data=data[order], timestamps=edges[order])
        nwb.create_processing_module("x", "x").add(BehavioralEpochs(interval_series=bouts))

    make_recording(tmp_path / "a.nwb", n_units=1, spike_times=[[0.0, 14.0]], extra=add)
    columns, starts, values = field(tmp_path / "a.nwb", "behavior")
    assert columns == ["BehavioralEpochs/grooming"]
    np.testing.assert_array_equal(values[:, 0], inside(spans, starts))
    _, samples = read_all(tmp_path / "a.nwb", align="grooming", after_s=0.05)
    assert [m["event_ns"] for _, m in samples] == np.rint(spans[:, 0] * 1e9).astype(int).tolist()


def test_interval_series_of_several_labels_have_a_column_each_and_lonely_ends_are_told(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        data, times = np.array([1, 2, -1, -2, -1, 2], "int8"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        nwb.create_processing_module("x", "x").add(IntervalSeries(name="bouts", data=data, timestamps=times))

    make_recording(tmp_path / "a.nwb", extra=add)
    columns, starts, values = field(tmp_path / "a.nwb", "bouts", modalities=["spikes", "processing/x/bouts"])
    assert columns == ["x/bouts/1", "x/bouts/2"]
    np.testing.assert_array_equal(values, np.stack([inside([(1, 3)], starts), inside([(2, 4)], starts)], axis=1))
    description, _ = read_all(tmp_path / "a.nwb", modalities=["spikes", "processing/x/bouts"])
    assert "processing/x/bouts: 2 starts or stops without their counterpart left out" in description.report["warnings"]


def behavioral_events(nwb: pynwb.NWBFile) -> None:
    reward = TimeSeries(name="reward", data=[4.0, 8.0, 4.0], unit="uL", timestamps=[1.0, 2.0, 3.004])
    edges = {"data": np.array([1, 0, 1, 0], "int8"), "timestamps": [1.0, 1.5, 2.0, 2.5]}
    poke = TimeSeries(name="poke", unit="n.a.", **edges)
    beam = TimeSeries(name="beam", data=[1.0, 1.0], unit="n.a.", timestamps=[4.0, 5.0])
    nwb.create_processing_module("behavior", "b").add(BehavioralEvents(time_series=[reward, poke, beam]))


def test_edges_of_events_are_told_apart_and_events_without_data_counted(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=behavioral_events)
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        beam = file["processing/behavior/BehavioralEvents/beam"]
        about = dict(beam["data"].attrs)
        del beam["data"]
        beam.create_dataset("data", data=np.empty(0)).attrs.update(about)
    truth = {"beam": [4, 5], "poke/0": [1.5, 2.5], "poke/1": [1, 2], "reward": [1, 2, 3.004]}
    for modality in ("behavior", "events"):
        columns, starts, values = field(tmp_path / "a.nwb", modality, modalities=["spikes", modality])
        assert columns == [f"BehavioralEvents/{name}" for name in truth]
        for column, times in enumerate(truth.values()):
            np.testing.assert_array_equal(values[:, column], counted(times, starts))
    assert Recording(tmp_path / "a.nwb").modalities == ("spikes", "behavior")


def test_values_of_events_stand_beside_their_counts(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=behavioral_events)
    every = Recording(tmp_path / "a.nwb", RecordingOptions(event_values=True)).behavior
    values = {each.columns: each for each in every if each.kind == "values"}
    assert list(values) == [(f"BehavioralEvents/{name}_value",) for name in ("beam", "poke", "reward")]
    reward = values["BehavioralEvents/reward_value",]
    assert reward.values(0, 3).ravel().tolist() == [4, 8, 4]


def test_windows_align_to_events_of_behavior_whose_values_are_metadata(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=behavioral_events)
    _, samples = read_all(tmp_path / "a.nwb", align="reward", before_s=0.1, after_s=0.1)
    assert [(m["event_ns"], m["reward_value"]) for _, m in samples] == [(10**9, 4), (2 * 10**9, 8), (3_004_000_000, 4)]
    _, samples = read_all(tmp_path / "a.nwb", align="BehavioralEvents", before_s=0.1, after_s=0.1)
    assert [m["BehavioralEvents_label"] for _, m in samples[:4]] == ["poke", "reward", "poke", "poke"]
    assert len(samples) == 9
    with pytest.raises(SourceError, match="no table nothing in it to align to; it has .*processing/behavior/.*reward"):
        read_all(tmp_path / "a.nwb", align="nothing")


def test_windows_align_to_a_table_of_events_whose_columns_are_metadata(tmp_path: Path) -> None:
    event = pytest.importorskip("pynwb.event", reason="tables of events need pynwb 4 (pip install -U pynwb)")

    def add(nwb: pynwb.NWBFile) -> None:
        for place in (nwb.add_events_table, nwb.add_acquisition):
            table = event.EventsTable(name="cues" if place == nwb.add_events_table else "more", description="x")
            table.add_column("side", "x")
            table.add_column("level", "x")
            for i in range(8):
                table.add_row(timestamp=1.0 + i, side="LR"[i % 2], level=i / 4)
            place(table)

    make_recording(tmp_path / "a.nwb", extra=add)
    _, samples = read_all(tmp_path / "a.nwb", align="cues", before_s=0.5, after_s=0.5)
    assert [m["cues_side"] for _, m in samples] == list("LRLRLRLR")
    assert [m["event_ns"] for _, m in samples] == [i * 10**9 for i in range(1, 9)]
    assert samples[3][1]["cues_level"] == 0.75 and samples[3][1]["cues_timestamp"] == 4.0
    columns, starts, values = field(tmp_path / "a.nwb", "events")
    assert columns == ["more", "cues"]
    for column in range(2):
        np.testing.assert_array_equal(values[:, column], counted(range(1, 9), starts))
    recording = Recording(tmp_path / "a.nwb", RecordingOptions(event_values=True))
    assert [each.columns for each in recording.events if each.kind == "values"] == [("more_level",), ("cues_level",)]


def test_a_name_that_stands_for_several_tables_is_refused_with_their_paths(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        for name in ("a", "b"):
            words = AnnotationSeries(name="cue", data=["x"], timestamps=[2.0])
            nwb.create_processing_module(name, "x").add(words)

    make_recording(tmp_path / "a.nwb", extra=add)
    with pytest.raises(SourceError, match="cue stands for several: processing/a/cue, processing/b/cue"):
        read_all(tmp_path / "a.nwb", align="cue")
    _, samples = read_all(tmp_path / "a.nwb", align="processing/b/cue")
    assert [m["cue_label"] for _, m in samples] == ["x"]


def test_times_that_count_from_their_trial_can_be_added_to_its_start(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        nwb.add_trial_column("cue_time", "since the trial's start")
        for i in range(4):
            nwb.add_trial(start_time=1 + 2.0 * i, stop_time=2.0 * i + 2.5, cue_time=0.25 * i)

    make_recording(tmp_path / "a.nwb", extra=add)
    options = {"align": "trials", "event": "start_time+cue_time", "after_s": 0.2}
    description, samples = read_all(tmp_path / "a.nwb", **options)
    assert [m["event_ns"] for _, m in samples] == [10**9 + int(2.25e9) * i for i in range(4)]
    assert description.report["aligned_to"] == "trials/start_time+cue_time"


# -- everything -------------------------------------------------------------------------------------------------------


def test_decomposition_of_three_dimensions_is_taken_by_path(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((1000, 4, 3))

    def add(nwb: pynwb.NWBFile) -> None:
        power = DecompositionSeries(name="power", data=data, metric="power", rate=100.0)
        for i in range(3):
            power.add_band(band_name=f"b{i}", band_limits=(4.0 * i, 4.0 * i + 4), band_mean=6.0, band_stdev=1.0)
        nwb.create_processing_module("ecephys", "x").add(power)

    make_recording(tmp_path / "a.nwb", extra=add)
    path = "processing/ecephys/power"
    assert named(tmp_path / "a.nwb")[path]["take"] == f"--modalities spikes,{path}"
    columns, starts, values = field(tmp_path / "a.nwb", "power", modalities=["spikes", path])
    assert columns[:4] == ["ecephys/power_0_0", "ecephys/power_0_1", "ecephys/power_0_2", "ecephys/power_1_0"]
    known = (starts > 0) & (starts < 9_900_000_000)
    between = (data[starts[known] // 10_000_000] + data[starts[known] // 10_000_000 + 1]) / 2
    np.testing.assert_allclose(values[known], between.reshape(-1, 12), rtol=1e-5, atol=1e-6)


def everything(nwb: pynwb.NWBFile) -> None:
    """Adds one object of every kind that pynwb writes."""
    region = nwb.create_electrode_table_region([0], "one")
    nwb.add_acquisition(ElectricalSeries(name="raw", data=np.ones((1000, 1)), electrodes=region, rate=100.0))
    snippets = {"data": np.ones((5, 1, 30)), "timestamps": np.arange(5.0)}
    nwb.add_acquisition(SpikeEventSeries(name="snippets", electrodes=region, **snippets))
    nwb.add_acquisition(series("photodiode"))
    nwb.add_acquisition(series("cube", np.ones((1000, 2, 3))))
    nwb.add_acquisition(series("words", ["a"] * 1000))
    nwb.add_acquisition(AnnotationSeries(name="notes", data=["a", "b"], timestamps=[1.0, 2.0]))
    nwb.add_acquisition(ImageSeries(name="camera", data=np.ones((100, 4, 4), "u1"), rate=10.0, unit="n.a."))
    nwb.add_acquisition(Images(name="stills", images=[GrayscaleImage(name="one", data=np.ones((4, 4)))]))
    pulses = TimeIntervals(name="pulses", description="x")
    pulses.add_row(start_time=1.0, stop_time=2.0)
    nwb.add_analysis(pulses)
    nwb.add_scratch(np.arange(10.0), name="numbers", description="x")
    nwb.add_trial(start_time=0.0, stop_time=1.0)
    nwb.add_invalid_time_interval(start_time=9.9, stop_time=10.0)
    module = nwb.create_processing_module("misc", "x")
    module.add(DynamicTable(name="cells", description="x", columns=[VectorData(name="x", description="x", data=[1.0])]))
    module.add(
        DynamicTable(name="empty", description="x", columns=[VectorData(name="x", description="x", data=np.empty(0))])
    )
    timed = {"timestamps": ALONG, "x": np.sin(ALONG)}
    columns = [VectorData(name=name, description="x", data=data) for name, data in timed.items()]
    module.add(DynamicTable(name="timed", description="x", columns=columns))


def test_every_object_is_taken_or_named_and_what_the_report_says_takes_it(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", behavior_rate=50, lfp_channels=2, extra=everything)
    description, _ = read_all(tmp_path / "a.nwb")
    taken = {path for about in description.fields.values() for path in about.get("paths", ())}
    left = {each["path"]: each for each in description.report["not_taken"]}
    assert taken == {"processing/behavior/Position/xy", "processing/ecephys/LFP/lfp", "acquisition/notes"}
    cannot = {
        "acquisition/cube": "more than two dimensions",
        "acquisition/stills": "nothing says when",
        "acquisition/words": "no columns of numbers",
        "processing/misc/cells": "nothing says when",
        "scratch/numbers": "nothing says when",
    }
    can = {
        "acquisition/camera": "video",
        "acquisition/photodiode": "acquisition/photodiode",
        "acquisition/raw": "acquisition/raw",
        "acquisition/snippets": "acquisition/snippets",
        "processing/misc/timed/x": "processing/misc/timed/x",
    }
    assert set(left) == {*cannot, *can, "analysis/pulses"}
    for path, why in cannot.items():
        assert why in left[path]["why"] and left[path]["take"] == ""
        with pytest.raises(SourceError, match=rf"there is no {path} in it; it has spikes.*{path}: .*{why}"):
            read_all(tmp_path / "a.nwb", modalities=["spikes", path])
    for path, name in can.items():
        assert left[path]["take"] == f"--modalities spikes,behavior,lfp,events,{name}"
        again, samples = read_all(tmp_path / "a.nwb", modalities=left[path]["take"].split(" ")[1].split(","))
        assert samples and any(path in about.get("paths", ()) for about in again.fields.values())
    assert left["analysis/pulses"]["take"] == "--align analysis/pulses"
    assert len(read_all(tmp_path / "a.nwb", align="analysis/pulses")[1]) == 1


def test_what_was_not_asked_for_is_named(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", behavior_rate=50, lfp_channels=2)
    left = named(tmp_path / "a.nwb", modalities=["lfp"])
    assert {path: (each["why"], each["take"]) for path, each in left.items()} == {
        "processing/behavior/Position/xy": ("behavior was not asked for", "--modalities lfp,behavior"),
        "units": ("spikes was not asked for", "--modalities lfp,spikes"),
    }


def test_an_object_that_is_linked_is_found_by_every_path(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        raw = series("diode")
        nwb.add_acquisition(raw)
        nwb.create_processing_module("misc", "x").add(raw)

    make_recording(tmp_path / "a.nwb", extra=add)
    assert list(named(tmp_path / "a.nwb")) == ["processing/misc/diode"]
    for path in ("acquisition/diode", "processing/misc/diode"):
        _, _, values = field(tmp_path / "a.nwb", "diode", modalities=["spikes", path])
        assert np.isfinite(values).any()
