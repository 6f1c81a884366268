"""Work spread over processes: results in order, failures in order, and quick to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conversions import contents, make_npz
from jobs import die_elsewhere, imported, slow_square, square_or_fail
from recordings import make_recording

from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import OutputError
from neurofmx_wds.storage.processes import ordered_map


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(workers: int, n: int) -> None:
    with ordered_map(workers) as apply:
        found = list(apply(slow_square, range(n)))
        again = list(apply(slow_square, iter(range(n))))
    assert [square for square, _ in found] == [square for square, _ in again] == [i * i for i in range(n)]
    assert len({pid for _, pid in again}) <= workers
    if workers > 1 and n == 40:
        assert os.getpid() in {pid for _, pid in again} and len({pid for _, pid in again}) > 1


@pytest.mark.parametrize("way", ["here", "two", "four", "threads"])
def test_the_first_failure_ends_it_after_what_came_before(way: str, tmp_path: Path) -> None:
    jobs, seen = [(tmp_path, n) for n in range(400)], []
    with ThreadPoolExecutor(2) as threads:
        ways: dict[str, Any] = {"two": {"workers": 2}, "four": {"workers": 4}, "threads": {"executor": threads}}
        with ordered_map(**ways.get(way, {})) as apply, pytest.raises(ValueError, match="^7 is one"):
            for result in apply(square_or_fail, jobs):
                seen.append(result)
    assert seen == [n * n for n in range(7)]
    assert len(list(tmp_path.iterdir())) < 40, "it went on after the failure"


def test_a_process_that_dies_is_an_error_and_not_a_hang() -> None:
    with ordered_map(2) as apply, pytest.raises(OutputError, match=f"a worker process died while {os.getpid()}"):
        list(apply(die_elsewhere, [os.getpid()] * 5))


def test_two_threads_may_each_have_their_own() -> None:
    found = []

    def work() -> None:
        with ordered_map(2) as apply:
            found.append([square for square, _ in apply(slow_square, range(9))])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[n * n for n in range(9)]] * 3


def test_processes_that_convert_are_ready_without_torch() -> None:
    import torch  # noqa: F401 - here it is

    with Workers(2).start() as work:
        found = dict(work.apply(imported, range(3)))
    assert found.pop(os.getpid()) >= {"torch"}
    assert list(found.values()) == [{"pynwb", "webdataset"}]


MAIN_SCRIPT = """
import sys
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
if {guard}:
    convert(sys.argv[2:], Output(sys.argv[1], shard_size=2), workers=Workers(3))
"""


def test_a_script_starts_workers_under_its_guard_and_is_told_so(tmp_path: Path) -> None:
    make_npz(tmp_path / "a.npz", 30)
    convert([tmp_path / "a.npz"], Output(tmp_path / "good", shard_size=2))
    script = tmp_path / "script.py"
    command = [sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "a.npz")]
    script.write_text(MAIN_SCRIPT.format(guard=True))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert 'must start workers under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    script.write_text(MAIN_SCRIPT.format(guard='__name__ == "__main__"'))
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


AS_TYPED = """
import json, sys
from neurofmx_wds.cli.main import main
status = main()
sys.stderr.write(json.dumps([status, bool(sys.modules.get("torch"))]))
"""


def run_command(*arguments: object) -> list[Any]:
    """Exit status of a command in a process of its own, and whether that process has imported torch."""
    command = [sys.executable, "-c", AS_TYPED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stderr.splitlines()[-1])


def test_commands_do_without_torch_and_write_the_same_bytes(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=6, behavior_rate=40.0, lfp_channels=2, trials=3)
    given = ["convert", "-i", tmp_path / "a.nwb", "--sequence-length", 20, "--shard-size", 10]
    assert run_command(*given, "-o", tmp_path / "out", "--workers", 2, "--validate") == [0, False]
    assert run_command("info", tmp_path / "out") == [0, False]
    assert run_command("verify", tmp_path / "out") == [0, False]
    convert([tmp_path / "a.nwb"], Output(tmp_path / "good", shard_size=10), SourceConfig.of(sequence_length=20))
    assert contents(tmp_path / "out") == contents(tmp_path / "good")
