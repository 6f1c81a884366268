"""Pipes, devices and endless files in a dataset's directory are named errors: nothing waits, nothing grows."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neurofmx_wds import WebDatasetLoader, create_shards_from_arrays
from neurofmx_wds.errors import NeurofmxError, ShardError
from neurofmx_wds.format.manifest import MANIFEST_NAME
from neurofmx_wds.format.verify import verify
from neurofmx_wds.storage.atomic import write_atomic
from neurofmx_wds.storage.regular import open_regular, read_regular


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def make_endless(path: Path) -> None:
    with open(path, "wb") as stream:
        stream.truncate(1 << 42)


ODD: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
    "endless": make_endless,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["shard_000000.tar", "shard_000000.index", MANIFEST_NAME])
def test_what_is_no_ordinary_file_is_named(tmp_path: Path, odd: str, name: str) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(8)}, shard_size=4)
    (tmp_path / "d" / name).unlink()
    ODD[odd](tmp_path / "d" / name)
    with pytest.raises(NeurofmxError, match=name):
        list(WebDatasetLoader(tmp_path / "d"))
    assert name in str(verify(tmp_path / "d").problems[0])


@pytest.mark.parametrize("odd", ["pipe", "device", "socket"])
def test_only_regular_files_are_opened(tmp_path: Path, odd: str) -> None:
    ODD[odd](tmp_path / "a")
    with pytest.raises(ShardError, match=r"a: is a .*, not a regular file"):
        open_regular(tmp_path / "a")


def test_a_larger_file_than_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ShardError, match="has 5 bytes, more than the 4"):
        read_regular(tmp_path / "a", 4)


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_what_stands_where_a_file_is_written_aside_is_not_followed(tmp_path: Path, kind: str) -> None:
    other, aside = tmp_path / "other", tmp_path / ".a.part"
    other.write_bytes(b"mine")
    if kind == "pipe":
        os.mkfifo(aside)
    else:
        (aside.symlink_to if kind == "link" else aside.hardlink_to)(other)
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and not (tmp_path / "a").is_symlink()
    assert other.read_bytes() == b"mine" and sorted(os.listdir(tmp_path)) == ["a", "other"]
