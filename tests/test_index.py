"""The sidecar index: what any tar holds, found as webdataset finds it; never believed where it is damaged or forged."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import posixpath
import shutil
import subprocess
import tarfile
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from values import official, same

from neurofmx_wds.errors import NeurofmxError, ShardError, ShardIndexError
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.format.index_builder import IndexBuilder
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.indexing import index_tar
from neurofmx_wds.format.names import field_of
from neurofmx_wds.format.npy import ArrayLayout
from neurofmx_wds.format.shard_file import ShardFile
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.format.verify import verify
from neurofmx_wds.loading.readers import ShardReader


def npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(value))
    return stream.getvalue()


def make_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar as Python's tarfile writes it."""
    with tarfile.open(path, "w", **options) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def make_shard(path: Path, n: int = 4) -> list[dict[str, Any]]:
    """A shard of ours, and its samples."""
    shard = ShardFile(path.parent, path.name)
    rows = []
    for i in range(n):
        row = {"x": np.arange(3.0) + i, "y": np.arange(i % 2 + 1), "metadata": {"i": i}, "__key__": f"key{i}"}
        shard.write(row)
        rows.append(row)
    shard.close()
    return rows


def read_all(path: Path, **options: Any) -> list[dict[str, Any]]:
    shards = open_shards(path)
    return ShardReader(shards, **options).read_samples(np.arange(shards.n_samples))


def raw_members(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Every sample's key and payloads by suffix, from the index alone."""
    index, data = index_tar(path), path.read_bytes()
    rows = []
    for i, key in enumerate(index.sample_keys):
        members = range(index.sample_start[i], index.sample_start[i + 1])
        at = {index.suffixes[index.member_suffix[m]]: (index.member_offset[m], index.member_size[m]) for m in members}
        rows.append((key, {suffix: data[offset : offset + size] for suffix, (offset, size) in at.items()}))
    return rows


def raw_official(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.pop("__key__"), sample) for sample in official(path, decode=False)]


# --- any tar that the official library reads -------------------------------------------------------------------------

NAMES = st.lists(
    st.tuples(
        st.sampled_from(["", "a/", "a/b/", "./", "../", "a.d/", "/"]),
        st.sampled_from(["k1", "k2", "K1", "__x", "__x__", "_", "ключ", "k" * 120]),
        st.sampled_from(
            ["", ".npy", ".x.npy", ".X.NPY", ".x", ".json", ".metadata.json", ".a.b.c", ".", "..", ".tar.gz"]
        ),
    ).map("".join),
    max_size=8,
)


