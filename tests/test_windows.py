"""Windows that are cut while loading: the same bytes as those that a conversion cuts, and the laws of any dataset."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import make_recording
from windows import DATA, REAL, assert_same_batches, convert_both, load, recordings, starts

from neurofmx_wds import ShardedDatasetInfo, Windows
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import ManifestError, NeurofmxError, StateError


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    recordings(),
    st.sampled_from([Fraction(10), Fraction(25), Fraction(100, 3)]),
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([0.5, 2.5, 60.0]),
    st.sampled_from([("spikes", "behavior"), ("behavior", "spikes"), None]),
    st.sampled_from(["auto", "linear", "previous", "bin_mean", "count"]),
)
def test_windows_cut_now_are_those_cut_before(
    tmp_path_factory: pytest.TempPathFactory,
    made: dict[str, Any],
    bin_ms: Fraction,
    length: int,
    stride: int,
    segment_s: float,
    modalities: tuple[str, ...] | None,
    method: str,
) -> None:
    out = tmp_path_factory.mktemp("both")
    make_recording(out / "a.nwb", **made)
    stride = min(stride, length)  # a conversion has no longer ones
    overlap = 1 - stride / length
    config = {"bin_size_ms": bin_ms, "sequence_length": length, "overlap": overlap, "behavior_method": method}
    try:
        before, now = convert_both([out / "a.nwb"], out, segment_s, modalities=modalities, **config)
    except NeurofmxError as error:
        assert "no window fits" in str(error)
        return
    windows = Windows(length_s=length * bin_ms / 1000, overlap=overlap, bin_ms=bin_ms, behavior_method=method)
    assert assert_same_batches(load(before), load(now, modalities=modalities, windows=windows))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("modalities", [None, "behavior first"])
def test_real_recordings(tmp_path: Path, name: str, modalities: Any) -> None:
    if not (DATA / name).exists():
        pytest.skip("the real recordings are not beside this checkout; see the project's design")
    if modalities:
        if name != REAL[0]:
            pytest.skip("this recording has no behavior")
        modalities = ("behavior", "spikes")
    config = {"bin_size_ms": 20, "sequence_length": 50, "overlap": 0.5, "modalities": modalities}
    before, now = convert_both([DATA / name], tmp_path, 7.0, **config)
    windows = Windows(length_s=1, overlap=0.5, bin_ms=20)
    assert assert_same_batches(load(before), load(now, modalities=modalities, windows=windows)) > 50


def test_windows_around_trials(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=12, trials=6, behavior_rate=50)
    config = {"align": "trials", "event": "stop_time", "before_s": 0.4, "after_s": 0.6}
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 1.5, **config)
    windows = Windows(align="trials", event="stop_time", before_s=0.4, after_s=0.6)
    assert assert_same_batches(load(before), load(now, windows=windows)) == 2


def test_several_recordings_that_are_not_alike(tmp_path: Path) -> None:
    for i, (units, lfp) in enumerate([(2, 0), (3, 2), (2, 0)]):
        about = {"n_units": units, "lfp_channels": lfp, "behavior_rate": 100, "seed": i, "session_id": f"s{i}"}
        make_recording(tmp_path / f"{i}.nwb", seconds=6, **about)
    files = [tmp_path / f"{i}.nwb" for i in range(3)]
    before, now = convert_both(files, tmp_path, 2.0, bin_size_ms=10, sequence_length=30, overlap=0)
    windows = Windows(length_s=0.3)
    for shuffle in (False, "full"):
        pair = load(before, shuffle=shuffle), load(now, shuffle=shuffle, windows=windows)
        assert assert_same_batches(*pair) == 12


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short recordings in segments of 2 s."""
    out = tmp_path_factory.mktemp("segments")
    for i in range(3):
        make_recording(out / f"{i}.nwb", seconds=5 + 2 * i, n_units=3, behavior_rate=100, seed=i, session_id=f"s{i}")
    config = SourceConfig.of(layout="segments", segment_s=2.0)
    convert([out / f"{i}.nwb" for i in range(3)], Output(out / "segments", shard_size=4), config)
    return out / "segments"


