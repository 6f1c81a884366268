"""Splits: no bin is in two datasets, by arithmetic over any segments and end to end over a recording."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import make_recording

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert import append as append_module
from neurofmx_wds.convert import run
from neurofmx_wds.convert.config import Output, Split
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.plan import ConversionPlan
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.convert.split import append_split, convert_split
from neurofmx_wds.convert.split_plan import deal, split, time_blocks
from neurofmx_wds.errors import OutputError, SourceError
from neurofmx_wds.format.verify import verify
from neurofmx_wds.nwb.clock import Grid

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
    config = SourceConfig.of(bin_size_ms=bin_ms, sequence_length=length, overlap=overlap, intervals=intervals)
    try:
        done = convert_split(recordings, Output(out, shard_size=shard_size), Split(shares, "time"), config)
    except SourceError as error:
        assert re.search("would get no windows|no window fits", str(error)) and not out.exists()
        return
    spans: dict[str, list[tuple[int, int, str]]] = {}
    for name in shares:
        found = metadata_of(out / name)
        assert len(found) == done[name].summary["total_samples"] > 0
        for m in found:
            spans.setdefault(m["session_id"], []).append((m["t_start_ns"], m["t_stop_ns"], name))
    width = float(config.windows.bin_width_ns)
    for found_spans in spans.values():
        ordered = sorted(found_spans)
        for (_, stop, name), (start, _, other) in itertools.pairwise(ordered):
            if name != other:
                assert start - stop >= (length - 0.5) * width
                assert list(shares).index(name) < list(shares).index(other)


@settings(max_examples=60)
@given(
    start=st.integers(-(10**9), 2 * 10**9),
    pieces=st.lists(st.tuples(st.integers(20, 300), st.integers(1, 50)), min_size=1, max_size=4),
    bin_ms=st.sampled_from(["20", "100/3", "1000/7", "12.5", "1001/30"]),
    origin_ns=st.integers(-(10**18), 10**18),
    shares=shares(),
    length=st.integers(1, 12),
    limit=st.none() | st.tuples(st.integers(0, 10**9), st.integers(10**9 + 1, 10**10)),
)
def test_by_time_the_blocks_and_their_guards_are_all_bins_however_far_from_0(
    tmp_path_factory: pytest.TempPathFactory,
    start: int,
    pieces: list[tuple[int, int]],
    bin_ms: str,
    origin_ns: int,
    shares: dict[str, float],
    length: int,
    limit: tuple[int, int] | None,
) -> None:
    times, at = [], float(start)
    for n, gap in pieces:
        times.append(at + np.arange(n) / 20)
        at = times[-1][-1] + gap
    path = tmp_path_factory.mktemp("far") / "a.npz"
    np.savez(path, when=np.concatenate(times), x=np.zeros((sum(map(len, times)), 1)))
    within = limit and [[Fraction(start * 10**9 + ns, 10**9) for ns in limit]]
    config = SourceConfig.of(
        timestamps="when", bin_size_ms=bin_ms, origin_ns=origin_ns, sequence_length=length, intervals=within
    )
    plan = ConversionPlan(look_at([path], config), config)
    grid = Grid(config.windows.bin_width_ns, origin_ns)

    def bins_of(each: ConversionPlan) -> set[int]:
        [source] = each.sources
        spans = np.array(source.description.report.get("segments", []), np.int64).reshape(-1, 2)
        return {k for first, stop in grid.whole_bins(spans) for k in range(first, stop)}

    try:
        parts = [bins_of(part) for part in split(plan, Split(shares, "time")).values()]
    except SourceError as error:
        assert ("would get no windows" if plan.n_samples else "no window fits") in str(error)
        return
    usable = bins_of(plan)
    assert set().union(*parts) <= usable and len(set().union(*parts)) == sum(map(len, parts))
    assert len(usable) - sum(map(len, parts)) == (len(shares) - 1) * length


def test_by_time_windows_around_events_are_kept_to_the_last_nanosecond(tmp_path: Path) -> None:
    events = [1.0, 2.0, 3.0, 7.0, 8.0, 9.005]  # the last window ends with the recording, inside a bin

    def trials(nwb: Any) -> None:
        for event in events:
            nwb.add_trial(start_time=event, stop_time=event + 0.1)

    make_recording(tmp_path / "a.nwb", n_units=1, obs_intervals=[[[0, 9.505]]], extra=trials)
    config = SourceConfig.of(align="trials", after_s=0.5)
    convert_split([tmp_path / "a.nwb"], Output(tmp_path / "out"), Split({"train": 0.5, "val": 0.5}, "time"), config)
    found = {name: [m["event_ns"] / 1e9 for m in metadata_of(tmp_path / "out" / name)] for name in ("train", "val")}
    assert found == {"train": events[:3], "val": events[3:]}


def test_by_time_trials_and_arrays_in_time_stay_in_their_blocks(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=30, n_units=2, trials=40, obs_intervals=[[[0, 30]]] * 2)
    np.savez(tmp_path / "b.npz", x=np.arange(3000.0)[:, None])
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    trials = SourceConfig.of(align="trials", before_s=0.1, after_s=0.4)
    in_time = SourceConfig.of(rate=100.0, sequence_length=50, overlap=0.9)
    for file, config, length in (("a.nwb", trials, 500_000_000), ("b.npz", in_time, 500_000_000)):
        out = tmp_path / file.replace(".", "_")
        convert_split([tmp_path / file], Output(out), Split(shares, "time"), config)
        spans = [[(m["t_start_ns"], m["t_stop_ns"]) for m in metadata_of(out / name)] for name in shares]
        assert min(map(len, spans)) > 5
        for earlier, later in itertools.pairwise(spans):
            assert min(start for start, _ in later) - max(stop for _, stop in earlier) >= length


@pytest.mark.parametrize("intervals", [None, [(1.0, 11.0)]])
def test_windows_of_other_blocks_are_told_apart_from_those_left_out(intervals: Any, tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=20, n_units=2, obs_intervals=[[[0, 20]]] * 2)
    config = SourceConfig.of(sequence_length=50, overlap=0, intervals=intervals)
    whole = convert([tmp_path / "a.nwb"], Output(tmp_path / "whole"), config).summary["sources"][0]["windows"]
    done = convert_split(
        [tmp_path / "a.nwb"], Output(tmp_path / "sets"), Split({"train": 0.5, "val": 0.5}, "time"), config
    )
    for conversion in done.values():
        windows = conversion.summary["sources"][0]["windows"]
        elsewhere = windows["dropped"].pop("in the other parts of the split, or between them")
        assert windows["emitted"] + elsewhere == whole["emitted"]
        assert windows["dropped"] == whole["dropped"]
    assert bool(whole["dropped"]) == bool(intervals)


def test_by_session_a_session_stays_whole(tmp_path: Path) -> None:
    for i in range(6):
        make_recording(
            tmp_path / f"{i}.nwb", seconds=4, n_units=2, seed=i, session_id=f"s{i // 2}", obs_intervals=[[[0, 4]]] * 2
        )
    paths = sorted(tmp_path.glob("*.nwb"))
    (tmp_path / "bad.nwb").write_bytes(b"nothing")
    shares = {"train": 0.5, "val": 0.25, "test": 0.25}
    done = convert_split([*paths, tmp_path / "bad.nwb"], Output(tmp_path / "out"), Split(shares, "session"))
    sessions = {name: {m["session_id"] for m in metadata_of(tmp_path / "out" / name)} for name in shares}
    assert sorted(itertools.chain(*sessions.values())) == ["s0", "s1", "s2"]
    assert [len(done[name].plan.failures) for name in shares] == [1, 0, 0]
    assert sum(conversion.summary["total_samples"] for conversion in done.values()) == 6 * 7
    with pytest.raises(SourceError, match=r"(?s)nothing was converted:.*no window fits.*\(give intervals"):
        convert_split(
            paths, Output(tmp_path / "none"), Split(shares, "session"), SourceConfig.of(intervals=((100, 200),))
        )
    with pytest.raises(SourceError, match="would get no windows.*at least one subject"):
        convert_split(paths, Output(tmp_path / "other"), Split(shares, "subject"))
    assert not (tmp_path / "other").exists()


def sources_of(directory: Path, names: Any) -> dict[str, set[str]]:
    return {name: {m["source"] for m in metadata_of(directory / name)} for name in names}


def test_copies_of_one_recording_stay_together_whatever_their_names(tmp_path: Path) -> None:
    """Arrays along time are sessions by their files' names: by these alone the copies would be dealt apart."""
    config, halves = SourceConfig.of(rate=100.0, sequence_length=10), Split({"train": 0.5, "val": 0.5})
    for name, n in (("a", 400), ("b", 300), ("c", 200)):
        np.savez(tmp_path / f"{name}.npz", x=np.random.default_rng(n).standard_normal((n, 2)))
    for copy, of in (("a2", "a"), ("b2", "b")):
        (tmp_path / f"{copy}.npz").write_bytes((tmp_path / f"{of}.npz").read_bytes())
    paths = [tmp_path / f"{name}.npz" for name in ("a", "a2", "b", "c")]
    convert_split(paths, Output(tmp_path / "out"), halves, config)
    found = sources_of(tmp_path / "out", halves.shares)
    assert found == {"train": {"a.npz", "a2.npz"}, "val": {"b.npz", "c.npz"}}
    unbalanced = [tmp_path / f"{name}.npz" for name in ("a", "b")]  # so that what is new would go to val
    convert_split(unbalanced, Output(tmp_path / "grown"), halves, config)
    append_split([tmp_path / "a2.npz"], Output(tmp_path / "grown"), halves, config)
    assert sources_of(tmp_path / "grown", halves.shares) == {"train": {"a.npz"}, "val": {"b.npz"}}


