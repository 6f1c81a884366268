"""Samples and batches by id: the three roads (samples collated, batches, the official library) lead to one place."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import webdataset as wds
from counting import some
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from loading import flip
from values import JSON, PLAIN_DTYPES, SHAPES, TEXT_DTYPES, VALUES, native_order, official, same

from neurofmx_wds import WebDatasetLoader, WebDatasetWriter, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.errors import NeurofmxError, ShardError, ShardIndexError
from neurofmx_wds.format.index import ShardIndex
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.format.verify import verify
from neurofmx_wds.integrations.webloader import open_members
from neurofmx_wds.loading import copying, open_shard
from neurofmx_wds.loading.readers import ShardReader

IOS: tuple[Literal["mmap", "pread"], ...] = ("mmap", "pread")


@st.composite
def datasets(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Samples whose fields are alike, differ in shape, are of mixed kinds, or are missing here and there."""
    count = draw(st.integers(1, 7))
    about = st.dictionaries(st.text(max_size=3), JSON, max_size=2)
    rows: list[dict[str, Any]] = [{"metadata": draw(about)} for _ in range(count)]
    alike = draw(st.lists(st.tuples(PLAIN_DTYPES | TEXT_DTYPES, SHAPES), max_size=2))
    for i, (dtype, shape) in enumerate(alike):
        for row in rows:
            row[f"alike{i}"] = draw(nps.arrays(dtype, shape))
    for i in range(draw(st.integers(0, 2))):
        dtype = draw(PLAIN_DTYPES)
        for row in rows:
            row[f"ragged{i}"] = draw(nps.arrays(dtype, SHAPES))
    for i in range(draw(st.integers(0, 2))):
        for row in rows:
            if draw(st.booleans()):
                row[f"any{i}"] = draw(VALUES)
    return rows


def same_batch(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        list(a[name]) == list(b[name]) if name in ("metadata", "__key__") else same(a[name], b[name]) for name in a
    )


@given(rows=datasets(), data=st.data(), shard_size=st.integers(1, 4))
@settings(max_examples=60)
def test_a_batch_is_its_samples_collated_is_what_the_official_library_decodes(
    rows: list[dict[str, Any]], data: st.DataObject, shard_size: int
) -> None:
    n = len(rows)
    ids = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2 * n)))
    selected = data.draw(st.none() | st.sets(st.integers(0, n - 1), min_size=1).map(sorted))
    if selected is not None:
        ids %= len(selected)
    with tempfile.TemporaryDirectory() as directory:
        with WebDatasetWriter(Path(directory) / "d", shard_size=shard_size) as writer:
            writer.write_batch(rows, show_progress=False)
        shards = open_shards(Path(directory) / "d")
        truth = official(*shards.paths)
        modalities = data.draw(
            st.none() | st.lists(st.sampled_from(sorted(writer.summary["modalities"]) or ["x"]), unique=True)
        )
        if not writer.summary["modalities"]:
            modalities = None
        for io in IOS:
            whole, reader = (
                ShardReader(shards, modalities, None if selected is None else np.array(selected), io=io, max_open=most)
                for most in (None, data.draw(st.integers(1, 3)))
            )
            batch, samples = reader.read_batch(ids), reader.read_samples(ids)
            lacking = {name: [None] * len(ids) for name in reader.fields}
            assert same_batch(batch, {**lacking, **collate_webdataset(samples)})
            assert same_batch(batch, whole.read_batch(ids))  # in parts where it is of more shards than may be open
            for sample, i in zip(samples, ids, strict=True):
                expected = truth[i if selected is None else selected[i]]
                names = {name.rpartition(".")[0] or name: name for name in expected}
                if modalities is not None:
                    names = {
                        name: there for name, there in names.items() if name in (*modalities, "metadata", "__key__")
                    }
                assert sample.keys() == names.keys()
                for name, there in names.items():
                    assert same(sample[name], native_order(expected[there])), name
        assert int(reader.counts.sum()) == (n if selected is None else len(selected))


