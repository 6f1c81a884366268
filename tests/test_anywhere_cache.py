"""The cache of what was fetched: each byte once a machine, what is needed last leaves first, and no kill harms it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.order.epoch import EpochOrder
from neurofmx_wds.storage.blocks import Blocks
from neurofmx_wds.storage.claims import Claims

pytest.importorskip("obstore")
N, SAMPLE = 200, 64 << 10


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 200 samples of 64 KiB."""
    directory = tmp_path_factory.mktemp("local") / "data"
    data = np.random.default_rng(0).integers(0, 256, (N, SAMPLE), np.uint8)
    create_shards_from_arrays(directory, {"x": data}, shard_size=25, metadata=[{"i": i} for i in range(N)])
    return directory


@pytest.fixture
def server(local: Path) -> Iterator[Loopback]:
    with Loopback({f"data/{path.name}": path.read_bytes() for path in local.iterdir()}) as server:
        yield server


def fetched(server: Loopback) -> int:
    """Bytes of shards fetched since the last call."""
    n = sum(last - first + 1 for first, last in server.gets)
    server.requests.clear()
    return n


def on_disk(cache: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in cache.rglob("*.data"))


def content(loader: Any) -> list[tuple[str, int]]:
    return [
        (key, hash(x.numpy().tobytes()))
        for batch in loader
        for key, x in zip(batch["__key__"], batch["x"], strict=True)
    ]


