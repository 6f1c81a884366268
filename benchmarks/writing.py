"""Speed of writing samples to shards, against webdataset's writer and a plain write of the same bytes.

Knows the ways of writing; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import webdataset as wds

from neurofmx_wds import WebDatasetWriter

from . import datasets
from .datasets import Samples
from .harness import Case, Group, Setting, Target, Work


def raw_write(directory: Path, files: Sequence[bytes], sync: bool) -> None:
    """Write files, each with one call, and fsync them if `sync`."""
    directory.mkdir(parents=True)
    for i, data in enumerate(files):
        with open(directory / f"{i:06d}", "wb", buffering=0) as stream:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
            if sync:
                os.fsync(stream.fileno())


def writing(setting: Setting) -> Group:
    """Write the same arrays under the same names."""
    samples = Samples("ordinary", setting.n_samples)
    out = setting.root / "written"
    ours, theirs, on_disk, in_cache = "neurofmx_wds", "webdataset", "raw write and fsync", "raw write, no fsync"

    @functools.cache
    def in_memory() -> list[tuple[str, datasets.Sample, dict[str, object]]]:
        return list(samples)

    @functools.cache
    def shards() -> list[bytes]:
        return [path.read_bytes() for path in sorted(datasets.ours(setting.root, samples).glob("*.tar"))]

    def write_ours() -> None:
        with WebDatasetWriter(out, shard_size=samples.shard_size) as writer:
            for _, arrays, metadata in in_memory():
                writer.write_sample(arrays, metadata=metadata)

    def write_theirs() -> None:
        out.mkdir()
        with wds.ShardWriter(f"{out}/train-%06d.tar", maxcount=samples.shard_size, verbose=0) as sink:
            for key, arrays, metadata in in_memory():
                sink.write(datasets.webdataset_sample(key, arrays, metadata))

    def case(name: str, write: Callable[[], None], prepare: Callable[[], object]) -> Case:
        def make() -> Work:
            prepare()

            def work() -> float:
                write()
                return samples.n * samples.sample_bytes

            return work

        return Case(name, make, before=lambda: shutil.rmtree(out, ignore_errors=True), ours=name == ours)

    return Group(
        "writing samples from memory",
        [
            case(ours, write_ours, in_memory),
            case(theirs, write_theirs, in_memory),
            case(on_disk, lambda: raw_write(out, shards(), sync=True), shards),
            case(in_cache, lambda: raw_write(out, shards(), sync=False), shards),
        ],
        [Target(ours, theirs, at_least=4), Target(ours, on_disk, at_least=0.5), Target(ours, in_cache)],
        unit="MB/s of arrays",
        scale=1e6,
    )


GROUPS = {"writing": writing}
