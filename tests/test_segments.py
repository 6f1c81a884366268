"""Datasets of segments under all that is done to datasets: made, killed, grown, joined, mended, exported."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import contents, kill_at_step
from recordings import make_recording
from windows import load, starts

from neurofmx_wds import ShardedDatasetInfo, Windows
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Task, Workers
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.repair import repair
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.format.export import export
from neurofmx_wds.format.verify import verify

CONFIG = SourceConfig.of(layout="segments", segment_s=2.0)


def output(directory: Path, **more: Any) -> Output:
    return Output(directory, shard_size=2, **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("files")
    for i in range(3):
        made: dict[str, Any] = {"n_units": 2, "trials": 2, "seed": i, "session_id": f"s{i}", "behavior_rate": 50}
        make_recording(out / f"{i}.nwb", seconds=5 + i, **made)
    return [out / f"{i}.nwb" for i in range(3)]


@pytest.fixture(scope="module")
def whole(files: list[Path]) -> Path:
    convert(files, output(files[0].parent / "whole"), CONFIG)
    return files[0].parent / "whole"


def windows_of(directory: Path) -> list[tuple[str, int]]:
    return starts(load(directory, windows=Windows(length_s=0.5)))


def test_workers_and_tasks_make_the_same_bytes(files: list[Path], whole: Path, tmp_path: Path) -> None:
    convert(files, output(tmp_path / "two"), CONFIG, Workers(2))
    assert contents(tmp_path / "two") == contents(whole)
    for task in (2, 0, 1):
        write_share(files, output(tmp_path / "tasks"), Task(task, 3), CONFIG)
    convert(files, output(tmp_path / "tasks"), CONFIG)
    assert contents(tmp_path / "tasks") == contents(whole)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_anywhere_and_run_again_it_ends_with_the_same_bytes(
    files: list[Path], whole: Path, tmp_path: Path
) -> None:
    out = output(tmp_path / "out")
    for n in itertools.count(5, 60):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status = kill_at_step(n, lambda: convert(files, out, CONFIG))
        assert status in (0, 9)
        if status == 0:
            break
        convert(files, Output(tmp_path / "out", shard_size=2, overwrite=True), CONFIG)
        assert contents(tmp_path / "out") == contents(whole)
    assert n > 100


def test_grown_and_joined_they_hold_the_windows_of_all(files: list[Path], whole: Path, tmp_path: Path) -> None:
    convert(files[:1], output(tmp_path / "grown"), CONFIG)
    append(files[1:], output(tmp_path / "grown"), CONFIG)
    assert windows_of(tmp_path / "grown") == windows_of(whole)
    for i, file in enumerate(files):
        convert([file], output(tmp_path / str(i)), CONFIG)
    merge([tmp_path / "2", tmp_path / "0"], tmp_path / "joined", repeat_keys=True)
    assert windows_of(tmp_path / "joined") == windows_of(tmp_path / "2") + windows_of(tmp_path / "0")
    for directory in ("grown", "joined"):
        assert verify(tmp_path / directory, deep=True).problems == []


def test_damage_is_found_by_verify_and_by_loading_and_mended(files: list[Path], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "shard_000001.tar"
    data = bytearray(shard.read_bytes())
    at = data.index(b"spike_times.npy") + 512 + 200
    data[at] ^= 1
    shard.write_bytes(bytes(data))
    (tmp_path / "damaged" / "shard_000003.tar").unlink()
    assert len(verify(tmp_path / "damaged", deep=True).problems) >= 2
    repaired = repair(files, output(tmp_path / "damaged"), CONFIG)
    assert repaired == ["shard_000001.tar", "shard_000003.tar"]
    assert contents(tmp_path / "damaged") == contents(whole)


def test_a_damaged_segment_is_named_or_skipped(whole: Path, tmp_path: Path) -> None:
    import webdataset as wds

    shutil.copytree(whole, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "shard_000001.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"spike_times.npy") + 512 + 200] ^= 1
    shard.write_bytes(bytes(data))
    windows = Windows(length_s=0.5)
    with pytest.raises(Exception, match=r"shard_000001\.tar.*spike_times.*checksum"):
        list(load(tmp_path / "damaged", windows=windows))
    left = load(tmp_path / "damaged", windows=windows, handler=wds.ignore_and_continue)
    found = starts(left)
    assert 0 < len(found) < len(windows_of(whole)) and set(found) < set(windows_of(whole))


def test_exported_and_described(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "out")
    assert export(tmp_path / "out")
    assert ShardedDatasetInfo(whole).get_summary()["modalities"]["spike_times"]["dtype"] == "int64"
    for command in (["info"], ["read"], ["verify", "--deep"]):
        assert main([*command, str(whole)]) == 0
    assert "spike_times" in capsys.readouterr().out


def test_the_command_line_validates_and_appends(files: list[Path], whole: Path, tmp_path: Path) -> None:
    how = ["--layout", "segments", "--segment-s", "2", "--shard-size", "2", "--validate"]
    assert main(["convert", "-i", *map(str, files[:2]), "-o", str(tmp_path / "out"), *how]) == 0
    assert main(["append", "-i", str(files[2]), "-o", str(tmp_path / "out"), *how[:-1]]) == 0
    assert windows_of(tmp_path / "out") == windows_of(whole)


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_compressed_segments_give_the_same_windows(
    compression: Any, files: list[Path], whole: Path, tmp_path: Path
) -> None:
    convert(files, output(tmp_path / "out", compression=compression), CONFIG)
    now, then = (load(each, windows=Windows(length_s=0.5), shuffle="full") for each in (tmp_path / "out", whole))
    for a, b in zip(now, then, strict=True):
        assert np.array_equal(a["spikes"], b["spikes"]) and list(a["metadata"]) == list(b["metadata"])


def test_pieces_of_time_are_split_when_loading(files: list[Path], tmp_path: Path) -> None:
    """A split by time while converting is refused by name: segments hold no windows."""
    how = ["--layout", "segments", "--split", "train=0.8,val=0.2"]
    assert main(["convert", "-i", str(files[0]), "-o", str(tmp_path / "out"), *how, "--split-by", "time"]) != 0
    assert not (tmp_path / "out").exists()
