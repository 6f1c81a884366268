"""The laws of cursor.py: once, equal steps, resume from anywhere with any batch size and world size, states refused."""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import mock

import pytest
import webdataset as wds
from counting import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofmx_wds.errors import StateError
from neurofmx_wds.order.cursor import (
    STATE_VERSION,
    BatchPlan,
    Cursor,
    batch_plans,
    from_state,
    n_steps,
    position_after,
    to_state,
)
from neurofmx_wds.order.epoch import LIMIT, EpochOrder

quick = settings(deadline=None, max_examples=100)
quickest = settings(deadline=None, max_examples=50)
lengths = st.integers(0, 12) | st.integers(0, 200)
ranks = st.integers(1, 5) | st.integers(1, 17)


def positions_of(plans: list[BatchPlan]) -> list[int]:
    """What the plans deliver for the first time, in global order."""
    return [p for plan in plans if plan.fresh is not False for p in range(plan.start, plan.start + plan.n)]


def steps_of(plans: list[BatchPlan], world_size: int) -> list[list[BatchPlan]]:
    assert len(plans) % world_size == 0  # every rank makes the same number of steps
    return [plans[i : i + world_size] for i in range(0, len(plans), world_size)]


@st.composite
def places(draw: st.DrawFn) -> tuple[int, int, int, int]:
    n = draw(lengths)
    return draw(st.integers(0, n)), n, draw(ranks), draw(ranks)


# Plans


@quick
@given(places())
def test_every_position_once_and_in_order(place: tuple[int, int, int, int]) -> None:
    position, n_samples, _, _ = place
    assert positions_of(list(batch_plans(*place, drop_last=False))) == list(range(position, n_samples))


@quick
@given(places())
def test_drop_last_drops_what_fills_no_global_batch(place: tuple[int, int, int, int]) -> None:
    position, n_samples, batch_size, world_size = place
    plans = list(batch_plans(*place, drop_last=True))
    found = positions_of(plans)
    assert found == list(range(position, position + len(found)))
    assert len(found) % (batch_size * world_size) == 0
    assert n_samples - position - len(found) < batch_size * world_size
    assert all(plan.n == batch_size and plan.fresh is None for plan in plans)


@quick
@given(places(), st.booleans())
def test_ranks_step_together(place: tuple[int, int, int, int], drop_last: bool) -> None:
    position, n_samples, batch_size, world_size = place
    steps = steps_of(list(batch_plans(*place, drop_last)), world_size)
    assert all(plan.n == batch_size and plan.fresh is None for step in steps[:-1] for plan in step)
    for step in steps[-1:]:
        shares = [plan.n for plan in step]
        assert 1 <= min(shares) <= max(shares) <= batch_size
        assert max(shares) - min(shares) <= 1
        assert shares == sorted(shares, reverse=True)
        assert len({plan.fresh is None for plan in step}) == 1  # the mask is on every rank or on none


@quick
@given(places())
def test_ranks_left_over_get_rows_from_the_start_again(place: tuple[int, int, int, int]) -> None:
    position, n_samples, batch_size, world_size = place
    plans = list(batch_plans(*place, drop_last=False))
    left = (n_samples - position) % (batch_size * world_size)
    if not 0 < left < world_size:
        assert all(plan.fresh is None for plan in plans)
        return
    last = plans[-world_size:]
    assert all(plan.fresh is None for plan in plans[:-world_size])
    assert [plan.fresh for plan in last] == [True] * left + [False] * (world_size - left)
    assert [plan.n for plan in last] == [1] * world_size
    assert [plan.start for plan in last[left:]] == [i % n_samples for i in range(world_size - left)]


def test_plans_as_one_would_write_them() -> None:
    assert list(batch_plans(0, 10, 2, 2, drop_last=False)) == [
        BatchPlan(0, 2), BatchPlan(2, 2), BatchPlan(4, 2), BatchPlan(6, 2), BatchPlan(8, 1), BatchPlan(9, 1),
    ]  # fmt: skip
    assert list(batch_plans(4, 10, 4, 1, drop_last=False)) == [BatchPlan(4, 4), BatchPlan(8, 2)]
    assert list(batch_plans(0, 7, 3, 2, drop_last=False)) == [
        BatchPlan(0, 3), BatchPlan(3, 3), BatchPlan(6, 1, True), BatchPlan(0, 1, False),
    ]  # fmt: skip
    assert list(batch_plans(0, 2, 3, 5, drop_last=False)) == [
        BatchPlan(0, 1, True), BatchPlan(1, 1, True), BatchPlan(0, 1, False), BatchPlan(1, 1, False),
        BatchPlan(0, 1, False),
    ]  # fmt: skip
    assert list(batch_plans(0, 7, 4, 2, drop_last=True)) == list(batch_plans(0, 0, 4, 2, drop_last=False)) == []