def lru_hits(n_cached: int, epochs: int) -> float:
    """The share of reads that a cache of the most recently used finds there."""
    cached: dict[int, None] = {}
    hits = 0
    for epoch in range(epochs):
        order = EpochOrder([N], 42, epoch, "full", 1000, 1)
        for i in order.sample_ids(0, N).tolist():
            hits += epoch > 0 and i in cached
            cached.pop(i, None)
            cached[i] = None
            if len(cached) > n_cached:
                del cached[next(iter(cached))]
    return hits / (N * (epochs - 1))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_half_the_data_in_the_cache_serves_half_the_reads(
    server: Loopback, local: Path, tmp_path: Path, n_workers: int
) -> None:
    """Least recently used, which others do, would serve a seventh."""
    options: dict[str, Any] = {
        "shuffle": "full",
        "batch_size": 4,
        "prefetch_bytes": 8 * SAMPLE,
        "num_workers": n_workers,
    }
    there = create_webdataset_dataloader(
        f"{server.url}/data", cache_dir=tmp_path, cache_size=(N // 2 + 8) * (SAMPLE + 1536), **options
    )
    here = create_webdataset_dataloader(local, **options)
    assert content(there) == content(here)
    fetched(server)
    epochs = 6
    for _ in range(epochs - 1):
        assert content(there) == content(here)
        assert on_disk(tmp_path) <= (N // 2 + 8) * (SAMPLE + 4096) + SAMPLE * 16
    share = 1 - fetched(server) / ((epochs - 1) * N * SAMPLE)
    lru = lru_hits(N // 2, epochs)
    print(f"farthest next use {share:.2f}, least recently used {lru:.2f}")
    # On a quiet machine 0.49 (0.46 with workers, each of which keeps what it has requested); on a busy one requests are
    # late, and less of what is needed soonest is known.
    assert lru < 0.2 and share > 1.5 * lru


def test_resuming_fetches_what_comes_after_the_cursor(server: Loopback, local: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shuffle": "full", "batch_size": 10}
    loader = create_webdataset_dataloader(local, **options)
    batches = iter(loader)
    for _ in range(15):
        next(batches)
    state = loader.state_dict()
    loader = create_webdataset_dataloader(f"{server.url}/data", cache_dir=tmp_path, **options)
    loader.load_state_dict(state)
    assert len(content(loader)) == 50
    assert 50 * SAMPLE <= fetched(server) <= 1.25 * 50 * SAMPLE  # of 200; what lies between parts may come twice


def test_ranks_and_jobs_fetch_each_byte_once(server: Loopback, local: Path, tmp_path: Path) -> None:
    """Two ranks and another job of two, at once, in processes of their own."""
    expected = content(create_webdataset_dataloader(local, batch_size=10))
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        jobs = [(f"{server.url}/data", str(tmp_path), rank) for rank in (0, 1)] * 2
        found = pool.starmap(keys_of_rank, jobs, chunksize=1)
    for each in (found[:2], found[2:]):
        rows = [row for step in zip(*each, strict=True) for batch in step for row in batch]
        assert rows == [key for key, _ in expected]
    assert fetched(server) <= sum(path.stat().st_size for path in local.glob("*.tar"))


def keys_of_rank(url: str, cache: str, rank: int) -> list[list[str]]:
    """What a rank of two gets; its checksums are compared while it reads."""
    loader = create_webdataset_dataloader(url, batch_size=10, cache_dir=cache, rank=rank, world_size=2)
    return [batch["__key__"] for batch in loader]


READ = """
import sys
from neurofmx_wds import create_webdataset_dataloader
for _ in create_webdataset_dataloader(sys.argv[1], batch_size=1, cache_dir=sys.argv[2], cache_size=int(sys.argv[3])):
    print(flush=True)
"""


def test_a_killed_process_leaves_the_cache_whole(server: Loopback, local: Path, tmp_path: Path) -> None:
    cache_size = 40 * SAMPLE
    url, expected = f"{server.url}/data", content(create_webdataset_dataloader(local, batch_size=7))
    for n_lines in (2, 30):
        run = subprocess.Popen([sys.executable, "-c", READ, url, tmp_path, str(cache_size)], stdout=subprocess.PIPE)
        assert run.stdout is not None
        for _ in range(n_lines):
            run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        run.stdout.close()
        loader = create_webdataset_dataloader(url, batch_size=7, cache_dir=tmp_path, cache_size=cache_size)
        assert content(loader) == expected


def test_damage_in_the_cache_is_fetched_again(server: Loopback, local: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 7, "shuffle": False}
    url, expected = f"{server.url}/data", content(create_webdataset_dataloader(local, **options))
    assert content(create_webdataset_dataloader(url, cache_dir=tmp_path, **options)) == expected
    for path in tmp_path.rglob("*.data"):
        with open(path, "r+b") as file:
            file.seek(SAMPLE * 3)
            file.write(bytes(100))
    assert content(create_webdataset_dataloader(url, cache_dir=tmp_path, **options)) == expected


def test_an_old_dataset_leaves_for_a_new_one(server: Loopback, tmp_path: Path) -> None:
    url, size = f"{server.url}/data", N * (SAMPLE + 8192)
    list(create_webdataset_dataloader(url, cache_dir=tmp_path, cache_size=size))
    old = set(tmp_path.rglob("*.data"))
    for path in tmp_path.rglob("*.have"):
        os.utime(path, (0, 0))
    server.files |= {name.replace("data/", "more/"): content for name, content in server.files.items()}
    list(create_webdataset_dataloader(f"{server.url}/more", cache_dir=tmp_path, cache_size=size))
    assert on_disk(tmp_path) <= size
    assert not all(path.exists() for path in old)


def test_the_command_fetch(server: Loopback, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, cache = f"{server.url}/data", str(tmp_path)
    assert main(["fetch", url, "--cache-dir", cache]) == 0
    assert "8 shards" in capsys.readouterr().out
    fetched(server)
    loader = create_webdataset_dataloader(url, cache_dir=cache, shuffle="full")
    assert content(loader) == content(create_webdataset_dataloader(local, shuffle="full"))
    assert [path for _, path, *_ in server.requests] == ["data/dataset_metadata.json"]
    assert main(["fetch", url, "--cache-dir", cache, "--cache-size", "1000"]) == 1
    assert "the cache may take 1000" in capsys.readouterr().err


def test_without_a_disk_memory_is_used(server: Loopback, local: Path, tmp_path: Path) -> None:
    expected = content(create_webdataset_dataloader(local))
    loader = create_webdataset_dataloader(f"{server.url}/data", cache_dir=tmp_path, cache_size=0)
    assert content(loader) == expected and not list(tmp_path.rglob("*.data"))
    (tmp_path / "file").write_text("in the way")
    loader = create_webdataset_dataloader(f"{server.url}/data", cache_dir=tmp_path / "file")
    assert content(loader) == expected


def test_claims_of_the_dead_are_free(tmp_path: Path) -> None:
    """A claim is respected while its process lives."""
    place = tmp_path / "object"

    def claim_and_wait(connection: Any) -> None:
        Blocks(place, 5120, Claims(tmp_path)).claim(2, 6)
        connection.send(True)
        connection.recv()

    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=claim_and_wait, args=(there,))
    process.start()
    here.recv()
    blocks = Blocks(place, 5120, Claims(tmp_path))
    assert blocks.claim(0, 4) == ([(0, 2)], True)
    here.send(True)
    process.join()
    assert blocks.claim(3, 10) == ([(3, 10)], False)
