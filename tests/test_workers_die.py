"""A loader's worker that is killed: an error that says so, never a hang, and the state goes on where it was."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loading import global_rows, row_of, rows, steps, through_json, write_dataset
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

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


@pytest.fixture
def polled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let torch find dead workers by looking only: its signal handler raises anywhere, also in a test's own lines."""
    signal_handling._set_SIGCHLD_handler()
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    kept = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, kept)


@pytest.mark.parametrize(
    ("persistent", "idle"),  # only persistent workers are ever idle
    [
        pytest.param(False, False, id="reading"),
        pytest.param(True, False, id="persistent, reading"),
        pytest.param(True, True, id="persistent, idle"),
    ],
)
@pytest.mark.usefixtures("polled")
def test_a_worker_that_dies_is_named_and_the_state_goes_on(hundred: Path, persistent: bool, idle: bool) -> None:
    options = {"shuffle": "full", "batch_size": 2, "num_workers": 2, "transform": sleepy}
    loader = create_webdataset_dataloader(hundred, persistent_workers=persistent, **options)  # type: ignore[arg-type]
    seen, pid = [], 0
    before = children()
    if idle:
        seen = [row for batch in loader for row in rows(batch)]
        pid = kill_one(before)
    with pytest.raises(NeurofmxError, match="worker process of the loader died") as caught:
        for batch in loader:
            seen += rows(batch)
            pid = pid or kill_one(before)
    assert caught.value.remedy and loader.skipped == 0
    state = through_json(loader.state_dict())
    assert (state["epoch"], state["position"]) == divmod(len(seen), 100)
    fresh = create_webdataset_dataloader(hundred, **options)  # type: ignore[arg-type]
    fresh.load_state_dict(state)
    truth = create_webdataset_dataloader(hundred, shuffle="full", batch_size=2, num_workers=0)
    both = [row for _ in range(2) for batch in truth for row in rows(batch)]
    assert seen == both[: len(seen)]
    assert global_rows(steps([fresh])) == both[len(seen) : (state["epoch"] + 1) * 100]
    loader.load_state_dict(state)  # the same object, with new workers
    assert global_rows(steps([loader])) == both[len(seen) : (state["epoch"] + 1) * 100]


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_with_torchs_signal_handler_too_a_dead_worker_is_an_error(hundred: Path, persistent: bool) -> None:
    options = {"batch_size": 2, "num_workers": 2, "transform": sleepy, "persistent_workers": persistent}
    loader = create_webdataset_dataloader(hundred, **options)  # type: ignore[arg-type]
    before, pid = children(), 0
    with pytest.raises((NeurofmxError, RuntimeError)):  # torch's own error where its handler raises outside the loader
        for batch in loader:
            assert rows(batch)
            pid = pid or kill_one(before)
    assert pid


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
@pytest.mark.usefixtures("polled")
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named(
    hundred: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    before, pid = children(), 0

    def cut_off(*_: Any) -> Any:
        nonlocal pid
        pid = pid or kill_one(before)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", cut_off)
        with pytest.raises(NeurofmxError, match="a worker process of the loader died") as caught:
            list(create_webdataset_dataloader(hundred, num_workers=2))
        assert pid and caught.value.__cause__ is error
        with pytest.raises(type(error)):  # nobody dies: the error is passed on
            list(create_webdataset_dataloader(hundred, num_workers=2))


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
