"""How each library reads the same samples: functions that return an iterable of batches, and the limit.

Knows how each library reads; knows nothing of measuring.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from neurofmx_wds import collate_webdataset
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.loading.readers import ShardReader
from neurofmx_wds.storage.checksums import crc32

from . import datasets
from .datasets import Samples

Batches = Iterable[Any]
Map = Callable[[dict[str, Any]], dict[str, Any]]
NAMES = ("spikes.npy", "behavior.npy", "metadata.json")


def webdataset(urls: list[str], batch_size: int, transform: Map | None = None) -> wds.WebDataset:
    """Read with webdataset, as its documentation shows for arrays."""
    dataset = wds.WebDataset(urls, shardshuffle=False).decode()
    if transform is not None:
        dataset = dataset.map(transform)
    return dataset.to_tuple(*NAMES).batched(batch_size)


def webloader(urls: list[str], batch_size: int, num_workers: int) -> Batches:
    """Read with webdataset in persistent worker processes."""
    return wds.WebLoader(
        webdataset(urls, batch_size), batch_size=None, num_workers=num_workers, persistent_workers=True
    )


def torchdata(urls: list[str], batch_size: int) -> Batches:
    """Read with webdataset, made resumable by torchdata."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(webdataset(urls, batch_size), batch_size=None, num_workers=0)


def litdata(root: Path, samples: Samples, num_workers: int = 0) -> Batches:
    """Read with LitData from its own chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(datasets.litdata(root, samples)), shuffle=False)
    return StreamingDataLoader(
        dataset, batch_size=samples.batch_size, num_workers=num_workers, persistent_workers=num_workers > 0
    )


def mosaicml(root: Path, samples: Samples) -> Batches:
    """Read with MosaicML Streaming from its own shards."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(
        local=str(datasets.mosaicml(root, samples)), shuffle=False, batch_size=samples.batch_size
    )
    return torch.utils.data.DataLoader(dataset, batch_size=samples.batch_size, num_workers=0)


def energon(root: Path, samples: Samples) -> Batches:
    """Read with Megatron-Energon from the shards of webdataset, in order and once, as it reads validation data."""
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        Sample,
        WorkerConfig,
        basic_sample_keys,
        edataclass,
        get_loader,
        get_val_dataset,
        stateless,
    )

    @edataclass
    class Arrays(Sample):  # type: ignore[misc]
        spikes: torch.Tensor
        behavior: torch.Tensor
        metadata: dict

    @stateless
    def cook(sample: dict[str, Any]) -> Arrays:
        spikes, behavior, metadata = (sample[name] for name in NAMES)
        return Arrays(
            **basic_sample_keys(sample),
            spikes=torch.from_numpy(spikes),
            behavior=torch.from_numpy(behavior),
            metadata=metadata,
        )

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = [Cooker(cook)]

    dataset = get_val_dataset(
        datasets.energon(root, samples),
        split_part="train",
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=samples.batch_size,
        task_encoder=Encoder(),
    )
    return get_loader(dataset)


class Dali:
    """Read with NVIDIA DALI on the CPU: raw bytes of the members, without decoding."""

    def __init__(self, urls: list[str], batch_size: int) -> None:
        from nvidia.dali import fn, pipeline_def

        @pipeline_def(batch_size=batch_size, num_threads=2, device_id=None)
        def members() -> Any:
            return tuple(fn.readers.webdataset(paths=urls, ext=list(NAMES), name="tars"))

        self._pipeline = members()
        self._pipeline.build()
        self._n = self._pipeline.epoch_size("tars")

    def __iter__(self) -> Iterator[Any]:
        left = self._n
        while left > 0:
            batch = [list(column)[:left] for column in self._pipeline.run()]
            yield batch
            left -= len(batch[0])


def batch_of(reader: ShardReader, transform: Map, batch_size: int, i: int) -> Any:
    """Read a batch by its number with our reader, transform its samples and collate them."""
    ids = np.arange(i * batch_size, min((i + 1) * batch_size, int(reader.counts.sum())))
    return collate_webdataset([transform(sample) for sample in reader.read_samples(ids)])