@given(names=NAMES, tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=200)
def test_members_are_grouped_as_webdataset_groups_them(names: list[str], tar_format: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        if tar_format == tarfile.USTAR_FORMAT:
            names = [name.replace("k" * 120, "k" * 70) for name in names]  # has no longer ones
        members = [(name, name.encode() + bytes([i])) for i, name in enumerate(names)]
        path = make_tar(Path(directory) / "a.tar", members, format=tar_format)
        shown = [(name, payload) for name, payload in members if not name.rpartition("/")[2].startswith(".")]
        reference = make_tar(Path(directory) / "b.tar", shown, format=tar_format)  # without hidden files
        try:
            expected = raw_official(reference)
        except ValueError as error:
            assert "duplicate" in str(error)
            with pytest.raises(ShardError, match="twice|side by side"):
                index_tar(path)
            return
        keys = [posixpath.normpath(key) for key, _ in expected]
        if len(set(keys)) < len(keys):  # webdataset gives such samples in parts
            with pytest.raises(ShardError, match="side by side") as caught:
                index_tar(path)
            assert caught.value.file == str(path) and posixpath.normpath(str(caught.value.sample)) in keys
        else:
            assert raw_members(path) == expected


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar command")
@pytest.mark.parametrize("tar_format", ["gnu", "oldgnu", "ustar", "posix", "v7"])
@pytest.mark.parametrize("folders", [False, True])
def test_what_the_tar_command_writes(tmp_path: Path, tar_format: str, folders: bool) -> None:
    source = tmp_path / "files"
    (source / "mouse1").mkdir(parents=True)
    names = ["mouse1/a.x.npy", "mouse1/a.META.json", "b.x.npy", "README", "c.X.NPY", "d.y.npy"]
    if tar_format != "v7":
        names += ["k" * 90 + ".x.npy", "ключ.x.npy"]
    for i, name in enumerate(names):
        (source / name).write_bytes(b"{}" if name.endswith("json") else npy(np.arange(i + 1)))
    os.symlink("b.x.npy", source / "e.x.npy")
    os.link(source / "b.x.npy", source / "f.x.npy")
    path = tmp_path / "a.tar"
    given_names = ["."] if folders else [*names, "e.x.npy", "f.x.npy"]
    subprocess.run(["tar", f"--format={tar_format}", "-cf", path, "-C", source, *given_names], check=True)
    found = dict(raw_members(path))
    links = {key for key in found if Path(key).name in "bef"}  # of which webdataset gives only the one stored first
    assert {key: found[key] for key in found if key not in links} == {
        key: payloads for key, payloads in raw_official(path) if key not in links
    }
    keyed = {sample["__key__"]: sample for sample in read_all(path)}
    assert same(keyed["./c" if folders else "c"]["x"], np.arange(5))
    assert len(links) == 3 and all(same(keyed[key]["x"], np.arange(3)) for key in links)
    assert "README" not in {Path(key).name for key in keyed}


def test_what_webdataset_writes_by_default(tmp_path: Path) -> None:
    """Its clock is a float, so every member has a PAX header; pickles and any encoder may be in it."""
    rows = [
        {
            "__key__": f"day.1/{i}".replace(".", "_"),
            "x.npy": np.full(3, i),
            "y.pyd": np.arange(i),
            "z.cls": i,
            "t.txt": "é",
        }
        for i in range(7)
    ]
    with wds.ShardWriter(str(tmp_path / "shard_%04d.tar"), maxcount=3, verbose=0) as writer:
        for row in rows:
            writer.write(row)
    read = read_all(tmp_path)
    assert [sample["__key__"] for sample in read] == [row["__key__"] for row in rows]
    for sample, row in zip(read, rows, strict=True):
        assert same(sample["x"], row["x.npy"]) and same(sample["y"], row["y.pyd"])
        assert (int(sample["z"]), sample["t"], sample["metadata"]) == (row["z.cls"], "é", {})


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tbz2", "a.tar.xz", "a.txz"])
def test_compressed_shards_of_others(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    buffer = make_tar(tmp_path / "plain", [(f"k{i}.x.npy", npy(np.arange(i))) for i in range(5)]).read_bytes()
    pack = {"gz": gzip.compress, "bz": bz2.compress, "xz": lzma.compress}.get(name[-2:].replace("z2", "bz"), bytes)
    path.write_bytes(pack(buffer))
    read = read_all(path)
    assert [sample["__key__"] for sample in read] == [f"k{i}" for i in range(5)]
    assert all(same(sample["x"], np.arange(i)) for i, sample in enumerate(read))
    again = read_all(path)  # now by the index beside it
    assert all(same(a, b) for a, b in zip(read, again, strict=True))
    assert index_path(path).exists()


def test_keys_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("caf\xe9.x.npy", npy(1))], format=tarfile.USTAR_FORMAT, encoding="latin1")
    ((key, _),) = raw_official(path)
    for _ in range(2):  # from the tar, then from the index
        assert [sample["__key__"] for sample in read_all(path)] == [key]


def test_samples_in_parts_are_an_error(tmp_path: Path) -> None:
    """webdataset gives the halves of such a sample as two samples."""
    path = make_tar(tmp_path / "a.tar", [("a.x.npy", npy(1)), ("b.x.npy", npy(2)), ("a.y.npy", npy(3))])
    with pytest.raises(ShardError, match="side by side") as caught:
        read_all(path)
    assert (caught.value.file, caught.value.sample, caught.value.member) == (str(path), "a", "y.npy")
    assert "--sort=name" in str(caught.value.remedy)


