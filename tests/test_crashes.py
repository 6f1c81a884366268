"""Processes killed with SIGKILL at random moments: old or new, never half; run again, the same bytes; no litter.

Each job is a real process. A few kills of each by default; hundreds with -m slow. What `test_atomic.py` and
`test_convert.py` kill at every system call is not repeated here.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import make_npz
from loading import write_dataset
from test_atomic import content, ended, in_child

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetWriter
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.repair import repair
from neurofmx_wds.convert.run import convert
from neurofmx_wds.errors import NeurofmxError, OutputError
from neurofmx_wds.format.export import export
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.format.verify import verify


@dataclass(frozen=True)
class Job:
    """What is killed.

    Attributes:
        prepare: makes what is there before, in a directory.
        run: the job, in that directory; it must be repeatable.
        seen: what a reader sees there.
    """

    prepare: Callable[[Path], Any]
    run: Callable[[Path], Any]
    seen: Callable[[Path], Any] = lambda root: content(root / "out")


def inputs(root: Path) -> list[Path]:
    paths = [root / f"{name}.npz" for name in "abc"]
    for seed, path in enumerate(paths):
        if not path.exists():
            make_npz(path, 40, seed)
    return paths


def shards(root: Path) -> list[Path]:
    return [write_dataset(root / name, (20, 20)) for name in ("first", "second")]


def write(root: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with WebDatasetWriter(root / "out", shard_size=5, overwrite=True) as writer:
        for _ in range(40):
            writer.write_sample({"x": rng.normal(size=(50, 40))})


def finalize_late(root: Path) -> None:
    """Most of the time is spent in finalize."""
    writer = WebDatasetWriter(root / "out", shard_size=1, overwrite=True)
    for i in range(60):
        writer.write_sample({"x": np.full(4, i)})
    writer.finalize()


def converted(root: Path, workers: int = 1) -> None:
    convert(inputs(root), Output(root / "out", shard_size=7, overwrite=True), workers=Workers(workers))


def damage(root: Path) -> None:
    converted(root)
    for k in (1, 4, 9):
        path = root / "out" / f"shard_{k:06d}.tar"
        path.write_bytes(path.read_bytes()[:-700] if k > 1 else b"")


def members(root: Path) -> Any:
    """Which samples there are; their indexes may be there or not."""
    return [record.n_samples for record in open_shards(root / "out").records]


def checkpoint(root: Path) -> None:
    """Checkpoints after every sample, to the epoch's end."""
    (root / "at.json").unlink(missing_ok=True)
    for _ in ResumableWebDatasetLoader(root / "first", root / "at.json", 1, shuffle=False, seed=1):
        pass


def place(root: Path) -> Any:
    """Any place in the epoch is a valid state."""
    if (root / "at.json").exists():
        state = json.loads((root / "at.json").read_bytes())
        loader = ResumableWebDatasetLoader(root / "first", root / "at.json", shuffle=False, seed=1)
        assert loader.state_dict() == state
    return None


def without(suffix: str, root: Path) -> None:
    for path in write_dataset(root / "out", (10,) * 6).glob(f"*{suffix}"):
        path.unlink()


