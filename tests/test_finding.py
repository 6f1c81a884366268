"""Which shards make a dataset, by whatever address; and that they are one dataset then, wherever the program moves."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from counting import lines_run
from test_shards import make, values

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetLoader, WebDatasetWriter, create_webdataset_dataloader
from neurofmx_wds.errors import ShardError, StateError
from neurofmx_wds.format.index import index_path
from neurofmx_wds.format.manifest import MANIFEST_NAME
from neurofmx_wds.format.shards import open_shards


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
    with pytest.raises(ShardError, match="No shards found") as caught:
        open_shards(tmp_path / "empty")
    assert caught.value.file == str(tmp_path / "empty") and caught.value.remedy
    d = make(tmp_path / "d")
    with pytest.raises(ShardError, match=r"No shards found: no file matches 'x\*"):
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
    with pytest.raises(ShardError, match=r"a\.npy is not a shard: convert it first"):
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
        ShardError, match=rf"no file matches 'shard_\*\.tar\*' \(foreign-0\.{ending} is there"
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


def addresses(directory: Path) -> Iterator[Any]:
    """Yield every way to name a dataset's shards, and then the same with less and less beside them."""

    def ways() -> Iterator[Any]:
        names = sorted(str(path) for path in directory.glob("*.tar"))
        yield from (directory, names, f"{directory}/shard_{{{0:06d}..{len(names) - 1:06d}}}.tar", f"{directory}/*.tar")
        yield os.path.relpath(directory)
        yield "::".join(names)

    yield from ways()
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    yield from ways()
    for path in directory.glob("*.index"):
        path.unlink()
    yield from itertools.islice(ways(), 3)  # the last two find the indexes that the first has written


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "plain webdataset's"])
@pytest.mark.parametrize("select", [None, {"i": [0, 2, 3, 5, 6]}], ids=["all", "selected"])
def test_a_state_fits_the_same_shards_by_any_address(tmp_path: Path, ours: bool, select: Any) -> None:
    directory = tmp_path / "d"
    if ours:
        make(directory)
    else:
        directory.mkdir()
        with wds.ShardWriter(str(directory / "shard_%06d.tar"), maxcount=3, verbose=0) as writer:
            for i in range(7):
                writer.write({"__key__": f"k{i}", "x.npy": np.full(4, i), "metadata.json": {"i": i}})
    states: list[dict[str, Any]] = []
    whole = None
    for address in addresses(directory):
        loader = WebDatasetLoader(address, select=select)
        delivered, state = [], None
        for sample in loader:
            delivered.append(sample["x"][0].item())
            state = loader.state_dict() if len(delivered) == 3 else state
        assert state is not None and len(json.dumps(state)) < 1024
        states.append(state)
        whole = whole or delivered
        assert delivered == whole
        for earlier in states:
            loader.load_state_dict(earlier)
            assert [sample["x"][0].item() for sample in loader] == whole[3:]


def test_other_shards_are_another_dataset(tmp_path: Path) -> None:
    a = make(tmp_path / "a")
    shutil.copytree(a, tmp_path / "copy")
    make(tmp_path / "fewer", 6)
    with WebDatasetWriter(tmp_path / "values", shard_size=3) as writer:  # of the same sizes, byte for byte
        for i in range(7):
            writer.write_sample({"x": np.full(4, i + 1)}, metadata={"i": i})
    state = WebDatasetLoader(a).state_dict()
    WebDatasetLoader(tmp_path / "copy").load_state_dict(state)
    for other in (
        {"shard_dir": tmp_path / "fewer"},
        {"shard_dir": tmp_path / "values"},
        {"shard_pattern": "*[01].tar"},
    ):
        with pytest.raises(StateError, match="another dataset"):
            WebDatasetLoader(**{"shard_dir": a, **other}).load_state_dict(state)


