"""A finished conversion given again: done if it is the same, refused with the differences by name if not."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Split, Task, Workers
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import convert_split
from neurofmx_wds.errors import OutputError

TIMED = SourceConfig.of(rate=100.0, sequence_length=10)
HALVES = {"train": 0.5, "val": 0.5}


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    for i in range(4):
        np.savez(tmp_path / f"{i}.npz", x=np.random.default_rng(i).standard_normal((200, 3)))
    return sorted(tmp_path.glob("*.npz"))


def times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")]}


@pytest.mark.parametrize("by", [None, "session", "time"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_again_is_done_and_writes_nothing(by: Any, workers: int, inputs: list[Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "out", shard_size=7)

    def make(output: Output, paths: list[Path], config: SourceConfig = TIMED) -> bool:
        if by is None:
            return convert(paths, output, config, Workers(workers)).existed
        made = convert_split(paths, output, Split(HALVES, by), config, Workers(workers))
        assert len({conversion.existed for conversion in made.values()}) == 1
        return made["train"].existed

    assert not make(output, inputs)
    before = times(tmp_path / "out")
    assert make(output, inputs)
    for other, paths, config, found in (
        (replace(output, shard_size=8), inputs, TIMED, "shard_size was 7 and is 8 now"),
        (output, inputs, SourceConfig.of(rate=100.0, sequence_length=11), "sequence_length was 10 and is 11 now"),
        (output, inputs[:-1], TIMED, "3.npz is only there"),
    ):
        with pytest.raises(OutputError, match=f"finished dataset is there already, and differs: .*{found}"):
            make(other, paths, config)
    assert times(tmp_path / "out") == before and sorted(os.listdir(tmp_path)) == [*(p.name for p in inputs), "out"]
    assert not make(replace(output, overwrite=True), inputs)


def test_each_difference_of_the_sources_is_named(inputs: list[Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    given = [*inputs[:3], tmp_path / "bad.npz"]
    first = convert(given, output)
    again = convert(given, output)
    assert (
        again.existed and [str(error) for error in again.plan.failures] == [str(e) for e in first.plan.failures] != []
    )

    def refused(paths: list[Path]) -> str:
        with pytest.raises(OutputError) as error:
            convert(paths, output)
        return error.value.problem.partition("differs: ")[2]

    assert refused([*given, inputs[3]]) == "3.npz is not in it"
    assert refused(given[1:]) == "0.npz is only there"
    assert refused([given[1], given[0], *given[2:]]) == "its sources are in another order"
    shutil.copy(inputs[3], tmp_path / "bad.npz")
    assert refused(given) == "bad.npz could not be read then"
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    np.savez(inputs[1], x=np.zeros((200, 3)))
    assert refused(given) == "1.npz has changed"
    inputs[1].unlink()
    assert refused(given) == "1.npz cannot be read now"
    append([inputs[3]], output)
    assert "3.npz is only there" in refused(given)


def test_a_split_made_otherwise_is_refused(inputs: list[Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    convert_split(inputs, output, Split(HALVES, "time"), TIMED)
    for other in (Split({"train": 0.6, "val": 0.4}, "time"), Split(HALVES, "session")):
        with pytest.raises(OutputError, match="differs: (.*is split in another way|.*is only there)"):
            convert_split(inputs, output, other, TIMED)
    with pytest.raises(OutputError, match="not empty"):
        convert_split(inputs, output, Split({"train": 0.5, "test": 0.5}, "time"), TIMED)


def test_a_task_of_a_finished_conversion_is_done_too(inputs: list[Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "out", shard_size=7)
    for task in range(3):
        write_share(inputs, output, Task(task, 3))
    convert(inputs, output)
    before = times(tmp_path / "out")
    assert write_share(inputs, output, Task(1, 3)).n_samples == 800
    with pytest.raises(OutputError, match="differs: 3.npz is only there"):
        write_share(inputs[:3], output, Task(1, 3))
    assert times(tmp_path / "out") == before


def test_a_shard_that_is_gone_or_cut_is_named(inputs: list[Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "out", shard_size=100)
    convert(inputs, output)
    shard = tmp_path / "out" / "shard_000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    for _ in range(2):
        with pytest.raises(OutputError, match=r"shard_000001\.tar.*missing or damaged.*repair"):
            convert(inputs, output)
        shard.unlink(missing_ok=True)


def test_the_command_says_that_nothing_is_to_do(
    inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "-i", *map(str, inputs), "-o", str(tmp_path / "out")]
    assert main(command) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert main([*command, "--validate"]) == 0
    assert f"nothing to do: {tmp_path / 'out'} holds this conversion already" in capsys.readouterr().out
    assert main([*command, "--task", "0", "--tasks", "2"]) == 0
    assert main([*command, "--shard-size", "3"]) == 1
    assert "shard_size was 1000 and is 3 now" in capsys.readouterr().err