@pytest.fixture
def ragged(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with WebDatasetWriter(tmp_path / "d", shard_size=3) as writer:
        for i in range(8):
            writer.write_sample({"x": rng.normal(size=(4, 3)), "label": i, "z": np.zeros(i % 2)}, metadata={"i": i})
    return tmp_path / "d"


@pytest.mark.parametrize("io", IOS)
def test_samples_are_writable_and_independent(ragged: Path, io: Literal["mmap", "pread"]) -> None:
    reader = ShardReader(open_shards(ragged), io=io)
    ids = np.array([1, 1, 0])
    first, twin, other = reader.read_samples(ids)
    before = {name: other[name].copy() for name in ("x", "label", "z")}
    for name in before:
        assert first[name].flags.writeable
        first[name][...] = -1
        assert not np.shares_memory(first[name], twin[name]) or not first[name].size
    again = reader.read_samples(ids)
    assert (again[0]["x"] == twin["x"]).all() and int(twin["label"]) == 1
    assert all(same(other[name], before[name]) for name in before)
    first["metadata"]["i"] = 99
    assert twin["metadata"] == {"i": 1}
    assert reader.read_batch(ids)["metadata"] == [{"i": 1}, {"i": 1}, {"i": 0}]


@pytest.mark.parametrize("io", IOS)
def test_what_is_held_is_never_written_over(ragged: Path, io: Literal["mmap", "pread"]) -> None:
    """Batch memory is used again: but not before its last view is gone."""
    reader = ShardReader(open_shards(ragged), io=io)
    rng = np.random.default_rng(1)
    held: list[tuple[np.ndarray, Any, np.ndarray]] = []
    truth = np.stack([sample["x"] for sample in reader.read_samples(np.arange(8))])
    for round_ in range(60):
        ids = rng.integers(0, 8, 3)
        batch = reader.read_batch(ids)
        view: Any = [batch["x"], batch["x"].numpy(), batch["x"][1:], reader.read_samples(ids), batch["x"].numpy()[::2]]
        held.append((ids, view[round_ % 5], truth[ids]))
        del batch, view
        for _, kept, expected in held[-10:]:
            if isinstance(kept, list):
                assert all(same(sample["x"], row) for sample, row in zip(kept, expected, strict=True))
                continue
            rows = {3: slice(None)}.get(len(kept), slice(1, None))
            rows = slice(None, None, 2) if len(kept) == 2 and isinstance(kept, np.ndarray) else rows
            assert np.array_equal(np.asarray(kept), expected[rows])


def test_a_reader_crosses_to_another_process(ragged: Path) -> None:
    reader = ShardReader(open_shards(ragged))
    expected = reader.read_batch(np.arange(8))
    assert same_batch(pickle.loads(pickle.dumps(reader)).read_batch(np.arange(8)), expected)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if same_batch(reader.read_batch(np.arange(8)), expected) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_shard_that_shrinks_while_it_is_open(ragged: Path) -> None:
    reader = ShardReader(open_shards(ragged), io="pread")
    reader.read_batch(np.arange(3))
    path = ragged / "shard_000000.tar"
    os.truncate(path, 700)
    with pytest.raises(ShardError) as caught:
        reader.read_batch(np.arange(3))
    assert caught.value.file == str(path) and caught.value.remedy


@pytest.mark.parametrize("io", IOS)
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "empty"])
def test_a_shard_that_is_not_what_it_was(ragged: Path, io: Literal["mmap", "pread"], damage: str) -> None:
    shards = open_shards(ragged)
    path = ragged / "shard_000001.tar"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-512], "longer": data + bytes(512), "empty": b""}[damage])
    reader = ShardReader(shards, io=io)
    assert reader.read_batch(np.array([0]))["label"].tolist() == [0]
    with pytest.raises(ShardError) as caught:
        reader.read_batch(np.array([4]))
    assert caught.value.file == str(path) and caught.value.remedy


@pytest.mark.parametrize("io", IOS)
def test_a_damaged_payload_names_its_sample(tmp_path: Path, io: Literal["mmap", "pread"]) -> None:
    with WebDatasetWriter(tmp_path / "d", field_format="pyd") as writer:
        for i in range(3):
            writer.write_sample({"x": np.full(4, i), "y": {"i": i}})
    path = tmp_path / "d" / "shard_000000.tar"
    data = path.read_bytes()
    for old, new, member in ((b'"i":1', b'"i" 1', "y.json"), (b"_reconstruct", b"_deconstruct", "x.pyd")):
        assert old in data
        at = data.rindex(old) if member == "x.pyd" else data.index(old)
        path.write_bytes(data[:at] + new + data[at + len(old) :])
        reader = ShardReader(open_shards(tmp_path / "d"), io=io)
        bad = 2 if member == "x.pyd" else 1
        for read in (reader.read_batch, reader.read_samples):
            with pytest.raises(ShardError) as caught:
                read(np.arange(3))
            error = caught.value
            assert (error.file, error.sample, error.member) == (str(path), f"sample_{bad:09d}", member)
            assert error.remedy


