"""Reports of datasets: their numbers against numpy, whole pages that load nothing, and the same page twice."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording

from neurofmx_wds import WebDatasetWriter, create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.config import Output, Split
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import convert_split
from neurofmx_wds.errors import ShardError

pytest.importorskip("matplotlib")

from test_pictures import assert_self_contained

from neurofmx_wds.pictures.facts import facts_of, firing_rates, mixing, padding
from neurofmx_wds.pictures.opening import open_samples
from neurofmx_wds.pictures.report import ReportOptions, report


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("report") / "a.nwb"
    times = np.r_[np.arange(0, 8, 0.02), np.arange(12, 20, 0.02)]
    return path, make_recording(path, seconds=20, n_units=6, behavior_times=times, lfp_channels=2, trials=4)


def cells(page: str) -> list[list[str]]:
    """Returns the texts of the cells of all rows of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(each) for each in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)] for row in rows]


def row_of(page: str, *starts: str) -> list[str]:
    return next(row for row in cells(page) if row[: len(starts)] == list(starts))


def test_statistics_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((int(n), 3)) for n in rng.integers(1, 9, 20)]
    masks = [rng.random(each.shape) < 0.7 for each in arrays]
    arrays[3][0, 0] = np.nan
    found = facts_of([{"x": a, "x_mask": m} for a, m in zip(arrays, masks, strict=True)])["x"]
    every = np.concatenate([a[m] for a, m in zip(arrays, masks, strict=True)])
    known = every[~np.isnan(every)]
    assert (found.n, found.values) == (20, len(known))
    assert found.measured == pytest.approx(len(known) / sum(a.size for a in arrays))
    assert (found.mean, found.deviation) == pytest.approx((known.mean(), known.std()))
    assert (found.low, found.high) == (known.min(), known.max())
    lengths = [len(a) for a in arrays]
    padded = sum(max(lengths[i : i + 4]) * 4 for i in range(0, 20, 4))
    assert padding({"x": found}, 4)["x"] == pytest.approx(1 - sum(lengths) / padded)


@pytest.mark.parametrize("spike_format", ["dense", "ragged"])
def test_rates_are_those_of_the_recording(
    spike_format: str, recording: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, truth = recording
    convert([path], Output(tmp_path / "out"), SourceConfig.of(spike_format=spike_format, overlap=0))
    data = open_samples(tmp_path / "out")
    samples = [data.sample(i) for i in range(data.n)]
    start, stop = (samples[i]["metadata"][name] / 1e9 for i, name in ((0, "t_start_ns"), (-1, "t_stop_ns")))
    wanted = [((each >= start) & (each < stop)).sum() / (stop - start) for each in truth["spike_times"]]
    rates = firing_rates(samples, data.about)
    assert list(rates) == ["CA1"]
    np.testing.assert_allclose(rates["CA1"], wanted)


def test_mixing_of_orders(tmp_path: Path) -> None:
    create_shards_from_arrays(tmp_path, {"x": np.arange(2000)}, shard_size=500)
    for shuffle in (False, True, "full"):
        loader = create_webdataset_dataloader(tmp_path, batch_size=40, shuffle=shuffle)
        ids = np.stack([batch["x"].numpy() for batch in loader])
        places = np.arange(2000.0).reshape(50, 40)
        found = mixing(ids, np.array([500.0, 1000, 1500, 2000]), np.array([1000.0, 2000.0]), places)
        assert found.shards == np.mean([len(set(row // 500)) for row in ids])
        assert found.sources == np.mean([len(set(row // 1000)) for row in ids])
        assert found.neighbors == np.mean([sum(i + 1 in row for i in row) / 40 for row in ids.tolist()])
        assert found.correlation == pytest.approx(np.corrcoef(ids.ravel(), np.arange(2000))[0, 1])
        order = open_samples(tmp_path, shuffle=shuffle).opened.order  # type: ignore[arg-type]
        np.testing.assert_array_equal(order.sample_ids(0, 2000), ids.ravel())


def test_a_page_about_a_split(recording: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    split = Split({"train": 0.5, "val": 0.25, "test": 0.25}, "time")
    made = convert_split([recording[0]], Output(tmp_path / "sets"), split, SourceConfig.of(bin_size_ms=20, overlap=0))
    page = report([tmp_path / "sets"])
    assert_self_contained(page)
    assert page == report([tmp_path / "sets"])
    n = {name: conversion.plan.n_samples for name, conversion in made.items()}
    for name, samples in n.items():
        assert row_of(page, name, f"{samples}", "1")[4] == "1"
    train = open_samples(tmp_path / "sets" / "train")
    values = np.concatenate([train.sample(i)["behavior"] for i in range(train.n)])
    measured = row_of(page, "behavior", "float32")[5]
    assert measured == f"{np.isfinite(values).mean():.1%}"
    assert f"statistics of all {n['train']} samples" in page
    assert "in the other parts of the split" in page
    assert page.index("train:") < page.index("val:")  # the largest first


@pytest.mark.parametrize("layout", ["windows", "segments", "ragged", "events", "arrays", "texts"])
def test_every_kind_of_dataset_has_a_page(layout: str, recording: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    if layout == "arrays":
        create_shards_from_arrays(out, {"eeg": np.ones((2, 4, 8)), "label": np.arange(2)}, compression="gz")
    elif layout == "texts":
        with WebDatasetWriter(out) as writer:
            writer.write_sample({"note.txt": "<script>", "data.json": {"a": [1]}}, metadata={"<b>": "</figure>"})
    else:
        options: dict[str, Any] = {
            "windows": {"bin_size_ms": 20},
            "segments": {"layout": "segments", "segment_s": 5},
            "ragged": {"spike_format": "ragged"},
            "events": {"align": "trials", "before_s": 0.5, "after_s": 0.5},
        }[layout]
        convert([recording[0]], Output(out), SourceConfig.of(**options))
    page = report([out], ReportOptions(samples=5, drawn=2))
    assert_self_contained(page)
    assert "How to load it" in page and "<img " in page
    assert "<script>" not in page
    if layout == "segments":
        assert "windows=Windows(length_s=2, bin_ms=10)" in page
    code = html.unescape(re.findall(r"<code>(.*?)</code>", page, re.DOTALL)[0])
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert len(scope["loader"]) >= 1


def test_the_command(recording: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: Any) -> None:
    out, page = tmp_path / "out", tmp_path / "page.html"
    convert([recording[0]], Output(out), SourceConfig.of(bin_size_ms=20))
    assert main(["report", str(out), "-o", str(page), "--samples", "4", "--title", "<our lab>"]) == 0
    assert "<title>&lt;our lab&gt;</title>" in page.read_text()
    for wrong in (["-o", "page.pdf"], ["-o", "page.html", "--samples", "0"], ["-o", "page.html", "--seconds", "-1"]):
        with pytest.raises(SystemExit) as left:
            main(["report", str(out), *wrong])
        assert left.value.code == 2
    assert main(["report", str(tmp_path / "nosuch"), "-o", str(tmp_path / "b.html")]) == 1
    assert not (tmp_path / "b.html").exists()
    assert "nosuch" in capsys.readouterr().err


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "out"):
        pass
    with pytest.raises(ShardError):
        report([tmp_path / "out"])