def test_arrays_are_split_by_file_and_have_no_time(tmp_path: Path) -> None:
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=np.full((10 - i, 2), i))
    paths = sorted(tmp_path.glob("*.npz"))
    (tmp_path / "copy.npz").write_bytes(paths[1].read_bytes())  # the same samples must not be in two datasets
    convert_split(
        [*paths, tmp_path / "copy.npz"], Output(tmp_path / "out"), Split(dict.fromkeys(NAMES, 1 / 3), "session")
    )
    names = {name: {m["source"] for m in metadata_of(tmp_path / "out" / name)} for name in NAMES}
    assert {"1.npz", "copy.npz"} in names.values()
    for by, pattern in (("time", "no time"), ("subject", "does not name its subject")):
        with pytest.raises(SourceError, match=pattern):
            convert_split(paths, Output(tmp_path / "other"), Split({"a": 0.5, "b": 0.5}, by))  # type: ignore[arg-type]


def test_a_split_that_was_interrupted_goes_on_and_ends_alike(
    recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, config = {"train": 0.7, "val": 0.3}, SourceConfig.of(sequence_length=20)
    convert_split(recordings, Output(tmp_path / "good", shard_size=30), Split(shares, "time"), config)
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
                convert_split(recordings, Output(out, shard_size=30), Split(shares, "time"), config)
            except KeyboardInterrupt:
                assert not out.exists()
                done, made = made, []
    n_shards = sum(1 for _ in out.rglob("*.tar"))
    assert n_shards > 8 and len(done) == 4
    files = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "good"): p.read_bytes() for p in (tmp_path / "good").rglob("*") if p.is_file()
    }
    with pytest.raises(OutputError, match="not empty|finished dataset"):
        convert_split(recordings, Output(out), Split(shares, "time"), config)
    block = json.loads((out / "val" / "dataset_metadata.json").read_bytes())["sources"][0]["split"]
    assert block["by"] == "time" and block["block_ns"][0] > 0