@quick
@given(places(), st.integers(1, 4))
def test_the_official_splitters_deal_them(place: tuple[int, int, int, int], num_workers: int) -> None:
    """Each rank's workers, taken in turn as torch does, deliver the rank's plans in order."""
    world_size = place[-1]
    plans = list(batch_plans(*place, drop_last=False))
    for rank in range(world_size):
        dealt = []
        for worker in range(num_workers):
            names = {"RANK": rank, "WORLD_SIZE": world_size, "WORKER": worker, "NUM_WORKERS": num_workers}
            with mock.patch.dict(os.environ, {name: str(value) for name, value in names.items()}):
                pipeline = wds.DataPipeline(lambda: iter(plans), wds.split_by_node, wds.split_by_worker)
                dealt.append(list(pipeline))
        n = sum(map(len, dealt))
        assert n == len(plans) // world_size
        in_turn = [dealt[i % num_workers][i // num_workers] for i in range(n)]
        assert in_turn == plans[rank::world_size]


@quick
@given(places(), st.booleans())
def test_counts_agree_with_enumeration(place: tuple[int, int, int, int], drop_last: bool) -> None:
    n_samples, world_size = place[1], place[3]
    steps = steps_of(list(batch_plans(*place, drop_last)), world_size)
    assert n_steps(*place, drop_last) == len(steps)
    for done in range(len(steps) + 2):
        after = steps[done][0].start if done < len(steps) else n_samples
        assert position_after(place[0], done, *place[1:], drop_last) == after


@quick
@given(st.integers(0, LIMIT), st.integers(1, LIMIT), st.integers(1, 2**20), st.integers(1, 2**20), st.booleans())
def test_counts_are_exact_for_huge_epochs(
    position: int, rest: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    size = (position + rest, batch_size, world_size, drop_last)
    steps = n_steps(position, *size)
    step = batch_size * world_size
    assert steps == (rest // step if drop_last else -(-rest // step))
    assert position_after(position, steps, *size) == position + rest
    if steps > 1:
        assert position_after(position, steps - 1, *size) == position + (steps - 1) * step < position + rest
    if steps:
        assert next(batch_plans(position, *size)).start == position


def test_the_first_plan_costs_the_same_anywhere() -> None:
    def cost(position: int) -> int:
        return lines_run(lambda: next(batch_plans(position, LIMIT, 32, 8, False)))

    assert 0 < cost(LIMIT * 99 // 100) <= cost(0) + 5


legs = st.lists(st.tuples(st.integers(0, 6), ranks, ranks), max_size=6)


@quick
@given(lengths, legs, st.tuples(ranks, ranks))
def test_resuming_with_other_sizes_covers_exactly_the_rest(
    n_samples: int, legs: list[tuple[int, int, int]], last: tuple[int, int]
) -> None:
    position, found = 0, []
    for steps, batch_size, world_size in legs:
        size = (n_samples, batch_size, world_size, False)
        found += positions_of(list(batch_plans(position, *size))[: steps * world_size])
        position = position_after(position, steps, *size)
    found += positions_of(list(batch_plans(position, n_samples, *last, False)))
    assert found == list(range(n_samples))


@quick
@given(st.integers(0, 60), ranks, ranks, ranks, ranks)
def test_resuming_from_every_step(n_samples: int, b1: int, w1: int, b2: int, w2: int) -> None:
    plans = list(batch_plans(0, n_samples, b1, w1, False))
    for step in range(n_steps(0, n_samples, b1, w1, False) + 1):
        position = position_after(0, step, n_samples, b1, w1, False)
        rest = list(batch_plans(position, n_samples, b2, w2, False))
        assert positions_of(plans[: step * w1]) + positions_of(rest) == list(range(n_samples))


# State

shuffles = st.sampled_from([False, True, "full"])
orders = st.builds(
    EpochOrder,
    st.lists(st.integers(0, 12), max_size=8),
    st.integers(-3, 3) | st.integers(-(2**128), 2**128),
    st.integers(0, 3),
    shuffles,
    st.integers(1, 50),
    st.integers(1, 20),
)


def through_json(cursor: Cursor, order: EpochOrder, fingerprint: str = "f") -> Cursor:
    """What another process makes of a cursor."""
    text = json.dumps(to_state(cursor, order, fingerprint), allow_nan=False)
    return from_state(json.loads(text), order.of_epoch, fingerprint)


@quick
@given(orders, st.data())
def test_state_there_and_back(order: EpochOrder, data: st.DataObject) -> None:
    n, epoch = len(order), data.draw(st.integers(0, 5))
    position = data.draw(st.integers(0, n))
    state = to_state(Cursor(epoch, position), order, "f")
    expected = Cursor(epoch + 1, 0) if position == n > 0 else Cursor(epoch, position)
    assert through_json(Cursor(epoch, position), order) == expected
    assert (state["epoch"], state["position"]) == (expected.epoch, expected.position)
    table = [(shard, offset) for shard, count in enumerate(order.shard_counts) for offset in range(count)]
    sequence = order.of_epoch(expected.epoch).sample_ids(0, n).tolist()
    place = table[sequence[expected.position]] if n else (0, 0)
    assert (state["shard_idx"], state["sample_offset"]) == place
    assert state["num_samples"] == n
    assert state["version"] == STATE_VERSION


def epochs_of(order: EpochOrder, n_epochs: int) -> list[int]:
    return [i for epoch in range(n_epochs) for i in order.of_epoch(epoch).sample_ids(0, len(order)).tolist()]


@quickest
@given(orders.filter(len), st.lists(st.tuples(st.integers(0, 4), ranks, ranks), min_size=1, max_size=10))
def test_any_history_of_interruptions_gives_the_same_samples(
    order: EpochOrder, history: list[tuple[int, int, int]]
) -> None:
    """Over epochs, each leg in a process of its own that knows only the JSON state."""

    def run(cursor: Cursor, steps: int, batch_size: int, world_size: int) -> tuple[list[int], Cursor]:
        size = (len(order), batch_size, world_size, False)
        plans = list(batch_plans(cursor.position, *size))[: steps * world_size]
        here = order.of_epoch(cursor.epoch)
        ids = [i for plan in plans if plan.fresh is not False
               for i in here.sample_ids(plan.start, plan.start + plan.n).tolist()]  # fmt: skip
        return ids, Cursor(cursor.epoch, position_after(cursor.position, steps, *size))

    cursor, found = Cursor(0, 0), []
    for leg in history:
        ids, cursor = run(cursor, *leg)
        found += ids
        cursor = through_json(cursor, order.of_epoch(cursor.epoch))
    assert found == epochs_of(order, cursor.epoch + 1)[: len(found)]
    assert len(found) == cursor.epoch * len(order) + cursor.position


def test_the_largest_state_is_small() -> None:
    order = EpochOrder([0] * 99_999 + [LIMIT], -(2**128), LIMIT - 1, "full", LIMIT, LIMIT)
    state = to_state(Cursor(LIMIT - 1, LIMIT - 1), order, "f" * 128)
    assert state["shard_idx"] == 99_999
    assert len(json.dumps(state, indent=4).encode()) < 1024
    assert from_state(json.loads(json.dumps(state)), order.of_epoch, "f" * 128) == Cursor(LIMIT - 1, LIMIT - 1)


def test_the_end_of_an_epoch_is_the_start_of_the_next() -> None:
    order = EpochOrder([3, 4], 1, 2, True, 4, 2)
    assert to_state(Cursor(2, 7), order, "f") == to_state(Cursor(3, 0), order, "f")
    by_hand = {**to_state(Cursor(3, 0), order, "f"), "epoch": 2, "position": 7}
    assert from_state(by_hand, order.of_epoch, "f") == Cursor(3, 0)


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_a_dataset_of_no_samples(counts: list[int]) -> None:
    order = EpochOrder(counts, 0, 0, True, 10, 10)
    assert through_json(Cursor(4, 0), order) == Cursor(4, 0)
    assert from_state({"shard_idx": 0, "sample_offset": 0, "epoch": 4}, order.of_epoch, "f") == Cursor(4, 0)
    assert n_steps(0, 0, 8, 2, False) == position_after(0, 0, 0, 8, 2, False) == 0


# A place alone


@quick
@given(orders.filter(len), st.data())
def test_a_place_alone_is_enough(order: EpochOrder, data: st.DataObject) -> None:
    state = to_state(Cursor(0, data.draw(st.integers(0, len(order) - 1))), order, "f")
    place = {"shard_idx": state["shard_idx"], "sample_offset": state["sample_offset"]}
    assert from_state(place, order.of_epoch, "g") == Cursor(0, state["position"])
    later = to_state(Cursor(3, state["position"]), order, "f")
    place = {key: later[key] for key in ("epoch", "shard_idx", "sample_offset")}
    assert from_state(place, order.of_epoch, "g") == Cursor(3, state["position"])


@quickest
@given(orders.filter(len))
def test_behind_a_shard_is_before_the_next(order: EpochOrder) -> None:
    counts = list(order.shard_counts)
    for shard, count in enumerate(counts):
        behind = from_state({"shard_idx": shard, "sample_offset": count}, order.of_epoch, "f")
        if sum(counts[shard + 1 :]):
            assert behind == from_state({"shard_idx": shard + 1, "sample_offset": 0}, order.of_epoch, "f")
        else:
            assert behind == Cursor(1, 0)


# States of something else

ORDER = EpochOrder([3, 0, 7], 42, 1, True, 4, 2)
STATE = to_state(Cursor(1, 6), ORDER, "abc")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"fingerprint": "xyz"}, "another dataset or selection: fingerprint is 'xyz' there and 'abc' here"),
        ({"num_samples": 11}, "another dataset or selection: num_samples is 11 there and 10 here"),
        ({"seed": 43}, "another seed: seed is 43 there and 42 here"),
        ({"seed": "42"}, "another seed: seed is '42' there and 42 here"),
        ({"shuffle": False}, "another shuffle: shuffle is False there and True here"),
        ({"shuffle": "full"}, "another shuffle: shuffle is 'full' there and True here"),
        ({"shuffle": 1}, "another shuffle: shuffle is 1 there and True here"),
        ({"buffer_size": 5}, "another buffer_size: buffer_size is 5 there and 4 here"),
        ({"block_size": 1}, "another block_size: block_size is 1 there and 2 here"),
        ({"version": 2}, "version 2, this program reads 1"),
        ({"version": "1"}, "version must be a whole number .* not '1'"),
        ({"position": 11}, "position 11 is outside an epoch of 10 samples"),
        ({"position": -1}, "position must be a whole number .* not -1"),
        ({"position": 2.0}, r"position must be a whole number .* not 2\.0"),
        ({"position": True}, "position must be a whole number .* not True"),
        ({"epoch": None}, "epoch must be a whole number .* not None"),
        ({"epoch": -1}, "epoch must be a whole number .* not -1"),
        ({"epoch": 10**30}, f"epoch must be a whole number .* not {10**30}"),
        ({"shard_idx": 1}, f"position 6 has shard_idx {STATE['shard_idx']}, not 1"),
        ({"sample_offset": 6 - STATE["sample_offset"]}, f"sample_offset {STATE['sample_offset']}, not"),
    ],
)
def test_wrong_states_are_refused_with_the_difference(change: dict[str, Any], said: str) -> None:
    with pytest.raises(StateError, match=said) as caught:
        from_state({**STATE, **change}, ORDER.of_epoch, "abc")
    assert caught.value.remedy


@pytest.mark.parametrize("key", STATE)
def test_an_incomplete_state_is_refused_by_what_it_lacks(key: str) -> None:
    with pytest.raises(StateError, match=f"lacks {key}") as caught:
        from_state({k: v for k, v in STATE.items() if k != key}, ORDER.of_epoch, "abc")
    assert caught.value.remedy


@pytest.mark.parametrize("state", [None, [], "state", 3, [["shard_idx", 0]]])
def test_what_is_no_dictionary_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match=f"not {type(state).__name__}"):
        from_state(state, ORDER.of_epoch, "abc")


