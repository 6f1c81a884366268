"""Splits: no bin is in two datasets, by arithmetic over any segments and end to end over a recording."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import make_recording

from neurofmx_wds.convert import run
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import check_shares, convert_split, deal, time_blocks
from neurofmx_wds.errors import OutputError, SourceError

NAMES = ("train", "val", "test")


@st.composite
def shares(draw: st.DrawFn, least: int = 2) -> dict[str, float]:
    parts = draw(st.lists(st.integers(1, 20), min_size=least, max_size=5))
    return {f"part{i}": part / sum(parts) for i, part in enumerate(parts)}


def metadata_of(directory: Path) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    return [sample["metadata.json"] for sample in wds.WebDataset(urls, shardshuffle=False).decode()]


@settings(max_examples=200)
@given(
    steps=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 200)), max_size=6),
    shares=shares(),
    length=st.integers(1, 60),
)
def test_blocks_are_a_window_apart_and_share_no_bin(
    steps: list[tuple[int, int]], shares: dict[str, float], length: int
) -> None:
    segments, at = [], -50
    for gap, bins in steps:
        segments.append((at + gap, at + gap + bins))
        at += gap + bins
    blocks = time_blocks(segments, list(shares.values()), length)
    usable = {b for first, stop in segments for b in range(first, stop)}
    owned = [usable & set(range(*block)) if block else set() for block in blocks]
    filled = [block for block in blocks if block]
    assert all(later[0] - earlier[1] >= length for earlier, later in itertools.pairwise(filled))
    assert sum(map(len, owned)) == len(set().union(*owned))
    guards = len(usable) - sum(map(len, owned))
    assert guards == ((len(shares) - 1) * length if len(usable) > (len(shares) - 1) * length else 0)
    if guards:
        kept = len(usable) - guards
        assert all(abs(len(o) - s * kept) <= 1 for o, s in zip(owned, shares.values(), strict=True))


@settings(max_examples=200)
@given(sizes=st.dictionaries(st.text("abcdefgh", min_size=1), st.integers(0, 500), max_size=12), shares=shares())
def test_groups_are_dealt_by_their_sizes_and_no_name_stays_empty(
    sizes: dict[str, int], shares: dict[str, float]
) -> None:
    dealt = deal(sizes, shares)
    assert set(dealt) == set(sizes)
    assert len(set(dealt.values())) == min(len(sizes), len(shares))
    assert dealt == deal(dict(reversed(sizes.items())), shares)
    if len(sizes) > len(shares):
        total, largest = sum(sizes.values()), max(sizes.values())
        for name, share in shares.items():
            assert sum(n for group, n in sizes.items() if dealt[group] == name) <= share * total + largest * len(shares)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("recordings")
    for i, seconds in enumerate([22, 12]):
        make_recording(
            directory / f"{i}.nwb",
            seconds=seconds,
            n_units=2,
            seed=i,
            session_id=f"s{i}",
            behavior_rate=20.0,
            invalid_times=[(6.0, 6.7)],
        )
    return sorted(directory.glob("*.nwb"))


@settings(max_examples=6)
@given(
    shares=shares(),
    length=st.integers(1, 50),
    bin_ms=st.sampled_from([20, 7.5, "100/3"]),
    overlap=st.sampled_from([0, 0.5, 0.9]),
    intervals=st.sampled_from([None, ((1.0, 5.0), (5.2, 19.0))]),
    shard_size=st.sampled_from([7, 1000]),
)
def test_by_time_no_bin_is_in_two_datasets(
    recordings: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
    shares: dict[str, float],
    length: int,
    bin_ms: Any,
    overlap: float,
    intervals: Any,
    shard_size: int,
) -> None:
    out = tmp_path_factory.mktemp("split") / "out"
    config = SourceConfig(bin_size_ms=bin_ms, sequence_length=length, overlap=overlap, intervals=intervals)
    try:
        done = convert_split(recordings, out, shares, "time", config, shard_size=shard_size)
    except SourceError as error:
        assert "would get no windows" in str(error) and not out.exists()
        return
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for name in shares:
        found = metadata_of(out / name)
        assert len(found) == done[name].summary["total_samples"] > 0
        for m in found:
            spans.setdefault(m["session_id"], []).append((m["t_start_ns"], m["t_stop_ns"], name))
    width = float(config.bin_width_ns)
    for found_spans in spans.values():
        ordered = sorted(found_spans)
        for (_, stop, name), (start, _, other) in itertools.pairwise(ordered):
            if name != other:
                assert start - stop >= (length - 0.5) * width
                assert list(shares).index(name) < list(shares).index(other)


def test_by_time_trials_and_arrays_in_time_stay_in_their_blocks(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=30, n_units=2, trials=40, obs_intervals=[[[0, 30]]] * 2)
    np.savez(tmp_path / "b.npz", x=np.arange(3000.0)[:, None])
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    trials = SourceConfig(align="trials", before_s=0.1, after_s=0.4)
    in_time = SourceConfig(rate=100.0, sequence_length=50, overlap=0.9)
    for file, config, length in (("a.nwb", trials, 500_000_000), ("b.npz", in_time, 500_000_000)):
        out = tmp_path / file.replace(".", "_")
        convert_split([tmp_path / file], out, shares, "time", config)
        spans = [[(m["t_start_ns"], m["t_stop_ns"]) for m in metadata_of(out / name)] for name in shares]
        assert min(map(len, spans)) > 5
        for earlier, later in itertools.pairwise(spans):
            assert min(start for start, _ in later) - max(stop for _, stop in earlier) >= length


def test_by_session_a_session_stays_whole(tmp_path: Path) -> None:
    for i in range(6):
        make_recording(
            tmp_path / f"{i}.nwb", seconds=4, n_units=2, seed=i, session_id=f"s{i // 2}", obs_intervals=[[[0, 4]]] * 2
        )
    paths = sorted(tmp_path.glob("*.nwb"))
    (tmp_path / "bad.nwb").write_bytes(b"nothing")
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    done = convert_split([*paths, tmp_path / "bad.nwb"], tmp_path / "out", shares, "session")
    sessions = {name: {m["session_id"] for m in metadata_of(tmp_path / "out" / name)} for name in shares}
    assert sorted(itertools.chain(*sessions.values())) == ["s0", "s1", "s2"]
    assert [len(done[name].plan.failures) for name in shares] == [1, 0, 0]
    assert sum(conversion.summary["total_samples"] for conversion in done.values()) == 6 * 7
    with pytest.raises(SourceError, match="would get no windows.*at least one subject"):
        convert_split(paths, tmp_path / "other", shares, "subject")
    assert not (tmp_path / "other").exists()


def test_arrays_are_split_by_file_and_have_no_time(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=np.full((10 - i, 2), i))
    paths = sorted(tmp_path.glob("*.npz"))
    (tmp_path / "copy.npz").write_bytes(paths[1].read_bytes())  # the same samples must not be in two datasets
    convert_split([*paths, tmp_path / "copy.npz"], tmp_path / "out", dict.fromkeys(NAMES, 1 / 3), "session")
    names = {name: {m["source"] for m in metadata_of(tmp_path / "out" / name)} for name in NAMES}
    assert {"1.npz", "copy.npz"} in names.values()
    for by, pattern in (("time", "no time"), ("subject", "no subject")):
        with pytest.raises(SourceError, match=pattern):
            convert_split(paths, tmp_path / "other", {"a": 0.5, "b": 0.5}, by)  # type: ignore[arg-type]


def test_a_split_that_was_interrupted_goes_on_and_ends_alike(
    recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, config = {"train": 0.7, "val": 0.3}, SourceConfig(sequence_length=20)
    convert_split(recordings, tmp_path / "good", shares, "time", config, shard_size=30)
    make, made = run.write_shard, []

    def stop_at_fourth(directory: Path, shard: Any) -> str:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append((directory.name, shard.name))
        return make(directory, shard)

    monkeypatch.setattr(run, "write_shard", stop_at_fourth)
    out = tmp_path / "out"
    while not out.exists():
        with pytest.MonkeyPatch.context():
            try:
                convert_split(recordings, out, shares, "time", config, shard_size=30)
            except KeyboardInterrupt:
                assert not out.exists()
                done, made = made, []
    n_shards = sum(1 for _ in out.rglob("*.tar"))
    assert n_shards > 8 and len(done) == 4
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "good"): p.read_bytes() for p in (tmp_path / "good").rglob("*") if p.is_file()
    }
    with pytest.raises(OutputError, match="not empty"):
        convert_split(recordings, out, shares, "time", config)
    block = json.loads((out / "val" / "dataset_metadata.json").read_bytes())["sources"][0]["split"]
    assert block["by"] == "time" and block["block_ns"][0] > 0


@pytest.mark.parametrize("bad", [{"a": 1.0}, {"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a/b": 0.5, "c": 0.5}])
def test_impossible_shares_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="split="):
        check_shares(bad)
