"""What the report says was measured, dropped, or is in another part of a split, against numpy on the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording, read_all

from neurofmx_wds import WebDatasetLoader
from neurofmx_wds.convert.config import Output, Split, Workers
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import convert_split
from neurofmx_wds.format.info import format_summary

TIMES = np.r_[np.arange(0, 3, 0.01), np.arange(6, 9, 0.013)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coverage") / "a.nwb"
    more = {"lfp_channels": 2, "lfp_rate": 500.0, "lfp_start": 1.0, "invalid_times": [(4.0, 4.5)]}
    make_recording(path, behavior_times=TIMES, seconds=10, **more)
    return path


def masks(directory: Path) -> dict[str, float]:
    found: dict[str, list[Any]] = {}
    for sample in WebDatasetLoader(directory, shuffle=False):
        for name in sample:
            if name.endswith("_mask"):
                found.setdefault(name.removesuffix("_mask"), []).append(sample[name])
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.parametrize("options", [{}, {"behavior_method": "linear"}, {"lfp_method": "bin_mean", "overlap": 0}])
def test_the_share_that_was_measured_is_that_of_the_masks(options: Any, recording: Path, tmp_path: Path) -> None:
    config = SourceConfig.of(sequence_length=50, **options)
    manifest = convert([recording], Output(tmp_path / "out", shard_size=3), config).summary
    [report] = manifest["sources"]
    assert report["measured"] == pytest.approx(masks(tmp_path / "out"), abs=1e-4)
    assert 0.3 < report["measured"]["behavior"] < 0.8 and 0.8 < report["measured"]["lfp"] < 1
    text = format_summary(manifest | {"shard_dir": "x", "total_bytes": 0})
    assert f"measured: behavior {report['measured']['behavior']:.1%}".replace("%", " %") in text
    assert "of behavior is NaN: not measured there (--modalities behavior" in text
    assert "windows are cut: first to last spike over all units" in text
    workers = convert([recording], Output(tmp_path / "two", shard_size=3), config, Workers(workers=2)).summary
    assert workers["sources"] == manifest["sources"]


def test_times_alone_tell_the_share_before_anything_is_written(recording: Path) -> None:
    description, samples = read_all(recording, overlap=0)
    behavior = np.concatenate([fields["behavior_mask"] for fields, _ in samples])
    assert description.report["measured"]["behavior"] == pytest.approx(behavior.mean(), abs=1e-4)


def test_nan_among_the_values_is_not_measured(tmp_path: Path) -> None:
    lfp = np.where(np.arange(1000)[:, None] < 400, np.nan, 1.0) * np.ones(2)
    make_recording(tmp_path / "a.nwb", lfp_channels=2, lfp_rate=100.0, lfp_data=lfp)
    config = SourceConfig.of(sequence_length=50, overlap=0, lfp_method="bin_mean")
    [report] = convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), config).summary["sources"]
    assert report["measured"]["lfp"] == pytest.approx(0.6, abs=0.06)


def test_spikes_outside_of_windows_are_told_by_reason(recording: Path) -> None:
    description, samples = read_all(recording, overlap=0, intervals=[(1, 8)], sequence_length=30)
    spikes = description.report["spikes"]
    assert sum(spikes["outside_because"].values()) == spikes["outside"] > 0
    assert spikes["binned"] == sum(fields["spikes"].sum() for fields, _ in samples)
    assert {"outside the intervals given", "in invalid_times", "where no whole window fits"} == set(
        spikes["outside_because"]
    )


def test_parts_of_a_split_tell_the_others_apart_and_a_merge_counts_spikes_once(recording: Path, tmp_path: Path) -> None:
    split = Split({"train": 0.6, "val": 0.4}, "time")
    config = SourceConfig.of(sequence_length=20)
    whole = convert([recording], Output(tmp_path / "whole"), config).summary["sources"][0]["spikes"]
    parts = convert_split([recording], Output(tmp_path / "sets"), split, config)
    elsewhere = "in the other parts of the split, or between them"
    for name, part in parts.items():
        [report] = part.summary["sources"]
        assert report["windows"]["dropped"][elsewhere] > 0 and report["spikes"]["outside_because"][elsewhere] > 0
        assert sum(report["spikes"]["outside_because"].values()) == report["spikes"]["outside"]
        text = format_summary(part.summary | {"shard_dir": name, "total_bytes": 0})
        assert f"windows are {elsewhere}" in text and f"spikes are {elsewhere}" in text
    summary = merge([tmp_path / "sets" / name for name in parts], tmp_path / "merged", repeat_keys=True)
    text = format_summary(summary | {"shard_dir": "x", "total_bytes": 0})
    [row] = [line.split() for line in text.splitlines() if line.split()[:1] == ["all"]]
    binned = sum(part.summary["sources"][0]["spikes"]["binned"] for part in parts.values())
    total = whole["total"]
    assert [int(cell.replace(",", "")) for cell in row[-4:]] == [total, binned, total - binned, 0]
