"""Old or new, never half: processes killed at every step, locks, and a second writer."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofmx_wds import WebDatasetWriter
from neurofmx_wds.errors import OutputError
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading.readers import ShardReader
from neurofmx_wds.storage import atomic
from neurofmx_wds.storage.atomic import StagedDirectory, write_atomic


def in_child(work: Callable[[], Any]) -> int:
    """Start `work` in a forked process; its process id. It exits with 0, or 1 when `work` raises."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_dataset(directory: Path, seed: int, overwrite: bool = False) -> None:
    rng = np.random.default_rng(seed)
    with WebDatasetWriter(directory, shard_size=3, overwrite=overwrite) as writer:
        for i in range(8):
            writer.write_sample({"x": rng.normal(size=(20, 5)), "seed": seed}, metadata={"i": i})


def content(directory: Path) -> dict[str, bytes] | None:
    """Every file, or None where there is no such directory."""
    if not directory.exists():
        return None
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes] | None, dict[str, bytes] | None]:
    """What datasets 1 and 2 look like."""
    root = tmp_path_factory.mktemp("truth")
    for seed in (1, 2):
        write_dataset(root / str(seed), seed)
    return content(root / "1"), content(root / "2")


# --- killed ----------------------------------------------------------------------------------------------------------

SYSTEM_CALLS = ["mkdir", "open", "replace", "rename", "fsync", "unlink", "rmdir", "close"]


def die_at(step: int) -> None:
    """Let this process be killed at its `step`-th system call that touches directories or the disk."""
    lock = threading.Lock()
    left = [step]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            with lock:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counting

    for name in SYSTEM_CALLS:
        setattr(os, name, counted(getattr(os, name)))
    atomic._exchange = counted(atomic._exchange)


