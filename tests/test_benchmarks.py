"""The benchmarks: figures and verdicts are what they are called, and a peer that is not there is a row that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import known_work, slow_work

from benchmarks import datasets, gpu, resume
from benchmarks.datasets import Samples
from benchmarks.harness import Row, Setting, Target, judge, measure, table, to_json

ROOT = Path(__file__).parents[1]


def test_figures_ratios_and_peers_that_are_not_there(tmp_path: Path) -> None:
    result = measure("known", known_work, Setting(tmp_path), repeats=2)
    large, small, missing, elsewhere, broken = result.rows
    assert (large.values, small.values) == ([50.0] * 2, [5.0] * 2)
    assert (missing.missing, elsewhere.missing) == ("No module named 'peer'", "not on this machine")
    assert broken.broken and "ValueError: a fault" in broken.missing and not missing.broken
    assert [verdict.met for verdict in result.verdicts] == [True, False, None]
    lines = "\n".join(table(result))
    assert "No module named 'peer'" in lines and "MISSED" in lines and "not measured" in lines
    assert [row.get("missing") for row in to_json(result)["rows"]][2:4] == [
        "No module named 'peer'",
        "not on this machine",
    ]


def test_work_is_divided_by_the_time_that_it_took(tmp_path: Path) -> None:
    result = measure("slow", slow_work, Setting(tmp_path), repeats=1)
    assert 0 < result.rows[0].median <= 10 / 0.05


def test_of_several_cases_the_slowest_counts() -> None:
    rows = [Row("a", False, [4.0, 6.0, 5.0]), Row("b", False, [2.0]), Row("ours", True, [4.0])]
    assert judge(Target(("a", "b"), "ours", at_most=0.5), rows).ratio == 0.5
    assert judge(Target("a", at_most=5), rows).met is True


@pytest.mark.slow
def test_every_group_runs_on_little_data(tmp_path: Path) -> None:
    """Whatever peers are installed here, nothing of ours fails."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--quick", "--repeats", "1"]
    files = {kind: tmp_path / f"figures.{kind}" for kind in ("json", "png")}
    options = [f"--{kind}={file}" for kind, file in files.items()]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=900)
    groups = json.loads(files["json"].read_text())["groups"]
    ours = [row for group in groups for row in group["rows"] if row["ours"]]
    assert done.returncode == 0, done.stdout + done.stderr
    assert ours and not [row for row in ours if row.get("missing")]
    assert files["png"].stat().st_size > 10_000


def test_resuming_is_measured_wherever_the_state_stands(tmp_path: Path) -> None:
    directory = resume.sparse_dataset(tmp_path / "d", n_shards=3, shard_size=64)
    assert all(time_ms > 0 for time_ms in resume.our_row(directory, 3 * 64, shuffle=False, num_workers=0))


def test_batches_on_a_device_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = datasets.ours(tmp_path, Samples("gpu", 40, (10, 8)))
    assert gpu.bytes_row(directory, "cpu", batch_size=16, shuffle=True)[1:] == (0, "of 6", True)
    if not torch.cuda.is_available():
        assert gpu.main([]) == 0 and "nothing was measured" in capsys.readouterr().out
