"""The laws of loading where several features meet: skipping, bundles, checksums, twins, threads, held batches."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from loading import array_of, flip, global_rows, ranks, rows, steps, write_dataset

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.format.index import ShardIndex


def quietly(error: Exception) -> bool:
    return True


def numbers(delivered: Any) -> list[int]:
    return [number for _, _, number in delivered]


def fail_on_20(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["metadata"]["i"] == 20:
        raise RuntimeError("cannot transform")
    return sample


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_stands_in_for_a_skipped_sample_of_the_last_step_is_marked_as_repeated(
    directory: Path, num_workers: int
) -> None:
    """24 samples for 5 ranks × 4: in the last step 4 ranks get one sample, and one of these cannot be had."""
    options = {"batch_size": 4, "shuffle": False, "transform": fail_on_20, "handler": quietly}
    taken = list(steps(ranks(directory, 5, num_workers=num_workers, **options)))
    assert numbers(global_rows(taken)) == [i for i in range(24) if i != 20]
    assert all(batch["__mask__"].shape == (1,) for batch in taken[-1])


def test_a_pipeline_made_of_a_loader_whose_workers_persist_has_workers_of_its_own(directory: Path) -> None:
    loader = create_webdataset_dataloader(
        directory, batch_size=3, num_workers=2, shuffle=False, persistent_workers=True
    )
    next(iter(loader))
    mapped = loader.map(dict)
    both = [(rows(one), rows(other)) for one, other in zip(loader, mapped, strict=True)]
    for delivered in zip(*both, strict=True):
        assert numbers(row for batch in delivered for row in batch) == list(range(24))
    loader.close()
    mapped.close()


@pytest.mark.parametrize("columns", [3, 200_000])  # the latter on huge pages
def test_a_batch_that_nobody_holds_lends_its_memory_to_the_next(tmp_path: Path, columns: int) -> None:
    truth = np.random.default_rng(0).normal(size=(15, columns))
    create_shards_from_arrays(tmp_path / "shards", {"x": truth}, shard_size=5)
    loader = create_webdataset_dataloader(
        tmp_path / "shards", batch_size=5, num_workers=0, prefetch_factor=0, shuffle=False
    )
    places = set(map(lambda batch: batch["x"].data_ptr(), loader))  # noqa: C417  # map holds no batch
    assert len(places) == 1 and all(place % 64 == 0 for place in places)
    held = [batch["x"] for batch in loader]
    assert len({x.data_ptr() for x in held}) == 3
    assert np.array_equal(np.concatenate(held), truth)


def test_iterators_in_several_threads_share_one_loader(tmp_path: Path) -> None:
    """Few shards stay open, threads read ahead, and consumers keep views of some batches and change others."""
    directory = write_dataset(tmp_path / "shards", (5,) * 60)
    loader = create_webdataset_dataloader(directory, batch_size=4, num_workers=0)
    loader.opened.reader.max_open = 2
    problems: list[Any] = []

    def consume() -> None:
        try:
            for _ in range(10):
                kept = []
                for n, batch in enumerate(loader):
                    kept.append((batch["x"].numpy()[-1], batch["metadata"][-1]["i"]))
                    batch["x"][:-1] = -1
                    if n % 3 == 0:
                        time.sleep(2e-4)
                assert len(kept) == 75
                problems.extend(i for view, i in kept if not np.array_equal(view, array_of(i)))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=consume) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_changed_samples_are_skipped_in_equal_steps(tmp_path: Path, num_workers: int, world_size: int) -> None:
    directory = write_dataset(tmp_path / "shards", (20,) * 10)
    index = ShardIndex.load(directory / "shard_000004.index")
    for row in (3, 4, 19):
        flip(directory / "shard_000004.tar", int(index.columns["x"].offset[row] + index.columns["x"].size[row] - 1))
    options: dict[str, Any] = {"batch_size": 2, "shuffle": False, "handler": wds.ignore_and_continue}
    loaders = ranks(directory, world_size, num_workers=num_workers, **options)
    taken = list(steps(loaders))
    assert numbers(global_rows(taken)) == [i for i in range(200) if i not in (83, 84, 99)]
    assert sum(loader.skipped for loader in loaders) == 3
