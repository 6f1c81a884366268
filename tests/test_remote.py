"""Sources behind URLs and in open files: the same shards as from disk, whatever the server does, and nothing fetched
that the user did not name."""

from __future__ import annotations

import gc
import io
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from counting import some
from loopback import Loopback
from recordings import make_recording

from neurofmx_wds import NWBToWebDatasetConverter
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Task, Workers
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.validate import compare_with_sources
from neurofmx_wds.errors import OutputError, SourceError, hide_secrets
from neurofmx_wds.storage import location
from neurofmx_wds.storage.location import RemoteFile, is_url, name_of

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

CONFIG = SourceConfig.of(sequence_length=20)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, and reads small blocks, so that small files take many requests."""
    monkeypatch.setattr(location, "PAUSES", (0.0, 0.001, 0.001))
    monkeypatch.setattr(location, "BLOCK_BYTES", 32 * 1024)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "a.nwb"
    make_recording(path, seconds=4, behavior_rate=40.0, lfp_channels=2, trials=4)
    return path


def shards(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name.startswith("shard")}


def served(*paths: Path, **more: bytes) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths} | more


# --- the same as from disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks_held", [2, 128])
def test_shards_are_those_of_the_local_file(
    recording: Path, tmp_path: Path, blocks_held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "BLOCKS_HELD", blocks_held)
    convert([recording], Output(tmp_path / "local", shard_size=7), CONFIG)
    with Loopback(served(recording)) as server:
        done = convert([f"{server.url}/a.nwb"], Output(tmp_path / "remote", shard_size=7), CONFIG)
        assert compare_with_sources(done, tmp_path / "remote") == []
        assert server.gets and all(b - a < 16 * 32 * 1024 for a, b in server.gets)
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")
    [source] = done.summary["sources"]
    assert source["path"] == "a.nwb" and source["size_bytes"] == recording.stat().st_size
    assert "sha256" not in source and "ETag" in source["version"] and f"{server.url}/a.nwb" in source["version"]


def test_arrays_too_in_every_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(300, 20, 3)),
        "f": np.asfortranarray(rng.normal(size=(300, 9))),
        "n": np.arange(300),
    }
    np.savez(tmp_path / "stored.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    np.save(tmp_path / "c.npy", arrays["x"])
    np.save(tmp_path / "f.npy", arrays["f"])
    np.save(tmp_path / "none.npy", np.empty((4, 0)))
    for names in (["stored.npz", "packed.npz"], ["c.npy"], ["f.npy"], ["none.npy"]):
        out = tmp_path / names[0]
        convert([tmp_path / name for name in names], Output(out.with_suffix(".local"), shard_size=64))
        with Loopback(served(*(tmp_path / name for name in names))) as server:
            convert([f"{server.url}/{name}" for name in names], Output(out.with_suffix(".remote"), shard_size=64))
        assert shards(out.with_suffix(".remote")) == shards(out.with_suffix(".local"))
    config = SourceConfig.of(rate=100.0, sequence_length=5)
    convert([tmp_path / "stored.npz"], Output(tmp_path / "time.local"), config)
    with Loopback(served(tmp_path / "stored.npz")) as server:
        convert([f"{server.url}/stored.npz"], Output(tmp_path / "time.remote"), config)
    assert shards(tmp_path / "time.remote") == shards(tmp_path / "time.local")


def test_only_parts_of_a_large_file_are_read(recording: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.nwb"
    large.write_bytes(recording.read_bytes())
    with h5py.File(large, "a") as file:
        file.create_dataset("scratch_of_ours", data=np.zeros(1 << 22, "u1"))
    with Loopback(served(large)) as server:
        convert([f"{server.url}/large.nwb"], Output(tmp_path / "out"), CONFIG)
        read = sum(b - a + 1 for a, b in server.gets)
    assert read < 2.5 * recording.stat().st_size < large.stat().st_size / 4


def test_workers_open_the_url_themselves(recording: Path, tmp_path: Path) -> None:
    convert([recording], Output(tmp_path / "local", shard_size=7), CONFIG)
    with Loopback(served(recording)) as server:
        convert([f"{server.url}/a.nwb"], Output(tmp_path / "remote", shard_size=7), CONFIG, Workers(2))
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")


def test_tasks_append_and_a_link_that_was_signed_anew(recording: Path, tmp_path: Path) -> None:
    make_recording(tmp_path / "b.nwb", seconds=5, seed=3, identifier="b")
    storage: Any = {"shard_size": 7}
    convert([recording], Output(tmp_path / "first", **storage), CONFIG)
    shutil.copytree(tmp_path / "first", tmp_path / "local")
    append([tmp_path / "b.nwb"], Output(tmp_path / "local", **storage), CONFIG)
    with Loopback(served(recording, tmp_path / "b.nwb")) as server:
        for task in (1, 0):
            url = f"{server.url}/a.nwb?signature=secret{task}"
            write_share([url], Output(tmp_path / "remote", **storage), Task(task, 2), CONFIG)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".remote.partial").glob("*.tar")}
        assert len(kept) == len(list((tmp_path / "first").glob("*.tar")))
        for path in (tmp_path / ".remote.partial").rglob("*"):
            assert path.is_dir() or b"secret" not in path.read_bytes()
        convert([f"{server.url}/a.nwb?signature=secret2"], Output(tmp_path / "remote", **storage), CONFIG)
        for path, written in some(kept.items()):
            assert (tmp_path / "remote" / path.name).stat().st_mtime_ns == written
        done = append([f"{server.url}/{name}.nwb" for name in "ab"], Output(tmp_path / "remote", **storage), CONFIG)
    assert len(done.plan.sources) == 1  # the other one is there already
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")


# --- what servers do ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drop", "short", 503, 429])
def test_what_passes_is_tried_again(recording: Path, tmp_path: Path, kind: int | str) -> None:
    rng = random.Random(0)
    convert([recording], Output(tmp_path / "local"), CONFIG)
    with Loopback(served(recording)) as server:
        server.fault = lambda path, number, wanted: kind if number % 3 == 0 or rng.random() < 0.1 else None
        convert([f"{server.url}/a.nwb"], Output(tmp_path / "remote"), CONFIG)
    assert shards(tmp_path / "remote") == shards(tmp_path / "local")


@pytest.mark.parametrize("from_number", [0, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", ["drop", 500])
def test_what_does_not_pass_ends_in_one_error(
    recording: Path, tmp_path: Path, kind: int | str, from_number: int
) -> None:
    with Loopback(served(recording)) as server:
        server.fault = lambda path, number, wanted: kind if number >= from_number else None
        with pytest.raises(SourceError, match=r"a\.nwb: the server .* 4 times in a row \(try again later") as caught:
            convert([f"{server.url}/a.nwb"], Output(tmp_path / "out"), CONFIG)
        assert len(server.gets) == from_number + 4
        assert caught.value.file == f"{server.url}/a.nwb"
    assert not (tmp_path / "out").exists()


def test_a_process_that_met_an_error_inside_hdf5_ends_as_it_should(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "good.npy").write_bytes(b"")
    np.save(tmp_path / "good.npy", np.arange(3))
    with Loopback(served(recording, tmp_path / "good.npy")) as server:
        server.fault = lambda path, number, wanted: 404 if path == "a.nwb" and number >= 3 else None
        command = [sys.executable, "-m", "neurofmx_wds", "convert", "-o", str(tmp_path / "out"), "--workers", "2", "-i"]
        urls = [f"{server.url}/a.nwb", f"{server.url}/good.npy"]
        done = subprocess.run([*command, *urls], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 files could not be converted" in done.stderr and "a.nwb: is not there" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "shard_000000.tar").exists()


@pytest.mark.parametrize(
    ("status", "told"), [(404, "is not there"), (403, r"refuses access \(403\)"), (401, r"refuses access \(401\)")]
)
def test_what_will_not_pass_is_not_tried_again(recording: Path, tmp_path: Path, status: int, told: str) -> None:
    with Loopback(served(recording)) as server:
        server.fault = lambda path, number, wanted: status
        with pytest.raises(SourceError, match=told):
            convert([f"{server.url}/a.nwb"], Output(tmp_path / "out"), CONFIG)
        assert len(server.gets) == 1
    with Loopback() as server, pytest.raises(SourceError, match=r"none\.nwb: is not there"):
        convert([f"{server.url}/none.nwb"], Output(tmp_path / "out"), CONFIG)
    with pytest.raises(SourceError, match="4 times in a row"):  # the server is gone
        convert([f"{server.url}/none.nwb"], Output(tmp_path / "out"), CONFIG)


@pytest.mark.parametrize("ranges", ["no", "refused"])
def test_a_server_without_ranges_is_refused_and_the_file_not_fetched(
    recording: Path, tmp_path: Path, ranges: str
) -> None:
    with Loopback(served(recording)) as server:
        server.ranges = ranges
        with pytest.raises(SourceError, match="only as a whole, not by range.*download it"):
            convert([f"{server.url}/a.nwb"], Output(tmp_path / "out"), CONFIG)


@pytest.mark.parametrize("when", ["while it is planned", "while it is read", "between two runs"])
def test_a_file_that_is_replaced_is_not_mixed(recording: Path, tmp_path: Path, when: str) -> None:
    make_recording(tmp_path / "other.nwb", seconds=4, behavior_rate=40.0, lfp_channels=2, trials=4, seed=1)
    other = (tmp_path / "other.nwb").read_bytes()
    with Loopback(served(recording)) as server:
        url = f"{server.url}/a.nwb"
        if when == "between two runs":
            write_share([url], Output(tmp_path / "out", shard_size=7), Task(0, 2), CONFIG)
            server.files["a.nwb"] = other
            with pytest.raises(OutputError, match="has changed"):
                convert([url], Output(tmp_path / "out", shard_size=7), CONFIG)
            return
        convert([url], Output(tmp_path / "whole"), CONFIG)
        planning = len(server.gets) // 2
        server.fault = lambda path, number, wanted: server.files.update({"a.nwb": other}) if number == last else None
        last = len(server.gets) + (2 if when == "while it is planned" else planning + 2)
        with pytest.raises(SourceError, match="changed while it was converted"):
            convert([url], Output(tmp_path / "out"), CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_server_that_names_no_version_is_told_of(recording: Path, tmp_path: Path) -> None:
    with Loopback(served(recording)) as server:
        server.tags = False
        [source] = convert([f"{server.url}/a.nwb"], Output(tmp_path / "out"), CONFIG).summary["sources"]
    assert any("names no version" in line for line in source["warnings"])


# --- what is never done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "external", "virtual"])
def test_nothing_is_fetched_or_read_because_a_file_names_it(recording: Path, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["d"] = np.arange(40.0)
    path = tmp_path / "x.nwb"
    path.write_bytes(recording.read_bytes())
    with h5py.File(path, "a") as file:
        group = file["processing/behavior"]
        if kind == "link":
            group["more"] = h5py.ExternalLink(str(secret), "/d")
        elif kind == "external":
            group.create_dataset("more", (40,), "u1", external=[(str(secret), 0, 40)])
        else:
            layout = h5py.VirtualLayout((40,), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "d", (40,))
            group.create_virtual_dataset("more", layout)
    with Loopback(served(path)) as server:
        with pytest.raises(SourceError, match=r"in other files, which are not looked for: .*secret\.h5"):
            convert([f"{server.url}/x.nwb"], Output(tmp_path / "out"), CONFIG)
        assert {path for _, path, *_ in server.requests} == {"x.nwb"}
        with pytest.raises(SourceError, match="never fetched"):
            convert([f"reference::{server.url}/x.nwb"], Output(tmp_path / "out"), CONFIG)


def test_credentials_are_used_and_never_shown(
    recording: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Loopback(served(recording)) as server:
        host = server.url.removeprefix("http://")
        url = f"http://me:hunter2@{host}/a.nwb?X-Signature=hunter2&other=hunter2"
        with caplog.at_level("DEBUG", "neurofmx_wds"):
            assert main(["convert", "-i", url, "-o", str(tmp_path / "dry"), "--dry-run"]) == 0
            assert main(["convert", "-i", url, url.replace("a.nwb", "none.nwb"), "-o", str(tmp_path / "out")]) == 1
            server.fault = lambda *_: "drop"
            assert main(["convert", "-i", url, "-o", str(tmp_path / "again")]) == 1
            assert main(["convert", "-i", url, "-o", str(tmp_path / "out"), "--append"]) in (0, 1)
        assert any("X-Signature=hunter2" in query for query in server.queries)
    told = capfd.readouterr()
    assert "a.nwb?***" in told.err and "***@127.0.0.1" in told.err
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "hunter2" not in told.out + told.err + caplog.text and b"hunter2" not in written


def test_secrets_are_taken_out_of_texts() -> None:
    assert hide_secrets("s3://key:word@bucket/x.nwb?a=b: gone") == "s3://***@bucket/x.nwb?*** gone"
    assert hide_secrets("see https://h/x?y='z and") == "see https://h/x?***'z and"
    assert hide_secrets("a/b@c.nwb: is 5?") == "a/b@c.nwb: is 5?"
    assert name_of("https://h/d/a%20b.nwb?x=/y.npz") == "a b.nwb" and name_of("/d/a?b.nwb") == "a?b.nwb"
    assert is_url("simplecache::s3://b/x") and not is_url("C:/x") and not is_url("pipe:cat x")


# --- stores that can be listed --------------------------------------------------------------------------------------


def test_patterns_and_directories_of_a_store(recording: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("b.nwb", "a.nwb", "deeper/c.nwb", "notes.txt"):
        store.pipe(f"/lab/{name}", recording.read_bytes())
    (tmp_path / "empty").mkdir()
    for given, names in {
        "memory://lab/*.nwb": ["a.nwb", "b.nwb"],
        "memory://lab": ["a.nwb", "b.nwb", "deeper/c.nwb"],
        "memory://lab/a.nwb": ["a.nwb"],
        "memory://none/*.nwb": ["memory://none/*.nwb"],
    }.items():
        found = location.expand(given, [".nwb"])
        assert [each.rpartition("lab/")[2] for each in found] == names
    convert([recording], Output(tmp_path / "local"), CONFIG)
    convert(["memory://lab/a.nwb"], Output(tmp_path / "out"), CONFIG)
    assert shards(tmp_path / "out") == shards(tmp_path / "local")
    store.rm("/lab", recursive=True)


def test_patterns_and_directories_of_a_web_server(recording: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    np.save(tmp_path / "y.npy", np.arange(5))
    x, y = ((tmp_path / name).read_bytes() for name in ("x.npy", "y.npy"))
    with Loopback({"lab/x.npy": x, "lab/y.npy": y, "lab/read.me": b"", "other/z.npy": x, "download/": x}) as server:
        assert main(["convert", "-i", f"{server.url}/lab/*.npy", "-o", str(tmp_path / "a")]) == 0
        assert main(["convert", "-i", f"{server.url}/lab/", "-o", str(tmp_path / "b")]) == 0
        assert shards(tmp_path / "a") == shards(tmp_path / "b")
        assert not any(path.startswith("other") for _, path, *_ in server.requests)
        assert main(["convert", "-i", f"{server.url}/download/", "-o", str(tmp_path / "c")]) == 0  # no name to go by


def test_s3(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'neurofmx-wds[cloud]'")
    convert([recording], Output(tmp_path / "local"), CONFIG)
    names = ("bucket/lab/a.nwb", "bucket/lab/read.me", "bucket/other/z.nwb")
    with Loopback({name: recording.read_bytes() for name in names}) as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        assert (
            main(["convert", "-i", "s3://bucket/lab/*.nwb", "-o", str(tmp_path / "out"), "--sequence-length", "20"])
            == 0
        )
        assert main(["convert", "-i", "s3://bucket/lab", "-o", str(tmp_path / "all"), "--sequence-length", "20"]) == 0
        before = len(server.requests)
        with pytest.raises(SourceError, match="is not there"):
            convert(["s3://bucket/lab/none.nwb"], Output(tmp_path / "none"), CONFIG)
        assert len(server.requests) - before < 5  # it was asked for once
    assert shards(tmp_path / "out") == shards(tmp_path / "all") == shards(tmp_path / "local")


# --- open files -----------------------------------------------------------------------------------------------------


class _Unnamed(io.RawIOBase):
    """A stream that can only be read on."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._inner.readinto(buffer)