@pytest.mark.parametrize("bad", [{"a": 1.0}, {"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a/b": 0.5, "c": 0.5}])
def test_impossible_shares_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="^shares="):
        Split(bad)


# --- splits that grow -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight recordings, two of each of four sessions."""
    directory = tmp_path_factory.mktemp("sessions")
    for i in range(8):
        make_recording(directory / f"{i}.nwb", seconds=6 + i, n_units=2, seed=i, session_id=f"s{i // 2}")
    return sorted(directory.glob("*.nwb"))


class Stopped(BaseException):
    """Stops a run between two steps that change the disk."""


def stop_after(n: int, patch: pytest.MonkeyPatch) -> None:
    """Let a run be killed before it changes the (n+1)-th dataset."""
    put_in, done = append_module._put_in, itertools.count()

    def stop(*given: Any) -> None:
        if next(done) == n:
            raise Stopped
        put_in(*given)

    patch.setattr(append_module, "_put_in", stop)


@settings(max_examples=3)
@given(
    by=st.sampled_from(["session", "time"]),
    first=st.permutations(range(4)),
    rest=st.permutations(range(8)),
    cuts=st.lists(st.integers(1, 7), max_size=2),
    killed=st.integers(0, 3),
)
def test_splits_that_grow_keep_sessions_and_bins_apart(
    by: Any,
    first: list[int],
    rest: list[int],
    cuts: list[int],
    killed: int,
    sessions: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out, shares = tmp_path_factory.mktemp("grow") / "out", {"train": 0.5, "val": 0.5}
    config = SourceConfig.of(sequence_length=30)
    start = [sessions[2 * i] for i in first[:2]]
    convert_split(start, Output(out, shard_size=20), Split(shares, by), config)
    where = homes(out, shares)
    edges = sorted({0, 8, *cuts})
    for low, high in itertools.pairwise(edges):
        batch = [sessions[i] for i in rest[low:high]]
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
            stop_after(killed, patch)
            append_split(batch, Output(out, shard_size=20), Split(shares, by), config)
        append_split(batch, Output(out, shard_size=20), Split(shares, by), config)
        again = append_split(batch, Output(out, shard_size=20), Split(shares, by), config)
        assert not any(conversion.plan.n_samples for conversion in again.values())
        for key, name in homes(out, shares).items():
            assert where.setdefault(key, name) == name, "a session has moved"
    spans: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    for name in shares:
        for m in metadata_of(out / name):
            spans.setdefault((m["session_id"], m["source"]), []).append((m["t_start_ns"], m["t_stop_ns"], name))
        keys = [sample["__key__"] for sample in wds.WebDataset(urls_of(out / name), shardshuffle=False)]
        assert keys == [f"{name}_sample_{i:09d}" for i in range(len(keys))]
        assert verify(out / name, deep=True).ok
    assert {source for _, source in spans} == {path.name for path in sessions}
    for found in spans.values():
        ordered = sorted(found)
        assert len({(start, stop) for start, stop, _ in found}) == len(found), "a window is there twice"
        for (_, stop, name), (start, _, other) in itertools.pairwise(ordered):
            assert name == other or start - stop >= 30 * 10_000_000
    if by == "session":
        assert all(len({name for _, _, name in found}) == 1 for found in spans.values())
        assert len(where) == 4 and set(where.values()) == set(shares)


def test_a_killed_append_is_finished_beside_a_file_that_cannot_be_read(sessions: list[Path], tmp_path: Path) -> None:
    out, shares, config = tmp_path / "out", {"train": 0.5, "val": 0.5}, SourceConfig.of(sequence_length=30)
    convert_split([sessions[0], sessions[2]], Output(out), Split(shares, "session"), config)
    bad = tmp_path / "bad.npy"
    bad.write_bytes(b"no array")
    more = [sessions[4], sessions[6], bad]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
        stop_after(1, patch)
        append_split(more, Output(out), Split(shares, "session"), config)
    for _ in range(2):
        done = append_split(more, Output(out), Split(shares, "session"), config)
        assert [failure.file for each in done.values() for failure in each.plan.failures] == [str(bad)]
    assert len(homes(out, shares)) == 4


def urls_of(directory: Path) -> list[str]:
    return [str(path) for path in sorted(directory.glob("*.tar"))]


def homes(out: Path, shares: dict[str, float]) -> dict[str, str]:
    """Session → the dataset that has it; empty where the split is by time."""
    manifests = {name: json.loads((out / name / "dataset_metadata.json").read_bytes()) for name in shares}
    told = {(s["split"].get("session"), name) for name, m in manifests.items() for s in m["sources"] if "split" in s}
    found = [pair for pair in told if pair[0] is not None]
    assert len(found) == len(dict(found)), "a session is in two datasets"
    return dict(found)


def test_new_sessions_go_where_windows_are_wanting(sessions: list[Path], tmp_path: Path) -> None:
    shares, config = {"train": 0.5, "val": 0.25, "test": 0.25}, SourceConfig.of(sequence_length=30)
    (tmp_path / "bad.nwb").write_bytes(b"nothing")
    convert_split([sessions[0], sessions[2], sessions[4]], Output(tmp_path / "out"), Split(shares, "session"), config)
    done = append_split(
        [*sessions[1:], tmp_path / "bad.nwb"], Output(tmp_path / "out"), Split(shares, "session"), config
    )
    assert sum(len(conversion.plan.failures) for conversion in done.values()) == 1
    assert set(homes(tmp_path / "out", shares)) == {f"mouse-1/s{i}" for i in range(4)}
    assert homes(tmp_path / "out", shares)["mouse-1/s3"] == "train"  # the largest, and the largest share


def test_splits_made_otherwise_are_left_alone(sessions: list[Path], tmp_path: Path) -> None:
    shares, config, out = {"train": 0.5, "val": 0.5}, SourceConfig.of(sequence_length=30), tmp_path / "out"
    convert_split(sessions[:2], Output(out), Split(shares, "time"), config)
    state = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    refused: list[tuple[Any, str]] = [
        (("session", shares, config), "train was not split by session"),
        (("time", {"train": 0.9, "val": 0.1}, config), r"0\.nwb was cut at other times"),
        (("time", {"train": 0.5, "test": 0.5}, config), "there is no dataset to append to"),
        (("time", shares, SourceConfig.of(sequence_length=31)), "sequence_length was 30 and is 31 now"),
    ]
    for (by, other, settings_), message in refused:
        with pytest.raises(OutputError, match=message):
            append_split(sessions, Output(out), Split(other, by), settings_)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == state


def test_the_command_adds_to_splits(sessions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--split", "train=0.6,val=0.4", "--split-by", "time", "-o", str(tmp_path / "out"), "--validate"]
    assert main(["convert", "-i", str(sessions[0]), *given]) == 0
    assert main(["convert", "-i", *map(str, sessions[:3]), *given, "--append"]) == 0
    capsys.readouterr()
    assert main(["convert", "-i", *map(str, sessions[:3]), *given, "--append"]) == 0
    assert f"nothing was added: {tmp_path / 'out'} has all" in capsys.readouterr().out
    assert main(["convert", "-i", str(sessions[0]), *given]) == 1
    assert "a finished dataset is there already" in capsys.readouterr().err
    names = {name: {m["source"] for m in metadata_of(tmp_path / "out" / name)} for name in ("train", "val")}
    assert names == dict.fromkeys(("train", "val"), {"0.nwb", "1.nwb", "2.nwb"})
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "-i", str(sessions[0]), *given, "--task", "0", "--tasks", "2"])
    assert stopped.value.code == 2 and "--split: not together with --task" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["session", "time"])
