"""What a handler lets go: no more than must be, counted once, and the order of the others stays."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import fail_on_7, global_rows, jitter, ranks, steps

from neurofmx_wds import WebDatasetLoader, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError

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