def test_an_empty_tar_and_an_empty_file(tmp_path: Path) -> None:
    assert index_tar(make_tar(tmp_path / "a.tar", [])).n_samples == 0
    assert read_all(tmp_path / "a.tar") == []
    (tmp_path / "b.tar").touch()
    with pytest.raises(ShardError, match="empty") as caught:
        index_tar(tmp_path / "b.tar")
    assert caught.value.file == str(tmp_path / "b.tar") and caught.value.remedy


def test_fields_of_one_name_are_never_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_tar(path, [("a.x.npy", npy(1)), ("a.x.cls", b"2"), ("a.y", b"3"), ("b.x.npy", npy(4)), ("b.y.txt", b"5")])
    first, second = read_all(path)
    assert {name: int(first[name]) for name in ("x.npy", "x.cls", "y")} == {"x.npy": 1, "x.cls": 2, "y": 3}
    assert (int(second["x.npy"]), second["y"]) == (4, "5")


def test_a_field_may_be_of_another_kind_in_each_sample(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path, "a.tar")
    for i, value in enumerate([7, "seven", [7], np.arange(7)]):
        shard.write({"__key__": f"k{i}", "label": value})
    shard.close()
    values = [sample["label"] for sample in read_all(tmp_path / "a.tar")]
    assert int(values[0]) == 7 and values[1:3] == ["seven", [7]] and same(values[3], np.arange(7))


@pytest.mark.parametrize("payload", [b'{"a": 1}', b"[1]", b"{", b"\xff", b"", b"[" * 100_000])
def test_metadata_of_others_is_given_or_named(tmp_path: Path, payload: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.x.npy", npy(1)), ("b.x.npy", npy(1)), ("b.metadata.json", payload)])
    reader = ShardReader(open_shards(path))
    assert reader.read_samples(np.array([0]))[0]["metadata"] == {}
    try:
        expected = json.loads(payload)
    except (ValueError, RecursionError):
        with pytest.raises(ShardError) as caught:
            reader.read_batch(np.array([1]))
        assert (caught.value.file, caught.value.sample, caught.value.member) == (str(path), "b", "metadata.json")
        assert caught.value.remedy
    else:
        assert reader.read_samples(np.array([1]))[0]["metadata"] == expected


def test_pickled_metadata_is_read(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "a", "x.npy": np.zeros(1), "metadata.pyd": {"trial": 3}})
    assert read_all(tmp_path / "a.tar")[0]["metadata"] == {"trial": 3}


# --- damage ----------------------------------------------------------------------------------------------------------


def _right_or_named(path: Path, truth: list[dict[str, Any]], read: Callable[[], list[dict[str, Any]]]) -> bool:
    """Whether what is read is the whole truth; anything else must be an error that names the file and a remedy."""
    try:
        found = read()
    except NeurofmxError as error:
        assert error.file is not None and Path(error.file).parent == path.parent
        assert error.remedy
        return False
    assert len(found) == len(truth), "samples are missing"
    for sample, row in zip(found, truth, strict=True):
        assert same(sample, row), "wrong data"
    return True


@pytest.mark.parametrize("with_index", [False, True])
@pytest.mark.parametrize("of_ours", [False, True])
def test_a_tar_cut_anywhere(tmp_path: Path, with_index: bool, of_ours: bool) -> None:
    path = tmp_path / "a.tar"
    truth = make_shard(path)
    if not of_ours:
        data = [(f"{row['__key__']}.{name}.npy", npy(row[name])) for row in truth for name in ("x", "y")]
        make_tar(path, data)
        truth = [{**row, "metadata": {}} for row in truth]
        index_path(path).unlink()
        index_tar(path, checksum=True).save(index_path(path))
    whole, sidecar = path.read_bytes(), index_path(path).read_bytes()
    used = index_tar(path).member_offset[-1] + index_tar(path).member_size[-1]
    rng = np.random.default_rng(0)
    for size in [*range(0, len(whole), 512), *rng.integers(0, len(whole), 40).tolist()]:
        path.write_bytes(whole[:size])
        index_path(path).unlink(missing_ok=True)
        if with_index:
            index_path(path).write_bytes(sidecar)
        right = _right_or_named(path, truth, lambda: read_all(path))
        assert not right or size >= used


