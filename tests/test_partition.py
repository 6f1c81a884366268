"""Parts of a dataset, made while it is loaded: no bin is in two of them, and they are those of ``convert --split``."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import resumed, steps, through_json
from recordings import make_recording
from windows import assert_same_batches, load

from neurofmx_wds import Windows, create_shards_from_arrays
from neurofmx_wds.convert.config import Output, Split
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import convert_split
from neurofmx_wds.errors import NeurofmxError, StateError

THREE = {"train": 0.6, "val": 0.2, "test": 0.2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four sessions of two subjects, one with a gap."""
    directory = tmp_path_factory.mktemp("recordings")
    for i, seconds in enumerate([13, 8, 10, 7]):
        make_recording(
            directory / f"{i}.nwb", seconds=seconds, n_units=2, seed=i, session_id=f"s{i}", spike_rate=8.0,
            invalid_times=[(5.0, 5.6)] if i == 0 else None, trials=8,
        )  # fmt: skip
        with h5py.File(directory / f"{i}.nwb", "r+") as file:
            file["general/subject/subject_id"][()] = f"mouse-{i // 2}"
    return sorted(directory.glob("*.nwb"))


@pytest.fixture(scope="module")
def segments(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "segments"
    convert(files, Output(out, shard_size=5), SourceConfig.of(layout="segments", segment_s=2.0, modalities=["spikes"]))
    return out


@pytest.fixture(scope="module")
def windows(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of half a second, cut when converting, that overlap by half."""
    out = tmp_path_factory.mktemp("data") / "windows"
    config = SourceConfig.of(bin_size_ms=50, sequence_length=10, overlap=0.5, modalities=["spikes"])
    convert(files, Output(out, shard_size=11), config)
    return out


def metadata(loader: Any) -> Iterator[dict[str, Any]]:
    return (about for batch in loader for about in batch["metadata"])


def times(loader: Any) -> dict[str, list[tuple[int, int]]]:
    """The start and stop of each window, by session."""
    found = defaultdict(list)
    for about in metadata(loader):
        found[about["session_id"]].append((about["t_start_ns"], about["t_stop_ns"]))
    return found


def assert_no_time_in_common(parts: dict[str, dict[str, list[tuple[int, int]]]], apart: int = 0) -> None:
    for one, other in itertools.combinations(parts.values(), 2):
        for session in one.keys() & other.keys():
            for (a, b), (c, d) in itertools.product(one[session], other[session]):
                assert b + apart <= c or d + apart <= a


# Windows cut while loading


@settings(max_examples=3)
@given(
    by=st.sampled_from(["session", "time"]),
    bins=st.integers(4, 25),
    stride=st.integers(1, 30),
    bin_ms=st.sampled_from([20, 40]),
    shares=st.sampled_from([THREE, {"a": 0.5, "b": 0.5}]),
)
def test_the_parts_are_those_of_a_conversion(
    files: list[Path], segments: Path, tmp_path_factory: pytest.TempPathFactory,
    by: Any, bins: int, stride: int, bin_ms: int, shares: dict[str, float],
) -> None:  # fmt: skip
    stride = min(stride, bins)
    out = tmp_path_factory.mktemp("split") / "parts"
    overlap = 1 - stride / bins
    settings = SourceConfig.of(bin_size_ms=bin_ms, sequence_length=bins, overlap=overlap, modalities=["spikes"])
    convert_split(files, Output(out), Split(shares, by), settings)
    cut = Windows(length_s=f"{bins * bin_ms}/1000", overlap=overlap, bin_ms=bin_ms)
    for part in shares:
        now = load(segments, windows=cut, modalities=["spikes"], split=shares, split_by=by, part=part)
        assert assert_same_batches([without_prefix(f"{part}_", batch) for batch in load(out / part)], now)


def without_prefix(prefix: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with keys as before the split."""
    assert all(key.startswith(prefix) for key in batch["__key__"])
    return {**batch, "__key__": [key.removeprefix(prefix) for key in batch["__key__"]]}


@settings(max_examples=25)
@given(
    by=st.sampled_from(["session", "subject", "time"]),
    length=st.integers(1, 40),
    stride=st.integers(1, 50),
    jitter=st.booleans(),
    split=st.sampled_from([2, 3, {"train": 0.7, "val": 0.3}, {"a": 0.2, "b": 0.5, "c": 0.3}]),
)
def test_no_bin_is_in_two_parts(segments: Path, by: str, length: int, stride: int, jitter: bool, split: Any) -> None:
    names = [f"fold{i}" for i in range(split)] if isinstance(split, int) else list(split)
    cut = Windows(length_s=f"{length * 20}/1000", stride_s=f"{stride * 20}/1000", bin_ms=20, jitter=jitter)
    options: dict[str, Any] = {"windows": cut, "modalities": ["spikes"], "split": split, "split_by": by}
    if by == "subject" and len(names) > 2:
        with pytest.raises(ValueError, match="would get no samples; it takes more values of subject"):
            for part in names:
                load(segments, **options, part=part)
        return
    if by == "time" and length * 20 * len(names) > 2000:
        return  # too short to be cut
    parts = {part: times(load(segments, **options, part=part)) for part in names}
    assert all(parts.values())
    assert_no_time_in_common(parts, apart=length * 20_000_000 if by == "time" else 0)
    if by != "time":
        assert sum(map(len, itertools.chain.from_iterable(p.values() for p in parts.values()))) == sum(
            len(t) for t in times(load(segments, windows=cut, modalities=["spikes"])).values()
        )


def test_windows_around_events_within_intervals_and_several_parts(segments: Path) -> None:
    cut = Windows(align="trials", before_s=0.2, after_s=0.4, bin_ms=20)
    options: dict[str, Any] = {"windows": cut, "modalities": ["spikes"], "split": {"a": 0.5, "b": 0.5}}
    parts = {part: times(load(segments, **options, split_by="time", part=part)) for part in "ab"}
    assert all(parts.values())
    assert_no_time_in_common(parts)
    cut = Windows(length_s=0.4, bin_ms=20, within=[(1, 6)])
    options = {"windows": cut, "modalities": ["spikes"], "split": 3, "split_by": "time"}
    folds = {fold: times(load(segments, **options, part=fold)) for fold in ("fold0", "fold1", "fold2")}
    both = times(load(segments, **options, part=["fold0", "fold2"]))
    assert both == {session: folds["fold0"][session] + folds["fold2"][session] for session in folds["fold0"]}
    assert all(10**9 <= a and b <= 6 * 10**9 for found in both.values() for a, b in found)


def test_a_part_resumes_and_is_known_to_its_state(segments: Path) -> None:
    cut = Windows(length_s=0.4, stride_s=0.1, bin_ms=20, jitter=True)
    options: dict[str, Any] = {"windows": cut, "modalities": ["spikes"], "split": THREE, "split_by": "time"}
    options |= {"shuffle": True, "batch_size": 4}
    loader = load(segments, **options, part="train")
    whole = list(metadata(load(segments, **options, part="train")))
    it = iter(loader)
    got = [about for batch in itertools.islice(it, 3) for about in batch["metadata"]]
    state = through_json(loader.state_dict())
    ranks = resumed(segments, state, 3, **{**options, "batch_size": 5, "num_workers": 0}, part="train")
    got += [about for step in steps(ranks) for batch in step for about, new in
            zip(batch["metadata"], batch.get("__mask__", [True] * 99), strict=False) if new]  # fmt: skip
    assert got == whole
    for part in ("val", ["train", "val"]):
        with pytest.raises(StateError):
            load(segments, **options, part=part).load_state_dict(state)


# Stored samples


@pytest.mark.parametrize("by", ["session", "subject", "time"])
def test_stored_windows_have_no_time_in_common(windows: Path, by: str, caplog: pytest.LogCaptureFixture) -> None:
    split = {"train": 0.7, "val": 0.3}
    parts = {part: times(load(windows, split=split, split_by=by, part=part)) for part in split}
    assert all(parts.values())
    assert_no_time_in_common(parts)
    every = times(load(windows))
    kept = Counter(
        span for part in parts.values() for session, spans in part.items() for span in [(session, s) for s in spans]
    )
    assert set(kept.values()) == {1}
    lost = sum(map(len, every.values())) - len(kept)
    assert (lost > 0) == (by == "time") == (f"split by time: {lost} of " in caplog.text)
    if by == "time":
        n = {part: sum(map(len, found.values())) for part, found in parts.items()}
        assert 0.6 < n["train"] / sum(n.values()) < 0.8


def test_a_random_split_warns_of_windows_that_overlap(windows: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(windows, split=2, split_by="random", part="fold0")
    assert "windows overlap with the next one, which is in another part" in caplog.text


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 samples of unequal classes and blocks, without times."""
    out = tmp_path_factory.mktemp("data") / "trials"
    about = [{"i": i, "label": "abc"[min(2, i % 6 // 2 * (i % 5 > 0))], "block": i // 9} for i in range(90)]
    create_shards_from_arrays(out, {"x": np.arange(90.0)}, metadata=about, shard_size=20)
    return out


@given(shares=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 5), by=st.booleans())
def test_strata_keep_their_shares(trials: Path, shares: list[int], seed: int, by: bool) -> None:
    split = {f"p{i}": share / sum(shares) for i, share in enumerate(shares)}
    options: dict[str, Any] = {"split": split, "split_seed": seed, "stratify": "label"}
    found = {part: list(metadata(load(trials, **options, part=part))) for part in split}
    assert sorted(about["i"] for part in found.values() for about in part) == list(range(90))
    total = Counter(about["label"] for part in found.values() for about in part)
    for name, share in split.items():
        here = Counter(about["label"] for about in found[name])
        assert all(abs(here[label] - share * n) <= 1 for label, n in total.items())


def test_samples_of_one_value_stay_together(trials: Path) -> None:
    folds = [list(metadata(load(trials, split=5, split_by="block", part=f"fold{i}"))) for i in range(5)]
    blocks = [{about["block"] for about in fold} for fold in folds]
    assert [len(block) for block in blocks] == [2] * 5
    assert set().union(*blocks) == set(range(10))
    rest = list(metadata(load(trials, split=5, split_by="block", part=[f"fold{i}" for i in range(4)])))
    assert [about["i"] for about in rest] == sorted(set(range(90)) - {about["i"] for about in folds[4]})
    other = [about["i"] for about in metadata(load(trials, split=5, split_by="block", part="fold0", split_seed=3))]
    assert other != [about["i"] for about in folds[0]]


def test_the_part_of_a_sample_does_not_depend_on_what_is_selected(trials: Path) -> None:
    options: dict[str, Any] = {"split": 3, "split_by": "random", "part": "fold1"}
    whole = [about["i"] for about in metadata(load(trials, **options)) if about["label"] == "a"]
    assert [about["i"] for about in metadata(load(trials, **options, select={"label": "a"}))] == whole
    assert [about["i"] for about in metadata(load(trials, **options, seed=7))] == [
        about["i"] for about in metadata(load(trials, **options))
    ]
    with pytest.raises(ValueError, match="is in this part of the dataset"):
        load(trials, split=90, split_by="random", part="fold0", select={"i": whole[0]})


def test_each_dataset_of_a_mixture_is_split(trials: Path, windows: Path) -> None:
    mixture = {"a": {"shard_dir": trials, "split_by": "block"}, "b": {"shard_dir": windows, "split_by": "session"}}
    train, val = (
        load(mixture, split={"train": 0.5, "val": 0.5}, part=part, epoch="longest") for part in ("train", "val")
    )
    keys = [
        {(n, k) for b in each for n, k in zip(b["__dataset__"], b["__key__"], strict=True)} for each in (train, val)
    ]
    assert keys[0] and keys[1] and not keys[0] & keys[1]


def test_a_data_module_reads_the_part_of_each_splits_name(trials: Path) -> None:
    lightning = pytest.importorskip("neurofmx_wds.lightning")
    data = lightning.NeuroDataModule(train=trials, val=trials, split={"train": 0.7, "val": 0.3}, split_by="random")
    data.setup("fit")
    found = [[about["i"] for about in metadata(each)] for each in (data.train_dataloader(), data.val_dataloader())]
    assert sorted(found[0] + found[1]) == list(range(90))
    assert len(found[0]) == 63


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": THREE}, "say by part= which part of the split is read: train, val, test"),
        ({"part": "train"}, "part= goes together with split="),
        ({"split_by": "time"}, "split_by= goes together with split="),
        ({"split": THREE, "part": "dev"}, "part='dev' is none of the split's parts: train, val, test"),
        ({"split": THREE, "part": []}, "one or several"),
        ({"split": THREE, "part": ["val", "val"]}, "each once"),
        ({"split": {"train": 0.5, "val": 0.6}, "part": "val"}, "their sum 1"),
        ({"split": {"train": 1.0}, "part": "train"}, "two parts or more"),
        ({"split": {"train": 1.5, "val": -0.5}, "part": "train"}, "must be positive"),
        ({"split": 1, "part": "fold0"}, "at least 2 folds"),
        ({"split": True, "part": "fold0"}, "a number of folds"),
        ({"split": 2, "part": "fold0", "split_by": "time"}, "have no t_start_ns"),
        ({"split": 2, "part": "fold0", "split_by": "time", "stratify": "label"}, "does not go together"),
        ({"split": 2, "part": "fold0"}, "90 of 90 samples have no session_id or session in their metadata"),
        ({"split": 2, "part": "fold0", "split_by": "colour"}, "have no colour"),
        ({"split": 2, "part": "fold0", "stratify": "colour"}, "stratify='colour'"),
        ({"split": 2, "part": "fold0", "split_by": 3}, "split_by must be a name"),
        ({"split": 2, "part": "fold0", "split_by": "random", "split_seed": "x"}, "split_seed must be a whole number"),
        ({"split": 11, "part": "fold10", "split_by": "block"}, "would get no samples; it takes more values of block"),
    ],
)
def test_bad_settings_are_refused(trials: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, NeurofmxError), match=message):
        load(trials, **options)


def test_windows_cut_at_load_are_not_split_at_random(segments: Path) -> None:
    cut = Windows(length_s=0.4, bin_ms=20)
    for options in ({"split_by": "random"}, {"split_by": "trial"}, {"stratify": "label", "split_by": "session"}):
        with pytest.raises(ValueError, match="are split by session, subject or time"):
            load(segments, windows=cut, modalities=["spikes"], split=2, part="fold0", **options)
