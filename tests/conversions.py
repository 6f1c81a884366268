"""Inputs of conversions, what is in their output, and runs that are killed: for everyone's tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

RECORDINGS = Path(os.environ.get("NEUROFMX_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))  # real ones


def contents(directory: Path) -> dict[str, bytes]:
    """Return the bytes of every file by name."""
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def samples_of(directory: Path) -> list[dict[str, Any]]:
    """Return what the official library reads."""
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    return list(wds.WebDataset(urls, shardshuffle=False).decode())


def make_npz(path: Path, n: int, seed: int = 0, packed: bool = False, width: int = 5) -> dict[str, np.ndarray]:
    """Write `n` samples of `spikes` and of a `label` that counts from 1000 × `seed`; return the arrays."""
    rng = np.random.default_rng(seed)
    arrays = {"spikes": rng.poisson(1.0, (n, 4, width)).astype("float32"), "label": np.arange(n) + 1000 * seed}
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return arrays


def kill_at_step(n: int, work: Any) -> int:
    """Fork a child that works and dies on the spot at its n-th step that touches files; return its exit status."""
    pid = os.fork()
    if pid == 0:
        left = n

        def die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event.startswith(("os.", "shutil.", "ctypes.")) or event == "open":
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(die)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
