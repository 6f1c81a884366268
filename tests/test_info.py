"""What `info` and the end of `convert` show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pynwb
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from recordings import make_recording

from neurofmx_wds import ShardedDatasetInfo, create_shards_from_arrays
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.format.info import format_summary, human_size, table
from neurofmx_wds.format.notes import note_lines

words = st.text(st.characters(categories=["L", "N"], max_codepoint=0x2FF), max_size=60)


@given(rows=st.lists(st.tuples(words, st.integers(-(10**9), 10**9) | st.none(), words), max_size=6))
def test_columns_are_aligned_and_complete(rows: list[tuple[str, int | None, str]]) -> None:
    numbers = ["" if row[1] is None else f"{row[1]:,}" for row in rows]
    first = max(map(len, ["first", *(row[0] for row in rows)]))
    second = max(map(len, ["second", *numbers]))
    lines = table(["first", "second", "third"], rows, indent="> ").split("\n")
    assert len(lines) == len(rows) + 1
    for line, row, number in zip(lines[1:], rows, numbers, strict=True):
        assert line == line.rstrip()
        line = line.ljust(2 + first + 2 + second + 2)
        assert line[: 2 + first].rstrip() == f"> {row[0]}".rstrip()
        assert line[2 + first + 2 :][:second] == number.rjust(second)
        assert line[2 + first + 2 + second + 2 :] == row[2]


@given(rows=st.lists(st.tuples(words, st.integers(0, 10**6), words), max_size=5), width=st.integers(30, 200))
def test_a_table_is_never_wider_than_the_terminal(rows: list[tuple[str, int, str]], width: int) -> None:
    wide = table(["first", "second", "third"], rows)
    lines = table(["first", "second", "third"], rows, width).split("\n")
    assert max(map(len, lines)) <= width
    if max(map(len, wide.split("\n"))) <= width:
        assert "\n".join(lines) == wide
    for line, row in zip(lines[1:], rows, strict=True):
        assert f"{row[1]:,}" in line or len(f"{row[1]:,}") > width // 4


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_900, "99.9 kB"), (999_999, "1.0 MB"), (123_456_789, "123 MB")],
)
def test_sizes_read_as_people_write_them(size: int, text: str) -> None:
    assert human_size(size) == text


def test_the_summary_is_the_manifest_and_where_it_is(tmp_path: Path) -> None:
    made = create_shards_from_arrays(tmp_path / "d", {"x": np.zeros((5, 3), "int16")}, shard_size=2)
    summary = ShardedDatasetInfo(tmp_path / "d").get_summary()
    assert {key: summary[key] for key in made} == made
    assert summary["shard_dir"] == str(tmp_path / "d")
    assert repr(ShardedDatasetInfo(tmp_path / "d")) == f"ShardedDatasetInfo('{tmp_path / 'd'}', samples=5, shards=3)"
    assert summary["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / "d").glob("*.tar"))


def test_shards_of_plain_webdataset_are_told_too(tmp_path: Path) -> None:
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f"shard_{shard}.tar")) as tar:
            for i in range(3 - shard):
                tar.write({"__key__": f"k{shard}{i}", "x.npy": np.zeros((2, i), "float32"), "y.cls": i, "z.jpg": b"?"})
    info = ShardedDatasetInfo(tmp_path)
    summary = info.get_summary()
    assert (summary["total_samples"], summary["total_shards"], summary["shard_size"]) == (5, 2, 3)
    assert summary["modalities"]["x"] == {"dtype": "float32", "shape": [2, None]}
    text = format_summary(summary)
    assert "no manifest" in text and "2 × ?" in text and "jpg" in text


def test_a_recording_is_shown_with_all_that_was_taken_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = make_recording(
        tmp_path / "a.nwb", seconds=9, behavior_rate=50.0, session_id="monday", invalid_times=[(4, 5)]
    )
    make_recording(tmp_path / "b.nwb", seconds=6, n_units=2, session_id="tuesday", identifier="b")
    (tmp_path / "c.nwb").write_bytes(b"nothing")
    convert(sorted(tmp_path.glob("*.nwb")), Output(tmp_path / "out"), SourceConfig.of(sequence_length=50))
    ShardedDatasetInfo(tmp_path / "out").print_summary()
    shown = capsys.readouterr().out
    summary = ShardedDatasetInfo(tmp_path / "out").get_summary()
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    for name, source in zip(["a.nwb", "b.nwb"], summary["sources"], strict=False):
        spikes = [str(source["spikes"][kind]) for kind in ("total", "binned", "outside", "invalid")]
        lines = [line.split() for line in shown.splitlines() if line.strip().startswith(name + " ")]
        assert lines[0][1:4] == [source["session_id"], "mouse-1", str(source["windows"]["emitted"])]
        assert lines[0][-4:] == spikes
    assert sum(map(len, truth["spike_times"])) == summary["sources"][0]["spikes"]["total"]
    assert rows["all"][1] == str(summary["total_samples"])
    assert rows["spikes"][1:5] == ["float32", "50", "×", "?"] and "count" in rows["spikes"]
    assert "dropped: in invalid_times" in shown and "c.nwb: left out: " in shown


def test_a_field_that_not_all_samples_have_says_how_many_do(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=6, behavior_rate=50.0)
    make_recording(tmp_path / "b.nwb", seconds=9, n_units=2, identifier="b")
    config = SourceConfig.of(sequence_length=50)
    emitted = convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), config).summary["total_samples"]
    text = format_summary(ShardedDatasetInfo(tmp_path / "out").get_summary())
    assert " in " not in text.split("\n\n")[1]
    total = append([tmp_path / "b.nwb"], Output(tmp_path / "out"), config).summary["total_samples"]
    convert([tmp_path / "b.nwb", tmp_path / "a.nwb"], Output(tmp_path / "both"), config)
    for directory in (tmp_path / "out", tmp_path / "both"):
        rows = format_summary(ShardedDatasetInfo(directory).get_summary()).splitlines()
        told = {row.split()[0] for row in rows if row.endswith(f"in {emitted} of {total} samples")}
        assert told == {"behavior", "behavior_mask"}


def test_many_sources_are_cut_short_and_summed_up(tmp_path: Path) -> None:
    for i in range(30):
        np.savez(tmp_path / f"{i:02d}.npz", x=np.zeros((i + 1, 2)))
    convert(sorted(tmp_path.glob("*.npz")), Output(tmp_path / "out"))
    lines = format_summary(ShardedDatasetInfo(tmp_path / "out").get_summary(), 80).splitlines()
    assert "  and 10 more" in lines
    assert lines[-1].split() == ["all", str(30 * 31 // 2), "0"]


def not_taken(n: int, name: str) -> dict[str, object]:
    objects = [{"path": f"scratch/x{i}", "type": "TimeSeries", "why": "in scratch", "take": "--x"} for i in range(n)]
    return {"path": name, "not_taken": objects, "warnings": ["scratch/x0 left out: in scratch", "scratch/x odd"]}


def test_objects_that_are_not_taken_are_listed_once_and_all_on_request() -> None:
    lines = note_lines([not_taken(20, "a.nwb"), not_taken(1, "b.nwb")])
    assert [line.strip() for line in lines[:2]] == ["a.nwb: scratch/x odd", "b.nwb: scratch/x odd"]
    assert lines[3].strip() == "scratch/x0 (TimeSeries) of 2 sources: in scratch; --x takes it"
    assert lines[4].strip() == "scratch/x1 (TimeSeries) of a.nwb: in scratch; --x takes it"
    assert lines[-1].strip().startswith(f"and {20 - (len(lines) - 4)} more: --all")
    assert len(note_lines([not_taken(20, "a.nwb"), not_taken(1, "b.nwb")], every=True)) == 2 + 1 + 20
    assert note_lines([{"not_taken": 3}, {"not_taken": [3]}]) == []


def test_convert_info_and_a_dry_run_name_what_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def more(nwb: pynwb.NWBFile) -> None:
        for i in range(9):
            nwb.add_analysis(pynwb.TimeSeries(f"y{i}", data=np.arange(900.0), unit="V", rate=100.0))

    make_recording(tmp_path / "a.nwb", seconds=9, extra=more)
    given = ["convert", "-i", str(tmp_path / "a.nwb"), "-o", str(tmp_path / "out")]
    for command in ([*given, "--dry-run"], given, ["info", str(tmp_path / "out")]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "analysis/y0 (TimeSeries): in analysis; --modalities spikes,analysis/y0 takes it" in shown
        assert "and 3 more: --all" in shown and "analysis/y8" not in shown
        assert main([*command, "--all"]) == 0
        assert "analysis/y8 (TimeSeries)" in capsys.readouterr().out