def dense_of(batch: dict[str, Any], n_units: int, n_bins: int, bin_ns: int) -> np.ndarray:
    """Bin ragged or flat spikes by hand."""
    if "spike_mask" in batch:
        window, place = np.nonzero(batch["spike_mask"].numpy())
        times, units = (batch[name].numpy()[window, place] for name in ("spike_times", "spike_units"))
    else:
        window = np.repeat(np.arange(len(batch["__key__"])), np.diff(batch["spike_offsets"].numpy()))
        times, units = batch["spike_times"].numpy(), batch["spike_units"].numpy()
    counts = np.zeros((len(batch["__key__"]), n_bins, n_units), np.float32)
    np.add.at(counts, (window, times // bin_ns, units), 1)
    return counts


@pytest.mark.parametrize("form", ["ragged", "events"])
def test_dense_spikes_follow_from_the_other_forms(segments: Path, form: Any) -> None:
    options = {"shuffle": True, "buffer_size": 7, "seed": 3}
    for epoch in range(2):
        dense = load(segments, windows=Windows(length_s=0.5, jitter=True), **options)
        other = load(segments, windows=Windows(length_s=0.5, jitter=True, spikes=form), **options)
        for loader in (dense, other):
            loader.set_epoch(epoch)
        for a, b in zip(dense, other, strict=True):
            assert np.array_equal(dense_of(b, 3, 50, 10_000_000), a["spikes"].numpy())
            assert form == "events" or b["spike_times"].shape[1] % 8 == 0
            assert list(a["metadata"]) == list(b["metadata"])


def test_jitter_moves_every_window_within_its_stretch_and_anew_in_each_epoch(segments: Path) -> None:
    plain = starts(load(segments, windows=Windows(length_s=0.5)))
    loader = load(segments, windows=Windows(length_s=0.5, jitter=True))
    epochs = [starts(loader) for _ in range(3)]
    moved = np.array([[now[1] - was[1] for now, was in zip(epoch, plain, strict=True)] for epoch in epochs])
    assert moved.min() >= 0 and moved.max() < 500_000_000 and len(np.unique(moved)) > 0.9 * moved.size
    assert [[session for session, _ in epoch] for epoch in epochs] == [[session for session, _ in plain]] * 3
    again = load(segments, windows=Windows(length_s=0.5, jitter=True))
    again.set_epoch(2)
    assert starts(again) == epochs[2]
    ends = {session: max(t for s, t in plain if s == session) for session, _ in plain}
    assert all(t <= ends[s] + 500_000_000 for epoch in epochs for s, t in epoch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("chain", "shuffle"), [([(1, 4, 3), (2, 3, 2), (1, 7, 1)], True), ([(3, 2, 1), (1, 5, 2)], "full")]
)
def test_resumed_elsewhere_the_same_windows_follow(segments: Path, workers: int, chain: Any, shuffle: Any) -> None:
    """Interrupted again and again, with other ranks and batch sizes, the global sequence is the uninterrupted one."""
    options = {"windows": Windows(length_s=0.4, jitter=True), "shuffle": shuffle, "buffer_size": 9, "seed": 1}
    whole = load(segments, **options)
    expected = [*starts(whole), *starts(whole)]
    found: list[tuple[str, int]] = []
    state = None
    for world_size, batch_size, steps in [*chain, (1, 5, None)]:
        ranks = [
            load(segments, rank=r, world_size=world_size, batch_size=batch_size, num_workers=workers, **options)
            for r in range(world_size)
        ]
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
        while True:
            for step in itertools.islice(zip(*ranks, strict=True), steps):
                found += [start for batch in step for start in starts([batch])]
            state = ranks[0].state_dict()
            if steps is not None or len(found) == len(expected):
                break
    assert found == expected


def test_a_state_of_other_windows_is_refused(segments: Path) -> None:
    loader = load(segments, windows=Windows(length_s=0.5))
    next(iter(loader))
    for other in (Windows(length_s=0.5, jitter=True), Windows(length_s=0.5, bin_ms=20), Windows(length_s=0.25)):
        with pytest.raises(StateError):
            load(segments, windows=other).load_state_dict(loader.state_dict())
    same = load(segments, windows=Windows(length_s="1/2", bin_ms=Fraction(10)))
    same.load_state_dict(loader.state_dict())


def test_transforms_get_the_windows_and_their_own_random_numbers(segments: Path) -> None:
    def noisy(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sample["noise"] = rng.standard_normal(2)
        return sample

    windows = Windows(length_s=0.5, jitter=True)
    plain, noise = list(load(segments, windows=windows)), load(segments, windows=windows, transform=noisy, batch_size=3)
    whole = {name: torch.cat([batch[name] for batch in plain]) for name in ("spikes", "behavior")}
    made = list(noise)
    for name, values in whole.items():
        assert torch.equal(torch.cat([batch[name] for batch in made]), values)
    assert len(np.unique(torch.cat([batch["noise"] for batch in made]))) == 2 * len(whole["spikes"])


def test_windows_are_kept_within_intervals(segments: Path) -> None:
    kept = starts(load(segments, windows=Windows(length_s=0.5, within=[(1, 2.2), ("3", 4)])))
    assert {t for _, t in kept} == {1_000_000_000, 1_500_000_000, 3_000_000_000, 3_500_000_000}
    assert len(kept) == 3 * 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "length_s"),
        ({"length_s": 0.105}, "whole number of bins"),
        ({"length_s": 1, "stride_s": 0}, "stride_s"),
        ({"length_s": 1, "stride_s": 1, "overlap": 0.5}, "overlap"),
        ({"length_s": 1, "align": "trials"}, "does not go together with align"),
        ({"align": "trials", "jitter": True}, "jitter"),
        ({"length_s": 1, "spikes": "sparse"}, "dense, ragged, events"),
        ({"length_s": 1, "bin_ms": 0}, "bin_ms"),
        ({"length_s": 1, "before_s": 1}, "goes together with align"),
        ({"length_s": 1, "within": [(2, 1)]}, "within"),
        ({"length_s": 1, "spike_dtype": "text"}, "spike_dtype"),
        ({"length_s": 1, "max_gap_s": -1}, "max_gap_s"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Windows(**wrong)


def test_groups_of_stored_samples_are_refused(segments: Path) -> None:
    with pytest.raises(ValueError, match="group chooses stored samples"):
        load(segments, windows=Windows(length_s=1), group="a", groups={"a": [1]})


def test_datasets_that_lack_what_windows_need_are_refused(segments: Path, tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=3)
    convert([tmp_path / "a.nwb"], Output(tmp_path / "cut"), SourceConfig.of(sequence_length=20))
    with pytest.raises(ManifestError, match="not segments"):
        load(tmp_path / "cut", windows=Windows(length_s=1))
    for windows, told in (
        (Windows(align="trials"), "trials"),
        (Windows(length_s=1, within="epochs"), "epochs"),
        (Windows(length_s=100), "no window"),
    ):
        with pytest.raises((NeurofmxError, ValueError), match=told):
            load(segments, windows=windows)


def test_gaps_shorter_than_those_that_were_noted_are_refused(tmp_path: Path) -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 5, 300))
    make_recording(tmp_path / "a.nwb", seconds=5, behavior_times=times)
    convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), SourceConfig.of(layout="segments", max_gap_s=0.2))
    load(tmp_path / "out", windows=Windows(length_s=1, max_gap_s=0.2))
    with pytest.raises(ValueError, match="max_gap_s=0.1"):
        load(tmp_path / "out", windows=Windows(length_s=1, max_gap_s=0.1))


