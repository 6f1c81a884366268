"""``python -m benchmarks.gpu``: batches delivered on a GPU: their bytes, overlap with a step, bandwidth, memory.

Takes a few minutes on a machine with a CUDA device, torch and this package; on another machine it says so and ends.
Knows the loader's `device`; knows nothing of the other groups of measurements.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neurofmx_wds import create_webdataset_dataloader

from . import datasets
from .datasets import Samples

Row = tuple[str, float, str, bool]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes, until the device has done its part."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def bytes_row(directory: Path, device: str, **options: Any) -> Row:
    """Compare every batch on the device with the same one in memory, while a step keeps the device busy."""
    plain = create_webdataset_dataloader(directory, num_workers=0, **options)
    loader = create_webdataset_dataloader(directory, device=device, num_workers=0, **options)
    busy = torch.ones(2048, 2048, device=device)
    wrong = n = 0
    for batch, expected in zip(loader, plain, strict=True):
        busy = (busy @ busy).clamp(0, 1)  # the comparison runs behind it, the next copy beside it
        for name in ("spikes", "behavior"):
            n += 1
            wrong += not torch.equal(batch[name].cpu(), expected[name])
    return "tensors with wrong bytes", wrong, f"of {n}", wrong == 0 and n > 0


def overlap_row(directory: Path, **options: Any) -> Row:
    """Compare an epoch of loading and steps with the longer of the two alone."""
    loader = create_webdataset_dataloader(directory, device="cuda", num_workers=0, **options)

    def load() -> int:
        return sum(1 for _ in loader)

    n_batches = load()
    loading = min(timed(load) for _ in range(3))
    matrix = torch.rand(2048, 2048, device="cuda")
    once = timed(lambda: [matrix @ matrix for _ in range(100)]) / 100
    n_products = max(1, round(loading / n_batches / once))

    def steps(batches: Any) -> None:
        for _ in batches:
            for _ in range(n_products):
                matrix @ matrix

    stepping = min(timed(lambda: steps(range(n_batches))) for _ in range(3))
    both = min(timed(lambda: steps(loader)) for _ in range(3))
    ratio = both / max(loading, stepping)
    return "load and step ÷ the longer of the two", ratio, "(target ≤ 1.05)", ratio <= 1.05


def bandwidth_row(directory: Path, **options: Any) -> Row:
    """Compare an epoch's bytes a second with copies of the same tensors out of page-locked memory, and nothing else."""
    loader = create_webdataset_dataloader(directory, device="cuda", num_workers=0, **options)
    first = next(iter(create_webdataset_dataloader(directory, num_workers=0, **options)))
    pinned = [first[name].pin_memory() for name in ("spikes", "behavior")]
    n_batches = len(loader)

    def copies() -> None:
        for _ in range(n_batches):
            for tensor in pinned:
                tensor.to("cuda", non_blocking=True)

    def load() -> None:
        for _ in loader:
            pass

    load()
    ratio = min(timed(copies) for _ in range(3)) / min(timed(load) for _ in range(3))
    return "bandwidth ÷ bare copies of batches", ratio, "(target ≥ 0.9)", ratio >= 0.9


def growth_row(directory: Path, **options: Any) -> Row:
    """Return how much more of the device's memory is in use after five epochs than after one."""
    loader = create_webdataset_dataloader(directory, device="cuda", num_workers=0, **options)
    seen = []
    for _ in range(5):
        for _ in loader:
            pass
        torch.cuda.synchronize()
        seen.append(torch.cuda.memory_reserved())
    growth = (seen[-1] - seen[0]) / 1e6
    return "growth of the device's memory", growth, "MB in four epochs", growth <= 0


def main(arguments: list[str] | None = None) -> int:
    """Run all measurements; return 1 if one missed its target."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description="Measure batches delivered on a GPU.")
    parser.add_argument("--samples", type=int, default=20_000, help="how many (20000)")
    parser.add_argument("--batch-size", type=int, default=256, help="samples in a batch (256)")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing was measured")
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batches of {asked.batch_size}")
    options = {"batch_size": asked.batch_size, "shuffle": True}
    samples = Samples("gpu", asked.samples)
    with tempfile.TemporaryDirectory() as root:
        directory = datasets.ours(Path(root), samples)
        measured = [
            bytes_row(directory, "cuda", **options),
            overlap_row(directory, **options),
            bandwidth_row(directory, **options),
            growth_row(directory, **options),
        ]
    for name, value, remark, met in measured:
        print(f"{name:<40} {value:8.3f} {remark:<18} {'met' if met else 'MISSED'}")
    return int(not all(met for *_, met in measured))


if __name__ == "__main__":
    sys.exit(main())
