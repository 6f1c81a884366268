"""What a worker of somebody else's DataLoader cannot send is an error in the trainer; nothing is left out unseen."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from loading import write_dataset

from neurofmx_wds import WebDatasetLoader, create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError

N = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("others") / "d", (10, 10, 4))


class Refuses:
    """Cannot be pickled, with an error that a queue of Python takes for the end of its work."""

    def __reduce__(self) -> Any:
        raise IndexError("not for sending")


VALUES: dict[str, Callable[[], Any]] = {
    "a lambda": lambda: lambda: None,
    "a lock": threading.Lock,
    "refuses": Refuses,
    "needs its graph": lambda: torch.ones(2, requires_grad=True) * 2,
}


class Spoil:
    """Puts a value into one sample."""

    def __init__(self, value: str, bad: int) -> None:
        self.value = value
        self.bad = bad

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "more": VALUES[self.value]() if sample["metadata"]["i"] == self.bad else 0}


def samples(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    return torch.utils.data.DataLoader(
        WebDatasetLoader(directory, shuffle=False, transform=transform), batch_size=4, collate_fn=list, **workers
    )


def single(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    return torch.utils.data.DataLoader(
        WebDatasetLoader(directory, shuffle=False, transform=transform), batch_size=None, **workers
    )


def composed(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    pipeline = wds.DataPipeline(WebDatasetLoader(directory, shuffle=False, transform=transform), wds.map(dict))
    return torch.utils.data.DataLoader(pipeline, batch_size=None, **workers)


def webloader(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    batches = create_webdataset_dataloader(directory, 4, num_workers=0, shuffle=False, transform=transform)
    return wds.WebLoader(batches, batch_size=None, **workers)


def by_plan(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    batches = create_webdataset_dataloader(directory, 4, num_workers=0, shuffle=False, transform=transform)
    return torch.utils.data.DataLoader(
        batches.dataset, batch_sampler=batches.batch_sampler, collate_fn=batches.collate_fn, **workers
    )


def stateful(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    return loader(
        WebDatasetLoader(directory, shuffle=False, transform=transform), batch_size=4, collate_fn=list, **workers
    )


def stateful_by_plan(directory: Path, workers: dict[str, Any], transform: Any = None) -> Any:
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    batches = create_webdataset_dataloader(directory, 4, num_workers=0, shuffle=False, transform=transform)
    return loader(batches.dataset, batch_sampler=batches.batch_sampler, collate_fn=batches.collate_fn, **workers)


LOADERS = [samples, single, composed, webloader, by_plan, stateful, stateful_by_plan]


def delivered(loader: Any) -> Iterator[int]:
    """The numbers of samples, of lists of samples and of batches."""
    items = iter(loader)
    try:
        for item in items:
            for each in item if isinstance(item, list) else [item]:
                yield from np.ravel(each["number"]).tolist()
    finally:  # left to the garbage collector, torch waits 5 s for each worker
        getattr(items, "_shutdown_workers", lambda: None)()


CASES = list(itertools.product(LOADERS, VALUES, (1, 2), (0, 13, N - 1)))
CHOSEN = [random.Random(i).choice([case for case in CASES if case[0] is make]) for i, make in enumerate(LOADERS)]


@pytest.mark.parametrize(
    ("make", "value", "num_workers", "bad"),
    [*CHOSEN, *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in CHOSEN)],
)
def test_what_cannot_be_sent_is_an_error(directory: Path, make: Any, value: str, num_workers: int, bad: int) -> None:
    workers = {"num_workers": num_workers, "multiprocessing_context": "fork"}
    whole = list(delivered(make(directory, workers)))
    assert sorted(whole) == list(range(N))
    seen = []
    with pytest.raises(NeurofmxError, match="field 'more': a worker cannot send .*num_workers=0"):
        for number in delivered(make(directory, workers, Spoil(value, bad))):
            seen.append(number)
    assert seen == whole[: len(seen)] and bad not in seen


class Unknown(Exception):
    """An error of which the trainer does not know the class."""


def fail(sample: dict[str, Any]) -> dict[str, Any]:
    class Local(Unknown):
        pass

    raise Local


def test_an_error_that_cannot_be_sent_is_an_error(directory: Path) -> None:
    workers = {"num_workers": 1, "multiprocessing_context": "fork"}
    with pytest.raises(NeurofmxError, match="Local"):
        list(delivered(single(directory, workers, fail)))


def with_values(sample: dict[str, Any]) -> dict[str, Any]:
    x = sample["x"]
    return {**sample, "turned": x.T, "tensor": torch.from_numpy(x) * 2, "view": x[:, ::2], "text": "x", "empty": x[:0]}


@pytest.mark.parametrize("make", [samples, by_plan])
def test_all_else_arrives_as_it_is(directory: Path, make: Any) -> None:
    here = list(make(directory, {}, with_values))
    there = list(make(directory, {"num_workers": 1, "multiprocessing_context": "fork"}, with_values))
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        for a, b in zip(*([each] if isinstance(each, dict) else each for each in (one, other)), strict=True):
            assert list(a) == list(b)
            for name, value in a.items():
                assert type(b[name]) is type(value)
                np.testing.assert_array_equal(b[name], value)
                if isinstance(value, np.ndarray):
                    assert b[name].flags.writeable and b[name].dtype == value.dtype
