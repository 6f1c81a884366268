"""The README's snippets run, in its order, as a reader would copy them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from counting import some
from recordings import make_recording

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a recording, photographs and pets where the README expects them."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "neurofmx_demo").mkdir()
    make_recording(
        directory / "neurofmx_demo" / "demo_recording.nwb", seconds=250, n_units=12, behavior_rate=60.0, trials=20
    )
    for i in range(4):
        for folder, name, data in (
            (f"photos/day-{i % 2}", f"sample-{i}.jpg", b"no photograph"),
            (f"photos/day-{i % 2}", f"sample-{i}.txt", b"a text"),
            (f"pets/{('cat', 'dog')[i % 2]}", f"{i}.ppm", b"P6 2 2 255\n" + bytes(12)),
        ):
            (directory / folder).mkdir(parents=True, exist_ok=True)
            (directory / folder / name).write_bytes(data)
    return directory


def run(command: list[str] | str, desk: Path, shell: bool = False) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(
            command, cwd=desk, env=environment, shell=shell, capture_output=True, text=True, timeout=300, check=False
        )
        if "terminate called without an active exception" not in done.stderr:
            break  # else: seen about once in 40 runs, when a torch process with gloo ends
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_snippets_run(desk: Path) -> None:
    assert len(BLOCKS) >= 9
    for kind, text in BLOCKS:
        name = re.match(r"# (\w+\.py)\n", text)
        if kind == "bash":
            run(text, desk, shell=True)
        elif name:
            (desk / name.group(1)).write_text(text)
        else:
            run([sys.executable, "-c", text], desk)
    assert (desk / "checkpoint.pt").exists()


def test_options_exist() -> None:
    """Every option and argument that the README's tables name is one."""
    from inspect import signature

    from neurofmx_wds import create_webdataset_dataloader

    text = README.read_text(encoding="utf-8")
    table = text[text.index("| loader argument") : text.index("`WebDatasetLoader` yields")]
    named = {name for cell in re.findall(r"^\| (`.*?`) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 10
    assert named <= set(signature(create_webdataset_dataloader).parameters)
    command = [sys.executable, "-m", "neurofmx_wds", "convert", "--help"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table = text[text.index("| `convert` option") : text.index("| loader argument")]
    options = re.findall(r"^\| `(--[a-z-]+)`", table, re.M)
    assert len(options) > 5
    assert all(option in usage for option in options)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_scripts_of_the_first_lines_exist() -> None:
    for script in some(re.findall(r"^bash (tools/\w+\.sh)", README.read_text(encoding="utf-8"), re.M)):
        assert (README.parent / script).exists()
