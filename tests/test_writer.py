"""What is written: read by the official library, by tarfile and by us, the same bytes each time, or refused whole."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from values import native_order, official, plain, same, samples

import neurofmx_wds.format.shard_file as shardfile_module
from neurofmx_wds import WebDatasetWriter, create_shards_from_arrays
from neurofmx_wds.errors import FieldError, OutputError
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.format.indexing import index_tar
from neurofmx_wds.format.manifest import MANIFEST_NAME, Manifest
from neurofmx_wds.format.shard_file import ShardFile, tar_header
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading.readers import ShardReader

Compression = Literal["none", "gz", "bz2", "xz"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "gz", "bz2", "xz")
UNPACK = {"none": bytes, "gz": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}


def write(directory: Path | str, rows: list[dict[str, Any]], **options: Any) -> list[Path]:
    """Write a dataset; its shards."""
    with WebDatasetWriter(directory, **options) as writer:
        writer.write_batch(rows, show_progress=False)
    return [Path(directory) / shard["shard_name"] for shard in writer.summary["shards"]]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def simple(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"spikes": rng.poisson(1.0, (10, 4)).astype("f4"), "label": i, "note": f"n{i}", "metadata": {"trial": i}}
        for i in range(count)
    ]


# --- others read it --------------------------------------------------------------------------------------------------


@given(rows=samples(), compression=st.sampled_from(COMPRESSIONS), shard_size=st.integers(1, 3))
def test_the_official_library_reads_what_we_write(
    rows: list[dict[str, Any]], compression: Compression, shard_size: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        shards = write(Path(directory) / "d", rows, compression=compression, shard_size=shard_size)
        read = official(*shards)
    assert [sample["__key__"] for sample in read] == [row["__key__"] for row in rows]
    for sample, row in zip(read, rows, strict=True):
        expected = {name: plain(value) for name, value in row.items() if name != "__key__"}
        found = {name.rpartition(".")[0]: value for name, value in sample.items() if name != "__key__"}
        assert same(found, expected)


@given(rows=samples(), compression=st.sampled_from(COMPRESSIONS))
def test_we_read_what_we_write(rows: list[dict[str, Any]], compression: Compression) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory) / "d", rows, compression=compression, shard_size=2)
        reader = ShardReader(open_shards(Path(directory) / "d", cache_dir=Path(directory) / "cache"))
        read = reader.read_samples(np.arange(len(rows)))
    for sample, row in zip(read, rows, strict=True):
        native = {name: native_order(plain(value)) for name, value in row.items()}
        assert same(sample, native)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_shard_is_the_tar_that_tarfile_would_write(tmp_path: Path, compression: Compression) -> None:
    rows = simple(3) + [{"x": 1.5, "__key__": "ü" * 60, "long" * 20: np.zeros(3)}, {"y": 2, "__key__": "k" * 300}]
    for shard in write(tmp_path / "d", rows, compression=compression):
        ours = UNPACK[compression](shard.read_bytes())
        rebuilt = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(ours)) as source, tarfile.open(fileobj=rebuilt, mode="w") as target:
            for member in source:
                info = tarfile.TarInfo(member.name)
                info.size, info.mode, info.uname, info.gname = member.size, 0o444, "bigdata", "bigdata"
                target.addfile(info, source.extractfile(member))
        assert ours == rebuilt.getvalue()


@given(name=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=300), size=st.integers(0, 2**36))
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o444, "bigdata", "bigdata"
    try:
        expected = info.tobuf(tarfile.PAX_FORMAT)
    except UnicodeEncodeError:  # a lone surrogate, which check_key refuses
        return
    assert tar_header(name, size) == expected


def test_the_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path) -> None:
    with wds.TarWriter(str(tmp_path / "official.tar"), mtime=0) as theirs:
        for i, row in enumerate(simple(5)):
            theirs.write(
                {
                    "__key__": f"sample_{i:09d}",
                    "spikes.npy": row["spikes"],
                    "label.npy": np.asarray(row["label"]),
                    "note.txt": row["note"],
                    "metadata.json": json.dumps(row["metadata"], separators=(",", ":")).encode(),
                }
            )
    (shard,) = write(tmp_path / "d", simple(5))
    assert shard.read_bytes() == (tmp_path / "official.tar").read_bytes()


def test_images_and_named_extensions_reach_the_official_decoders(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    row = {"image.png": pixels, "x.npz": {"a": np.arange(3)}, "y.cls": 4, "z.json.gz": {"a": 1}, "w.pth": torch.ones(2)}
    (shard,) = write(tmp_path / "d", [row])
    dataset = wds.WebDataset(str(shard), shardshuffle=False).decode("rgb8")
    (sample,) = list(dataset)
    assert np.array_equal(sample["image.png"], pixels)
    assert same(sample["x.npz"], row["x.npz"])
    assert (sample["y.cls"], sample["z.json.gz"]) == (4, {"a": 1})
    ours = ShardReader(open_shards(tmp_path / "d")).read_samples(np.array([0]))[0]
    assert set(ours) == {"image", "x", "y", "z", "w", "metadata", "__key__"}
    assert same(ours["x"], sample["x.npz"]) and ours["z"] == {"a": 1} and int(ours["y"]) == 4
    assert np.array_equal(ours["w"], np.ones(2, "f4"))


# --- the same bytes each time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("field_format", ["npy", "pyd"])
def test_the_bytes_do_not_depend_on_when_or_where(
    tmp_path: Path, compression: Compression, field_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"compression": compression, "shard_size": 2, "field_format": field_format}
    rows = [{**row, "z.json.gz": {"a": 1}} for row in simple(5)]
    write(tmp_path / "a", rows, **options)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100_000.5)
    monkeypatch.chdir(tmp_path)
    old = os.umask(0o077)
    try:
        write("b", [dict(reversed(row.items())) for row in rows], **options)
    finally:
        os.umask(old)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@given(rows=samples(), compression=st.sampled_from(COMPRESSIONS))
def test_the_index_is_what_reading_the_tar_gives(rows: list[dict[str, Any]], compression: Compression) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for shard in write(Path(directory) / "d", rows, compression=compression, shard_size=3):
            with tempfile.TemporaryFile() as unpacked:
                unpacked.write(UNPACK[compression](shard.read_bytes()))
                unpacked.seek(0)
                again = index_tar(shard, checksum=True, unpacked=None if compression == "none" else unpacked)
            assert index_path(shard).read_bytes() == again.to_bytes()


def test_the_manifest_tells_the_truth(tmp_path: Path) -> None:
    shards = write(tmp_path / "d", simple(5), shard_size=2, modalities={"spikes": {"unit": "count"}})
    manifest = json.loads((tmp_path / "d" / MANIFEST_NAME).read_text())
    assert (manifest["total_samples"], manifest["total_shards"], manifest["shard_size"]) == (5, 3, 2)
    assert manifest["modalities"]["spikes"] == {"dtype": "float32", "shape": [10, 4], "unit": "count"}
    assert manifest["modalities"]["note"] == {"format": "txt"}
    for shard, record in zip(shards, manifest["shards"], strict=True):
        data = shard.read_bytes()
        assert record["n_bytes"] == len(data)
        assert record["sha256"] == hashlib.sha256(data).hexdigest()
    assert [record["n_samples"] for record in manifest["shards"]] == [2, 2, 1]


def test_the_manifest_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    for count in (10, 500):
        write(tmp_path / str(count), [{"x": np.zeros(1, "u1")} for _ in range(count)])
    small, large = ((tmp_path / name / MANIFEST_NAME).stat().st_size for name in ("10", "500"))
    assert large - small < 10


def test_large_samples_cross_the_write_buffer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"x": rng.integers(0, 256, size, np.uint8)} for size in (3 << 20, 1 << 20, (1 << 20) - 512, 1, 5 << 20, 0)]
    (shard,) = write(tmp_path / "d", rows)
    assert all(same(read["x.npy"], row["x"]) for read, row in zip(official(shard), rows, strict=True))
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == ShardIndex.load(index_path(shard)).sha256


@pytest.mark.parametrize("refused", ["flag", "odd pieces"])
def test_where_nothing_can_be_written_around_the_page_cache_the_bytes_are_the_same(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", simple(40), shard_size=20)
    monkeypatch.setattr(shardfile_module, "_spare_pieces", [])
    monkeypatch.setattr(shardfile_module, "_PIECE", 1001)  # what ext4 and xfs refuse, once the flag is set
    if refused == "flag":
        monkeypatch.setattr(shardfile_module.fcntl, "fcntl", Mock(side_effect=OSError(errno.EINVAL, "no")))
    write(tmp_path / "b", simple(40), shard_size=20)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_an_array_may_change_once_it_is_written(tmp_path: Path) -> None:
    array = np.zeros(100)
    with WebDatasetWriter(tmp_path / "d") as writer:
        for i in range(5):
            array[:] = i
            writer.write_sample({"x": array})
    assert [int(sample["x.npy"][0]) for sample in official(tmp_path / "d" / "shard_000000.tar")] == [0, 1, 2, 3, 4]


# --- the names of samples --------------------------------------------------------------------------------------------


def test_sample_ids(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d") as writer:
        keys = [
            writer.write_sample({"x": 1}),
            writer.write_sample({"x": 1}, sample_id=7),
            writer.write_sample({"x": 1}, sample_id="mouse/day-1"),
            writer.write_sample({"x": 1, "__key__": "own", "metadata": {"a": 1, "b": 1}}, metadata={"b": 2}),
            *writer.write_batch([{"x": 1}, {"x": 2}], ["p", "q"], {"c": 3}, show_progress=False),
        ]
    assert keys == ["sample_000000000", "sample_000000007", "mouse/day-1", "own", "p", "q"]
    read = official(tmp_path / "d" / "shard_000000.tar")
    assert [sample["__key__"] for sample in read] == keys
    assert [sample["metadata.json"] for sample in read] == [{}, {}, {}, {"a": 1, "b": 2}, {"c": 3}, {"c": 3}]


def test_create_shards_from_arrays(tmp_path: Path) -> None:
    data = {"spikes": np.arange(50, dtype="f4").reshape(5, 5, 2), "y": torch.arange(5), "name": list("abcde")}
    summary = create_shards_from_arrays(tmp_path / "d", data, 2, [{"i": i} for i in range(5)], overwrite=False)
    assert (summary["total_samples"], summary["total_shards"]) == (5, 3)
    read = official(*sorted((tmp_path / "d").glob("*.tar")))
    for i, sample in enumerate(read):
        assert same(sample["spikes.npy"], data["spikes"][i])
        assert (int(sample["y.npy"]), sample["name.txt"], sample["metadata.json"]) == (i, "abcde"[i], {"i": i})


# --- refused, and nothing half-written -------------------------------------------------------------------------------

BAD_SAMPLES: dict[str, dict[str, Any]] = {
    "dot in the key": {"x": 1, "__key__": "a.b"},
    "key that webdataset skips": {"x": 1, "__key__": "__a__"},
    "slash": {"a/b": 1},
    "capital": {"Spikes": 1},
    "underscore": {"_x": 1},
    "objects": {"x": np.array([None])},
    "two under one name": {"x.cls": 1, "x": np.zeros(2)},
    "two under one name, gz": {"x.json.gz": 1, "x": np.zeros(2)},
    "two metadata": {"metadata.npz": {"a": np.zeros(1)}},
    "metadata is a list": {"x": 1, "metadata": [1]},
    "metadata has no json": {"x": 1, "metadata": {"a": object()}},
    "duplicate key": {"x": 1, "__key__": "sample_000000000"},
    "wrong type": {"x": object()},
    "masked": {"x": np.ma.array([1, 2], mask=[1, 0])},
}


@pytest.mark.parametrize("kind", BAD_SAMPLES)
def test_a_bad_sample_is_named_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError) as caught, WebDatasetWriter(tmp_path / "d") as writer:
        writer.write_sample({"good": 1})
        writer.write_sample(BAD_SAMPLES[kind])
    assert caught.value.sample is not None
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_refused_sample_that_is_caught_leaves_the_others_as_they_were(
    tmp_path: Path, compression: Compression
) -> None:
    with WebDatasetWriter(tmp_path / "a", shard_size=2, compression=compression) as writer:
        for i in range(2):
            for bad in BAD_SAMPLES.values():
                with pytest.raises(FieldError):
                    writer.write_sample({"good": 1, "__key__": "sample_000000000", **bad} if i else {"A": 1, **bad})
            writer.write_sample({"x": i})
        with pytest.raises(FieldError):
            writer.write_sample({"X": 1})  # would be the first of another shard
    with WebDatasetWriter(tmp_path / "b", shard_size=2, compression=compression) as writer:
        writer.write_batch([{"x": 0}, {"x": 1}], show_progress=False)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    "data",
    [
        {"a": np.zeros((3, 2)), "b": np.zeros((4, 2))},
        {"a": np.zeros(3), "b": np.float32(1)},
        {"a": np.zeros(3), "B": np.zeros(3)},
        {"a": np.array([1, "a", None], object)},
        {},
    ],
)
def test_bad_arrays_leave_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FieldError) as caught:
        create_shards_from_arrays(tmp_path / "d", data)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_arrays_without_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"the data must be a dictionary .*not a ndarray"):
        create_shards_from_arrays(tmp_path / "d", np.zeros((3, 2)))  # type: ignore[arg-type]
    for bad in (np.zeros(3), [np.zeros(3)], "x"):
        with (
            pytest.raises(FieldError, match="a sample must be a dictionary"),
            WebDatasetWriter(tmp_path / "d") as writer,
        ):
            writer.write_sample(bad)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_unequal_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="2 metadata for 3"):
        create_shards_from_arrays(tmp_path / "d", {"a": np.zeros(3)}, metadata=[{}, {}])
    with pytest.raises(FieldError, match="1 sample_ids for 2"), WebDatasetWriter(tmp_path / "d") as writer:
        writer.write_batch([{"a": 1}, {"a": 2}], ["a"], show_progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"shard_size": 0},
        {"shard_size": 1.5},
        {"shard_size": True},
        {"compression": "zip"},
        {"field_format": "raw"},
        {"shard_name_pattern": "shard.tar"},
        {"shard_name_pattern": "{shard_idx:.0e}.tar"},
        {"shard_name_pattern": "{shard_idx!r:.1}.tar"},
        {"shard_name_pattern": "a/{shard_idx}.tar"},
        {"shard_name_pattern": ".{shard_idx}.tar"},
        {"shard_name_pattern": "{shard_idx}.zip"},
        {"shard_name_pattern": "{other}.tar"},
        {"shard_name_pattern": "{shard_idx.x}.tar"},
        {"shard_name_pattern": None},
        {"modalities": {"x": {"unit": object()}}},
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        WebDatasetWriter(tmp_path / "d", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    write(tmp_path / "d", simple(3))
    before = content(tmp_path / "d")
    with pytest.raises(OutputError, match="not empty") as caught:
        WebDatasetWriter(tmp_path / "d")
    assert caught.value.file == str(tmp_path / "d")
    with pytest.raises(FieldError), WebDatasetWriter(tmp_path / "d", overwrite=True) as writer:
        writer.write_sample({"X": 1})
    assert content(tmp_path / "d") == before
    write(tmp_path / "d", simple(1), overwrite=True)
    write(tmp_path / "fresh", simple(1))
    assert content(tmp_path / "d") == content(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "fresh"]


@pytest.mark.parametrize("stray", ["thesis.txt", "code/train.py", "data.npy", ".git/config", "shard_000000/x"])
@pytest.mark.parametrize("with_dataset", [False, True])
def test_what_is_no_dataset_is_never_overwritten(stray: str, with_dataset: bool, tmp_path: Path) -> None:
    if with_dataset:
        write(tmp_path / "d", simple(3))
    (tmp_path / "d" / stray).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "d" / stray).write_text("mine")
    with pytest.raises(OutputError, match=f"'{stray.split('/')[0]}.*would delete"):
        WebDatasetWriter(tmp_path / "d", overwrite=True)
    assert (tmp_path / "d" / stray).read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("output", [".", "", "..", "/"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_current_directory_is_not_replaced(
    output: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="is the current directory, or contains it|would delete it"):
        WebDatasetWriter(output, overwrite=overwrite)
    assert [*tmp_path.rglob("*")] == [tmp_path / "here"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert len(write(tmp_path / "d", simple(1))) == 1


def test_no_samples_make_an_empty_dataset(tmp_path: Path) -> None:
    write(tmp_path / "d", [])
    assert sorted(content(tmp_path / "d")) == [MANIFEST_NAME]
    assert open_shards(tmp_path / "d").n_samples == 0


def test_a_finished_writer_takes_no_more(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d") as writer:
        writer.write_sample({"x": 1})
    assert writer.finalize() == writer.summary
    with pytest.raises(OutputError, match="finished"):
        writer.write_sample({"x": 1})


def test_an_abandoned_writer_cleans_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = WebDatasetWriter(tmp_path / "d", shard_size=1)
    writer.write_sample({"x": 1})
    writer.write_sample({"x": 1})
    del writer
    assert list(tmp_path.iterdir()) == []
    assert f"{tmp_path / 'd'}: no dataset was written, because finalize() was not called" in caplog.text


def test_a_script_that_forgets_to_finish_hears_of_it(tmp_path: Path) -> None:
    code = "import sys, neurofmx_wds as n; writer = n.WebDatasetWriter(sys.argv[1]); writer.write_sample({'x': 1})"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d"], capture_output=True, text=True, check=True)
    assert "finalize() was not called" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_more_is_said_of_a_writer_that_was_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, end in enumerate(("finalize", "abort", "unused")):
        writer = WebDatasetWriter(tmp_path / str(i))
        if end != "unused":
            writer.write_sample({"x": 1})
            getattr(writer, end)()
        del writer
    assert [path.name for path in tmp_path.iterdir()] == ["0"] and not caplog.text


@pytest.mark.parametrize("compression", ["none", "gz"])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, compression: Compression) -> None:
    """The file size limit stands for a full disk: writes fail half way."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
            writer = WebDatasetWriter(tmp_path / "d", compression=compression)
            try:
                for seed in range(100):
                    noise = np.random.default_rng(seed).integers(0, 256, 300_000, np.uint8)
                    try:
                        writer.write_sample({"x": noise})
                    except OutputError as error:
                        assert error.file == str(tmp_path / "d") and error.remedy
                        break
                else:
                    os._exit(2)
                assert list(tmp_path.iterdir()) == []
                with pytest.raises(OutputError):
                    writer.finalize()
                with pytest.raises(OutputError):
                    writer.write_sample({"x": 1})
                status = 0
            finally:
                os._exit(status)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = WebDatasetWriter(tmp_path / "d")
    writer.write_sample({"x": 1})
    monkeypatch.setattr(Manifest, "save", full)
    with pytest.raises(OutputError, match="No space left.*free space") as caught:
        writer.finalize()
    assert caught.value.file == str(tmp_path / "d") and list(tmp_path.iterdir()) == []


