"""Laws 3 to 5 with real processes: torchrun with gloo, processes killed in mid-epoch, all in bounded time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from loading import key_of, write_dataset

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetLoader, create_webdataset_dataloader

JOB = """
import json, os, signal, sys
import torch, torch.distributed as dist
from neurofmx_wds import create_webdataset_dataloader

directory, out, name, batch_size, num_workers, die_at = sys.argv[1:4] + [int(word) for word in sys.argv[4:]]
dist.init_process_group("gloo")
rank = dist.get_rank()
loader = create_webdataset_dataloader(directory, batch_size=batch_size, num_workers=num_workers, buffer_size=50)
checkpoint = os.path.join(out, "checkpoint.json")
if os.path.exists(checkpoint):
    loader.load_state_dict(json.load(open(checkpoint)))
dist.barrier()
with open(os.path.join(out, f"{name}.{rank}"), "w") as log:
    for step, batch in enumerate(loader, 1):
        dist.all_reduce(total := torch.tensor([len(batch["__key__"])]))
        fresh = batch.get("__mask__", torch.ones(len(batch["__key__"]), dtype=torch.bool)).tolist()
        log.write(json.dumps([key for key, new in zip(batch["__key__"], fresh) if new]) + "\\n")
        log.flush()
        if rank == 0 and step % 3 == 0:
            with open(checkpoint + ".new", "w") as aside:
                json.dump(loader.state_dict(), aside)
            os.replace(checkpoint + ".new", checkpoint)
        if step == die_at and rank == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(steps := torch.tensor([step]))
    assert steps.item() == step * dist.get_world_size()
    log.write("[]\\n")
dist.destroy_process_group()
os._exit(0)  # torch with gloo aborts once in a while when the interpreter is taken down
"""


def torchrun(job: list[str], n_ranks: int, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, or fail when it takes too long; nothing of it outlives this call."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}", *job]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output)


def logged(out: Path, name: str, n_ranks: int) -> list[list[list[str]]]:
    """What each rank saw in each step."""
    return [[json.loads(line) for line in (out / f"{name}.{rank}").read_text().splitlines()] for rank in range(n_ranks)]


def flat(steps: Any) -> list[str]:
    return [key for step in steps for keys in step for key in keys]


@pytest.mark.parametrize(
    "chain",
    [
        [(2, 3, 0, 5), (3, 2, 1, 0)],
        pytest.param([(3, 2, 2, 4), (2, 5, 0, 4), (1, 3, 3, 0)], marks=pytest.mark.slow),
        pytest.param([(1, 2, 2, 7), (3, 4, 0, 3), (2, 1, 1, 0)], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_job_killed_and_resumed_with_other_ranks(tmp_path: Path, chain: list[tuple[int, int, int, int]]) -> None:
    """chain: ranks, batch size, workers, and the step in which one rank is killed (0: none)."""
    directory = write_dataset(tmp_path / "shards", (17, 40, 3, 44))
    reference = [s["__key__"] for s in WebDatasetLoader(directory, buffer_size=50, rank=0, world_size=1)]
    assert sorted(reference) == [key_of(i) for i in range(104)]
    (tmp_path / "job.py").write_text(JOB)
    seen: list[str] = []
    for run, (n_ranks, batch_size, num_workers, die_at) in enumerate(chain):
        arguments = [str(directory), str(tmp_path), f"run{run}", *map(str, (batch_size, num_workers, die_at))]
        done = torchrun([str(tmp_path / "job.py"), *arguments], n_ranks)
        assert (done.returncode != 0) == bool(die_at), done.stdout
        logs = logged(tmp_path, f"run{run}", n_ranks)
        if die_at:
            seen += flat(zip(*logs, strict=False))
            seen = seen[: json.loads((tmp_path / "checkpoint.json").read_text())["position"]]
            assert seen == reference[: len(seen)] and 0 < len(seen) < len(reference)
        else:
            assert len({len(log) for log in logs}) == 1 and all(log[-1] == [] for log in logs)
            assert seen + flat(zip(*logs, strict=True)) == reference


def run_rank(rank: int, n_ranks: int, directory: Path, made_before: Any, out: Path) -> None:
    """One rank of a job with nothing in its environment, with spawned workers."""
    assert "RANK" not in os.environ
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=n_ranks)
    torch.set_num_threads(1)
    loader = create_webdataset_dataloader(directory, 4, num_workers=1, multiprocessing_context="spawn")
    foreign = torch.utils.data.DataLoader(
        WebDatasetLoader(directory), batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    found = {
        "batches": [batch["__key__"] for batch in loader],
        "samples": [[sample["__key__"]] for sample in foreign if sample.get("__mask__", True)],
        "made before": [batch["__key__"] for batch in made_before],
    }
    dist.all_reduce(torch.zeros(1))
    (out / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_ranks_without_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    directory = write_dataset(tmp_path / "shards", (5, 5, 5))
    made_before = create_webdataset_dataloader(directory, 4, num_workers=0)
    context = torch.multiprocessing.spawn(run_rank, (2, directory, made_before, tmp_path), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the job hangs")
    reference = [sample["__key__"] for sample in WebDatasetLoader(directory)]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert flat(zip(*(each["batches"] for each in found), strict=True)) == reference
    assert flat(zip(*(each["made before"] for each in found), strict=True)) == reference
    assert sorted(flat(each["samples"] for each in found)) == sorted(reference)


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_at_any_moment_it_repeats_no_more_than_an_interval(tmp_path: Path, rank: int) -> None:
    """ResumableWebDatasetLoader under SIGKILL; rank 1 goes on from what rank 0 wrote, and writes nothing itself."""
    directory = write_dataset(tmp_path / "shards", (100,) * 4)
    checkpoint, interval = tmp_path / "checkpoint.json", 7

    def opened() -> ResumableWebDatasetLoader:
        return ResumableWebDatasetLoader(directory, checkpoint, interval, rank=rank, world_size=1 + rank)

    reference = [sample["__key__"] for sample in WebDatasetLoader(directory, rank=rank, world_size=1 + rank)]
    luck, at, runs = random.Random(5), 0, 0
    while at < len(reference) and runs < 60:
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            for sample in opened():
                os.write(write, sample["__key__"].encode() + b"\n")
                time.sleep(0.0005)
            os._exit(0)
        os.close(write)
        time.sleep(luck.uniform(0.001, 0.1 + 0.02 * runs))  # on a busy machine it takes longer to get anywhere
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(read) as log:
            seen = log.read().splitlines()
        runs += 1
        if rank:
            assert seen == reference[: len(seen)] and not checkpoint.exists()
            at = max(at, len(seen))
            if runs == 5:
                return
        elif seen:
            first = reference.index(seen[0])
            assert at - interval <= first <= at
            assert seen == reference[first : first + len(seen)]
            at = first + len(seen)
        state = json.loads(checkpoint.read_text()) if checkpoint.exists() else None
        assert state is None or state["epoch"] == 1 or at - interval <= state["position"] <= at
    assert at == len(reference) and runs > 3
