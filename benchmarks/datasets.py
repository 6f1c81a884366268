"""The same samples, written by each library; made once and kept in one directory.

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
    """Samples to write: random spikes and behavior, with metadata.

    Attributes:
        name: name of their directory.
        n: number of samples.
        spikes: shape of the float32 spikes of one sample.
        behavior: shape of the float32 behavior of one sample.
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
        """Bytes of the arrays of one sample."""
        return 4 * int(np.prod(self.spikes) + np.prod(self.behavior))

    def __iter__(self) -> Iterator[tuple[str, Sample, dict[str, Any]]]:
        """Yield key, arrays and metadata of each sample; equal in every iteration."""
        rng = np.random.default_rng(0)
        for i in range(self.n):
            arrays = {
                "spikes": rng.random(self.spikes, np.float32),
                "behavior": rng.random(self.behavior, np.float32),
            }
            yield f"sample_{i:09d}", arrays, {"session_id": "session-1", "window_index": i, "t_start_ns": i * 10**9}


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """Return a directory that `make` fills; make it, atomically, if it does not exist."""
    if not path.exists():
        aside = path.with_name(f".{path.name}.making")
        shutil.rmtree(aside, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(aside)
        os.rename(aside, path)
    return path


def ours(root: Path, samples: Samples) -> Path:
    """Write a dataset with this package and its defaults."""

    def make(path: Path) -> None:
        with WebDatasetWriter(path, shard_size=samples.shard_size) as writer:
            for _, arrays, metadata in samples:
                writer.write_sample(arrays, metadata=metadata)

    return made(root / samples.name / "neurofmx_wds", make)


def webdataset(root: Path, samples: Samples) -> list[str]:
    """Write shards with ``webdataset.ShardWriter`` and its defaults."""

    def make(path: Path) -> None:
        path.mkdir()
        with wds.ShardWriter(f"{path}/train-%06d.tar", maxcount=samples.shard_size, verbose=0) as sink:
            for key, arrays, metadata in samples:
                sink.write(webdataset_sample(key, arrays, metadata))

    return sorted(map(str, made(root / samples.name / "webdataset", make).glob("*.tar")))


def webdataset_sample(key: str, arrays: Sample, metadata: dict[str, Any]) -> Sample:
    """Return a sample in the form that the writer of webdataset takes."""
    return {"__key__": key, **{f"{name}.npy": a for name, a in arrays.items()}, "metadata.json": metadata}


def litdata(root: Path, samples: Samples) -> Path:
    """Write chunks of 64 MB, the size in LitData's documentation; metadata as text, its fastest form."""
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
        tensors = {
            name: torch.from_numpy(array) for name, array in arrays.items()
        }  # LitData reads tensors faster than arrays
        yield {**tensors, "metadata": json.dumps(metadata)}


def mosaicml(root: Path, samples: Samples) -> Path:
    """Write shards of MosaicML Streaming's default size, arrays of fixed dtype and shape; metadata as text."""
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
    """Prepare the shards of webdataset for Energon."""
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
    """Write FFCV's single file; arrays only, since it has no field for metadata."""
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
    """Suppress what other libraries print."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
