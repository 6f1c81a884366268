"""Datasets that grow: append (old or new at every instruction), merge (no tar written again), dry runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from conversions import contents, kill_at_step, make_npz, samples_of
from recordings import make_recording

from neurofmx_wds import create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert import append as append_module
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, ShardConfig
from neurofmx_wds.convert.estimate import estimate
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.plan import ConversionPlan
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import ManifestError, OutputError, ShardError, SourceError
from neurofmx_wds.format.verify import verify

UNITS = SourceConfig.of(sequence_length=20)


def labels_of(directory: Path) -> list[int]:
    return [int(sample["label.npy"]) for sample in samples_of(directory)]


# --- append ---------------------------------------------------------------------------------------------------------


def test_appended_recordings_come_behind_those_that_are_there(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(inputs[:1], Output(out, shard_size=3))
    before = {p.name: (p.read_bytes(), p.stat().st_ino) for p in out.glob("shard*")}
    added = append([*inputs, tmp_path / "missing.npz"], Output(out, shard_size=3))
    assert [Path(error.file or "").name for error in added.plan.failures] == ["missing.npz"]
    assert before == {name: ((out / name).read_bytes(), (out / name).stat().st_ino) for name in before}
    assert labels_of(out) == [1000 * i + j for i, n in enumerate([7, 1, 12]) for j in range(n)]
    assert [s["__key__"] for s in samples_of(out)] == [f"sample_{k:09d}" for k in range(20)]
    assert [s["n_samples"] for s in added.summary["shards"]] == [3, 3, 1, 3, 3, 3, 3, 1]
    assert json.loads((out / "dataset_metadata.json").read_bytes()) == added.summary
    assert verify(out, deep=True).problems == []
    assert not (tmp_path / ".out.partial").exists()
    (tmp_path / "missing.npz").write_bytes(inputs[0].read_bytes())  # the same bytes by another name
    state = contents(out)
    assert append([*inputs, tmp_path / "missing.npz"], Output(out, shard_size=3)).plan.n_samples == 0
    assert contents(out) == state


def test_append_refuses_what_would_not_belong(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="no dataset to append to"):
        append(inputs, Output(out))
    convert(inputs[:1], Output(out, shard_size=3))
    state = contents(out)
    with pytest.raises(OutputError, match="overlap was 0.5 and is 0.25 now; shard_size was 3 and is 4 now"):
        append(inputs, Output(out, shard_size=4), SourceConfig.of(overlap=0.25))
    (out / "shard_000003.tar").write_bytes(b"not ours")
    with pytest.raises(OutputError, match=r"shard_000003\.tar"):
        append(inputs[1:], Output(out, shard_size=3))
    (out / "shard_000003.tar").unlink()
    make_npz(inputs[0], 2, seed=8)
    with pytest.raises(SourceError, match="recording of this name with other content"):
        append(inputs[:1], Output(out, shard_size=3))
    assert contents(out) == state


def test_what_recordings_differ_in_is_said_of_each(tmp_path: Path) -> None:
    for i, (units, rate) in enumerate([(3, 50.0), (3, 0), (5, 50.0)]):
        make_recording(tmp_path / f"{i}.nwb", n_units=units, seed=i, behavior_rate=rate, seconds=3)
    paths = sorted(tmp_path.glob("*.nwb"))
    at_once = convert(paths, Output(tmp_path / "at_once"), UNITS).summary
    convert(paths[:1], Output(tmp_path / "grown"), UNITS)
    append(paths[1:2], Output(tmp_path / "grown"), UNITS)
    grown = append(paths[2:], Output(tmp_path / "grown"), UNITS).summary
    assert grown["modalities"] == at_once["modalities"]
    assert grown["sources"] == at_once["sources"]
    assert grown["config"] == at_once["config"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_a_reader_sees_the_old_dataset_or_the_new(
    stride: int, inputs: list[Path], tmp_path: Path
) -> None:
    out, base = tmp_path / "out", tmp_path / "base"
    convert(inputs[:1], Output(base, shard_size=3))
    shutil.copytree(base, tmp_path / "good")
    append(inputs[1:], Output(tmp_path / "good", shard_size=3))
    old, new = (json.loads((d / "dataset_metadata.json").read_bytes()) for d in (base, tmp_path / "good"))

    def work() -> None:
        append(inputs[1:], Output(out, shard_size=3))

    seen = set()
    for n in itertools.count(0, stride):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
        shutil.copytree(base, out)
        status = kill_at_step(n, work)
        assert status in (0, 9)
        now = json.loads((out / "dataset_metadata.json").read_bytes())
        assert now in (old, new)
        seen.add(now["total_samples"])
        listed = [out / shard["shard_name"] for shard in now["shards"]]
        assert sum(1 for _ in wds.WebDataset([str(p) for p in listed], shardshuffle=False)) == now["total_samples"]
        if status == 0:
            break
        work()
        assert contents(out) == contents(tmp_path / "good")
        assert not (tmp_path / ".out.partial").exists()
    assert seen == {7, 20} and n > 60


def test_a_killed_append_leaves_nothing_to_another_one(inputs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(inputs[:1], Output(out, shard_size=3))
    kept = contents(out)
    with pytest.MonkeyPatch.context() as patch:

        def killed(source: Any, target: Any) -> None:
            if str(target).endswith("shard_000005.tar"):
                raise KeyboardInterrupt
            rename(source, target)

        rename = os.rename
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            append(inputs[1:], Output(out, shard_size=3))
    assert (out / "shard_000004.tar").exists()
    assert json.loads((out / "dataset_metadata.json").read_bytes())["total_samples"] == 7
    append(inputs[2:], Output(out, shard_size=3))
    assert labels_of(out) == [*range(7), *range(2000, 2012)]
    assert verify(out, deep=True).problems == []
    assert kept.keys() < contents(out).keys()


def test_a_recording_that_changed_since_a_killed_append_is_taken_as_it_is(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    convert(inputs[:1], Output(out, shard_size=3))
    with monkeypatch.context() as patch:
        patch.setattr(append_module, "_put_in", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            append(inputs[1:], Output(out, shard_size=3))
    make_npz(inputs[1], 4, 7)
    append(inputs[1:], Output(out, shard_size=3))
    convert(inputs[:1], Output(tmp_path / "fresh", shard_size=3))
    append(inputs[1:], Output(tmp_path / "fresh", shard_size=3))
    assert contents(out) == contents(tmp_path / "fresh")
    assert not (tmp_path / ".out.partial").exists()


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


# --- merge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["link", "copy"])
@pytest.mark.parametrize("compression", ["none", "gz"])
def test_merged_datasets_keep_their_tars(how: Any, compression: Any, inputs: list[Path], tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, path in zip(parts, inputs, strict=False):
        convert([path], Output(part, shard_size=3, compression=compression, key_prefix=f"{part.name}_"))
    summary = merge(parts, tmp_path / "both", how=how)
    tars = [path for part in parts for path in sorted(part.glob("*.tar*"))]
    merged = sorted((tmp_path / "both").glob("*.tar*"))
    assert [p.read_bytes() for p in merged] == [p.read_bytes() for p in tars]
    assert all(p.samefile(q) == (how == "link") for p, q in zip(merged, tars, strict=True))
    assert summary["total_samples"] == 8 and [s["path"] for s in summary["sources"]] == ["a.npz", "b.npz"]
    assert verify(tmp_path / "both", deep=True).problems == []
    loader = create_webdataset_dataloader(tmp_path / "both", batch_size=4, num_workers=0, shuffle=False)
    assert [x for batch in loader for x in batch["label"].tolist()] == [*range(7), *range(1000, 1001)]
    with pytest.raises(OutputError, match="merged"):
        append(inputs[2:], Output(tmp_path / "both", shard_size=3, compression=compression))


def test_merge_refuses_keys_that_repeat_and_fields_that_differ(inputs: list[Path], tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        convert(inputs[i : i + 1], Output(tmp_path / name, shard_size=3))
    convert(inputs[2:], Output(tmp_path / "c", shard_size=3, key_prefix="c_"))
    with pytest.raises(ShardError, match=r"key 'sample_000000000' is in \S+/a and in \S+/b .*--repeat-keys"):
        merge([tmp_path / "a", tmp_path / "c", tmp_path / "b"], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    arrays = {"spikes": np.zeros((3, 4, 5), "float32"), "label": np.arange(3)}
    others: list[tuple[dict[str, Any], str]] = [
        ({"spikes": arrays["spikes"]}, "label is only in"),
        ({**arrays, "spikes": np.zeros((3, 4, 5))}, "spikes's dtype is 'float64', not 'float32'"),
        ({**arrays, "spikes": np.zeros((3, 4), "float32")}, "spikes's number of dimensions is 1, not 2"),
    ]
    for i, (other, pattern) in enumerate(others):
        create_shards_from_arrays(tmp_path / f"other{i}", other)
        with pytest.raises(ManifestError, match=pattern):
            merge([tmp_path / "a", tmp_path / f"other{i}"], tmp_path / "both", repeat_keys=True)
    create_shards_from_arrays(tmp_path / "wide", {**arrays, "spikes": np.zeros((3, 4, 9), "float32")})
    summary = merge([tmp_path / "a", tmp_path / "wide"], tmp_path / "both", repeat_keys=True)
    assert summary["modalities"]["spikes"]["shape"] == [4, None]
    assert len(samples_of(tmp_path / "both")) == 10
    with pytest.raises(ManifestError, match="compression"):
        create_shards_from_arrays(tmp_path / "packed", arrays, compression="gz")
        merge([tmp_path / "a", tmp_path / "packed"], tmp_path / "another", repeat_keys=True)


def test_merge_takes_plain_webdataset_shards(tmp_path: Path) -> None:
    for part in ("x", "y"):
        (tmp_path / part).mkdir()
        with wds.ShardWriter(str(tmp_path / part / "data-%03d.tar"), maxcount=3, verbose=0) as writer:
            for i in range(5):
                writer.write({"__key__": f"{part}{i}", "v.npy": np.full(2, i, "float32")})
    summary = merge([tmp_path / "x", tmp_path / "y"], tmp_path / "both", how="copy")
    assert summary["total_samples"] == 10 and summary["modalities"] == {"v": {"dtype": "float32", "shape": [2]}}
    assert [s["__key__"] for s in samples_of(tmp_path / "both")] == [f"{part}{i}" for part in "xy" for i in range(5)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_step_a_merge_is_there_or_not(inputs: list[Path], tmp_path: Path) -> None:
    out, parts = tmp_path / "out", [tmp_path / "a", tmp_path / "b"]
    for part, path in zip(parts, inputs, strict=False):
        convert([path], Output(part, shard_size=3, key_prefix=f"{part.name}_"))
    good = merge(parts, tmp_path / "good")
    for n in itertools.count(0, 7):
        shutil.rmtree(out, ignore_errors=True)
        status = kill_at_step(n, lambda: merge(parts, out))
        assert status in (0, 9)
        if out.exists():
            assert contents(out) == contents(tmp_path / "good")
        else:
            assert merge(parts, out) == good
        if status == 0:
            break
    assert n > 30


# --- dry run --------------------------------------------------------------------------------------------------------


def test_an_estimate_is_what_the_conversion_then_takes(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=6, behavior_rate=40.0, lfp_channels=2)
    make_npz(tmp_path / "b.npz", 9, packed=True)
    paths = [tmp_path / "a.nwb", tmp_path / "b.npz"]
    found = estimate(ConversionPlan(look_at(paths, UNITS), UNITS, ShardConfig(shard_size=10)))
    conversion = convert(paths, Output(tmp_path / "out", shard_size=10), UNITS)
    sizes = [
        sum(t.offset_data + t.size for t in [tar.getmembers()[-1]])
        for tar in map(tarfile.open, sorted((tmp_path / "out").glob("*.tar")))
    ]
    assert (found.n_samples, found.n_shards) == (conversion.plan.n_samples, len(sizes))
    true = sum(shard["n_bytes"] for shard in conversion.summary["shards"])
    assert true <= found.n_bytes <= 1.2 * true
    assert [n for _, n, _ in found.sources] == [
        source["windows"]["emitted"] for source in conversion.summary["sources"]
    ]


def test_the_commands(inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, files = str(tmp_path / "out"), [str(path) for path in inputs]
    assert main(["convert", "-i", *files[:2], "-o", out, "--dry-run"]) == 0
    assert "8 windows" in capsys.readouterr().out and not Path(out).exists()
    assert main(["convert", "-i", *files, files[0] + "x", "-o", out, "--dry-run"]) == 1
    assert main(["convert", "-i", files[0], "-o", out, "--validate"]) == 0
    assert main(["convert", "-i", *files[1:], "-o", out, "--append", "--validate"]) == 0
    told = capsys.readouterr().out
    assert "validated" in told and "nothing was added" not in told and len(samples_of(Path(out))) == 20
    assert main(["convert", "-i", files[1], "-o", out, "--append"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"nothing was added: {out} has all of it already"
    assert main(["merge", out, out, "-o", str(tmp_path / "twice")]) == 1
    assert "--repeat-keys" in capsys.readouterr().err
    assert main(["merge", out, out, "-o", str(tmp_path / "twice"), "--repeat-keys", "--copy"]) == 0
    assert len(samples_of(tmp_path / "twice")) == 40
    split = ["--split", "train=0.6,val=0.4", "--split-by", "session", "--validate"]
    assert main(["convert", "-i", *files, "-o", str(tmp_path / "sets"), *split, "--dry-run"]) == 0
    assert main(["convert", "-i", *files, "-o", str(tmp_path / "sets"), *split]) == 0
    assert sorted(p.name for p in (tmp_path / "sets").iterdir()) == ["train", "val"]
    for wrong in (
        ["--split", "train=2,val=1"],
        ["--split", "train"],
        ["--append", "--overwrite"],
        ["--task", "1"],
        ["--task", "3", "--tasks", "3"],
        ["--append", "--task", "0", "--tasks", "2"],
        ["--key-prefix", "a.b"],
    ):
        with pytest.raises(SystemExit) as left:
            main(["convert", "-i", *files, "-o", out, *wrong])
        assert left.value.code == 2, wrong
