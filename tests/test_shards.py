"""Which shards make a dataset; the manifest, believed only where it fits; the cache of unpacked shards."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from values import same

from neurofmx_wds import WebDatasetWriter
from neurofmx_wds.errors import ManifestError, NeurofmxError, ShardError, ShardIndexError
from neurofmx_wds.format.index import index_path
from neurofmx_wds.format.manifest import MANIFEST_NAME, Manifest, config_hash
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading.readers import ShardReader


def make(directory: Path, n: int = 7, **options: Any) -> Path:
    with WebDatasetWriter(directory, shard_size=3, **options) as writer:
        for i in range(n):
            writer.write_sample({"x": np.full(4, i)}, metadata={"i": i})
    return directory


def values(source: Any, **options: Any) -> list[int]:
    """The first number of every sample, in order."""
    shards = open_shards(source, **options)
    return [int(sample["x"][0]) for sample in ShardReader(shards).read_samples(np.arange(shards.n_samples))]


# --- shards, indexes and the manifest must fit -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shard_000001.tar", "shard_000002.tar"])
def test_a_missing_shard_is_named(tmp_path: Path, name: str) -> None:
    d = make(tmp_path / "d")
    (d / name).unlink()
    with pytest.raises(ManifestError, match=name) as caught:
        open_shards(d)
    assert caught.value.remedy


@pytest.mark.parametrize("with_manifest", [True, False])
def test_shards_and_indexes_that_were_swapped(tmp_path: Path, with_manifest: bool) -> None:
    d = make(tmp_path / "d")
    if not with_manifest:
        (d / MANIFEST_NAME).unlink()
    first, last = d / "shard_000000", d / "shard_000002"
    shutil.copy(first.with_suffix(".tar"), last.with_suffix(".tar"))
    with pytest.raises(ShardError):
        values(d)
    shutil.copy(first.with_suffix(".index"), last.with_suffix(".index"))
    with pytest.raises(ShardIndexError):
        values(d)


def test_a_missing_index_is_made_again(tmp_path: Path) -> None:
    d = make(tmp_path / "d")
    before = {path.name: path.read_bytes() for path in d.glob("*.index")}
    for path in d.glob("*.index"):
        path.unlink()
    assert values(d) == list(range(7))
    assert before.keys() == {path.name for path in d.glob("*.index")}


MANIFEST_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "outside": lambda m: m["shards"][0].update(shard_name="../x.tar"),
    "absolute": lambda m: m["shards"][0].update(shard_name="/etc/passwd"),
    "hidden": lambda m: m["shards"][0].update(shard_name=".."),
    "nul": lambda m: m["shards"][0].update(shard_name="a\0.tar"),
    "no name": lambda m: m["shards"][0].update(shard_name=""),
    "name is a list": lambda m: m["shards"][0].update(shard_name=["a"]),
    "twice": lambda m: m["shards"].append(m["shards"][0]),
    "negative": lambda m: m["shards"][0].update(n_samples=-1),
    "huge": lambda m: m["shards"][0].update(n_samples=10**30) or m.update(total_samples=10**30 + 4),
    "huge for int64": lambda m: m["shards"][0].update(n_samples=2**62) or m.update(total_samples=2**62 + 4),
    "fraction": lambda m: m["shards"][0].update(n_samples=3.0),
    "boolean": lambda m: m["shards"][0].update(n_bytes=True),
    "checksum": lambda m: m["shards"][0].update(sha256=7),
    "total": lambda m: m.update(total_samples=8),
    "total shards": lambda m: m.update(total_shards=4),
    "no shards": lambda m: m.pop("shards"),
    "shards is a string": lambda m: m.update(shards="abc"),
    "shards is a number": lambda m: m.update(shards=7),
    "modalities is a list": lambda m: m.update(modalities=[1, 2]),
    "modality is a number": lambda m: m.update(modalities={"x": 7}),
    "config is a list": lambda m: m.update(config=[7]),
    "fewer": lambda m: m["shards"].pop() and m.update(total_shards=2),
}


@pytest.mark.parametrize("kind", MANIFEST_DAMAGE)
def test_a_forged_manifest_is_refused(tmp_path: Path, kind: str) -> None:
    d = make(tmp_path / "d")
    path = d / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    MANIFEST_DAMAGE[kind](manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestError) as caught:
        open_shards(d)
    assert caught.value.file == str(path) and caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"shards": []}'])
def test_a_manifest_that_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(ManifestError) as caught:
        open_shards(tmp_path)
    assert caught.value.file == str(tmp_path / MANIFEST_NAME)


@given(data=st.data())
@settings(max_examples=150)
def test_damage_to_a_manifest_gives_the_right_data_or_a_named_error(data: st.DataObject) -> None:
    """A flipped digit of what only describes (a dtype, a unit) is found by `verify`; no data comes out wrong."""
    with tempfile.TemporaryDirectory() as directory:
        d = make(Path(directory) / "d")
        path = d / MANIFEST_NAME
        text = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del text[data.draw(st.integers(0, len(text) - 1)) :]
        path.write_bytes(text)
        try:
            found = values(d)
        except NeurofmxError as error:
            assert error.file and error.remedy
        else:
            assert found == list(range(7))


def test_the_manifest_round_trips(tmp_path: Path) -> None:
    d = make(tmp_path / "d")
    before = (d / MANIFEST_NAME).read_bytes()
    Manifest.load(d).save(d)
    assert (d / MANIFEST_NAME).read_bytes() == before
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_shards_read_as_others_do(tmp_path: Path, own_cache: Path, compression: Any) -> None:
    plain, packed = make(tmp_path / "a"), make(tmp_path / "b", compression=compression)
    first, second = ShardReader(open_shards(plain)), ShardReader(open_shards(packed))
    ids = np.array([6, 0, 3, 3])
    assert all(same(a, b) for a, b in zip(first.read_samples(ids), second.read_samples(ids), strict=True))
    copies = sorted(path.read_bytes() for path in own_cache.glob("*.tar"))
    assert copies == sorted(path.read_bytes() for path in plain.glob("*.tar"))
    assert {path.suffix for path in own_cache.iterdir()} == {".tar"}


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_damage_to_a_compressed_shard_is_named(tmp_path: Path, compression: Any, own_cache: Path) -> None:
    """Their checksums find every flipped bit of the packed data, and every cut."""
    d = make(tmp_path / "d", 3, compression=compression)
    path = d / f"shard_000000.tar.{compression}"
    whole = path.read_bytes()
    chance = random.Random(0)
    for i in range(60):
        data = bytearray(whole)
        if i % 3:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        else:
            data = data[: chance.randrange(len(data))] + bytes(chance.choice([0, len(data)]))
        path.write_bytes(data)
        os.utime(path, ns=(i, i))
        try:
            found = values(d)
        except NeurofmxError as error:
            assert error.file in (str(path), str(index_path(path))) and error.remedy
        else:
            assert found == [0, 1, 2]
        assert not list(own_cache.glob(".*"))
