"""The laws of loading for options that change what batches hold: for the tests of each of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from loading import ranks, resumed, steps

from neurofmx_wds import WebDatasetLoader, create_webdataset_dataloader

Row = tuple[Any, ...]


def rows_of(batch: dict[str, Any], without: tuple[str, ...] = ()) -> list[Row]:
    """Each sample of a batch as (key, then name, dtype, shape and bytes of each field), but for those repeated."""
    n = len(batch["__key__"])
    fresh = batch.get("__mask__", torch.ones(n, dtype=torch.bool)).tolist()
    names = sorted(batch.keys() - {"__key__", "__mask__", "metadata", *without})
    return [(batch["__key__"][i], *((name, _value(batch[name][i])) for name in names)) for i in range(n) if fresh[i]]


def _value(value: Any) -> Any:
    if value is None:
        return None
    array = np.asarray(value)
    return str(array.dtype), array.shape, array.tobytes()


def assert_laws(directory: Any, without: tuple[str, ...] = (), **options: Any) -> list[Row]:
    """Compare samples, ranks, workers and resumed runs with the uninterrupted run of one process, which is returned.

    Args:
        directory: the dataset, or mixture.
        without: fields that are not compared, since the batch decides their shape.
        **options: of the loader.
    """
    options = {"buffer_size": 7, "block_size": 2, **options}
    one = create_webdataset_dataloader(directory, batch_size=5, num_workers=0, **options)
    whole = [row for batch in one for row in rows_of(batch, without)]
    assert len(whole) == len(one.order)
    alone = [_of_sample(sample) for sample in WebDatasetLoader(directory, **options)]
    assert alone == [tuple(part for part in row if part[1] is not None) for row in whole] or without
    for (world, workers, batch), stop in itertools.product([(1, 0, 3), (2, 0, 2), (1, 2, 4), (2, 1, 3)], [0, 1, 3]):
        loaders = ranks(directory, world, batch_size=batch, num_workers=workers, **options)
        delivered = list(itertools.islice(steps(loaders), stop))
        before = [row for step in delivered for each in step for row in rows_of(each, without)]
        assert before == whole[: len(before)]
        state = loaders[0].state_dict()
        for other in (1, 3):
            after = resumed(directory, state, other, batch_size=2, num_workers=0, **options)
            rest = [row for step in list(steps(after)) for each in step for row in rows_of(each, without)]
            assert before + rest == whole
    return whole


def _of_sample(sample: dict[str, Any]) -> Row:
    names = sorted(sample.keys() - {"__key__", "__mask__", "metadata"})
    return (sample["__key__"], *((name, _value(sample[name])) for name in names))
