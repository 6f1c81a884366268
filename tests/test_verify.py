"""Verification: a good dataset has no problem, and no damage escapes it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import flip
from test_index import in_version

from neurofmx_wds import WebDatasetWriter, create_shards_from_arrays
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.verify import verify


def make(directory: Path, compression: str = "none") -> Path:
    rng = np.random.default_rng(0)
    with WebDatasetWriter(directory, shard_size=4, compression=compression) as writer:  # type: ignore[arg-type]
        for i in range(10):
            sample = {"spikes": rng.poisson(1.0, (6, 3)).astype("float32"), "label": i, "note": "ä", "trial": {"n": i}}
            writer.write_sample(sample, metadata={"window": i})
    return directory


def plain(directory: Path, keys: list[str], name: str = "train-0.tar") -> Path:
    """A shard as plain webdataset writes it."""
    directory.mkdir(exist_ok=True)
    with wds.TarWriter(str(directory / name)) as tar:
        for i, key in enumerate(keys):
            tar.write({"__key__": key, "x.npy": np.full(3, i), "y.cls": i})
    return directory


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("verify") / "good")


@pytest.fixture
def copied(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "shards"))


@pytest.mark.parametrize("compression", ["none", "gz", "bz2", "xz"])
def test_a_good_dataset_has_no_problem(compression: str, tmp_path: Path) -> None:
    make(tmp_path / "shards", compression)
    for deep in (False, True):
        report = verify(tmp_path / "shards", deep=deep)
        assert report.ok, report.problems
        assert (report.shards, report.samples, report.members) == (3, 10, 50 if deep else 0)
        assert report.n_bytes == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar*"))


def rewrite(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


DAMAGE: list[tuple[str, bool, Callable[[Path], object], str]] = [
    (
        "no shard",
        False,
        lambda d: (d / "shard_000001.tar").unlink(),
        r"shard_000001\.tar: the shard is missing.*repair the dataset",
    ),
    (
        "no index",
        False,
        lambda d: (d / "shard_000001.index").unlink(),
        r"shard_000001\.index: .*missing.*rebuild the index",
    ),
    ("no shards", False, lambda d: shutil.rmtree(d) or d.mkdir(), "there are no shards"),
    ("empty shard", False, lambda d: (d / "shard_000001.tar").write_bytes(b""), "has 0 bytes, the manifest says"),
    ("empty index", False, lambda d: (d / "shard_000001.index").write_bytes(b""), r"000001\.index: not a shard index"),
    (
        "another shard's index",
        False,
        lambda d: shutil.copy(d / "shard_000000.index", d / "shard_000001.index"),
        r"000001\.index: .*'shard_000000.tar' of the shard's file name.*rebuild the index",
    ),
    ("no manifest text", False, lambda d: (d / "dataset_metadata.json").write_text("{"), "manifest is damaged"),
    ("extra shard", False, lambda d: shutil.copy(d / "shard_000000.tar", d / "shard_9.tar"), "does not list it"),
    ("leftover", False, lambda d: (d / ".shard_000007.tar.part").write_bytes(b"x"), "left over"),
    (
        "another dtype",
        True,
        lambda d: rewrite(d / "dataset_metadata.json", lambda m: m["modalities"]["spikes"].update(dtype="int8")),
        "sample_000000000.*spikes.npy.*holds float32, the manifest says int8",
    ),
    (
        "another shape",
        True,
        lambda d: rewrite(d / "dataset_metadata.json", lambda m: m["modalities"]["spikes"].update(shape=[6, 4])),
        r"has the shape \[6, 3\], the manifest says \[6, 4\]",
    ),
    (
        "unknown field",
        True,
        lambda d: rewrite(d / "dataset_metadata.json", lambda m: m["modalities"].pop("note")),
        "does not list this field",
    ),
]


@pytest.mark.parametrize(("deep", "damage", "told"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_each_kind_of_damage_is_told_with_what_to_do(
    deep: bool, damage: Callable[[Path], object], told: str, copied: Path
) -> None:
    damage(copied)
    for way in {deep, True}:
        problems = [str(problem) for problem in verify(copied, deep=way).problems]
        assert any(re.search(told, problem) for problem in problems), problems
        assert all(problem.remedy for problem in verify(copied, deep=way).problems)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_changed_byte_escapes_the_deep_look(
    data: st.DataObject, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = Path(shutil.copytree(good, tmp_path_factory.mktemp("bytes") / "shards"))
    path = copy / data.draw(st.sampled_from(["shard_000000.tar", "shard_000002.tar", "shard_000001.index"]))
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    assert any(problem.file == str(path) for problem in verify(copy, deep=True).problems)
    path.write_bytes(raw[:place])
    assert any(problem.file == str(path) for problem in verify(copy).problems)


def test_an_index_that_fits_in_size_but_not_in_content_is_found(copied: Path) -> None:
    sidecar = copied / "shard_000001.index"
    index = ShardIndex.load(sidecar)
    dataclasses.replace(index, member_offset=index.member_offset[::-1].copy()).save(sidecar)
    assert verify(copied).ok
    [problem] = verify(copied, deep=True).problems
    assert problem.file == str(sidecar) and "does not describe the tar" in problem.what
    assert write_indexes(copied).kept == 3


def test_members_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar"), encoder=False) as tar:
        tar.write({"__key__": "first", "x.npy": b"no array", "y.json": b"{}"})
        tar.write({"__key__": "second", "x.npy": b"\x93NUMPY\x01\x00\x02\x00{}", "y.json": b"{"})
    found = {(p.sample, p.member) for p in verify(tmp_path, deep=True).problems}
    assert found == {("first", "x.npy"), ("second", "x.npy"), ("second", "y.json")}


@pytest.mark.parametrize("indexed", [False, True])
def test_a_key_that_comes_twice_is_found_in_a_shard_and_over_shards(indexed: bool, tmp_path: Path) -> None:
    plain(tmp_path, ["a", "b"], "x-0.tar")
    plain(tmp_path, ["c", "b"], "x-1.tar")
    plain(tmp_path, ["d", "e", "d"], "x-2.tar")
    if indexed:
        write_indexes(tmp_path)
    problems = verify(tmp_path, deep=True).problems
    assert [(Path(p.file or "").name, p.sample) for p in problems] == [("x-2.tar", "d"), ("x-1.tar", "b")]
    assert "two samples have this key" in problems[0].what and "x-0.tar has the same key" in problems[1].what


def test_several_workers_say_the_same(copied: Path) -> None:
    (copied / "shard_000001.tar").unlink()
    with ThreadPoolExecutor(2) as threads:
        assert verify(copied, deep=True, executor=threads) == verify(copied, deep=True)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for look in (verify, write_indexes):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            look(tmp_path / "nowhere")


# --- write_indexes --------------------------------------------------------------------------------------------------


def test_plain_tars_get_indexes_that_find_what_webdataset_reads(tmp_path: Path) -> None:
    plain(tmp_path, ["a", "b/c"], "x-0.tar")
    plain(tmp_path, ["d"], "x-1.tar")
    report = write_indexes(tmp_path)
    assert (report.made, report.kept, report.problems) == (["x-0.index", "x-1.index"], 0, [])
    assert write_indexes(tmp_path).kept == 2
    assert verify(tmp_path, deep=True).ok
    for name in ("x-0.tar", "x-1.tar"):
        index = ShardIndex.load(index_path(tmp_path / name))
        official = list(wds.WebDataset(str(tmp_path / name), shardshuffle=False))
        assert index.sample_keys == [sample["__key__"] for sample in official]
        with tarfile.open(tmp_path / name) as tar:
            places = sorted(member.offset_data for member in tar.getmembers() if member.name != "__dataset__.json")
        assert sorted(index.member_offset.tolist()) == places


def test_repair_makes_anew_only_what_is_wrong(copied: Path) -> None:
    whole = {path.name: path.read_bytes() for path in copied.glob("*.index")}
    (copied / "shard_000000.index").unlink()
    (copied / "shard_000001.index").write_bytes(b"damaged")
    report = write_indexes(copied)
    assert (report.made, report.kept) == (["shard_000000.index"], 1)
    assert ["rebuild the index" in str(problem) for problem in report.problems] == [True]
    report = write_indexes(copied, repair=True)
    assert (report.made, report.kept, report.problems) == (["shard_000001.index"], 2, [])
    assert {path.name: path.read_bytes() for path in copied.glob("*.index")} == whole
    assert verify(copied, deep=True).ok


def test_no_index_is_made_for_a_shard_that_has_changed(copied: Path) -> None:
    shard = copied / "shard_000001.tar"
    raw = bytearray(shard.read_bytes())
    raw[700] ^= 1
    shard.write_bytes(raw)
    index_path(shard).unlink()
    report = write_indexes(copied, repair=True)
    assert report.made == [] and "bytes have changed" in report.problems[0].what
    shard.write_bytes(raw[:1024])
    assert "has 1024 bytes" in write_indexes(copied, repair=True).problems[0].what


def test_no_index_is_made_anew_for_a_shard_that_has_changed(copied: Path) -> None:
    """Without a manifest, only the old index knows what the shard was."""
    (copied / "dataset_metadata.json").unlink()
    shard = copied / "shard_000001.tar"
    in_version(shard, 1)
    old = index_path(shard).read_bytes()
    flip(shard, 700)
    for repair in (False, True):
        report = write_indexes(copied, repair)
        assert report.made == [] and "bytes have changed" in report.problems[0].what
        assert index_path(shard).read_bytes() == old
    flip(shard, 700)
    assert write_indexes(copied).made == ["shard_000001.index"] and verify(copied, deep=True).ok


def test_a_dataset_of_arrays_is_whole(tmp_path: Path) -> None:
    create_shards_from_arrays(tmp_path / "d", {"a": np.zeros((5, 0)), "b": np.arange(5)}, shard_size=2)
    assert verify(tmp_path / "d", deep=True).ok
