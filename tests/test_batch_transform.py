"""Functions on whole batches and on labels: right whatever they do with what they get, and alike after any resume."""

from __future__ import annotations

import collections
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import some
from loading import Row, array_of, global_rows, jitter, key_of, ranks, resumed, steps

from neurofmx_wds import WebDatasetLoader, WebDatasetWriter, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError
from neurofmx_wds.loading.memory import BatchMemory
from neurofmx_wds.loading.transforms import SampleRngs, sample_rng

SMALL: dict[str, Any] = {"num_workers": 0, "buffer_size": 7, "block_size": 3, "batch_size": 4}
make = functools.partial(create_webdataset_dataloader, **SMALL)
WORKERS = pytest.mark.parametrize("num_workers", [0, 2])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples: labels as a field, in some only in their metadata, and as text."""
    made = tmp_path_factory.mktemp("data") / "labelled"
    with WebDatasetWriter(made, shard_size=10) as writer:
        for i in range(24):
            writer.write_sample({"label": np.int16(i % 5), "name": f"n{i % 5}"}, metadata={"i": i, "label": i % 3})
    return made


def batch_jitter(batch: dict[str, Any], rngs: SampleRngs) -> dict[str, Any]:
    """What :func:`loading.jitter` does, on a whole batch."""
    noise = np.stack([rng.standard_normal(batch["x"].shape[1:]) for rng in rngs])
    return {**batch, "x": batch["x"] + torch.from_numpy(noise.astype(np.float32))}


def in_place(batch: dict[str, Any]) -> dict[str, Any]:
    batch["x"] *= 2
    return batch


def replaced(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "x": batch["x"] * 2}


def turned(batch: dict[str, Any]) -> dict[str, Any]:
    """A field that is no longer contiguous, one that shares its memory, one of another size and one that is gone."""
    batch.pop("number")
    x = batch.pop("x")
    wide = torch.cat([x, x], 1)
    return {**batch, "x": x.transpose(1, 2), "same": x, "every": x[:, :, ::2], "wide": wide, "list": ["a"] * len(x)}


class Remembering:
    """Adds to each batch the one three before it, which it has kept."""

    def __init__(self, copy: bool) -> None:
        self.copy = copy
        self.kept = collections.deque([torch.zeros(0)] * 3)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.kept.append(batch["x"].clone() if self.copy else batch["x"])
        return {**batch, "before": self.kept.popleft()}


class Scaling(torch.nn.Module):
    def forward(self, batch: dict[str, Any], rngs: SampleRngs) -> dict[str, Any]:
        scale = torch.tensor([rng.random() for rng in rngs], dtype=torch.float32)
        return {**batch, "x": batch["x"] * scale[:, None, None]}


def fail_on_7(batch: dict[str, Any]) -> dict[str, Any]:
    if 7 in batch["number"]:
        raise RuntimeError("cannot transform")
    return batch


def delivered(directory: Path, **options: Any) -> dict[str, bytes]:
    return {row[0]: row[1] for row in global_rows(steps([make(directory, **options)]))}


@pytest.mark.parametrize("transform", [batch_jitter, Scaling()], ids=["function", "module"])
def test_random_numbers_go_with_the_sample(directory: Path, transform: Any) -> None:
    reference = delivered(directory, batch_transform=transform)
    assert len(set(reference.values())) == 24
    assert not set(reference.values()) & {array_of(i).tobytes() for i in range(1, 24)}
    for world_size, batch_size, options in ((1, 5, {"num_workers": 2}), (3, 2, {}), (1, 7, {"shuffle": False})):
        kinds = {"make": make, "batch_transform": transform, **options}
        loaders = ranks(directory, world_size, batch_size=batch_size, **kinds)
        first = [*itertools.islice(steps(loaders), 2)]
        again = resumed(directory, loaders[0].state_dict(), 2, batch_size=3, **kinds)
        assert {key: value for key, value, _ in global_rows([*first, *steps(again)])} == reference
    other = make(directory, batch_transform=transform)
    other.set_epoch(1)
    assert not {row[1] for row in global_rows(steps([other]))} & {*reference.values()} - {bytes(24)}
    chosen = delivered(directory, batch_transform=transform, select={"group": [0, 2]})
    assert len(chosen) == 16 and chosen.items() <= reference.items()


def test_a_batch_gets_the_numbers_that_its_samples_would_get(directory: Path) -> None:
    assert delivered(directory, batch_transform=batch_jitter) == delivered(directory, transform=jitter)


def test_one_transform_goes_on_where_the_other_stopped(directory: Path) -> None:
    both = delivered(directory, transform=jitter, batch_transform=[batch_jitter, batch_jitter])
    for key, value in both.items():
        i = int(key[-9:])
        rng, wanted = sample_rng(42, 0, i), array_of(i)
        for _ in range(3):
            wanted = wanted + rng.standard_normal((2, 3)).astype(np.float32)
        assert value == wanted.tobytes()


def test_generators_are_made_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = sample_rng
    monkeypatch.setattr("neurofmx_wds.loading.transforms.sample_rng", lambda *args: made.append(args[2]) or real(*args))
    rngs = SampleRngs(42, 1, np.array([7, 3, 9]))
    assert len(rngs) == 3 and made == []
    first = rngs[-1].random(2).tolist()
    assert made == [9] and rngs[2] is rngs[-1]
    assert first + rngs[2:][0].random(2).tolist() == real(42, 1, 9).random(4).tolist()
    with pytest.raises(IndexError):
        rngs[3]


@WORKERS
@pytest.mark.parametrize("transform", [in_place, replaced])
def test_in_place_or_new(directory: Path, transform: Any, num_workers: int) -> None:
    loader = make(directory, batch_transform=transform, num_workers=num_workers, batch_size=2)
    wanted = {key_of(i): (2 * array_of(i)).tobytes() for i in range(24)}
    for _ in range(2):
        assert {row[0]: row[1] for row in global_rows(steps([loader]))} == wanted


@WORKERS
def test_any_view_of_a_batch_arrives_whole(directory: Path, num_workers: int) -> None:
    for batch in [*make(directory, batch_transform=turned, num_workers=num_workers, batch_size=2)]:
        stored = np.stack([array_of(about["i"]) for about in batch["metadata"]])
        np.testing.assert_array_equal(batch["x"], stored.transpose(0, 2, 1))
        np.testing.assert_array_equal(batch["same"], stored)
        np.testing.assert_array_equal(batch["every"], stored[:, :, ::2])
        np.testing.assert_array_equal(batch["wide"], np.concatenate([stored, stored], 1))
        assert batch["list"] == ["a"] * len(stored) and "number" not in batch


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_transform_keeps_stays_as_it_was(directory: Path, num_workers: int) -> None:
    kept, copied = (
        [batch["before"] for batch in make(directory, batch_transform=Remembering(copy), num_workers=num_workers,
                                           batch_size=2, prefetch_factor=1)]
        for copy in (False, True)
    )  # fmt: skip
    assert len(kept) == len(copied) == 12
    assert all(map(torch.equal, kept, copied))


@WORKERS
def test_what_they_return_is_what_is_delivered(directory: Path, num_workers: int) -> None:
    def pair(batch: dict[str, Any]) -> tuple[Any, Any]:
        return batch["x"], batch["number"]

    for x, number in some(make(directory, batch_transform=[in_place, pair], num_workers=num_workers)):
        np.testing.assert_array_equal(x, np.stack([2 * array_of(int(i)) for i in number]))


@WORKERS
def test_a_failing_batch_transform_is_named(directory: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"num_workers": num_workers, "shuffle": False, "batch_transform": [in_place, fail_on_7]}
    wanted = rf"shard_000001\.tar.*{key_of(4)}.*batch_transform raised RuntimeError: cannot transform"
    with pytest.raises(NeurofmxError, match=wanted):
        list(make(directory, **options))
    loader = make(directory, handler=lambda error: True, **options)
    found: list[Row] = global_rows(steps([loader]))
    assert {row[2] for row in found} == {*range(24)} - {7} and loader.skipped == 1


def forgetful(batch: dict[str, Any]) -> None:
    batch["x"] *= 2


@WORKERS
@pytest.mark.parametrize("transform", [forgetful, [forgetful, in_place]], ids=["last", "first"])
def test_a_batch_transform_that_returns_nothing_is_named(directory: Path, transform: Any, num_workers: int) -> None:
    wanted = (
        rf"shard_000000\.tar.*{key_of(0)}.*the batch_transform returned None, not a batch \(let it return the batch"
    )
    with pytest.raises(NeurofmxError, match=wanted):
        list(make(directory, shuffle=False, batch_transform=transform, num_workers=num_workers))


@WORKERS
@pytest.mark.parametrize("pad", [{}, {"collate_fn": functools.partial(collate_webdataset, pad_value=0)}])
@pytest.mark.parametrize(
    ("returned", "told"), [(None, "None"), ("x", "str"), ((1, 2), "tuple"), (np.zeros(3), "ndarray")], ids=repr
)
def test_a_transform_that_returns_no_sample_is_named(
    directory: Path, returned: Any, told: str, pad: dict[str, Any], num_workers: int
) -> None:
    def some(sample: dict[str, Any]) -> Any:
        return returned if sample["metadata"]["i"] == 7 else sample

    options: dict[str, Any] = {"shuffle": False, "transform": some, "num_workers": num_workers, **pad}
    wanted = rf"shard_000001\.tar.*{key_of(7)}.*the transform returned {told}, not a sample \(let it return the sample"
    with pytest.raises(NeurofmxError, match=wanted) as caught:
        list(make(directory, **options))
    assert num_workers or caught.value.__cause__
    loader = make(directory, handler=lambda error: True, **options)
    found: list[Row] = global_rows(steps([loader]))
    assert {row[2] for row in found} == {*range(24)} - {7} and loader.skipped == 1


def test_what_a_users_own_collation_takes_is_no_error(directory: Path) -> None:
    """As in torch, where None often marks what is to be left out."""

    def odd_only(sample: dict[str, Any]) -> Any:
        return sample if sample["metadata"]["i"] % 2 else None

    def others(samples: list[Any]) -> list[int]:
        return [sample["metadata"]["i"] for sample in samples if sample is not None]

    batches = list(make(directory, shuffle=False, transform=odd_only, collate_fn=others))
    assert [i for batch in batches for i in batch] == [*range(1, 24, 2)]


def test_single_samples_of_none_are_told_once(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert list(WebDatasetLoader(directory, transform=forgetful)) == [None] * 24
    assert [record.message for record in caplog.records] == [
        "the transform returned None, and that is delivered: let it return the sample"
    ]


@pytest.mark.parametrize("bad", [3, [in_place, None], "x"])
def test_what_cannot_be_called_is_refused_at_once(directory: Path, bad: Any) -> None:
    with pytest.raises(TypeError, match="batch_transform must be a function"):
        make(directory, batch_transform=bad)
    with pytest.raises(TypeError, match="target_transform must be a mapping or a function"):
        make(directory, target_transform=3)


def test_what_they_return_is_pinned_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no page-locked memory without a GPU: what asks for it is looked at instead."""
    asked: list[torch.Tensor] = []

    def empty(memory: BatchMemory, shape: Any, dtype: torch.dtype) -> torch.Tensor:
        assert memory.pinned
        asked.append(torch.empty(*shape, dtype=dtype))
        return asked[-1]

    monkeypatch.setattr(BatchMemory, "empty", empty)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: any(tensor is each for each in asked))
    for options in ({"batch_transform": turned}, {"transform": dict}, {"batch_transform": in_place}, {}):
        loader = make(directory, **options)
        monkeypatch.setattr(loader, "_memory", BatchMemory(pinned=True))
        monkeypatch.setattr(loader.opened.reader, "_memory", BatchMemory(pinned=True))
        found = [value for batch in loader for value in batch.values() if isinstance(value, torch.Tensor)]
        assert found and all(value.is_pinned() for value in found), options


