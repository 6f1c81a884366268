"""The commands as people use them: exit status, what is on which stream, and what is never shown."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from recordings import make_recording

from neurofmx_wds import NWBToWebDatasetConverter, WebDatasetWriter, create_shards_from_arrays
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.link import link_group
from neurofmx_wds.errors import OutputError
from neurofmx_wds.format.manifest import Manifest

MODULE = [sys.executable, "-m", "neurofmx_wds"]


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", spikes=np.arange(40, dtype="uint8").reshape(10, 4), label=np.arange(10))
    return tmp_path / "in.npz"


def test_convert_info_verify_index(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["convert", "-i", str(npz), "-o", out, "--shard-size", "3", "--compression", "gz", "--validate"]) == 0
    told = capsys.readouterr()
    assert "10 samples, 4 shards" in told.out and "compressed (gz)" in told.out and "validated" in told.out
    assert told.err == ""
    assert main(["info", out]) == 0
    assert capsys.readouterr().out in told.out
    assert main(["info", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total_samples"] == 10
    assert main(["verify", out, "--deep"]) == 0
    assert "4 shards, 10 samples" in capsys.readouterr().out
    (tmp_path / "out" / "shard_000002.index").unlink()
    assert main(["verify", out]) == 1
    assert "shard_000002.index" in capsys.readouterr().err
    assert main(["index", out]) == 0
    assert "1 index written, 3 shards" in capsys.readouterr().out
    assert main(["verify", out]) == 0


def test_options_reach_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_recording(tmp_path / "a.nwb", seconds=10, behavior_rate=50.0)
    command = ["convert", "-i", str(tmp_path / "a.nwb"), "-o", str(tmp_path / "out"), "--modalities", "behavior,spikes"]
    command += ["--bin-size-ms", "100/3", "--sequence-length", "30", "--overlap", "0", "--spike-dtype", "uint8"]
    command += ["--interval", "0", "4", "--interval", "5", "8.5", "--behavior-method", "linear", "--max-gap-s", "1"]
    assert main(command) == 0
    manifest = Manifest.load(tmp_path / "out")
    wanted = {"modalities": ["behavior", "spikes"], "bin_size_ms": "100/3", "sequence_length": 30, "overlap": 0.0}
    wanted |= {"spike_dtype": "uint8", "intervals": [[0.0, 4.0], [5.0, 8.5]], "max_gap_s": 1.0}
    assert manifest.config.items() >= wanted.items()
    assert manifest.modalities["spikes"]["dtype"] == "uint8"
    assert manifest.total_samples == 4 + 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shard-size", "0"], "--shard-size must be a positive integer, not 0"),
        (["--overlap", "1.5"], "--overlap=1.5: must be"),
        (["--bin-size-ms", "ten"], "--bin-size-ms"),
        (["--bin-size-ms", "-1"], "--bin-size-ms"),
        (
            ["--bin-size-ms", "123456789/987654321"],
            "--bin-size-ms='13717421/109739369': too large, or too fine",
        ),
        (["--sequence-length", "0"], "--sequence-length"),
        (["--workers", "0"], "--workers"),
        (["--compression", "zip"], "--compression"),
        (["--spike-dtype", "float33"], "--spike-dtype"),
        (["--interval", "3", "1"], "--interval"),
        (["--modalities", "spikes,spikes"], "--modalities"),
        (["--nonsense"], "--nonsense"),
        (["--before", "0.5"], "--before: goes together with --align"),
        (["--after", "1"], "--after: goes together with --align"),
        (["--event", "start_time"], "--event: goes together with --align"),
        (["--align", "trials", "--sequence-length", "100"], "--sequence-length: not together with --align"),
        (["--align", "trials", "--overlap", "0.25"], "--overlap: not together with --align"),
        (["--align", "trials", "--before", "-1"], "--before='-1': windows must begin before they end, 1.0 s after"),
        (["--align", "trials", "--before", "0.5", "--after", "-0.5"], "--after='-0.5': windows must end after they"),
        (["--align", "trials"], "--align='trials': concerns only nwb"),
        (["--format", "nwb", "--rate", "10"], "--rate=10.0: concerns only npz and npy"),
        (["--format", "files", "--timestamps", "t"], "--timestamps='t': concerns only npz and npy"),
        (["--split-by", "session"], "--split-by: goes together with --split"),
        (["--task", "0", "--tasks", "1", "--validate"], "--task: not together with --validate"),
        (["--repair", "--dry-run"], "--repair: not together with --dry-run"),
        (["--link-group", "a", "--dry-run"], "--link-group: not together with --dry-run"),
    ],
)
def test_wrong_usage_is_status_2_and_names_the_option(
    arguments: list[str], told: str, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["convert", "-i", str(npz), "-o", str(tmp_path / "out"), *arguments])
    assert left.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--rate", "100"], ["--align", "trials"]])
def test_an_option_that_one_of_the_files_heeds_is_no_wrong_usage(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((300, 2)))
    make_recording(tmp_path / "b.nwb", trials=3)
    (tmp_path / "b.nwb").rename(tmp_path / "b")  # known by its first bytes
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b")]
    main(["convert", "-i", *files, "-o", str(tmp_path / "out"), *options])
    assert "usage" not in capsys.readouterr().err
    missing = ["convert", "-i", str(tmp_path / "none"), "-o", str(tmp_path / "other"), *options]
    assert main(missing) == 1 and "No such file" in capsys.readouterr().err


def test_files_are_found_by_patterns_and_in_directories_each_once(npz: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "data" / "deeper"
    deeper.mkdir(parents=True)
    np.save(tmp_path / "data" / "[odd] name.npy", np.zeros(2))
    with open(deeper / "b.NPY", "wb") as file:
        np.save(file, np.zeros(3))
    np.savez(deeper / "a.npz", data=np.zeros(4))
    (deeper / "notes.txt").write_text("no array")
    odd = str(tmp_path / "data" / "[odd] name.npy")
    given = [odd, str(tmp_path / "data" / "*" / "*.np[yz]"), str(tmp_path / "data"), str(npz)]
    assert main(["convert", "-i", *given[:2], "-i", *given[2:], "-o", str(tmp_path / "out")]) == 0
    sources = Manifest.load(tmp_path / "out").sources
    assert [source["path"] for source in sources] == ["[odd] name.npy", "a.npz", "b.NPY", "in.npz"]
    assert main(["convert", "-i", str(tmp_path / "data"), "--format", "npy", "-o", str(tmp_path / "npy")]) == 0
    assert [s["path"] for s in Manifest.load(tmp_path / "npy").sources] == ["[odd] name.npy", "b.NPY"]


def test_a_name_that_is_no_utf8_can_be_shown(npz: Path, tmp_path: Path) -> None:
    odd = npz.rename(tmp_path / os.fsdecode(b"bad\xff.npz"))
    command = [*MODULE, "convert", "--dry-run", "-i", str(odd), "-o", str(tmp_path / "out")]
    shown = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True)
    assert (shown.returncode, shown.stderr) == (0, b"") and rb"bad\udcff.npz" in shown.stdout


def test_a_bad_file_is_named_in_the_end_with_status_1_and_the_rest_is_done(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.nwb").write_text("nothing")
    given = [str(tmp_path / "bad.nwb"), str(npz), str(tmp_path / "none*.npz")]
    assert main(["convert", "-i", *given, "-o", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "2 of 3 files could not be converted" in told.err
    assert [line.split(":")[1].strip() for line in told.err.splitlines() if line.startswith("error")] == [
        given[0],
        given[2],
    ]
    assert "Traceback" not in told.err
    assert Manifest.load(tmp_path / "out").total_samples == 10


@pytest.mark.parametrize("url", ["hf://bucket/shards", "S3://bucket", "https://host:8080/a", "simplecache::s3://b/x"])
def test_nothing_is_written_to_a_url(
    url: str, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(tmp_path / "data")
    assert main(["convert", "-i", str(npz), "-o", data]) == 0
    Path(data, "groups.json").write_text('{"data": {"few": ["1"]}}')
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    capsys.readouterr()
    convert = ["convert", "-i", str(npz), "-o", url]
    split = [*convert, "--split", "train=0.5,val=0.5"]
    for command in (
        *(convert, [*convert, "--dry-run"], [*convert, "--append"], [*convert, "--repair"], [*convert, "--overwrite"]),
        *(split, [*split, "--append"], [*convert, "--task", "0", "--tasks", "2"]),
        *(["merge", data, "-o", url], ["export", data, "-o", url], ["demo", "--output", url]),
    ):
        assert main(command) == 1, command
        told = capsys.readouterr().err
        assert "a URL cannot be written to" in told and "copy" in told and told.count("\n") == 1
    for write in (
        lambda: WebDatasetWriter(url),
        lambda: WebDatasetWriter(Path(url)),
        lambda: create_shards_from_arrays(url, {"x": np.zeros(3)}),
        lambda: NWBToWebDatasetConverter(url),
        lambda: link_group(data, url, "few"),
    ):
        with pytest.raises(OutputError, match="a URL cannot be written to"):
            write()
    assert not list(place.iterdir())


@pytest.mark.parametrize("package", ["numpy", "webdataset", "tqdm", "pynwb", "h5py"])
def test_a_package_that_is_not_installed_is_named(package: str, tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb")
    code = f"""if True:
        import sys
        class Absent:
            def find_spec(self, name, *_):
                if name.partition(".")[0] == {package!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        from neurofmx_wds.__main__ import run
        sys.exit(run())"""
    command = [sys.executable, "-c", code, "convert", "-i", str(tmp_path / "a.nwb"), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.endswith(f"the package {package} is not installed (pip install {package})\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_the_output_cannot_encode_is_replaced(encoding: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "Mäuse→1.npz", x=np.zeros((3, 2)))
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    data, out = str(tmp_path / "Mäuse→1.npz"), str(tmp_path / "out")
    for command in (["convert", "-i", data, "-o", out], ["info", out], ["read", out]):
        done = subprocess.run([*MODULE, *command], env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert rb"use\u21921.npz" in done.stdout or command[0] == "read"
    help_text = subprocess.run([*MODULE, "--help"], env=environment, capture_output=True, check=False)
    assert help_text.returncode == 0


def test_errors_are_one_line_and_debug_shows_where(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["info", str(tmp_path / "nowhere")], ["verify", str(tmp_path / "nowhere")], ["index", "nowhere"]):
        assert main(command) == 1
        told = capsys.readouterr()
        assert told.err.startswith("error: ") and "nowhere" in told.err and told.err.count("\n") == 1
        with pytest.raises(FileNotFoundError):
            main([*command, "--debug"])
    for command, name in itertools.product(["verify", "index"], ["shard_000000.tar", "shard_*.tar"]):
        (tmp_path / "shard_000000.tar").touch()
        assert main([command, str(tmp_path / name)]) == 1
        assert f"not a directory (give their directory, {tmp_path}:" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["convert", "-i", str(npz), "-o", str(tmp_path / "out")]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert", "-i", str(npz), "-o", str(tmp_path / "out"), "--overwrite"]) == 1
    assert "'mine'" in capsys.readouterr().err
    (tmp_path / "out" / "mine").unlink()
    assert main(["convert", "-i", str(npz), "-o", str(tmp_path / "out")]) == 0
    assert main(["convert", "-i", str(npz), "-o", str(tmp_path / "out"), "--overwrite"]) == 0
    assert main(["convert", "-i", str(tmp_path / "none.npz"), "-o", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_help_is_there_at_once_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys\nfrom neurofmx_wds.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'pynwb', 'h5py', 'webdataset', 'tqdm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("convert", "info", "verify", "index", "demo"):
        assert command in done.stdout
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        assert f"python -m neurofmx_wds {command} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out.startswith("neurofmx_wds ")
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("number", "whole_group", "status"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGTERM, True, 143)],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted_it_says_so_and_the_same_command_goes_on(
    number: signal.Signals, whole_group: bool, status: int, workers: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.poisson(1.0, (200, 1000)).astype("float32"))
    command = [*MODULE, "convert", "-i", str(tmp_path / "x.npy"), "-o", str(tmp_path / "out"), "--shard-size", "10"]
    command += ["--compression", "xz", "--workers", workers]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / ".out.partial").glob("*.xz")):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == status
    assert told.splitlines() == ["interrupted: what is finished is kept, and the same command goes on from there"]
    with pytest.raises(ProcessLookupError):  # no worker is left, soon
        for _ in range(300):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.partial").glob("*.xz")}
    assert kept
    assert main(command[3:]) == 0
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept} == kept
    assert sorted(os.listdir(tmp_path)) == ["out", "x.npy"]


def test_interrupted_before_it_has_begun_it_shows_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", *MODULE[1:], "info", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.split()[-1] == "argparse":  # the first thing that the command line needs
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert all(line.startswith("import time:") for line in rest.splitlines()), rest


def test_bars_are_shown_on_a_terminal_only(npz: Path, tmp_path: Path) -> None:
    command = [*MODULE, "convert", "-i", str(npz), "-o"]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    piped = subprocess.run([*command, str(tmp_path / "piped")], capture_output=True, text=True, check=True)
    assert piped.stderr == ""
    with subprocess.Popen([*command, str(tmp_path / "seen")], stdout=subprocess.PIPE, stderr=slave) as shown:
        os.close(slave)
        seen = b""
        try:
            while chunk := os.read(master, 4096):
                seen += chunk
        except OSError:  # Linux: the terminal's other side is closed
            pass
        out, _ = shown.communicate()
    os.close(master)
    assert b"converting" in seen and b"10/10" in seen
    assert b"10 samples" in out
    assert subprocess.run([*MODULE, "verify", str(tmp_path / "seen")], capture_output=True, check=True).stderr == b""


def test_a_reader_that_leaves_early_is_no_error(npz: Path, tmp_path: Path) -> None:
    main(["convert", "-i", str(npz), "-o", str(tmp_path / "out")])
    code = f"{sys.executable} -m neurofmx_wds info {tmp_path / 'out'} | true"
    done = subprocess.run(code, shell=True, capture_output=True, text=True)
    assert done.stderr == ""
