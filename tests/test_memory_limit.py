"""A memory limit: what is estimated is not less than what is used, and what is reduced fits and is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from loading import rows, write_dataset

from neurofmx_wds import WebDatasetWriter, create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.errors import ShardError
from neurofmx_wds.loading.fetcher import Fetcher
from neurofmx_wds.loading.memory_limit import Cost, Load, cost_of, reduced
from neurofmx_wds.loading.options import parse_size
from neurofmx_wds.stimulus import StandardDataLoader

SMALL: dict[str, Any] = {"buffer_size": 7, "block_size": 3}
HAS_SMAPS = Path("/proc/self/smaps_rollup").exists() and "Pss_Shmem" in Path("/proc/self/smaps_rollup").read_text()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples of 1 MB."""
    directory = tmp_path_factory.mktemp("data") / "large"
    create_shards_from_arrays(directory, {"x": np.zeros((80, 250_000), "float32")}, shard_size=10)
    return directory


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "small", (1, 9, 2, 7, 5))


MEASURE = """
import json, re, sys, time
from pathlib import Path
from neurofmx_wds import create_webdataset_dataloader

def text(path):
    try:
        return path.read_text()
    except OSError:  # a worker that has just ended
        return ""

def used():
    # what this process and its children have that is in no file, each page counted once
    found = [Path("/proc/self")]
    for task in Path("/proc/self/task").iterdir():
        found += [Path("/proc", child) for child in text(task / "children").split()]
    sizes = [re.findall(r"^Pss_(?:Anon|Shmem): +(\\d+)", text(each / "smaps_rollup"), re.M) for each in found]
    return sum(1024 * int(size) for of_one in sizes for size in of_one)

def doubled(batch):
    return {"x": batch["x"] * 2}

def main():
    directory, options, with_transform = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "True"
    if with_transform:
        options |= {"batch_transform": doubled, "transform": dict}
    before = used()
    loader = create_webdataset_dataloader(directory, **options)
    peak = 0
    for batch in loader:
        time.sleep(0.03)  # let all be read ahead that can be
        peak = max(peak, used() - before)
    told = {name: getattr(loader, name) for name in ("batch_size", "num_workers", "prefetch_factor")}
    print(json.dumps({"peak": peak, "batch": batch["x"].nbytes, **told}))

if __name__ == "__main__":
    main()
"""


def measured(directory: Path, with_transform: bool = False, **options: Any) -> dict[str, Any]:
    """What loading takes at most, in a process of its own."""
    script = Path(tempfile.mkdtemp(dir=directory.parent)) / "measure.py"
    script.write_text(MEASURE)
    options |= {"multiprocessing_context": "fork"} if options.get("num_workers") else {}
    command = [sys.executable, "-W", "ignore", str(script), str(directory), json.dumps(options), str(with_transform)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "said": done.stderr}


def fetcher_of(directory: Path, **options: Any) -> Fetcher:
    loader = create_webdataset_dataloader(directory, **options)
    return Fetcher(loader.opened, loader.processing)


def estimated(directory: Path, with_transform: bool = False, **options: Any) -> int:
    more: dict[str, Any] = {"transform": dict, "batch_transform": dict} if with_transform else {}
    load = Load(options["batch_size"], options["num_workers"], options["prefetch_factor"])
    return cost_of(fetcher_of(directory, **options, **more), True).of(load)


CELLS = [  # workers, batches ahead, transforms
    (0, 4, False), (2, 1, True),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in
      [(0, 0, False), (2, 3, False), (0, 1, True), (0, 4, True), (1, 1, False), (2, 6, False), (2, 4, True)]),
]  # fmt: skip


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux to tell what memory is used")
@pytest.mark.parametrize(("num_workers", "prefetch_factor", "with_transform"), CELLS)
def test_the_estimate_is_never_too_low_and_not_far_too_high(
    large: Path, num_workers: int, prefetch_factor: int, with_transform: bool
) -> None:
    options = {"batch_size": 8, "num_workers": num_workers, "prefetch_factor": prefetch_factor}
    used, most = measured(large, with_transform, **options)["peak"], estimated(large, with_transform, **options)
    assert 0.4 * most < used < most


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux to tell what memory is used")
def test_batches_of_many_shapes_take_no_more_than_of_one(tmp_path: Path) -> None:
    """Recordings differ in their units; memory of those gone by is let go."""
    with WebDatasetWriter(tmp_path / "d", shard_size=40) as writer:
        for recording in range(12):
            for _ in range(40):
                writer.write_sample({"x": np.zeros((250, 500 - recording), "float32")})
    options = {"batch_size": 8, "num_workers": 0, "prefetch_factor": 2, "shuffle": False, "io": "pread"}
    used, most = measured(tmp_path / "d", **options)["peak"], estimated(tmp_path / "d", **options)
    assert 0.4 * most < used < most


@pytest.mark.skipif(not HAS_SMAPS, reason="needs Linux to tell what memory is used")
def test_what_exceeded_the_limit_stays_within_it(large: Path) -> None:
    options: dict[str, Any] = {"batch_size": 8, "num_workers": 2, "prefetch_factor": 4}
    limit = 110_000_000
    with ThreadPoolExecutor() as both:
        without, within = both.map(lambda more: measured(large, **options, **more), [{}, {"memory_limit": "110MB"}])
    assert without["peak"] > limit > within["peak"]
    assert (without["batch_size"], without["num_workers"], without["prefetch_factor"]) == (8, 2, 4)
    assert within["batch_size"] == 8 and (within["num_workers"], within["prefetch_factor"]) == (1, 3)
    assert "memory_limit=110 MB: num_workers 2 → 1, prefetch_factor 4 → 3; loading then takes up to" in within["said"]
    assert not without["said"]


