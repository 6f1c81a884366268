"""Conversion: laws 6 (bytes) and 7 (atomic), bad files among good ones, and rows as numpy reads them."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import RECORDINGS, contents, kill_at_step, make_npz, samples_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from recordings import make_recording

from neurofmx_wds import NWBToWebDatasetConverter, create_shards_from_arrays
from neurofmx_wds.convert import run
from neurofmx_wds.convert.config import Output, ShardConfig, Split, Task, Workers
from neurofmx_wds.convert.file_state import FileState
from neurofmx_wds.convert.link import link_group
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.plan import ConversionPlan, PlannedSource
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import ArrayConfig, SourceConfig, SourceDescription
from neurofmx_wds.convert.sources.arrays import ArraySource
from neurofmx_wds.convert.split import convert_split
from neurofmx_wds.convert.validate import compare_with_sources
from neurofmx_wds.errors import OutputError, SourceError

CONFIG = SourceConfig()
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- the plan -------------------------------------------------------------------------------------------------------


@quick
@given(counts=st.lists(st.integers(0, 30), max_size=8), shard_size=st.integers(1, 40))
def test_the_shards_are_cuts_of_one_long_row_of_samples(counts: list[int], shard_size: int) -> None:
    sources = tuple(
        PlannedSource(FileState(f"/{i}.npy", 1, 1, str(i)), SourceDescription(n, {}, {})) for i, n in enumerate(counts)
    )
    shards = ConversionPlan(sources, CONFIG, ShardConfig(shard_size=shard_size)).shards()
    row = [(f"/{i}.npy", w) for i, n in enumerate(counts) for w in range(n)]
    planned = [[(p.file.path, w) for p in s.pieces for w in range(p.start, p.stop)] for s in shards]
    assert planned == [row[i : i + shard_size] for i in range(0, len(row), shard_size)]
    assert [shard.first for shard in shards] == list(range(0, len(row), shard_size))
    assert [shard.n_samples for shard in shards] == [len(each) for each in planned]
    assert len({shard.digest() for shard in shards}) == len(shards)


def test_a_digest_tells_all_that_decides_the_bytes(inputs: list[Path]) -> None:
    def digest(paths: list[Path], **changed: Any) -> str:
        config = SourceConfig.of(overlap=changed.pop("overlap", 0.5))
        return ConversionPlan(look_at(paths, config), config, ShardConfig(**changed)).shards()[0].digest()

    digests = [
        digest(inputs),
        digest(inputs, overlap=0.25),
        digest(inputs, compression="gz"),
        digest(inputs, shard_size=8),
        digest(inputs, field_format="pyd"),
        digest(inputs, shard_name_pattern="s{shard_idx}.tar"),
        digest(inputs[::-1]),
    ]
    make_npz(inputs[0], 7, seed=9)
    digests.append(digest(inputs))
    assert len(set(digests)) == len(digests)


# --- what is written ------------------------------------------------------------------------------------------------


def test_the_rows_of_all_files_arrive_in_order(inputs: list[Path], tmp_path: Path) -> None:
    summary = convert(inputs, Output(tmp_path / "out", shard_size=4)).summary
    samples = samples_of(tmp_path / "out")
    expected = [
        (path.name, i, arrays) for path in inputs for arrays in [np.load(path)] for i in range(len(arrays["label"]))
    ]
    assert summary["total_samples"] == len(samples) == len(expected) == 20
    assert [shard["n_samples"] for shard in summary["shards"]] == [4] * 5
    for k, (sample, (name, i, arrays)) in enumerate(zip(samples, expected, strict=True)):
        assert sample["__key__"] == f"sample_{k:09d}"
        assert sample["metadata.json"] == {"source": name, "sample_index": i}
        np.testing.assert_array_equal(sample["spikes.npy"], arrays["spikes"][i])
        assert sample["label.npy"] == arrays["label"][i]
    assert summary["modalities"]["spikes"] == {"dtype": "float32", "shape": [4, 5]}
    assert json.loads((tmp_path / "out" / "dataset_metadata.json").read_bytes()) == summary
    assert [source["windows"]["emitted"] for source in summary["sources"]] == [7, 1, 12]


def test_what_sources_agree_on_is_said_once_and_the_rest_of_each(tmp_path: Path) -> None:
    for i, units in enumerate([3, 5]):
        make_recording(tmp_path / f"{i}.nwb", n_units=units, seed=i, behavior_rate=50.0)
    config = SourceConfig.of(sequence_length=20)
    summary = convert(sorted(tmp_path.glob("*.nwb")), Output(tmp_path / "out"), config).summary
    assert summary["modalities"]["spikes"]["shape"] == [20, None]
    assert summary["modalities"]["spikes"]["unit"] == "count"
    assert "columns" not in summary["modalities"]["spikes"]
    assert (
        summary["modalities"]["behavior"]["columns"] == ["Position/x", "Position/y"]
        or summary["modalities"]["behavior"]["columns"]
    )
    for source, units in zip(summary["sources"], [3, 5], strict=True):
        assert source["fields"]["spikes"] == {"shape": [20, units], "columns": [str(100 + u) for u in range(units)]}
        assert source["fields"]["behavior"] == {}
        assert source["spikes"]["total"] == source["spikes"]["binned"] + source["spikes"]["outside"]


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the real recordings are not here")
def test_a_real_recording_gives_the_counts_that_pynapple_gives(tmp_path: Path) -> None:
    nap = pytest.importorskip("pynapple")
    path = RECORDINGS / "A2929-200711.nwb"
    summary = convert([path], Output(tmp_path / "out"), SourceConfig.of(bin_size_ms=20, modalities=("spikes",))).summary
    units = nap.load_file(str(path))["units"]
    counts = units.count(0.02, ep=nap.IntervalSet(0, 1200)).values
    times = np.concatenate([unit.index.values for unit in units.values()])
    first, stop = int(np.ceil(times.min() / 0.02)), int(times.max() / 0.02)  # the recording has no obs_intervals
    samples = samples_of(tmp_path / "out")
    assert len(samples) == summary["total_samples"] == (stop - first - 100) // 50 + 1
    for w, sample in enumerate(samples):
        start = first + 50 * w
        assert sample["metadata.json"]["t_start_ns"] == start * 20_000_000
        np.testing.assert_array_equal(sample["spikes.npy"], counts[start : start + 100])
    assert [s["metadata.json"]["window_index"] for s in samples] == list(range(len(samples)))


# --- law 6: bytes ---------------------------------------------------------------------------------------------------


def test_the_bytes_depend_on_no_executor(tmp_path: Path) -> None:
    make_recording(tmp_path / "one.nwb", seconds=6, behavior_rate=40.0, lfp_channels=2)
    make_recording(tmp_path / "two.nwb", seconds=4, n_units=2, seed=1)
    make_npz(tmp_path / "three.npz", 9, packed=True)
    paths = [tmp_path / "one.nwb", tmp_path / "broken.nwb", tmp_path / "two.nwb", tmp_path / "three.npz"]
    paths[1].write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    config = SourceConfig.of(sequence_length=20)
    with ThreadPoolExecutor(3) as threads:
        made = []
        for i, workers in enumerate([Workers(), Workers(2), Workers(executor=threads)]):
            conversion = convert(paths, Output(tmp_path / f"out{i}", shard_size=7), config, workers)
            assert [Path(error.file or "").name for error in conversion.plan.failures] == ["broken.nwb"]
            made.append(contents(tmp_path / f"out{i}"))
    assert made[0] == made[1] == made[2]
    assert len(made[0]) > 9


SLOW = """
import sys
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
if __name__ == "__main__":
    output = Output(sys.argv[1], shard_size=40, compression="xz")
    convert(sys.argv[2:4], output, workers=Workers(int(sys.argv[4])))
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    inputs = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for seed, path in enumerate(inputs):
        make_npz(path, 200, seed, packed=seed == 0, width=400)
    script, out, staging = tmp_path / "slow.py", tmp_path / "out", tmp_path / ".out.partial"
    script.write_text(SLOW)
    times: dict[str, int] = {}
    for n_shards, workers in [(0, "1"), (2, "2"), (5, "1")]:
        command = [sys.executable, str(script), str(out), *map(str, inputs), workers]
        process = subprocess.Popen(command, start_new_session=True)
        while len(list(staging.glob("*.tar.xz"))) < n_shards or not (staging / "plan.json").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists()
        kept = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.tar.xz")}
        assert len(kept) >= n_shards
        assert all(kept[name] == then for name, then in times.items()), "a finished shard was made again"
        times = kept
    convert(inputs, Output(out, shard_size=40, compression="xz"))
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    convert(inputs, Output(tmp_path / "undisturbed", shard_size=40, compression="xz"))
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert not staging.exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_the_old_dataset_stands_or_the_new(stride: int, existing: bool, tmp_path: Path) -> None:
    make_npz(tmp_path / "old.npz", 3, seed=1)
    make_npz(tmp_path / "new.npz", 5)
    out = tmp_path / "out"
    convert([tmp_path / "old.npz"], Output(out))
    convert([tmp_path / "new.npz"], Output(tmp_path / "good", shard_size=2))
    old, new = contents(out), contents(tmp_path / "good")

    def work() -> None:
        convert([tmp_path / "new.npz"], Output(out, shard_size=2, overwrite=existing))

    for n in itertools.count(0, stride):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(tmp_path / ".out.partial", ignore_errors=True)
        if existing:
            convert([tmp_path / "old.npz"], Output(out))
        status = kill_at_step(n, work)
        assert status in (0, 9)
        state = contents(out) if out.exists() else {}
        assert state in (old if existing else {}, new)
        if status == 0:
            break
        if state != new or existing:
            work()
        assert contents(out) == new
        assert not (tmp_path / ".out.partial").exists()
    assert state == new and n > 50


