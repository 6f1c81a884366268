"""Open files: all readers of a process share what it may open, leave room, and lose no sample over it."""

from __future__ import annotations

import errno
import gc
import os
import resource
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading import open_shard, shard_pool
from neurofmx_wds.loading.memory import BatchMemory
from neurofmx_wds.loading.readers import ShardReader

N, LIMIT = 300, 400  # shards, and files that a process may open
BOTH = pytest.mark.parametrize("io", ["mmap", "pread"])


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one sample."""
    singles = tmp_path_factory.mktemp("data") / "d"
    create_shards_from_arrays(singles, {"x": np.arange(2.0 * N).reshape(N, 2)}, shard_size=1)
    return singles


@pytest.fixture(autouse=True)
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    gc.collect()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def n_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def loader(singles: Path, **options: Any) -> Any:
    return create_webdataset_dataloader(singles, **{"num_workers": 0, "batch_size": 16, **options})


def found(batches: Any) -> list[float]:
    return sorted(float(x) for batch in batches for x in batch["x"][:, 0])


WHOLE = [2.0 * i for i in range(N)]


def test_half_of_the_files_are_left_to_others(directory: Path) -> None:
    assert shard_pool.max_open_shards() == LIMIT // 2
    assert ShardReader(open_shards(directory))._pool.n_at_once == LIMIT // 4
    assert ShardReader(open_shards(directory), max_open=3)._pool.n_at_once == 3


@BOTH
def test_loaders_of_one_process_share_its_files(singles: Path, io: str) -> None:
    before = n_files()
    loaders = [loader(singles, io=io, handler=wds.ignore_and_continue) for _ in range(3)]
    for each in loaders * 2:
        assert found(each) == WHOLE and each.skipped == 0
        assert n_files() - before <= LIMIT // 2 + 4


@BOTH
def test_a_batch_of_more_shards_than_may_be_open(singles: Path, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, most = n_files(), 0
    opened = open_shard.OpenShard

    def counted(*args: Any) -> Any:
        nonlocal most
        shard = opened(*args)
        most = max(most, n_files() - before)
        return shard

    monkeypatch.setattr(open_shard, "OpenShard", counted)
    batches = loader(singles, io=io, batch_size=290, shuffle="full")
    for _ in range(2):
        first, last = batches
        assert first["x"].shape == (290, 2) and found([first, last]) == WHOLE
        assert [f"sample_{i:09d}" for i in (first["x"][:, 0] / 2).int().tolist()] == first["__key__"]
    assert 0 < most <= LIMIT // 2 + LIMIT // 8


@pytest.mark.parametrize("handler", [wds.reraise_exception, wds.ignore_and_continue])
def test_what_a_worker_inherits_counts(singles: Path, handler: Any) -> None:
    assert found(loader(singles)) == WHOLE
    forked = loader(singles, num_workers=1, handler=handler, multiprocessing_context="fork", timeout=60)
    assert found(forked) == WHOLE and forked.skipped == 0


def taken(n_left: int) -> ExitStack:
    """Files of somebody else, up to so many below the limit."""
    held = ExitStack()
    for _ in range(LIMIT - n_files() - n_left + 1):
        held.enter_context(open(os.devnull))
    return held


@BOTH
def test_shards_make_way_for_others(singles: Path, io: str) -> None:
    """Those of another reader, too."""
    idle, reader = loader(singles, io=io), ShardReader(open_shards(singles), io=io)  # type: ignore[arg-type]
    assert found(idle) == WHOLE
    with taken(0):
        assert reader.read_batch(np.arange(20))["x"][:, 0].tolist() == WHOLE[:20]
        with open(os.devnull):
            pass


@BOTH
def test_no_file_left_is_no_fault_of_a_sample(singles: Path, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_pool, "_pools", weakref.WeakSet())  # nothing of other tests that could be closed
    asked: list[Exception] = []
    batches = loader(singles, io=io, handler=lambda error: asked.append(error) or True)
    gc.collect()
    with taken(0), pytest.raises(OSError, match=r"Too many open files.*ulimit -n.*shard_") as caught:
        found(batches)
    assert caught.value.errno == errno.EMFILE and not asked
    assert found(batches) == WHOLE


def test_files_are_closed_without_a_warning(singles: Path) -> None:
    before = n_files()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ResourceWarning)
        reader = ShardReader(open_shards(singles), io="pread", max_open=3)
        for begin in range(0, N, 2):
            reader.read_batch(np.arange(begin, begin + 2))
        assert n_files() == before + 3
        del reader
        gc.collect()
    assert n_files() == before and not seen


def test_a_fork_leaves_no_lock_behind() -> None:
    done = threading.Event()

    def keep_books() -> None:
        while not done.is_set():
            with shard_pool._bookkeeping:
                time.sleep(1e-3)

    thread = threading.Thread(target=keep_books)
    thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if shard_pool._bookkeeping.acquire(timeout=10) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    done.set()
    thread.join()


def test_page_locked_memory_is_asked_for_in_parts_too(singles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = BatchMemory(pinned=True)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(
        memory, "empty", lambda shape, dtype: asked.append(torch.empty(*shape, dtype=dtype)) or asked[-1]
    )
    batch = ShardReader(open_shards(singles), max_open=2).read_batch(np.arange(5), memory)
    assert batch["x"] is asked[-1] and batch["x"][:, 0].tolist() == WHOLE[:5]
