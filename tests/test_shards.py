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
import webdataset as wds
from counting import lines_run
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


# --- finding shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_manifest", [True, False])
def test_every_way_to_name_a_dataset(tmp_path: Path, with_manifest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    d = make(tmp_path / "d")
    if not with_manifest:
        (d / MANIFEST_NAME).unlink()
    names = [str(path) for path in sorted(d.glob("*.tar"))]
    assert values(d) == values(str(d)) == list(range(7))
    assert values(f"{d}/shard_{{000000..000002}}.tar") == list(range(7))
    assert values(f"{d}/shard_*.tar") == list(range(7))
    assert values(names) == values([Path(name) for name in names]) == list(range(7))
    assert values(names[::-1]) == [6, 3, 4, 5, 0, 1, 2]
    assert values(f"file:{names[1]}") == [3, 4, 5] == values(names[1])
    assert values(d, shard_pattern="*_00000[12].tar") == [3, 4, 5, 6]
    monkeypatch.chdir(d)
    assert values(".") == list(range(7))


@pytest.mark.parametrize(
    "url", ["http://host/a.tar", "s3://b/a.tar", "pipe:touch canary", "gs://b/{0..3}.tar", "pipe: touch canary"]
)
def test_nothing_remote_is_opened_and_no_pipe_runs(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError) as caught:
        open_shards(url)
    assert caught.value.remedy
    assert os.listdir(tmp_path) == []


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_shards(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"b\.tar"):
        open_shards([tmp_path / "b.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="no shards") as caught:
        open_shards(tmp_path / "empty")
    assert caught.value.file == str(tmp_path / "empty") and caught.value.remedy
    d = make(tmp_path / "d")
    with pytest.raises(ShardError, match="no shards match"):
        open_shards(d, shard_pattern="x*.tar")


def test_what_was_perhaps_meant_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [make(tmp_path / "sets" / name) for name in ("train", "val")]
    for spec in (sets, [str(sets[0])], str(tmp_path / "sets" / "{train,val}"), str(tmp_path / "sets" / "*")):
        with pytest.raises(ShardError, match="give the directory alone.*merge") as caught:
            open_shards(spec)
        assert caught.value.file == str(sets[0])
    with pytest.raises(ShardError, match="give one of train, val"):
        open_shards(tmp_path / "sets")
    (tmp_path / "raw").mkdir()
    for name in ("a.npy", "b.nwb", "c.npz"):
        (tmp_path / "raw" / name).write_bytes(b"\x89HDF\r\n\x1a\n" * 300)
        with pytest.raises(ShardError, match=rf"{name}: not a readable tar.*convert it first"):
            open_shards(tmp_path / "raw" / name)
    with pytest.raises(ShardError, match=r"a\.npy is no shard: convert it first"):
        open_shards(tmp_path / "raw")
    monkeypatch.chdir(tmp_path / "sets")
    with pytest.raises(ShardError, match="give one of train, val"):
        open_shards(".")


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_tars_of_other_names_are_named_with_the_patterns_for_them(tmp_path: Path, ending: str) -> None:
    compression: Any = "none" if ending == "tar" else "gz"
    made = make(tmp_path / "d", compression=compression)
    for i, path in enumerate(sorted(made.glob("*.tar*"))):
        path.rename(made / f"foreign-{i}.{ending}")
        index_path(path).unlink()
    (made / MANIFEST_NAME).unlink()
    with pytest.raises(
        ShardError, match=rf"no shards match 'shard_\*\.tar\*' \(foreign-0\.{ending} is there"
    ) as caught:
        open_shards(made)
    assert f"shard_pattern='*.{ending}'" in str(caught.value) and f"'{made}/*.{ending}'" in str(caught.value)
    assert values(made, shard_pattern=f"*.{ending}") == values(f"{made}/*.{ending}") == list(range(7))


def test_an_unfinished_dataset_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    writer = WebDatasetWriter(tmp_path / "d", shard_size=1)
    writer.write_sample({"x": np.zeros(1)})
    with pytest.raises(ShardError, match="not finished"):
        open_shards(tmp_path / "d")
    writer.abort()


def test_opening_with_a_manifest_reads_no_shard_and_no_index(tmp_path: Path) -> None:
    d = make(tmp_path / "d")
    for path in d.iterdir():
        if path.name != MANIFEST_NAME:
            path.write_bytes(b"rubbish")
    assert open_shards(d).counts.tolist() == [3, 3, 1]


def test_ten_thousand_shards_open_with_little_work_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = make(tmp_path / "d", 1)
    manifest = json.loads((d / MANIFEST_NAME).read_text())
    (record,) = manifest["shards"]
    manifest["shards"] = [{**record, "shard_name": f"shard_{i:06d}.tar"} for i in range(10_000)]
    manifest |= {"total_samples": 10_000, "total_shards": 10_000}
    (d / MANIFEST_NAME).write_text(json.dumps(manifest))
    for i in range(1, 10_000):
        (d / f"shard_{i:06d}.tar").touch()
    opened = []
    monkeypatch.setattr("builtins.open", lambda *given, open=open, **more: opened.append(given) or open(*given, **more))
    counts: list[int] = []
    assert lines_run(lambda: counts.append(open_shards(d).n_samples)) < 100 * 10_000
    assert counts == [10_000] and len(opened) <= 2


def test_own_shard_names(tmp_path: Path) -> None:
    d = make(tmp_path / "d", shard_name_pattern="part-{shard_idx}.tar")
    assert values(d) == list(range(7))


def test_plain_shards_of_webdataset_get_an_index_where_it_may_be_written(tmp_path: Path) -> None:
    with wds.ShardWriter(str(tmp_path / "shard_%06d.tar"), maxcount=2, verbose=0) as writer:
        for i in range(5):
            writer.write({"__key__": f"k{i}", "x.npy": np.full(3, i)})
    assert values(tmp_path) == list(range(5))
    assert len(list(tmp_path.glob("*.index"))) == 3
    before = open_shards(tmp_path).fingerprint()
    for path in tmp_path.glob("*.index"):
        path.unlink()
    assert open_shards(tmp_path).fingerprint() == before


def test_fingerprints_tell_datasets_apart(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a"), make(tmp_path / "b", 6)
    assert open_shards(a).fingerprint() == open_shards(shutil.copytree(a, tmp_path / "c")).fingerprint()
    assert open_shards(a).fingerprint() != open_shards(b).fingerprint()
    assert open_shards(a, shard_pattern="*0.tar").fingerprint() != open_shards(a).fingerprint()


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
