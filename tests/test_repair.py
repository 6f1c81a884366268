"""repair: only what is damaged is made again, byte for byte as it was, or nothing is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conversions import contents

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.repair import repair
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import OutputError, SourceError
from neurofmx_wds.format.verify import verify


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-600]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "another's": lambda path: shutil.copy(path.with_name("shard_000000" + path.suffix), path),
}


@pytest.mark.parametrize("suffix", [".tar", ".index"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("grown", [False, True], ids=["at once", "appended"])
def test_only_the_damaged_shard_is_made_again(
    damage: str, suffix: str, grown: bool, inputs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    convert(inputs[:1] if grown else inputs, Output(out, shard_size=3))
    if grown:
        append(inputs, Output(out, shard_size=3))
    whole = contents(out)
    DAMAGE[damage](out / f"shard_000003{suffix}")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if "000003" not in path.name}
    problems = verify(out, deep=True).problems
    assert problems and all(problem.remedy for problem in problems)
    assert repair(inputs[::-1], Output(out, shard_size=3)) == ["shard_000003.tar"]
    assert contents(out) == whole
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert verify(out, deep=True).ok and repair(inputs, Output(out, shard_size=3)) == []
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c.npz", "out"]


def test_what_a_killed_repair_left_is_gone_after_the_next(inputs: list[Path], tmp_path: Path) -> None:
    """Also where it had put everything in its place."""
    convert(inputs, Output(tmp_path / "out", shard_size=3))
    (tmp_path / ".out.partial" / ".repair-x" / "made").mkdir(parents=True)
    assert repair(inputs, Output(tmp_path / "out", shard_size=3)) == []
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c.npz", "out"]


def test_what_would_come_out_otherwise_is_refused_and_nothing_is_touched(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="no dataset to repair"):
        repair(inputs, Output(out))
    convert(inputs, Output(out, shard_size=3))
    flip(out / "shard_000001.tar")
    damaged = contents(out)
    with pytest.raises(OutputError, match="shard_size was 3 and is 4 now"):
        repair(inputs, Output(out, shard_size=4))
    with pytest.raises(OutputError, match="overlap was 0.5 and is 0.25 now"):
        repair(inputs, Output(out, shard_size=3), SourceConfig.of(overlap=0.25))
    with pytest.raises(SourceError, match=r"b\.npz.*missing among the inputs"):
        repair([inputs[0], inputs[2]], Output(out, shard_size=3))
    with pytest.raises(SourceError, match=r"nowhere\.npz"):
        repair([*inputs[:2], tmp_path / "nowhere.npz"], Output(out, shard_size=3))
    manifest = out / "dataset_metadata.json"
    text = manifest.read_text()
    record = json.loads(text)["shards"][1]
    manifest.write_text(text.replace(record["sha256"], "0" * 64))
    with pytest.raises(OutputError, match=r"shard_000001\.tar.*the new shard differs"):
        repair(inputs, Output(out, shard_size=3))
    manifest.write_text(text)
    assert contents(out) == damaged
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c.npz", "out"]


def test_the_command_and_the_remedy_that_verify_gives(
    inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "-i", *map(str, inputs), "-o", str(tmp_path / "out"), "--shard-size", "3"]
    assert main(command) == 0
    whole = contents(tmp_path / "out")
    assert main([*command, "--repair"]) == 0
    assert "nothing is damaged" in capsys.readouterr().out
    for name in ("shard_000000.tar", "shard_000004.tar"):
        flip(tmp_path / "out" / name)
    assert main(["verify", str(tmp_path / "out"), "--deep"]) == 1
    assert re.search(r"shard_000000\.tar.*neurofmx_wds repair", capsys.readouterr().err)
    assert main([*command, "--repair", "--workers", "2"]) == 0
    assert "made again: shard_000000.tar, shard_000004.tar" in capsys.readouterr().out
    assert contents(tmp_path / "out") == whole
    with pytest.raises(SystemExit):
        main([*command, "--repair", "--overwrite"])
    assert "--repair: not together with --overwrite" in capsys.readouterr().err