def write_and_die(step: int, directory: Path, overwrite: bool) -> None:
    die_at(step)
    write_dataset(directory, 2, overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_every_step(
    tmp_path: Path, truths: tuple[Any, Any], overwrite: bool, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old or new at every step, and running again finishes it and leaves nothing behind.

    Where the file system cannot exchange directories, there is one step at which the old dataset has another name; the
    next run puts it back.
    """
    if not exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    old, new = (truths[0] if overwrite else None), truths[1]
    step, status = 0, -1
    gaps = 0
    while status != 0:
        root = tmp_path / str(step)
        root.mkdir()
        if overwrite:
            write_dataset(root / "d", 1)
        status = ended(in_child(functools.partial(write_and_die, step, root / "d", overwrite)))
        assert status in (0, -signal.SIGKILL)
        seen = content(root / "d")
        if seen is None and overwrite and not exchange:
            gaps += 1
            with pytest.raises(OutputError):
                WebDatasetWriter(root / "d")  # it is there again, so it may not be overwritten
            seen = content(root / "d")
        assert seen in (old, new)
        if seen is not None:
            assert len(ShardReader(open_shards(root / "d")).read_samples(np.arange(8))) == 8
        write_dataset(root / "d", 2, overwrite=True)
        assert content(root / "d") == new
        assert os.listdir(root) == ["d"]
        shutil.rmtree(root)
        step += 1
    assert step > 20
    assert gaps == (1 if overwrite and not exchange else 0)


def kill_at_random_times(tmp_path: Path, truths: tuple[Any, Any], rounds: int) -> tuple[int, int]:
    begin = time.perf_counter()
    assert ended(in_child(lambda: write_dataset(tmp_path / "d", 1))) == 0
    needed = time.perf_counter() - begin
    chance = random.Random(0)
    seen_old = 0
    for i in range(rounds):
        child = in_child(lambda seed=i % 2 + 1: write_dataset(tmp_path / "d", seed, overwrite=True))
        time.sleep(chance.uniform(0, 1.2 * needed))
        os.kill(child, signal.SIGKILL)
        before = truths[(i + 1) % 2]
        ended(child)
        found = content(tmp_path / "d")
        assert found in truths
        seen_old += found == before
        assert len(open_shards(tmp_path / "d").paths) == 3
        write_dataset(tmp_path / "d", i % 2 + 1, overwrite=True)
        assert content(tmp_path / "d") == truths[i % 2]
        assert os.listdir(tmp_path) == ["d"]
    return seen_old, rounds - seen_old


def test_killed_at_random_moments(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    kill_at_random_times(tmp_path, truths, 15)


@pytest.mark.slow
def test_killed_at_very_many_random_moments(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    old, new = kill_at_random_times(tmp_path, truths, 400)
    assert old > 20 and new > 20


def test_a_reader_beside_a_writer_sees_old_or_new(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    write_dataset(tmp_path / "d", 1)

    def rewrite() -> None:
        for i in range(20):
            write_dataset(tmp_path / "d", i % 2 + 1, overwrite=True)

    child = in_child(rewrite)
    seen = set()
    try:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            fd = os.open(tmp_path / "d", os.O_RDONLY)  # one directory, whatever is renamed meanwhile
            try:
                path = Path(f"/proc/self/fd/{fd}/dataset_metadata.json")
                try:
                    names = sorted(os.listdir(fd))
                    manifest = path.read_bytes()
                except FileNotFoundError:
                    continue  # just being removed
                which = [truth["dataset_metadata.json"] for truth in truths].index(manifest)
                if len(names) == len(truths[which]):
                    seen.add(which)
            finally:
                os.close(fd)
            samples = open_shards(tmp_path / "d").n_samples
            assert samples == 8
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    assert seen <= {0, 1} and seen


# --- locks -----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = WebDatasetWriter(tmp_path / "d")
    first.write_sample({"x": 1})

    def second() -> None:
        with pytest.raises(OutputError, match="another run") as caught:
            WebDatasetWriter(tmp_path / "d", overwrite=True)
        assert caught.value.file == str(tmp_path / "d") and caught.value.remedy

    second()
    assert ended(in_child(second)) == 0
    first.finalize()
    with pytest.raises(OutputError, match="not empty"):
        WebDatasetWriter(tmp_path / "d")
    assert os.listdir(tmp_path) == ["d"]


def test_the_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    ready, told = os.pipe()

    def hold() -> None:
        writer = WebDatasetWriter(tmp_path / "d", shard_size=1)
        writer.write_sample({"x": 1})
        os.write(told, b"x")
        time.sleep(60)

    child = in_child(hold)
    os.read(ready, 1)
    with pytest.raises(OutputError, match="another run"):
        WebDatasetWriter(tmp_path / "d")
    os.kill(child, signal.SIGKILL)
    ended(child)
    write_dataset(tmp_path / "d", 1)
    assert os.listdir(tmp_path) == ["d"]


def test_only_one_of_many_writers_wins(tmp_path: Path) -> None:
    children = [in_child(lambda: write_dataset(tmp_path / "d", 1)) for _ in range(6)]
    assert [ended(child) for child in children].count(0) == 1
    assert len(open_shards(tmp_path / "d").paths) == 3
    assert os.listdir(tmp_path) == ["d"]


def test_many_writers_that_overwrite_leave_one_whole_dataset(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    def insist(seed: int) -> None:
        for _ in range(5):
            try:
                write_dataset(tmp_path / "d", seed, overwrite=True)
            except OutputError as error:
                assert "another run" in str(error)

    children = [in_child(lambda seed=seed: insist(seed)) for seed in (1, 2, 1, 2)]
    assert [ended(child) for child in children] == [0, 0, 0, 0]
    assert content(tmp_path / "d") in truths
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("way", ["exit", "raise", "abort", "collect"])
def test_a_forked_child_leaves_its_parents_work_alone(tmp_path: Path, way: str, truths: tuple[Any, Any]) -> None:
    rng = np.random.default_rng(1)
    with WebDatasetWriter(tmp_path / "d", shard_size=3) as writer:
        for i in range(8):
            if i == 4:
                child = os.fork()
                if child == 0:
                    try:
                        if way == "raise":
                            writer.__exit__(ValueError, ValueError(), None)
                        elif way == "abort":
                            writer.abort()
                        elif way == "collect":
                            writer._forget()
                        elif way == "exit":
                            writer._staged.release()
                    finally:
                        os._exit(0)
                ended(child)
                with pytest.raises(OutputError, match="another run"):
                    StagedDirectory(tmp_path / "d")
            writer.write_sample({"x": rng.normal(size=(20, 5)), "seed": 1}, metadata={"i": i})
    assert content(tmp_path / "d") == truths[0]


def test_a_lasting_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    writer = WebDatasetWriter(tmp_path / "d")
    child = in_child(lambda: time.sleep(60))
    try:
        writer.write_sample({"x": 1})
        writer.finalize()
        write_dataset(tmp_path / "d", 1, overwrite=True)
    finally:
        os.kill(child, signal.SIGKILL)
        ended(child)


# --- places ----------------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    longest = tmp_path / ("d" * 250)
    for place in (tmp_path / "file", tmp_path / "file" / "d", Path("/proc/d"), Path("/proc"), Path("/"), longest):
        with pytest.raises(OutputError) as caught:
            WebDatasetWriter(place, overwrite=True)
        assert caught.value.file and caught.value.remedy
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="run as an ordinary user: root may write everywhere")
def test_a_read_only_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission") as caught:
        WebDatasetWriter(tmp_path / "p" / "d")
    assert caught.value.remedy


def test_a_parent_that_turns_read_only_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refuse)
        with pytest.raises(OutputError, match="Permission denied"):
            WebDatasetWriter(tmp_path / "d")
    staged = StagedDirectory(tmp_path / "d")
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(OutputError, match="Permission denied") as caught:
            staged.commit()
        assert caught.value.remedy
    staged.discard()
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_directory_keeps_its_name(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    (tmp_path / "big disk").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "big disk" / "d")
    for i, seed in enumerate((1, 2)):
        write_dataset(tmp_path / "d", seed, overwrite=bool(i))
        assert (tmp_path / "d").is_symlink()
        assert content(tmp_path / "big disk" / "d") == truths[i]
    assert os.listdir(tmp_path / "big disk") == ["d"]


def test_missing_parents_are_made_and_relative_paths_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    writer = WebDatasetWriter("a/b/d")
    monkeypatch.chdir("/")
    writer.write_sample({"x": 1})
    writer.finalize()
    assert (tmp_path / "a" / "b" / "d" / "shard_000000.tar").exists()


def test_what_an_earlier_run_left_is_cleared(tmp_path: Path, truths: tuple[Any, Any]) -> None:
    left = tmp_path / ".d.partial"
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "x").touch()
    (left / "link").symlink_to("/nowhere")
    (left / "shard_000009.tar").touch()
    write_dataset(tmp_path / "d", 1)
    assert content(tmp_path / "d") == truths[0]
    assert os.listdir(tmp_path) == ["d"]


# --- single files ----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="space"):
                write_atomic(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a"]


def test_a_file_that_many_write_at_once_is_always_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = [bytes([i]) * (1000 * i) for i in range(1, 6)]
    write_atomic(path, contents[0])

    def insist(data: bytes) -> None:
        for _ in range(40):
            write_atomic(path, data)

    children = [in_child(functools.partial(insist, data)) for data in contents]
    for _ in range(200):
        assert path.read_bytes() in contents
    assert [ended(child) for child in children] == [0] * 5
    assert path.read_bytes() in contents and os.listdir(tmp_path) == ["a"]