# --- labels


TIMES_10 = {i: 10 * i for i in range(5)}


@WORKERS
@pytest.mark.parametrize("target", [TIMES_10, lambda label: 10 * label], ids=["mapping", "function"])
def test_labels_are_mapped(labelled: Path, target: Any, num_workers: int) -> None:
    for options in ({}, {"transform": lambda sample: sample}):
        for batch in some(make(labelled, target_transform=target, num_workers=num_workers, **options)):
            assert batch["label"].dtype == torch.int64
            assert batch["label"].tolist() == [10 * (about["i"] % 5) for about in batch["metadata"]]
            assert all(about["label"] == about["i"] % 3 for about in batch["metadata"])
    for sample in some(WebDatasetLoader(labelled, target_transform=target, buffer_size=7, block_size=3)):
        assert sample["label"] == 10 * (sample["metadata"]["i"] % 5) and sample["label"].dtype == np.int64


def test_a_label_may_stand_in_the_metadata_only(labelled: Path) -> None:
    options: dict[str, Any] = {"modalities": ["name"], "target_transform": TIMES_10}
    for batch in some(make(labelled, **options)):
        assert batch["label"].tolist() == [10 * (about["i"] % 3) for about in batch["metadata"]]
    for sample in some(WebDatasetLoader(labelled, **options)):
        assert sample["label"] == 10 * (sample["metadata"]["i"] % 3)


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "text") as writer:
        for i in range(6):
            writer.write_sample({"label": "ab"[i % 2]})
    assert [b["label"].tolist() for b in make(tmp_path / "text", shuffle=False, target_transform={"a": 0, "b": 1})] == [
        [0, 1, 0, 1],
        [0, 1],
    ]
    halves = make(tmp_path / "text", shuffle=False, target_transform=lambda text: 0.5 * "ab".index(text))
    assert [batch["label"].tolist() for batch in halves] == [[0, 0.5, 0, 0.5], [0, 0.5]]
    with WebDatasetWriter(tmp_path / "vector") as writer:
        for i in range(6):
            writer.write_sample({"label": np.array([i, i + 1])})
    for batch in some(make(tmp_path / "vector", shuffle=False, target_transform=lambda label: int(label.sum()))):
        assert batch["label"].tolist() == [2 * int(key[-9:]) + 1 for key in batch["__key__"]]