def test_open_files(recording: Path, tmp_path: Path) -> None:
    convert([recording], Output(tmp_path / "local"), CONFIG)
    with NWBToWebDatasetConverter(tmp_path / "out", sequence_length=20, workers=2) as converter:
        with open(recording, "rb") as file:
            file.read(100)
            report = converter.convert_nwb_file(file)
    assert report["path"] == "a.nwb" and report["sha256"]
    assert shards(tmp_path / "out") == shards(tmp_path / "local")
    data = recording.read_bytes()
    first = convert([io.BytesIO(data)], Output(tmp_path / "first"), CONFIG)
    convert([_Unnamed(data)], Output(tmp_path / "second"), CONFIG)
    assert shards(tmp_path / "first") == shards(tmp_path / "second")
    assert first.summary["sources"][0]["path"] == first.summary["sources"][0]["sha256"][:16]
    with Loopback(served(recording)) as server:
        with fsspec.open(f"{server.url}/a.nwb", "rb") as file:
            convert([file], Output(tmp_path / "third"), CONFIG)
    assert shards(tmp_path / "third") == shards(tmp_path / "local")
    with open(__file__) as text, pytest.raises(SourceError, match="open as text"):
        convert([text], Output(tmp_path / "text"), CONFIG)  # type: ignore[list-item]


