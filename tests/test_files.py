"""Paired files: bytes as they are, read back by the official library, whatever the workers, tasks and interruptions."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from counting import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofmx_wds import WebDatasetLoader, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Task, Workers
from neurofmx_wds.convert.file_state import FileState
from neurofmx_wds.convert.look import plan_source
from neurofmx_wds.convert.plan import PlannedSource
from neurofmx_wds.convert.run import convert, write_share
from neurofmx_wds.convert.sources import FilesConfig, SourceConfig
from neurofmx_wds.convert.sources.files import FilesSource
from neurofmx_wds.convert.validate import compare_with_sources
from neurofmx_wds.errors import OutputError, SourceError
from neurofmx_wds.format.verify import verify

CONFIG = SourceConfig.of(format="files")
Files = dict[str, bytes]


def write(root: Path, files: Files) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pairs(n: int = 7, size: int = 300) -> Files:
    rng = np.random.default_rng(0)
    stems = [f"{folder}sample-{i}" for i, folder in zip(range(n), itertools.cycle(["", "a/", "b/c d/"]), strict=False)]
    images = {f"{stem}.jpg": rng.bytes(size + i) for i, stem in enumerate(stems)}
    return {**images, **{f"{stem}.txt": f"text of {stem}".encode() for stem in stems}}


def stored(directory: Path) -> dict[str, dict[str, bytes]]:
    """Key → extension → bytes, as the official library reads them, undecoded, in order."""
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    samples = [*wds.WebDataset(urls, shardshuffle=False)]
    kept = {s["__key__"]: {k: v for k, v in s.items() if k[0] != "_" and k != "metadata.json"} for s in samples}
    assert len(kept) == len(samples)
    return kept


def expected(files: Files) -> dict[str, dict[str, bytes]]:
    """By webdataset's rule: the name up to its first dot, then the extension in lower case."""
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    for name, data in files.items():
        match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", name)
        assert match
        found[match[1]][match[2].lower()] = data
    return dict(sorted(found.items()))