def test_unknown_modalities_and_io_are_refused(ragged: Path) -> None:
    with pytest.raises(ValueError, match=r"spiks.*label, x, z"):
        ShardReader(open_shards(ragged), ["spiks"])
    for wrong in (["lable"], "lable"):
        with pytest.raises(ValueError, match=r"no field lable .*did you mean label\? there are label, x, z"):
            create_webdataset_dataloader(ragged, num_workers=0, modalities=wrong)
    with pytest.raises(ValueError, match="io must be"):
        ShardReader(open_shards(ragged), io="fast")  # type: ignore[arg-type]
    (ragged / "dataset_metadata.json").unlink()
    with pytest.raises(ValueError, match="spiks"):
        ShardReader(open_shards(ragged), ["spiks"])


def test_only_the_modalities_asked_for_are_touched(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d") as writer:
        writer.write_sample({"x": np.arange(3), "y": {"a": 1}})
    path = tmp_path / "d" / "shard_000000.tar"
    path.write_bytes(path.read_bytes().replace(b'{"a":1}', b"{rubbi}"))
    for modalities in (["x"], "x"):
        batch = ShardReader(open_shards(tmp_path / "d"), modalities).read_batch(np.array([0]))
        assert batch.keys() == {"x", "metadata", "__key__"} and batch["x"].tolist() == [[0, 1, 2]]
    with pytest.raises(NeurofmxError):
        ShardReader(open_shards(tmp_path / "d")).read_batch(np.array([0]))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """16 samples in 4 shards: `y` in those of the second shard and in 13, `z` in two shapes; `w` is only spoken of."""
    with WebDatasetWriter(tmp_path / "d", shard_size=4, modalities={"w": {"unit": "V"}}) as writer:
        for i in range(16):
            here = {"y": np.full(2, i, "float32")} if i // 4 == 1 or i == 13 else {}
            writer.write_sample({"x": np.full(3, i), "z": np.zeros(1 + i % 2), **here}, metadata={"i": i})
    return tmp_path / "d"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("pad", [{}, {"collate_fn": functools.partial(collate_webdataset, pad_value=0)}])
@pytest.mark.parametrize(
    ("modalities", "names"), [(None, {"x", "y", "z"}), (["x", "y", "metadata"], {"x", "y"}), ("y", {"y"})]
)
def test_a_field_that_a_whole_batch_lacks_is_there(
    mixed: Path, modalities: Any, names: set[str], pad: dict[str, Any], num_workers: int
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers, "modalities": modalities, **pad}
    for shuffle in (False, True):
        for batch in some(create_webdataset_dataloader(mixed, shuffle=shuffle, **options)):
            numbers = [about["i"] for about in batch["metadata"]]
            assert {name for name in batch if not name.endswith("_lengths")} == {*names, "metadata", "__key__"}
            values = [None if i // 4 != 1 and i != 13 else [i, i] for i in numbers]
            assert isinstance(batch["y"], list) == (None in values)
            assert [None if value is None else value.tolist() for value in batch["y"]] == values
    few = create_webdataset_dataloader(mixed, select={"i": [0, 1]}, batch_transform=dict, **options)
    assert next(iter(few))["y"] == [None, None]


def test_samples_have_no_field_that_they_lack(mixed: Path) -> None:
    """Nor has a batch made of them by the user's functions any that these do not give it."""
    reader = ShardReader(open_shards(mixed))
    assert ["y" in sample for sample in reader.read_samples(np.arange(12, 16))] == [False, True, False, False]
    options: dict[str, Any] = {"num_workers": 0, "shuffle": False, "batch_size": 4}
    first = next(iter(create_webdataset_dataloader(mixed, transform=dict, **options)))
    assert first.keys() == {"x", "z", "metadata", "__key__"}
    (mixed / "dataset_metadata.json").unlink()
    assert next(iter(create_webdataset_dataloader(mixed, **options))).keys() == first.keys()
    assert next(iter(create_webdataset_dataloader(mixed, modalities="y", **options)))["y"] == [None] * 4


def test_a_name_that_several_columns_share_is_not_lacking(tmp_path: Path) -> None:
    """A manifest tells of `x`, where the samples have `x.json` and `x.npy`."""
    (tmp_path / "foreign").mkdir()
    with wds.TarWriter(str(tmp_path / "foreign" / "shard_0.tar")) as tar:
        tar.write({"__key__": "k", "x.json": {"a": 1}, "x.npy": np.zeros(2)})
    assert [*merge([tmp_path / "foreign"], tmp_path / "d")["modalities"]] == ["x"]
    for modalities in (None, "x"):
        batch = ShardReader(open_shards(tmp_path / "d"), modalities).read_batch(np.array([0]))
        assert "x" not in batch and ("x.npy" in batch) == (modalities is None)


def test_few_open_shards_serve_many(ragged: Path) -> None:
    reader = ShardReader(open_shards(ragged), io="pread", max_open=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert reader.read_batch(np.arange(8))["label"].tolist() == list(range(8))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_an_old_dataset_stays_readable_while_it_is_replaced(ragged: Path) -> None:
    reader = ShardReader(open_shards(ragged))
    before = reader.read_batch(np.arange(8))
    with WebDatasetWriter(ragged, overwrite=True) as writer:
        writer.write_sample({"other": 1})
    assert same_batch(reader.read_batch(np.arange(8)), before)
    assert open_shards(ragged).n_samples == 1


@pytest.mark.parametrize("compression", ["none", "gz"])
def test_a_shard_that_was_replaced_is_not_opened_again(tmp_path: Path, compression: Any) -> None:
    """Another of the same size and names would pass for it: the old data, or an error."""
    for name, plus in (("d", 0), ("other", 100)):
        with WebDatasetWriter(tmp_path / name, shard_size=2, compression=compression) as writer:
            for i in range(4):
                writer.write_sample({"x": np.full(3, i + plus, "u1")})
    shards = open_shards(tmp_path / "d")
    reader = ShardReader(shards, max_open=1)
    first = {int(i): reader.read_batch(np.array([i]))["x"].tolist() for i in (0, 2)}  # the first is closed again
    names = [path.name for path in shards.paths]
    os.replace(tmp_path / "other" / names[0], tmp_path / "d" / names[0])
    assert reader.read_batch(np.array([2]))["x"].tolist() == first[2]
    with pytest.raises(ShardError, match="replaced") as caught:
        reader.read_batch(np.array([0]))
    assert caught.value.file == str(shards.paths[0]) and caught.value.remedy


@pytest.mark.parametrize("io", IOS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_byte_is_an_error_that_names_its_member(
    ragged: Path, io: Literal["mmap", "pread"], data: st.DataObject
) -> None:
    shards = open_shards(ragged)
    shard = data.draw(st.integers(0, len(shards.paths) - 1))
    index, path = shards.index(shard), shards.paths[shard]
    member = data.draw(st.integers(0, len(index.member_size) - 1).filter(lambda m: index.member_size[m] > 0))
    row = int(np.searchsorted(index.sample_start, member, side="right")) - 1
    suffix = index.suffixes[index.member_suffix[member]]
    ids = np.arange(shards.n_samples)
    bad = int(shards.counts[:shard].sum()) + row
    truth = {int(i): ShardReader(shards).read_batch(ids[i : i + 1]) for i in ids}
    place = int(index.member_offset[member]) + data.draw(st.integers(0, int(index.member_size[member]) - 1))
    bit = data.draw(st.integers(0, 7))
    flip(path, place, bit)
    try:
        reader = ShardReader(open_shards(ragged), io=io)
        order = data.draw(st.permutations(ids.tolist()))
        for _ in range(2):  # it stays an error, and the others stay right
            for i in order:
                if i == bad and suffix != "metadata.json":  # whose text is in the index too
                    with pytest.raises(ShardError, match="checksum differs") as caught:
                        reader.read_batch(ids[i : i + 1])
                    where = caught.value.file, caught.value.sample, caught.value.member
                    assert where == (str(path), index.sample_keys[row], suffix) and caught.value.remedy
                else:
                    assert same_batch(reader.read_batch(ids[i : i + 1]), truth[i])
        problems = verify(ragged, deep=True).problems
        assert (str(path), index.sample_keys[row], suffix) in [(p.file, p.sample, p.member) for p in problems]
    finally:
        flip(path, place, bit)


@pytest.mark.parametrize("io", IOS)
def test_plain_arrays_are_compared_once_in_a_process(
    ragged: Path, io: Literal["mmap", "pread"], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def counted(*args: Any) -> list[int]:
        compared.extend(args[1])
        return access.copy_and_sum(*args)

    access = copying.MAPPED if io == "mmap" else copying.PREAD
    monkeypatch.setattr(open_shard, "MAPPED" if io == "mmap" else "PREAD", access._replace(copy_and_sum=counted))
    ids = np.arange(8)
    reader = ShardReader(open_shards(ragged), ["x"], io=io, max_open=1)
    for _ in range(3):
        for part in (ids[:5], ids[5:], ids[3:]):
            reader.read_batch(part)
    assert len(compared) == len(ids)
    ShardReader(open_shards(ragged), ["x"], io=io, checksums=False).read_batch(ids)
    assert len(compared) == len(ids)


def test_workers_compare_what_no_other_has_compared(ragged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the next epoch, too."""
    compared = multiprocessing.Value("i", 0)

    def counted(*args: Any) -> list[int]:
        with compared.get_lock():
            compared.value += len(args[1])
        return copying.copy_mapped_and_sum(*args)

    monkeypatch.setattr(open_shard, "MAPPED", copying.MAPPED._replace(copy_and_sum=counted))
    loader = create_webdataset_dataloader(
        ragged, batch_size=2, num_workers=2, modalities=["x"], multiprocessing_context="fork"
    )
    for _ in range(3):
        assert sum(len(batch["x"]) for batch in loader) == 8
        assert compared.value == 8


def test_another_process_compares_again(ragged: Path) -> None:
    path = ragged / "shard_000001.tar"
    reader = ShardReader(open_shards(ragged))
    place = int(reader.shards.index(1).columns["x"].offset[0])
    reader.read_batch(np.arange(8))
    before = path.stat()
    flip(path, place)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as when a disk fails
    with pytest.raises(ShardError, match="checksum differs"):
        pickle.loads(pickle.dumps(reader)).read_batch(np.arange(8))


def test_webdatasets_members_are_compared_as_asked(ragged: Path) -> None:
    column = open_shards(ragged).index(1).columns["label"]
    flip(ragged / "shard_000001.tar", int(column.offset[0] + column.size[0] - 8))
    for checksums in (None, True):
        with pytest.raises(ShardError, match="checksum differs"):
            list(open_members(ragged, "shard_00000[01].tar", ["label.npy"], {"checksums": checksums}))
    label = open_members(ragged, "shard_00000[01].tar", ["label.npy"], {"checksums": False})
    assert [int(value) for (value,) in label] == [0, 1, 2, 3 ^ 1, 4, 5]


def test_a_read_may_give_less_than_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WebDatasetWriter(tmp_path) as writer:
        writer.write_sample({"x": np.arange(1000)})
    some = 1000  # the system gives less than 2 GiB at once
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, size, at: pread(file, min(size, some), at))
    monkeypatch.setattr(os, "preadv", lambda file, rows, at: preadv(file, [rows[0][:some]], at))
    batch = ShardReader(open_shards(tmp_path), io="pread").read_batch(np.array([0]))
    assert batch["x"].tolist() == [list(range(1000))]


def test_two_threads_may_compare_the_last_sample_of_a_shard(ragged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2)

    def together(*args: Any) -> list[int]:
        found = copying.copy_mapped_and_sum(*args)
        both.wait(10)
        return found

    monkeypatch.setattr(open_shard, "MAPPED", copying.MAPPED._replace(copy_and_sum=together))
    reader = ShardReader(open_shards(ragged), ["x"])
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(reader.read_batch, [np.arange(3), np.arange(3)])
    assert same_batch(first, second)


def test_an_unpacked_copy_that_has_changed_is_named(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d", compression="gz") as writer:
        for i in range(3):
            writer.write_sample({"x": np.arange(3) + i})
    shards = open_shards(tmp_path / "d", cache_dir=tmp_path / "cache")
    ShardReader(shards).read_batch(np.arange(3))
    [copy] = (tmp_path / "cache").iterdir()
    flip(copy, int(shards.index(0).columns["x"].offset[1]))
    with pytest.raises(ShardError, match="checksum differs") as caught:
        ShardReader(shards).read_batch(np.arange(3))
    assert caught.value.file == str(shards.paths[0]) and str(copy) in str(caught.value.remedy)
    copy.unlink()
    assert ShardReader(shards).read_batch(np.arange(3))["x"][:, 0].tolist() == [0, 1, 2]


def test_an_index_made_in_passing_agrees_with_the_manifest(ragged: Path) -> None:
    path = ragged / "shard_000001.index"
    whole, place = path.read_bytes(), int(ShardIndex.load(path).columns["x"].offset[0])
    path.unlink()
    reader = ShardReader(open_shards(ragged))
    reader.read_batch(np.arange(8))
    assert path.read_bytes() == whole
    path.unlink()
    flip(ragged / "shard_000001.tar", place)
    for _ in range(2):  # with the index that is there now, too
        with pytest.raises(ShardIndexError, match="different checksums"):
            ShardReader(open_shards(ragged)).read_batch(np.arange(8))


def test_checksums_that_are_asked_for_must_be_known(ragged: Path) -> None:
    (ragged / "dataset_metadata.json").unlink()
    with wds.TarWriter(str(ragged / "shard_000003.tar")) as tar:
        tar.write({"__key__": "a", "x.npy": np.zeros(3)})
    assert len(list(WebDatasetLoader(ragged, modalities=["x"]))) == open_shards(ragged).n_samples
    with pytest.raises(ShardError, match="no checksums") as caught:
        list(WebDatasetLoader(ragged, checksums=True))
    assert caught.value.file == str(ragged / "shard_000003.tar") and "index" in str(caught.value.remedy)
    assert write_indexes(ragged).made == ["shard_000003.index"]  # the one made in passing has none
    assert len(list(WebDatasetLoader(ragged, checksums=True))) == open_shards(ragged).n_samples


def test_what_numpy_has_no_dtype_for_stays_a_tensor(tmp_path: Path) -> None:
    def shorter(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "x": sample["x"][: int(sample["x"][0])]}

    with WebDatasetWriter(tmp_path / "d") as writer:
        for i in range(4):
            x = torch.full((3,), i, dtype=torch.bfloat16)
            writer.write_sample({"x.pth": x, "label.pth": x[:2], "y.pth": torch.ones(2 + i % 2).requires_grad_()})
    for i, sample in enumerate(WebDatasetLoader(tmp_path / "d", shuffle=False, target_transform=lambda label: label)):
        assert torch.equal(sample["x"], torch.full((3,), i, dtype=torch.bfloat16))
        assert torch.equal(sample["label"], sample["x"][:2]) and sample["y"].tolist() == [1.0] * (2 + i % 2)
        sample["x"] += 1
    for num_workers in (0, 1):
        loader = create_webdataset_dataloader(tmp_path / "d", shuffle=False, num_workers=num_workers, transform=shorter)
        assert [x.tolist() for x in next(iter(loader))["x"]] == [[], [1], [2, 2], [3, 3, 3]]


def test_byte_orders_of_shards_do_not_tell_batches_apart(tmp_path: Path) -> None:
    for shard, dtype in enumerate(("<f4", ">f4")):
        with wds.TarWriter(str(tmp_path / f"shard_{shard}.tar")) as tar:
            for i in range(3):
                tar.write({"__key__": f"{shard}{i}", "x.npy": np.asfortranarray(np.full((3, 2), 3 * shard + i, dtype))})
    for num_workers in (0, 1):
        loader = create_webdataset_dataloader(tmp_path, batch_size=2, num_workers=num_workers, shuffle=False)
        for n, batch in some(enumerate(loader)):
            assert batch["x"].is_contiguous() and batch["x"][:, 0, 0].tolist() == [2 * n, 2 * n + 1]


def test_a_batch_is_a_torch_batch(ragged: Path) -> None:
    batch = ShardReader(open_shards(ragged)).read_batch(np.array([7, 0, 3]))
    assert batch["x"].shape == (3, 4, 3) and batch["x"].dtype == torch.float64
    assert batch["__key__"] == ["sample_000000007", "sample_000000000", "sample_000000003"]
    assert isinstance(batch["z"], list)
    shutil.rmtree(ragged)