def test_another_plan_takes_over_the_shards_that_it_would_make_alike(inputs: list[Path], tmp_path: Path) -> None:
    out, staging = tmp_path / "out", tmp_path / ".out.partial"

    class Stop(BaseException):
        pass

    def stop_at_manifest(*_: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_manifest", stop_at_manifest)
        with pytest.raises(Stop):
            convert(inputs[:2], Output(out, shard_size=3))
    before = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.tar")}
    assert len(before) == 3
    (staging / ".shard_000009.tar.part").write_bytes(b"left by a killed worker")
    (staging / "shard_000001.tar").write_bytes(b"damaged meanwhile")
    convert(inputs, Output(out, shard_size=3))
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert [name for name in before if after[name] == before[name]] == ["shard_000000.tar"]
    convert(inputs, Output(tmp_path / "undisturbed", shard_size=3))
    assert contents(out) == contents(tmp_path / "undisturbed")


# --- bad files and bad luck -----------------------------------------------------------------------------------------


def damage_middle(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("spikes.npy")
    raw = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len("spikes.npy") + info.compress_size // 2
    raw[start : start + 50] = bytes(50)
    path.write_bytes(raw)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_fails_half_way_leaves_no_trace_but_its_error(workers: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for seed, path in enumerate(paths):
        make_npz(path, 400 if seed == 1 else 20, seed, packed=seed == 1, width=100)
    damage_middle(paths[1])
    pool = ThreadPoolExecutor(2) if workers == 2 else None
    conversion = convert(paths, Output(tmp_path / "out", shard_size=16), workers=Workers(executor=pool))
    [failure] = conversion.plan.failures
    assert failure.file == str(paths[1])
    good = convert([paths[0], paths[2]], Output(tmp_path / "good", shard_size=16)).summary
    names = ["shards", "modalities", "config_hash"]
    assert [conversion.summary[name] for name in names] == [good[name] for name in names]
    reports = conversion.summary["sources"]
    assert [reports[0], reports[2]] == good["sources"]
    assert reports[1]["path"] == "b.npz" and "cannot be read" in reports[1]["error"]


def test_without_a_good_file_there_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    make_npz(tmp_path / "damaged.npz", 400, packed=True, width=100)
    damage_middle(tmp_path / "damaged.npz")
    with pytest.raises(SourceError, match=r"(?s)nothing was converted.*text\.npz.*missing\.npz.*damaged\.npz"):
        convert([tmp_path / "text.npz", tmp_path / "missing.npz", tmp_path / "damaged.npz"], Output(tmp_path / "out"))
    with pytest.raises(SourceError, match=r"missing\.npz: cannot be read: No such file"):
        convert([tmp_path / "missing.npz"], Output(tmp_path / "out"))
    make_recording(tmp_path / "short.nwb", seconds=0.5)
    with pytest.raises(SourceError, match=r"short\.nwb.*no window fits.*sequence_length"):
        convert([tmp_path / "short.nwb"], Output(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_converter_whose_only_file_was_refused_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not an archive")
    with NWBToWebDatasetConverter(tmp_path / "out") as converter:
        with pytest.raises(SourceError, match="text"):
            converter.convert_nwb_file(tmp_path / "text.npz")
        with pytest.raises(SourceError, match=r"^nothing was converted: no file was given \(.+\)$"):
            converter.finalize()


def test_a_name_that_is_no_utf8_is_written_down_escaped(tmp_path: Path) -> None:
    odd = os.fsdecode(b"bad\xff")
    np.save(tmp_path / "good.npy", np.zeros((3, 2)))
    np.save(tmp_path / f"{odd}.npy", np.ones((4, 2)))
    (tmp_path / f"{odd}.nwb").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 900)
    paths = [tmp_path / name for name in ("good.npy", f"{odd}.npy", f"{odd}.nwb")]
    for workers in (1, 2):
        done = convert(paths, Output(tmp_path / f"out{workers}"), workers=Workers(workers))
        assert [failure.file for failure in done.plan.failures] == [os.fspath(paths[2])]
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
    assert [s["path"] for s in done.summary["sources"]] == ["good.npy", r"bad\xff.npy", r"bad\xff.nwb"]
    named = [sample["metadata.json"]["source"] for sample in samples_of(tmp_path / "out1")]
    assert named == ["good.npy"] * 3 + [r"bad\xff.npy"] * 4
    (tmp_path / odd).mkdir()
    (tmp_path / odd / "a.txt").write_text("hello")
    done = convert([tmp_path / odd], Output(tmp_path / "files"), SourceConfig.of(format="files"))
    assert done.summary["sources"][0]["path"] == r"bad\xff"
    in_time = SourceConfig.of(rate=100.0, bin_size_ms=10, sequence_length=2)
    done = convert(paths[1:2], Output(tmp_path / "t"), in_time)
    assert [source["session_id"] for source in done.summary["sources"]] == [r"bad\xff"]


def test_a_file_that_changes_meanwhile_is_left_out(inputs: list[Path], tmp_path: Path) -> None:
    with NWBToWebDatasetConverter(tmp_path / "out") as converter:
        converter.convert_nwb_files(inputs)
        make_npz(inputs[1], 2)
    assert [source.get("error") for source in converter.summary["sources"]] == [
        None,
        "changed while it was converted",
        None,
    ]
    assert converter.summary["total_samples"] == 19


def die(*_: object) -> None:
    os._exit(1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_that_dies_is_an_error_that_says_what_was_being_made(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = run.write_shard

    def die_at_second(directory: Path, shard: Any) -> str:
        return make(directory, shard) if shard.first < 5 else die()  # type: ignore[return-value]

    monkeypatch.setattr(run, "write_shard", die_at_second)
    die_at_second.__qualname__ = "write_shard"
    die_at_second.__module__ = run.__name__
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        with pytest.raises(OutputError, match=r"a worker process died.*shard_000001\.tar.*fewer workers"):
            convert(inputs, Output(tmp_path / "out", shard_size=5), workers=Workers(executor=pool))
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.partial" / "shard_000000.tar").exists()
    assert convert(inputs, Output(tmp_path / "out", shard_size=5)).summary["total_samples"] == 20


def test_a_full_disk_is_an_output_error_and_the_next_run_goes_on(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("neurofmx_wds.format.shard_file.ShardFile.write", full)
        with pytest.raises(OutputError, match=r"shard_000000\.tar: cannot be written: No space left"):
            convert(inputs, Output(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    convert(inputs, Output(tmp_path / "out"))
    assert len(samples_of(tmp_path / "out")) == 20


@pytest.mark.parametrize("storage", [{"shard_size": 0}, {"compression": "zip"}, {"shard_name_pattern": "x"}])
def test_wrong_settings_are_refused_before_anything_is_made(
    storage: dict[str, Any], inputs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=next(iter(storage))):
        convert(inputs, Output(tmp_path / "sub" / "out", **storage))
    assert not (tmp_path / "sub").exists()


def test_an_output_that_is_not_empty_stays_as_it_is(inputs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty|finished dataset"):
        convert(inputs, Output(tmp_path / "out"))
    assert contents(tmp_path / "out") == {"thesis.txt": b"mine"}
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("way", ["convert", "converter", "split", "task", "merge", "link"])
def test_what_is_converted_is_not_replaced_by_it(way: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    create_shards_from_arrays(out / "deeper", {"x": np.zeros((4, 2)), "label": np.arange(4)})
    source = out / "deeper"
    if way not in ("merge", "link"):  # under a name that a dataset's own file could have
        make_npz(tmp_path / "a.npz", 6)
        source = (tmp_path / "a.npz").rename(source / "a.tar")
    before = contents(out / "deeper")
    (tmp_path / "road").symlink_to(out)
    given = tmp_path / "road" / source.relative_to(out)
    with pytest.raises(OutputError, match="holds the input .*choose another"):
        if way == "convert":
            convert([given], Output(out, overwrite=True), SourceConfig.of(format="npz"))
        elif way == "converter":
            NWBToWebDatasetConverter(out, overwrite=True, format="npz").convert_nwb_file(given)
        elif way == "split":
            config = SourceConfig.of(format="npz")
            convert_split([given, given], Output(out, overwrite=True), Split({"a": 0.5, "b": 0.5}, "session"), config)
        elif way == "task":
            write_share([given], Output(out, overwrite=True), Task(0, 1), SourceConfig.of(format="npz"))
        elif way == "merge":
            merge([given], out, overwrite=True)
        else:
            link_group(given, out, "g", {"g": [1]}, overwrite=True)
    assert contents(out / "deeper") == before


def test_a_full_disk_is_told_wherever_it_shows(
    inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "good"
    convert(inputs, Output(wanted, shard_size=6))
    for name in ("run.note", "shards.write_atomic", "run.Manifest.save"):
        with monkeypatch.context() as patched:

            def full(*_: Any) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patched.setattr(f"neurofmx_wds.convert.{name}", full)
            with pytest.raises(OutputError, match="No space left.*free space"):
                convert(inputs, Output(tmp_path / "out", shard_size=6))
        assert not (tmp_path / "out").exists()
    convert(inputs, Output(tmp_path / "out", shard_size=6))
    assert contents(tmp_path / "out") == contents(wanted)


def test_a_converter_that_is_never_finished_says_so(
    inputs: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    converter = NWBToWebDatasetConverter(tmp_path / "out")
    converter.convert_nwb_file(inputs[0])
    del converter
    gc.collect()
    assert f"{tmp_path / 'out'}: no dataset was written, because finalize() was not called" in caplog.text
    caplog.clear()
    for end in ("finalize", "close"):
        converter = NWBToWebDatasetConverter(tmp_path / "out", overwrite=True)
        converter.convert_nwb_file(inputs[0])
        getattr(converter, end)()
        del converter
    assert not caplog.text


def test_comparing_with_the_sources_finds_what_differs(inputs: list[Path], tmp_path: Path) -> None:
    conversion = convert(inputs, Output(tmp_path / "out", shard_size=6))
    assert compare_with_sources(conversion, tmp_path / "out") == []
    path = tmp_path / "out" / "shard_000001.tar"
    with tarfile.open(path) as tar:
        place = tar.getmember("sample_000000006.spikes.npy").offset_data + 130
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"?")
    problems = compare_with_sources(conversion, tmp_path / "out")
    assert [(p.file, p.sample, p.member) for p in problems] == [(str(path), "sample_000000006", "spikes.npy")]


# --- the converter --------------------------------------------------------------------------------------------------


def test_the_converter_reports_each_file_and_writes_in_the_end(tmp_path: Path) -> None:
    truth = make_recording(tmp_path / "a.nwb", seconds=5, session_id="first")
    (tmp_path / "bad.nwb").write_bytes(b"nothing")
    with NWBToWebDatasetConverter(tmp_path / "out", shard_size=4, sequence_length=50) as converter:
        report = converter.convert_nwb_file(tmp_path / "a.nwb")
        with pytest.raises(SourceError, match=r"bad\.nwb"):
            converter.convert_nwb_file(tmp_path / "bad.nwb")
        [again] = converter.convert_nwb_files([tmp_path / "bad.nwb"])
        assert not (tmp_path / "out").exists()
    assert report["session_id"] == "first" and report["path"] == "a.nwb"
    assert report["spikes"]["total"] == sum(map(len, truth["spike_times"]))
    assert report["fields"]["spikes"]["shape"] == [50, 4]
    assert again["path"] == "bad.nwb" and again["error"]
    assert converter.finalize() is converter.summary
    assert converter.summary["total_samples"] == report["windows"]["emitted"] == len(samples_of(tmp_path / "out"))
    assert converter.summary["sources"][1] == again
    with pytest.raises(OutputError, match="finished"):
        converter.convert_nwb_file(tmp_path / "a.nwb")


def test_the_converter_says_what_may_have_been_meant(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=5)
    np.savez(tmp_path / "b.npz", spikes=np.zeros((3, 2)), label=np.zeros(3))
    with pytest.raises(TypeError, match="^NWBToWebDatasetConverter takes no argument bin_ms; did you mean bin_size_ms"):
        NWBToWebDatasetConverter(tmp_path / "out", bin_ms=20)
    for path in (tmp_path / "a.nwb", tmp_path / "b.npz"):
        with NWBToWebDatasetConverter(tmp_path / "out", modalities="spikes", overwrite=True) as converter:
            assert list(converter.convert_nwb_file(path)["fields"]) == ["spikes"]
        config = SourceConfig.of(modalities=("spike",))
        with pytest.raises(SourceError, match=r"no spike.*\(did you mean spikes\? ask for"):
            convert([path], Output(tmp_path / "other"), config)


def test_a_block_that_fails_leaves_nothing(inputs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(KeyError), NWBToWebDatasetConverter(tmp_path / "out") as converter:
        converter.convert_nwb_file(inputs[0])
        raise KeyError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz", "c.npz"]


# --- arrays ---------------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(["<f4", ">f8", "u1", "?", "<i8", "<c16", "<U3", "<f2"])


@quick
@given(data=st.data(), n=st.integers(1, 9), packed=st.booleans(), fortran=st.booleans())
def test_rows_are_those_that_numpy_reads(
    data: st.DataObject, n: int, packed: bool, fortran: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shapes = data.draw(
        st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1, max_size=3)
    )
    arrays = {f"f{i}": data.draw(hnp.arrays(data.draw(DTYPES), (n, *shape))) for i, shape in enumerate(shapes)}
    if fortran:
        arrays = {name: np.asfortranarray(array) for name, array in arrays.items()}
    path = tmp_path_factory.mktemp("arrays") / "x.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    source = ArraySource(path, ArrayConfig())
    truth = np.load(path)
    assert source.describe().n_samples == n
    for _ in range(3):
        start = data.draw(st.integers(0, n))
        stop = data.draw(st.integers(start, n))
        rows = list(source.read(start, stop))
        assert [metadata["sample_index"] for _, metadata in rows] == list(range(start, stop))
        for i, (row, _) in zip(range(start, stop), rows, strict=True):
            assert set(row) == set(truth)
            for name, value in row.items():
                np.testing.assert_array_equal(value, truth[name][i])
                assert value.dtype == truth[name].dtype.newbyteorder("=")
                assert source.describe().fields[name]["shape"] == list(np.shape(value))
    source.close()


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_becomes_one_field(order: Any, tmp_path: Path) -> None:
    array = np.asarray(np.arange(24.0).reshape(4, 3, 2), order=order)
    np.save(tmp_path / "x.npy", array)
    convert([tmp_path / "x.npy"], Output(tmp_path / "out"), SourceConfig.of(field="lfp"))
    np.testing.assert_array_equal([sample["lfp.npy"] for sample in samples_of(tmp_path / "out")], array)


def test_reading_rows_needs_no_whole_array(tmp_path: Path) -> None:
    rows, width = 3000, 40_000  # 480 MB, nearly all of it a hole in the file
    array = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", "float32", (rows, width))
    array[-1, -1] = 1
    del array
    code = (
        "import resource, sys\n"
        "from neurofmx_wds.convert.sources import ArrayConfig\n"
        "from neurofmx_wds.convert.sources.arrays import ArraySource\n"
        "source = ArraySource(sys.argv[1], ArrayConfig())\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "last = [row['data'][-1] for row, _ in source.read(2400, 3000)][-1]\n"
        "print(last, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big.npy")], capture_output=True, text=True)
    last, grown_kib = done.stdout.split()
    assert float(last) == 1 and int(grown_kib) < 200_000, done


def refused(path: Path, pattern: str, **how: Any) -> None:
    with pytest.raises(SourceError, match=pattern) as found:
        ArraySource(path, **{"config": ArrayConfig(), **how}).describe()
    assert found.value.file == str(path)


def test_what_cannot_be_samples_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"a": np.zeros(3), "b": np.zeros((2, 5))}, "differ in their first dimension.*a 3, b 2"),
        ({"a": np.array([{}, None], object)}, "'a': is not a plain array: .*Python objects"),
        ({"a": np.float64(3)}, "'a': is a single number"),
        ({"Spikes": np.zeros(3)}, "'Spikes'.*capital"),
        ({"a/b": np.zeros(3)}, "'a/b'.*'/'"),
        ({"metadata": np.zeros(3)}, "'metadata'"),
        ({}, "no arrays"),
    ]
    for arrays, pattern in bad:
        np.savez(path, **arrays)
        refused(path, pattern)
    np.savez(path, a=np.zeros(3), b=np.zeros(3))
    refused(path, "has no c; it has a, b", config=ArrayConfig(modalities=("c",)))
    refused(path, "is not an npy file", kind="npy")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "hello")
    refused(path, "no array: 'notes.txt'")
    path.write_bytes(path.read_bytes()[:200])
    refused(path, "cannot be read")


def test_a_damaged_npy_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((10, 10)))
    whole = path.read_bytes()
    for cut in (0, 5, 9, 60, 127, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, "x.npy")
    path.write_bytes(whole.replace(b"(10, 10)", b"(10, 9" + b"9" * 12 + b")"))
    refused(path, "cut short")
    np.save(path, np.array([print], object), allow_pickle=True)
    refused(path, "Python objects")