class Spdl:
    """Batches made by SPDL's threads, by a function of their number."""

    def __init__(self, read: Callable[[int], Any], n_batches: int, n_threads: int) -> None:
        self.read, self.n_batches, self.n_threads = read, n_batches, n_threads

    def __iter__(self) -> Iterator[Any]:
        from spdl.pipeline import PipelineBuilder

        builder = PipelineBuilder().add_source(range(self.n_batches)).pipe(self.read, concurrency=self.n_threads)
        pipeline = builder.add_sink(2 * self.n_threads).build(num_threads=self.n_threads)
        with pipeline.auto_stop():
            yield from pipeline


class ByNumber(torch.utils.data.Dataset):
    """Batches made by a function of their number, for torch's workers."""

    def __init__(self, read: Callable[[int], Any], n_batches: int) -> None:
        self.read, self.n_batches = read, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, i: int) -> Any:
        return self.read(i)


def ffcv(root: Path, samples: Samples) -> Batches:
    """Read with FFCV in order from its own file; arrays only."""
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    pipelines = {name: [NDArrayDecoder(), ToTensor()] for name in ("spikes", "behavior")}
    return Loader(
        str(datasets.ffcv(root, samples)),
        samples.batch_size,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines=pipelines,
        drop_last=False,
    )


class Limit:
    """Copy the same payloads from mapped shards, one after another, into one buffer that is reused.

    Args:
        directory: directory of our shards.
        batch_size: samples that the buffer holds.
        shuffled: whether to copy them in random order, which is slower because of cache and page-table misses.
    """

    def __init__(self, directory: Path, batch_size: int, shuffled: bool = False) -> None:
        self._samples: list[list[memoryview]] = []
        for path in sorted(directory.glob("*.tar")):
            index = ShardIndex.load(index_path(path))
            with open(path, "rb") as stream:
                tar = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            columns = [column for name, column in index.columns.items() if name != "metadata"]
            places = [zip(column.offset.tolist(), column.size.tolist(), strict=True) for column in columns]
            self._samples += [[tar[a : a + size] for a, size in sample] for sample in zip(*places, strict=True)]
        self._sample_bytes = sum(map(len, self._samples[0]))
        if shuffled:
            random.Random(0).shuffle(self._samples)
        self._batch_size = batch_size
        self._buffer = memoryview(bytearray(batch_size * self._sample_bytes))

    def __iter__(self) -> Iterator[tuple[memoryview]]:
        buffer = self._buffer
        for first in range(0, len(self._samples), self._batch_size):
            samples, filled = self._samples[first : first + self._batch_size], 0
            for sample in samples:
                for payload in sample:
                    end = filled + len(payload)
                    buffer[filled:end] = payload
                    filled = end
            yield (buffer[:filled].cast("B", (len(samples), self._sample_bytes)),)


class CheckedLimit:
    """Map the shards anew, copy each payload into one buffer that is reused, and compare its checksum: a first epoch.

    Args:
        directory: directory of our shards.
        batch_size: samples that the buffer holds.
        ids: ids of the samples in the order in which they are copied, shape (n,), int64.
    """

    def __init__(self, directory: Path, batch_size: int, ids: np.ndarray) -> None:
        self._paths = sorted(directory.glob("*.tar"))
        places: list[list[tuple[int, int, int, int]]] = []
        for shard, path in enumerate(self._paths):
            index = ShardIndex.load(index_path(path))
            columns = [column for name, column in index.columns.items() if name != "metadata"]
            numbers = [zip(*(x.tolist() for x in (c.offset, c.size, c.crc32)), strict=True) for c in columns]
            places += [[(shard, *each) for each in sample] for sample in zip(*numbers, strict=True)]
        self._batches = [[places[i] for i in ids[a : a + batch_size]] for a in range(0, len(ids), batch_size)]
        self._sample_bytes = sum(size for _, _, size, _ in places[0])
        self._buffer = memoryview(bytearray(batch_size * self._sample_bytes))

    def __iter__(self) -> Iterator[tuple[memoryview]]:
        buffer, tars = self._buffer, []
        for path in self._paths:
            with open(path, "rb") as stream:
                tars.append(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
        for samples in self._batches:
            filled = 0
            for sample in samples:
                for shard, offset, size, checksum in sample:
                    row = buffer[filled : filled + size]
                    row[:] = tars[shard][offset : offset + size]
                    if crc32(row) != checksum:
                        raise RuntimeError("the benchmark's data has changed: delete it")
                    filled += size
            yield (buffer[:filled].cast("B", (len(samples), self._sample_bytes)),)
