"""What wids and DALI read our shards by: the official wids class, and DALI's published format parsed on its own."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from loading import write_dataset
from values import official

from neurofmx_wds import WebDatasetWriter
from neurofmx_wds.cli.main import main
from neurofmx_wds.errors import NeurofmxError, OutputError, ShardError
from neurofmx_wds.format.export import export


def dali_samples(index: Path, tar: Path) -> list[dict[str, tuple[str, bytes]]]:
    """What DALI takes from a shard by its index: extension → name and payload. As its documentation describes v1.2."""
    version, count, *_ = index.read_text().split("\n", 1)[0].split(" ")
    lines = index.read_text().splitlines()[1:]
    assert version == "v1.2" and int(count) == len(lines)
    data = tar.read_bytes()
    samples = []
    for line in lines:
        parts = line.split(" ")
        members = [parts[i : i + 4] for i in range(0, len(parts), 4)]
        samples.append({e: (name, data[int(at) : int(at) + int(size)]) for e, at, size, name in members})
        assert all(int(at) % 512 == 0 for _, at, _, _ in members)
    return samples


def tar_samples(path: Path) -> list[dict[str, tuple[str, bytes]]]:
    """The same, by Python's tarfile."""
    samples: list[dict[str, tuple[str, bytes]]] = []
    last = None
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if key != last:
                samples.append({})
            last = key
            samples[-1][extension] = member.name, tar.extractfile(member).read()  # type: ignore[union-attr]
    return samples


@pytest.mark.parametrize("counts", [(4, 4, 2), (1, 5, 2)], ids=["ours", "plain webdataset's"])
def test_dalis_index_tells_where_every_member_lies(counts: tuple[int, ...], tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", counts)
    written = export(directory, wids=False)
    assert [path.name for path in written] == [f"shard_{k:06d}.idx" for k in range(3)]
    for index in written:
        tar = index.with_suffix(".tar")
        assert dali_samples(index, tar) == tar_samples(tar)


@pytest.fixture
def official_wids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids cache"))
    yield pytest.importorskip("wids", reason="the wids package is not installed")


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("counts", [(4, 4, 2), (1, 5, 2)], ids=["ours", "plain webdataset's"])
def test_the_official_wids_reads_what_webdataset_reads(
    counts: tuple[int, ...], elsewhere: bool, official_wids: Any, tmp_path: Path
) -> None:
    directory = write_dataset(tmp_path / "d", counts)
    [index] = export(directory, dali=False, output_dir=tmp_path / "in" / "dexes" if elsewhere else None)
    dataset = official_wids.ShardListDataset(str(index), transformations=[])
    truth = official(*sorted(directory.glob("*.tar")), decode=False)
    assert len(dataset) == len(truth) == sum(counts)
    for i in np.random.default_rng(0).permutation(len(truth)):
        found = {name.lstrip("."): v.read() if hasattr(v, "read") else v for name, v in dataset[int(i)].items()}
        assert {name: found[name] for name in truth[i]} == truth[i]
    dataset.close()


def test_the_wids_index_lists_the_shards_of_the_manifest(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d", shard_size=3, shard_name_pattern="mouse-{shard_idx}.tar") as writer:
        for i in range(8):
            writer.write_sample({"x": i})
    shutil.copy(tmp_path / "d" / "mouse-0.tar", tmp_path / "d" / "stray.tar")
    written = export(tmp_path / "d")
    assert [path.name for path in written] == ["mouse-0.idx", "mouse-1.idx", "mouse-2.idx", "shardindex.json"]
    about = json.loads(written[-1].read_text())
    assert about["wids_version"] == 1
    sizes = [(tmp_path / "d" / f"mouse-{k}.tar").stat().st_size for k in range(3)]
    expected = [(f"mouse-{k}.tar", n, size) for k, n, size in zip(range(3), (3, 3, 2), sizes, strict=True)]
    assert [(s["url"], s["nsamples"], s["filesize"]) for s in about["shardlist"]] == expected


def plain_tar(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return path.parent


@pytest.mark.parametrize(
    ("names", "wids", "dali"),
    [
        (["k" * 99 + ".x.cls"], "long or not ASCII", None),
        (["ä.x.cls"], "long or not ASCII", None),
        (["a.x.cls", "b.x.cls", "a.x.cls"], "side by side", "side by side"),
        (["__info.json__", "a.x.cls"], "no sample's", None),
        (["a b.x.cls"], None, "space"),
        (["README", "a.x.cls", "A/b.Y.CLS"], None, None),
    ],
)
def test_what_they_would_read_wrongly_is_refused(
    names: list[str], wids: str | None, dali: str | None, tmp_path: Path
) -> None:
    directory = plain_tar(tmp_path / "d" / "shard_0.tar", names)
    for told, way in ((wids, {"dali": False}), (dali, {"wids": False})):
        if told is None:
            export(directory, **way)
            continue
        with pytest.raises(ShardError, match=told) as caught:
            export(directory, **way)
        assert any(name.endswith(caught.value.member or "?") for name in names) and caught.value.remedy
    if dali is None:
        lines = (directory / "shard_0.idx").read_text().splitlines()[1:]
        assert [line.split(" ")[3] for line in lines] == [name for name in names if "." in name and name[0] != "_"]


def test_compressed_and_damaged_shards_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    write_dataset(tmp_path / "gz", (2, 2), compression="gz")
    write_dataset(tmp_path / "cut", (2, 2))
    shard = tmp_path / "cut" / "shard_000001.tar"
    shard.write_bytes(shard.read_bytes()[:1600])
    for name, told in (("gz", "compressed"), ("cut", "cut short")):
        before = sorted(os.listdir(tmp_path / name))
        with pytest.raises(NeurofmxError, match=told) as caught:
            export(tmp_path / name)
        assert caught.value.remedy and sorted(os.listdir(tmp_path / name)) == before
    with pytest.raises(OutputError, match="cannot be written"):
        export(write_dataset(tmp_path / "d", (2,)), output_dir=shard)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_dataset(tmp_path / "d", (2, 2))
    for options, count in ((["--dali"], 2), (["--wids"], 1), ([], 3)):
        assert main(["export", str(directory), "-o", str(tmp_path / "out"), *options]) == 0
        assert f"{count} index file" in capsys.readouterr().out
    assert len(os.listdir(tmp_path / "out")) == 3
    assert main(["verify", str(directory)]) == 0
    assert main(["export", str(directory)]) == 0
    assert main(["verify", str(directory), "--deep"]) == 0
    assert [s["__key__"] for s in wds.WebDataset(str(directory / "shard_000001.tar"), shardshuffle=False)]
    assert main(["export", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
