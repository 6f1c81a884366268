"""Mixtures: exact proportions, each dataset in its own order and epochs, and the laws of any dataset."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import jitter, ranks, resumed, steps, through_json
from recordings import make_recording

from neurofmx_wds import (
    Mixture,
    WebDatasetLoader,
    Windows,
    create_shards_from_arrays,
    create_webdataset_dataloader,
    mix,
)
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import StateError
from neurofmx_wds.order.epoch import ORDER_VERSION, EpochOrder, key_of
from neurofmx_wds.order.mixture import MixtureOrder, Stage, block_counts, epoch_length

Row = tuple[str, str, bytes]
SIZES = {"mouse": (20, 0.0), "monkey": (7, 1000.0), "rat": (3, 2000.0)}
WEIGHTS = {"mouse": 3, "monkey": 2, "rat": 1}
SMALL: dict[str, Any] = {"buffer_size": 7, "block_size": 2, "num_workers": 0}


def load(datasets: Any, **options: Any) -> Any:
    return create_webdataset_dataloader(datasets, **{**SMALL, **options})


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (n, base) in SIZES.items():
        made[name] = tmp_path_factory.mktemp("data") / name
        x = np.arange(n, dtype=np.float32)[:, None].repeat(4, 1) + np.float32(base)
        create_shards_from_arrays(
            made[name], {"x": x}, shard_size=5, metadata=[{"i": i, "odd": i % 2} for i in range(n)]
        )
    return made


def rows(batch: dict[str, Any]) -> list[Row]:
    """The rows of a batch that are not marked as repeated."""
    fresh = batch.get("__mask__", torch.ones(len(batch["__key__"]), dtype=torch.bool)).tolist()
    found = zip(batch["__dataset__"], batch["__key__"], batch["x"], fresh, strict=True)
    return [(name, key, x.numpy().tobytes()) for name, key, x, new in found if new]


def global_rows(loaders: list[Any]) -> list[Row]:
    return [row for step in list(steps(loaders)) for batch in step for row in rows(batch)]


# The order, against a reference that draws one sample after the other.


def scramble(key: int, number: int) -> int:
    """The hash of Steele, Lea and Flood, of whole numbers."""
    x = (key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def slow_order(order: MixtureOrder, n_epochs: int) -> list[list[tuple[int, int, int]]]:
    """Dataset, own epoch and own sample of each position of the first epochs, by drawing all of them in turn."""

    def drawn(part: EpochOrder) -> Iterator[tuple[int, int]]:
        for own_epoch in itertools.count():
            for sample in part.of_epoch(own_epoch).sample_ids(0, len(part)).tolist():
                yield own_epoch, sample

    def owners(stage: Stage) -> Iterator[int]:
        text = f"{ORDER_VERSION},{order.seed},{stage.first_epoch},mixture"
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        slots = [i for i, count in enumerate(stage.counts) for _ in range(count)]
        for block in itertools.count():
            yield from (
                slots[s] for s in sorted(range(len(slots)), key=lambda s: scramble(key, block * len(slots) + s))
            )

    sources = [drawn(part) for part in order.parts]
    epochs: list[list[tuple[int, int, int]]] = []
    for e in range(n_epochs):
        begun = [stage for stage in order.stages if stage.first_epoch == e]
        if begun:
            places = owners(begun[0])
        epochs.append([(i, *next(sources[i])) for i in itertools.islice(places, order.length)])
    return epochs


@st.composite
def orders(draw: st.DrawFn) -> MixtureOrder:
    n = draw(st.integers(1, 4))
    shuffle = draw(st.sampled_from([False, True, "full"]))
    sizes = [draw(st.integers(1, 12)) for _ in range(n)]
    parts = [EpochOrder([size], 7 + i, 0, shuffle, 5, 2) for i, size in enumerate(sizes)]
    starts = sorted({0, *draw(st.lists(st.integers(1, 5), max_size=2))})
    weights = st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any)
    stages = [Stage(start, block_counts(draw(weights))) for start in starts]
    return MixtureOrder(parts, list("abcd"[:n]), stages, draw(st.integers(1, 40)), seed=draw(st.integers(-3, 3)))


@given(orders(), st.data())
def test_the_order_is_that_of_drawing_sample_after_sample(order: MixtureOrder, data: st.DataObject) -> None:
    sizes = [len(part) for part in order.parts]
    for e, expected in enumerate(slow_order(order, 7)):
        here = order.of_epoch(e)
        start = data.draw(st.integers(0, len(order)))
        stop = data.draw(st.integers(start, len(order)))
        datasets, places, laps = here.split(here.sample_ids(start, stop))
        own_epochs = [here.own_epochs[i] + lap for i, lap in zip(datasets.tolist(), laps.tolist(), strict=True)]
        assert list(zip(datasets.tolist(), own_epochs, places.tolist(), strict=True)) == expected[start:stop]
        whole = here.sample_ids(0, len(order))
        assert len({*whole.tolist()}) == len(order)  # a sample that comes again has another id
        shards, offsets = here.locate(whole)
        assert [(i, s) for i, _, s in expected] == list(zip(shards.tolist(), offsets.tolist(), strict=True))
        assert (whole % sum(sizes) < sum(sizes)).all()


@given(orders(), st.integers(0, 6))
def test_every_block_has_exact_proportions(order: MixtureOrder, epoch: int) -> None:
    order = MixtureOrder(order.parts, order.names, order.stages[:1], order.length, order.seed)
    counts = order.stages[0].counts
    block = sum(counts)
    drawn = [order.of_epoch(e).split(order.of_epoch(e).sample_ids(0, len(order)))[0] for e in range(epoch + 1)]
    places = np.concatenate(drawn)
    for n in range(0, len(places) - block + 1, block):
        assert np.bincount(places[n : n + block], minlength=len(counts)).tolist() == [*counts]
    for n in range(len(places)):  # and never more than a block away from its share
        share = np.array(counts) * n / block
        assert (abs(np.bincount(places[:n], minlength=len(counts)) - share) <= np.array(counts)).all()


@given(orders())
def test_each_dataset_is_read_once_in_each_of_its_epochs(order: MixtureOrder) -> None:
    met: dict[tuple[int, int], list[int]] = {}
    for e in range(8):
        here = order.of_epoch(e)
        for i, place, lap in zip(*(each.tolist() for each in here.split(here.sample_ids(0, len(order)))), strict=True):
            met.setdefault((i, here.own_epochs[i] + lap), []).append(place)
    for (i, own_epoch), places in met.items():
        assert len(places) == len(set(places))
        if (i, own_epoch + 1) in met:
            assert len(places) == len(order.parts[i])


@given(st.lists(st.integers(0, 40) | st.fractions(0, 5) | st.floats(0, 1e3, width=16), min_size=1, max_size=6))
def test_weights_become_the_nearest_whole_numbers(weights: list[Any]) -> None:
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    try:
        counts = block_counts(weights)
    except ValueError:
        assert not total or any(0 < weight * 999 < total for weight in exact)
        return
    block = sum(counts)
    for weight, count in zip(exact, counts, strict=True):
        assert abs(weight / total * block - count) < 1
        assert bool(weight) == bool(count)
    if all(weight / total * 60 % 1 == 0 for weight in exact):
        assert [Fraction(count, block) for count in counts] == [weight / total for weight in exact]


sizes_and_counts = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), min_size=1, max_size=4)


@given(sizes_and_counts.filter(lambda drawn: any(count for _, count in drawn)))
def test_lengths_of_epochs(drawn: list[tuple[int, int]]) -> None:
    sizes, counts = zip(*drawn, strict=True)
    block = sum(counts)
    longest, shortest = (epoch_length(sizes, counts, length) // block for length in ("longest", "shortest"))
    used = [(size, count) for size, count in drawn if count]
    assert all(longest * count >= size for size, count in used)
    assert any((longest - 1) * count < size for size, count in used)
    assert shortest == 1 or all(shortest * count <= size for size, count in used)
    assert any((shortest + 1) * count > size for size, count in used)


def test_golden() -> None:
    """Saved states rely on these; a change needs another ORDER_VERSION."""
    parts = [EpochOrder([n], i, 0, True, 4, 2) for i, n in enumerate((5, 3))]
    order = MixtureOrder(parts, ["a", "b"], [Stage(0, (2, 1)), Stage(1, (1, 1))], 9, seed=42)
    assert order.sample_ids(0, 9).tolist() == GOLDEN[0]
    assert order.of_epoch(3).sample_ids(0, 9).tolist() == GOLDEN[1]


GOLDEN: tuple[list[int], list[int]] = ([6, 1, 0, 4, 2, 5, 3, 7, 11], [5, 4, 3, 7, 6, 2, 14, 0, 13])


# Loaders


@pytest.fixture(scope="module")
def whole(datasets: dict[str, Path]) -> Callable[..., list[Row]]:
    """Return the rows of an epoch, delivered one by one without interruption."""

    def of(epoch: int = 0, **options: Any) -> list[Row]:
        loader = load(datasets, weights=WEIGHTS, batch_size=1, **options)
        loader.set_epoch(epoch)
        return global_rows([loader])

    return of


def test_the_rows_are_those_of_each_datasets_own_loader(datasets: dict[str, Path], whole: Any) -> None:
    """Each dataset comes in the order of its own loader with its own seed, epoch after epoch."""
    found = [row for e in range(3) for row in whole(e)]
    for name, directory in datasets.items():
        alone = load(directory, batch_size=1, seed=int(key_of(42, "dataset", name)))
        wanted = [(name, b["__key__"][0], b["x"].numpy().tobytes()) for _ in range(12) for b in alone]
        mine = [row for row in found if row[0] == name]
        assert mine == wanted[: len(mine)]
    assert Counter(name for name, _, _ in found) == {"mouse": 63, "monkey": 42, "rat": 21}


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=5),
       st.sampled_from([False, True, "full"]), st.integers(0, 2))  # fmt: skip
@settings(max_examples=20)
def test_any_chain_of_ranks_and_batch_sizes_gives_one_sequence(
    datasets: dict[str, Path], whole: Any, chain: list[tuple[int, int, int]], shuffle: Any, epoch: int
) -> None:
    options: dict[str, Any] = {"weights": WEIGHTS, "shuffle": shuffle}
    expected = whole(epoch, shuffle=shuffle) + whole(epoch + 1, shuffle=shuffle)
    first = load(datasets, **options)
    first.set_epoch(epoch)
    state, got = first.state_dict(), []
    for world_size, batch_size, n_steps in chain:
        loaders = resumed(datasets, state, world_size, batch_size=batch_size, **SMALL, **options)
        for step in itertools.islice(steps(loaders), n_steps):
            got += [row for batch in step for row in rows(batch)]
        assert len({str(loader.state_dict()) for loader in loaders}) == 1
        state = through_json(loaders[0].state_dict())
        if state["epoch"] > epoch + 1:
            break
    assert got == expected[: len(got)]
    left = state["position"] if state["epoch"] == epoch else len(expected) // 2 + state["position"]
    if state["epoch"] <= epoch + 1:
        assert len(got) == left


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_ranks_and_a_resume(datasets: dict[str, Path], whole: Any, workers: int) -> None:
    expected = whole()
    options: dict[str, Any] = {**SMALL, "weights": WEIGHTS, "batch_size": 3, "num_workers": workers}
    loaders = ranks(datasets, 2, **options)
    delivered = steps(loaders)
    got = [row for step in itertools.islice(delivered, 3) for batch in step for row in rows(batch)]
    state = loaders[1].state_dict()
    assert got + global_rows(resumed(datasets, state, **{**options, "batch_size": 5})) == expected
    assert got + global_rows(resumed(datasets, state, 3, **{**options, "num_workers": 0})) == expected


def test_samples_and_batches_are_the_same(datasets: dict[str, Path], whole: Any) -> None:
    samples = WebDatasetLoader(mix(datasets, WEIGHTS), buffer_size=7, block_size=2)
    assert [(s["__dataset__"], s["__key__"], s["x"].tobytes()) for s in samples] == whole()


def test_a_sample_met_twice_in_an_epoch_is_augmented_otherwise(datasets: dict[str, Path]) -> None:
    options: dict[str, Any] = {"weights": WEIGHTS, "epoch": 60, "transform": jitter, "batch_size": 7}
    first = global_rows([load(datasets, **options)])
    assert len({x for _, _, x in first}) == 60
    assert global_rows(ranks(datasets, 2, **SMALL, **{**options, "batch_size": 2})) == first


def test_weights_change_from_an_epoch_on(datasets: dict[str, Path]) -> None:
    weights = {0: {"mouse": 1, "monkey": 0, "rat": 0}, 2: {"mouse": 1, "monkey": 1, "rat": 0}}
    loader = load(datasets, weights=weights, batch_size=4)
    drawn = [Counter(name for b in loader for name in b["__dataset__"]) for _ in range(3)]
    assert drawn == [{"mouse": 20}, {"mouse": 20}, {"mouse": 10, "monkey": 10}]
    state = loader.state_dict()
    with pytest.raises(StateError, match="'monkey' has 0/1, 1/2 from epoch 2 of it there and 1/2 here"):
        load(datasets, weights=weights[2]).load_state_dict(state)


def test_fields_that_some_datasets_lack(tmp_path: Path, datasets: dict[str, Path]) -> None:
    more = {"x": np.ones((6, 4), np.float32), "lfp": np.ones((6, 2), np.float32)}
    create_shards_from_arrays(tmp_path / "lfp", more)
    create_shards_from_arrays(tmp_path / "wide", {"x": np.ones((6, 9), np.float32)})
    given = {"mouse": datasets["mouse"], "lfp": tmp_path / "lfp", "wide": tmp_path / "wide"}
    for batch in load(given, batch_size=2, epoch=30):
        assert {*batch} == {"x", "lfp", "metadata", "__key__", "__dataset__"}
        for name, x, lfp in zip(batch["__dataset__"], batch["x"], batch["lfp"], strict=True):
            assert x.shape == ((9,) if name == "wide" else (4,))
            assert (lfp is None) == (name != "lfp")


def test_mix_takes_lists_and_selections(datasets: dict[str, Path]) -> None:
    parts = [{"shard_dir": datasets["mouse"], "select": {"odd": odd}} for odd in (0, 1)]
    loader = load(mix(parts, weights=[3, 1], epoch="shortest"), batch_size=4)
    found = [(name, about["odd"]) for b in loader for name, about in zip(b["__dataset__"], b["metadata"], strict=True)]
    assert Counter(found) == {("0", 0): 9, ("1", 1): 3}
    assert len(loader) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"mouse": 1, "monkey": 1}}, "'rat' has none"),
        ({"weights": {"mouse": 1, "monkey": 1, "rat": 1, "cat": 1}}, "there is no 'cat'"),
        ({"weights": {"mouse": -1, "monkey": 1, "rat": 1}}, "a number >= 0, not -1"),
        ({"weights": {"mouse": 0, "monkey": 0, "rat": 0}}, "must not all be 0"),
        ({"weights": {"mouse": 1e-9, "monkey": 1, "rat": 1}}, "less than one part in 1000"),
        ({"weights": {3: WEIGHTS}}, "must begin with those of epoch 0"),
        ({"weights": {-1: WEIGHTS, 0: WEIGHTS}}, "by the epoch from which they hold"),
        ({"epoch": "middle"}, '"shortest", "longest" or a number of samples'),
        ({"epoch": 0}, "a number of samples, not 0"),
        ({"epoch": 1 << 61}, "too long"),
    ],
)
def test_bad_settings_are_refused(datasets: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(datasets, **options)


def test_bad_datasets_are_refused(datasets: dict[str, Path]) -> None:
    mouse = datasets["mouse"]
    with pytest.raises(ValueError, match="weights= is a setting of a mixture"):
        load(mouse, weights={"mouse": 1})
    with pytest.raises(ValueError, match=r"a setting of mix\(\)"):
        load(mix([mouse]), weights={"0": 1})
    with pytest.raises(ValueError, match="no argument 'selct'; did you mean select"):
        load({"mouse": {"shard_dir": mouse, "selct": {}}})
    with pytest.raises(ValueError, match="needs a shard_dir"):
        load({"mouse": {"select": {}}})
    with pytest.raises(ValueError, match="is a mixture"):
        load({"mouse": Mixture({"a": mouse})})
    for bad in ({}, [], {1: mouse}, "mouse"):
        with pytest.raises(ValueError, match="mix"):
            mix(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 datasets and 2 weights"):
        mix([mouse], weights=[1, 2])


def test_states_of_other_mixtures_are_refused_by_name(datasets: dict[str, Path]) -> None:
    state = load(datasets, weights=WEIGHTS).state_dict()
    two = {name: datasets[name] for name in ("mouse", "monkey")}
    for other, message in [
        (load(two), "the dataset 'rat' is not here"),
        (load({**datasets, "cat": datasets["rat"]}), "it has no dataset 'cat'"),
        (load(datasets), "'mouse' has 3/6 of it there and 1/3 here"),
        (load(datasets["mouse"]), "of a mixture of datasets"),
        (load({**datasets, "rat": datasets["monkey"]}, weights=WEIGHTS), "fingerprint"),
        (load(datasets, weights=WEIGHTS, seed=1), "seed"),
        (load(datasets, weights=WEIGHTS, epoch=5), "num_samples"),
    ]:
        with pytest.raises(StateError, match=message):
            other.load_state_dict(state)
    with pytest.raises(StateError, match="of a single dataset"):
        load(datasets).load_state_dict(load(datasets["mouse"]).state_dict())
    with pytest.raises(StateError, match="do not say which position"):
        load(datasets).load_state_dict({"shard_idx": 0, "sample_offset": 1})


def test_a_state_stays_small_whatever_is_mixed(datasets: dict[str, Path]) -> None:
    many = {f"a dataset with quite a long name, number {i}": datasets["rat"] for i in range(60)}
    loader = load(many, batch_size=7)
    next(iter(loader))
    state = through_json(loader.state_dict())
    loader.load_state_dict(state)
    with pytest.raises(StateError, match="another mixture"):
        load({**many, "one more": datasets["rat"]}).load_state_dict(state)


def test_a_memory_limit_knows_the_largest_dataset(tmp_path: Path, datasets: dict[str, Path]) -> None:
    create_shards_from_arrays(tmp_path / "large", {"x": np.zeros((9, 1 << 17), np.float32)}, shard_size=3)
    given = {"mouse": datasets["mouse"], "large": tmp_path / "large"}
    with pytest.raises(ValueError, match="memory_limit"):
        load(given, weights={"mouse": 999, "large": 1}, memory_limit="12 MB", batch_size=32)


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_cut_at_load_are_mixed_with_their_jitter(tmp_path: Path, workers: int) -> None:
    """Windows of several recordings' datasets, moved in each own epoch, equal those of each dataset's own loader."""
    windows = Windows(length_s=0.5, stride_s=0.2, bin_ms=20, jitter=True)
    given = {}
    for i, name in enumerate("ab"):
        file = tmp_path / f"{name}.nwb"
        make_recording(file, seconds=4 + i, n_units=3, seed=i, spike_rate=20.0)
        given[name] = tmp_path / name
        convert([file], Output(given[name]), SourceConfig.of(layout="segments", segment_s=1.0, modalities=["spikes"]))
    options: dict[str, Any] = {"windows": windows, "modalities": ["spikes"], "batch_size": 5}

    def described(batch: dict[str, Any], names: Any) -> list[Any]:
        starts = [about["t_start_ns"] for about in batch["metadata"]]
        return list(zip(names, starts, [x.numpy().tobytes() for x in batch["spikes"]], strict=True))

    loader = load(given, weights={"a": 1, "b": 2}, epoch=80, **{**options, "num_workers": workers})
    found = [row for batch in loader for row in described(batch, batch["__dataset__"])]
    for name in given:
        alone = load(given[name], seed=int(key_of(42, "dataset", name)), **options)
        wanted = [row for _ in range(9) for batch in alone for row in described(batch, [name] * len(batch["__key__"]))]
        mine = [row for row in found if row[0] == name]
        assert len(mine) > len(alone.order)  # more than one own epoch
        assert mine == wanted[: len(mine)]


def test_a_lightning_data_module_mixes(datasets: dict[str, Path]) -> None:
    lightning = pytest.importorskip("neurofmx_wds.lightning")
    data = lightning.NeuroDataModule(train=datasets, val=datasets["rat"], weights=WEIGHTS, batch_size=6)
    data.setup("fit")
    assert Counter(next(iter(data.train_dataloader()))["__dataset__"]) == WEIGHTS
    assert "__dataset__" not in next(iter(data.val_dataloader()))
    with pytest.raises(ValueError, match="no such split 'mouse'"):
        lightning.NeuroDataModule(train=datasets)


# One dataset, balanced


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "trials"
    about = [{"i": i, "label": 1 if i % 10 == 0 else 2, "side": "left" if i % 5 < 2 else "right"} for i in range(60)]
    create_shards_from_arrays(out, {"x": np.arange(60.0)}, metadata=about, shard_size=11)
    return out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"balance": "label"}, {1: 54, 2: 54}),
        ({"balance": "side", "weights": {"left": 3, "right": 1}}, {"left": 108, "right": 36}),
        ({"balance": "side", "epoch": "shortest", "weights": {"left": 1, "right": 3}}, {"left": 12, "right": 36}),
        ({"balance": "label", "select": {"side": "left"}, "epoch": 40}, {1: 20, 2: 20}),
    ],
    ids=str,
)
def test_a_dataset_is_balanced(trials: Path, options: dict[str, Any], expected: dict[Any, int]) -> None:
    loader = load(trials, batch_size=4, **options)
    batches = list(loader)
    column = options["balance"]
    assert Counter(about[column] for batch in batches for about in batch["metadata"]) == expected
    for batch in batches:
        assert batch["__dataset__"] == [str(about[column]) for about in batch["metadata"]]
        assert batch["x"].tolist() == [about["i"] for about in batch["metadata"]]
    met = Counter(about["i"] for batch in batches for about in batch["metadata"])
    for value in expected:  # each value's samples equally often, but for one
        times = [met[i] for i in range(60) if i in met and {1: i % 10 == 0, 2: i % 10 > 0, "left": i % 5 < 2}.get(
            value, i % 5 >= 2)]  # fmt: skip
        assert max(times) - min(times) <= 1


def test_a_balanced_dataset_resumes(trials: Path) -> None:
    options: dict[str, Any] = {"balance": "label", "weights": {1: 1, 2: 2}}
    whole = [about["i"] for batch in load(trials, **options) for about in batch["metadata"]]
    loader = load(trials, batch_size=4, **options)
    got = [about["i"] for batch in itertools.islice(loader, 5) for about in batch["metadata"]]
    state = loader.state_dict()
    for step in steps(resumed(trials, state, batch_size=3, **SMALL, **options)):
        got += [about["i"] for batch in step for about in batch["metadata"]]
    assert got == whole
    for other in ({"balance": "side"}, {"balance": "label"}, {}):
        with pytest.raises(StateError):
            load(trials, **other).load_state_dict(state)


def test_bad_balances_are_refused(trials: Path, datasets: dict[str, Path]) -> None:
    for options, message in [
        ({"balance": "colour"}, "some samples have no colour"),
        ({"balance": 3}, "balance must be a name"),
        ({"balance": "side", "weights": {"left": 1}}, "'right' has none"),
        ({"balance": "side", "weights": {"left": 1, "right": 1, "up": 1}}, "there is no 'up'"),
        ({"weights": {"left": 1}}, "or balance="),
    ]:
        with pytest.raises(ValueError, match=message):
            load(trials, **options)
    with pytest.raises(ValueError, match="of one dataset"):
        load(datasets, balance="odd")
    with pytest.raises(ValueError, match="no argument 'normalize'"):
        load({"a": {"shard_dir": trials, "normalize": "zscore"}})