@given(place=st.integers(0, 511), value=st.integers(1, 255), member=st.integers(0, 11), with_index=st.booleans())
@settings(max_examples=200)
def test_flipped_bytes_in_a_tars_headers(place: int, value: int, member: int, with_index: bool) -> None:
    """Without an index a header's checksum finds any flipped byte; with one, only the ends are looked at."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.tar"
        truth = make_shard(path)
        with tarfile.open(path) as tar:
            header = tar.getmembers()[member].offset
        data = bytearray(path.read_bytes())
        data[header + place] ^= value
        path.write_bytes(data)
        if not with_index:
            index_path(path).unlink()
        right = _right_or_named(path, truth, lambda: read_all(path))
        assert right or not with_index or member in (0, 9)  # the first member of the first and of the last sample


@given(data=st.data())
@settings(max_examples=150)
def test_rubbish_in_a_tars_headers_is_named(data: st.DataObject) -> None:
    """Headers whose checksum fits, but whose fields are anything: no crash, no endless loop, nothing else raised."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.tar"
        make_shard(path, 2)
        index_path(path).unlink()
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as tar:
            offsets = [member.offset for member in tar]
        for offset in data.draw(st.lists(st.sampled_from(offsets), min_size=1, max_size=2)):
            header = content[offset : offset + 512]
            start, size = data.draw(
                st.sampled_from([(0, 100), (124, 12), (136, 12), (156, 1), (257, 8), (345, 155), (386, 97)])
            )
            rubbish = data.draw(st.binary(min_size=1, max_size=size) | st.sampled_from([b"x", b"g", b"L", b"S", b"5"]))
            header[start : start + len(rubbish)] = rubbish[:size]
            content[offset : offset + 512] = _sealed(header)
        path.write_bytes(content)
        try:
            read_all(path)
        except NeurofmxError as error:
            assert error.file == str(path) and error.remedy