def test_parts_share_no_key_and_merge(by: str, tmp_path: Path) -> None:
    for i in range(3):
        make_recording(tmp_path / f"{i}.nwb", seconds=9, seed=i, session_id=f"s{i}", identifier=f"{i}")
    files, split = [tmp_path / f"{i}.nwb" for i in range(2)], Split({"train": 0.5, "val": 0.5}, by)
    config, output = SourceConfig.of(sequence_length=20), Output(tmp_path / "sets")
    made = convert_split(files, output, split, config)
    again = convert_split(files, output, split, config)
    assert all(each.existed for each in again.values())
    added = append_split([tmp_path / "2.nwb"], output, split, config)
    total = sum(each.summary["total_samples"] for each in added.values())
    assert total > sum(each.summary["total_samples"] for each in made.values())
    assert merge([tmp_path / "sets" / name for name in made], tmp_path / "all")["total_samples"] == total
    urls = [str(path) for path in sorted((tmp_path / "all").glob("*.tar"))]
    keys = [sample["__key__"] for sample in wds.WebDataset(urls, shardshuffle=False)]
    assert len(set(keys)) == len(keys) == total and {key.split("_")[0] for key in keys} == {"train", "val"}


def test_parts_made_when_they_had_equal_keys_grow_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_recording(tmp_path / "0.nwb", seconds=9)
    make_recording(tmp_path / "1.nwb", seconds=9, seed=1, session_id="s1", identifier="1")
    split, config, output = Split({"a": 0.5, "b": 0.5}, "time"), SourceConfig.of(), Output(tmp_path / "sets")
    with monkeypatch.context() as before:
        before.setattr("neurofmx_wds.convert.split_plan.with_own_keys", lambda plan, name: plan)
        convert_split([tmp_path / "0.nwb"], output, split, config)
    assert all(each.existed for each in convert_split([tmp_path / "0.nwb"], output, split, config).values())
    append_split([tmp_path / "1.nwb"], output, split, config)
    urls = [str(path) for path in sorted((tmp_path / "sets" / "a").glob("*.tar"))]
    assert {sample["__key__"][:7] for sample in wds.WebDataset(urls, shardshuffle=False)} == {"sample_"}