def contents(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        FilesSource(root, FilesConfig(**settings))
    assert str(caught.value).startswith(str(root))
    return caught.value.problem


# --- bytes ---


def test_every_extension_is_stored_as_it_is_and_read_by_both_libraries(tmp_path: Path) -> None:
    stream = tmp_path / "a.npy"
    np.save(stream, np.arange(6, dtype="float32").reshape(2, 3))
    one = {
        "jpg": b"\xff\xd8no image",
        "JSON": b'{"a": 1}',
        "Seg.PNG": b"\x89PNG",
        "xyz": b"\0\1",
        "npy": stream.read_bytes(),
    }
    one |= {"cls": b"3", "txt": "Grüße".encode(), "empty": b"", "tar.gz": b"\x1f\x8bno gzip"}
    files = {f"{stem}.{extension}": data for stem in ("x/one", "x/two", "ünï") for extension, data in one.items()}
    root = write(tmp_path / "in", files)
    convert([root], Output(tmp_path / "out"), CONFIG)
    assert list(stored(tmp_path / "out").items()) == list(expected(files).items())
    problems = verify(tmp_path / "out", deep=True).problems  # a name that lies about its content is told, not changed
    assert {problem.member for problem in problems} == {"tar.gz"}
    names = ["jpg", "json", "seg", "xyz", "npy", "cls", "txt", "empty"]
    samples = list(WebDatasetLoader(tmp_path / "out", shuffle=False, modalities=names))
    assert [sample["__key__"] for sample in samples] == ["x/one", "x/two", "ünï"]
    for i, sample in enumerate(samples):
        array = sample.pop("npy")
        np.testing.assert_array_equal(array, np.arange(6, dtype="float32").reshape(2, 3))
        assert sample.pop("metadata") == {"source": "in", "sample_index": i}
        assert sample == {
            "__key__": sample["__key__"], "jpg": one["jpg"], "json": {"a": 1}, "seg": b"\x89PNG", "xyz": b"\0\1",
            "cls": 3, "txt": "Grüße", "empty": b"",
        }  # fmt: skip


names = st.text(st.characters(codec="utf-8", categories=["L", "N"]) | st.sampled_from("-_ +"), min_size=1, max_size=6)


@settings(max_examples=30)
@given(
    keys=st.sets(st.lists(names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=6),
    extensions=st.sets(names, min_size=1, max_size=3),
    data=st.data(),
)
def test_any_names_that_are_taken_arrive(
    keys: set[str], extensions: set[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = {f"{key}.{extension}": data.draw(st.binary(max_size=9)) for key in keys for extension in extensions}
    root = tmp_path_factory.mktemp("any")
    try:
        write(root / "in", files)
        convert([root / "in"], Output(root / "out", shard_size=3), CONFIG)
    except SourceError as error:  # refused with a reason, and nothing was made
        assert re.search("the (field name|sample's key) |differ in capitals|under one name", str(error))
        assert not (root / "out").exists()
    else:
        assert list(stored(root / "out").items()) == list(expected(files).items())
        assert verify(root / "out").ok


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_the_bytes_depend_on_neither_workers_nor_tasks(tmp_path: Path, shard_size: int) -> None:
    root = write(tmp_path / "in", pairs())
    made = []
    for name, workers in [("one", 1), ("four", 4 if shard_size == 3 else 1)]:
        conversion = convert([root], Output(tmp_path / name, shard_size=shard_size), CONFIG, Workers(workers))
        assert compare_with_sources(conversion, tmp_path / name) == []
        made.append(contents(tmp_path / name))
    for task in (2, 0, 1):
        write_share([root], Output(tmp_path / "tasks", shard_size=shard_size), Task(task, 3), CONFIG)
    convert([root], Output(tmp_path / "tasks", shard_size=shard_size), CONFIG)
    made.append(contents(tmp_path / "tasks"))
    assert made[0] == made[1] == made[2]
    assert list(stored(tmp_path / "one").items()) == list(expected(pairs()).items())


def test_killed_and_run_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    root = write(tmp_path / "in", pairs(120, size=12_000))
    command = [sys.executable, "-m", "neurofmx_wds", "convert", "-i", str(root), "--format", "files"]
    command += ["--shard-size", "5", "--compression", "xz", "-o"]
    staging, process = tmp_path / ".out.partial", subprocess.Popen([*command, str(tmp_path / "out")])
    while len(list(staging.glob("*.tar.xz"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_ino for path in staging.glob("*.tar.xz")}
    assert 2 <= len(kept) < 24
    assert main([*command[3:], str(tmp_path / "out")]) == 0
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == kept
    assert main([*command[3:], str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_batches_hold_the_bytes_and_resume(tmp_path: Path) -> None:
    root = write(tmp_path / "in", pairs(20))
    convert([root], Output(tmp_path / "out", shard_size=6), CONFIG)
    loader = create_webdataset_dataloader(tmp_path / "out", batch_size=3, num_workers=0)
    batches = iter(loader)
    seen = [next(batches) for _ in range(3)]
    again = create_webdataset_dataloader(tmp_path / "out", batch_size=3, num_workers=0)
    again.load_state_dict(loader.state_dict())
    seen += list(again)
    found = {
        key: {"jpg": jpg, "txt": text.encode()}
        for b in seen
        for key, jpg, text in zip(b["__key__"], b["jpg"], b["txt"], strict=True)
    }
    assert sum(len(batch["__key__"]) for batch in seen) == 20 and found == expected(pairs(20))


# --- what is complete ---


def test_an_incomplete_sample_is_an_error_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "in", {**pairs(5), "a/lonely.jpg": b"1", "z.txt": b"2", "README": b"3", ".DS_Store": b"4"})
    problem = refusal(root)
    assert "'README' has no extension; 'a/lonely' lacks .txt; 'z' lacks .jpg" in problem
    command = ["convert", "-i", str(root), "-o", str(tmp_path / "out"), "--format", "files"]
    assert main(command) == 1 and not (tmp_path / "out").exists()
    assert "--allow-missing" in capsys.readouterr().err
    assert main([*command, "--allow-missing"]) == 0
    assert list(stored(tmp_path / "out").items()) == list(expected(pairs(5)).items())
    told = capsys.readouterr().out
    for line in ("1 window dropped: lacks .txt", "1 window dropped: lacks .jpg", "1 file left out: without extension"):
        assert f"in: {line}" in told
    assert "1 file left out: hidden" in told
    report = FilesSource(root, FilesConfig(allow_missing=True)).describe().report
    assert report["extensions"] == {"jpg": 6, "txt": 6} and report["windows"]["emitted"] == 5 and report["files"] == 13


def test_modalities_name_what_a_sample_has(tmp_path: Path) -> None:
    root = write(tmp_path / "in", {**pairs(3), "sample-0.json": b"{}", "notes.pdf": b"", "README": b""})
    assert "lacks" in refusal(root)
    assert "lacks .json" in refusal(root, modalities=("jpg", "json"))
    assert "no file with .png" in refusal(root, modalities=("jpg", "png"))
    source = FilesSource(root, FilesConfig(modalities=(".JPG", "txt")))
    described = source.describe()
    assert described.n_samples == 3 and described.report["warnings"] == ["3 files left out: with other extensions"]
    assert [sorted(fields) for fields, _ in source.read(0, 3)] == [["__key__", "jpg", "txt"]] * 3
    with pytest.raises(IndexError):
        list(source.read(2, 4))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["a.JPG", "a.jpg"], "capitals"),
        (["a.seg.png", "a.seg.txt"], "under one name"),
        (["a.metadata.json"], "meaning of its own"),
        (["v1.0/a.jpg"], "holds a dot"),
        (["a..jpg"], "two in a row"),
        (["a._x"], "starts with '_'"),
        (["a\nb.jpg"], "cannot be printed"),
        (["a\udcff.jpg"], "cannot be printed"),
        (["__a.jpg"], "starts with '__'"),
        ([".hidden.jpg", ".git/a.jpg"], "no file with extension"),
        ([], "no file with extension"),
    ],
)
def test_names_that_no_shard_can_hold_are_refused_with_the_reason(tmp_path: Path, files: list[str], told: str) -> None:
    (tmp_path / "in" / "empty").mkdir(parents=True)
    assert told in refusal(write(tmp_path / "in", dict.fromkeys(files, b"1")))


def test_the_input_is_a_directory_of_files_and_nothing_else(tmp_path: Path) -> None:
    root = write(tmp_path / "in", pairs(2))
    assert "no such directory" in refusal(tmp_path / "nowhere")
    assert "is no directory" in refusal(root / "sample-0.jpg")
    (root / "inside.jpg").symlink_to("sample-0.jpg")
    (root / "inside.txt").symlink_to(root / "a" / "sample-1.txt")
    assert FilesSource(root, CONFIG.files).keys == ["a/sample-1", "inside", "sample-0"]
    secret = tmp_path / "secret"
    secret.write_text("1")
    for target in (secret, root / "a", root / "nothing", tmp_path):
        (root / "link.jpg").symlink_to(target)
        assert "'link.jpg' is a link" in refusal(root)
        (root / "link.jpg").unlink()
    os.mkfifo(root / "pipe.jpg")
    assert "'pipe.jpg' is no file" in refusal(root)


# --- changes and growth ---


def test_what_changes_after_it_was_planned_is_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "in", pairs(4))
    planned = plan_source(str(root), CONFIG)
    assert isinstance(planned, PlannedSource)
    assert planned.file == FileState.of(str(root))
    source = FilesSource(root, CONFIG.files)

    def change(action: Any, told: str) -> None:
        action()
        with pytest.raises(SourceError, match="changed while|'sample-0' lacks .jpg"):
            planned.file.open(CONFIG)
        with pytest.raises(SourceError, match=told):
            list(source.read(0, 4))
        write(root, pairs(4))
        for entry in source.listing.files:
            os.utime(root / entry.path, ns=(entry.mtime_ns, entry.mtime_ns))
        planned.file.open(CONFIG).close()
        assert len(list(source.read(0, 4))) == 4

    change(lambda: (root / "sample-0.jpg").unlink(), "'sample-0.jpg' cannot be read: No such file")
    change(lambda: (root / "sample-0.jpg").write_bytes(b"other"), "'sample-0.jpg' has changed")
    change(lambda: os.utime(root / "a" / "sample-1.txt", ns=(0, 0)), "'a/sample-1.txt' has changed")
    (root / "new.jpg").touch()
    with pytest.raises(SourceError, match="changed while"):
        planned.file.open(SourceConfig.of(format="files", allow_missing=True))


def test_a_share_of_other_files_is_not_joined(tmp_path: Path) -> None:
    root = write(tmp_path / "in", pairs(6))
    write_share([root], Output(tmp_path / "out", shard_size=2), Task(0, 2), CONFIG)
    write(root, {"sample-0.txt": b"another text"})
    with pytest.raises(OutputError, match="has changed"):
        convert([root], Output(tmp_path / "out", shard_size=2), CONFIG)


def test_directories_are_joined_where_their_keys_differ(tmp_path: Path) -> None:
    write(tmp_path / "in", pairs(6))
    ways = [[tmp_path / "in" / "a", tmp_path / "in" / "b"], [tmp_path / "in" / "a", tmp_path / "in" / "a" / ".." / "a"]]
    conversion = convert(ways[0], Output(tmp_path / "out"), CONFIG)
    assert [*stored(tmp_path / "out")] == ["sample-1", "sample-4", "c d/sample-2", "c d/sample-5"]
    assert not conversion.plan.failures
    conversion = convert(ways[1], Output(tmp_path / "twice"), CONFIG)
    assert [error.problem for error in conversion.plan.failures] == [
        "2 of its samples have keys that others have, such as 'sample-1'"
    ]
    write(tmp_path / "more", {"new.jpg": b"1", "new.txt": b"2"})
    write(tmp_path / "known", {"sample-1.jpg": b"1", "sample-1.txt": b"2"})
    append([tmp_path / "more"], Output(tmp_path / "out"), CONFIG)
    assert [*stored(tmp_path / "out")][-1] == "new" and verify(tmp_path / "out", deep=True).ok
    with pytest.raises(SourceError, match="have keys that others have, such as 'sample-1'"):
        append([tmp_path / "known"], Output(tmp_path / "out"), CONFIG)


def test_many_files_are_found_at_once_and_a_run_opens_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 5000
    for i in range(n):
        (tmp_path / f"{i:05d}.x").touch()
    states: list[FileState] = []
    assert lines_run(lambda: states.append(FileState.of(str(tmp_path)))) < 50 * n
    [state] = states
    assert state.size == 0 and len(state.sha256) == hashlib.sha256().digest_size * 2
    opened = []
    read = FilesSource.read
    monkeypatch.setattr(FilesSource, "read", lambda self, a, b: opened.append((a, b)) or read(self, a, b))
    convert([tmp_path], Output(tmp_path.parent / "out", shard_size=2000), CONFIG)
    assert opened == [(0, 2000), (2000, 4000), (4000, 5000)]


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "in", pairs(3))
    assert main(["convert", "-i", str(root), "-o", str(tmp_path / "out"), "--format", "files", "--dry-run"]) == 0
    assert "3 windows" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--allow-missing"], "--allow-missing=True: concerns only files and imagefolder"),
        (["--keep-encoded", "--format", "mnist"], "--keep-encoded"),
        (["--subset", "train", "--format", "imagefolder"], "--subset"),
    ],
)
def test_options_of_other_formats_are_wrong_usage(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["convert", "-i", str(tmp_path), "-o", str(tmp_path / "out"), *arguments])
    assert left.value.code == 2 and told in capsys.readouterr().err
