"""Epochs for half an hour: nothing grows, and the order is exact throughout. Run with -m soak.

NEUROFMX_SOAK_MINUTES says for how long (30).
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from loading import rows, through_json, write_dataset

from neurofmx_wds import create_webdataset_dataloader

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("NEUROFMX_SOAK_MINUTES", "30"))
WARM_UP = 0.2  # share of the time after which nothing may grow any more


def held() -> dict[str, int]:
    """What this process has: files, threads, children, shared memory, and megabytes."""
    gc.collect()
    me = psutil.Process()
    maps = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    return {
        "files": me.num_fds(),
        "threads": threading.active_count(),
        "children": len(multiprocessing.active_children()),
        "shards mapped": sum("shard_" in name for name in maps),
        "shared memory mapped": sum("/dev/shm" in name or "torch_" in name for name in maps),
        "shared memory files": sum(f"_{os.getpid()}_" in path.name for path in Path("/dev/shm").glob("*")),
        "MB": int(me.memory_info().rss / 1e6),
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_grows_and_the_order_is_exact_throughout(num_workers: int, tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", (64,) * 10)
    packed = write_dataset(tmp_path / "packed", (64,) * 10, "gz")
    chance = random.Random(num_workers)
    end = time.monotonic() + MINUTES * 60 / 2
    settled = time.monotonic() + MINUTES * 60 / 2 * WARM_UP
    made: dict[bool, Any] = {}
    first: dict[str, int] = {}
    most: dict[str, int] = {}
    epochs = 0
    while time.monotonic() < end or not first:
        directory, shuffle = chance.choice([plain, packed]), chance.choice([True, "full"])
        epoch, world_size = chance.randrange(1000), chance.choice([1, 1, 2])
        options: dict[str, Any] = {"shuffle": shuffle, "seed": 7, "buffer_size": 50, "block_size": 8}
        reference = create_webdataset_dataloader(directory, num_workers=0, prefetch_factor=0, **options)
        reference.set_epoch(epoch)
        truth = [row for batch in reference for row in rows(batch)]
        kept = bool(num_workers) and chance.random() < 0.5  # also loaders that live for long, with their workers
        if world_size == 1 and kept and shuffle == "full" and directory == plain:
            loader = made.setdefault(True, create_webdataset_dataloader(
                plain, batch_size=16, num_workers=num_workers, persistent_workers=True, **options))  # fmt: skip
            loader.set_epoch(epoch)
            found = [row for batch in loader for row in rows(batch)]
        else:
            found, state = [], None
            while len(found) < len(truth):  # interrupted and resumed, with any number of ranks
                ranks = [
                    create_webdataset_dataloader(
                        directory, batch_size=chance.choice([3, 16]) if world_size == 1 else 8, rank=rank,
                        world_size=world_size, num_workers=num_workers, **options,
                    )
                    for rank in range(world_size)
                ]  # fmt: skip
                for rank in ranks:
                    rank.set_epoch(epoch)
                    if state is not None:
                        rank.load_state_dict(state)
                steps = zip(*ranks, strict=True)
                for step in itertools.islice(steps, chance.choice([5, 1000])):
                    found += [row for batch in step for row in rows(batch)]
                state = through_json(ranks[0].state_dict())
                del ranks, steps
        assert found == truth
        epochs += 1
        if time.monotonic() > settled:
            now = held()
            first = first or now
            most = {name: max(count, most.get(name, 0)) for name, count in now.items()}
    last = held()
    assert epochs > 5
    allowed = {"MB": 60, "files": 40, "shards mapped": 20, "shared memory mapped": 40}  # that come and go
    grown = {name: (first[name], last[name], most[name]) for name in last}
    assert all(last[name] <= first[name] + allowed.get(name, 4) for name in last), grown
    assert all(most[name] <= first[name] + 2 * allowed.get(name, 8) for name in last), grown
    print(epochs, grown)