def test_any_read_of_a_remote_file_gives_what_is_there() -> None:
    data = np.random.default_rng(0).bytes(300_001)
    rng = random.Random(1)
    with Loopback({"x": data}) as server, RemoteFile(f"{server.url}/x") as file:
        for _ in range(200):
            place, count = rng.randrange(310_000), rng.choice([0, 1, 100, 20_000, 100_000, 400_000])
            file.seek(place)
            assert file.read(count) == data[place : place + count]
            assert file.tell() == max(place, min(place + count, len(data))) if place <= len(data) else place
        assert file.seek(-5, io.SEEK_END) == len(data) - 5 and file.read() == data[-5:]


def test_no_garbage_is_collected_while_a_remote_file_is_open() -> None:
    """Else fsspec's thread may meet h5py's garbage, and wait for the lock of a thread that waits for it."""
    with Loopback({"x": b"1", "y": b"2"}) as server:
        first, second = (RemoteFile(f"{server.url}/{name}") for name in "xy")
        first.close()
        first.close()
        assert not gc.isenabled()
        second.close()
        assert gc.isenabled()


def test_empty_directories_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    assert main(["convert", "-i", str(tmp_path / "none"), "-o", str(tmp_path / "out")]) == 1
    assert "none: is a directory, and no file to convert is in it" in capsys.readouterr().err
