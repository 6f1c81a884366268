"""What becomes of each modality, of interval tables, and of windows around events; against pynapple and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from conversions import RECORDINGS
from counting import some
from hdmf.utils import get_docval
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynwb import behavior as nwb_behavior
from pynwb import ophys as nwb_ophys
from pynwb.ecephys import ElectricalSeries
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries
from recordings import make_recording, read_all

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.info import ShardedDatasetInfo
from neurofmx_wds.nwb.clock import Aligned, Grid
from neurofmx_wds.nwb.names import OWN_METADATA

TRIALS = RECORDINGS / "sub-anm00239123_ses-20170627T093549.nwb"
needs_trials = pytest.mark.skipif(not TRIALS.is_file(), reason=f"{TRIALS.name} is not in {RECORDINGS}")
MS = 10**6


# -- ragged spikes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "a.nwb"
    make_recording(path, n_units=3, lfp_channels=2, behavior_rate=250, trials=4, spike_rate=30, compass_unit="degrees")
    return path


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.fractions(2, 40, max_denominator=7), st.integers(1, 60), st.floats(0, 0.9))
def test_binning_the_ragged_spikes_gives_back_the_dense(recorded: Path, ms: Any, length: int, overlap: float) -> None:
    description, samples = read_all(
        recorded, bin_size_ms=ms, sequence_length=length, overlap=overlap, spike_format="both", modalities=("spikes",)
    )
    assert description.fields["spike_times"]["shape"] == [None] and len(samples) > 2
    width = ms * MS
    for fields, metadata in some(samples):
        times, units = fields["spike_times"], fields["spike_units"]
        assert times.dtype == np.int64 and units.dtype == np.int32 and (np.diff(times) >= 0).all()
        first = metadata["t_start_ns"] // width
        bins = [(int(t) + metadata["t_start_ns"]) // width - first for t in times]
        dense = np.zeros((length, 3))
        np.add.at(dense, (np.array(bins, dtype=int), units), 1)
        np.testing.assert_array_equal(dense, fields["spikes"])


def test_ragged_alone_gives_no_dense_field(recorded: Path) -> None:
    description, samples = read_all(recorded, spike_format="ragged", modalities=("spikes",))
    assert list(description.fields) == list(samples[0][0]) == ["spike_times", "spike_units"]


# -- windows around events -------------------------------------------------------------------------------------------


@needs_trials
@pytest.mark.parametrize("event", ["start_time", "stop_time"])
def test_windows_around_the_real_trials_hold_pynapples_counts(event: str) -> None:
    nap = pytest.importorskip("pynapple", reason="pynapple is the independent reference")
    description, samples = read_all(
        TRIALS, bin_size_ms=50, align="trials", event=event, before_s=0.5, after_s=2, modalities=("spikes",)
    )
    with h5py.File(TRIALS) as file:
        events = file["intervals/trials"][event][:]
        ends = file["units/spike_times_index"][:]
        spikes = np.split(file["units/spike_times"][:], ends[:-1])
        low, high = min(map(np.min, spikes)), max(map(np.max, spikes))
    inside = np.flatnonzero((events - 0.5 >= low) & (events + 2 <= high))  # spikes begin at 1499 s, trials at 2 s
    assert [metadata["trial"] for _, metadata in samples] == inside.tolist() and 100 < len(inside) < len(events)
    dropped = description.report["windows"]["dropped"]
    assert dropped == {"outside the support of spikes": len(events) - len(inside)}
    for fields, metadata in some(samples):
        event_s = events[metadata["trial"]]
        assert metadata["event_ns"] == round(event_s * 1e9) == metadata["t_start_ns"] + 500 * MS
        for unit, times in enumerate(spikes):
            near = nap.Ts(times - event_s).restrict(nap.IntervalSet(-0.5, 2))
            expected = np.histogram(np.rint(near.t * 1e9).astype(np.int64), np.arange(-10, 41) * 50 * MS)[0]
            np.testing.assert_array_equal(fields["spikes"][:, unit], expected)


def test_all_modalities_are_aligned_to_the_event(tmp_path: Path) -> None:
    cues = [0.123, 2.0, np.nan, 5.5501, 9.9]

    def add(nwb: pynwb.NWBFile) -> None:
        nwb.add_trial_column("cue", "when")
        for i, cue in enumerate(cues):
            nwb.add_trial(start_time=2.0 * i, stop_time=2.0 * i + 1, cue=cue)

    truth = make_recording(
        tmp_path / "a.nwb", lfp_channels=2, behavior_rate=1000, obs_intervals=[[[0, 10]]] * 4, extra=add
    )
    description, samples = read_all(tmp_path / "a.nwb", align="trials", event="cue", before_s=0.1, after_s="0.4")
    assert [metadata["trial"] for _, metadata in samples] == [0, 1, 3]
    assert description.report["windows"]["dropped"] == {"outside the support of spikes": 1, "cue is not a time": 1}
    assert description.report["aligned_to"] == "trials/cue"
    assert {name: f["shape"] for name, f in description.fields.items()} == {
        name: list(values.shape) for name, values in samples[0][0].items()
    }
    for fields, metadata in some(samples):
        start = round(cues[metadata["trial"]] * 1e9) - 100 * MS
        assert metadata["t_start_ns"] == start and metadata["t_stop_ns"] == start + 500 * MS
        edges = start + np.arange(51) * 10 * MS
        for unit, times in enumerate(truth["spike_times"]):
            ns = np.rint(times * 1e9).astype(np.int64)
            expected = [((ns >= a) & (ns < b)).sum() for a, b in zip(edges[:-1], edges[1:], strict=True)]
            np.testing.assert_array_equal(fields["spikes"][:, unit], expected)
        i0 = round(start / MS)
        np.testing.assert_array_equal(fields["lfp"], truth["lfp"][i0 : i0 + 500].astype(np.float32))
        stamps = np.rint(truth["behavior_times"] * 1e9).astype(np.int64)
        bins = (stamps - start) // (10 * MS)
        mean = [truth["position"][bins == k].mean(axis=0) for k in range(50)]
        np.testing.assert_allclose(fields["behavior"], mean, rtol=1e-5, atol=1e-6)


@given(
    st.lists(st.integers(0, 10**12), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 10**11)), max_size=5),
    st.integers(-20, 20),
    st.integers(1, 40),
)
def test_a_window_around_an_event_is_kept_where_one_interval_holds_it(
    events: list[int], intervals: list[tuple[int, int]], first: int, length: int
) -> None:
    starts = sorted({a for a, _ in intervals})
    stops = [min(a + dict(intervals)[a], b) for a, b in zip(starts, [*starts[1:], 2 * 10**12], strict=False)]
    merged = np.array(list(zip(starts, stops, strict=True)), dtype=np.int64).reshape(-1, 2)
    merged = merged[merged[:, 0] < merged[:, 1]]
    aligned = Aligned(np.arange(len(events)), np.array(events), Grid(10**9).width, first, length).within(merged)
    low, high = first * 10**9, (first + length) * 10**9
    expected = [i for i, t in enumerate(events) if any(a <= t + low and t + high <= b for a, b in merged.tolist())]
    assert aligned.rows.tolist() == expected
    for i, row in enumerate(aligned.rows.tolist()):
        assert aligned.grid(i).start_of(first) == events[row] + low == aligned.spans()[i, 0]


def test_the_command_line_aligns_and_validates(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "-i", str(recorded), "-o", str(tmp_path / "out"), "--validate", "--spike-format", "both"]
    arguments += ["--align", "trials", "--event", "stop_time", "--before", "1/2", "--after", "0.5", "--time-scale", "1"]
    assert main(arguments) == 0, capsys.readouterr().err
    summary = ShardedDatasetInfo(tmp_path / "out").get_summary()
    assert summary["total_samples"] == 4 and summary["modalities"]["spikes"]["shape"] == [100, 3]
    assert summary["modalities"]["spike_times"]["shape"] == [None]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--before", "0.0005"])
    assert left.value.code == 2 and "--before='0.0005'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"align": "trials", "before_s": 0.2, "after_s": 0.3},
        {"spike_format": "both", "modalities": ("spikes", "processing/ecephys", "video", "behavior")},
    ],
)
def test_any_range_of_windows_is_what_the_whole_has_there(tmp_path: Path, options: dict[str, Any]) -> None:
    pixels, times = np.arange(100 * 6, dtype=np.uint16).reshape(100, 2, 3), np.arange(100) / 10
    path = tmp_path / "a.nwb"
    make_recording(path, lfp_channels=2, behavior_rate=120, trials=12, extra=lambda nwb: _movies(nwb, pixels, times))
    _, whole = read_all(path, **options)
    source = open_source(path, SourceConfig.of(**{"bin_size_ms": 10, "sequence_length": 50, **options}))
    for start, stop in np.sort(np.random.default_rng(0).integers(0, len(whole) + 1, (10, 2)), axis=1).tolist():
        part = list(source.read(start, stop))
        assert [metadata for _, metadata in part] == [metadata for _, metadata in whole[start:stop]]
        for (ours, _), (theirs, _) in zip(part, whole[start:stop], strict=True):
            assert list(ours) == list(theirs)
            for name, values in theirs.items():
                np.testing.assert_allclose(ours[name], values, rtol=1e-6)
    with pytest.raises(IndexError):
        list(source.read(0, len(whole) + 1))
    source.close()


def test_what_cannot_be_aligned_to_is_named_with_what_can(recorded: Path) -> None:
    with pytest.raises(SourceError, match="no table epochs in it to align to; it has trials"):
        read_all(recorded, align="epochs")
    with pytest.raises(SourceError, match="trials has no column cue of times; it has start_time, stop_time"):
        read_all(recorded, align="trials", event="cue")
    for wrong, name in (
        ({"before_s": 0.005}, "before_s"),
        ({"after_s": "soon"}, "after_s"),
        ({"before_s": -1, "after_s": 1}, "before_s"),
        ({"before_s": 0.5, "after_s": -0.5}, "after_s"),
        ({"origin_ns": 5}, "origin_ns"),
    ):
        with pytest.raises(ValueError, match=f"^{name}="):
            SourceConfig.of(align="trials", **wrong)
    for unheeded in ({"before_s": 0.5}, {"after_s": 2}, {"event": "cue"}):
        with pytest.raises(ValueError, match=f"^{next(iter(unheeded))}=.*goes together with align"):
            SourceConfig.of(**unheeded)
    made = SourceConfig.of(align="trials", before_s="1/2", after_s=0.3, bin_size_ms=20)
    assert made.windows.sequence_length == 40 and SourceConfig.of(**json.loads(json.dumps(made.to_json()))) == made


# -- interval tables as metadata -------------------------------------------------------------------------------------


def _tables(nwb: pynwb.NWBFile) -> None:
    nwb.add_trial_column("side", "which")
    nwb.add_trial_column("score", "how well")
    nwb.add_trial_column("licks", "when", index=True)
    for i, (start, stop) in enumerate([(0.0, 2.0), (1.0, 4.0), (5.0, np.nan), (6.0, 6.5)]):
        score = np.nan if i == 1 else i / 2
        nwb.add_trial(start_time=start, stop_time=stop, side="lr"[i % 2], score=score, licks=[0.1] * i)
    nwb.add_epoch(0.0, 5.0, ["rest"])
    nwb.add_epoch(5.0, 10.0, ["run", "late"])
    states = pynwb.epoch.TimeIntervals(name="sleep", description="d")
    states.add_interval(start_time=3.0, stop_time=8.0)
    nwb.add_time_intervals(states)


def test_trials_epochs_and_other_intervals_are_metadata_of_the_windows_that_start_in_them(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=_tables, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb")
    assert "1 trials have no usable start and stop" in description.report["warnings"]
    assert description.report["intervals"] == {"trials": 3, "epochs": 2, "sleep": 1}
    for _, metadata in some(samples):
        t = metadata["t_start_ns"] / 1e9
        trial = 1 if 1 <= t < 4 else 0 if t < 2 else 3 if 6 <= t < 6.5 else None  # overlapping: the last to start
        assert metadata["trial"] == trial
        assert metadata["trial_side"] == (None if trial is None else "lr"[trial % 2])
        assert metadata["trial_score"] == (None if trial in (None, 1) else trial / 2)
        assert metadata["trial_licks"] == (None if trial is None else [0.1] * trial)
        assert metadata["epoch_tags"] == (["rest"] if t < 5 else ["run", "late"])
        assert metadata["sleep"] == (0 if 3 <= t < 8 else None)
    json.dumps([metadata for _, metadata in samples], allow_nan=False)
    for column in ("licks", "side"):
        with pytest.raises(SourceError, match=f"trials has no column {column} of times"):
            read_all(tmp_path / "a.nwb", align="trials", event=column)


def test_no_table_takes_a_name_of_the_windows_own_metadata_or_of_another_table(tmp_path: Path) -> None:
    words = {
        ("intervals_source", ""): "intervals_source",
        ("source", ""): "intervals_intervals_source",
        ("session_id", ""): "intervals_session_id",
        ("t", "start_ns"): "intervals_t",
        ("trial", "side"): "intervals_trial",
        ("trial_late", "x"): "intervals_trial_late",
        ("free", "session_id"): "free",
    }

    def add(nwb: pynwb.NWBFile) -> None:
        names = ("source", "side", "late_x", "session_id")
        for name in names:
            nwb.add_trial_column(name, "text")
        nwb.add_trial(start_time=0.0, stop_time=10.0, **{name: f"trial's {name}" for name in names})
        for table, column in words:
            intervals = pynwb.epoch.TimeIntervals(name=table, description="d")
            for name in filter(None, [column]):
                intervals.add_column(name=name, description="d")
            intervals.add_interval(start_time=0.0, stop_time=10.0, **({column: f"{table}'s"} if column else {}))
            nwb.add_time_intervals(intervals)

    for name, extra in (("plain", None), ("a", add)):
        make_recording(tmp_path / f"{name}.nwb", extra=extra, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb")
    for (_, metadata), (_, own) in zip(samples, read_all(tmp_path / "plain.nwb")[1], strict=True):
        assert set(own) <= set(OWN_METADATA) and metadata.items() >= (own | {"source": "a.nwb"}).items()
        for column in ("source", "side", "late_x", "session_id"):
            assert metadata[f"trial_{column}"] == f"trial's {column}"
        for (table, column), word in words.items():
            assert metadata[word] == 0 and (not column or metadata[f"{word}_{column}"] == f"{table}'s")
    warned = [line.split(":")[0] for line in description.report["warnings"] if "its metadata begin with" in line]
    assert sorted(warned) == sorted(f"intervals/{table}" for (table, _), word in words.items() if table != word)
    aligned = read_all(tmp_path / "a.nwb", align="trials")[1]
    assert set(OWN_METADATA) <= set(aligned[0][1]) and aligned[0][1]["event_ns"] == 0


def test_references_and_long_lists_are_no_metadata_and_that_is_told(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        series = pynwb.TimeSeries(name="x", data=np.ones(1000), unit="m", rate=100.0)
        nwb.add_acquisition(series)
        nwb.add_trial_column("trace", "a long one")
        nwb.add_trial(start_time=0.0, stop_time=9.0, trace=np.zeros(65), timeseries=[series])

    make_recording(tmp_path / "a.nwb", extra=add)
    description, samples = read_all(tmp_path / "a.nwb")
    assert "trials: no metadata of timeseries, trace" in " ".join(description.report["warnings"])
    assert [key for key in samples[0][1] if "trial" in key] == ["trial", "trial_start_time", "trial_stop_time"]


# -- series ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_times", [1000, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_roi_series_are_fields_with_time_told_by_the_roi_table(tmp_path: Path, turned: bool, n_times: int) -> None:
    n_rois = 3
    data = np.random.default_rng(0).standard_normal((n_times, n_rois)).astype(np.float32)

    def add(nwb: pynwb.NWBFile) -> None:
        device = nwb.create_device("scope")
        channel = nwb_ophys.OpticalChannel(name="c", description="d", emission_lambda=500.0)
        plane = nwb.create_imaging_plane(
            name="p",
            optical_channel=channel,
            description="d",
            device=device,
            excitation_lambda=600.0,
            indicator="GFP",
            location="V1",
        )
        module = nwb.create_processing_module("ophys", "d")
        segmentation = nwb_ophys.ImageSegmentation()
        module.add(segmentation)
        rois = segmentation.create_plane_segmentation(name="ps", description="d", imaging_plane=plane)
        for i in range(n_rois):
            rois.add_roi(id=50 + i, image_mask=np.zeros((2, 2)))
        region = rois.create_roi_table_region(description="all", region=list(range(n_rois)))
        kept = data.T if turned else data
        series = nwb_ophys.RoiResponseSeries(name="dff", data=kept, rois=region, unit="a.u.", rate=30.0)
        module.add(nwb_ophys.DfOverF(roi_response_series=series))

    make_recording(tmp_path / "a.nwb", extra=add, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb", bin_size_ms=100, sequence_length=10, overlap=0.0)
    assert description.fields["ophys"]["columns"] == ["50", "51", "52"]
    assert description.fields["ophys"]["ways"] == ["bin_mean"] and description.fields["ophys"]["unit"] == "a.u."
    kept = data if not (turned and n_times == n_rois) else data.T  # a square says nothing: NWB's order holds
    bins = np.rint(np.arange(n_times) / 30 * 1e9).astype(np.int64) // (100 * MS)
    values = np.concatenate([fields["ophys"] for fields, _ in samples])
    for k in range(100):
        mean = kept[bins == k].mean(axis=0) if (bins == k).any() else np.full(n_rois, np.nan)
        np.testing.assert_allclose(values[k], mean, rtol=1e-5, atol=1e-6)


def test_annotations_are_counted_by_label(tmp_path: Path) -> None:
    times, labels = [0.5, 1.2, 1.2004, 7.7, 9.0], ["go", "lick", "lick", "go", "end"]

    def add(nwb: pynwb.NWBFile) -> None:
        nwb.add_acquisition(AnnotationSeries(name="log", data=labels, timestamps=times))

    make_recording(tmp_path / "a.nwb", extra=add, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb", overlap=0.0)
    assert description.fields["events"]["columns"] == ["log/end", "log/go", "log/lick"]
    values = np.concatenate([fields["events"] for fields, _ in samples])
    expected = np.zeros((1000, 3))
    for t, label in zip(times, labels, strict=True):
        expected[round(t * 1e9) // (10 * MS), ["end", "go", "lick"].index(label)] += 1
    np.testing.assert_array_equal(values, expected)
    only, _ = read_all(tmp_path / "a.nwb", modalities=("events",))
    assert only.report["segments"] == [[500 * MS, 9000 * MS]] and only.report["support_rule"] == "first to last event"


def test_annotations_of_prose_are_one_column(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        texts = [f"note {i}" for i in range(300)]
        nwb.add_acquisition(AnnotationSeries(name="notes", data=texts, timestamps=np.arange(300) / 30))

    make_recording(tmp_path / "a.nwb", extra=add)
    description, _ = read_all(tmp_path / "a.nwb")
    assert description.fields["events"]["columns"] == ["notes"]
    assert "300 different labels are counted in one column" in " ".join(description.report["warnings"])


def test_events_tables_are_a_column_each(tmp_path: Path) -> None:
    event = pytest.importorskip("pynwb.event", reason="NWB files of this pynwb have no events tables")

    def add(nwb: pynwb.NWBFile) -> None:
        table = event.EventsTable(name="rewards", description="d")
        for t in (1.0, 2.0, 7.5):
            table.add_row(timestamp=t)
        nwb.add_events_table(table)

    make_recording(tmp_path / "a.nwb", extra=add, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb", overlap=0.0)
    assert description.fields["events"]["columns"] == ["rewards"]
    values = np.concatenate([fields["events"] for fields, _ in samples])
    assert np.flatnonzero(values).tolist() == [100, 200, 750]


def _loose(nwb: pynwb.NWBFile) -> None:
    region = nwb.create_electrode_table_region([0], "one")
    for i in range(2):  # two sweeps, both from 0 on
        data = np.arange(10_000.0).reshape(-1, 1) + i
        nwb.add_acquisition(ElectricalSeries(name=f"Sweep {i}", data=data, electrodes=region, rate=1000.0))
    nwb.add_acquisition(pynwb.TimeSeries(name="diode", data=np.arange(1000.0), unit="V", rate=100.0))
    running = pynwb.TimeSeries(name="speed", data=np.arange(1000.0), unit="m/s", rate=100.0)
    behavior = nwb.create_processing_module("behavior", "b")
    behavior.add(running)
    other = nwb.create_processing_module("other", "b")
    other.add(pynwb.TimeSeries(name="diode", data=-np.arange(1000.0), unit="V", rate=100.0))
    other.add(pynwb.TimeSeries(name="spikes", data=np.ones(1000), unit="V", rate=100.0))


def test_series_are_chosen_by_path_and_several_have_names_of_their_own(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=_loose, obs_intervals=[[[0, 10]]] * 4)
    description, samples = read_all(tmp_path / "a.nwb", overlap=0.0)
    assert list(description.fields) == ["spikes", "behavior", "behavior_mask", "lfp_sweep_0", "lfp_sweep_1"]
    assert description.fields["behavior"]["columns"] == ["behavior/speed"]
    for fields, metadata in some(samples):
        i0 = metadata["t_start_ns"] // MS
        for i in range(2):
            np.testing.assert_array_equal(fields[f"lfp_sweep_{i}"][:, 0], np.arange(i0, i0 + 500) + i)
    assert description.report["unused"] == ["acquisition/diode", "processing/other/diode", "processing/other/spikes"]
    chosen, samples = read_all(
        tmp_path / "a.nwb",
        overlap=0.0,
        modalities=("acquisition/diode", "/processing/other/", "acquisition/Sweep 1"),
        behavior_method="bin_mean",
    )
    paths = {name: field["paths"] for name, field in chosen.fields.items() if "paths" in field}
    assert paths == {
        "diode": ["acquisition/diode"],
        "processing_other_diode": ["processing/other/diode"],
        "processing_other_spikes": ["processing/other/spikes"],
        "sweep_1": ["acquisition/Sweep 1"],
    }
    assert chosen.report["unused"] == []
    values = np.concatenate([fields["diode"] for fields, _ in samples])[:, 0]
    np.testing.assert_array_equal(values, np.arange(1000))
    np.testing.assert_array_equal(samples[0][0]["processing_other_diode"], -samples[0][0]["diode"])
    with pytest.raises(SourceError, match="no acquisition/x in it; it has .*acquisition/diode"):
        read_all(tmp_path / "a.nwb", modalities=("acquisition/x",))


def test_no_field_takes_the_name_of_another_or_of_its_mask(tmp_path: Path) -> None:
    values = {"x": 1, "x_mask": 2, "X": 3, "x mask": 4, "v_mask": 5, "v_frame": 6, "v": 7, "w": 8, "w_frame": 9}

    def add(nwb: pynwb.NWBFile) -> None:
        for name, value in values.items():
            if name == "v":
                series = ImageSeries(name=name, data=np.full((300, 2, 2), value, np.uint8), rate=30.0, unit="u")
            elif name == "w":
                files = {"external_file": ["w.mp4"], "starting_frame": [0], "format": "external"}
                series = ImageSeries(name=name, timestamps=np.arange(300) / 30, unit="u", **files)
            else:
                series = pynwb.TimeSeries(name=name, data=np.full(300, float(value)), rate=30.0, unit="u")
            nwb.add_acquisition(series)

    make_recording(tmp_path / "a.nwb", extra=add, obs_intervals=[[[0, 10]]] * 4)
    for seed in range(8):
        order = np.random.default_rng(seed).permutation([f"acquisition/{name}" for name in values]).tolist()
        description, samples = read_all(tmp_path / "a.nwb", modalities=["spikes", *order], overlap=0.0)
        fields = samples[3][0]
        assert fields.keys() == description.fields.keys()
        data = {name for name, each in fields.items() if name != "spikes" and each.dtype != bool}
        frames = {name for name in data if fields[name].dtype == np.int64}
        assert sorted(fields[name].max() for name in data - frames) == sorted({*values.values()} - {values["w"]})
        assert len(frames) == 1 and len(fields) == 1 + 2 * len(values) - 1
        assert all(fields[f"{name}_mask"].all() for name in data - frames)


def test_spatial_series_in_a_container_of_an_extension_are_behavior(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        spatial = nwb_behavior.SpatialSeries(
            name="nose", data=np.ones((1000, 2)), rate=100.0, unit="px", reference_frame="camera"
        )
        eye = nwb_behavior.SpatialSeries(
            name="eye", data=np.ones((1000, 2)), rate=100.0, unit="px", reference_frame="camera"
        )
        module = nwb.create_processing_module("pose", "p")
        module.add(spatial)
        module.add(nwb_behavior.EyeTracking(spatial_series=eye))

    make_recording(tmp_path / "a.nwb", extra=add)
    columns = read_all(tmp_path / "a.nwb")[0].fields["behavior"]["columns"]
    assert columns == ["EyeTracking/eye_x", "EyeTracking/eye_y", "pose/nose_x", "pose/nose_y"]


# -- video -----------------------------------------------------------------------------------------------------------


COUNTED = "num_samples" in {argument["name"] for argument in get_docval(ImageSeries.__init__)}  # since pynwb 3.1


def _movies(nwb: pynwb.NWBFile, pixels: Any, times: Any) -> None:
    nwb.add_acquisition(ImageSeries(name="Eye", data=pixels, timestamps=times, unit="a.u."))
    files = {"external_file": ["a.mp4", "https://example.org/b.mp4"], "starting_frame": [0, 40], "format": "external"}
    nwb.add_acquisition(ImageSeries(name="body", timestamps=times, unit="n.a.", **files))
    counted = {"num_samples": 150} if COUNTED else {}
    nwb.add_acquisition(ImageSeries(name="face", rate=20.0, starting_time=1.0, unit="n.a.", **counted, **files))


@pytest.mark.parametrize(
    "counted", [pytest.param(True, marks=pytest.mark.skipif(not COUNTED, reason="not in this pynwb")), False]
)
def test_frames_are_those_shown_and_files_are_never_opened(tmp_path: Path, counted: bool) -> None:
    rng = np.random.default_rng(0)
    times = np.r_[1 + np.cumsum(rng.uniform(0.03, 0.05, 60)), 6 + np.cumsum(rng.uniform(0.03, 0.05, 40))]
    pixels = rng.integers(0, 255, (100, 4, 5, 3)).astype(np.uint8)
    make_recording(tmp_path / "a.nwb", extra=lambda nwb: _movies(nwb, pixels, times), obs_intervals=[[[0, 10]]] * 4)
    if COUNTED and not counted:
        with h5py.File(tmp_path / "a.nwb", "a") as file:
            del file["acquisition/face/num_samples"]
    assert list(read_all(tmp_path / "a.nwb")[0].fields) == ["spikes"]
    description, samples = read_all(tmp_path / "a.nwb", modalities=("spikes", "video"))
    shapes = {name: field["shape"] for name, field in description.fields.items()}
    assert shapes == {
        "spikes": [50, 4],
        "video_eye": [50, 4, 5, 3],
        "video_eye_mask": [50],
        "video_body_frame": [50, 2],
        "video_face_frame": [50, 2],
    }
    assert description.fields["video_body_frame"]["files"] == ["a.mp4", "https://example.org/b.mp4"]
    text = " ".join(description.report["warnings"])
    assert ("acquisition/face: the file does not say how many" in text) == (not counted)
    seen = set()
    for fields, metadata in some(samples):
        for k in range(50):
            centre = metadata["t_start_ns"] / 1e9 + (k + 0.5) * 0.01
            before = np.flatnonzero(times <= centre)
            ends = centre - times[-1] > np.median(np.diff(times)) + 1e-9
            frame = -1 if len(before) == 0 or ends or centre - times[before[-1]] > 0.25 else before[-1]
            assert fields["video_eye_mask"][k] == (frame >= 0)
            np.testing.assert_array_equal(fields["video_eye"][k], pixels[frame] if frame >= 0 else 0 * pixels[0])
            place = [-1, -1] if frame < 0 else [0, frame] if frame < 40 else [1, frame - 40]
            assert fields["video_body_frame"][k].tolist() == place
            regular = int((centre - 1) * 20 + 1e-6) if 1 <= centre and (centre < 8.5 or not counted) else -1
            assert fields["video_face_frame"][k].tolist() == (
                [-1, -1] if regular < 0 else [0, regular] if regular < 40 else [1, regular - 40]
            )
            seen.add(int(frame))
    assert seen == {*range(-1, 100)}
    chosen, _ = read_all(tmp_path / "a.nwb", modalities=("acquisition/Eye",))
    assert list(chosen.fields) == ["eye", "eye_mask"] and len(chosen.report["segments"]) == 2
