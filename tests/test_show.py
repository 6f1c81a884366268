"""What `read` shows: every kind of value, all shards, nothing that acts on a terminal, and nothing that runs."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from neurofmx_wds import WebDatasetLoader, WebDatasetWriter
from neurofmx_wds.cli.main import main
from neurofmx_wds.cli.show import sample_lines
from neurofmx_wds.convert.link import link_group


def picture(size: tuple[int, int], format: str) -> bytes:
    stream = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", size).save(stream, format)
    return stream.getvalue()


def test_every_kind_of_value_over_all_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jpg, png = picture((640, 480), "JPEG"), picture((3, 2), "PNG")
    with WebDatasetWriter(tmp_path / "out", shard_size=2) as writer:
        for i in range(5):
            values = {"a.jpg": jpg, "b.png": png, "raw": b"12345", "spikes": np.zeros((4, 3), "uint8"), "n": i}
            values |= {"note": "Grüße\nzwei", "about": {"k": [1, None]}, "z.npz": {"x": np.ones(2, "float32")}}
            writer.write_sample(values, f"folder/{i}", metadata={"trial": i})
    assert main(["read", str(tmp_path / "out"), "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = f"{len(jpg) / 1000:.1f} kB"
    for i in range(5):
        assert lines[10 * i : 10 * (i + 1)] == [
            f"folder/{i}",
            f"  a         640 × 480 pixels, JPEG, {size}",
            '  about     {"k": [1, null]}',
            f"  b         3 × 2 pixels, PNG, {len(png)} B",
            f"  n         {i} (int64)",
            "  note      Grüße\\nzwei",
            "  raw       5 B",
            "  spikes    4 × 3 uint8",
            '  z         {"x": "2 float32"}',
            f'  metadata  {{"trial": {i}}}',
        ]
    assert lines[50:] == ["5 of 5 samples in 3 shards"]
    assert main(["read", str(tmp_path / "out"), "-n", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [*lines[:30], "3 of 5 samples in 3 shards"]
    assert len([line for line in lines if line.startswith("folder/")]) == 5


def test_a_linked_group_is_shown_as_the_loaders_give_it(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "all", shard_size=4) as writer:
        for i in range(12):
            writer.write_sample({"label": i % 4}, metadata={"i": i})
    link_group(tmp_path / "all", tmp_path / "rest", "rest", {"rest": [3, 0]})
    lines = list(sample_lines(tmp_path / "rest", most=5))
    given = list(WebDatasetLoader(tmp_path / "rest", shuffle=False))
    assert len(given) == 6 and given[0]["label"] == 1 and given[0]["metadata"] == {"i": 0}
    told = [[each["__key__"], f"  label     {each['label']} (int64)"] for each in given[:5]]
    assert [lines[i : i + 2] for i in range(0, 15, 3)] == told
    assert lines[15:] == ["5 of 6 samples of the group 'rest' in 3 shards"]


def test_lines_fit_the_terminal_and_cannot_act_on_it(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\r\u202edrow\x9b31m"
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for name in (f"k{evil}/a.txt", f"k{evil}/a.js{evil}on"):
            info = tarfile.TarInfo(name)
            info.size = len(evil.encode()) * 50
            tar.addfile(info, io.BytesIO(evil.encode() * 50))
    for width in (None, 40, 80):
        lines = list(sample_lines(tmp_path / "foreign.tar", width=width))
        assert len(lines) == 5 and all(line.isprintable() for line in lines)
        assert width is None or max(map(len, lines)) == width
    assert "\\x1b]0;title\\x07\\x1b[2J\\r\\u202edrow\\x9b31m" in list(sample_lines(tmp_path / "foreign.tar"))[1]


def test_without_pillow_an_image_is_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = picture((3, 2), "PNG")
    with WebDatasetWriter(tmp_path / "out") as writer:
        writer.write_sample({"a.png": png})
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert f"  a         {len(png)} B" in list(sample_lines(tmp_path / "out"))


def test_what_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WebDatasetWriter(tmp_path / "out") as writer:
        writer.write_sample({"a.pyd": b"cos\nsystem\n(S'touch harmed'\ntR."})
    assert main(["read", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "asks for os.system" in told.err and "sample_000000000" in told.err
    assert main(["read", str(tmp_path / "nowhere")]) == 1
    with pytest.raises(SystemExit) as left:
        main(["read", str(tmp_path / "out"), "-n", "0"])
    assert left.value.code == 2
