"""``python -m benchmarks.resume``: the time to resume from a state, and to open a large dataset.

Prints two tables. The datasets of a million samples and of 10,000 shards are made here: real manifests and indexes with
sparse tars, whose arrays are zeros and take no space on disk.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.format.manifest import Manifest
from neurofmx_wds.format.writer import WebDatasetWriter, shard_record

from . import datasets

BATCH, REPEATS = 32, 5
PLACES = (0.01, 0.5, 0.99)
SHAPE = (25, 40)


def sparse_dataset(directory: Path, n_shards: int, shard_size: int) -> Path:
    """Make a dataset whose first shard is real; the others are sparse files with its size, index and a few headers."""

    def make(path: Path) -> None:
        with WebDatasetWriter(path, shard_size=shard_size) as writer:
            for i in range(shard_size):
                writer.write_sample({"spikes": np.full(SHAPE, i, np.float32)}, metadata={"window_index": i})
        manifest = Manifest.load(path)
        first = path / manifest.shards[0].shard_name
        index = ShardIndex.load(index_path(first))
        tar = first.read_bytes()
        ends = index.member_offset[: index.sample_start[1]], index.member_offset[index.sample_start[-2] :]
        records = []
        for i in range(n_shards):
            shard = first.with_name(f"shard_{i:06d}.tar")
            checksums = index.member_crc32[: 0 if i else None]  # they do not hold for zeros
            twin = replace(index, shard_name=shard.name, member_crc32=checksums)
            if i:
                with open(shard, "wb") as stream:
                    stream.truncate(index.tar_size)
                    for payload in np.concatenate(
                        ends
                    ).tolist():  # the reader checks the first and last sample of a shard
                        stream.seek(payload - 512)
                        stream.write(tar[payload - 512 : payload])
                index_path(shard).write_bytes(twin.to_bytes())
            records.append(shard_record(twin))
        replace(manifest, shards=records).save(path)

    return datasets.made(directory, make)


def first_batch_ms(make: Callable[[], Any], state: Any) -> float:
    """Return the milliseconds from making a loader to its first batch after `state`."""
    begin = time.perf_counter()
    loader = make()
    loader.load_state_dict(state)
    next(iter(loader))
    return (time.perf_counter() - begin) * 1e3


def medians(make: Callable[[], Any], states: list[Any], repeats: int = REPEATS) -> list[float]:
    """Return the median for each state, in milliseconds, after one round of warm-up."""
    rounds = [[first_batch_ms(make, state) for state in states] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def our_row(directory: Path, n_samples: int, **options: Any) -> list[float]:
    """Measure our loader at each of PLACES; its states are computed, without running it."""

    def make() -> Any:
        return create_webdataset_dataloader(directory, BATCH, **options)

    state = make().state_dict()
    states = []
    for place in PLACES:
        loader = make()
        at = int(n_samples * place) // BATCH * BATCH
        order = loader.order
        shard, offset = order.locate(order.sample_ids(at, at + 1))
        states.append({**state, "position": at, "shard_idx": int(shard[0]), "sample_offset": int(offset[0])})
    return medians(make, states)


def states_on_the_way(loader: Any, n_samples: int) -> list[Any]:
    """Run a loader, and return its states at PLACES."""
    states, batches = [], iter(loader)
    steps = [int(n_samples * place) // BATCH for place in PLACES]
    for before, after in itertools.pairwise([0, *steps]):
        for _ in itertools.islice(batches, after - before):
            pass
        states.append(loader.state_dict())
    return states


def stateful_row(directory: Path, n_samples: int) -> list[float]:
    """Measure torchdata's StatefulDataLoader on webdataset, which reads earlier samples again."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    shards = sorted(map(str, directory.glob("*.tar")))

    def make() -> Any:
        samples = wds.WebDataset(shards, shardshuffle=False).decode().to_tuple("spikes.npy")
        return StatefulDataLoader(samples, batch_size=BATCH, num_workers=0)

    return medians(make, states_on_the_way(make(), n_samples), repeats=2)


