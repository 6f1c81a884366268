"""Batches of samples that belong together: what they have in common, and the laws of any batches."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import ranks, resumed, steps, through_json
from recordings import make_recording

from neurofmx_wds import Budget, WebDatasetWriter, Windows, create_webdataset_dataloader, mix
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import StateError
from neurofmx_wds.order.batching import GroupedBatches
from neurofmx_wds.order.cursor import BatchPlan
from neurofmx_wds.order.epoch import EpochOrder
from neurofmx_wds.order.grouped import Alike, GroupedOrder, NearlyAsLong, padded

N = 97
SMALL: dict[str, Any] = {"buffer_size": 20, "block_size": 3, "num_workers": 0}


def load(directory: Any, **options: Any) -> Any:
    return create_webdataset_dataloader(directory, **{**SMALL, "batch_size": 4, **options})


def length_of(i: int) -> int:
    return 1 + i * 7 % 13


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """97 samples of 1 to 13 events, of three sessions and five kinds."""
    out = tmp_path_factory.mktemp("data") / "ragged"
    with WebDatasetWriter(out, shard_size=10) as writer:
        for i in range(N):
            about = {"i": i, "session_id": "abc"[i * 3 // N], "kind": i % 5}
            writer.write_sample({"events": np.full(length_of(i), i, np.float32), "metadata": about})
    return out


BY: list[Any] = ["session_id", "kind", Budget(of="events", tokens=30), Budget(of="events")]


def same_kind(batch: dict[str, Any], by: Any) -> bool:
    if isinstance(by, str):
        return len({about[by] for about in batch["metadata"]}) == 1 and len(batch["metadata"]) <= 4
    lengths = [len(events) for events in batch["events"]]
    return len(lengths) * max(lengths) <= by.tokens if by.tokens else len(lengths) <= 4


def fresh(batch: dict[str, Any]) -> list[int]:
    new = batch.get("__mask__", torch.ones(len(batch["metadata"]), dtype=torch.bool)).tolist()
    for about, events in zip(batch["metadata"], batch["events"], strict=True):
        assert events.tolist() == [about["i"]] * length_of(about["i"])
    return [about["i"] for about, is_new in zip(batch["metadata"], new, strict=True) if is_new]


def delivered(loaders: list[Any], by: Any) -> list[int]:
    found = []
    for step in list(steps(loaders)):
        for batch in step:
            assert same_kind(batch, by)
            found += fresh(batch)
    return found


# The arithmetic


@st.composite
def grouped(draw: st.DrawFn) -> GroupedOrder:
    n, buffer_size = draw(st.integers(1, 90)), draw(st.integers(1, 40))
    shuffle = draw(st.sampled_from([False, True, "full"]))
    base = EpochOrder([n], draw(st.integers(0, 5)), 0, shuffle, buffer_size, 3)
    numbers = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), np.int64)
    size = draw(st.integers(1, 9))
    rule = draw(
        st.sampled_from(
            [
                Alike("x", numbers.__getitem__, size),
                NearlyAsLong("x", numbers.__getitem__, size),
                NearlyAsLong("x", numbers.__getitem__, size, 3 * size),
            ]
        )
    )
    return GroupedOrder(base, rule)


def slow_batches(order: GroupedOrder) -> list[list[int]]:
    """The batches of an epoch before they are shuffled inside their window, sample by sample."""
    found = []
    for start in range(0, len(order), order.buffer_size):
        ids = order.base.sample_ids(start, min(len(order), start + order.buffer_size)).tolist()
        values = {i: int(order.rule.values(np.array([i]))[0]) for i in ids}
        if isinstance(order.rule, Alike):
            for value in dict.fromkeys(values.values()):
                same = [i for i in ids if values[i] == value]
                size = order.rule.batch_size
                found += [same[k : k + size] for k in range(0, len(same), size)]
            continue
        batch: list[int] = []
        for i in sorted(ids, key=values.__getitem__):
            more = [*batch, i]
            most = order.rule.tokens
            full = len(more) > order.rule.batch_size if most is None else len(more) * max(1, values[i]) > most
            if batch and full:
                found.append(batch)
                more = [i]
            batch = more
        found.append(batch)
    return found


@given(grouped(), st.integers(0, 3))
def test_windows_are_cut_as_one_would_by_hand(order: GroupedOrder, epoch: int) -> None:
    order = order.of_epoch(epoch)
    ids = order.sample_ids(0, len(order)).tolist()
    batches = [ids[start : start + n] for start, n in order.batches(0)]
    expected = slow_batches(order)
    assert sorted(batches) == sorted(expected)
    assert order.shuffle is not False or batches == expected
    window_of = {i: p // order.buffer_size for p, i in enumerate(order.base.sample_ids(0, len(order)).tolist())}
    assert [window_of[i] for i in ids] == [p // order.buffer_size for p in range(len(ids))]


@given(grouped(), st.integers(1, 6), st.booleans(), st.data())
def test_plans_cover_the_rest_once_in_order_and_in_equal_steps(
    order: GroupedOrder, world_size: int, drop_last: bool, data: st.DataObject
) -> None:
    batching = GroupedBatches(order, drop_last)
    starts = [start for start, _ in order.of_epoch(1).batches(0)]
    position = data.draw(st.sampled_from(starts))
    plans = list(batching.plans(1, position, world_size))
    assert len(plans) == world_size * batching.n_steps(1, position, world_size)
    met = [p for plan in plans if plan.fresh is not False for p in range(plan.start, plan.start + plan.n)]
    assert met == list(range(position, position + len(met)))
    whole = dict(order.of_epoch(1).batches(0))
    left = len([start for start in starts if start >= position])
    if drop_last:
        assert len(plans) == left // world_size * world_size
        assert all(whole[plan.start] == plan.n for plan in plans)
    else:
        assert len(met) == len(order) - position
    if batching.n_steps(1, position, world_size):
        for plan in plans[: -world_size or None]:
            assert plan == BatchPlan(plan.start, whole[plan.start])
    ends = list(batching.ends(1, position, world_size))
    assert len(ends) == batching.n_steps(1, position, world_size)
    assert not ends or ends[-1] == len(order)
    for k, end in enumerate(ends[:-1]):
        assert list(batching.plans(1, end, world_size)) == plans[(k + 1) * world_size :]


def test_padding_is_counted() -> None:
    lengths = [3, 5, 1, 1, 9]
    assert padded(lengths, [2, 4, 5]) == 2 * 5 + 2 * 1 + 9


# Loaders


@pytest.mark.parametrize("by", BY, ids=str)
@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_an_epoch_has_every_sample_once_in_batches_that_belong_together(ragged: Path, by: Any, shuffle: Any) -> None:
    loader = load(ragged, batch_by=by, shuffle=shuffle)
    for _ in range(2):
        n = len(loader)
        batches = list(loader)
        assert len(batches) == n
        assert all(same_kind(batch, by) for batch in batches)
        assert Counter(i for batch in batches for i in fresh(batch)) == Counter(range(N))


@settings(max_examples=15)
@given(
    by=st.sampled_from(BY),
    chain=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=5),
    epoch=st.integers(0, 2),
)
def test_any_chain_of_ranks_gives_one_sequence(ragged: Path, by: Any, chain: list[tuple[int, int]], epoch: int) -> None:
    loader = load(ragged, batch_by=by)
    loader.set_epoch(epoch)
    state = loader.state_dict()
    expected = [i for _ in range(2) for i in delivered([loader], by)]
    got: list[int] = []
    for world_size, n_steps in chain:
        loaders = resumed(ragged, state, world_size, batch_size=4, batch_by=by, **SMALL)
        assert len({len(each) for each in loaders}) == 1
        for step in itertools.islice(steps(loaders), n_steps):
            got += [i for batch in step for i in fresh(batch)]
        assert len({str(each.state_dict()) for each in loaders}) == 1
        state = through_json(loaders[0].state_dict())
        if state["epoch"] > epoch + 1:
            break
    assert got == expected[: len(got)]
    assert len(got) == (state["epoch"] - epoch) * N + state["position"]


@pytest.mark.parametrize("by", [BY[0], BY[2]], ids=str)
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_a_resume(ragged: Path, by: Any, workers: int) -> None:
    expected = delivered([load(ragged, batch_by=by)], by)
    options: dict[str, Any] = {**SMALL, "batch_size": 4, "batch_by": by, "num_workers": workers}
    loaders = ranks(ragged, 2, **options)
    got = [i for step in itertools.islice(steps(loaders), 4) for batch in step for i in fresh(batch)]
    state = loaders[1].state_dict()
    assert got + delivered(resumed(ragged, state, **options), by) == expected
    assert got + delivered(resumed(ragged, state, 3, **{**options, "num_workers": 0}), by) == expected


def test_dropping_the_last_step_ends_the_epoch(ragged: Path) -> None:
    loaders = ranks(ragged, 4, **SMALL, batch_size=4, batch_by="kind", drop_last=True)
    (n_steps,) = {len(each) for each in loaders}
    assert len(list(steps(loaders))) == n_steps
    assert [each.epoch for each in loaders] == [1] * 4


def test_by_plan_as_frameworks_read(ragged: Path) -> None:
    loader = load(ragged, batch_by="session_id")
    plans = list(loader.batch_sampler)
    assert len(plans) == len(load(ragged, batch_by="session_id"))
    assert [i for plan in plans for i in fresh(loader.dataset[plan])] == delivered(
        [load(ragged, batch_by="session_id")], "session_id"
    )


def test_less_is_padded(ragged: Path) -> None:
    saved = load(ragged, batch_by=Budget(of="events", tokens=40)).padding
    assert 0.5 < saved["real_without"] < saved["real"] - 0.1 < 0.9
    assert load(ragged, batch_by="kind").padding is None and load(ragged).padding is None


def test_a_sample_over_the_budget_is_a_batch_of_its_own(ragged: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = load(ragged, batch_by=Budget(of="events", tokens=9))
    assert "the longest sample has 13" in caplog.text
    for batch in loader:
        lengths = [len(events) for events in batch["events"]]
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= 9


def test_mixtures_by_dataset_session_and_length(ragged: Path) -> None:
    mixture = mix({"a": ragged, "b": {"shard_dir": ragged, "select": {"kind": [0, 1]}}}, epoch=80)
    for by, seen in (
        ("__dataset__", lambda batch: set(batch["__dataset__"])),
        (Budget(of="events", tokens=30), lambda batch: {same_kind(batch, Budget(of="events", tokens=30))} | {True}),
    ):
        batches = list(load(mixture, batch_by=by))
        assert sum(len(batch["metadata"]) for batch in batches) == 80
        assert all(len(seen(batch)) == 1 for batch in batches)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Windows of three sessions of other units, cut before and to be cut."""
    directory = tmp_path_factory.mktemp("recordings")
    for i in range(3):
        make_recording(directory / f"{i}.nwb", seconds=5 + i, n_units=2 + i, seed=i, session_id=f"s{i}")
    files = sorted(directory.glob("*.nwb"))
    for layout in ("windows", "segments"):
        convert(files, Output(directory / layout), SourceConfig.of(layout=layout, modalities=["spikes"]))
    return directory / "windows", directory / "segments"


