"""Jittered windows are those that a conversion cuts where they lie; the laws of order hold for them on any ranks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recordings import make_recording
from windows import DATA, REAL, assert_same_batches, convert_both, load, recordings, starts

from neurofmx_wds import WebDatasetLoader, Windows
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.errors import NeurofmxError

NS = 10**9


def assert_cut_at_conversion(file: Path, sample: dict[str, Any], plain: dict[str, int], config: dict[str, Any]) -> None:
    """Compare a window with the one that a conversion cuts of the recording, on a grid that is moved as it is."""
    about = sample.pop("metadata")
    start, stop = about["t_start_ns"], about["t_stop_ns"]
    moved = start - plain[sample.pop("__key__")]
    inside = [(Fraction(start, NS), Fraction(stop, NS))]
    source = open_source(file, SourceConfig.of(origin_ns=moved, intervals=inside, **config))
    [(fields, metadata)] = list(source.read(0, source.describe().n_samples))
    source.close()
    assert {**about, "window_index": 0} == {**metadata, "window_index": 0}
    assert set(fields) <= set(sample)
    for name, values in sample.items():
        if name in fields:
            assert (values.dtype, values.shape) == (fields[name].dtype, fields[name].shape), name
            assert values.tobytes() == np.ascontiguousarray(fields[name]).tobytes(), name
        else:
            assert name.endswith("_mask") and values.all(), "other windows of the recording lack samples here"


def unmoved(segments: Path, windows: Windows) -> dict[str, int]:
    """Return the start of each window by its key, without jitter."""
    loader = WebDatasetLoader(segments, shuffle=False, windows=replace(windows, jitter=False))
    return {sample["__key__"]: sample["metadata"]["t_start_ns"] for sample in loader}


@settings(
    max_examples=5, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=list(HealthCheck)
)
@given(
    recordings(),
    st.sampled_from([Fraction(10), Fraction(40), Fraction(100, 3)]),
    st.integers(1, 30),
    st.integers(1, 60),
    st.sampled_from(["auto", "linear", "previous", "bin_mean", "count"]),
    st.sampled_from(["auto", "native", "bin_mean", "linear"]),
    st.sampled_from(["dense", "ragged"]),
)
def test_generated_recordings(
    tmp_path_factory: pytest.TempPathFactory,
    made: dict[str, Any],
    bin_ms: Fraction,
    length: int,
    stride: int,
    behavior: str,
    lfp: str,
    form: Any,
) -> None:
    out = tmp_path_factory.mktemp("jitter")
    make_recording(out / "a.nwb", **made)
    convert(
        [out / "a.nwb"], Output(out / "segments"), SourceConfig.of(layout="segments", segment_s=0.7, max_gap_s=0.05)
    )
    ways = {"behavior_method": behavior, "lfp_method": lfp}
    times = {"length_s": length * bin_ms / 1000, "stride_s": stride * bin_ms / 1000, "bin_ms": bin_ms}
    windows = Windows(jitter=True, spikes=form, **times, **ways)
    try:
        loader = WebDatasetLoader(out / "segments", windows=windows, shuffle="full")
    except NeurofmxError as error:
        assert "no window" in str(error)
        return
    config = {"bin_size_ms": bin_ms, "sequence_length": length, "spike_format": form, **ways}
    plain = unmoved(out / "segments", windows)
    for sample in itertools.islice(loader, 4):
        assert_cut_at_conversion(out / "a.nwb", sample, plain, config)


@pytest.mark.parametrize("name", REAL)
def test_real_recordings(tmp_path: Path, name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip("the real recordings are not beside this checkout; see the project's design")
    segments = SourceConfig.of(layout="segments", segment_s=0.6)
    convert([DATA / name], Output(tmp_path / "segments"), segments)
    windows = Windows(length_s=2, bin_ms=20, jitter=True)
    loader = WebDatasetLoader(tmp_path / "segments", windows=windows, shuffle="full")
    plain = unmoved(tmp_path / "segments", windows)
    for sample in itertools.islice(loader, 3):
        assert_cut_at_conversion(DATA / name, sample, plain, {"bin_size_ms": 20, "sequence_length": 100})


def test_a_stride_longer_than_the_windows(tmp_path: Path) -> None:
    """Every fifth of the windows that a conversion cuts with overlap."""
    make_recording(tmp_path / "a.nwb", seconds=8, behavior_rate=100, spike_times=[[0.5, 1.0, 7.5]], n_units=1)
    config = {"sequence_length": 20, "overlap": 0.5, "bin_size_ms": 10}
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 0.5, modalities=("behavior", "spikes"), **config)
    windows = Windows(length_s=0.2, stride_s=0.5)
    every = list(WebDatasetLoader(before, shuffle=False))[::5]
    some = list(WebDatasetLoader(now, shuffle=False, windows=windows, modalities=["behavior", "spikes"]))
    assert len(some) == len(every) > 10
    for a, b in zip(every, some, strict=True):
        assert all(np.array_equal(a[name], b[name], equal_nan=True) for name in ("spikes", "behavior"))
        assert a["metadata"]["t_start_ns"] == b["metadata"]["t_start_ns"]


@pytest.mark.parametrize("form", ["dense", "ragged", "events"])
def test_segments_without_spikes_or_samples(form: Any, tmp_path: Path) -> None:
    """Windows over many segments, of which some hold no spike, no sample, or are not there at all."""
    times = np.concatenate([np.arange(0, 2, 0.01), np.arange(6.0, 8, 0.01)])
    spikes = [[0.5, 0.75, 7.0], [0.1, 7.9]]
    make_recording(tmp_path / "a.nwb", seconds=8, n_units=2, spike_times=spikes, behavior_times=times, trials=2)
    config = {"sequence_length": 300, "overlap": 0.9, "bin_size_ms": 10}
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 0.25, **config)
    windows = Windows(length_s=3, overlap=0.9, spikes=form)
    if form == "dense":
        assert assert_same_batches(load(before), load(now, windows=windows)) > 1
        return
    dense = [each["spikes"] for each in WebDatasetLoader(before, shuffle=False)]
    for counts, cut in zip(dense, WebDatasetLoader(now, shuffle=False, windows=windows), strict=True):
        found = np.zeros_like(counts)
        np.add.at(found, (cut["spike_times"] // 10_000_000, cut["spike_units"]), 1)
        assert np.array_equal(found, counts)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments")
    for i in range(3):
        made: dict[str, Any] = {"n_units": 2, "behavior_rate": 50, "seed": i, "session_id": f"s{i}", "trials": 3}
        make_recording(out / f"{i}.nwb", seconds=4 + i, **made)
    convert([out / f"{i}.nwb" for i in range(3)], Output(out / "segments"), SourceConfig.of(layout="segments"))
    return out / "segments"


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([False, True, "full"]),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)), max_size=3),
    st.sampled_from([None, {"session_id": ["s0", "s2"]}, {"trial": [1, None]}]),
    st.sampled_from(["dense", "ragged", "events"]),
)
def test_the_laws_of_order(segments: Path, shuffle: Any, chain: Any, select: Any, form: Any) -> None:
    """Interrupted on any ranks, two epochs go on as they would have; ranks take equal steps; each window comes once."""
    windows = Windows(length_s=0.3, stride_s=0.2, jitter=True, spikes=form)
    options: dict[str, Any] = {"windows": windows, "select": select, "shuffle": shuffle, "buffer_size": 6, "seed": 5}
    whole = load(segments, **options)
    epochs = [starts(whole), starts(whole)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs) and epochs[0] != epochs[1]
    expected, found, state = epochs[0] + epochs[1], [], None
    for world_size, batch_size, steps in [*chain, (1, 7, None)]:
        ranks = [
            load(segments, rank=r, world_size=world_size, batch_size=batch_size, **options) for r in range(world_size)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
        while len(found) < len(expected):
            for step in itertools.islice(zip(*ranks, strict=True), steps):
                kept = [batch.get("__mask__") for batch in step]
                rows = [starts([batch]) for batch in step]
                found += [
                    r for m, each in zip(kept, rows, strict=True) for i, r in enumerate(each) if m is None or m[i]
                ]
            state = ranks[0].state_dict()
            if steps is not None:
                break
    assert found == expected
