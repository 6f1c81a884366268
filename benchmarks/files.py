"""Speed of packing a directory of paired files into shards, against a plain script with webdataset's writer.

Knows the ways of packing; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset as wds

from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

from .datasets import made
from .harness import Case, Group, Setting, Target
from .writing import raw_write

_IMAGE_BYTES, _TEXT_BYTES = 30_000, 200
_FOLDER, _SHARD_SIZE = 500, 500  # files in a folder, samples in a shard


def pairs(root: Path, n: int) -> Path:
    """Make a directory of `n` pairs of an image (30 kB of random bytes, never decoded) and a text, in folders."""

    def make(path: Path) -> None:
        rng = np.random.default_rng(0)
        for i in range(n):
            stem = path / f"folder-{i // _FOLDER:03d}" / f"sample-{i:06d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            stem.with_suffix(".jpg").write_bytes(rng.bytes(_IMAGE_BYTES))
            stem.with_suffix(".txt").write_text("x" * _TEXT_BYTES)

    return made(root / f"pairs-{n}", make)


def pack_with_webdataset(directory: Path, out: Path) -> None:
    """Pack files as a user's script does: sort the names, read each file, pass it to ``ShardWriter``."""
    out.mkdir()
    with wds.ShardWriter(f"{out}/shard-%06d.tar", maxcount=_SHARD_SIZE, verbose=0) as sink:
        for image in sorted(directory.rglob("*.jpg")):
            key = os.fspath(image.relative_to(directory).with_suffix(""))
            sink.write({"__key__": key, "jpg": image.read_bytes(), "txt": image.with_suffix(".txt").read_bytes()})


def read_and_write(directory: Path, out: Path) -> None:
    """Read all files, and write the same bytes with as many calls as there are shards."""
    images = sorted(directory.rglob("*.jpg"))
    out.mkdir()
    for first in range(0, len(images), _SHARD_SIZE):
        paths = [path for image in images[first : first + _SHARD_SIZE] for path in (image, image.with_suffix(".txt"))]
        raw_write(out / str(first), [b"".join(path.read_bytes() for path in paths)], sync=True)


def files(setting: Setting) -> Group:
    """Pack pairs of a small image and a text, from the page cache."""
    n = setting.n_samples
    out = setting.root / "packed"
    one, two = "neurofmx_wds, 1 worker", "neurofmx_wds, 2 workers"
    theirs, raw = "webdataset.ShardWriter in a script", "reading, and raw write and fsync"

    def case(name: str, pack: Callable[[Path], object]) -> Case:
        def make() -> Callable[[], float]:
            directory = pairs(setting.root, n)

            def work() -> float:
                pack(directory)
                return n

            return work

        return Case(name, make, before=lambda: shutil.rmtree(out, ignore_errors=True), ours=name in (one, two))

    def ours(workers: int, directory: Path) -> None:
        convert([directory], Output(out, shard_size=_SHARD_SIZE), SourceConfig.of(format="files"), Workers(workers))

    return Group(
        f"packing {n:,} pairs of files: {_IMAGE_BYTES // 1000} kB and {_TEXT_BYTES} B",
        [
            case(one, functools.partial(ours, 1)),
            case(two, functools.partial(ours, 2)),
            case(theirs, lambda directory: pack_with_webdataset(directory, out)),
            case(raw, lambda directory: read_and_write(directory, out)),
        ],
        [Target(one, theirs, at_least=1), Target(two, one), Target(one, raw)],
    )


GROUPS = {"files": files}
