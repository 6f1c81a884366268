"""The cache of unpacked shards: one copy for all processes, bounded, in a directory that can be written or is named."""

from __future__ import annotations

import gzip
import os
import pwd
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_atomic import ended, in_child

import neurofmx_wds.storage.cache as cache_module
from neurofmx_wds import WebDatasetLoader, create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.errors import OutputError, ShardError
from neurofmx_wds.storage.cache import ShardCache, default_cache_dir


def packed_shard(path: Path, seed: int = 0, size: int = 100_000) -> tuple[Path, bytes]:
    data = np.random.default_rng(seed).integers(0, 4, size, np.uint8).tobytes()
    path.write_bytes(gzip.compress(data))
    return path, data


def test_a_shard_is_unpacked_once_among_many_processes(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz", size=3_000_000)
    log = tmp_path / "log"
    real = cache_module.ShardCache._write

    def unpack() -> None:
        def logged(*args: Any) -> None:
            with open(log, "a") as stream:
                stream.write("x")
            real(*args)

        cache_module.ShardCache._write = logged  # type: ignore[method-assign]
        with ShardCache(tmp_path / "cache").open(path, len(data)) as stream:
            assert stream.read() == data

    assert [ended(child) for child in [in_child(unpack) for _ in range(6)]] == [0] * 6
    assert log.read_text() == "x"
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_the_least_recently_used_copy_leaves(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", max_bytes=250_000)
    shards = [packed_shard(tmp_path / f"{i}.tar.gz", i) for i in range(4)]
    random.Random(0).shuffle(shards)
    for i in (0, 1, 0, 2):
        with cache.open(shards[i][0]) as stream:
            assert stream.read() == shards[i][1]
        time.sleep(0.01)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 250_000
    kept = {path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert kept == {shards[0][1], shards[2][1]}


def test_a_shard_larger_than_the_cache_is_kept_while_it_is_used(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")
    cache = ShardCache(tmp_path / "cache", max_bytes=10)
    with cache.open(path, len(data)) as stream:
        other, more = packed_shard(tmp_path / "b.tar.gz", 1)
        cache.open(other, len(more)).close()
        assert stream.read() == data  # though its name is gone
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_a_shard_that_nobody_knows_the_size_of_must_fit(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")
    with pytest.raises(ShardError, match=r"a\.tar\.gz: unpacks to more than 10 bytes.*increase cache_size"):
        ShardCache(tmp_path / "cache", max_bytes=10).open(path)
    with ShardCache(tmp_path / "cache", max_bytes=len(data)).open(path) as stream:
        assert stream.read() == data


def test_a_changed_shard_is_unpacked_again(tmp_path: Path) -> None:
    path, _ = packed_shard(tmp_path / "a.tar.gz", 0)
    cache = ShardCache(tmp_path / "cache")
    cache.open(path).close()
    os.utime(path, (1, 1))
    path, data = packed_shard(path, 1)
    with cache.open(path) as stream:
        assert stream.read() == data


def test_a_damaged_copy_is_made_again(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")
    cache = ShardCache(tmp_path / "cache")
    cache.open(path, len(data)).close()
    (copy,) = (tmp_path / "cache").glob("*.tar")
    copy.write_bytes(b"cut")
    with cache.open(path, len(data)) as stream:
        assert stream.read() == data


@pytest.mark.parametrize("expected", [99_999, 100_001, 0])
def test_a_shard_of_another_size_than_its_index_says(tmp_path: Path, expected: int) -> None:
    path, _ = packed_shard(tmp_path / "a.tar.gz")
    with pytest.raises(ShardError, match=f"{expected}") as caught:
        ShardCache(tmp_path / "cache").open(path, expected)
    assert caught.value.file == str(path) and caught.value.remedy
    assert not list((tmp_path / "cache").glob("*.tar")) and not list((tmp_path / "cache").glob(".*"))


def test_a_bomb_fills_no_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(ShardError, match="more than"):
        ShardCache(tmp_path / "cache", max_bytes=1 << 20).open(path)
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_a_killed_unpacking_leaves_no_lasting_rubbish(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")

    def die() -> None:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        ShardCache(tmp_path / "cache").open(path, len(data))

    assert ended(in_child(die)) == -signal.SIGKILL
    (part,) = (tmp_path / "cache").glob(".*.part")
    with ShardCache(tmp_path / "cache").open(path, len(data)) as stream:
        assert stream.read() == data
    assert part.exists()  # might be another process's
    os.utime(part, (1, 1))
    other, more = packed_shard(tmp_path / "b.tar.gz", 1)
    ShardCache(tmp_path / "cache").open(other, len(more)).close()
    assert not part.exists()


def test_a_full_disk_is_not_the_shards_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cache: .*No space.*cache_dir=.*NEUROFMX_CACHE"):
        ShardCache(tmp_path / "cache").open(path, len(data))
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_unpacking_does_not_need_isal(tmp_path: Path) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "from pathlib import Path\nfrom neurofmx_wds.storage.cache import ShardCache\n"
        f"with ShardCache({str(tmp_path / 'cache')!r}).open(Path({str(path)!r})) as stream:\n"
        "    sys.stdout.buffer.write(stream.read())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout == data


HOME_CASES = [  # variables, where the cache is
    ({"NEUROFMX_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
    ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/neurofmx_wds"),
    ({"HOME": "/c"}, "/c/.cache/neurofmx_wds"),
    ({"NEUROFMX_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/neurofmx_wds"),
    ({"XDG_CACHE_HOME": "b", "HOME": "/c"}, "/c/.cache/neurofmx_wds"),
    ({"XDG_CACHE_HOME": "/b"}, "/b/neurofmx_wds"),
    ({}, None),
    ({"XDG_CACHE_HOME": "b"}, None),
]


@pytest.mark.parametrize(("variables", "place"), HOME_CASES, ids=range(len(HOME_CASES)))
def test_a_user_without_a_home_needs_a_cache_for_compressed_shards_only(
    variables: dict[str, str], place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    for name in ("NEUROFMX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for compression in ("none", "gz"):
        create_shards_from_arrays(tmp_path / compression, {"x": np.arange(5)}, compression=compression)
    assert [int(sample["x"]) for sample in WebDatasetLoader(tmp_path / "none", shuffle=False)] == list(range(5))
    if place is not None:
        assert default_cache_dir() == ShardCache().directory == Path(place)
        return
    with pytest.raises(OutputError, match=r"no home directory.*cache_dir=.*NEUROFMX_CACHE"):
        list(WebDatasetLoader(tmp_path / "gz"))
    given = WebDatasetLoader(tmp_path / "gz", shuffle=False, cache_dir=tmp_path / "cache")
    assert [int(sample["x"]) for sample in given] == list(range(5))


@pytest.mark.parametrize("deny", ["no directory", "not writable"])
def test_a_cache_that_cannot_be_written_is_named(deny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shards_from_arrays(tmp_path / "gz", {"x": np.arange(5)}, compression="gz")
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "cache" if deny == "no directory" else tmp_path / "cache"
    if deny == "not writable":  # root may write everywhere

        def denied(self: Path, **_: Any) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "mkdir", denied)
    monkeypatch.setenv("NEUROFMX_CACHE", str(cache))
    for num_workers in (0, 1):
        with pytest.raises(OutputError, match=r"cache: .*cannot be written.*cache_dir=.*NEUROFMX_CACHE"):
            list(create_webdataset_dataloader(tmp_path / "gz", num_workers=num_workers))


def test_a_relative_cache_stays_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = packed_shard(tmp_path / "a.tar.gz")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = ShardCache("cache")
    monkeypatch.chdir(tmp_path / "elsewhere")
    cache.open(path, len(data)).close()
    assert len(os.listdir(tmp_path / "cache")) == 1 and not os.listdir(tmp_path / "elsewhere")
