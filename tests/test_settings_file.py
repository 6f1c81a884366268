"""Settings in files, lists of inputs, and what fits a terminal: as typed, from a file, and from a manifest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recordings import make_recording

from neurofmx_wds.cli.main import main
from neurofmx_wds.cli.options import savable_options
from neurofmx_wds.convert.inputs import listed
from neurofmx_wds.convert.settings_file import read_settings, save_settings
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.info import ShardedDatasetInfo, format_summary
from neurofmx_wds.format.manifest import Manifest

TYPED: list[list[str]] = [
    [],
    ["--bin-size-ms", "100/3", "--sequence-length", "30", "--overlap", "0", "--spike-dtype", "uint8"],
    ["--modalities", "behavior,spikes", "--interval", "0", "2.5", "--interval", "3", "8", "--shard-size", "7"],
    ["--align", "trials", "--before", "0.5", "--after", "1", "--event-values", "--compression", "gz"],
    ["--layout", "segments", "--segment-s", "2", "--max-gap-s", "0.5"],
    ["--split", "train=0.5,val=0.5", "--split-by", "time", "--bin-size-ms", "20", "--key-prefix", "x_"],
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "a.nwb"
    make_recording(path, behavior_rate=50.0, trials=3)
    return path


def manifests(directory: Path) -> dict[str, bytes]:
    return {str(each.relative_to(directory)): each.read_bytes() for each in directory.rglob("dataset_metadata.json")}


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize("typed", TYPED)
def test_settings_that_were_saved_make_the_same_dataset(
    typed: list[str], suffix: str, recording: Path, tmp_path: Path
) -> None:
    pytest.importorskip("yaml")
    settings = str(tmp_path / f"settings{suffix}")
    assert main(["convert", "-i", str(recording), "-o", str(tmp_path / "a"), *typed, "--save-config", settings]) == 0
    assert main(["convert", "-i", str(recording), "-o", str(tmp_path / "b"), "--config", settings]) == 0
    made = manifests(tmp_path / "a")
    assert made and made == manifests(tmp_path / "b")
    if len(made) == 1:  # a dataset's manifest is a file of settings, too
        manifest = str(tmp_path / "a" / "dataset_metadata.json")
        assert main(["convert", "-i", str(recording), "-o", str(tmp_path / "c"), "--config", manifest]) == 0
        assert made == manifests(tmp_path / "c")


def test_what_is_typed_counts_more(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"bin-size-ms": 50, "sequence_length": 20, "modalities": ["spikes"]}))
    options = ["--config", str(tmp_path / "s.json"), "--sequence-length", "10"]
    assert main(["convert", "-i", str(recording), "-o", str(tmp_path / "out"), *options]) == 0
    config = Manifest.load(tmp_path / "out").config
    assert (config["bin_size_ms"], config["sequence_length"], config["modalities"]) == (50, 10, ["spikes"])


@pytest.mark.parametrize(
    ("text", "status", "told"),
    [
        ('{"bin-size": 3}', 2, "no setting bin-size; did you mean bin-size-ms?"),
        ('{"overlap": "many"}', 2, "overlap: must be a number"),
        ('{"compression": "zip"}', 2, "compression: must be one of none"),
        ('{"event-values": 3}', 2, "event-values: must be true or false"),
        ('{"overlap": 7}', 2, "--overlap=7.0: must be"),
        ('{"interval": 3}', 2, "interval: "),
        ('{"workers": 0}', 2, "--workers"),
        ("[1, 2]", 2, "must be a mapping"),
        ("{", 1, "cannot be read"),
        (None, 1, "No such file"),
    ],
)
def test_bad_files_of_settings_get_one_line(
    text: str | None, status: int, told: str, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    command = ["convert", "-i", str(recording), "-o", str(tmp_path / "out"), "--config", str(tmp_path / "s.json")]
    try:
        got = main(command)
    except SystemExit as left:
        got = int(left.code or 0)
    shown = capsys.readouterr().err
    assert got == status and told in shown and len(shown.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_yaml_that_would_grow_or_run_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    for text in ("a: &a [1]\nb: *a\n", "overlap: !!python/object/apply:os.system ['true']\n"):
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(SourceError):
            read_settings(tmp_path / "s.yaml", savable_options())


def test_every_setting_survives(tmp_path: Path) -> None:
    samples: dict[str, Any] = {"shares": {"a": 0.25, "b": 0.75}, "intervals": [[0.5, 2.0], [3.0, 4.0]]}
    samples |= {"modalities": ("x", "y"), "field_format": "npy.gz"}
    for option in savable_options():
        value = samples.get(option.name)
        if value is None:
            one = True if option.parse is bool else option.choices[-1] if option.choices else option.parse("3")
            words = option.metavar.split()
            value = [[one] * len(words)] if len(words) > 1 else one
        save_settings(tmp_path / "s.json", {option.name: value}, savable_options())
        assert read_settings(tmp_path / "s.json", savable_options()) == {option.name: value}, option.name


def test_lists_of_inputs(tmp_path: Path) -> None:
    names = ["a b.nwb", "s3://bucket/*.nwb", "dir", "é.nwb", " leading.nwb", "x\u2028y.nwb"]
    for text in ("# mine\n" + "\n".join(names) + "\n\n", "\r\n".join(names), "\0".join(names) + "\0"):
        (tmp_path / "list.txt").write_bytes(text.encode())
        assert listed(["first", f"@{tmp_path / 'list.txt'}", "last"]) == ["first", *names, "last"]
        assert listed(["-"], text) == names
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for bad in ("empty.txt", "nosuch.txt"):
        with pytest.raises(SourceError, match=bad):
            listed([f"@{tmp_path / bad}"])


def test_files_on_the_standard_input(recording: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neurofmx_wds"]
    given = f"{recording}\n".encode()
    subprocess.run([*command, "convert", "-i", "-", "-o", str(tmp_path / "out")], input=given, check=True)
    assert Manifest.load(tmp_path / "out").sources[0]["path"] == "a.nwb"
    shown = subprocess.run([*command, "inspect", "-", "--json"], input=given, capture_output=True, check=True)
    assert json.loads(shown.stdout)[0]["name"] == "a.nwb"
    nothing = subprocess.run([*command, "inspect", "-"], input=b"", capture_output=True)
    assert nothing.returncode == 1 and b"lists no inputs" in nothing.stderr


@pytest.mark.parametrize("typed", TYPED[:4])
def test_info_fits_80_columns(typed: list[str], recording: Path, tmp_path: Path) -> None:
    assert main(["convert", "-i", str(recording), "-o", str(tmp_path / "out"), *typed]) == 0
    summary = ShardedDatasetInfo(tmp_path / "out").get_summary()
    summary["sources"][0]["warnings"] += ["a very long warning " * 12]
    lines = format_summary({**summary, "shard_dir": "out"}, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "\n".join(lines).count("a very long warning") >= 9
    if summary["total_shards"] == 1:
        assert "1 shard, " in lines[1]
