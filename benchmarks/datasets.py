"""The data that is read: the same samples as each library writes them, made once and kept under one directory.

Knows how each library writes; knows nothing of reading or measuring.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from neurofmx_wds import WebDatasetWriter

Sample = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Samples to be written: random spikes and behavior, and metadata.

    Attributes:
        name: of the directory that they go to.
        n: how many.
        spikes, behavior: shapes of one sample's arrays, float32.
        shard_size: samples in a shard.
        batch_size: samples in a batch when they are read.
    """

    name: str
    n: int
    spikes: tuple[int, ...] = (100, 96)
    behavior: tuple[int, ...] = (100, 2)
    shard_size: int = 1000
    batch_size: int = 32

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's arrays."""
        return 4 * int(np.prod(self.spikes) + np.prod(self.behavior))

    def __iter__(self) -> Iterator[tuple[str, Sample, dict[str, Any]]]:
        """Key, arrays and metadata of each sample; the same every time."""
        rng = np.random.default_rng(0)
        for i in range(self.n):
            arrays = {
                "spikes": rng.random(self.spikes, np.float32),
                "behavior": rng.random(self.behavior, np.float32),
            }
            yield f"sample_{i:09d}", arrays, {"session_id": "session-1", "window_index": i, "t_start_ns": i * 10**9}


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, made only if it is not there, and never half."""
    if not path.exists():
        aside = path.with_name(f".{path.name}.making")
        shutil.rmtree(aside, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(aside)
        os.rename(aside, path)
    return path


def ours(root: Path, samples: Samples) -> Path:
    """A dataset that this package wrote, with its defaults."""

    def make(path: Path) -> None:
        with WebDatasetWriter(path, shard_size=samples.shard_size) as writer:
            for _, arrays, metadata in samples:
                writer.write_sample(arrays, metadata=metadata)

    return made(root / samples.name / "neurofmx_wds", make)


def webdataset(root: Path, samples: Samples) -> list[str]:
    """Shards that ``webdataset.ShardWriter`` wrote, with its defaults."""

    def make(path: Path) -> None:
        path.mkdir()
        with wds.ShardWriter(f"{path}/train-%06d.tar", maxcount=samples.shard_size, verbose=0) as sink:
            for key, arrays, metadata in samples:
                sink.write(webdataset_sample(key, arrays, metadata))

    return sorted(map(str, made(root / samples.name / "webdataset", make).glob("*.tar")))


def webdataset_sample(key: str, arrays: Sample, metadata: dict[str, Any]) -> Sample:
    """A sample as webdataset's writer wants it."""
    return {"__key__": key, **{f"{name}.npy": a for name, a in arrays.items()}, "metadata.json": metadata}


def litdata(root: Path, samples: Samples) -> Path:
    """Chunks of 64 MB, the size that LitData's documentation uses; metadata as text, which costs it least."""
    from litdata import optimize

    def make(path: Path) -> None:
        with quiet():
            optimize(
                fn=functools.partial(_litdata_samples, samples),
                inputs=[0],
                output_dir=str(path),
                chunk_bytes="64MB",
                num_workers=1,
                verbose=False,
            )

    return made(root / samples.name / "litdata", make)


def _litdata_samples(samples: Samples, _: int) -> Iterator[Sample]:
    for _key, arrays, metadata in samples:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}  # it reads them faster than arrays
        yield {**tensors, "metadata": json.dumps(metadata)}


def mosaicml(root: Path, samples: Samples) -> Path:
    """MosaicML Streaming's shards of its default size, arrays of a fixed dtype and shape; metadata as text."""
    from streaming import MDSWriter

    columns = {
        "spikes": f"ndarray:float32:{','.join(map(str, samples.spikes))}",
        "behavior": f"ndarray:float32:{','.join(map(str, samples.behavior))}",
        "metadata": "str",
    }

    def make(path: Path) -> None:
        with MDSWriter(out=str(path), columns=columns) as sink:
            for _, arrays, metadata in samples:
                sink.write({**arrays, "metadata": json.dumps(metadata)})

    return made(root / samples.name / "mosaicml", make)


def energon(root: Path, samples: Samples) -> Path:
    """The shards that webdataset wrote, prepared for Energon."""
    from megatron.energon.flavors import BaseWebdatasetFactory

    tars = webdataset(root, samples)

    def make(path: Path) -> None:
        path.mkdir()
        for tar in tars:
            os.link(tar, path / Path(tar).name)
        names = [Path(tar).name for tar in tars]
        with quiet():
            BaseWebdatasetFactory.prepare_dataset(
                path, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1
            )
        crude = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (path / ".nv-meta" / "dataset.yaml").write_text(crude)

    return made(root / samples.name / "energon", make)


def ffcv(root: Path, samples: Samples) -> Path:
    """FFCV's one file; arrays only, it has no field for metadata."""
    from ffcv.fields import NDArrayField
    from ffcv.writer import DatasetWriter

    array = np.dtype(np.float32)
    fields = {"spikes": NDArrayField(array, samples.spikes), "behavior": NDArrayField(array, samples.behavior)}

    def make(path: Path) -> None:
        path.mkdir()
        rows = [(arrays["spikes"], arrays["behavior"]) for _, arrays, _ in samples]
        DatasetWriter(str(path / "samples.beton"), fields, num_workers=1).from_indexed_dataset(rows)

    return made(root / samples.name / "ffcv", make) / "samples.beton"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing that other libraries print come between our tables."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
