"""Threads that read: the same batches and states as one thread, errors in their place, and more than one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import (
    LAYOUTS,
    array_of,
    fail_on_7,
    flip,
    global_rows,
    jitter,
    ranks,
    resumed,
    steps,
    through_json,
    write_dataset,
)

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError
from neurofmx_wds.loading.threads import in_threads

SETTINGS: dict[str, Any] = {"batch_size": 2, "buffer_size": 7, "block_size": 3, "transform": jitter}
THREADS: dict[str, Any] = {"workers": "threads", "num_workers": 3}


@pytest.mark.parametrize("prefetch_factor", [1, 4])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("layout", ["unequal", "one shard", "fewer than ranks"])
def test_same_sequence_and_states(
    dataset: Callable[..., Path], layout: str, world_size: int, prefetch_factor: int
) -> None:
    directory = dataset(layout)
    expected = list(steps(ranks(directory, world_size, num_workers=0, **SETTINGS)))
    options = {**SETTINGS, **THREADS, "prefetch_factor": prefetch_factor}
    for stop in {1, len(expected) // 2, len(expected)} - {0}:
        loaders = ranks(directory, world_size, **options)
        first = [step for _, step in zip(range(stop), steps(loaders), strict=False)]
        state = through_json(loaders[0].state_dict())
        if stop == len(expected):
            assert global_rows(first) == global_rows(expected)
            continue
        rest = list(steps(resumed(directory, state, world_size, **options)))
        assert global_rows(first + rest) == global_rows(expected)
        other = list(steps(resumed(directory, state, 1, **{**options, "batch_size": 5})))
        assert global_rows(first + other) == global_rows(expected)


def test_several_batches_are_made_at_once(directory: Path) -> None:
    together = threading.Barrier(3)  # broken, with an error, unless three threads come

    def meet(sample: dict[str, Any]) -> dict[str, Any]:
        together.wait(20)
        return sample

    loader = create_webdataset_dataloader(directory, batch_size=1, transform=meet, **THREADS)
    assert len(list(loader)) == len(loader) == 24


def test_an_error_comes_in_its_place(directory: Path) -> None:
    options = {"batch_size": 1, "shuffle": False, "transform": fail_on_7, **THREADS}
    loader = create_webdataset_dataloader(directory, **options)
    seen = []
    with pytest.raises(NeurofmxError, match="sample_000000007"):
        for batch in loader:
            seen.append(batch["metadata"][0]["i"])
    assert seen == list(range(7))
    assert loader.state_dict()["position"] == 7


def test_a_handler_is_asked_once_about_a_shard_that_several_threads_find(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "cut", LAYOUTS["equal"])
    shard = sorted(directory.glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes()[:100])
    asked: list[Exception] = []

    def note(error: Exception) -> bool:
        asked.append(error)
        return True

    loader = create_webdataset_dataloader(directory, batch_size=1, transform=jitter, handler=note, **THREADS)
    assert len(list(loader)) == 18 and loader.skipped == 6 and len(asked) == 1


def test_damaged_samples_are_skipped_as_by_one_thread(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "damaged", LAYOUTS["equal"])
    shard = sorted(directory.glob("*.tar"))[0]
    flip(shard, shard.read_bytes().index(array_of(2).tobytes()) + 3)
    delivered = []
    for workers in (THREADS, {"num_workers": 0}):
        loader = create_webdataset_dataloader(directory, handler=lambda error: True, **SETTINGS, **workers)
        delivered.append(([batch["__key__"] for batch in loader], loader.skipped))
    assert delivered[0] == delivered[1] and delivered[0][1] == 1


def test_an_iterator_that_is_left_ends_its_threads(directory: Path) -> None:
    for _ in create_webdataset_dataloader(directory, **SETTINGS, **THREADS):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("neurofmx_wds reader"):
            thread.join(20)
            assert not thread.is_alive()


def test_results_are_in_order_and_given_items_are_not_taken_far_ahead() -> None:
    taken = []

    def given() -> Any:
        for i in range(50):
            taken.append(i)
            yield i

    made = in_threads(lambda i: i * i, given(), n_threads=4, ahead=5)
    assert next(made) == 0 and len(taken) == 6
    assert [0, *made] == [i * i for i in range(50)]


@pytest.mark.parametrize("option", [{"timeout": 3}, {"persistent_workers": True}, {"multiprocessing_context": "fork"}])
def test_options_of_processes_are_refused(directory: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} concerns worker processes"):
        create_webdataset_dataloader(directory, **THREADS, **option)
    with pytest.raises(ValueError, match='"processes" or "threads"'):
        create_webdataset_dataloader(directory, workers="fibres")  # type: ignore[arg-type]


def test_memory_limit_lowers_what_threads_read_ahead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from neurofmx_wds import create_shards_from_arrays

    create_shards_from_arrays(tmp_path / "big", {"x": np.zeros((64, 250_000), "float32")})
    options: dict[str, Any] = {"batch_size": 4, "prefetch_factor": 8, **THREADS}
    loader = create_webdataset_dataloader(tmp_path / "big", memory_limit="100MB", **options)
    assert "prefetch_factor 24 → " in caplog.text and len(list(loader)) == 16
