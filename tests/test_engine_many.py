"""Many machines: job arrays whose tasks share an output, dask workers that are lost, runs begun with other settings."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conversions import contents, kill_at_step, make_npz
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import make_recording

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert import look, run, shards
from neurofmx_wds.convert.config import Output, ShardConfig, Task, Workers
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.place import staging
from neurofmx_wds.convert.plan import ConversionPlan
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import OutputError, SourceError

TEMPLATE = Path(__file__).parents[1] / "tools" / "convert_array.slurm"


class Interrupted(BaseException):
    """Stops a run in the middle."""


def interrupt_after(n: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the n-th next shard fail as Ctrl-C would; the names of those made before."""
    made: list[str] = []
    make = run.write_shard

    def write(directory: Path, shard: Any) -> str:
        if len(made) == n:
            raise Interrupted
        made.append(shard.name)
        return make(directory, shard)

    patch.setattr(run, "write_shard", write)
    return made


# --- job arrays -----------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    tasks=st.integers(1, 12), order=st.randoms(use_true_random=False), size=st.integers(1, 30), at_once=st.booleans()
)
def test_the_tasks_make_what_one_run_makes(
    tasks: int, order: Any, size: int, at_once: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("tasks")
    paths = [directory / "a.npz", directory / "b.npz", directory / "missing.npz", directory / "c.npz"]
    for i, n in ((0, 9), (1, 2), (3, 8)):
        make_npz(paths[i], n, i)
    numbers = list(range(tasks))
    order.shuffle(numbers)

    def share(task: int) -> None:
        plan = write_share(paths, Output(directory / "out", shard_size=size), Task(task, tasks))
        assert len(plan.failures) == 1

    if at_once:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(share, numbers))
    else:
        for task in numbers:
            share(task)
    assert not (directory / "out").exists()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(0, patch)  # there is none left to make
        patch.setattr(look, "plan_source", lambda path, *_: SourceError("looked at again", file=path))
        convert(paths[:2] + paths[3:], Output(directory / "out", shard_size=size))
    convert(paths[:2] + paths[3:], Output(directory / "good", shard_size=size))
    assert contents(directory / "out") == contents(directory / "good")
    assert not (directory / ".out.partial").exists()