@pytest.mark.parametrize("cut", [None, Windows(length_s=0.5, stride_s=0.2, bin_ms=20, jitter=True)])
def test_every_batch_of_one_session_has_one_width(recordings: tuple[Path, Path], cut: Windows | None) -> None:
    loader = load(recordings[cut is not None], windows=cut, modalities=["spikes"], batch_by="session_id")
    sessions = [{about["session_id"] for about in batch["metadata"]} for batch in loader]
    assert all(len(each) == 1 for each in sessions)
    assert len(set.union(*sessions)) == 3
    for batch in loader:
        assert isinstance(batch["spikes"], torch.Tensor)
        assert batch["spikes"].shape[2] == 2 + int(batch["metadata"][0]["session_id"][1])
    by_subject = load(recordings[cut is not None], windows=cut, modalities=["spikes"], batch_by="subject")
    assert len(by_subject) > 0


def test_states_of_other_batches_are_refused_by_name(ragged: Path) -> None:
    loader = load(ragged, batch_by="kind")
    next(iter(loader))
    state = through_json(loader.state_dict())
    assert "kind" in state["batch_by"]
    for other in (
        {"batch_by": "session_id"},
        {},
        {"batch_by": "kind", "batch_size": 5},
        {"batch_by": Budget(of="events")},
    ):
        with pytest.raises(StateError, match="the state is of other batches: batch_by is kind, up to 4 samples"):
            load(ragged, **other).load_state_dict(state)
    with pytest.raises(StateError, match="batch_by is None there"):
        loader.load_state_dict(load(ragged).state_dict())
    with pytest.raises(StateError, match="do not say which position"):
        loader.load_state_dict({"shard_idx": 0, "sample_offset": 1})


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("colour", "some samples have no colour in their metadata"),
        ("__dataset__", "goes together with a mixture"),
        (3, "must be a name such as 'session_id', or a Budget"),
        (Budget(of="spikes"), "does not tell how long this field is"),
    ],
)
def test_bad_settings_are_refused(ragged: Path, by: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(ragged, batch_by=by)


def test_bad_budgets_are_refused(recordings: tuple[Path, Path]) -> None:
    for bad in ({"of": ""}, {"of": "x", "tokens": 0}, {"of": "x", "tokens": 1.5}, {"of": "x", "tokens": True}):
        with pytest.raises(ValueError, match="must be"):
            Budget(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not known before they are cut"):
        load(recordings[1], windows=Windows(length_s=0.5, bin_ms=20), batch_by=Budget(of="spikes"))