JOBS = {
    "writer": Job(lambda root: write(root, 1), lambda root: write(root, 2)),
    "finalize": Job(lambda root: write(root, 1), finalize_late),
    "converter": Job(inputs, converted),
    "append": Job(
        lambda root: convert(inputs(root)[:1], Output(root / "out", shard_size=7)),
        lambda root: append(inputs(root), Output(root / "out", shard_size=7)),
        lambda root: json.loads((root / "out" / "dataset_metadata.json").read_bytes()),
    ),
    "merge": Job(
        lambda root: [write(root, 1), *shards(root)],
        lambda root: merge([root / "first", root / "second"], root / "out", repeat_keys=True, overwrite=True),
    ),
    "checkpoint": Job(shards, checkpoint, place),
    "indexes": Job(
        lambda root: without(".index", root), lambda root: write_indexes(root / "out", repair=True), members
    ),
    "export": Job(lambda root: write_dataset(root / "out", (10,) * 6), lambda root: export(root / "out"), members),
    "repair": Job(
        damage,
        lambda root: repair(inputs(root), Output(root / "out", shard_size=7)),
        lambda root: json.loads((root / "out" / "dataset_metadata.json").read_bytes()),
    ),
}


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def kill_again_and_again(name: str, root: Path, rounds: int) -> int:
    """How often a kill met the job at work, in so many rounds or a few more until one did."""
    job = JOBS[name]
    (root / "before").mkdir(parents=True)
    job.prepare(root / "before")
    shutil.copytree(root / "before", root / "after")
    begin = time.perf_counter()
    assert ended(in_child(functools.partial(job.run, root / "after"))) == 0
    needed = time.perf_counter() - begin
    allowed = [job.seen(root / "before"), job.seen(root / "after")]
    truth = tree(root / "after")
    chance, met = random.Random(name), 0
    for i in range(5 * rounds):
        if i >= rounds and met:
            break
        work = root / f"{i}"
        shutil.copytree(root / "before", work)
        for _ in range(1 + i % 2):  # also one that finishes what a killed one began
            child = in_child(functools.partial(job.run, work))
            time.sleep(chance.uniform(0, 1.1 * needed))
            os.kill(child, signal.SIGKILL)
            killed = ended(child) == -signal.SIGKILL
            met, needed = met + killed, needed if killed else 0.9 * needed  # the first run may have been slow
            assert job.seen(work) in allowed
        job.run(work)
        assert tree(work) == truth
        shutil.rmtree(work)
    return met


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_moments(name: str, tmp_path: Path) -> None:
    assert kill_again_and_again(name, tmp_path / "k", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_hundreds_of_times(name: str, tmp_path: Path) -> None:
    assert kill_again_and_again(name, tmp_path / "k", 100) > 50


# --- no room, no permission ------------------------------------------------------------------------------------------


def limited(work: Callable[[], Any], size: int) -> None:
    """Run `work` where no file may grow beyond `size` bytes; it must fail with a clear error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        work()
    except (NeurofmxError, OSError) as error:
        told = str(error)
        assert isinstance(error, OutputError) or error.errno == errno.EFBIG, error
        assert os.strerror(errno.EFBIG) in told, told
    else:
        raise AssertionError("should have failed")


@pytest.mark.parametrize("name", ["writer", "converter", "append", "merge", "checkpoint", "export", "repair"])
def test_a_full_disk_is_a_clear_error_and_the_old_data_stay(name: str, tmp_path: Path) -> None:
    job = JOBS[name]
    job.prepare(tmp_path)
    if name == "merge":  # which links shards: only their indexes and the manifest grow
        inputs(tmp_path)
    before = job.seen(tmp_path)
    size = {"checkpoint": 100, "export": 100, "merge": 500}.get(name, 9000)
    child = in_child(lambda: limited(lambda: job.run(tmp_path), size))
    assert ended(child) == 0
    assert job.seen(tmp_path) == before
    job.run(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def as_nobody(work: Callable[[], Any]) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    with pytest.raises((OutputError, PermissionError), match="Permission denied") as caught:
        work()
    assert str(caught.value).count("/")  # it names the place


@pytest.mark.parametrize("name", ["writer", "append", "merge", "export", "repair"])
def test_no_permission_is_a_clear_error_and_the_old_data_stay(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = Path("/tmp") if os.geteuid() == 0 else tmp_path_factory.mktemp("p")
    root = base / f"neurofmx-permission-{os.getpid()}-{name}"
    root.mkdir(mode=0o755)
    try:
        job = JOBS[name]
        job.prepare(root)
        before = tree(root)
        for path in (root, *root.iterdir()):
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert ended(in_child(lambda: as_nobody(lambda: job.run(root)))) == 0
        root.chmod(0o755)
        assert tree(root) == before
    finally:
        for path in (root, *root.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.rmtree(root)


# --- two at once -----------------------------------------------------------------------------------------------------


def test_a_second_converter_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    inputs(tmp_path)
    ready, told = os.pipe()

    def hold() -> None:
        from neurofmx_wds.convert import run

        write_shard = run.write_shard

        def slowly(directory: Path, shard: Any) -> str:
            name = write_shard(directory, shard)
            os.write(told, b"x")
            time.sleep(60)
            return name

        run.write_shard = slowly  # type: ignore[assignment]
        converted(tmp_path)

    child = in_child(hold)
    os.read(ready, 1)
    for second in (converted, lambda root: write(root, 1)):
        with pytest.raises(OutputError, match="another run"):
            second(tmp_path)
    os.kill(child, signal.SIGKILL)
    ended(child)
    converted(tmp_path)
    assert verify(tmp_path / "out", deep=True).ok
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz", "c.npz", "out"]