def test_what_a_lost_task_left_undone_is_done_when_joined(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made = interrupt_after(1, patch)
        with pytest.raises(Interrupted):
            write_share(inputs, Output(tmp_path / "out", shard_size=2), Task(1, 3))
    write_share(inputs, Output(tmp_path / "out", shard_size=2), Task(2, 3))
    with pytest.MonkeyPatch.context() as patch:
        rest = interrupt_after(100, patch)
        convert(inputs, Output(tmp_path / "out", shard_size=2))
    assert made == ["shard_000003.tar"]
    assert rest == [f"shard_{k:06d}.tar" for k in (0, 1, 2, 4, 5)]
    convert(inputs, Output(tmp_path / "good", shard_size=2))
    assert contents(tmp_path / "out") == contents(tmp_path / "good")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_task_killed_at_any_step_is_made_good(inputs: list[Path], tmp_path: Path) -> None:
    convert(inputs, Output(tmp_path / "good", shard_size=4))

    def task() -> None:
        write_share(inputs, Output(tmp_path / "out", shard_size=4), Task(0, 2))

    for n in itertools.count(0, 9):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        status = kill_at_step(n, task)
        assert status in (0, 9)
        write_share(inputs, Output(tmp_path / "out", shard_size=4), Task(1, 2))
        convert(inputs, Output(tmp_path / "out", shard_size=4))
        assert contents(tmp_path / "out") == contents(tmp_path / "good")
        if status == 0:
            break
    assert n > 60


def test_tasks_and_other_runs_keep_off_each_other(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staging(Output(out), shared=True):
        write_share(inputs, Output(out), Task(0, 2))
        with pytest.raises(OutputError, match="another run is writing"):
            convert(inputs, Output(out))
    with staging(Output(out)), pytest.raises(OutputError, match="not a task"):
        write_share(inputs, Output(out), Task(0, 2))
    with pytest.raises(ValueError, match="task=2"):
        write_share(inputs, Output(out), Task(2, 2))
    with pytest.raises(SourceError, match="nothing was converted"):
        write_share([tmp_path / "x.npz", tmp_path / "y.npz"], Output(tmp_path / "other"), Task(0, 2))


@pytest.mark.slow
def test_the_template_submits_tasks_and_a_job_that_joins(inputs: list[Path], tmp_path: Path) -> None:
    """With a stand-in for SLURM: `sbatch` runs each task at once, then what depends on them."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(
        "#!/usr/bin/env bash\n"
        "for argument; do [[ $last == --array ]] && array=$argument; last=$argument; done; job=${@: -1}\n"
        f'echo "$*" >>{tmp_path}/jobs\n'
        'for i in $(seq ${array%-*} ${array#*-}); do SLURM_ARRAY_TASK_ID=$i bash -c "$job" >&2 || exit; done\n'
        '[[ -n ${array:-} ]] || bash -c "$job" >&2\n'
        "echo 17\n"
    )
    fake.chmod(0o755)
    out = tmp_path / "a place" / "out"
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "PYTHON": sys.executable}
    command = ["bash", str(TEMPLATE), str(out), "2", "-i", *map(str, inputs), "--shard-size", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = (tmp_path / "jobs").read_text().splitlines()
    assert "--array 0-1" in jobs[0] and "--dependency afterany:17" in jobs[1]
    convert(inputs, Output(tmp_path / "good", shard_size=4))
    assert contents(out) == contents(tmp_path / "good")


def test_a_cluster_that_is_lost_is_an_output_error(inputs: list[Path], tmp_path: Path) -> None:
    class KilledWorker(Exception):
        """As dask's, when it gives a piece of work up."""

    KilledWorker.__module__ = "distributed.scheduler"

    class Lost(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
            def work() -> Any:
                if arguments[0].__class__.__name__ == "ShardPlan":
                    raise KilledWorker
                return function(*arguments)

            return super().submit(work)

    with Lost(2) as pool, pytest.raises(OutputError, match=r"a worker process died while shard_000000\.tar"):
        convert(inputs, Output(tmp_path / "out"), workers=Workers(executor=pool))


# --- other settings, other files ------------------------------------------------------------------------------------


def test_an_unfinished_run_is_not_taken_over_by_another(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(Interrupted):
            convert(inputs, Output(out, shard_size=4))
    state = contents_of_staging(tmp_path)
    with pytest.raises(OutputError, match=r"shard_size was 4 and is 5 now.*--overwrite"):
        convert(inputs, Output(out, shard_size=5))
    make_npz(inputs[2], 12, seed=7)
    with pytest.raises(OutputError, match=r"c\.npz has changed"):
        convert(inputs, Output(out, shard_size=4))
    assert contents_of_staging(tmp_path) == state
    convert(inputs, Output(out, shard_size=5, overwrite=True))
    convert(inputs, Output(tmp_path / "good", shard_size=5))
    assert contents(out) == contents(tmp_path / "good")


def test_files_that_are_out_of_reach_for_a_while_cost_no_finished_shard(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(Interrupted):
            convert(inputs, Output(tmp_path / "out", shard_size=4))
    state = contents_of_staging(tmp_path)
    for path in inputs:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(SourceError, match="nothing was converted"):
        convert(inputs, Output(tmp_path / "out", shard_size=4))
    assert contents_of_staging(tmp_path) == state
    for path in inputs:
        path.with_suffix(".away").rename(path)
    with pytest.MonkeyPatch.context() as patch:
        made = interrupt_after(100, patch)
        convert(inputs, Output(tmp_path / "out", shard_size=4))
    assert len(made) == 3


def contents_of_staging(tmp_path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (tmp_path / ".out.partial").rglob("*") if p.is_file()}


# --- dask -----------------------------------------------------------------------------------------------------------


def test_a_dask_cluster_that_loses_a_worker_makes_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    make_recording(tmp_path / "a.nwb", seconds=8, lfp_channels=2)
    make_npz(tmp_path / "b.npz", 240, packed=True, width=300)
    paths, out = [tmp_path / "a.nwb", tmp_path / "b.npz"], tmp_path / "out"
    storage: dict[str, Any] = {"shard_size": 20, "compression": "xz"}
    config = SourceConfig.of(sequence_length=20)
    quiet = {"dashboard_address": None, "silence_logs": 50, "threads_per_worker": 1}
    with distributed.LocalCluster(n_workers=2, processes=True, **quiet) as cluster:
        with distributed.Client(cluster) as client:
            pids = list(client.run(os.getpid).values())

        def lose_one() -> None:
            while len(list((tmp_path / ".out.partial").glob("*.tar.xz"))) < 3:
                time.sleep(0.01)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(len(list((tmp_path / ".out.partial").glob("*.tar.xz"))))

        killed: list[int] = []
        losing = threading.Thread(target=lose_one, daemon=True)
        losing.start()
        arguments = ["--dask", cluster.scheduler_address, "--shard-size", "20", "--compression", "xz"]
        arguments += ["--sequence-length", "20"]
        assert main(["convert", "-i", *map(str, paths), "-o", str(out), *arguments]) == 0
        losing.join(10)
    assert killed and killed[0] < len(list(out.glob("*.tar.xz")))
    convert(paths, Output(tmp_path / "good", **storage), config)
    assert contents(out) == contents(tmp_path / "good")


def test_a_dask_cluster_that_cannot_be_reached_is_named(
    inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["convert", "-i", *map(str, inputs), "-o", str(tmp_path / "out"), "--dask"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        assert main([*command, "tcp://127.0.0.1:9"]) == 1
    assert "neurofmx-wds[dask]" in capsys.readouterr().err
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    with dask.config.set({"distributed.comm.timeouts.connect": "300ms"}):
        assert main([*command, "tcp://127.0.0.1:9"]) == 1
    assert "no dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_shard_may_be_made_twice_at_once(inputs: list[Path], tmp_path: Path) -> None:
    """A worker that was given up for lost may go on, and its work is done by another one meanwhile."""
    plan = ConversionPlan(look_at(inputs, SourceConfig()), SourceConfig(), ShardConfig(shard_size=5))
    [_, shard, *_] = plan.shards()
    run.write_shard(tmp_path, shard)
    true = (tmp_path / shard.name).read_bytes()
    arrived, reading, seen = threading.Semaphore(0), threading.Event(), []
    fill = shards._fill

    def slow(file: Any, shard: Any) -> None:
        arrived.release()
        reading.wait(10)
        fill(file, shard)

    with ThreadPoolExecutor(3) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_fill", slow)
        late = [pool.submit(run.write_shard, tmp_path, shard) for _ in range(2)]
        assert all(arrived.acquire(timeout=10) for _ in late)
        patch.setattr(shards, "_fill", fill)
        pool.submit(run.write_shard, tmp_path, shard).result()
        reading.set()
        while not all(job.done() for job in late):
            seen.append((tmp_path / shard.name).read_bytes() == true)
        assert [job.result() for job in late] == [shard.name] * 2
    assert all(seen) and (tmp_path / shard.name).read_bytes() == true
    assert sorted(p.name for p in tmp_path.glob("*shard*")) == ["shard_000001.index", "shard_000001.tar"]
