"""Pictures of recordings and samples: what the panels hold is what the file holds, and files and pages are whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from pynwb import NWBFile
from pynwb.image import ImageSeries
from pynwb.misc import AnnotationSeries
from recordings import make_recording

from neurofmx_wds import WebDatasetWriter, create_shards_from_arrays
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import NeurofmxError

pytest.importorskip("matplotlib")

from neurofmx_wds.pictures.figure import Picture, image_of, save, show_window
from neurofmx_wds.pictures.opening import ViewOptions, open_pictures
from neurofmx_wds.pictures.panels import (
    MOST_MARKS,
    Coverage,
    Frames,
    Marks,
    Matrix,
    Raster,
    Traces,
    thinned,
)

P = TypeVar("P")
GAP = (3.0, 5.5)
CUES = np.array([1.0, 2.5, 2.75, 7.0])


def full(nwb: NWBFile) -> None:
    nwb.add_trial_column("outcome", "hit or miss")
    for i in range(5):
        nwb.add_trial(start_time=2.0 * i, stop_time=2.0 * i + 1.5, outcome=["hit", "miss"][i % 2])
    nwb.add_invalid_time_interval(start_time=9.0, stop_time=9.5)
    nwb.add_acquisition(AnnotationSeries(name="cues", data=["go", "stop", "go", "go"], timestamps=CUES))
    frames = np.arange(50, dtype="uint8")[:, None, None] + np.zeros((50, 4, 6), "uint8")
    nwb.add_acquisition(ImageSeries(name="eye", data=frames, unit="n/a", rate=5.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("pictures") / "a.nwb"
    times = np.arange(500) / 50
    times = times[(times < GAP[0]) | (times >= GAP[1])]
    truth = make_recording(path, n_units=5, lfp_channels=20, behavior_times=times, compass_unit="radians", extra=full)
    return path, truth


def panels_of(picture: Picture, kind: type[P]) -> list[P]:
    return [each for each in picture.panels if isinstance(each, kind)]


@contextlib.contextmanager
def pictures_of(path: Path, seconds: float | None, start: float | None, **config: Any) -> Iterator[Any]:
    with open_pictures(path, ViewOptions(seconds, start, SourceConfig.of(**config))) as pictures:
        yield pictures


ALL = {"modalities": ["spikes", "behavior", "lfp", "events", "video"]}


@pytest.mark.parametrize(("start", "seconds"), [(0.0, 10.0), (2.0, 4.0), (3.5, 1.0), (6.02, 0.5)])
def test_a_stretch_of_a_recording_holds_what_the_file_holds(
    start: float, seconds: float, made: tuple[Path, dict[str, Any]]
) -> None:
    path, truth = made
    stop = start + seconds
    with pictures_of(path, seconds, start, **ALL) as pictures:
        picture = pictures[0]
    assert picture.span == (start, stop)
    [raster] = panels_of(picture, Raster)
    for unit, spikes in enumerate(truth["spike_times"]):
        inside = spikes[(spikes >= start) & (spikes < stop)]
        np.testing.assert_allclose(raster.times[raster.units == unit], inside, atol=1e-9)
    heading, position, lfp = panels_of(picture, Traces)
    for panel, name in ((position, "position"), (heading, "heading")):
        known = np.isfinite(panel.values).any(axis=1)
        inside = (truth["behavior_times"] >= start) & (truth["behavior_times"] < stop)
        if name == "position":
            np.testing.assert_allclose(panel.times[known], truth["behavior_times"][inside], atol=1e-9)
            np.testing.assert_allclose(panel.values[known], truth[name][inside])
        low, high = max(start, GAP[0]), min(stop, GAP[1])
        assert len(panel.gaps) == (1 if low < high else 0)
        if low < high:
            assert panel.gaps[0] == pytest.approx((low, high), abs=0.021)
            assert not ((panel.times[known] > low + 0.02) & (panel.times[known] < high - 0.02)).any()
    assert lfp.values.shape[1] == 12
    assert np.nanmax(lfp.values) == pytest.approx(truth["lfp"][round(start * 1000) : round(stop * 1000)][
        :, np.unique(np.linspace(0, 19, 12).round().astype(int))].max(), abs=1e-6)  # fmt: skip
    marks = {each.title: each.spans for each in panels_of(picture, Marks)}
    trials = [(2.0 * i, 2.0 * i + 1.5, ["hit", "miss"][i % 2]) for i in range(5)]
    overlapping = [each for each in trials if each[0] < stop and each[1] > start]
    assert marks.get("trials (outcome)", []) == overlapping
    shown = [time for time, _, _ in marks.get("acquisition/cues", [])]
    assert shown == CUES[(CUES >= start) & (CUES < stop)].tolist()
    [video] = panels_of(picture, Frames)
    for time, frame in zip(video.times, video.frames, strict=True):
        assert start <= time < stop and frame[0, 0] == round(time * 5)
    [coverage] = panels_of(picture, Coverage)
    rows = dict(coverage.rows)
    np.testing.assert_allclose(rows["processing/behavior/Position/xy"], [[0, GAP[0]], [GAP[1], 10]], atol=0.021)
    np.testing.assert_allclose(rows["invalid_times"], [[9.0, 9.5]])
    assert coverage.shown == (start, stop)


def test_pages_follow_one_another_and_the_first_is_where_everything_was_measured(
    made: tuple[Path, dict[str, Any]],
) -> None:
    with pictures_of(made[0], 2.0, None) as pictures:
        start, stop = pictures[0].span
        assert start >= GAP[1] and stop <= 10
    with pictures_of(made[0], 2.0, 0.0) as pictures:
        assert [each.span for each in pictures[:]] == [(i, i + 2.0) for i in range(0, 10, 2)]
        with pytest.raises(IndexError):
            pictures[5]


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_samples_hold_what_the_recording_holds(layout: str, made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, truth = made
    config = {"layout": layout, **ALL} | ({"sequence_length": 100, "overlap": 0} if layout == "windows" else {})
    convert([path], Output(tmp_path / "out"), SourceConfig.of(**config))
    with open_pictures(tmp_path / "out", ViewOptions(1.0)) as pictures:
        assert len(pictures) == 8  # from the first spike on, without invalid_times
        picture = pictures[3]
    start, stop = picture.span
    assert stop - start == 1
    [raster] = panels_of(picture, Raster)
    assert raster.counts is not None
    for unit, spikes in enumerate(truth["spike_times"]):
        own = raster.units == unit
        wanted = np.histogram(spikes, bins=start + np.arange(101) / 100)[0]
        got = np.zeros(100, int)
        np.add.at(got, np.floor((raster.times[own] - start) * 100).astype(int), raster.counts[own])
        assert abs(got - wanted).sum() <= 2  # np.histogram rounds otherwise at an edge
    assert list(raster.populations) == ["CA1"] * 5
    titles = [each.title for each in panels_of(picture, Traces)]
    assert titles == ["behavior/CompassDirection", "behavior/Position", "lfp"]
    position = panels_of(picture, Traces)[1]
    assert np.isfinite(position.values).any(axis=1).sum() == sum(not (a <= t < b) for t in position.times
                                                                  for a, b in position.gaps or [(0, 0)])  # fmt: skip
    assert [len(each.frames) for each in panels_of(picture, Frames)] == [6]


def test_windows_around_events_are_on_the_clock_of_their_event(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    options = {"align": "trials", "before_s": 0.5, "after_s": 1.0, "bin_size_ms": 20}
    convert([made[0]], Output(tmp_path / "out"), SourceConfig.of(**options))
    with open_pictures(tmp_path / "out") as pictures:
        picture = pictures[1]
    assert picture.span == (-0.5, 1.0) and picture.event == 0.0
    assert "trial_outcome: hit" in picture.caption


def test_arrays_images_and_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "eeg": rng.standard_normal((4, 8, 32)),
        "gray": rng.integers(0, 255, (4, 9, 7), dtype="uint8"),
        "rgb": rng.integers(0, 255, (4, 3, 9, 7), dtype="uint8"),
        "vector": rng.standard_normal((4, 5)),
        "volume": rng.standard_normal((4, 2, 3, 4)),
        "label": np.arange(4),
    }
    create_shards_from_arrays(tmp_path / "arrays", arrays)
    with open_pictures(tmp_path / "arrays") as pictures:
        picture = pictures[2]
    shapes = {each.title.split()[0]: each.values.shape for each in panels_of(picture, Matrix)}
    assert shapes == {"eeg": (8, 32), "gray": (9, 7), "rgb": (3, 9, 7), "vector": (5,), "volume": (2, 12)}
    assert "label: 2" in picture.caption
    with WebDatasetWriter(tmp_path / "texts") as writer:
        writer.write_sample({"note.txt": "<b>hello</b>", "empty": np.empty((0, 3))})
    with open_pictures(tmp_path / "texts") as pictures:
        assert image_of(pictures[0]).startswith(b"\x89PNG") and "<b>hello</b>" in pictures[0].caption


def test_files_of_a_directory_are_images_and_texts(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for i in range(3):
        image.fromarray(np.full((5, 6, 3), i, "uint8")).save(tmp_path / f"a{i}.png")
        (tmp_path / f"a{i}.txt").write_text(f"hello {i}")
        (tmp_path / f"a{i}.dat").write_bytes(bytes(range(256)))
    with pictures_of(tmp_path, None, None, format="files") as pictures:
        picture = pictures[1]
    [shown] = panels_of(picture, Matrix)
    assert shown.values.shape == (5, 6, 3) and (shown.values == 1).all()
    assert "txt: hello 1" in picture.caption and "dat: 256 bytes" in picture.caption


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def assert_self_contained(text: str) -> None:
    parser = Tags()
    parser.feed(text)
    assert {tag for tag, _ in parser.tags} <= set(
        "html head meta title style body h1 h2 h3 figure figcaption img div table tr th td p pre code ul li dl dt dd a "
        "thead tbody details summary b nav".split()
    )
    for tag, attributes in parser.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href"):
            link = attributes.get(name) or "#"
            assert link.startswith(("data:image/png;base64,", "#"))


def test_pages_are_self_contained_and_nothing_acts_in_them(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[31m$x^2$\"'>"
    path = tmp_path / "evil.nwb"

    def more(nwb: NWBFile) -> None:
        nwb.add_trial_column("<img src=x>", "y")
        nwb.add_trial(start_time=0.0, stop_time=9.0, **{"<img src=x>": evil})
        nwb.add_trial(start_time=1.0, stop_time=9.0, **{"<img src=x>": "$\\frac"})

    make_recording(path, session_id=evil, extra=more)
    convert([path], Output(tmp_path / "out"), SourceConfig.of(bin_size_ms=20))
    for given in (path, tmp_path / "out"):
        assert main(["view", str(given), "-o", str(tmp_path / "page.html"), "-n", "2", "--seconds", "1"]) == 0
        text = (tmp_path / "page.html").read_text()
        assert_self_contained(text)
        assert text.count("<img ") == 2 and "&lt;script&gt;" in text


def test_files_are_written_whole_and_the_same_twice(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pictures_of(made[0], 1.0, 0.0) as pictures:
        for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
            [one] = save(pictures[:1], tmp_path / f"a{suffix}")
            [two] = save(pictures[:1], tmp_path / f"b{suffix}")
            assert one.read_bytes() == two.read_bytes() and one.read_bytes().startswith(start)
    assert main(["view", str(made[0]), "-o", str(tmp_path / "c.png"), "-n", "2", "--seconds", "1"]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["c_000.png", "c_001.png"]


def test_wrong_usage_and_no_screen(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for wrong in (["-o", "a.gif"], ["--seconds", "0"], ["-o", "a.png", "--sample", "99999"], ["-n", "0"]):
        with pytest.raises(SystemExit) as left:
            main(["view", str(made[0]), *wrong])
        assert left.value.code == 2
    assert main(["view", str(tmp_path / "nosuch.nwb"), "-o", str(tmp_path / "a.png")]) == 1
    assert "nosuch.nwb" in capsys.readouterr().err
    monkeypatch.setenv("MPLBACKEND", "agg")
    with pytest.raises(NeurofmxError, match="no window"):
        show_window([])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [10, 4001, 123_456])
def test_thinning_keeps_extremes_and_gaps(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.standard_normal((n, 3))
    values[n // 2 : n // 2 + n // 10 + 1] = np.nan
    times, kept = thinned(np.arange(n) / 7, values)
    assert len(times) == len(kept) <= max(n if n <= 4000 else 4000, 1)
    np.testing.assert_array_equal(np.nanmax(kept, axis=0), np.nanmax(values, axis=0))
    np.testing.assert_array_equal(np.nanmin(kept, axis=0), np.nanmin(values, axis=0))
    assert np.isnan(kept).any() and np.all(np.diff(times) >= 0)


def test_many_spikes_become_boxes_with_every_spike() -> None:
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    n = MOST_MARKS + 1
    raster = Raster(rng.uniform(0, 1, n), rng.integers(0, 7, n), 7, ["b", "a", "b", "a", "b", "a", "b"])
    axes = Figure().add_subplot()
    axes.set_xlim(0, 1)
    raster.draw(axes)
    [mesh] = axes.collections
    assert np.asarray(mesh.get_array()).sum() == n
    per_row = np.asarray(mesh.get_array()).reshape(7, -1).sum(axis=1)
    order = [1, 3, 5, 0, 2, 4, 6]  # populations side by side
    np.testing.assert_array_equal(per_row, np.bincount(raster.units, minlength=7)[order])
