"""A loader's worker that is killed: an error that says so, never a hang, and the state goes on where it was."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from loading import global_rows, row_of, rows, steps, through_json, write_dataset

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError


def sleepy(sample: dict[str, Any]) -> dict[str, Any]:
    """Keeps workers at work, so that little is read ahead."""
    time.sleep(0.01)
    return sample


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def kill_one(but: set[int]) -> int:
    victim = min(children() - but)
    os.kill(victim, signal.SIGKILL)
    return victim


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of 100 samples: an epoch is longer than what workers read ahead."""
    return write_dataset(tmp_path_factory.mktemp("die") / "d", (50, 50))


@pytest.mark.parametrize(
    ("persistent", "idle"),  # only persistent workers are ever idle
    [
        pytest.param(False, False, id="reading"),
        pytest.param(True, False, id="persistent, reading"),
        pytest.param(True, True, id="persistent, idle"),
    ],
)
def test_a_worker_that_dies_is_named_and_the_state_goes_on(hundred: Path, persistent: bool, idle: bool) -> None:
    options = {"shuffle": "full", "batch_size": 2, "num_workers": 2, "transform": sleepy}
    loader = create_webdataset_dataloader(hundred, persistent_workers=persistent, **options)  # type: ignore[arg-type]
    seen, pid = [], 0
    begin, before = time.monotonic(), children()
    with pytest.raises((NeurofmxError, RuntimeError), match=r"DataLoader worker \(pid") as caught:
        if idle:
            seen = [row for batch in loader for row in rows(batch)]
            pid = kill_one(before)
            time.sleep(0.5)  # torch's own handler may speak up here, where no loader can name anything
        for batch in loader:
            seen += rows(batch)
            pid = pid or kill_one(before)
    assert time.monotonic() - begin < 60
    assert str(pid) in str(caught.value)
    if not idle:
        assert isinstance(caught.value, NeurofmxError) and "died" in caught.value.problem and caught.value.remedy
        assert loader.skipped == 0
    state = through_json(loader.state_dict())
    assert (state["epoch"], state["position"]) == divmod(len(seen), 100)
    fresh = create_webdataset_dataloader(hundred, **options)  # type: ignore[arg-type]
    fresh.load_state_dict(state)
    truth = create_webdataset_dataloader(hundred, shuffle="full", batch_size=2, num_workers=0)
    both = [row for _ in range(2) for batch in truth for row in rows(batch)]
    assert seen == both[: len(seen)]
    assert global_rows(steps([fresh])) == both[len(seen) : (state["epoch"] + 1) * 100]
    if idle:
        with pytest.raises(NeurofmxError, match="died"):  # the loader's own word on it
            list(loader)
    loader.load_state_dict(state)  # the same object, with new workers
    assert global_rows(steps([loader])) == both[len(seen) : (state["epoch"] + 1) * 100]


def test_a_worker_that_was_killed_while_idle_is_found_at_the_next_epoch(hundred: Path) -> None:
    before = children()
    loader = create_webdataset_dataloader(hundred, batch_size=2, num_workers=2, persistent_workers=True)
    assert sum(len(rows(batch)) for batch in loader) == 100
    kept = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # as in a program that starts loaders outside its main thread
    try:
        pid = kill_one(before)
        time.sleep(0.2)
        with pytest.raises(NeurofmxError, match=rf"a worker process of the loader died.*{pid}"):
            list(loader)
        assert sum(len(rows(batch)) for batch in loader) == 100  # with new ones
    finally:
        signal.signal(signal.SIGCHLD, kept)


def fail_badly(sample: dict[str, Any]) -> dict[str, Any]:
    """Dies without a word, as when a library's C code crashes."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return sample


def raise_runtime_error(sample: dict[str, Any]) -> dict[str, Any]:
    """A fault of the user's own."""
    raise RuntimeError("DataLoader worker (pid 1) is not what this is about")


def test_a_crash_in_a_transform_is_a_worker_that_died(hundred: Path) -> None:
    with pytest.raises(NeurofmxError, match="a worker process of the loader died"):
        list(create_webdataset_dataloader(hundred, num_workers=1, transform=fail_badly))
    with pytest.raises(NeurofmxError, match=r"sample_\d+.*the transform raised RuntimeError"):
        list(create_webdataset_dataloader(hundred, num_workers=1, transform=raise_runtime_error))
    assert [
        row
        for batch in itertools.islice(create_webdataset_dataloader(hundred, shuffle=False), 1)
        for row in rows(batch)
    ] == [row_of(i) for i in range(32)]
