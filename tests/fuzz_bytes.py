"""A fuzzer's targets: ``python tests/fuzz_bytes.py TARGET [libFuzzer's options] [CORPUS…]``; test_fuzz.py runs it.

Each reads bytes that may be anything and must end with a value or a named error: whatever else is raised, a crash, more
memory than allowed (``-malloc_limit_mb``) and a hang (``-timeout``) are findings.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["neurofmx_wds", "tarfile", "webdataset"]):
    from neurofmx_wds.errors import NeurofmxError
    from neurofmx_wds.format.decoding import _DECODERS, decode
    from neurofmx_wds.format.export import export
    from neurofmx_wds.format.manifest import MANIFEST_NAME, Manifest
    from neurofmx_wds.format.shards import open_shards
    from neurofmx_wds.format.verify import verify
    from neurofmx_wds.loading.readers import ShardReader
    from neurofmx_wds.order.cursor import from_state
    from neurofmx_wds.order.epoch import EpochOrder
    from neurofmx_wds.storage.cache import ShardCache

import numpy as np
import torch
from webdataset import autodecode

# without parsers of others, in C
SUFFIXES = [*sorted({*_DECODERS, *autodecode.decoders} - {"mp", "msg", "cbor"}), "npy.gz", "pyd.gz", "jpg"]
PLACE = Path(tempfile.mkdtemp(prefix="neurofmx-fuzz-"))
os.environ["NEUROFMX_CACHE"] = str(PLACE / "cache")


def use(value: Any, depth: int = 0) -> None:
    """Touch every byte: a forged array or tensor would crash here."""
    if isinstance(value, (np.ndarray, np.generic)):
        value.copy()
    elif isinstance(value, torch.Tensor):
        value.clone()
    elif isinstance(value, (dict, list, tuple)) and depth < 10:  # a list may be in itself
        for item in [*(value.values() if isinstance(value, dict) else value)][:100]:
            use(item, depth + 1)


def member(data: bytes) -> None:
    """The first byte chooses the kind, the rest is a payload."""
    use(decode(f"x.{SUFFIXES[data[0] % len(SUFFIXES)]}" if data else "x.npy", data[1:]))


def pickled(data: bytes) -> None:
    """A pickle."""
    use(decode("x.pyd", data))


def torch_file(data: bytes) -> None:
    """A file that torch.save wrote."""
    use(decode("x.pth", data))


def tar(data: bytes) -> None:
    """A shard without an index."""
    path = PLACE / "t" / "shard_0.tar"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.with_suffix(".index").unlink(missing_ok=True)
    for problem in verify(path.parent, deep=True).problems:
        assert problem.remedy
    try:
        reader = ShardReader(open_shards(path.parent), io="pread")
        for i in range(int(reader.counts.sum())):
            use(reader.read_samples(np.array([i])))
    finally:
        path.with_suffix(".index").unlink(missing_ok=True)
        export(path.parent, output_dir=PLACE / "exported")


def index(data: bytes) -> None:
    """An index, sealed with the checksum that fits, beside a good shard."""
    path = PLACE / "i" / "shard_0.tar"
    if not path.exists():
        path.parent.mkdir()
        path.write_bytes(Path(os.environ["NEUROFMX_FUZZ_SHARD"]).read_bytes())
    path.with_suffix(".index").write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    reader = ShardReader(open_shards(path.parent), io="pread")
    use(reader.read_samples(np.arange(min(50, int(reader.counts.sum())))))


def manifest(data: bytes) -> None:
    """A manifest without its shards, and what `verify` says of it."""
    (PLACE / "m").mkdir(exist_ok=True)
    (PLACE / "m" / MANIFEST_NAME).write_bytes(data)
    verify(PLACE / "m")
    open_shards(PLACE / "m", cache_dir=PLACE / "cache")
    Manifest.load(PLACE / "m")


def state(data: bytes) -> None:
    """A loader's state."""
    order = EpochOrder(shard_counts=np.array([3, 4]), seed=1, epoch=0, shuffle=True, buffer_size=4, block_size=2)
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        return
    from_state(given, lambda epoch: order.of_epoch(epoch), "f" * 32)


def compressed(data: bytes) -> None:
    """A compressed shard."""
    path = PLACE / "c" / f"shard_0.tar.{('gz', 'bz2', 'xz')[data[0] % 3] if data else 'gz'}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data[1:])
    try:
        ShardCache(PLACE / "cache", max_bytes=16 << 20).open(path).close()
    finally:
        path.unlink()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (member, pickled, torch_file, tar, index, manifest, state, compressed)
}


def main() -> None:
    """Fuzz the target that is named first."""
    target = TARGETS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            target(data)
        except NeurofmxError as error:
            assert str(error)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
