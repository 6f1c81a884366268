"""Options are values that refuse bad ones when they are made, and a keyword that does not exist is answered by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from inspect import signature
from typing import Any

import numpy as np
import pytest

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetLoader, create_webdataset_dataloader
from neurofmx_wds.loading.options import (
    BatchOptions,
    OrderOptions,
    ProcessingOptions,
    ReadOptions,
    SampleLoaderOptions,
    WorkerOptions,
    take_options,
)

KINDS = (ReadOptions, OrderOptions, ProcessingOptions, BatchOptions, WorkerOptions)
BAD: list[tuple[Any, dict[str, Any], str]] = [
    (ReadOptions, {"io": "magic"}, 'io must be "auto", "mmap" or "pread", not \'magic\''),
    (ReadOptions, {"select": 3}, "select must be a mapping or a function of metadata, not 3"),
    (ReadOptions, {"groups": {"a": [1]}}, "groups= needs group="),
    (ReadOptions, {"checksums": "yes"}, "checksums must be True, False or None, not 'yes'"),
    (ReadOptions, {"cache_size": -1}, "cache_size must be a number of bytes, not -1"),
    (ReadOptions, {"modalities": [1]}, r"modalities must be names of fields, not \[1\]"),
    (OrderOptions, {"shuffle": "most"}, "shuffle must be False, True or \"full\", not 'most'"),
    (OrderOptions, {"buffer_size": 0}, "buffer_size must be a whole number from 1 to"),
    (OrderOptions, {"block_size": 1.5}, "block_size must be a whole number from 1 to"),
    (OrderOptions, {"seed": "a"}, "seed must be a whole number"),
    (ProcessingOptions, {"transform": 1}, "transform must be a function, not 1"),
    (ProcessingOptions, {"target_transform": 1}, "target_transform must be a mapping or a function of a label, not 1"),
    (ProcessingOptions, {"collate_fn": 1}, "collate_fn must be a function, not 1"),
    (ProcessingOptions, {"batch_transform": [1]}, "batch_transform must be a function of a batch"),
    (ProcessingOptions, {"handler": None}, "handler must be a function of an error, not None"),
    (BatchOptions, {"batch_size": 0}, "batch_size must be a positive integer, not 0"),
    (BatchOptions, {"rank": 1}, "give rank and world_size together"),
    (BatchOptions, {"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\), not 2 of 2"),
    (WorkerOptions, {"num_workers": True}, "num_workers must be a non-negative integer, not True"),
    (WorkerOptions, {"prefetch_factor": -1}, "prefetch_factor must be a non-negative integer, not -1"),
    (WorkerOptions, {"memory_limit": "lots"}, "memory_limit must be a number of bytes"),
    (WorkerOptions, {"in_order": False}, "in_order=False"),
]


@pytest.mark.parametrize(("kind", "options", "message"), BAD, ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_bad_value_is_refused_when_it_is_made(kind: Any, options: dict[str, Any], message: str) -> None:
    given = {"shard_dir": "shards"} if kind is ReadOptions else {}
    made = kind(**given)
    with pytest.raises((ValueError, TypeError), match=message):
        kind(**given, **options)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(made)[0].name, None)


def test_numpy_integers_become_pythons() -> None:
    order = OrderOptions(seed=np.int64(3), buffer_size=np.uint8(7), block_size=np.int16(2))  # type: ignore[arg-type]
    workers = WorkerOptions(num_workers=np.int8(2), prefetch_factor=np.int8(1))  # type: ignore[arg-type]
    batches = BatchOptions(batch_size=np.int32(4))  # type: ignore[arg-type]
    values = (order.seed, order.buffer_size, order.block_size, workers.num_workers, workers.prefetch_factor)
    assert [type(value) for value in (*values, batches.batch_size)] == [int] * 6


def test_public_arguments_and_options_are_the_same() -> None:
    """Each argument of the loader of batches is in one kind of options, with the same default."""
    known = {field.name: field.default for kind in KINDS for field in fields(kind)}
    assert len(known) == sum(len(fields(kind)) for kind in KINDS)
    public = {name: each.default for name, each in signature(create_webdataset_dataloader).parameters.items()}
    assert set(public) == set(known)
    different = {name for name in known if name != "shard_dir" and public[name] != known[name]}
    assert different <= {"collate_fn"}  # None makes no batches
    of_samples = dict(signature(WebDatasetLoader).parameters)
    assert set(of_samples) - {"shard_dir"} == set(SampleLoaderOptions.__annotations__)
    assert {name for name in of_samples if of_samples[name].default != public[name]} == set()


@pytest.mark.parametrize("make", [create_webdataset_dataloader, WebDatasetLoader, ResumableWebDatasetLoader])
def test_an_unknown_keyword_is_answered_with_the_one_meant(make: Any) -> None:
    with pytest.raises(TypeError, match=r"takes no argument bufer_size; did you mean buffer_size\?"):
        make("shards", bufer_size=3)


def test_options_are_taken_from_a_dictionary() -> None:
    options: dict[str, Any] = {"seed": 1, "batch_size": 8, "other": 2}
    assert take_options(OrderOptions, options, shuffle=False) == OrderOptions(seed=1, shuffle=False)
    assert options == {"batch_size": 8, "other": 2}
