"""Windows around events that are cut while loading: around all that a conversion aligns to, with the same metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import extensions
import numpy as np
import pynwb
import pytest
from pynwb.behavior import BehavioralEpochs, BehavioralEvents
from pynwb.epoch import TimeIntervals
from pynwb.misc import AnnotationSeries, IntervalSeries
from recordings import make_recording
from windows import assert_same_batches, convert_both, load

from neurofmx_wds import Windows
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import SourceError

AROUND: dict[str, Any] = {"before_s": 0.3, "after_s": 0.5}


def add_everything(nwb: pynwb.NWBFile) -> None:
    """Add every kind of table, series and container that windows can be aligned to."""
    module = nwb.processing["behavior"]
    events = BehavioralEvents(name="BehavioralEvents")
    for name, times, data in (("reward", [1.0, 2.0, 8.0], [4.0, 8.0, 4.0]), ("poke", [0.5, 1.5, 6.0, np.nan], [1] * 4)):
        events.add_timeseries(pynwb.TimeSeries(name=name, data=data, timestamps=times, unit="x"))
    module.add(events)
    module.add(AnnotationSeries(name="notes", data=["a", "b", "a"], timestamps=[7.5, 2.0, 5.0]))
    grooming = IntervalSeries(name="grooming", data=[1, -1, 2, -2], timestamps=[1.0, 1.5, 4.0, 4.75])
    module.add(BehavioralEpochs(name="epochs_of_behavior", interval_series=[grooming]))
    table = TimeIntervals(name="cues", description="x")
    table.add_column("side", "x")
    for start, stop, side in ((1.0, 1.5, "L"), (7.0, np.nan, "R"), (3.0, 9.0, "L"), (np.nan, 2.0, "R")):
        table.add_row(start_time=start, stop_time=stop, side=side)
    module.add(table)
    pulses = TimeIntervals(name="pulses", description="x")
    pulses.add_row(start_time=2.5, stop_time=2.6)
    nwb.add_analysis(pulses)
    for name in ("a", "b"):
        nwb.create_processing_module(name, "x").add(AnnotationSeries(name="twice", data=[name], timestamps=[3.0]))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("aligned")
    make_recording(out / "a.nwb", seconds=10, trials=4, behavior_rate=50, extra=add_everything)
    return out / "a.nwb"


@pytest.fixture(scope="module")
def segments(recording: Path) -> Path:
    modalities = ("spikes", "behavior", "events")
    config = SourceConfig.of(layout="segments", segment_s=1.5, max_gap_s=0.05, modalities=modalities)
    convert([recording], Output(recording.parent / "segments"), config)
    return recording.parent / "segments"


@pytest.mark.parametrize(
    "align",
    ["trials", "intervals/trials", "reward", "processing/behavior/BehavioralEvents/poke", "BehavioralEvents", "notes",
     "grooming", "epochs_of_behavior", "cues", "processing/behavior/cues", "analysis/pulses", "pulses",
     "processing/b/twice"],
)  # fmt: skip
def test_around_everything(recording: Path, segments: Path, tmp_path: Path, align: str) -> None:
    modalities = ("spikes", "events") if align in ("BehavioralEvents", "notes") else ("spikes", "behavior")
    config = {"align": align, "modalities": modalities, **AROUND}
    convert([recording], Output(tmp_path / "windows"), SourceConfig.of(**config))
    now = load(segments, modalities=modalities, windows=Windows(align=align, **AROUND))
    assert assert_same_batches(load(tmp_path / "windows"), now)


@pytest.mark.parametrize("align", ["cue", "processing/behavior/cue", "lick", "annotated"])
def test_around_events_of_extensions(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, align: str) -> None:
    extensions.write(tmp_path)
    before, now = convert_both([tmp_path / "events.nwb"], tmp_path, 2.0, align=align, **AROUND)
    assert assert_same_batches(load(before), load(now, windows=Windows(align=align, **AROUND)))


def test_around_a_table_of_events(tmp_path: Path) -> None:
    event = pytest.importorskip("pynwb.event", reason="tables of events need pynwb 4 (pip install -U pynwb)")

    def add(nwb: pynwb.NWBFile) -> None:
        table = event.EventsTable(name="cues", description="x")
        table.add_column("side", "x")
        for i in range(8):
            table.add_row(timestamp=1.0 + i, side="LR"[i % 2])
        nwb.add_events_table(table)

    make_recording(tmp_path / "a.nwb", extra=add)
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 2.0, align="cues", **AROUND)
    assert assert_same_batches(load(before), load(now, windows=Windows(align="cues", **AROUND)))
    for select in ({"cues_side": "L"}, {"cues": [1, 6]}):
        chosen = load(now, select=select, windows=Windows(align="cues", **AROUND))
        assert assert_same_batches(load(before, select=select), chosen)


def test_what_cannot_be_aligned_to_is_named_with_what_can(segments: Path) -> None:
    with pytest.raises(SourceError, match="no table nothing .*; it has trials, cues, .*BehavioralEvents/reward"):
        load(segments, windows=Windows(align="nothing", after_s=1))
    with pytest.raises(SourceError, match="twice stands for several: processing/a/twice, processing/b/twice"):
        load(segments, windows=Windows(align="twice", after_s=1))


def test_tables_running_where_nothing_was_recorded(tmp_path: Path) -> None:
    """A trial is known also in a stretch of a minute in which no unit spiked, and after the last spike."""
    make_recording(
        tmp_path / "a.nwb", seconds=30, n_units=1, trials=3, spike_times=[[0.1, 1.0, 29.5]],
        obs_intervals=[[[0.0, 40.0]]],
    )  # fmt: skip
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 2.0, sequence_length=50, overlap=0)
    assert assert_same_batches(load(before), load(now, windows=Windows(length_s=0.5)))