def _sealed(header: bytes | bytearray) -> bytes:
    """A tar header with the checksum that fits."""
    header = bytearray(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _header(name: bytes, size: bytes, kind: bytes) -> bytes:
    header = bytearray(tarfile.TarInfo("x").tobuf())
    header[:100] = name.ljust(100, b"\0")
    header[124:136] = size
    header[156:157] = kind
    return _sealed(header)


NEGATIVE = b"\xff" * 10 + (0x10000 - 1024).to_bytes(2, "big")  # base 256: -1024
ENORMOUS = b"\x80" + b"\xff" * 11
HOSTILE_TARS = {
    "negative size": _header(b"a.x.npy", NEGATIVE, b"0"),
    "negative unknown": bytes(1024) and _header(b"b.x.npy", b"%011o\0" % 0, b"0") + _header(b"a.x.npy", NEGATIVE, b"Z"),
    "negative directory": _header(b"a/", NEGATIVE, b"5"),
    "negative pax": _header(b"a", NEGATIVE, b"x"),
    "negative long name": _header(b"a", NEGATIVE, b"L"),
    "enormous": _header(b"a.x.npy", ENORMOUS, b"0"),
    "enormous pax": _header(b"a", ENORMOUS, b"x"),
    "enormous long name": _header(b"a", ENORMOUS, b"L"),
    "1 TiB": _header(b"a.x.npy", b"%011o\0" % ((1 << 33) - 1), b"0"),
    "pax negative": _header(b"p", b"%011o\0" % 13, b"x")
    + b"13 size=-512\n".ljust(512, b"\0")
    + _header(b"a.x", b"%011o\0" % 0, b"0"),
    "pax endless": _header(b"p", b"%011o\0" % 11, b"x") + b"99999 a=bc\n".ljust(512, b"\0"),
    "pax chain": (_header(b"p", b"%011o\0" % 0, b"x")) * 5000,
    "long name chain": (_header(b"p", b"%011o\0" % 0, b"L")) * 5000,
    "sparse": _header(b"a.x.npy", b"%011o\0" % 0, b"S"),
    "no tar": b"hello" * 400,
    "link": _header(b"a.x.npy", b"%011o\0" % 0, b"2"),
}


@pytest.mark.parametrize("kind", HOSTILE_TARS)
def test_hostile_tars(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE_TARS[kind] + bytes(10240))
    try:
        assert read_all(path) == [] or kind.startswith("negative dir")
    except ShardError as error:
        assert error.file == str(path) and error.remedy
    else:
        assert kind in ("link", "negative directory", "enormous long name"), "should have been refused"


# --- damaged and forged indexes --------------------------------------------------------------------------------------


def test_the_index_round_trips_and_knows_its_shard(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar")
    data = (tmp_path / "a.index").read_bytes()
    assert ShardIndex.from_bytes(data, "a.index").to_bytes() == data
    os.rename(tmp_path / "a.index", tmp_path / "b.index")
    os.rename(tmp_path / "a.tar", tmp_path / "b.tar")
    with pytest.raises(ShardIndexError, match=r"a\.tar") as caught:
        read_all(tmp_path / "b.tar")
    assert caught.value.remedy


def test_any_flipped_byte_of_an_index_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_shard(path, 2)
    data = index_path(path).read_bytes()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ShardIndexError) as caught:
            ShardIndex.from_bytes(bytes(damaged), index_path(path))
        assert caught.value.file == str(index_path(path)) and caught.value.remedy


def test_any_cut_of_an_index_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_shard(path, 2)
    data = index_path(path).read_bytes()
    for size in range(len(data)):
        with pytest.raises(ShardIndexError):
            ShardIndex.from_bytes(data[:size], index_path(path))


FORGERIES: dict[str, Callable[[ShardIndex], dict[str, Any]]] = {
    "outside": lambda index: {"member_offset": index.member_offset + index.tar_size},
    "far outside": lambda index: {"member_offset": np.full_like(index.member_offset, 2**62)},
    "negative offset": lambda index: {"member_offset": index.member_offset - 10**6},
    "negative size": lambda index: {"member_size": -index.member_size},
    "huge size": lambda index: {"member_size": np.full_like(index.member_size, 2**63 - 1)},
    "size wraps": lambda index: {
        "member_size": np.full_like(index.member_size, 2**63 - 1),
        "member_offset": np.full_like(index.member_offset, 2**63 - 1),
    },
    "huge tar": lambda index: {"tar_size": 2**70},
    "another size": lambda index: {"tar_size": index.tar_size + 512},
    "objects": lambda index: {"layouts": (ArrayLayout("|O", (3,), 128),) * len(index.layouts)},
    "subarrays": lambda index: {"layouts": (ArrayLayout("(1000000,)f8", (3,), 128),) * len(index.layouts)},
    "struct": lambda index: {"layouts": (ArrayLayout("f8,f8", (3,), 128),) * len(index.layouts)},
    "nonsense dtype": lambda index: {"layouts": (ArrayLayout("spikes", (3,), 128),) * len(index.layouts)},
    "huge shape": lambda index: {"layouts": (ArrayLayout("<f8", (2**40,), 128),) * len(index.layouts)},
    "overflowing shape": lambda index: {"layouts": (ArrayLayout("<f8", (2**40, 2**40), 128),) * len(index.layouts)},
    "empty overflowing shape": lambda index: {
        "layouts": (ArrayLayout("<f8", (0, 2**40, 2**40), 0),) * len(index.layouts)
    },
    "negative shape": lambda index: {"layouts": (ArrayLayout("<f8", (-3, -1), 0),) * len(index.layouts)},
    "negative header": lambda index: {"layouts": (ArrayLayout("<f8", (3,), -8),) * len(index.layouts)},
    "layout beyond": lambda index: {"member_layout": index.member_layout + 100},
    "layout below": lambda index: {"member_layout": index.member_layout - 100},
    "suffix beyond": lambda index: {"member_suffix": index.member_suffix + 100},
    "suffix below": lambda index: {"member_suffix": index.member_suffix - 100},
    "samples backwards": lambda index: {"sample_start": index.sample_start[::-1]},
    "samples beyond": lambda index: {"sample_start": index.sample_start + 1},
    "no samples": lambda index: {"sample_start": np.empty(0, np.int64)},
    "a sample without members": lambda index: {"sample_start": np.r_[0, 0, index.sample_start[2:]]},
    "keys cut": lambda index: {"keys": index.keys[:-1]},
    "keys backwards": lambda index: {"key_end": index.key_end[::-1]},
    "metadata beyond": lambda index: {"metadata_end": index.metadata_end + 1},
    "members missing": lambda index: {"member_size": index.member_size[:-1]},
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_index_is_refused(kind: str, tmp_path: Path) -> None:
    """Sealed with the checksum that fits, so only what it says can give it away."""
    path = tmp_path / "a.tar"
    make_shard(path)
    index = ShardIndex.load(index_path(path))
    replace(index, **FORGERIES[kind](index)).save(index_path(path))
    with pytest.raises(ShardError) as caught:
        read_all(path)
    assert Path(caught.value.file or "").parent == tmp_path and caught.value.remedy


@given(data=st.data())
@settings(max_examples=200)
def test_a_forged_index_never_reads_outside(data: st.DataObject) -> None:
    """Whatever numbers it holds: a named error, or bytes of this very shard; overlapping members are harmless."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.tar"
        make_shard(path)
        index = ShardIndex.load(index_path(path))
        name = data.draw(
            st.sampled_from(["sample_start", "member_suffix", "member_layout", "member_offset", "member_size"])
        )
        numbers = getattr(index, name).copy()
        near = st.integers(-3, 3).map(lambda n: int(numbers[-1]) + n)
        limits = np.iinfo(numbers.dtype)
        place = data.draw(st.integers(0, len(numbers) - 1))
        numbers[place] = data.draw(st.integers(limits.min, limits.max) | st.integers(-2, 20_000) | near)
        replace(index, **{name: numbers}).save(index_path(path))
        for io_mode in ("mmap", "pread"):
            try:
                read_all(path, io=io_mode)
            except NeurofmxError as error:
                assert error.file and error.remedy


@given(data=st.data())
@settings(max_examples=150)
def test_a_forged_index_header_is_refused_or_harmless(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.tar"
        make_shard(path)
        raw = index_path(path).read_bytes()
        size = int.from_bytes(raw[8:12], "little")
        header = json.loads(raw[12 : 12 + size])
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(2**65),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
            max_leaves=4,
        )
        name = data.draw(st.sampled_from(sorted(header)))
        if name in ("sections", "layouts") and data.draw(st.booleans()):
            inner = header[name]
            place = data.draw(st.sampled_from(sorted(inner))) if isinstance(inner, dict) else 0
            inner[place] = data.draw(anything)
        else:
            header[name] = data.draw(anything)
        text = json.dumps(header).encode()
        body = raw[:8] + len(text).to_bytes(4, "little") + text + raw[12 + size : -4]
        index_path(path).write_bytes(body + zlib.crc32(body).to_bytes(4, "little"))
        try:
            read_all(path)
        except NeurofmxError as error:
            assert error.file and error.remedy


def in_version(path: Path, version: int) -> None:
    """Write a shard's index as another version of this package would: 1 knew no checksums of members."""
    raw = index_path(path).read_bytes()
    length = int.from_bytes(raw[8:12], "little")
    header = json.loads(raw[12 : 12 + length])
    start = 12 + length
    header["version"] = version
    if version == 1:
        names = ["sample_start", "member_suffix", "member_layout", "member_offset", "member_size"]
        at = start + sum(header["sections"][name] * (4 if name[7:] in ("suffix", "layout") else 8) for name in names)
        raw = raw[:at] + raw[at + 4 * header["sections"].pop("member_crc32") :]
    text = json.dumps(header).encode()
    raw = raw[:8] + len(text).to_bytes(4, "little") + text + raw[start:-4]
    index_path(path).write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_shard(path)
    in_version(path, 3)
    with pytest.raises(ShardIndexError, match="version"):
        read_all(path)


def test_an_index_without_checksums_is_read_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    rows = make_shard(path)
    whole = index_path(path).read_bytes()
    in_version(path, 1)
    assert not ShardIndex.load(index_path(path)).has_checksums
    assert all(same(a["x"], b["x"]) for a, b in zip(read_all(path), rows, strict=True))
    with pytest.raises(ShardError, match="no checksums"):
        read_all(path, checksums=True)
    assert verify(tmp_path, deep=True).ok
    assert write_indexes(tmp_path).made == ["a.index"] and index_path(path).read_bytes() == whole


# --- shards with thousands of fields ---------------------------------------------------------------------------------


def index_of(samples: list[list[str]]) -> ShardIndex:
    """An index of samples with members of these suffixes."""
    builder = IndexBuilder()
    for i, suffixes in enumerate(samples):
        builder.add(f"k{i}", [(suffix, None, 512 * i, 0, None) for suffix in suffixes])
    return builder.build("a.tar", 1 << 30, 1 << 30, None)


SUFFIXES = ["x.npy", "x.cls", "x", "y.npy", "y", "z.json", "x.npy.gz"]


@given(samples=st.lists(st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=5, unique=True), max_size=8))
@settings(max_examples=200)
def test_columns_hold_every_member_once(samples: list[list[str]]) -> None:
    """Under its field's name, or under its suffix where a sample would have two values of that name."""
    index = index_of(samples)
    found: list[tuple[int, str]] = []
    for name, column in index.columns.items():
        for row in range(index.n_samples):
            if column.suffix_id[row] >= 0:
                suffix = index.suffixes[column.suffix_id[row]]
                assert column.offset[row] == 512 * row and name in (suffix, field_of(suffix))
                found.append((row, suffix))
            else:
                assert column.offset[row] == -1 and column.size[row] == 0
    assert sorted(found) == sorted((row, suffix) for row, suffixes in enumerate(samples) for suffix in suffixes)
    assert len(index.columns) == len(list(index.columns)) and "nothing" not in index.columns


@pytest.mark.parametrize("n", [20_000, 40_000])
def test_thousands_of_fields_cost_no_more_than_their_members(n: int, tmp_path: Path) -> None:
    """One sample with all of them, as of files that are called ``img.0001.jpg``; and a sample for each of them."""
    wide, deep = index_of([[f"{i:05}.jpg" for i in range(n)]]), index_of([[f"{i:05}.jpg"] for i in range(n)])
    tracemalloc.start()
    try:
        wide.columns.check_all(tmp_path)
        assert sum(int(column.offset[0]) for column in wide.columns.values()) == 0
        with pytest.raises(ShardError, match="different fields") as caught:
            deep.columns.check_all(tmp_path)
        assert "modalities" in str(caught.value.remedy)
        assert deep.columns["00007"].suffix_id.tolist().index(7) == 7
        assert tracemalloc.get_traced_memory()[1] < 4000 * n
    finally:
        tracemalloc.stop()


def test_a_loader_names_the_shard_with_too_many_fields(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [(f"k{i}.f{i}.cls", b"1") for i in range(1500)])
    with pytest.raises(ShardError, match="different fields") as caught:
        read_all(path)
    assert caught.value.file == str(path)
    shards = open_shards(path)
    (sample,) = ShardReader(shards, modalities=["f7"]).read_samples(np.array([7]))
    assert sample["f7"] == 1


def test_a_forged_index_with_a_member_twice_reads_nothing_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    make_shard(path)
    index = ShardIndex.load(index_path(path))
    x, y = index.suffixes.index("x.npy"), index.suffixes.index("y.npy")
    suffix = np.where(index.member_suffix == y, x, index.member_suffix)
    replace(index, member_suffix=suffix.astype(np.int32)).save(index_path(path))
    try:
        read_all(path)
    except NeurofmxError as error:
        assert error.file and error.remedy
