"""What a handler lets go: no more than must be, counted once, and the order of the others stays."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from loading import array_of, fail_on_7, flip, global_rows, jitter, key_of, ranks, rows, steps, write_dataset

from neurofmx_wds import WebDatasetLoader, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError, ShardError

SMALL: dict[str, Any] = {"num_workers": 0, "buffer_size": 7, "block_size": 3}
plain = functools.partial(create_webdataset_dataloader, **SMALL)


def quietly(error: Exception) -> bool:
    return isinstance(error, NeurofmxError)


class Flaky:
    """A transform, of samples or batches, that fails at every n-th call, as something asked over a network may."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.calls = 0

    def __call__(self, item: Any) -> Any:
        self.calls += 1
        if self.calls % self.n == 0:
            raise OSError("no answer")
        return item


@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize("make", [plain, WebDatasetLoader], ids=["batches", "samples"])
def test_a_transform_that_fails_now_and_then_is_no_end(directory: Path, make: Any, n: int) -> None:
    """Each sample that is made is kept: nothing is asked for a third time."""
    transform = Flaky(n)
    options = {"batch_size": 8} if make is plain else {}
    loader = make(directory, shuffle=False, transform=transform, handler=quietly, **options)
    found = [i for _, _, i in global_rows(steps([loader]))]
    assert found == sorted(set(found)) and len(found) + loader.skipped == 24
    assert transform.calls <= 48 and (make is plain or loader.skipped == 0)
    if make is plain:
        assert loader.skipped <= 24 // n