@pytest.mark.parametrize(
    "place, said",
    [
        ({"shard_idx": 3, "sample_offset": 1}, "no shard 3; the dataset has 3"),
        ({"shard_idx": 4, "sample_offset": 0}, "no shard 4; the dataset has 3"),
        ({"shard_idx": 0, "sample_offset": 4}, "no sample 4 in shard 0; it has 3"),
        ({"shard_idx": 1, "sample_offset": 1}, "no sample 1 in shard 1; it has 0"),
        ({"shard_idx": -1, "sample_offset": 0}, "shard_idx must be a whole number .* not -1"),
        ({"shard_idx": 0, "sample_offset": "0"}, "sample_offset must be a whole number .* not '0'"),
        ({"shard_idx": 0, "sample_offset": 0, "epoch": 1.5}, r"epoch must be a whole number .* not 1\.5"),
        ({"shard_idx": 0}, "lacks version"),
    ],
)
def test_places_that_are_not_there_are_refused(place: dict[str, Any], said: str) -> None:
    with pytest.raises(StateError, match=said) as caught:
        from_state(place, ORDER.of_epoch, "abc")
    assert caught.value.remedy


@pytest.mark.parametrize(
    "shuffle, free, bound",
    [
        (False, {"seed", "buffer_size", "block_size"}, {"shuffle"}),
        ("full", {"buffer_size", "block_size"}, {"shuffle", "seed"}),
        (True, set(), {"shuffle", "seed", "buffer_size", "block_size"}),
    ],
)
def test_only_what_matters_to_the_shuffle_must_agree(shuffle: Any, free: set[str], bound: set[str]) -> None:
    order = EpochOrder([3, 7], 42, 0, shuffle, 4, 2)
    state = to_state(Cursor(0, 6), order, "abc")
    others = {"seed": 1, "buffer_size": 9, "block_size": 9, "shuffle": "other"}
    assert from_state({**state, **{key: others[key] for key in free}}, order.of_epoch, "abc") == Cursor(0, 6)
    for key in bound:
        with pytest.raises(StateError, match=f"another {key}"):
            from_state({**state, key: others[key]}, order.of_epoch, "abc")


