"""What shells complete, and how much the commands say: quiet, verbose, and nothing that acts on a terminal."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurofmx_wds.cli.main import main

MODULE = [sys.executable, "-m", "neurofmx_wds"]


def completed(script: str, *words: str) -> list[str]:
    """Returns what bash offers for the last of some words."""
    line = " ".join(f'"{word}"' for word in ("neurofmx-wds", *words))
    code = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}; _neurofmx_wds; printf "%s\\n" "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return shown.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "insp") == ["inspect"]
    assert {"convert", "info", "view", "report", "verify"} <= set(completed(script, ""))
    assert completed(script, "convert", "--bin") == ["--bin-size-ms"]
    assert completed(script, "convert", "-i", "a.nwb", "--seq") == ["--sequence-length"]
    assert set(completed(script, "convert", "--compression", "")) == {"none", "gz", "bz2", "xz"}
    assert completed(script, "convert", "--layout", "s") == ["segments"]
    assert completed(script, "info", "--bin") == []
    assert completed(script, "convert", "some/file") == []
    assert subprocess.run(["bash", "-n"], input=script.encode()).returncode == 0


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "bin-size-ms" in script and "segments" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script.encode()).returncode == 0
    if shell == "fish":
        assert all(line.startswith("complete -c neurofmx-wds -n ") for line in script.splitlines())


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in\x1b[31m.npz", x=np.zeros((10, 4)))
    return next(tmp_path.glob("*.npz"))


def test_quiet_prints_errors_only(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["convert", "-i", str(npz), "-o", out, "--validate", "-q"]) == 0
    assert main(["verify", out, "--deep", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    (tmp_path / "out" / "shard_000000.index").unlink()
    assert main(["verify", out, "-q"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "shard_000000.index" in shown.err
    assert main(["info", out]) == 0 and capsys.readouterr().out


def test_verbose_says_what_is_done(npz: Path, tmp_path: Path) -> None:
    command = [*MODULE, "convert", "-i", str(npz), "-o", str(tmp_path / "out"), "--shard-size", "4"]
    shown = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True)
    lines = shown.stderr.splitlines()
    assert [line.split(" INFO ")[1] for line in lines] == [
        "planned in\\x1b[31m.npz: 10 samples",
        "wrote shard_000000.tar: 4 samples",
        "wrote shard_000001.tar: 4 samples",
        "wrote shard_000002.tar: 2 samples",
    ]
    assert "\x1b" not in shown.stderr + shown.stdout
    shown = subprocess.run([*command, "--overwrite"], capture_output=True, text=True, check=True)
    assert shown.stderr == ""


def test_logging_is_left_as_it_was(npz: Path, tmp_path: Path) -> None:
    logger = logging.getLogger("neurofmx_wds")
    before = logger.level, list(logger.handlers)
    assert main(["convert", "-i", str(npz), "-o", str(tmp_path / "out"), "-vv"]) == 0
    assert main(["info", str(tmp_path / "nosuch"), "-v"]) == 1
    assert (logger.level, list(logger.handlers)) == before