def test_the_report_counts_segments_and_all_spikes(segments: Path) -> None:
    info = ShardedDatasetInfo(segments).get_summary()
    assert [source["windows"] for source in info["sources"]] == [{"emitted": n, "dropped": {}} for n in (3, 4, 5)]
    stored = sum(len(values) for batch in load(segments) for values in batch["spike_times"])
    assert sum(source["spikes"]["binned"] for source in info["sources"]) == stored
    assert all(source["spikes"]["outside"] == 0 for source in info["sources"])


def test_plain_webdataset_reads_segments(segments: Path) -> None:
    import webdataset as wds

    urls = sorted(map(str, segments.glob("*.tar")))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    loaded = [
        (key, about) for batch in load(segments) for key, about in zip(batch["__key__"], batch["metadata"], strict=True)
    ]
    assert [(s["__key__"], s["metadata.json"]) for s in samples] == loaded
    assert all(np.all(np.diff(s["spike_times.npy"]) >= 0) for s in samples)


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_threads_cut_the_same_windows(segments: Path, io: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurofmx_wds.loading.segments._KEPT_BYTES", 1000)  # arrays come and go
    options = {"windows": Windows(length_s=0.5, stride_s=0.1, bin_ms=20, jitter=True), "shuffle": "full", "io": io}
    expected = list(load(segments, **options))
    found = list(load(segments, num_workers=4, workers="threads", prefetch_factor=4, **options))
    assert starts(found) == starts(expected) and len(found) > 4
    for batch, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(batch[name], v) for name, v in wanted.items() if isinstance(v, torch.Tensor))