def test_a_state_of_one_digest_fits_as_before(tmp_path: Path) -> None:
    """As versions up to now saved it: of the checksums in the manifest, or of the sizes where there is none."""
    state = WebDatasetLoader(make(tmp_path / "d")).state_dict()
    content, sizes = state["fingerprint"][:32], state["fingerprint"][32:]
    assert content != sizes and len(sizes) == 32
    for kept in (content, sizes):
        WebDatasetLoader(tmp_path / "d").load_state_dict({**state, "fingerprint": kept})
    for other in ("", sizes + content, content[::-1], content + content, sizes[::-1], content[:16] + sizes[:16]):
        with pytest.raises(StateError, match="another dataset"):
            WebDatasetLoader(tmp_path / "d").load_state_dict({**state, "fingerprint": other})


RELATIVE = {"directory": "d", "pattern": "d/shard_*.tar", "list": [f"d/shard_00000{i}.tar" for i in range(3)]}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("address", RELATIVE.values(), ids=RELATIVE)
def test_a_relative_address_survives_a_change_of_directory(
    tmp_path: Path, num_workers: int, address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "d")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    loader = create_webdataset_dataloader(address, batch_size=2, num_workers=num_workers, shuffle=False)
    monkeypatch.chdir(tmp_path / "run")
    assert [int(x) for batch in loader for x in batch["x"][:, 0]] == list(range(7))
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("address", RELATIVE.values(), ids=RELATIVE)
def test_a_data_module_opens_relative_addresses_where_it_was_made(
    tmp_path: Path, address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = pytest.importorskip("neurofmx_wds.lightning")
    make(tmp_path / "d")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    data = modules.NeuroDataModule(train=address, val={"a": address}, batch_size=2, shuffle=False)
    monkeypatch.chdir(tmp_path / "run")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert sorted(int(x) for batch in loader for x in batch["x"][:, 0]) == list(range(7))


def test_a_relative_checkpoint_survives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "d")
    (tmp_path / "run").mkdir()
    for given in ({}, {"checkpoint_path": "mine.json"}):
        monkeypatch.chdir(tmp_path)
        loader = ResumableWebDatasetLoader("d", checkpoint_interval=2, shuffle=False, **given)
        monkeypatch.chdir(tmp_path / "run")
        delivered = [int(sample["x"][0]) for sample in itertools.islice(loader, 3)]
        monkeypatch.chdir(tmp_path)
        again = ResumableWebDatasetLoader("d", shuffle=False, **given)
        assert delivered[:2] + [int(sample["x"][0]) for sample in again] == list(range(7))
    assert os.listdir(tmp_path / "run") == []


ODD_NAMES = ["data[1]", "{a,b}", "set{0..3}", "what?", "all*", "a::b", "50%", "x y", "s3:bucket", "$WDS_X"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_paths_that_look_like_patterns_are_taken_as_they_are_if_they_exist(tmp_path: Path, name: str) -> None:
    d = make(tmp_path / name)
    for decoy in ("data1", "a", "b", "set0", "whatx", "allx"):
        if decoy != name:
            make(tmp_path / decoy, 1)
    assert values(d) == list(range(7))
    assert values(d / "shard_000001.tar") == values([d / "shard_000001.tar"]) == [3, 4, 5]
    assert values(f"{d}/shard_*.tar") == values(f"{d}/shard_{{000000..000002}}.tar") == list(range(7))
    (d / "shard_000001.tar").rename(d / f"{name}.tar")
    index_path(d / "shard_000001.tar").unlink()
    assert values(d / f"{name}.tar") == values([d / f"{name}.tar"]) == [3, 4, 5]


def test_braces_that_do_not_close_are_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"shard_\{0\.\.3\.tar: not a pattern.*check the braces"):
        open_shards(f"{tmp_path}/shard_{{0..3.tar")


def test_a_link_that_leads_nowhere_is_an_error_and_not_skipped(tmp_path: Path) -> None:
    d = make(tmp_path / "d")
    (d / MANIFEST_NAME).unlink()
    (d / "shard_000001.tar").unlink()
    (d / "shard_000001.tar").symlink_to("gone.tar")
    for keep_index in (True, False):
        if not keep_index:
            (d / "shard_000001.index").unlink()
        for address in (d, f"{d}/*.tar", [d / "shard_000001.tar"]):
            with pytest.raises((ShardError, FileNotFoundError), match=r"shard_000001\.tar"):
                values(address)
