"""Damaged and hostile datasets by every road that reads them: right data or a named error, and nothing ever runs."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import row_of, rows, write_dataset
from test_fields import HOSTILE_NPY, _hostile_pickles
from test_pickles import calls, legacy, zipped

from neurofmx_wds import (
    ResumableWebDatasetLoader,
    ShardedDatasetInfo,
    WebDatasetLoader,
    WebDatasetWriter,
    create_webdataset_dataloader,
)
from neurofmx_wds.cli.main import main
from neurofmx_wds.errors import NeurofmxError, StateError
from neurofmx_wds.format.export import export
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.verify import verify

N = 12

# --- hostile members by every road -----------------------------------------------------------------------------------


def npz_of_objects() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.array([pickle.dumps(print)], object))
    return stream.getvalue()


def hostile_members(canary: str) -> dict[str, tuple[str, bytes]]:
    """Kind → suffix and payload; all of them must be refused."""
    deep = b"[" * 10_000 + b"]" * 10_000
    found = {f"pickle, {kind}": ("x.pyd", data) for kind, data in _hostile_pickles(canary).items()}
    found |= {
        f"npy, {kind}": ("x.npy", data.replace(b"{canary}", canary.encode()[:30])) for kind, data in HOSTILE_NPY.items()
    }
    found |= {f"pth, {kind}": ("x.pth", zipped(value)) for kind, value in calls(canary).items()}
    found |= {f"legacy pth, {kind}": ("x.pth", legacy(value)) for kind, value in calls(canary).items()}
    found |= {
        "pkl": ("x.pkl", _hostile_pickles(canary)["os.system"]),
        "pickle.gz": ("x.pickle.gz", gzip.compress(_hostile_pickles(canary)["eval"])),
        "npz of objects": ("x.npz", npz_of_objects()),
        "json 10,000 deep": ("x.json", deep[:-1]),
        "metadata 10,000 deep": ("metadata.json", deep[:-1]),
        "pickled metadata": ("metadata.pyd", _hostile_pickles(canary)["eval"]),
    }
    harmless = {"npy, huge and empty", "npy, beyond int64"} | {k for k in found if "a function alone" in k}
    return {kind: each for kind, each in found.items() if kind not in harmless}


def roads(directory: Path, **options: Any) -> dict[str, Callable[[], Any]]:
    """Every way in which the package reads a dataset."""
    loader = functools.partial(create_webdataset_dataloader, directory, shuffle=False, batch_size=1, **options)
    return {
        "samples": lambda: list(WebDatasetLoader(directory, shuffle=False, **options)),
        "batches": lambda: list(loader(num_workers=0)),
        "pread": lambda: list(loader(num_workers=0, io="pread")),
        "transform": lambda: list(loader(num_workers=0, transform=dict)),
    }


@pytest.mark.parametrize("family", ["pickle", "npy", "pth", "legacy pth", "others"])
def test_hostile_members_run_nothing_by_any_road(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    members = hostile_members(str(place / "canary"))
    families = ("pickle", "npy", "pth", "legacy pth")
    kinds = {kind: kind.partition(",")[0] for kind in members}
    chosen = [
        members[kind] for kind, its in kinds.items() if its == family or (family == "others" and its not in families)
    ]
    assert len(chosen) >= 5
    directory = tmp_path / "d"
    directory.mkdir()
    shard = directory / "shard_0.tar"
    with wds.TarWriter(str(shard), encoder=False, mtime=0) as tar:
        for i, (suffix, payload) in enumerate(chosen):
            tar.write({"__key__": f"bad{i}", suffix: payload})
    found: dict[str, NeurofmxError] = {}
    for road, read in roads(directory, handler=functools.partial(_collect, found)).items():
        found.clear()
        assert read() == [], road
        assert set(found) == {f"bad{i}" for i in range(len(chosen))}, road
        for i, (suffix, _) in enumerate(chosen):
            error = found[f"bad{i}"]
            assert (error.file, error.member) == (str(shard), suffix) and error.remedy, road
    pytest.importorskip("lightning", reason="the Lightning road needs it")
    from neurofmx_wds.lightning import NeuroDataModule

    module = NeuroDataModule(test=directory, batch_size=1, num_workers=0)
    module.setup("test")
    with pytest.raises(NeurofmxError, match="bad0"):
        list(module.test_dataloader())
    with pytest.raises(NeurofmxError, match="bad0"):
        list(create_webdataset_dataloader(directory, shuffle=False, num_workers=1))
    problems = {problem.sample: problem for problem in verify(directory, deep=True).problems}
    assert set(problems) == set(found) and all(problem.remedy for problem in problems.values())
    assert verify(directory).ok
    ShardedDatasetInfo(directory).print_summary()
    assert main(["info", str(directory), "--json"]) == 0 and main(["verify", str(directory), "--deep"]) == 1
    capsys.readouterr()
    export(directory)
    assert write_indexes(directory, repair=True).problems == []
    assert os.listdir(place) == []


def _collect(found: dict[str, NeurofmxError], error: Exception) -> bool:
    if not isinstance(error, NeurofmxError) or error.sample is None:
        return False
    found[error.sample] = error
    return True


def test_members_that_lead_out_of_the_tar_are_data_of_that_name_and_devices_are_none(tmp_path: Path) -> None:
    canary = tmp_path / "x.txt"
    with tarfile.open(tmp_path / "shard_0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in [
            ("../x.txt", b"0"), (str(canary)[1:].join(["/", ""]), b"0"), ("/etc/x.txt", b"0"), ("dev", b"3"),
            ("block", b"4"), ("pipe", b"6"), ("link", b"1"), ("sym", b"2"), ("k" * 300 + ".txt", b"0"),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 4 if kind == b"0" else 0
            tar.addfile(info, io.BytesIO(b"mine") if info.size else None)
    before = sorted(os.listdir(tmp_path))
    for read in roads(tmp_path).values():
        items = [item["txt"][0] if isinstance(item["txt"], list) else item["txt"] for item in read()]
        assert items == ["mine"] * 4
    keys = [sample["__key__"] for sample in WebDatasetLoader(tmp_path, shuffle=False)]
    assert keys == ["../x", str(canary.with_suffix("")), "/etc/x", "k" * 300]
    assert verify(tmp_path, deep=True).ok
    assert sorted({*before, "shard_0.index"}) == sorted(os.listdir(tmp_path)) and not canary.exists()


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6"])
def test_members_that_are_links_out_of_the_tar_or_devices_are_named(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard_0.tar", "w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    for read in roads(tmp_path).values():
        with pytest.raises(NeurofmxError) as caught:
            read()
        assert (caught.value.file, caught.value.sample, caught.value.member) == (
            str(tmp_path / "shard_0.tar"),
            "a",
            "txt",
        )
    assert not verify(tmp_path, deep=True).ok


@pytest.mark.parametrize("content", ["pickle", "list", "huge"])
def test_a_checkpoint_that_is_none_is_named(content: str, tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", (4, 4))
    path = tmp_path / "at.json"
    payload = {"pickle": _hostile_pickles(str(tmp_path / "canary"))["eval"], "list": b"[1, 2]", "huge": b""}[content]
    path.write_bytes(payload)
    if content == "huge":
        os.truncate(path, 1 << 30)
    with pytest.raises(StateError, match=r"at\.json") as caught:
        ResumableWebDatasetLoader(directory, path)
    assert caught.value.remedy and not (tmp_path / "canary").exists()


# --- random damage ---------------------------------------------------------------------------------------------------


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, zeroed, doubled or put elsewhere."""
    a, b = sorted((chance.randrange(len(raw) + 1), chance.randrange(len(raw) + 1)))
    way = chance.choice(["flip", "cut", "zero", "double", "reorder", "blocks", "append"])
    if way == "flip":
        damaged = bytearray(raw)
        for _ in range(chance.choice([1, 1, 3, 30])):
            damaged[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    if way == "blocks" and len(raw) > 2048:  # whole blocks of a tar change places
        blocks = [raw[i : i + 512] for i in range(0, len(raw), 512)]
        i, j = chance.randrange(len(blocks)), chance.randrange(len(blocks))
        blocks[i], blocks[j] = blocks[j], blocks[i]
        return b"".join(blocks)
    parts = {
        "cut": raw[:a],
        "zero": raw[:a] + bytes(b - a) + raw[b:],
        "double": raw[:b] + raw[a:],
        "reorder": raw[b:] + raw[:b],
        "append": raw + raw[a:b],
    }
    return parts.get(way, raw[:a])


def numbers(items: Iterator[Any]) -> list[Any]:
    return [row for item in items for row in rows(item)]


@pytest.fixture(scope="module", params=["none", "gz"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole") / "d", (N // 3,) * 3, request.param)


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32), io_mode=st.sampled_from(["mmap", "pread"]), skips=st.booleans(), bare=st.booleans())
def test_damage_anywhere_gives_the_right_data_or_a_named_error(
    seed: int, io_mode: Any, skips: bool, bare: bool, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With checksums compared. With a handler that goes on: all samples but those counted, in their order."""
    chance = random.Random(seed)
    directory = tmp_path_factory.mktemp("damaged") / "d"
    shutil.copytree(whole, directory)
    for path in chance.sample(sorted(directory.iterdir()), chance.choice([1, 1, 2])):
        path.write_bytes(mutated(path.read_bytes(), chance))
    if bare:  # with nothing to compare with: whatever tar it now is
        for path in [*directory.glob("*.index"), directory / "dataset_metadata.json"]:
            path.unlink()
    loader = None
    try:
        loader = WebDatasetLoader(
            directory,
            shuffle=False,
            io=io_mode,
            checksums=not bare,
            handler=(lambda error: isinstance(error, NeurofmxError)) if skips else wds.reraise_exception,
        )
        found = list(loader) if bare else numbers(iter(loader))
    except (NeurofmxError, FileNotFoundError) as error:
        assert isinstance(error, FileNotFoundError) or error.remedy
        assert str(directory) in str(error)
    else:
        truth = [row_of(i) for i in range(N)]
        if not bare:
            assert found == [row for row in truth if row in found]  # none twice, none wrong, in order
            assert len(found) + loader.skipped == N
    report = verify(directory, deep=True)
    assert all(problem.remedy for problem in report.problems)
    if not bare and any((directory / path.name).read_bytes() != path.read_bytes() for path in whole.glob("*.tar*")):
        assert not report.ok
    shutil.rmtree(directory)


def test_each_shard_that_is_skipped_from_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = write_dataset(tmp_path / "d", (4, 4, 4))
    (directory / "shard_000000.tar").unlink()
    shard = directory / "shard_000000.tar"
    shutil.copy(directory / "shard_000001.tar", shard)  # of the right size, with other samples
    for num_workers in (0, 2):
        caplog.clear()
        loader = create_webdataset_dataloader(
            directory, shuffle=False, batch_size=2, num_workers=num_workers, handler=wds.ignore_and_continue
        )
        for epoch in range(2):
            assert numbers(iter(loader)) == [row_of(i) for i in range(4, 12)]
            assert loader.skipped == 4 * (epoch + 1)
        told = [record.getMessage() for record in caplog.records if "skipping" in record.getMessage()]
        assert len(told) == 1 and str(shard) in told[0]


MEASURE = """
import resource, sys
from neurofmx_wds import WebDatasetLoader
from neurofmx_wds.errors import NeurofmxError
from neurofmx_wds.format.verify import verify
def read(directory):
    try:
        for sample in WebDatasetLoader(directory, shuffle=False, io="pread", handler=lambda error: True):
            sample["x"].sum()
    except NeurofmxError as error:
        assert error.remedy
    verify(directory, deep=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, *damaged = sys.argv[1:]
before = read(small)  # so that all is imported
print(max(map(read, damaged)) - before)
"""


@pytest.mark.parametrize("kind", ["npy", "pyd"])
def test_reading_a_damaged_shard_takes_no_more_than_twice_its_size(kind: Any, tmp_path: Path) -> None:
    for name, n in (("whole", 40), ("small", 2)):
        with WebDatasetWriter(tmp_path / name, shard_size=n, field_format=kind) as writer:
            for i in range(n):
                writer.write_sample({"x": np.full(250_000 if name == "whole" else 10, i, "f4")})
    raw = (tmp_path / "whole" / "shard_000000.tar").read_bytes()
    ways = [
        raw,
        raw.replace(b"(250000,)", b"(999999,)"),
        raw.replace((1_000_000).to_bytes(4, "little"), b"\xff\xff\xff\x7f"),
        raw[: len(raw) // 2],
        bytes([byte ^ (i % 1009 == 0) for i, byte in enumerate(raw[:200_000])]) + raw[200_000:],
    ]
    for k, damaged in enumerate(ways):
        (tmp_path / f"{k}").mkdir()
        (tmp_path / f"{k}" / "shard_0.tar").write_bytes(damaged)
    places = [str(tmp_path / name) for name in ("small", *map(str, range(len(ways))))]
    done = subprocess.run([sys.executable, "-c", MEASURE, *places], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 2 * len(raw), int(done.stdout) / len(raw)


def test_an_index_and_a_manifest_that_lie_are_named(tmp_path: Path) -> None:
    """Past the file, backwards, at another shard, outside the directory, 10,000 deep."""
    directory = write_dataset(tmp_path / "d", (4, 4))
    manifest = directory / "dataset_metadata.json"
    text = manifest.read_text()
    lies = [
        text.replace('"shard_000001.tar"', '"shard_000000.tar"'),
        text.replace('"shard_000001.tar"', '"../d/shard_000001.tar"'),
        text.replace('"shard_000001.tar"', '"/etc/passwd"'),
        text.replace('"shard_000001.tar"', '"pipe:touch canary"'),
        json.dumps({**json.loads(text), "total_samples": 10**15}),
        text.replace('"n_samples": 4', '"n_samples": -4'),
        text.replace('"n_samples": 4', '"n_samples": 4e300'),
        '{"shards": ' + "[" * 10_000 + "]" * 10_000 + "}",
        "[]",
    ]
    for lie in lies:
        manifest.write_text(lie)
        for read in (lambda: WebDatasetLoader(directory), lambda: ShardedDatasetInfo(directory)):
            with pytest.raises(NeurofmxError) as caught:
                read()
            assert str(directory) in str(caught.value) and caught.value.remedy
        assert not verify(directory).ok
    manifest.write_text(text)
    shutil.copy(directory / "shard_000001.index", directory / "shard_000000.index")
    with pytest.raises(NeurofmxError, match=r"shard_000000\.index.*index is of 'shard_000001\.tar'"):
        list(WebDatasetLoader(directory))
