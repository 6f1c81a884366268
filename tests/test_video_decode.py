"""Video files beside a recording, decoded frame by frame on request; never a URL, nor what lies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback
from pynwb.image import ImageSeries
from recordings import make_recording, read_all

from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.movie import Movie

av = pytest.importorskip("av", reason="PyAV is not installed")


def make_movie(path: Path, levels: list[int], *, codec: str = "mpeg4", gop: int = 12, b_frames: int = 2) -> None:
    """Writes 32 × 48 pictures of one grey level each, levels apart by much more than compression blurs."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.bit_rate = 4_000_000
        stream.codec_context.thread_count = 1  # threads here would be waited for in processes forked by other tests
        for level in levels:
            picture = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())


def levels_of(n: int, seed: int = 0) -> list[int]:
    return (np.random.default_rng(seed).permutation(n) % 12 * 20 + 10).tolist()


def nearest(pictures: Any) -> list[int]:
    return (np.rint((pictures.mean(axis=(1, 2, 3)) - 10) / 20) * 20 + 10).astype(int).tolist()


def recording(path: Path, files: list[str], firsts: list[int], n: int) -> None:
    def add(nwb: Any) -> None:
        about = {"external_file": files, "starting_frame": firsts, "format": "external", "unit": "n.a."}
        nwb.add_acquisition(ImageSeries(name="eye", timestamps=1 + np.arange(n) / 25, **about))

    make_recording(path, seconds=6, extra=add, obs_intervals=[[[0, 6]]] * 4)


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_every_frame_is_found_in_any_order(tmp_path: Path, suffix: str, b_frames: int) -> None:
    levels = levels_of(70)
    make_movie(tmp_path / f"m.{suffix}", levels, b_frames=b_frames if suffix != "avi" else 0)
    movie = Movie(str(tmp_path / "a.nwb"), [f"m.{suffix}"], np.array([0]), 70)
    assert movie.shape == (70, 32, 48, 3)
    rng = np.random.default_rng(1)
    for _ in range(12):
        numbers = np.sort(rng.choice(70, rng.integers(1, 20), replace=False))
        assert nearest(movie[numbers]) == [levels[i] for i in numbers]
    with pytest.raises(OSError, match=r"frame 70 of m\..*it has 70"):
        movie[np.array([70])]
    movie.close()


def test_windows_hold_the_pictures_that_the_numbers_name(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    levels = [levels_of(40, 1), levels_of(45, 2)]
    for name, each in zip("ab", levels, strict=True):
        make_movie(tmp_path / "videos" / f"{name}.mp4", each)
    recording(tmp_path / "a.nwb", ["videos/a.mp4", str(tmp_path / "videos" / "b.mp4")], [0, 40], 85)
    _, numbered = read_all(tmp_path / "a.nwb", modalities=("spikes", "video"))
    described, decoded = read_all(tmp_path / "a.nwb", modalities=("spikes", "video"), decode_video=True)
    assert described.fields["video"] | {"paths": 0} == {
        "dtype": "uint8", "shape": [50, 32, 48, 3], "unit": "n.a.", "paths": 0,
    }  # fmt: skip
    assert len(decoded) == len(numbered) > 10
    for (fields, _), (places, _) in zip(decoded, numbered, strict=True):
        there = places["video_frame"][:, 0] >= 0
        np.testing.assert_array_equal(fields["video_mask"], there)
        assert not fields["video"][~there].any()
        if there.any():
            assert nearest(fields["video"][there]) == [levels[f][i] for f, i in places["video_frame"][there].tolist()]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone.mp4", "gone.mp4 is not there"),
        ("../m.mp4", "is not below the recording's directory"),
        ("/etc/passwd", "is not below the recording's directory"),
        ("URL/m.mp4", "is a URL, and never fetched"),
        ("file:m.mp4", "is a URL, and never fetched"),
        ("text.mp4", "text.mp4 cannot be opened as video"),
        ("list.m3u8", "list.m3u8 cannot be opened as video"),
        ("script.mp4", "script.mp4 cannot be opened as video"),
    ],
)
def test_what_is_not_opened_is_told_and_numbered(tmp_path: Path, name: str, told: str) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    make_movie(tmp_path / "m.mp4", levels_of(30))
    with Loopback({"m.mp4": (tmp_path / "m.mp4").read_bytes()}) as server:
        (directory / "text.mp4").write_text("no video" * 100)
        (directory / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{server.url}/m.mp4\n#EXT-X-ENDLIST\n")
        (directory / "script.mp4").write_text(f"ffconcat version 1.0\nfile {server.url}/m.mp4\n")
        recording(directory / "a.nwb", [name.replace("URL", server.url)], [0], 30)
        described, _ = read_all(directory / "a.nwb", modalities=("spikes", "video"), decode_video=True)
        assert server.requests == []
    assert "video_frame" in described.fields and "video" not in described.fields
    assert any("only numbered, not decoded" in line and told in line for line in described.report["warnings"])


def test_a_recording_behind_a_url_names_nothing_that_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    make_movie(tmp_path / "m.mp4", levels_of(30))
    recording(tmp_path / "a.nwb", ["m.mp4"], [0], 30)
    with Loopback({name: (tmp_path / name).read_bytes() for name in ("a.nwb", "m.mp4")}) as server:
        config = SourceConfig.of(modalities=("spikes", "video"), decode_video=True)
        [source] = convert([f"{server.url}/a.nwb"], Output(tmp_path / "out"), config).summary["sources"]
        assert {path for _, path, *_ in server.requests} == {"a.nwb"}
    assert any("files that it refers to are not looked for" in line for line in source["warnings"])


def test_files_too_short_or_cut_end_in_one_error(tmp_path: Path) -> None:
    make_movie(tmp_path / "m.mp4", levels_of(30))
    recording(tmp_path / "a.nwb", ["m.mp4"], [0], 60)
    config = SourceConfig.of(modalities=("spikes", "video"), decode_video=True)
    with pytest.raises(SourceError, match=r"frames of acquisition/eye cannot be read: frame 30 of m\.mp4: it has 30"):
        convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), config)
    assert not (tmp_path / "out").exists()