def test_a_batch_transform_that_fails_now_and_then_is_no_end(directory: Path) -> None:
    for n in (2, 3, 5):
        loader = plain(directory, batch_size=8, shuffle=False, batch_transform=Flaky(n), handler=quietly)
        found = [i for _, _, i in global_rows(steps([loader]))]
        assert found == sorted(set(found)) and len(found) + loader.skipped == 24


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_fails_only_together_is_let_go_together(
    directory: Path, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    def few(samples: list[Any]) -> Any:
        if len(samples) > 2 and samples[0]["metadata"]["i"] == 6:
            raise RuntimeError("no batch of these")
        return collate_webdataset(samples)

    options = {"batch_size": 6 // world_size, "shuffle": False, "collate_fn": few}
    loaders = ranks(directory, world_size, plain, handler=lambda error: True, **options)
    assert [i for _, _, i in global_rows(steps(loaders))] == [*range(6), *range(6 + 6 // world_size, 24)]
    assert [loader.skipped for loader in loaders] == [6 // world_size, 0][:world_size]
    assert "no batch of these" in caplog.text
    with pytest.raises(RuntimeError, match="no batch"):
        list(plain(directory, handler=lambda error: False, batch_size=6, shuffle=False, collate_fn=few))


def test_random_numbers_of_what_is_left_are_the_same(directory: Path) -> None:
    """What a transform has drawn for a sample is not drawn again by the next one, however often it was tried."""

    def draws(batch: dict[str, Any], rngs: Any) -> dict[str, Any]:
        return {**batch, "drawn": torch.tensor([rng.random() for rng in rngs])}

    def failing(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return fail_on_7(jitter(sample, rng))

    def found(**options: Any) -> dict[int, tuple[bytes, float]]:
        return {
            about["i"]: (x.numpy().tobytes(), float(drawn))
            for batch in plain(directory, batch_size=5, batch_transform=draws, **options)
            for about, x, drawn in zip(batch["metadata"], batch["x"], batch["drawn"], strict=True)
        }

    whole = found(transform=jitter)
    assert found(transform=failing, handler=quietly) == {i: drawn for i, drawn in whole.items() if i != 7}


def test_a_row_that_fills_the_last_step_is_counted_once(directory: Path) -> None:
    def fail_on_0(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["metadata"]["i"] == 0:
            raise RuntimeError("cannot transform")
        return sample

    for make in (plain, WebDatasetLoader):
        options = {"batch_size": 1} if make is plain else {}
        loaders = ranks(directory, 5, make, shuffle=False, transform=fail_on_0, handler=quietly, **options)
        assert [i for _, _, i in global_rows(steps(loaders))] == [*range(1, 24)]
        assert sum(loader.skipped for loader in loaders) == 1


# --- how often a handler is asked


class Asked:
    """A handler that lets everything pass and remembers about what it was asked."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def __call__(self, error: Exception) -> bool:
        self.errors.append(error)
        return True


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def emptied(shard: Path) -> None:
    shard.write_bytes(b"")


def overwritten(shard: Path) -> None:
    shard.write_bytes(bytes(shard.stat().st_size))


def index_damaged(shard: Path) -> None:
    shard.with_suffix(".index").write_bytes(b"nonsense")


def cut_without_index(shard: Path) -> None:
    shard.with_suffix(".index").unlink()
    cut(shard)


FAULTS_OF_A_SHARD = [cut, emptied, overwritten, Path.unlink, index_damaged, cut_without_index]


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize("make", [plain, WebDatasetLoader], ids=["batches", "samples"])
@pytest.mark.parametrize("spoil", FAULTS_OF_A_SHARD, ids=lambda spoil: spoil.__name__)
def test_a_fault_of_a_shard_is_asked_about_once(tmp_path: Path, spoil: Any, make: Any, shuffle: Any) -> None:
    directory = write_dataset(tmp_path / "d", (30, 30, 30, 30))
    asked = Asked()
    loader = make(directory, shuffle=shuffle, handler=asked, **({"batch_size": 8} if make is plain else {}))
    for number in (1, 3):
        spoil(directory / f"shard_{number:06d}.tar")
    for epoch in (1, 2):  # in each epoch, as the shard may be back
        found = sorted(i for _, _, i in global_rows(steps([loader])))
        assert found == [*range(30), *range(60, 90)]
        assert loader.skipped == 60 * epoch
        assert len(asked.errors) == 2 * epoch, [str(error) for error in asked.errors]


def test_frameworks_that_ask_for_batches_by_plan_ask_once_too(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", (30, 30, 30, 30))
    asked = Asked()
    loader = plain(directory, batch_size=4, handler=asked)
    cut(directory / "shard_000002.tar")
    view = torch.utils.data.DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
    for epoch in (1, 2):
        found = sorted(i for batch in view for _, _, i in rows(batch))
        assert found == [*range(60), *range(90, 120)]
        assert len(asked.errors) == epoch


@pytest.mark.parametrize("world_size", [1, 2])
def test_bad_samples_are_asked_about_one_by_one(tmp_path: Path, world_size: int) -> None:
    """Also where their shard's other samples are read together with them, and where a transform fails."""
    directory = write_dataset(tmp_path / "d", (30, 30))
    bad = [2, 3, 11, 29, 40]
    for i in bad:
        shard = directory / f"shard_{i // 30:06d}.tar"
        flip(shard, shard.read_bytes().index(array_of(i).tobytes()) + 3)
    asked = Asked()

    def failing(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["metadata"]["i"] in (5, 50):
            raise OSError(2, "no such file", "elsewhere")  # the same file, but not of the dataset
        return sample

    loaders = ranks(directory, world_size, plain, batch_size=7, handler=asked, transform=failing)
    found = sorted(i for _, _, i in global_rows(steps(loaders)))
    assert found == sorted({*range(60)} - {*bad, 5, 50})
    assert sum(loader.skipped for loader in loaders) == 7
    about = [error.sample for error in asked.errors if isinstance(error, NeurofmxError)]
    assert sorted(about) == [key_of(i) for i in sorted([*bad, 5, 50])]  # type: ignore[type-var]


def test_an_error_about_a_shard_is_raised_as_the_handler_says(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", (30, 30))
    cut(directory / "shard_000001.tar")
    with pytest.raises(ShardError, match="bytes"):
        list(plain(directory, handler=lambda error: False))
    began = time.monotonic()
    with pytest.warns(UserWarning, match="bytes"):
        assert sum(len(batch["__key__"]) for batch in plain(directory, handler=wds.warn_and_continue)) == 30
    assert time.monotonic() - began < 10  # it sleeps each time: asked about each sample, that is 15 s