def test_more_keys_do_no_harm() -> None:
    assert from_state({**STATE, "note": "by a later version"}, ORDER.of_epoch, "abc") == Cursor(1, 6)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.integers()
    | st.floats()
    | st.sampled_from(["full", "abc", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@quickest
@given(
    st.dictionaries(st.sampled_from(sorted(STATE)), json_values, max_size=4), st.sets(st.sampled_from(sorted(STATE)))
)
def test_no_json_makes_anything_but_a_cursor_or_a_state_error(change: dict[str, Any], missing: set[str]) -> None:
    for state in ({**STATE, **change}, {k: v for k, v in {**STATE, **change}.items() if k not in missing}, change):
        try:
            cursor = from_state(state, ORDER.of_epoch, "abc")
        except StateError as error:
            assert str(error)
        else:
            assert cursor.epoch >= 0
            assert 0 <= cursor.position < len(ORDER)


@pytest.mark.slow
@settings(deadline=None, max_examples=4000)
@given(st.data())
def test_the_laws_in_depth(data: st.DataObject) -> None:
    place, drop_last = data.draw(places()), data.draw(st.booleans())
    for law in (
        test_every_position_once_and_in_order,
        test_drop_last_drops_what_fills_no_global_batch,
        test_ranks_left_over_get_rows_from_the_start_again,
    ):
        law.hypothesis.inner_test(place)
    test_ranks_step_together.hypothesis.inner_test(place, drop_last)
    test_counts_agree_with_enumeration.hypothesis.inner_test(place, drop_last)
    sizes = data.draw(st.tuples(ranks, ranks, ranks, ranks))
    test_resuming_from_every_step.hypothesis.inner_test(data.draw(st.integers(0, 60)), *sizes)
    order = data.draw(orders.filter(len))
    test_any_history_of_interruptions_gives_the_same_samples.hypothesis.inner_test(
        order, data.draw(st.lists(st.tuples(st.integers(0, 4), ranks, ranks), min_size=1, max_size=10))
    )
    test_state_there_and_back.hypothesis.inner_test(order, data)
    test_behind_a_shard_is_before_the_next.hypothesis.inner_test(order)
