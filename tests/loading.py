"""Small datasets whose content is known from a sample's number, and how to run loaders as ranks of one job."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from neurofmx_wds import WebDatasetWriter, create_webdataset_dataloader

Row = tuple[str, bytes, int]

# Samples in each shard.
LAYOUTS = {
    "equal": (6, 6, 6, 6),
    "unequal": (1, 9, 2, 7, 5),
    "one shard": (23,),
    "many shards": (2,) * 12,
    "fewer than ranks": (2, 1),
    "one sample": (1,),
}


def key_of(i: int) -> str:
    """The key of sample i."""
    return f"sample_{i:09d}"


def array_of(i: int) -> np.ndarray:
    """The array of sample i."""
    return np.arange(6, dtype=np.float32).reshape(2, 3) + 10 * i


def row_of(i: int) -> Row:
    """What a loader must deliver of sample i."""
    return key_of(i), array_of(i).tobytes(), i


def sample_of(i: int) -> dict[str, Any]:
    """Sample i as it is written."""
    return {"__key__": key_of(i), "x": array_of(i), "number": np.int64(i), "metadata": {"i": i, "group": i % 3}}


def write_dataset(directory: Path, counts: Sequence[int], compression: str = "none") -> Path:
    """Write shards of these sizes: by our writer where all are equal but the last, by plain webdataset otherwise."""
    if len(set(counts[:-1])) <= 1 and counts[-1] <= counts[0]:
        with WebDatasetWriter(directory, shard_size=counts[0], compression=compression) as writer:  # type: ignore
            for i in range(sum(counts)):
                writer.write_sample(sample_of(i))
        return directory
    assert compression == "none"
    directory.mkdir()
    first = 0
    for shard, count in enumerate(counts):
        with wds.TarWriter(str(directory / f"shard_{shard:06d}.tar")) as tar:
            for i in range(first, first + count):
                sample = sample_of(i)
                tar.write({"__key__": sample["__key__"], "x.npy": sample["x"], "number.npy": np.array(i),
                           "metadata.json": sample["metadata"]})  # fmt: skip
        first += count
    return directory


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file over, as a disk may."""
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def rows(item: dict[str, Any]) -> list[Row]:
    """The rows of a batch, or of a sample, that are not marked as repeated."""
    if isinstance(item["__key__"], str):
        return [(item["__key__"], item["x"].tobytes(), item["metadata"]["i"])] if item.get("__mask__", True) else []
    fresh = item.get("__mask__", torch.ones(len(item["__key__"]), dtype=torch.bool)).tolist()
    assert item["number"].tolist() == [about["i"] for about in item["metadata"]]
    return [
        (key, array.numpy().tobytes(), about["i"])
        for key, array, about, new in zip(item["__key__"], item["x"], item["metadata"], fresh, strict=True)
        if new
    ]


def ranks(directory: Any, world_size: int, make: Any = create_webdataset_dataloader, **options: Any) -> list[Any]:
    """The loaders of all ranks of a job."""
    return [make(directory, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def steps(loaders: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """What the ranks get, step by step; an error if one has more steps than another."""
    return zip(*(iter(loader) for loader in loaders), strict=True)


def global_rows(delivered: Iterable[tuple[Any, ...]]) -> list[Row]:
    """The rows of many steps in global order. Everything is held before anything is looked at."""
    return [row for step in list(delivered) for item in step for row in rows(item)]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a file holds it."""
    text = json.dumps(state)
    assert len(text.encode()) < 1024
    return json.loads(text)  # type: ignore[no-any-return]


def resumed(directory: Any, state: dict[str, Any], world_size: int = 1, **options: Any) -> list[Any]:
    """Fresh loaders that go on from a state."""
    loaders = ranks(directory, world_size, **options)
    for loader in loaders:
        loader.load_state_dict(through_json(state))
    return loaders


def jitter(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """An augmentation."""
    return {**sample, "x": sample["x"] + rng.standard_normal(sample["x"].shape).astype(np.float32)}


def fail_on_7(sample: dict[str, Any]) -> dict[str, Any]:
    """A transform with a fault."""
    if sample["metadata"]["i"] == 7:
        raise RuntimeError("cannot transform")
    return sample
