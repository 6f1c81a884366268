"""Tars of other programs: all that is in them is read, or an error names the tar and the sample. Nothing is lost."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index import _header, npy, raw_members, raw_official, read_all
from values import official, same

from neurofmx_wds.errors import ShardError
from neurofmx_wds.format.export import export
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.indexing import index_tar
from neurofmx_wds.format.tar import read_members
from neurofmx_wds.format.verify import verify

GNU_TAR = pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar command")


def add(tar: tarfile.TarFile, name: str, payload: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(payload)
    tar.addfile(info, io.BytesIO(payload))


def tar_of(*members: tuple[Any, ...]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            add(tar, *member)
    return stream.getvalue()


def pairs(*numbers: int) -> list[tuple[str, bytes]]:
    """Members of whole samples."""
    return [(f"s{i}.{suffix}", payload) for i in numbers for suffix, payload in (("t", b"%d" % i), ("x.npy", npy(i)))]


def shard(directory: Path, data: bytes, name: str = "shard_000000.tar") -> Path:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / name).write_bytes(data)
    return directory / name


def numbers(path: Path) -> list[int]:
    """The samples of a shard, all whole, read by way of its tar and then of its index; `verify` finds them well."""
    first, again = read_all(path), read_all(path)
    assert [sample["t"] for sample in first] == [sample["t"] for sample in again]
    assert all(sample["t"] == b"%d" % int(sample["x"]) for sample in first + again)
    assert verify(path.parent, deep=True).ok
    return [int(sample["x"]) for sample in first]


# --- the parser, beside Python's --------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(["a.x", "./b.x", "d/", "e/f/g.npy", "ключ.x", "k" * 99, "k" * 100, "k" * 101]),
    st.just("p" * 90 + "/" + "q" * 80),
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=20).map(lambda t: t + ".x"),
)
MEMBERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=1200), st.sampled_from([b"0", b"0", b"0", b"7", b"5", b"1", b"2", b"3", b"6"])),
    min_size=1,
    max_size=6,
)


@given(
    members=MEMBERS,
    tar_format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    shared=st.dictionaries(st.sampled_from(["comment", "path2"]), st.text(max_size=5), max_size=1),
    mtime=st.sampled_from([0, 1.5]),
)
@settings(max_examples=200)
def test_members_are_those_that_pythons_tarfile_finds(
    members: list[tuple[str, bytes, bytes]], tar_format: int, shared: dict[str, str], mtime: float
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format, pax_headers=shared) as tar:
        for name, payload, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.linkname = kind, mtime, "elsewhere/" + name if kind in b"12" else ""
            info.size = len(payload) if kind in b"07" else 0
            tar.addfile(info, io.BytesIO(payload))
    data = stream.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.type, m.offset_data, m.size if m.isreg() else 0, m.linkname) for m in tar]
    assert [(m.name, m.kind, m.offset, m.size, m.link) for m in read_members(data)] == expected


@given(data=st.data())
@settings(max_examples=300)
def test_damaged_tars_give_members_inside_them_or_a_named_error(data: st.DataObject) -> None:
    whole = bytearray(
        tar_of(("a.x", b"1" * 700), ("k" * 150 + ".x", b"2"), ("l.x", b"", b"2", "a.x"), ("b.x", b"3" * 99))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(0, len(whole)) | st.just(len(whole))) :]
    try:
        found = list(read_members(bytes(whole)))
    except ShardError as error:
        assert error.problem
    else:
        assert all(0 <= m.offset <= m.offset + m.size <= len(whole) for m in found)


# --- samples in parts, keys that come again ---------------------------------------------------------------------------

IN_PARTS: dict[str, list[tuple[Any, ...]]] = {
    "sorted by suffix": [(f"s{i}.{suffix}", npy(i)) for suffix in ("t", "x.npy") for i in range(3)],
    "interleaved": [("s0.t", b"0"), ("s1.t", b"1"), ("s0.x.npy", npy(0))],
    "the key again": [*pairs(0, 1), *pairs(0)],
    "the key again, another field": [*pairs(0, 1), ("s0.y", b"")],
    "after many": [*pairs(*range(50)), ("s0.y", b"")],
    "spelt in two ways": [("./s0.t", b"0"), ("s0.x.npy", npy(0))],
    "spelt with two slashes": [("d/s0.t", b"0"), ("d//s0.x.npy", npy(0))],
    "spelt with a dot": [("d/s0.t", b"0"), ("d/./s0.x.npy", npy(0))],
    "spelt through a folder above": [("s0.t", b"0"), ("./d/../s0.x.npy", npy(0))],
}


@pytest.mark.parametrize("kind", IN_PARTS)
def test_samples_in_parts_name_tar_and_key(kind: str, tmp_path: Path) -> None:
    path = shard(tmp_path, tar_of(*IN_PARTS[kind]))
    with pytest.raises(ShardError, match="side by side") as caught:
        read_all(path)
    assert caught.value.file == str(path) and caught.value.sample and "s0" in caught.value.sample
    (problem,) = verify(tmp_path, deep=True).problems
    assert "side by side" in problem.what and write_indexes(tmp_path).problems[0].what == problem.what


@pytest.mark.parametrize("name", ["s0.t", "s0.T"])
def test_a_member_that_comes_twice_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="twice"):
        read_all(shard(tmp_path, tar_of(("s0.t", b"1"), (name, b"2"))))


# --- links ------------------------------------------------------------------------------------------------------------

HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE
LINKS: dict[str, list[tuple[Any, ...]]] = {
    "hard": [("s0.t", b"0"), ("s0.x.npy", npy(0)), ("s1.t", b"1"), ("s1.x.npy", b"", HARD, "f/n"), ("f/n", npy(1))],
    "soft": [("f/n", npy(1)), *pairs(0), ("s1.t", b"1"), ("s1.x.npy", b"", SOFT, "f/n")],
    "first member": [("f/n", b"0"), ("s0.t", b"", SOFT, "f/n"), ("s0.x.npy", npy(0)), *pairs(1)],
    "only members": [
        ("f/t", b"0"),
        ("f/n", npy(0)),
        ("s0.t", b"", HARD, "f/t"),
        ("s0.x.npy", b"", SOFT, "f/n"),
        *pairs(1),
    ],
    "of a link": [
        ("f/n", npy(0)),
        ("g", b"", SOFT, "f/n"),
        ("h", b"", HARD, "g"),
        ("s0.t", b"0"),
        ("s0.x.npy", b"", SOFT, "./h"),
        *pairs(1),
    ],
    "of a later member": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "late/n"), *pairs(1), ("late/n", npy(0))],
    "relative": [("d/f/n", npy(0)), ("d/s0.t", b"0"), ("d/s0.x.npy", b"", SOFT, "f/n"), *pairs(1)],
    "relative upwards": [("f/n", npy(0)), ("d/s0.t", b"0"), ("d/s0.x.npy", b"", SOFT, "../f/n"), *pairs(1)],
    "with dots": [("./f/n", npy(0)), ("./s0.t", b"0"), ("./s0.x.npy", b"", HARD, "f/n"), *pairs(1)],
    "through a folder": [
        ("f/n", npy(0)),
        ("g", b"", SOFT, "f"),
        ("s0.t", b"0"),
        ("s0.x.npy", b"", SOFT, "g/n"),
        *pairs(1),
    ],
}
LOST: dict[str, list[tuple[Any, ...]]] = {
    "outside": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "/etc/passwd")],
    "upwards": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "../../etc/passwd")],
    "hard outside": [("s0.t", b"0"), ("s0.x.npy", b"", HARD, "elsewhere/n")],
    "missing": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "missing")],
    "itself": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "s0.x.npy")],
    "round": [("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "s0.y"), ("s0.y", b"", SOFT, "s0.x.npy")],
    "folder": [("f/n", b""), ("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "f")],
    "growing": [("g", b"", SOFT, "g/g"), ("s0.t", b"0"), ("s0.x.npy", b"", SOFT, "g/n")],
}


@pytest.mark.parametrize("kind", LINKS)
def test_links_are_followed_inside_the_tar(kind: str, tmp_path: Path) -> None:
    path = shard(tmp_path, tar_of(*LINKS[kind]))
    assert numbers(path) == [0, 1]
    assert write_indexes(tmp_path).problems == [] and numbers(path) == [0, 1]


@pytest.mark.parametrize("kind", LOST)
def test_links_that_lead_nowhere_name_tar_and_sample(kind: str, tmp_path: Path) -> None:
    path = shard(tmp_path, tar_of(*LOST[kind]))
    with pytest.raises(ShardError, match="link") as caught:
        read_all(path)
    assert (caught.value.file, caught.value.sample) == (str(path), "s0") and "--dereference" in str(caught.value.remedy)
    assert not verify(tmp_path).ok


def test_links_that_belong_to_no_sample_do_not_matter(tmp_path: Path) -> None:
    assert numbers(shard(tmp_path, tar_of(*pairs(0), ("latest", b"", SOFT, "/elsewhere"), *pairs(1)))) == [0, 1]


def test_links_that_stand_for_far_more_than_there_is(tmp_path: Path) -> None:
    big = ("f/n", bytes(1 << 20))
    path = shard(tmp_path, tar_of(big, *((f"s{i}.t", b"", HARD, "f/n") for i in range(200))))
    with pytest.raises(ShardError, match="stand for"):
        read_all(path)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"M", b"Z"])
def test_what_is_no_file_is_an_error_if_it_is_a_samples(kind: bytes, tmp_path: Path) -> None:
    assert numbers(shard(tmp_path / "a", tar_of(*pairs(0), ("pipe", b"", kind), *pairs(1)))) == [0, 1]
    path = shard(tmp_path / "b", tar_of(*pairs(0), ("s1.t", b"", kind)))
    with pytest.raises(ShardError, match="not a file") as caught:
        read_all(path)
    assert (caught.value.file, caught.value.sample, caught.value.member) == (str(path), "s1", "t")


# --- several tars in one, and bytes behind the end --------------------------------------------------------------------

ENDS = {"10 KiB": 10240, "two blocks": 1024, "one block": 512, "megabytes": 3 << 20}


def ended(members: list[tuple[Any, ...]], end: str) -> bytes:
    """A tar with so many zero bytes behind its last member."""
    data = tar_of(*members)
    last = list(read_members(data))[-1]
    stop = last.offset + last.size + -last.size % 512
    return data[:stop] + bytes(ENDS[end])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("parts", [2, 4])
def test_concatenated_tars_are_read_on(end: str, parts: int, tmp_path: Path) -> None:
    data = b"".join(ended(pairs(2 * i, 2 * i + 1), end) for i in range(parts))
    assert numbers(shard(tmp_path, data)) == list(range(2 * parts))


def test_concatenated_tars_with_the_same_keys_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="side by side"):
        read_all(shard(tmp_path, tar_of(*pairs(0, 1)) * 2))


@pytest.mark.parametrize("rest", [b"x", b"signature" * 100, bytes(100) + b"x", bytes(511) + b"\1" + bytes(512)])
@pytest.mark.parametrize("end", ["10 KiB", "two blocks", "megabytes"])
def test_bytes_behind_the_end_are_an_error(rest: bytes, end: str, tmp_path: Path) -> None:
    path = shard(tmp_path, ended(pairs(0, 1), end) + rest)
    with pytest.raises(ShardError, match="end mark") as caught:
        read_all(path)
    assert caught.value.file == str(path) and not verify(tmp_path).ok


@pytest.mark.parametrize("rest", [b"", b"\0", bytes(512), bytes(5 << 20)])
def test_zeros_behind_the_end_do_not_matter(rest: bytes, tmp_path: Path) -> None:
    assert numbers(shard(tmp_path, ended(pairs(0, 1), "two blocks") + rest)) == [0, 1]


@pytest.mark.parametrize("payload", [b"5" * 512, bytes(512), bytes(1024), bytes(1500)])
def test_a_tar_cut_at_its_last_member_is_an_error(payload: bytes, tmp_path: Path) -> None:
    """Zeros at its end may be data."""
    data = tar_of(*pairs(0), ("s1.t", payload))
    stop = data.rindex(b"s1.t") + 512 + len(payload) + -len(payload) % 512
    path = shard(tmp_path, data[:stop])
    with pytest.raises(ShardError, match="cut short"):
        read_all(path)


# --- files that are no sample's ---------------------------------------------------------------------------------------

JUNK = [
    "._s0.t",
    "data/._s0.t",
    "data/._s0.x.npy",
    "./._a.t",
    ".DS_Store",
    "data/.DS_Store",
    "__MACOSX/data/s0.t",
    "__MACOSX/._s0.t",
    "data/__MACOSX/s0.t",
    "PaxHeaders.1234/s0.t",
    "./PaxHeaders/s0.t",
    "d/PaxHeaders.X/s0.t",
    "Thumbs.db",
    "data/Thumbs.db",
    "data/desktop.ini",
    "data/.gitkeep",
    "data/.s0.t.swp",
    "data/.nfs000a.x",
]


@pytest.mark.parametrize("name", JUNK)
def test_files_of_operating_systems_are_skipped_and_counted(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = pairs(0, 1)
    path = shard(tmp_path, tar_of((name, b"junk"), *members[:1], (name, b"junk"), *members[1:]))
    with caplog.at_level(logging.WARNING, "neurofmx_wds"):
        assert numbers(path) == [0, 1]
    assert str(path) in caplog.text and "2 hidden files" in caplog.text


def test_files_without_an_extension_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "neurofmx_wds"):
        data = tar_of(("README", b""), ("d/", b"", b"5"), *pairs(0, 1), ("d/LICENSE", b""))
        assert numbers(shard(tmp_path, data)) == [0, 1]
    assert "2 files without an extension" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "neurofmx_wds"):
        assert numbers(shard(tmp_path / "b", tar_of(("__about__", b""), ("./", b"", b"5"), *pairs(0, 1)))) == [0, 1]
    assert not caplog.text


# --- what webdataset reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["shard_000000.tar", "shard_000000.tar.gz", "shard_000000.tar.xz"])
def test_compression_is_known_by_the_bytes(pack: Callable[[bytes], bytes], name: str, tmp_path: Path) -> None:
    data = tar_of(*pairs(0, 1, 2))
    assert numbers(shard(tmp_path / "packed", pack(data), name)) == [0, 1, 2]
    assert numbers(shard(tmp_path / "plain", data, name)) == [0, 1, 2]


@pytest.mark.parametrize("first", ["path=s0.t", "path=" + "d/" * 40 + "s0.t"])
@pytest.mark.parametrize("short", [b"x.y", b"s0.t", b"a/very/different/name", b"S0.T", b""])
def test_a_pax_path_counts_not_the_short_name(first: str, short: bytes, tmp_path: Path) -> None:
    length = next(n for n in range(1, 200) if len(f"{n} {first}\n") == n)
    record = f"{length} {first}\n".encode()
    payload = b"0"
    data = b"".join(
        [
            _header(b"PaxHeaders/x", b"%011o\0" % len(record), b"x"),
            record.ljust(512, b"\0"),
            _header(short, b"%011o\0" % len(payload), b"0"),
            payload.ljust(512, b"\0"),
            bytes(1024),
        ]
    )
    path = shard(tmp_path, data)
    assert raw_members(path) == raw_official(path) and raw_members(path)[0][0].endswith("s0")
    for _ in range(2):
        assert [sample["t"] for sample in read_all(path)] == [b"0"]


@GNU_TAR
@pytest.mark.parametrize("version", ["gnu", "oldgnu", "posix:0.0", "posix:0.1", "posix:1.0"])
@pytest.mark.parametrize("holes", [1, 9, 60])
def test_sparse_files_are_read(version: str, holes: int, tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    tar_format, _, sparse = version.partition(":")
    array = np.zeros((holes + 1) * 16384)
    array[::16384] = np.arange(holes + 1)
    np.save(source / "s0.x.npy", array)
    with open(source / "s1.t", "wb") as file:
        file.truncate(1 << 20)  # nothing but a hole
    (source / "s2.t").write_bytes(b"plain")
    subprocess.run(["fallocate", "--dig-holes", str(source / "s0.x.npy")], check=False)
    path = tmp_path / "out" / "shard_000000.tar"
    path.parent.mkdir()
    options = [f"--format={tar_format}", "--sparse", "--hole-detection=raw"]
    options += [f"--sparse-version={sparse}"] if sparse else []
    subprocess.run(["tar", *options, "-cf", path, "-C", source, "s0.x.npy", "s1.t", "s2.t"], check=True)
    assert path.stat().st_size < array.nbytes
    expected = raw_official(path)
    for _ in range(2):  # from the tar, then by its index
        first, second, third = read_all(path)
        assert same(first["x"], array) and second["t"] == bytes(1 << 20) and third["t"] == b"plain"
        assert [sample["__key__"] for sample in (first, second, third)] == [key for key, _ in expected]
    assert verify(tmp_path / "out", deep=True).ok
    with pytest.raises(ShardError, match="sparse"):
        export(tmp_path / "out")


def test_sparse_files_that_claim_far_more_than_there_is(tmp_path: Path) -> None:
    header = bytearray(_header(b"s0.t", b"%011o\0" % 0, b"S"))
    header[483:495] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = shard(tmp_path, bytes(header) + bytes(1024))
    with pytest.raises(ShardError, match="stand for"):
        read_all(path)


@GNU_TAR
@pytest.mark.parametrize("folder", [".", "data", "./data/"])
def test_folders_of_files_that_tar_packs(folder: str, tmp_path: Path) -> None:
    source = tmp_path / "files"
    (source / "data").mkdir(parents=True)
    for name, payload in pairs(0, 1, 2):
        (source / "data" / name).write_bytes(payload)
    path = tmp_path / "out" / "shard_000000.tar"
    path.parent.mkdir()
    subprocess.run(["tar", "--sort=name", "-cf", path, "-C", source, folder], check=True)
    assert numbers(path) == [0, 1, 2]
    assert [sample["__key__"] for sample in read_all(path)] == [sample["__key__"] for sample in official(path)]


# --- headers that ask for too much ------------------------------------------------------------------------------------

HEADERS: dict[str, bytes] = {
    "long pax": _header(b"p", b"%011o\0" % (8 << 20), b"x") + b"9" * (8 << 20),
    "long name": _header(b"p", b"%011o\0" % (8 << 20), b"L") + b"9" * (8 << 20),
    "global": _header(b"p", b"%011o\0" % (8 << 20), b"g") + b"9" * (8 << 20),
    "digits": _header(b"p", b"%011o\0" % (1 << 20), b"x") + b"9" * (1 << 20),
    "spaces": _header(b"p", b"%011o\0" % (1 << 20), b"x") + b"1 " * (1 << 19),
    "no length": _header(b"p", b"%011o\0" % 512, b"x") + b"0 path=a\n".ljust(512, b"\0"),
    "short length": _header(b"p", b"%011o\0" % 512, b"x") + b"3 path=a\n".ljust(512, b"\0"),
    "long length": _header(b"p", b"%011o\0" % 512, b"x") + b"999 path=a\n".ljust(512, b"\0"),
    "no equals": _header(b"p", b"%011o\0" % 512, b"x") + b"7 path\n".ljust(512, b"\0"),
    "size of letters": _header(b"p", b"%011o\0" % 9, b"x") + b"9 size=x\n".ljust(512, b"\0"),
    "alone": _header(b"p", b"%011o\0" % 0, b"x"),
    "chain": _header(b"p", b"%011o\0" % 0, b"x") * 20_000,
}


@pytest.mark.parametrize("kind", HEADERS)
def test_extended_headers_are_bounded(kind: str, tmp_path: Path) -> None:
    member = b"" if kind == "chain" else _header(b"a.x", b"%011o\0" % 0, b"0")
    path = shard(tmp_path, HEADERS[kind] + member + bytes(1024))
    tracemalloc.start()
    try:
        if kind == "alone":
            assert index_tar(path).n_samples == 1
        else:
            with pytest.raises(ShardError) as caught:
                index_tar(path)
            assert caught.value.file == str(path) and caught.value.remedy
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