def test_batches_see_mapped_labels(labelled: Path) -> None:
    def doubled(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "label": batch["label"] * 2}

    for batch in some(make(labelled, target_transform=TIMES_10, batch_transform=doubled)):
        assert batch["label"].tolist() == [20 * (about["i"] % 5) for about in batch["metadata"]]


@WORKERS
def test_a_label_without_an_entry_is_named(labelled: Path, directory: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"shuffle": False, "num_workers": num_workers}
    with pytest.raises(NeurofmxError, match=rf"shard_000000\.tar.*{key_of(3)}.*it has no label 3"):
        list(make(labelled, target_transform={0: 0, 1: 1, 2: 2}, **options))
    with pytest.raises(NeurofmxError, match=rf"{key_of(0)}.*no label, neither as a field nor in its metadata"):
        list(make(directory, target_transform=TIMES_10, **options))


@WORKERS
def test_a_function_that_runs_dry_is_an_error(labelled: Path, num_workers: int) -> None:
    """StopIteration in it must not look like the end of the labels, nor of the samples."""

    def dry(_: Any) -> Any:
        return next(iter(()))

    for options in ({"target_transform": dry}, {"transform": dry}, {"batch_transform": dry}):
        with pytest.raises(NeurofmxError, match=rf"{key_of(0)}.*StopIteration"):
            list(make(labelled, shuffle=False, num_workers=num_workers, **options))
    with pytest.raises(NeurofmxError, match="StopIteration"):
        list(WebDatasetLoader(labelled, target_transform=dry))
