"""What a recording holds, before it is converted: against the truth that it was made of, and nothing is left out."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import extensions
import numpy as np
import pytest
from pynwb import NWBFile, TimeSeries
from pynwb.epoch import TimeIntervals
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries
from recordings import make_recording

from neurofmx_wds import create_shards_from_arrays
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.inspect import inspect_file
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.manifest import Manifest
from neurofmx_wds.nwb.recording import Recording

MODULE = [sys.executable, "-m", "neurofmx_wds"]


@pytest.mark.parametrize("seed", range(8))
def test_units_and_gaps_are_those_of_the_truth(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rate = int(rng.choice([20, 50, 125]))
    counts = rng.integers(0, 40, rng.integers(1, 7)).tolist()
    pieces = [*zip(rng.integers(9, 60, seed % 4 + 1).tolist(), rng.integers(1, 50, seed % 4 + 1).tolist(), strict=True)]
    spikes = [np.sort(rng.uniform(1, 9, n)) for n in counts]
    starts = np.cumsum([0, *(n / rate + pause for n, pause in pieces[:-1])])
    times = np.concatenate([start + np.arange(n) / rate for start, (n, _) in zip(starts, pieces, strict=True)])
    observed = [[[0.5, 9.5]] for _ in counts]
    path = tmp_path / "a.nwb"
    make_recording(path, spike_times=spikes, obs_intervals=observed, behavior_times=times)
    recording = inspect_file(path)["recording"]
    units = recording["units"]
    assert (units["n"], units["spikes"], units["silent"]) == (len(counts), sum(counts), counts.count(0))
    [group] = units["groups"]
    assert (group["n"], group["spikes"], group["region"]) == (len(counts), sum(counts), "CA1")
    assert group["rate_hz"] == pytest.approx([min(counts) / 9, float(np.median(counts)) / 9, max(counts) / 9])
    [series] = recording["series"]
    steps = np.diff(times)
    gaps = steps[steps > 0.25]
    assert series["samples"] == len(times)
    assert series["gaps"]["n"] == len(gaps)
    assert series["gaps"]["longest_s"] == pytest.approx(gaps.max() if len(gaps) else 0)
    assert series["measured_s"] == pytest.approx(len(times) / rate, abs=1e-6)
    assert series["start_s"] == 0 and series["stop_s"] == pytest.approx(times[-1] + 1 / rate, abs=1e-6)


def test_units_are_grouped_by_region_and_quality(tmp_path: Path) -> None:
    qualities = ["good", "mua", "good", "noise", "good"]

    def rated(nwb: NWBFile) -> None:
        nwb.units.add_column("quality", "of the unit", data=qualities)

    spikes = [np.linspace(1, 9, n) for n in (10, 20, 30, 0, 50)]
    make_recording(tmp_path / "a.nwb", spike_times=spikes, obs_intervals=[[[0, 10]]] * 5, extra=rated)
    groups = inspect_file(tmp_path / "a.nwb")["recording"]["units"]["groups"]
    told = {each["quality"]: (each["region"], each["n"], each["silent"], each["spikes"]) for each in groups}
    assert told == {"good": ("CA1", 3, 0, 90), "mua": ("CA1", 1, 0, 20), "noise": ("CA1", 1, 1, 0)}
    [good] = [each["rate_hz"] for each in groups if each["quality"] == "good"]
    assert good == pytest.approx([1.0, 3.0, 5.0])


def full(nwb: NWBFile) -> None:
    nwb.add_trial_column("outcome", "hit or miss")
    nwb.add_trial_column("delay", "s")
    for i in range(6):
        outcome, delay = ["hit", "hit", "miss"][i % 3], [0.5, np.nan][i % 2]
        nwb.add_trial(start_time=float(i), stop_time=i + 0.5, outcome=outcome, delay=delay)
    nwb.add_invalid_time_interval(start_time=2.0, stop_time=3.5)
    nwb.add_acquisition(AnnotationSeries(name="cues", data=["go", "stop", "go"], timestamps=[1.0, 2.0, 7.0]))
    nwb.add_acquisition(TimeSeries(name="ttl", data=np.arange(50.0), unit="V", rate=10.0))
    nwb.add_acquisition(ImageSeries(name="eye", data=np.zeros((20, 4, 5), "uint8"), unit="n/a", rate=5.0))
    table = TimeIntervals(name="laps", description="laps")
    table.add_interval(start_time=0.0, stop_time=4.0)
    nwb.add_analysis(table)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "full.nwb"
    make_recording(path, lfp_channels=3, behavior_rate=50.0, extra=full)
    return path


def test_tables_events_series_and_videos(recording: Path) -> None:
    found = inspect_file(recording)
    summary = found["recording"]
    tables = {each["path"]: each for each in summary["tables"]}
    assert tables.keys() == {"intervals/trials", "analysis/laps"}
    trials = tables["intervals/trials"]
    assert (trials["rows"], trials["start_s"], trials["stop_s"]) == (6, 0.0, 5.5)
    assert trials["columns"]["outcome"] == {"missing": 0, "values": {"hit": 4, "miss": 2}}
    assert trials["columns"]["delay"] == {"missing": 3, "values": {"0.5": 3}}
    [events] = summary["events"]
    assert (events["path"], events["n"], events["labels"]) == ("acquisition/cues", 3, {"go": 2, "stop": 1})
    [video] = summary["videos"]
    assert (video["frames"], video["shape"], video["rate"], video["stop_s"]) == (20, [4, 5], 5.0, 4.0)
    series = {each["path"]: each for each in summary["series"]}
    lfp = series["processing/ecephys/LFP/lfp"]
    assert (lfp["rate"], len(lfp["columns"]), lfp["samples"], lfp["measured_s"]) == (1000.0, 3, 10_000, 10.0)
    assert summary["invalid_s"] == 1.5
    not_taken = {each["path"]: each["take"] for each in found["convert"]["not_taken"]}
    assert not_taken["acquisition/ttl"] == "--modalities spikes,behavior,lfp,events,acquisition/ttl"
    assert not_taken["analysis/laps"] == "--align analysis/laps"
    json.dumps(found, allow_nan=False)


def everything_shown(found: dict[str, Any]) -> set[str]:
    """Returns the paths of all objects that a summary shows or names as not taken."""
    summary = found.get("recording", {})
    parts = [each for name in ("series", "videos", "events", "states", "tables") for each in summary.get(name, [])]
    shown = {each["path"] for each in parts} | set((summary.get("units") or {}).get("tables", []))
    return shown | {each["path"] for each in found["convert"].get("not_taken", [])}


def test_every_object_is_shown_or_named(tmp_path: Path, recording: Path) -> None:
    extensions.write(tmp_path)
    paths = [*sorted(tmp_path.glob("*.nwb")), recording]
    assert len(paths) > 3
    for path in paths:
        opened = Recording(path)
        objects = {each.path for each in opened.objects} - {"intervals/invalid_times"}
        opened.close()
        missing = objects - everything_shown(inspect_file(path))
        assert {each for each in missing if not each.endswith("PlaneSegmentation")} == set(), path


def test_the_command_line_converts_what_was_shown(recording: Path, tmp_path: Path) -> None:
    options = ["--bin-size-ms", "100/3", "--sequence-length", "30", "--interval", "1", "4.5", "--overlap", "0"]
    options += ["--modalities", "spikes,behavior", "--spike-dtype", "uint8"]
    path = tmp_path / "with 'quotes' and spaces.nwb"
    path.symlink_to(recording)
    shown = subprocess.run([*MODULE, "inspect", str(path), *options], capture_output=True, text=True, check=True)
    words = shlex.split(shown.stdout.splitlines()[-1])
    assert words[:4] == ["python", "-m", "neurofmx_wds", "convert"]
    words[words.index("shards")] = str(tmp_path / "out")
    assert main(words[3:]) == 0
    manifest = Manifest.load(tmp_path / "out")
    config = SourceConfig.of(
        bin_size_ms="100/3", sequence_length=30, intervals=[(1, 4.5)], overlap=0, modalities=["spikes", "behavior"],
        spike_dtype="uint8",
    )  # fmt: skip
    assert f"convert makes {manifest.total_samples:,} samples" in shown.stdout
    assert inspect_file(path, config)["convert"]["samples"] == manifest.total_samples > 0


def test_arrays_directories_and_bad_files(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sub").mkdir()
    np.savez(tmp_path / "sub" / "a.npz", x=np.zeros((7, 3), "float32"), label=np.arange(7))
    (tmp_path / "b.nwb").write_bytes(b"")
    (tmp_path / "c.nwb").symlink_to(recording)
    assert main(["inspect", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "a.npz  (npz" in shown.out and "convert makes 7 samples" in shown.out and "c.nwb  (nwb" in shown.out
    [error] = shown.err.splitlines()
    assert error.startswith(f"error: {tmp_path / 'b.nwb'}: is empty")
    assert main(["inspect", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {Path(each["path"]).name for each in found} == {"a.npz", "b.nwb", "c.nwb"}
    assert sum("error" in each for each in found) == 1
    assert main(["inspect", str(tmp_path / "nosuch.nwb"), "--modalities", "lfp"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_asks_for_too_much_is_shown_without_a_conversion(recording: Path, capsys: Any) -> None:
    assert main(["inspect", str(recording), "--modalities", "ophys"]) == 0
    assert "convert takes nothing of it" in capsys.readouterr().out
    assert inspect_file(recording, SourceConfig.of(sequence_length=10**6))["convert"]["empty"]
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(recording), "--overlap", "2"])
    assert left.value.code == 2


def test_info_points_to_inspect_and_inspect_to_info(recording: Path, tmp_path: Path, capsys: Any) -> None:
    create_shards_from_arrays(tmp_path / "shards", {"x": np.zeros((3, 2))})
    for command in ("info", "read"):
        assert main([command, str(recording)]) == 1
        assert "`python -m neurofmx_wds inspect`" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "shards")]) == 1
    assert "`python -m neurofmx_wds info`" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_lines_fit_the_terminal(columns: int, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("neurofmx_wds.cli.inspect.terminal_width", lambda: columns)
    monkeypatch.chdir(recording.parent)
    assert main(["inspect", "full.nwb"]) == 0
    *lines, command = capsys.readouterr().out.splitlines()
    assert command.startswith("  python")
    assert max(map(len, lines)) <= columns


def test_names_cannot_act_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def evil(nwb: NWBFile) -> None:
        nwb.add_acquisition(TimeSeries(name="a\x1b[31mred", data=np.arange(50.0), unit="\x1b[2J", rate=10.0))
        nwb.add_trial_column("\x1b]0;x\x07", "y")
        nwb.add_trial(start_time=0.0, stop_time=1.0, **{"\x1b]0;x\x07": "\x1b[1m"})

    make_recording(tmp_path / "evil\x1b[32m.nwb", extra=evil)
    main(["inspect", str(tmp_path)])
    shown = capsys.readouterr()
    assert "\\x1b[31mred" in shown.out
    assert "\x1b" not in shown.out + shown.err


def test_a_reader_that_goes_away_is_no_error(recording: Path) -> None:
    with subprocess.Popen([*MODULE, "inspect", str(recording)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.stdout is not None and it.stderr is not None
        os.close(it.stdout.fileno())
        errors = it.stderr.read()
        it.stdout = None
    assert errors == b""


def test_not_a_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nwb").write_bytes(b"x" * 100)
    with pytest.raises(SourceError, match="not an HDF5 file"):
        inspect_file(tmp_path / "a.nwb")
