"""What the commands print: remedies name commands that exist, and no text from a file acts on the terminal."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from counting import some

import neurofmx_wds
from neurofmx_wds import create_shards_from_arrays, errors
from neurofmx_wds.cli.main import main
from neurofmx_wds.cli.output import COMMANDS, show_error
from neurofmx_wds.format.manifest import MANIFEST_NAME

PACKAGE = Path(neurofmx_wds.__file__).parent


@pytest.mark.parametrize("advice", COMMANDS)
def test_a_remedy_is_shown_with_a_command_that_exists(advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_error(str(errors.ShardError("is damaged", file="a.tar", remedy=f"delete it, or {advice}")))
    shown = capsys.readouterr().err
    assert shown == f"a.tar: is damaged (delete it, or {advice} with `{COMMANDS[advice]}`)\n"
    words = COMMANDS[advice].removeprefix("python -m neurofmx_wds ").split()
    command, *options = words if words[0].isalpha() else ["convert", *words]
    with pytest.raises(SystemExit):
        main([command, "--help"])
    usage = capsys.readouterr().out
    assert all(option in usage for option in options)


def test_every_piece_of_advice_has_its_command() -> None:
    advice = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
    assert advice == {*COMMANDS, errors.RESTORE}
    assert any(known in errors.RESTORE for known in COMMANDS)


@pytest.mark.parametrize("room", ["format", "nwb", "order", "storage"])
def test_rooms_at_the_bottom_name_no_command(room: str) -> None:
    for path in some((PACKAGE / room).rglob("*.py")):
        assert not re.search(r"python -m neurofmx_wds|``?[a-z]+ --[a-z]|\(--[a-z]", path.read_text()), path


EVIL = "\x1b]0;title\x07\x1b[2J\r\u202e\x9b31m\x7f\ud800"


def hostile(directory: Path) -> Path:
    """Make a dataset whose metadata, field names, units, sources and manifest hold escapes."""
    create_shards_from_arrays(directory, {"x": np.arange(4)}, shard_size=2, metadata={"note": EVIL[:-1]})
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    manifest["modalities"][f"y{EVIL}"] = {"dtype": EVIL, "shape": [1], "unit": EVIL, "columns": [EVIL]}
    windows = {"emitted": 1, "dropped": {EVIL: 2}}
    source = {"path": EVIL, "session_id": EVIL, "subject": {"subject_id": EVIL}, "windows": windows, "warnings": [EVIL]}
    manifest["sources"] = [source, {"path": EVIL, "error": EVIL}]
    manifest |= {"created_by": EVIL, "compression": EVIL}
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest))
    return directory


def hostile_tar(directory: Path) -> Path:
    """Make a directory with one tar, whose member names and contents hold escapes."""
    directory.mkdir()
    evil = EVIL[:-1]
    with tarfile.open(directory / "shard_000000.tar", "w") as tar:
        for name in (f"k{evil}.txt", f"k{evil}.y{evil}.npy"):
            info = tarfile.TarInfo(name)
            info.size = len(evil.encode())
            tar.addfile(info, io.BytesIO(evil.encode()))
    return directory


@pytest.mark.parametrize("make", [hostile, hostile_tar])
@pytest.mark.parametrize(
    "command",
    [
        ["info"], ["info", "--json"], ["read"], ["verify"], ["verify", "--deep"], ["index"], ["index", "--repair"],
        ["export", "--dali"], ["export", "--wids"], ["merge", "-o", "merged"], ["convert", "-o", "made", "-i"],
        ["convert", "--format", "files", "-o", "made", "-i"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_text_of_a_dataset_acts_on_the_terminal(
    make: Callable[[Path], Path],
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = make(tmp_path / "hostile")
    monkeypatch.chdir(tmp_path)
    assert main([*command, str(directory)]) in (0, 1)
    shown = capsys.readouterr()
    assert all(line.isprintable() for line in (shown.out + shown.err).split("\n"))
    assert shown.out or shown.err


def test_an_errors_text_cannot_act_on_the_terminal() -> None:
    error = errors.ShardError(f"is {EVIL}", file=EVIL, sample=EVIL, member=EVIL, remedy=EVIL)
    assert str(error).isprintable() and str(error).encode()