@given(
    cost=st.builds(
        Cost, st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 10**8), st.booleans()
    ),
    load=st.builds(Load, st.integers(1, 500), st.integers(0, 4), st.integers(1, 5)),
    limit=st.integers(1, 10**10),
)
@settings(max_examples=300, deadline=None)
def test_no_more_is_given_up_than_must_be(cost: Cost, load: Load, limit: int) -> None:
    combinations = [
        Load(load.batch_size, workers, ahead)
        for workers in range(load.num_workers + 1)
        for ahead in range(1 if workers else 0, load.prefetch_factor + 1)
    ]
    fitting = [each for each in combinations if cost.of(each) <= limit]
    if fitting:  # as many workers as can be, then as many batches ahead
        assert reduced(cost, load, limit) == max(fitting, key=lambda each: (each.num_workers, each.prefetch_factor))
        return
    with pytest.raises(ValueError, match=rf"is too little for batch_size={load.batch_size}") as caught:
        reduced(cost, load, limit)
    fits = re.search(r"batch_size=(\d+) would fit", str(caught.value))
    if fits is None:
        assert "a single sample takes" in str(caught.value) and cost.of(Load(1, 0, 0)) > limit
    else:
        most = int(fits[1])
        assert cost.of(Load(most, 0, 0)) <= limit < cost.of(Load(most + 1, 0, 0)) and most < load.batch_size


def test_less_of_everything_gives_the_same_batches(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = create_webdataset_dataloader(small, batch_size=4, num_workers=0, **SMALL)
    reference = [batch["__key__"] for batch in plain]
    cost = cost_of(fetcher_of(small, num_workers=0), True)
    options: dict[str, Any] = {"num_workers": 4, "memory_limit": cost.reading + 2000, **SMALL}
    loader = create_webdataset_dataloader(small, batch_size=4, **options)
    assert (loader.batch_size, loader.num_workers, loader.prefetch_factor) == (4, 0, None)
    assert [batch["__key__"] for batch in loader] == reference
    assert "num_workers 4 → 0, prefetch_factor 2 → 0; loading then takes up to" in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(ValueError, match=r"too little for batch_size=400, which takes .*; batch_size=\d+ would fit"):
        create_webdataset_dataloader(small, batch_size=400, **options)


def test_nothing_is_said_where_all_fits(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    for options in ({"num_workers": 0}, {"num_workers": 2}, {"num_workers": 0, "prefetch_factor": None}):
        loader = create_webdataset_dataloader(small, memory_limit="4 GiB", **options)
        assert loader.num_workers == options["num_workers"] and loader.batch_size == 32
    assert not caplog.records


def test_a_shard_that_cannot_be_read_is_skipped_as_ever(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", (8, 8))
    (directory / "shard_000000.tar").write_bytes(b"")
    options = {"num_workers": 0, "shuffle": False, "handler": wds.ignore_and_continue}
    loader = create_webdataset_dataloader(directory, memory_limit="2GB", **options)
    assert [i for batch in loader for _, _, i in rows(batch)] == [*range(8, 16)]
    assert loader.skipped == 8
    (directory / "shard_000001.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="0 bytes"):
        create_webdataset_dataloader(directory, memory_limit="2GB", **options)


def test_transforms_count(small: Path) -> None:
    def wide(batch: dict[str, Any]) -> dict[str, Any]:
        return {"x": batch["x"].repeat(1, 1, 1000)}

    options: dict[str, Any] = {"num_workers": 0, "memory_limit": 7_000_000}
    assert create_webdataset_dataloader(small, batch_size=100, **options).batch_size == 100
    with pytest.raises(ValueError, match="too little for batch_size=100"):
        create_webdataset_dataloader(small, batch_size=100, batch_transform=wide, **options)
    assert cost_of(fetcher_of(small, batch_transform=wide), True).delivered == 24_000


def test_stimulus_loaders_take_it_too() -> None:
    images = [(np.zeros((3, 32, 32), np.float32), i % 2) for i in range(50)]  # 12 kB each, or half of that
    loader = StandardDataLoader(images, 50, dtype=torch.float16, memory_limit="6 MB")
    assert next(len(labels) for _, labels in loader) == 50
    with pytest.raises(ValueError, match="too little for batch_size=50"):
        StandardDataLoader(images, 50, dtype=torch.float64, memory_limit="6 MB")


def test_workers_that_are_started_anew_take_more(small: Path) -> None:
    for method, workers in (("fork", 2), ("spawn", 0)):
        loader = create_webdataset_dataloader(
            small, num_workers=2, memory_limit="200MB", multiprocessing_context=method
        )
        assert loader.num_workers == workers


def test_an_impossible_limit_is_refused(small: Path, tmp_path: Path) -> None:
    wanted = r"memory_limit=100 B is too little for batch_size=32: a single sample takes .*B, .*B of it for any number"
    with pytest.raises(ValueError, match=wanted):
        create_webdataset_dataloader(small, memory_limit=100)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        create_webdataset_dataloader(small, batch_size=0, memory_limit="1GB")
    for bad in (0, -1, "0", "lots", "2 GBB", "-1GB", True, "", "1e9", None.__class__):
        with pytest.raises(ValueError, match="memory_limit must be a number of bytes"):
            create_webdataset_dataloader(small, memory_limit=bad)


def test_sizes() -> None:
    for text, size in {"2GB": 2 * 10**9, "512 MiB": 2**29, "1.5kb": 1500, "7": 7, "3 b": 3, " 1 TiB ": 2**40}.items():
        assert parse_size(text) == size
