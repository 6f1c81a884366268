"""Laws 1 to 5 of the loaders, in one process: one matrix, one oracle: the rest equals the uninterrupted rest."""

from __future__ import annotations

import faulthandler
import functools
import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import webdataset as wds
from counting import some
from hypothesis import HealthCheck, given, settings
from loading import (
    LAYOUTS,
    Row,
    array_of,
    fail_on_7,
    global_rows,
    jitter,
    key_of,
    ranks,
    resumed,
    row_of,
    rows,
    steps,
    through_json,
    write_dataset,
)  # fmt: skip

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetLoader, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError, ShardError, StateError
from neurofmx_wds.loading.batch_loader import WebDatasetDataLoader
from neurofmx_wds.loading.prefetch import _read_ahead
from neurofmx_wds.loading.readers import ShardReader


@pytest.fixture(autouse=True)
def always_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test comes straight back for the next batch: the thread would rarely be started."""
    monkeypatch.setattr("neurofmx_wds.loading.prefetch._WORTH_A_THREAD", -1.0)


SELECTED = {"group": [0, 2]}
SMALL: dict[str, Any] = {"buffer_size": 7, "block_size": 3}
SHUFFLES = (False, True, "full")
Datasets = Callable[..., Path]


@pytest.fixture(autouse=True)
def _bounded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loader that hangs fails, and says where; what is unpacked goes when the tests are over."""
    faulthandler.dump_traceback_later(300, exit=True, file=sys.__stderr__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    faulthandler.cancel_dump_traceback_later()


def plain(directory: Any, **options: Any) -> Any:
    return create_webdataset_dataloader(directory, **{"num_workers": 0, **SMALL, **options})


@functools.cache
def epoch_rows(directory: Path, shuffle: bool | str, epoch: int = 0, selection: bool = False) -> tuple[Row, ...]:
    """The uninterrupted sequence, by the plainest loader there is; checked against what was written."""
    select = SELECTED if selection else None
    loader = WebDatasetLoader(directory, shuffle=shuffle, select=select, rank=0, world_size=1, **SMALL)  # type: ignore
    loader.set_epoch(epoch)
    found = [row for sample in loader for row in rows(sample)]
    total = sum(1 for path in sorted(directory.glob("*.tar*")) for _ in keys_in(path))
    wanted = [row_of(i) for i in range(total) if not selection or i % 3 in (0, 2)]
    assert sorted(found) == sorted(wanted)
    if shuffle is False:
        assert found == wanted
    return tuple(found)


def keys_in(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return {name.split(".")[0] for name in tar.getnames()}


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    layout: str
    shuffle: bool | str
    world_size: int
    batch_size: int
    drop_last: bool
    compression: str = "none"
    selection: bool = False
    num_workers: int = 0
    start_method: str | None = None
    persistent: bool = False

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "shuffle": self.shuffle, "batch_size": self.batch_size, "drop_last": self.drop_last,
            "select": SELECTED if self.selection else None, "num_workers": self.num_workers, **SMALL,
        }  # fmt: skip
        if self.num_workers:
            options |= {"multiprocessing_context": self.start_method, "persistent_workers": self.persistent}
        return options

    def whole(self, rest: tuple[Row, ...]) -> list[Row]:
        """Of what remains of an epoch, what is delivered in this topology."""
        drop = len(rest) % (self.batch_size * self.world_size) if self.drop_last else 0
        return list(rest[: len(rest) - drop])


IN_PROCESS = [
    Case(layout, shuffle, world_size, batch_size, drop_last, compression, selection)
    for layout, shuffle, world_size, batch_size, drop_last, compression, selection in itertools.product(
        LAYOUTS, SHUFFLES, (1, 2, 3, 4, 8), (1, 2, 5), (False, True), ("none", "gz", "xz"), (False, True)
    )
    if compression == "none" or layout != "unequal"
]
WITH_WORKERS = [
    Case(layout, shuffle, world_size, 2, drop_last, "none", selection, num_workers, "fork", persistent)
    for layout, shuffle, world_size, drop_last, selection, num_workers, persistent in itertools.product(
        LAYOUTS, SHUFFLES, (1, 2, 3, 4, 8), (False, True), (False, True), (1, 3), (False, True)
    )
]
SPAWNED = [
    Case("unequal", shuffle, world_size, 2, False, "none", False, num_workers, "spawn", persistent)
    for shuffle, world_size, num_workers, persistent in itertools.product(SHUFFLES, (1, 2), (1, 3), (False, True))
]


def sampled(cases: list[Case], n: int) -> list[Any]:
    """A few cases by a fixed seed for every run, all behind the `slow` marker."""
    few = random.Random(20).sample(cases, n) if n > 1 else [case for case in cases if case.num_workers == 1][-1:]
    return few + [pytest.param(case, marks=pytest.mark.slow) for case in cases if case not in few]


def assert_resumes_everywhere(directory: Path, case: Case, at_every_step: bool) -> None:
    """Run an epoch, save at every step, and go on from each state in fresh loaders, in this topology and another."""
    reference = epoch_rows(directory, case.shuffle, 0, case.selection)
    loaders = ranks(directory, case.world_size, **case.options())
    delivered, states = [], [loaders[0].state_dict()]
    for step in steps(loaders):
        delivered.append(step)
        states.append(loaders[0].state_dict())
        assert all(loader.state_dict() == states[-1] for loader in loaders)
    assert global_rows(delivered) == case.whole(reference)
    assert [len(loader) for loader in loaders] == [len(delivered)] * case.world_size
    assert (states[-1]["epoch"], states[-1]["position"]) == ((1, 0) if delivered else (0, 0))

    luck = random.Random(repr(case))
    for state in states if at_every_step else luck.sample(states, 1):
        epoch, done = state["epoch"], state["position"]
        remaining = epoch_rows(directory, case.shuffle, epoch, case.selection)[done:]
        other = Case(case.layout, case.shuffle, luck.choice((1, 2, 3, 4, 8)), luck.choice((1, 2, 5)), case.drop_last,
                     selection=case.selection)  # fmt: skip
        for now in (case, other):
            again = resumed(directory, state, now.world_size, **now.options())
            assert [loader.state_dict() for loader in again] == [state] * now.world_size
            assert global_rows(steps(again)) == now.whole(remaining)
        if epoch == 0:  # in the same topology also what is dropped is the same
            assert case.whole(reference)[done:] == case.whole(remaining)
    # the epoch after, by the same objects: whole, and in its own order
    assert global_rows(steps(loaders)) == case.whole(epoch_rows(directory, case.shuffle, 1, case.selection))


@pytest.mark.parametrize("case", sampled(IN_PROCESS, 60), ids=repr)
def test_the_rest_equals_the_uninterrupted_rest(dataset: Datasets, case: Case) -> None:
    assert_resumes_everywhere(dataset(case.layout, case.compression), case, at_every_step=True)


@pytest.mark.parametrize("case", [*sampled(WITH_WORKERS, 8), *sampled(SPAWNED, 1)], ids=repr)
def test_with_worker_processes(dataset: Datasets, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = random.Random(f"bundle of {case}").choice((1, 2, 3))  # batches so small would not be bundled
    monkeypatch.setattr(WebDatasetDataLoader, "_bundle", lambda self: bundle)
    assert_resumes_everywhere(dataset(case.layout, case.compression), case, at_every_step=False)


topologies = st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 6), st.integers(0, 4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chain=st.lists(topologies, max_size=6), shuffle=st.sampled_from(SHUFFLES), layout=st.sampled_from(sorted(LAYOUTS))
)
def test_any_chain_of_topologies_gives_one_sequence(
    dataset: Datasets, chain: list[tuple[int, int, int]], shuffle: bool | str, layout: str
) -> None:
    directory = dataset(layout)
    state = plain(directory, shuffle=shuffle).state_dict()
    seen: list[Row] = []
    for world_size, batch_size, n_steps in [*chain, (1, 5, 100)]:
        if state["epoch"]:
            break
        options = {"shuffle": shuffle, "batch_size": batch_size, "num_workers": 0, "prefetch_factor": 0, **SMALL}
        loaders = resumed(directory, state, world_size, **options)
        seen += global_rows(itertools.islice(steps(loaders), n_steps))
        (state,) = {json.dumps(loader.state_dict()): loader.state_dict() for loader in loaders}.values()
    assert tuple(seen) == epoch_rows(directory, shuffle)
    assert (state["epoch"], state["position"]) == (1, 0)


@pytest.mark.parametrize("bundle", [1, 2])
def test_a_chain_across_ranks_and_workers(dataset: Datasets, bundle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ranks × 2 workers → 3 × 1 → 1 × 4, each stopped before all its workers have delivered."""
    monkeypatch.setattr(WebDatasetDataLoader, "_bundle", lambda self: bundle)
    directory = dataset("unequal")
    state, seen = plain(directory).state_dict(), []
    for world_size, num_workers, batch_size, n_steps in ((2, 2, 2, 1), (3, 1, 1, 2), (1, 4, 3, 2), (1, 2, 4, 99)):
        loaders = resumed(directory, state, world_size, num_workers=num_workers, batch_size=batch_size, **SMALL)
        seen += global_rows(itertools.islice(steps(loaders), n_steps))
        state = loaders[-1].state_dict()
    assert tuple(seen) == epoch_rows(directory, True)


@pytest.mark.parametrize("persistent", [False, True])
def test_bundles_of_small_batches_stay_in_order(tmp_path: Path, persistent: bool) -> None:
    directory = write_dataset(tmp_path / "shards", (50,) * 8)
    options = {"batch_size": 2, "num_workers": 3, "shuffle": "full", "prefetch_factor": 1}
    loader = create_webdataset_dataloader(directory, persistent_workers=persistent, **options)
    assert loader._bundle() == 16
    for epoch in range(2):
        whole = epoch_rows(directory, "full", epoch)
        assert tuple(global_rows(itertools.islice(steps([loader]), 37))) == whole[:74]
        (again,) = resumed(directory, loader.state_dict(), **options)
        assert tuple(global_rows(steps([again]))) == whole[74:]
        loader.set_epoch(epoch + 1)


@pytest.mark.parametrize("kind", [WebDatasetLoader, functools.partial(plain, batch_size=2)], ids=["samples", "batches"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_samples_and_batches_resume_at_every_step(dataset: Datasets, kind: Any, shuffle: bool | str) -> None:
    directory = dataset("unequal")
    options = {"shuffle": shuffle, **SMALL}
    for world_size in (1, 3):
        loaders = ranks(directory, world_size, kind, **options)
        seen = 0
        for step in some(steps(loaders)):
            seen += len(global_rows([step]))
            again = resumed(directory, loaders[-1].state_dict(), world_size, make=kind, **options)
            epoch = again[0].epoch
            assert (epoch == 1) == (seen == 24)
            assert tuple(global_rows(steps(again))) == epoch_rows(directory, shuffle, epoch)[seen % 24 :]


# --- epochs, and iterating more than once


def test_a_state_survives_being_loaded_and_saved_again(dataset: Datasets) -> None:
    loader = plain(dataset(), batch_size=5)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    fresh = plain(dataset(), batch_size=2)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state == fresh.get_state()
    loader.load_state_dict(state)  # the same object, with an iteration still alive
    next(iterator)
    assert loader.state_dict() == state
    rest = epoch_rows(dataset(), True)[5:]
    assert tuple(global_rows(steps([loader]))) == rest == tuple(global_rows(steps([fresh])))
    assert tuple(global_rows(steps([fresh]))) == epoch_rows(dataset(), True, 1)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=repr)
def test_epochs_breaks_and_resumes_of_one_object(dataset: Datasets, options: dict[str, Any]) -> None:
    directory = dataset("unequal")
    loader = plain(directory, batch_size=4, **options)
    next(iter(loader))
    assert loader.state_dict()["position"] == 4
    assert tuple(global_rows(steps([loader]))) == epoch_rows(directory, True)  # broken out: again from the start
    for _batch in itertools.islice(loader, len(loader)):  # all of them, without asking for one more
        pass
    assert (loader.epoch, loader.state_dict()["position"]) == (2, 0)
    loader.set_epoch(2)
    assert tuple(global_rows(steps([loader]))) == epoch_rows(directory, True, 2)
    loader.set_epoch(0)
    state = next(s for s in (loader.state_dict() for _ in loader) if s["position"] == 12)
    loader.load_state_dict(state)
    loader.set_epoch(0)  # the epoch that the state is of: it stays
    assert tuple(global_rows(steps([loader]))) == epoch_rows(directory, True)[12:]
    loader.load_state_dict(state)
    loader.set_epoch(5)
    assert tuple(global_rows(steps([loader]))) == epoch_rows(directory, True, 5)


@pytest.mark.parametrize("make", [plain, WebDatasetLoader], ids=["batches", "samples"])
def test_numbers_of_numpy_are_numbers(dataset: Datasets, make: Any) -> None:
    """A state is for JSON, whatever the arguments were; and what is no whole number is refused at once."""
    sizes = {"seed": np.int64(3), "buffer_size": np.uint8(7), "block_size": np.int16(3)}
    more = {"batch_size": np.int32(4), "prefetch_factor": np.int8(1)} if make is plain else {}
    loader = make(dataset(), **sizes, **more, transform=jitter)
    loader.set_epoch(np.int64(2))
    next(iter(loader))
    state = through_json(loader.state_dict())
    assert state["epoch"] == 2 and (state["seed"], state["buffer_size"], state["block_size"]) == (3, 7, 3)
    same = make(
        dataset(),
        seed=3,
        transform=jitter,
        **({"batch_size": 4} if make is plain else {"buffer_size": 7, "block_size": 3}),
    )
    same.load_state_dict(state)
    loader.load_state_dict(loader.state_dict())
    assert global_rows(steps([same])) == global_rows(steps([loader]))
    for wrong in (-1, 1.0, 1.5, True, np.bool_(True), "1", None, 2**63):
        with pytest.raises(ValueError, match="epoch must be a whole number from 0"):
            loader.set_epoch(wrong)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=repr)
def test_two_live_iterators(dataset: Datasets, options: dict[str, Any]) -> None:
    """Each gets the whole epoch; the state is that of the one begun last."""
    loader = plain(dataset(), batch_size=4, **options)
    first = iter(loader)
    seen = [next(first)]
    second = iter(loader)
    both = [next(second)]
    seen += itertools.islice(first, 3)
    assert loader.state_dict()["position"] == 4
    both += second
    seen += first
    assert loader.state_dict()["epoch"] == 1
    for found in (seen, both):
        assert tuple(row for batch in found for row in rows(batch)) == epoch_rows(dataset(), True)
    assert tuple(global_rows(steps([loader]))) == epoch_rows(dataset(), True, 1)


def test_an_epoch_without_a_step_ends_and_was_warned_of(dataset: Datasets, caplog: pytest.LogCaptureFixture) -> None:
    small = dataset("fewer than ranks")
    for size in ({"batch_size": 4}, {"batch_size": 2, "rank": 1, "world_size": 2}):
        caplog.clear()
        loader = plain(small, drop_last=True, **size)
        assert len(loader) == 0 and [*loader] == [] and loader.epoch == 1
        (told,) = (record.message for record in caplog.records)
        world_size = size.get("world_size", 1)
        assert f"3 samples do not fill batch_size={size['batch_size']} on {world_size} rank(s); use a smaller" in told
    caplog.clear()
    plain(small, batch_size=3, drop_last=True), plain(small, batch_size=4)
    assert not caplog.records


def test_order_depends_on_seed_and_epoch_alone(dataset: Datasets) -> None:
    def order(epoch: int = 0, **options: Any) -> list[str]:
        loader = plain(dataset("unequal"), **options)
        loader.set_epoch(epoch)
        return [key for batch in loader for key in batch["__key__"]]

    for shuffle in (True, "full"):
        assert order(shuffle=shuffle) == order(shuffle=shuffle, batch_size=3, num_workers=2)
        assert order(3, shuffle=shuffle) == order(3, shuffle=shuffle, batch_size=7)
        assert len({tuple(order(e, shuffle=shuffle, seed=s)) for e in range(3) for s in (1, 2)}) == 6
    assert order(3, shuffle=False, seed=1) == [key_of(i) for i in range(24)]


# --- composed pipelines, transforms, collation


def key_only(sample: dict[str, Any]) -> str:
    return str(sample["__key__"])


def test_composed_pipelines_share_the_state(dataset: Datasets) -> None:
    directory = dataset("unequal")
    keys = [key for key, *_ in epoch_rows(directory, True)]
    made: dict[str, Callable[[Any], Any]] = {
        "map": lambda loader: loader.map(key_only),
        "compose": lambda loader: loader.compose(functools.partial(map, key_only)),
        "to_tuple": lambda loader: loader.to_tuple("__key__", "x").map(lambda pair: pair[0]),
        "select": lambda loader: loader.select(lambda sample: True).map(key_only),
        "batched": lambda loader: loader.map(key_only).batched(5, collation_fn=None).unlisted(),
    }
    for name, compose in made.items():
        pipeline = compose(WebDatasetLoader(directory, **SMALL))
        assert [next(iterator := iter(pipeline)), *itertools.islice(iterator, 9)] == keys[:10], name
        fresh = compose(WebDatasetLoader(directory, **SMALL))
        fresh.load_state_dict(through_json(pipeline.state_dict()))
        assert list(fresh) == keys[10:], name
        assert fresh.epoch == 1
    batches = plain(directory, batch_size=5).map(lambda batch: batch["__key__"])
    assert sum(itertools.islice(batches, 2), []) == keys[:10]
    fresh = plain(directory, batch_size=5).map(lambda batch: batch["__key__"])
    fresh.load_state_dict(batches.state_dict())
    assert sum(fresh, []) == keys[10:]


def test_a_composed_stage_may_give_any_iterable(dataset: Datasets) -> None:
    loader = WebDatasetLoader(dataset(), **SMALL)
    assert [sample["__key__"] for sample in loader.compose(list)] == [key for key, *_ in epoch_rows(dataset(), True)]
    assert loader.epoch == 1


@pytest.mark.parametrize("options", [{"prefetch_factor": 0}, {"num_workers": 2}], ids=repr)
def test_a_batch_is_not_held_while_the_next_is_made(tmp_path: Path, options: dict[str, Any]) -> None:
    """So each lies in the memory of the one before it."""
    directory = write_dataset(tmp_path / "d", (400,))
    seen, batches = set(), iter(plain(directory, batch_size=2, shuffle=False, **options))
    for batch in batches:
        seen.add(batch["x"].data_ptr())
        del batch
    assert len(seen) == 1


def test_augmentation_goes_with_the_sample(dataset: Datasets) -> None:
    directory = dataset("unequal")
    reference = {row[0]: row[1] for row in global_rows(steps([plain(directory, transform=jitter)]))}
    assert len(set(reference.values())) == 24
    assert all(value != array_of(int(key[-9:])).tobytes() for key, value in reference.items())
    for world_size, options in ((1, {"num_workers": 2}), (3, {}), (1, {"shuffle": False})):
        loaders = ranks(directory, world_size, plain, transform=jitter, batch_size=3, **options)
        delivered = [*itertools.islice(steps(loaders), 2)]
        again = resumed(directory, loaders[0].state_dict(), 2, make=plain, transform=jitter, **options)
        found = {key: value for key, value, _ in global_rows([*delivered, *steps(again)])}
        assert found == reference
    samples = WebDatasetLoader(directory, transform=jitter, **SMALL)
    assert {sample["__key__"]: sample["x"].tobytes() for sample in samples} == reference
    other = plain(directory, transform=jitter)
    other.set_epoch(1)
    assert not {row[1] for row in global_rows(steps([other]))} & set(reference.values())
    chosen = plain(directory, transform=jitter, select=SELECTED)
    assert {row[0]: row[1] for row in global_rows(steps([chosen]))}.items() <= reference.items()


def test_a_transform_need_not_return_a_dict(dataset: Datasets) -> None:
    for loader in ranks(dataset("fewer than ranks"), 4, WebDatasetLoader, transform=key_only):
        assert len([*loader]) == 1


def test_the_fast_road_equals_the_plain_one(dataset: Datasets) -> None:
    def same(sample: dict[str, Any]) -> dict[str, Any]:
        return sample

    for fast, slow in some(zip(plain(dataset()), plain(dataset(), transform=same), strict=True)):
        assert set(fast) == set(slow) and fast["metadata"] == slow["metadata"] and fast["__key__"] == slow["__key__"]
        for name in ("x", "number"):
            assert fast[name].dtype == slow[name].dtype and torch.equal(fast[name], slow[name])


def test_collation_and_modalities(dataset: Datasets) -> None:
    samples = next(iter(plain(dataset(), batch_size=3, collate_fn=None)))
    assert [type(sample) for sample in samples] == [dict] * 3 and samples[0]["x"].flags.writeable
    assert next(iter(plain(dataset(), batch_size=3, collate_fn=len))) == 3
    batch = next(iter(plain(dataset(), modalities=["x"])))
    assert set(batch) == {"x", "metadata", "__key__"} and batch["x"].shape == (24, 2, 3)
    with pytest.raises(ValueError, match="no field nothing"):
        plain(dataset(), modalities=["nothing"])
    pinned = plain(dataset(), pin_memory=True)
    assert torch.cuda.is_available() or not next(iter(pinned))["x"].is_pinned()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fields_of_unequal_shape(tmp_path: Path, num_workers: int) -> None:
    with wds.TarWriter(str(tmp_path / "shard_0.tar")) as tar:
        for i in range(4):
            tar.write({"__key__": f"{i}", "x.npy": np.full(i + 1, i, np.float32)})
    listed = next(iter(plain(tmp_path, shuffle=False, num_workers=num_workers)))["x"]
    assert [x.tolist() for x in listed] == [[i] * (i + 1) for i in range(4)]
    pad = functools.partial(collate_webdataset, pad_value=-1.0)
    batch = next(iter(plain(tmp_path, shuffle=False, num_workers=num_workers, collate_fn=pad)))
    assert batch["x"].tolist() == [[i] * (i + 1) + [-1] * (3 - i) for i in range(4)]
    assert batch["x_lengths"].tolist() == [[1], [2], [3], [4]]


def identity(item: Any) -> Any:
    return item


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_workers_by_default_only_where_there_is_work(
    dataset: Datasets, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurofmx_wds.loading.batch_loader._n_cores", lambda: cores)
    for none in ({}, {"select": SELECTED}, {"modalities": ["x"]}, {"drop_last": True}):
        assert create_webdataset_dataloader(dataset(), **none).num_workers == 0
    for name in ("transform", "batch_transform", "collate_fn"):
        loader = create_webdataset_dataloader(dataset(), **{name: identity})
        assert loader.num_workers == min(4, cores)
        for number in (0, 1, 7):
            assert create_webdataset_dataloader(dataset(), **{name: identity}, num_workers=number).num_workers == number


# --- refusals


def test_states_of_something_else_are_refused(dataset: Datasets, tmp_path: Path) -> None:
    loader = plain(dataset(), batch_size=4)
    next(iter(loader))
    good = loader.state_dict()
    other = write_dataset(tmp_path / "other", (6, 6, 6, 7)[:3])
    for kwargs, named in (
        ({"seed": 1}, "seed"), ({"shuffle": False}, "shuffle"), ({"shuffle": "full"}, "shuffle"),
        ({"select": SELECTED}, "selection"), ({"buffer_size": 8}, "buffer_size"), ({"block_size": 2}, "block_size"),
    ):  # fmt: skip
        with pytest.raises(StateError, match=named):
            plain(dataset(), **kwargs).load_state_dict(good)
    with pytest.raises(StateError, match="dataset"):
        plain(other).load_state_dict(good)
    for change, named in (
        ({"version": 99}, "version"), ({"position": 25}, "position"), ({"position": -1}, "position"),
        ({"position": "4"}, "position"), ({"shard_idx": good["shard_idx"] + 1}, "shard_idx"), ({"epoch": 1.5}, "epoch"),
    ):  # fmt: skip
        with pytest.raises(StateError, match=named):
            loader.load_state_dict({**good, **change})
    for bad in ("{}", None, [], {}, {k: v for k, v in good.items() if k != "fingerprint"}):
        with pytest.raises(StateError):
            loader.load_state_dict(bad)  # type: ignore[arg-type]
    assert loader.state_dict() == good  # a refused state changes nothing


def test_a_loader_shows_where_it_is(dataset: Datasets) -> None:
    where, loader = dataset(), plain(dataset(), batch_size=5)
    next(iter(loader))
    assert repr(loader) == (f"WebDatasetDataLoader('{where}', samples=24, batch_size=5, steps=5, epoch=0, position=5)")
    loader.set_epoch(2)
    assert repr(loader.map(len)).endswith("epoch=2, position=0)")
    assert repr(WebDatasetLoader(where, select=SELECTED)).startswith(f"WebDatasetLoader('{where}', samples=16, ")


def test_a_bare_place_is_a_state(dataset: Datasets) -> None:
    loader = plain(dataset("unequal"), shuffle=False)
    for place, first in (((1, 3), 4), ((1, 9), 10), ((0, 0), 0), ((4, 5), 24)):
        loader.load_state_dict({"shard_idx": place[0], "sample_offset": place[1]})
        assert [row[2] for row in global_rows(steps([loader]))] == [*range(first % 24, 24)]
    with pytest.raises(StateError):
        loader.load_state_dict({"shard_idx": 5, "sample_offset": 1})


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": True}, {"batch_size": 1.0}, {"num_workers": -1}, {"num_workers": True},
     {"num_workers": 1.5}, {"prefetch_factor": -1}, {"in_order": False}, {"rank": 0}, {"seed": "a"},
     {"rank": 2, "world_size": 2}, {"shuffle": "most"}, {"buffer_size": 0}, {"io": "magic"}],
    ids=repr,
)  # fmt: skip
def test_bad_arguments_are_refused_at_once(dataset: Datasets, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        plain(dataset(), **options)
    with pytest.raises(TypeError, match="sampler"):
        plain(dataset(), sampler=None)


# --- damaged samples, failing transforms


def damage(shard: Path, numbers: Iterable[int], field: str = "x.npy") -> None:
    with tarfile.open(shard) as tar:
        places = [tar.getmember(f"{key_of(i)}.{field}").offset_data for i in numbers]
    with open(shard, "r+b") as stream:
        for place in places:
            stream.seek(place)
            stream.write(b"damaged!")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples 3, 10, and 12 to 17 (shard 2 whole) hold no array where one should be."""
    directory = write_dataset(tmp_path_factory.mktemp("damaged") / "shards", (6, 6, 6, 6))
    for shard, numbers in ((0, [3]), (1, [10]), (2, range(12, 18))):
        damage(directory / f"shard_{shard:06d}.tar", numbers)
    for index in directory.glob("*.index"):
        index.unlink()
    (directory / "dataset_metadata.json").unlink()
    return directory


BAD = {3, 10, *range(12, 18)}


def quietly(error: Exception) -> bool:
    return isinstance(error, NeurofmxError)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_damaged_samples_are_skipped_and_counted(damaged: Path, shuffle: bool | str, num_workers: int) -> None:
    order = [row[2] for row in epoch_rows_of_numbers(shuffle)]
    good = [i for i in order if i not in BAD]
    for batch_size in (1, 2, 4):  # 2: more batches than a worker has places for
        loader = plain(
            damaged, shuffle=shuffle, batch_size=batch_size, num_workers=num_workers, prefetch_factor=1, handler=quietly
        )
        seen, state, skipped = [], None, 0
        for step, batch in enumerate(loader):
            seen.append(batch)
            if step == 2:
                state, skipped = loader.state_dict(), loader.skipped
        assert [row for batch in seen for row in rows(batch)] == [row_of(i) for i in good]
        assert loader.skipped == len(BAD)
        assert state is not None and skipped == len(BAD & {*order[: state["position"]]})
        again = plain(damaged, shuffle=shuffle, batch_size=3, handler=quietly)
        again.load_state_dict(state)
        rest = [i for i in order[state["position"] :] if i not in BAD]
        assert [row[2] for row in global_rows(steps([again]))] == rest
        assert again.skipped + skipped == len(BAD)
    samples = WebDatasetLoader(damaged, shuffle=shuffle, handler=quietly, **SMALL)  # type: ignore[arg-type]
    half = [*itertools.islice(samples, 8)]
    again = WebDatasetLoader(damaged, shuffle=shuffle, handler=quietly, **SMALL)  # type: ignore[arg-type]
    again.load_state_dict(samples.state_dict())
    assert [sample["metadata"]["i"] for sample in [*half, *again]] == good
    assert samples.skipped + again.skipped == len(BAD)


@functools.cache
def epoch_rows_of_numbers(shuffle: bool | str) -> tuple[Row, ...]:
    """The order of any dataset of 4 × 6 samples."""
    with tempfile.TemporaryDirectory() as place:
        return epoch_rows(write_dataset(Path(place) / "shards", (6, 6, 6, 6)), shuffle)


def test_what_is_left_of_a_batch_stays_as_it_was(tmp_path: Path) -> None:
    """Workers use shared memory again and again; a batch with a sample skipped must not lie in it when it comes."""
    shard = tmp_path / "shard_0.tar"
    with wds.TarWriter(str(shard)) as tar:
        for i in range(48):
            tar.write({"__key__": key_of(i), "a.npy": array_of(i), "number.npy": np.array(i)})
    damage(shard, [45, 46, 47], "a.npy")
    loader = plain(
        tmp_path,
        shuffle=False,
        batch_size=4,
        num_workers=1,
        prefetch_factor=1,
        handler=quietly,
        persistent_workers=True,
    )
    found = [i for batch in [*loader, *itertools.islice(loader, 4)] for i in batch["number"].tolist()]
    assert found == [*range(45), *range(16)] and loader.skipped == 3


@pytest.mark.parametrize("make", [plain, WebDatasetLoader], ids=["batches", "samples"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_ranks_step_together_past_damaged_samples(damaged: Path, make: Any, shuffle: bool | str) -> None:
    options = {"batch_size": 2} if make is plain else {}
    for world_size in (2, 3, 4):
        loaders = ranks(damaged, world_size, make, shuffle=shuffle, handler=quietly, **SMALL, **options)
        delivered = [*steps(loaders)]
        assert len(delivered) == len(loaders[0])
        order = [row[2] for row in epoch_rows_of_numbers(shuffle)]
        assert [row[2] for row in global_rows(delivered)] == [i for i in order if i not in BAD]
        assert sum(loader.skipped for loader in loaders) == len(BAD)


def test_the_cost_of_a_shard_that_cannot_be_read_grows_with_its_samples_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_dataset(tmp_path / "d", (200, 200))
    (directory / "shard_000000.tar").write_bytes(b"")
    tried: list[int] = []
    read = ShardReader.read_batch
    monkeypatch.setattr(ShardReader, "read_batch", lambda *args: tried.append(1) or read(*args))
    options = {"shuffle": False, "handler": wds.ignore_and_continue}
    assert [i for _, _, i in global_rows(steps(ranks(directory, 2, WebDatasetLoader, **options)))] == [*range(200, 400)]
    assert len(tried) < 400 + 200 * (1 + 1 + 9)  # each, and where it fails again alone and for a stand-in


def test_damage_is_named(damaged: Path) -> None:
    for num_workers in (0, 1):
        with pytest.raises(ShardError, match=rf"shard_000000\.tar.*{key_of(3)}.*x\.npy"):
            list(plain(damaged, shuffle=False, num_workers=num_workers))
    with pytest.raises(ShardError, match=key_of(3)):  # the user's handler says stop: no silent end
        list(plain(damaged, shuffle=False, handler=lambda error: False))
    with pytest.warns(UserWarning):
        list(plain(damaged, handler=wds.warn_and_continue))
    nothing = plain(damaged, handler=quietly, select=lambda about: about["i"] in BAD)
    assert list(nothing) == [] and nothing.skipped == len(BAD) and nothing.epoch == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_failing_transform_is_named(dataset: Datasets, num_workers: int) -> None:
    with pytest.raises(NeurofmxError, match=rf"shard_000001\.tar.*{key_of(7)}.*RuntimeError: cannot transform"):
        list(plain(dataset(), transform=fail_on_7, num_workers=num_workers))
    loader = plain(dataset(), transform=fail_on_7, num_workers=num_workers, handler=quietly)
    assert {row[2] for row in global_rows(steps([loader]))} == {*range(24)} - {7} and loader.skipped == 1


# --- nothing stays behind


def left_behind() -> tuple[set[str], int, int, int]:
    gc.collect()
    files = sum("shard_" in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())
    with open("/proc/self/maps") as maps:
        mapped = sum("shard_" in line for line in maps)
    threads = {thread.name for thread in threading.enumerate()}
    return threads, len(multiprocessing.active_children()), files, mapped


def no_more_than(before: tuple[set[str], int, int, int]) -> bool:
    """In the end: torch gives its workers some seconds to leave, and does not wait for those that it then kills."""
    deadline = time.monotonic() + 60
    while more := not all(now <= then for now, then in zip(left_behind(), before, strict=True)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return not more


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=repr)
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at /proc")
def test_nothing_is_left_after_a_break(dataset: Datasets, options: dict[str, Any]) -> None:
    before = left_behind()
    loader = plain(dataset(), batch_size=2, **options)
    iterator = iter(loader)
    next(iterator)
    assert left_behind() != before
    del iterator, loader
    assert no_more_than(before)
    samples = iter(WebDatasetLoader(dataset(), **SMALL))
    next(samples)
    del samples
    assert no_more_than(before)


def test_an_error_leaves_no_workers_to_wait_for(dataset: Datasets) -> None:
    before = multiprocessing.active_children()
    with pytest.raises(NeurofmxError, match="cannot transform"):
        list(plain(dataset(), transform=fail_on_7, num_workers=2))
    assert multiprocessing.active_children() == before


def test_an_iterator_that_is_collected_waits_for_no_lock_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage is collected in any thread at any moment, also while it holds what the reading thread waits for."""
    monkeypatch.setattr("neurofmx_wds.loading.prefetch._LONGEST_WAIT", 0.1)
    before, lock, asked = threading.active_count(), threading.Lock(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        asked.set()
        with lock:
            yield 1

    with lock:
        ahead = _read_ahead(items(), 1)
        assert next(ahead) == 0 and asked.wait(60)
        ahead.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_iterator_in_a_cycle_is_collected(dataset: Datasets) -> None:
    before = threading.active_count()
    cycle: dict[str, Any] = {"iterator": iter(plain(dataset(), batch_size=2))}
    next(cycle["iterator"])
    cycle["itself"] = cycle
    del cycle
    gc.collect()
    assert threading.active_count() == before


# --- what can be opened


def test_patterns_lists_and_foreign_tars(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "shards", (1, 9, 2))
    braces = str(directory / "shard_{000000..000002}.tar")
    paths = sorted(directory.glob("*.tar"))
    for spec in (braces, paths, [str(path) for path in paths], str(directory / "*.tar")):
        assert [row[2] for row in global_rows(steps([plain(spec, shuffle=False)]))] == [*range(12)]
    state = plain(directory).state_dict()
    plain(braces).load_state_dict(state)  # the same dataset by another name
    official = wds.WebDataset(braces, shardshuffle=False).decode()
    assert [sample["x.npy"].tobytes() for sample in official] == [array_of(i).tobytes() for i in range(12)]


def count_as_nobody(directory: Path, found: Any) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    with pytest.raises(PermissionError):
        (directory / "new").touch()
    found.put(sum(1 for _ in WebDatasetLoader(directory)))


def test_a_directory_that_cannot_be_written() -> None:
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    directory = write_dataset(place / "shards", (1, 9, 2))
    directory.chmod(0o555)
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()
    child = fork.Process(target=count_as_nobody, args=(directory, found))
    child.start()
    child.join(60)
    try:
        assert child.exitcode == 0 and found.get() == 12
        assert sorted(path.suffix for path in directory.iterdir()) == [".tar"] * 3
    finally:
        directory.chmod(0o755)
        shutil.rmtree(place)


# --- ResumableWebDatasetLoader


def test_it_checkpoints_itself(dataset: Datasets, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def opened() -> ResumableWebDatasetLoader:
        return ResumableWebDatasetLoader(dataset("unequal"), tmp_path / "at.json", 5, **SMALL)

    reference = epoch_rows(dataset("unequal"), True)
    seen = [row for sample in itertools.islice(opened(), 13) for row in rows(sample)]
    assert json.loads((tmp_path / "at.json").read_text())["position"] == 10
    loader = opened()
    assert "position 10" in caplog.text and loader.state_dict()["position"] == 10
    rest = [row for sample in loader for row in rows(sample)]
    assert tuple(seen[:10] + rest) == reference
    assert opened().epoch == 1
    (tmp_path / "at.json").write_text(json.dumps({"shard_idx": 1, "sample_offset": 3}))
    assert opened().load_checkpoint() == {"shard_idx": 1, "sample_offset": 3}
    for damage in (b"", b"[", b"\xff", b"[" * 60000, b"1", b"x" * (1 << 17)):
        (tmp_path / "at.json").write_bytes(damage)
        with pytest.raises(StateError, match=r"at\.json"):
            opened()
    with pytest.raises(ValueError, match="interval"):
        ResumableWebDatasetLoader(dataset(), tmp_path / "none.json", 0)


def test_only_rank_0_writes(dataset: Datasets, tmp_path: Path) -> None:
    for rank in (1, 2, 0):
        assert not (tmp_path / "at.json").exists()
        [*ResumableWebDatasetLoader(dataset(), tmp_path / "at.json", 1, rank=rank, world_size=3)]
    assert json.loads((tmp_path / "at.json").read_text())["epoch"] == 1


def test_a_thread_reads_ahead_for_a_consumer_that_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    write_dataset(tmp_path / "d", (24,))
    loader = create_webdataset_dataloader(tmp_path / "d", batch_size=2, num_workers=0)

    def reading(pause: float) -> tuple[set[bool], list[str]]:
        seen, keys = set(), []
        for batch in loader:
            time.sleep(pause)
            seen.add(any(thread.name == "neurofmx_wds prefetch" for thread in threading.enumerate()))
            keys += batch["__key__"]
        loader.set_epoch(0)
        return seen, keys

    patient, keys = reading(0.002)
    assert True in patient
    monkeypatch.setattr("neurofmx_wds.loading.prefetch._WORTH_A_THREAD", 60.0)
    assert reading(0) == ({False}, keys)
    assert not any(thread.name == "neurofmx_wds prefetch" for thread in threading.enumerate())
