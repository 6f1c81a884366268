"""Bytes out of open shards: rows and checksums are those of slices, however rows lie and whoever reads meanwhile."""

from __future__ import annotations

import io
import tempfile
import threading
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from loading import flip

from neurofmx_wds.errors import ShardError
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading import copying
from neurofmx_wds.loading.memory import Rows
from neurofmx_wds.loading.readers import ShardReader

TARS = [np.random.default_rng(seed).bytes(40_000) for seed in range(2)]


@st.composite
def places(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """Which tar each row comes from, where it starts, the rows' size, and that of the header before each."""
    n, size, header = draw(st.integers(1, 5)), draw(st.integers(1, 7000)), draw(st.integers(0, 200))
    if draw(st.booleans()):  # neighbours, perhaps overlapping
        step = draw(st.integers(1, 7000))
        starts = [min(header + draw(st.integers(0, 500)) + k * step, 40_000 - size) for k in range(n)]
    else:
        starts = draw(st.lists(st.integers(header, 40_000 - size), min_size=n, max_size=n))
    which = [draw(st.integers(0, 1))] * n if draw(st.booleans()) else [draw(st.integers(0, 1)) for _ in range(n)]
    return which, starts, size, header


@given(where=places(), large=st.booleans(), others=st.booleans())
def test_rows_and_checksums_are_those_of_slices(where: Any, large: bool, others: bool) -> None:
    which, starts, size, n = where
    expected = [TARS[tar][start : start + size] for tar, start in zip(which, starts, strict=True)]
    sums = [zlib.crc32(TARS[tar][start - n : start + size]) for tar, start in zip(which, starts, strict=True)]
    done = threading.Event()
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stack.callback(done.set)
        if others:
            threading.Thread(target=done.wait, daemon=True).start()
        if large:
            patch.setattr(copying, "LET_OTHERS_RUN", 1)
        files = []
        for i, data in enumerate(TARS):
            (Path(directory) / f"{i}").write_bytes(data)
            files.append(stack.enter_context(io.FileIO(f"{directory}/{i}")))
        for access, sources in ((copying.MAPPED, [*map(memoryview, TARS)]), (copying.PREAD, files)):
            for summed in (False, True):
                rows = Rows(memoryview(bytearray(size * len(starts))), len(starts))
                from_each = [sources[tar] for tar in which]
                if summed:
                    assert access.copy_and_sum(from_each, starts, rows, n) == sums
                else:
                    access.copy(from_each, starts, rows)
                assert bytes(rows.whole) == b"".join(expected)


@pytest.mark.parametrize("start", [0, 5, 11, 12, 40])
def test_a_file_that_ends_too_early_is_named(tmp_path: Path, start: int) -> None:
    (tmp_path / "a").write_bytes(bytes(12))
    with io.FileIO(tmp_path / "a") as file:
        rows = Rows(memoryview(bytearray(8)))
        if start + 8 <= 12:
            copying.copy_pread([file], [start], rows)
            return
        for copy in (copying.copy_pread, lambda *args: copying.copy_pread_and_sum(*args, 0)):
            with pytest.raises(ShardError, match="cut while it was read") as caught:
                copy([file], [start], rows)
            assert caught.value.file == str(tmp_path / "a")


def npy(array: np.ndarray, pad: int, behind: bytes = b"") -> bytes:
    """An array as other versions of numpy would write it: with a longer header, or with bytes that follow."""
    stream = io.BytesIO()
    np.save(stream, array)
    header, data = stream.getvalue()[:128], stream.getvalue()[128:]
    size = (118 + pad).to_bytes(2, "little")
    return header[:8] + size + header[10:-1] + b" " * pad + b"\n" + data + behind


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize(
    "odd", ["no", "headers of a shard differ", "headers of shards differ", "more follows", "empty"]
)
def test_arrays_of_other_writers(tmp_path: Path, io: Any, odd: str) -> None:
    """Their values come, and no byte of them can change unseen."""
    shape = (0, 3) if odd == "empty" else (2, 3)
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"shard_{shard}.tar")) as tar:
            for i in range(3):
                pad = {"headers of a shard differ": 64 * i, "headers of shards differ": 64 * shard}.get(odd, 0)
                behind = b"more" * i if odd == "more follows" else b""
                tar.write({"__key__": f"{shard}{i}", "x.npy": npy(np.full(shape, 3.0 * shard + i), pad, behind)})
    write_indexes(tmp_path)
    ids = np.array([5, 0, 3, 1])
    for _ in range(2):
        batch = ShardReader(open_shards(tmp_path), io=io).read_batch(ids)
        assert batch["x"].shape == (4, *shape) and batch["x"][:, :1, 0].tolist() == [
            [i] * min(1, shape[0]) for i in ids
        ]
    column = open_shards(tmp_path).index(1).columns["x"]
    for place in range(int(column.size[2])):
        if place % 7 and place < 128:
            continue
        flip(tmp_path / "shard_1.tar", int(column.offset[2]) + place)
        with pytest.raises(ShardError, match="checksum differs") as caught:
            ShardReader(open_shards(tmp_path), io=io).read_batch(ids)
        assert (caught.value.sample, caught.value.member) == ("12", "x.npy")
        flip(tmp_path / "shard_1.tar", int(column.offset[2]) + place)