def test_a_shard_and_its_index_are_on_the_disk_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appending, splitting and repairing rely on it: they put single shards in place."""
    synced: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino) or real(fd))
    shard = ShardFile(tmp_path, "shard_000000.tar", "none", "npy")
    shard.write({"__key__": "a", "x": 1})
    shard.close()
    files = sorted(tmp_path.iterdir())
    assert [path.suffix for path in files] == [".index", ".tar"]
    assert {path.stat().st_ino for path in files} <= synced


def test_an_interrupted_write_cannot_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook, between two parts of one sample."""
    writer = WebDatasetWriter(tmp_path / "d")
    writer.write_sample({"x": 1})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shardfile_module.IndexBuilder, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.write_sample({"x": 2})
    with pytest.raises(OutputError, match="half way"):
        writer.write_sample({"x": 3})
        writer.finalize()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=15)
@given(st.data())
def test_modalities_describe_what_differs(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as directory:
        with WebDatasetWriter(Path(directory) / "d", shard_size=2) as writer:
            for shape in shapes:
                writer.write_sample({"x": np.zeros(shape, "f4")})
        about = writer.summary["modalities"]["x"]
    assert about["dtype"] == "float32"
    if len({len(shape) for shape in shapes}) > 1:
        assert about["shape"] is None
    else:
        sizes = [set(size) for size in zip(*shapes, strict=True)]
        assert about["shape"] == [size.pop() if len(size) == 1 else None for size in sizes]
