"""Intracellular sweeps, many of them from 0 on: each is cut by itself, with its stimulus; against numpy."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pynwb
import pytest
from conversions import contents
from pynwb import icephys
from recordings import make_recording, read_all

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig, WindowConfig, open_source
from neurofmx_wds.convert.sources.sweeps import SweepSource
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.info import ShardedDatasetInfo
from neurofmx_wds.nwb.recording import Recording

RATE = 10_000.0


class Patch:
    """A file of sweeps in the making."""

    def __init__(self, nwb: pynwb.NWBFile | None = None) -> None:
        start = dt.datetime(2024, 5, 17, tzinfo=dt.timezone.utc)
        self.nwb = nwb or pynwb.NWBFile("patching", "patch-1", start, session_id="cell-7")
        device = self.nwb.create_device("amplifier")
        self.electrodes = [
            self.nwb.create_icephys_electrode(name=f"electrode{i}", description="a pipette", device=device)
            for i in range(2)
        ]
        self.rng = np.random.default_rng(0)

    def series(self, kind: Any, name: str, seconds: float, electrode: int = 0, **more: Any) -> Any:
        more = {"rate": RATE, "starting_time": 0.0, "conversion": 1e-3, "gain": 1.0, **more}
        data = self.rng.integers(-900, 900, round(seconds * more["rate"]), np.int16)
        return kind(name=name, data=data, electrode=self.electrodes[electrode], **more)

    def sweep(
        self,
        i: int,
        seconds: float,
        number: int | None = None,
        stimulus: bool = True,
        clamp: str = "current",
        **more: Any,
    ) -> tuple:
        kinds = {
            "current": (icephys.CurrentClampSeries, icephys.CurrentClampStimulusSeries),
            "voltage": (icephys.VoltageClampSeries, icephys.VoltageClampStimulusSeries),
        }[clamp]
        protocol: dict[str, Any] = {"stimulus_description": f"protocol {i}"}
        if number is not None:
            protocol["sweep_number"] = np.uint64(number)
        response = self.series(kinds[0], f"response_{i:02d}", seconds, **protocol, **more)
        given = self.series(kinds[1], f"stimulus_{i:02d}", seconds, **protocol, **more) if stimulus else None
        self.nwb.add_acquisition(response)
        if given is not None:
            self.nwb.add_stimulus(given)
        return response, given

    def write(self, path: Path) -> Path:
        with pynwb.NWBHDF5IO(str(path), "w") as io:
            io.write(self.nwb)
        return path


def windows_of(sweep: tuple, low: int = 0, stop: int | None = None, rate: float = RATE) -> list[Any]:
    """Response and stimulus of each window of half a second that overlaps the next by half, cut with numpy."""
    length, step = round(0.5 * rate), round(0.25 * rate)
    values = [None if each is None else (each.data * 1e-3).astype(np.float32)[low:stop] for each in sweep]
    starts = range(0, len(values[0]) - length + 1, step)
    return [[None if v is None else v[i : i + length] for v in values] for i in starts]


def check(samples: list[Any], expected: list[Any]) -> None:
    assert len(samples) == len(expected)
    for (fields, _), (response, stimulus) in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(fields["response"][:, 0], response)
        assert fields["response_mask"].all()
        if stimulus is None:
            assert np.isnan(fields["stimulus"]).all() and not fields["stimulus_mask"].any()
        else:
            np.testing.assert_array_equal(fields["stimulus"][:, 0], stimulus)
            assert fields["stimulus_mask"].all()


@pytest.mark.parametrize("paired_by", ["table", "sweep_number", "both"])
def test_sweeps_that_overlap_are_cut_one_by_one_with_their_stimuli(paired_by: str, tmp_path: Path) -> None:
    patch = Patch()
    sweeps = []
    for i, seconds in enumerate([1.3, 0.4, 2.0, 0.5]):
        number = (
            {} if paired_by == "table" or (paired_by == "both" and i < 2) else {"sweep_number": np.uint64(10 + i // 2)}
        )
        sweeps.append(patch.sweep(i, seconds, stimulus=i != 2, electrode=i % 2, **number))
        if paired_by == "table" or (paired_by == "both" and i < 2):
            patch.nwb.add_intracellular_recording(
                electrode=patch.electrodes[i % 2], response=sweeps[-1][0], stimulus=sweeps[-1][1]
            )
    description, samples = read_all(patch.write(tmp_path / "a.nwb"))
    expected = [windows_of(sweep) for sweep in sweeps]
    assert [len(each) for each in expected] == [4, 0, 7, 1]
    check(samples, sum(expected, []))
    told = [metadata for _, metadata in samples]
    assert [m["sweep"] for m in told] == [0] * 4 + [2] * 7 + [3]
    assert [m["window_index"] for m in told] == list(range(12))
    assert [m["t_start_ns"] for m in told] == [n * 250_000_000 for n in (*range(4), *range(7), 0)]
    assert told[-1]["response_series"] == "acquisition/response_03"
    assert told[-1]["stimulus_series"] == "stimulus/presentation/stimulus_03"
    assert told[4]["stimulus_series"] is None and told[4]["sweep_number"] == (None if paired_by == "table" else 11)
    assert told[-1]["electrode"] == "electrode1" and told[-1]["stimulus_description"] == "protocol 3"
    assert description.report["sweeps"] == {
        "total": 4,
        "without_windows": 1,
        "without_stimulus": 1,
        "clamp": {"current": 4},
    }
    assert description.report["warnings"][-1] == "1 of 4 sweeps are shorter than a window"
    assert description.fields["response"] == {
        "dtype": "float32",
        "unit": "volts",
        "rate": RATE,
        "ways": ["native"],
        "shape": [5000, 1],
        "columns": ["response"],
    }
    assert description.fields["stimulus"]["unit"] == "amperes"


def test_a_part_of_a_long_series_is_a_sweep_of_its_own(tmp_path: Path) -> None:
    patch = Patch()
    long = patch.sweep(0, 5.0, starting_time=3.21)
    parts = [(0, 12_000), (12_000, 7_000), (30_000, 20_000)]
    for first, n in parts:
        patch.nwb.add_intracellular_recording(
            electrode=patch.electrodes[0],
            response=long[0],
            response_start_index=first,
            response_index_count=n,
            stimulus=long[1],
            stimulus_start_index=first,
            stimulus_index_count=n,
        )
    _, samples = read_all(patch.write(tmp_path / "a.nwb"))
    expected = [windows_of(long, first, first + n) for first, n in parts]
    assert [len(each) for each in expected] == [3, 1, 7]
    check(samples, sum(expected, []))
    starts = [metadata["t_start_ns"] for _, metadata in samples]
    assert starts[:5] == [3_210_000_000, 3_460_000_000, 3_710_000_000, 4_410_000_000, 6_210_000_000]


def test_a_sweep_far_from_0_loses_no_bin(tmp_path: Path) -> None:
    patch, starts = Patch(), []
    for k in range(20):
        long = patch.sweep(k, 2.0, starting_time=1.7e9 + 10 * k + k / 97)
        for first in (3, 5009, 10_017):
            patch.nwb.add_intracellular_recording(
                electrode=patch.electrodes[0], response=long[0], response_start_index=first, response_index_count=5000
            )
            starts.append(round((1.7e9 + 10 * k + k / 97) * 1e9) + first * 10**5)
    _, samples = read_all(patch.write(tmp_path / "a.nwb"))
    assert [metadata["t_start_ns"] for _, metadata in samples] == starts


def test_sweeps_are_read_from_a_stream_that_is_no_file(tmp_path: Path) -> None:
    patch = Patch()
    patch.sweep(0, 2.0)
    with patch.write(tmp_path / "a.nwb").open("rb") as stream:
        source = SweepSource(Recording("https://example.org/b.nwb?token", stream=stream), WindowConfig())
        described = source.describe()
        source.close()
    assert described.n_samples == 3 and described.report["path"] == "b.nwb"


@pytest.mark.parametrize("start", [0.0, 3.25])
def test_sweeps_are_aligned_to_nothing_and_that_is_said(start: float, tmp_path: Path) -> None:
    patch = Patch()
    patch.sweep(0, 2.0, starting_time=start)
    with pytest.raises(SourceError, match="sweeps have no table trials to align to.*convert them without align"):
        read_all(patch.write(tmp_path / "a.nwb"), align="trials")


def test_sweeps_of_other_rates_and_clamps_keep_theirs(tmp_path: Path) -> None:
    patch = Patch()
    sweeps = [patch.sweep(0, 1.0, number=0), patch.sweep(1, 1.0, number=1, clamp="voltage", rate=20_000.0)]
    description, samples = read_all(patch.write(tmp_path / "a.nwb"), overlap=0.5)

    assert [fields["response"].shape for fields, _ in samples] == [(5000, 1)] * 3 + [(10_000, 1)] * 3
    expected = [
        each[0] for sweep, rate in zip(sweeps, (RATE, 20_000.0), strict=True) for each in windows_of(sweep, rate=rate)
    ]
    for (fields, _), response in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(fields["response"][:, 0], response)
    about = description.fields["response"]
    assert (about["shape"], about["unit"], about["rate"]) == ([None, 1], None, None)
    assert description.report["sweeps"]["clamp"] == {"current": 1, "voltage": 1}
    assert [m["response_unit"] for _, m in samples] == ["volts"] * 3 + ["amperes"] * 3


def test_beside_other_modalities_they_must_be_asked_for(tmp_path: Path) -> None:
    sweeps = []

    def add(nwb: Any) -> None:
        sweeps.append(Patch(nwb).sweep(0, 1.0, number=3))

    make_recording(tmp_path / "a.nwb", seconds=2, extra=add)
    description, _ = read_all(tmp_path / "a.nwb")
    assert list(description.fields) == ["spikes"]
    assert description.report["unused"] == ["acquisition/response_00"]
    _, samples = read_all(tmp_path / "a.nwb", modalities=["icephys"])
    check(samples, windows_of(sweeps[0]))
    with pytest.raises(ValueError, match="modalities=.*clocks of their own"):
        SourceConfig.of(modalities=("spikes", "icephys"))
    make_recording(tmp_path / "b.nwb", seconds=2)
    with pytest.raises(SourceError, match="there is no icephys in it; it has spikes"):
        read_all(tmp_path / "b.nwb", modalities=["icephys"])


def test_they_become_shards_of_the_same_bytes_in_any_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patch = Patch()
    sweeps = [patch.sweep(i, 0.6 + 0.2 * i, stimulus=i % 2 == 0, number=i) for i in range(5)]
    path = patch.write(tmp_path / "a.nwb")
    config = SourceConfig.of(sequence_length=50)
    for size, workers in ((3, 1), (3, 2)):
        convert([path], Output(tmp_path / f"out{workers}", shard_size=size), config, Workers(workers))
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    arguments = ["convert", "-i", str(path), "-o", str(tmp_path / "cli"), "--sequence-length", "50", "--validate"]
    assert main([*arguments, "--shard-size", "3", "--modalities", "icephys"]) == 0
    n = sum(len(windows_of(sweep)) for sweep in sweeps)
    assert ShardedDatasetInfo(tmp_path / "cli").get_summary()["total_samples"] == n
    assert "response" in capsys.readouterr().out
    assert main([*arguments[:4], str(tmp_path / "split"), "--split", "a=0.5,b=0.5", "--split-by", "time"]) == 1
    assert "have no time to be split by" in capsys.readouterr().err


def test_they_have_no_segments(tmp_path: Path) -> None:
    patch = Patch()
    patch.sweep(0, 2.0)
    with pytest.raises(SourceError, match=r"a\.nwb.*sweeps.*no segments.*layout windows"):
        open_source(patch.write(tmp_path / "a.nwb"), SourceConfig.of(layout="segments"))
