"""Pages of opened shards made present by a thread: only those that will be read, and nothing depends on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading import page_in, shard_pool
from neurofmx_wds.loading.page_in import is_cached
from neurofmx_wds.loading.readers import ShardReader
from neurofmx_wds.storage.checksums import QUIET_THREADS, crc32, crc32_function


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three shards of 10 samples with a large field and a small one."""
    arrays = {"x": np.arange(30 * 9000.0).reshape(30, 9000), "label": np.arange(30)}
    create_shards_from_arrays(tmp_path / "d", arrays, shard_size=10)
    return tmp_path / "d"


def wait_until_quiet() -> None:
    deadline = time.monotonic() + 60
    while QUIET_THREADS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not QUIET_THREADS


def resident(path: Path) -> int:
    """Bytes of a file that are present in this process."""
    found = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss:\s*(\d+) kB", Path("/proc/self/smaps").read_text())
    return 1024 * sum(map(int, found))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages a process has")
def test_all_pages_of_an_opened_shard_become_present(directory: Path) -> None:
    shards = open_shards(directory)
    reader = ShardReader(shards, io="mmap")
    reader.read_batch(np.array([0]))
    tar = shards.paths[1]
    if not is_cached(os.open(tar, os.O_RDONLY), tar.stat().st_size):
        pytest.skip(
            "this file system does not say what is in the page cache: use another directory for temporary files"
        )
    assert not resident(tar)
    reader.expect_share(1)
    reader.read_batch(np.array([10]))
    wait_until_quiet()
    assert resident(tar) >= tar.stat().st_size > resident(shards.paths[0]) > 0


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 3),
        ({"shuffle": "full"}, 3),
        ({"modalities": ["x"]}, 3),
        ({"modalities": ["label"]}, 0),
        ({"io": "pread"}, 0),
        ({"rank": 0, "world_size": 2}, 0),
        ({"num_workers": 1, "multiprocessing_context": "fork"}, 0),
        ({"select": lambda about: True}, 3),
        ({"select": lambda about: about["index"] % 3 == 0}, 0),
    ],
)
def test_only_shards_that_this_process_will_read(
    options: dict[str, Any], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, about = (
        {"x": np.arange(30 * 900.0).reshape(30, 900), "label": np.arange(30)},
        [{"index": i} for i in range(30)],
    )
    create_shards_from_arrays(tmp_path / "d", arrays, shard_size=10, metadata=about)
    asked = threading.Semaphore(0)
    monkeypatch.setattr("neurofmx_wds.loading.open_shard.is_cached", lambda *_: True)
    monkeypatch.setattr(shard_pool, "page_in", lambda shard: asked.release())
    loader = create_webdataset_dataloader(tmp_path / "d", **{"num_workers": 0, "io": "mmap", **options})
    for _ in range(2):
        list(loader)
    assert [asked.acquire(blocking=False) for _ in range(4)].count(True) == wanted


def test_what_is_not_in_the_cache_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(directory / "shard_000000.tar", "rb") as file:
        size = os.fstat(file.fileno()).st_size
        assert not is_cached(-1, size)

        def absent(*_: Any) -> int:
            raise BlockingIOError

        monkeypatch.setattr(os, "preadv", absent)
        assert not is_cached(file.fileno(), size)
        monkeypatch.delattr(os, "preadv")
        assert not is_cached(file.fileno(), size)


def test_closed_shards_are_left_alone(directory: Path) -> None:
    class Shard:
        source = memoryview(b"")

    kept, lost = Shard(), Shard()
    with page_in._lock:
        page_in._waiting.extend(map(page_in.weakref.ref, (lost, kept)))
        del lost
    kept.source = memoryview(bytes(10))
    page_in.page_in(kept)
    wait_until_quiet()
    assert not page_in._waiting


def test_it_does_not_slow_checksums_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1 + len(QUIET_THREADS))
    QUIET_THREADS.append(threading.current_thread())
    try:
        assert crc32_function(38_400) is crc32
    finally:
        QUIET_THREADS.pop()


def test_without_more_threads_it_is_left_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr("neurofmx_wds.loading.open_shard.is_cached", lambda *_: True)
    loader = create_webdataset_dataloader(directory, num_workers=0, shuffle=False, io="mmap", prefetch_factor=0)
    assert [int(label) for batch in loader for label in batch["label"]] == list(range(30))
    page_in._waiting.clear()


def test_a_process_forks_and_ends_while_it_runs(directory: Path) -> None:
    code = (
        "import os, sys\n"
        "from neurofmx_wds import create_webdataset_dataloader\n"
        "loader = create_webdataset_dataloader(sys.argv[1], batch_size=1, num_workers=0, shuffle='full')\n"
        "next(iter(loader))\n"
        "if os.fork() == 0:\n"
        "    os._exit(sum(len(batch['x']) for batch in loader) != 30)\n"
        "status = os.waitstatus_to_exitcode(os.wait()[1])\n"
        "next(iter(loader))\n"
        "sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", code, str(directory)], check=True, timeout=120)