def litdata_row(directory: Path, n_samples: int) -> list[float]:
    """Measure LitData's loader on a dataset of the same arrays."""
    import litdata

    inputs = directory.with_name(f"{directory.name}-litdata")
    datasets.made(inputs, lambda path: _write_litdata(litdata, path, n_samples))

    def make() -> Any:
        return litdata.StreamingDataLoader(litdata.StreamingDataset(str(inputs)), batch_size=BATCH, num_workers=0)

    return medians(make, states_on_the_way(make(), n_samples), repeats=2)


def _write_litdata(litdata: Any, path: Path, n_samples: int) -> None:
    litdata.optimize(litdata_sample, list(range(n_samples)), str(path), chunk_bytes="16MB", num_workers=1)


def litdata_sample(i: int) -> dict[str, np.ndarray]:
    """Return a sample for LitData's own conversion."""
    return {"spikes": np.full(SHAPE, i, np.float32)}


def opening(directory: Path) -> tuple[float, float, float]:
    """Return, for a fresh process, seconds to open a dataset, seconds to the first batch, and peak memory in MB."""
    code = f"import benchmarks.resume as b; b.open_and_print({str(directory)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    opened, first, memory = map(float, done.stdout.split())
    return opened, first, memory


def open_and_print(directory: str) -> None:
    """Open a dataset, take a batch, and print time and memory; for :func:`opening`."""
    before = _memory_kb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    begin = time.perf_counter()
    loader = create_webdataset_dataloader(directory, BATCH, num_workers=0)
    opened = time.perf_counter() - begin
    next(iter(loader))
    first = time.perf_counter() - begin
    print(opened, first, (_memory_kb("VmHWM") - before) / 1024)


def _memory_kb(what: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1])


def rows(root: Path) -> Iterator[tuple[str, Callable[[], list[float]]]]:
    """Yield the name of each row and the function that measures it."""
    small = sparse_dataset(root / "10k", 10, 1000)
    large = sparse_dataset(root / "1M", 1000, 1000)
    for name, directory, n in (("10 k", small, 10_000), ("1 M", large, 1_000_000)):
        for shuffle in (True, "full"):
            label = f"neurofmx_wds, {name} samples, shuffle={shuffle}"
            yield label, lambda d=directory, n=n, s=shuffle: our_row(d, n, shuffle=s, num_workers=0)
    yield "neurofmx_wds, 1 M samples, 2 workers", lambda: our_row(large, 1_000_000, num_workers=2)
    true = datasets.made(root / "10k-true", lambda path: _write_true(path, 10_000))
    yield "StatefulDataLoader on webdataset, 10 k", lambda: stateful_row(true, 10_000)
    yield "LitData, 10 k", lambda: litdata_row(true, 10_000)


def _write_true(path: Path, n_samples: int) -> None:
    with WebDatasetWriter(path) as writer:
        for i in range(n_samples):
            writer.write_sample({"spikes": np.full(SHAPE, i, np.float32)})


def main() -> int:
    """Measure and print."""
    logging.disable(logging.WARNING)  # torchdata warns at every resume that it reads everything again
    warnings.filterwarnings("ignore", message=".*set_vital.*")
    with tempfile.TemporaryDirectory(prefix="neurofmx-benchmarks-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        print(f"from construction with a state to the first batch of {BATCH}, ms, median of {REPEATS}")
        print(f"  {'at this part of the epoch':48}" + "".join(f"{place:>9.0%}" for place in PLACES), flush=True)
        for label, row in rows(root):
            try:
                print(f"  {label:48}" + "".join(f"{value:9.1f}" for value in row()), flush=True)
            except ImportError as error:
                print(f"  {label:48} not measured: {error}", flush=True)
        print("opening, in a fresh process" + " " * 23 + "open s  first batch s  memory MB")
        for n_shards in (10, 1000, 10_000):
            opened, first, memory = opening(sparse_dataset(root / f"shards-{n_shards}", n_shards, 1000))
            print(f"  {n_shards:6,} shards × 1,000 samples {'':18}{opened:8.3f}{first:15.3f}{memory:11.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
