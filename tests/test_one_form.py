"""Recordings with different units and fields in one tensor, and numbers for sessions and units that stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import make_recording
from viewing import assert_laws

from neurofmx_wds import Vocabulary, WebDatasetLoader, Windows, create_webdataset_dataloader
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import StateError

BINS: dict[str, Any] = {"bin_size_ms": 20, "sequence_length": 25, "overlap": 0.0}
CUT = Windows(length_s=0.5, bin_ms=20)
UNITS = (4, 2, 3)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three recordings: 4 units and positions; 2 units; 3 units, positions and 3 channels of LFP."""
    directory = tmp_path_factory.mktemp("recordings")
    for i, units in enumerate(UNITS):
        observed = [[[0.0, 2.0 + unit]] for unit in range(units)] if i == 2 else None
        make_recording(
            directory / f"{i}.nwb", seconds=5, n_units=units, session_id=f"s{i}", seed=i, obs_intervals=observed,
            behavior_rate=0 if i == 1 else 50.0, lfp_channels=3 if i == 2 else 0, lfp_rate=200.0,
        )  # fmt: skip
    return [directory / f"{i}.nwb" for i in range(3)]


@pytest.fixture(scope="module")
def windows(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "shards"
    convert(recordings, Output(out, shard_size=4), SourceConfig.of(**BINS))
    return out


@pytest.fixture(scope="module")
def segments(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments") / "shards"
    convert(recordings, Output(out, shard_size=3), SourceConfig.of(layout="segments", segment_s=1.5))
    return out


def load(directory: Any, **options: Any) -> Any:
    return create_webdataset_dataloader(directory, **{"batch_size": 4, "num_workers": 0, **options})


def stored(directory: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Return the samples as they are without any of the options, by key."""
    return {sample["__key__"]: sample for sample in WebDatasetLoader(directory, shuffle=False, **options)}


@pytest.mark.parametrize("layout", ["windows", "segments"])
@pytest.mark.parametrize("select", [None, {"session_id": ["s1", "s2"]}])
def test_units_are_padded_and_masked(windows: Path, segments: Path, layout: str, select: Any) -> None:
    cut: dict[str, Any] = {"windows": CUT} if layout == "segments" else {}
    directory = segments if cut else windows
    before, most = stored(directory, select=select, **cut), 3 if select else 4
    for width in (most, 7):
        for batch in load(directory, pad_units=True if width == most else width, select=select, **cut):
            assert batch["spikes"].shape == (len(batch["__key__"]), 25, width) and batch["unit_mask"].shape[1] == width
            for key, spikes, units, seen in zip(
                batch["__key__"], batch["spikes"], batch["unit_mask"], batch["spikes_mask"], strict=True
            ):
                sample = before[key]
                n = sample["spikes"].shape[1]
                assert units.tolist() == [True] * n + [False] * (width - n)
                assert np.array_equal(spikes[:, :n], sample["spikes"]) and not spikes[:, n:].any()
                there = sample.get("spikes_mask", np.ones((25, n), bool))
                assert np.array_equal(seen[:, :n], there) and not seen[:, n:].any()


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_fields_that_samples_lack_are_zeros_with_a_mask(windows: Path, segments: Path, layout: str) -> None:
    cut: dict[str, Any] = {"windows": CUT} if layout == "segments" else {}
    directory = segments if cut else windows
    before, keys = stored(directory, **cut), set()
    for batch in load(directory, fill=True, batch_size=1, **cut):
        keys.add(tuple(sorted(batch)))
        assert batch["lfp"].shape == (1, 100, 3) and batch["behavior"].shape == (1, 25, 2)
        assert batch["spikes"].shape == (1, 25, 4)
        [key] = batch["__key__"]
        for name, n in (("lfp", 3), ("behavior", 2), ("spikes", 4)):
            value, mask = batch[name][0].numpy(), batch[f"{name}_mask"][0].numpy()
            given = before[key].get(name)
            if given is None:
                assert not value.any() and not mask.any()
                continue
            width = given.shape[1]
            there = before[key].get(f"{name}_mask", np.ones(given.shape, bool))
            assert np.array_equal(value[:, :width], given, equal_nan=True) and not value[:, width:].any()
            assert np.array_equal(mask[:, :width], there) and not mask[:, width:].any() and value.shape[1] == n
    assert len(keys) == 1, "every batch has the same keys"


def test_only_the_named_fields_are_filled(windows: Path) -> None:
    for batch in load(windows, fill=["behavior"], batch_size=3):
        assert isinstance(batch["behavior"], torch.Tensor) and isinstance(batch["behavior_mask"], torch.Tensor)
        assert "unit_mask" not in batch and "spikes" in batch
        assert isinstance(batch["lfp"], list) or batch["lfp"].shape[1:] == (100, 3)


OPTIONS: dict[str, dict[str, Any]] = {
    "padded": {"pad_units": True},
    "filled": {"pad_units": 6, "fill": True, "normalize": "zscore"},
    "numbered": {"vocabulary": True},
    "all": {"pad_units": True, "fill": True, "vocabulary": True, "units": "column != 1"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", ["windows", "segments", "mixture"])
def test_laws(windows: Path, segments: Path, form: str, options: str) -> None:
    if form != "windows" and options in ("padded", "numbered"):
        pytest.skip("the others ask more")
    given: dict[str, Any] = dict(OPTIONS[options])
    directory: Any = segments if form == "segments" else windows
    if form == "segments":
        given["windows"] = Windows(length_s=0.5, bin_ms=20, jitter=True)
    if form == "mixture":
        directory = {"a": windows, "b": {"shard_dir": segments, "windows": CUT}}
    assert_laws(directory, **given)


@pytest.mark.parametrize("spikes", ["ragged", "events"])
def test_each_spike_has_the_index_of_its_unit(segments: Path, spikes: Any) -> None:
    cut = Windows(length_s=0.5, bin_ms=20, spikes=spikes)
    loader = load(segments, windows=cut, vocabulary=True, units="column > 0")
    keys = [unit["key"] for unit in loader.vocabulary.units]
    assert len(keys) == sum(UNITS), "the units that are not chosen keep their index"
    for batch in loader:
        sessions = [about["session_id"] for about in batch["metadata"]]
        if spikes == "events":
            row = np.repeat(np.arange(len(sessions)), np.diff(batch["spike_offsets"]))
            units, index = batch["spike_units"].numpy(), batch["unit_index"].numpy()
        else:
            row, place = np.nonzero(batch["spike_mask"].numpy())
            units, index = (batch[name].numpy()[row, place] for name in ("spike_units", "unit_index"))
        assert [keys[i] for i in index] == [f"{sessions[r]}/{101 + u}" for r, u in zip(row, units, strict=True)]


def test_indices_name_sessions_and_units(windows: Path) -> None:
    loader = load(windows, vocabulary=True, pad_units=True)
    vocabulary = loader.vocabulary
    for batch in loader:
        for row, about in enumerate(batch["metadata"]):
            assert vocabulary.sessions[batch["session_index"][row]]["name"] == about["session_id"]
            index = batch["unit_index"][row][batch["unit_mask"][row]]
            assert [vocabulary.units[i]["key"] for i in index] == [
                f"{about['session_id']}/{100 + u}" for u in range(len(index))
            ]
        assert batch["subject_index"].tolist() == [0] * len(batch["metadata"])
    assert [subject["subject_id"] for subject in vocabulary.subjects] == ["mouse-1"]


def test_stored_spikes_have_their_indices_in_every_form(recordings: list[Path], tmp_path: Path) -> None:
    convert(recordings, Output(tmp_path / "out", shard_size=5), SourceConfig.of(spike_format="ragged", **BINS))
    options: dict[str, Any] = {"vocabulary": True, "units": "column != 1", "batch_size": 5}
    lists = load(tmp_path / "out", **options)
    keys = [unit["key"] for unit in lists.vocabulary.units]
    for batch, flat in zip(lists, load(tmp_path / "out", ragged="flat", **options), strict=True):
        assert torch.cat(list(batch["unit_index"])).equal(flat["unit_index"]) and flat["unit_index"].ndim == 1
        for about, units, index in zip(batch["metadata"], batch["spike_units"], batch["unit_index"], strict=True):
            chosen = [unit for unit in range(4) if unit != 1]
            assert [keys[i] for i in index] == [f"{about['session_id']}/{100 + chosen[unit]}" for unit in units]


def indices(loader: Any) -> dict[str, tuple[int, list[int]]]:
    """Return the index of each session, and of its units, as batches say."""
    found = {}
    for batch in loader:
        for session, index, units in zip(batch["metadata"], batch["session_index"], batch["unit_index"], strict=True):
            found[session["session_id"]] = int(index), [int(unit) for unit in units]
    return found


def test_indices_stay_when_datasets_grow_and_are_mixed(recordings: list[Path], windows: Path, tmp_path: Path) -> None:
    config = SourceConfig.of(**BINS)
    convert(recordings[:1], Output(tmp_path / "a"), config)
    first = load(tmp_path / "a", vocabulary=True)
    first.vocabulary.save(tmp_path / "vocabulary.json")
    known = Vocabulary.load(tmp_path / "vocabulary.json")
    assert known == first.vocabulary and json.loads((tmp_path / "vocabulary.json").read_text())["version"] == 1
    assert indices(first) == {"s0": (0, [0, 1, 2, 3])}
    append(recordings[1:2], Output(tmp_path / "a"), config)
    assert indices(load(tmp_path / "a", vocabulary=True)) == {"s0": (0, [0, 1, 2, 3]), "s1": (1, [4, 5])}
    convert(recordings[2:], Output(tmp_path / "b"), config)
    wanted = {"s0": (0, [0, 1, 2, 3]), "s2": (1, [4, 5, 6])}
    assert indices(load(tmp_path / "b", vocabulary=known)) == {"s2": wanted["s2"]}, "the new ones come at the end"
    grown = load(tmp_path / "b", vocabulary=known).vocabulary
    assert grown.sessions[:1] == known.sessions and grown.units[:4] == known.units
    mixed = load({"b": tmp_path / "b", "a": tmp_path / "a"}, vocabulary=grown)
    assert indices(mixed) == {**wanted, "s1": (2, [7, 8])}
    assert known == first.vocabulary, "what is given is not changed"


def test_two_recordings_of_one_session_id_are_two_sessions(recordings: list[Path], tmp_path: Path) -> None:
    for i in (0, 1):
        make_recording(tmp_path / f"{i}.nwb", seconds=3, n_units=2, session_id="same", seed=i)
        convert([tmp_path / f"{i}.nwb"], Output(tmp_path / str(i)), SourceConfig.of(**BINS))
    loader = load({"a": tmp_path / "0", "b": tmp_path / "1", "again": tmp_path / "0"}, vocabulary=True)
    assert [session["name"] for session in loader.vocabulary.sessions] == ["same", "same~2"]
    assert [u["key"] for u in loader.vocabulary.units] == ["same/100", "same/101", "same~2/100", "same~2/101"]
    for batch in loader:
        for name, session, units in zip(batch["__dataset__"], batch["session_index"], batch["unit_index"], strict=True):
            assert (int(session), units.tolist()) == ((1, [2, 3]) if name == "b" else (0, [0, 1]))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"pad_units": -1}, "pad_units must be"),
        ({"pad_units": "yes"}, "pad_units must be"),
        ({"pad_units": 3}, "pad_units=3: a recording of .* has 4 units"),
        ({"pad_units": True, "modalities": ["behavior"]}, "pad_units: .* holds no dense spikes"),
        ({"fill": "lfp"}, "fill must be"),
        ({"fill": ["nothing"]}, "fill: no field 'nothing'"),
        ({"vocabulary": {"s1": 0}}, "vocabulary must be"),
    ],
)
def test_bad_values_are_refused_by_name(windows: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load(windows, **options)


def test_what_no_tensor_can_hold_is_refused_by_name(tmp_path: Path) -> None:
    for i, rate in enumerate((200.0, 300.0)):
        make_recording(tmp_path / f"{i}.nwb", seconds=3, n_units=2, lfp_channels=2, lfp_rate=rate, session_id=f"s{i}")
    config = SourceConfig.of(**BINS, modalities=["spikes", "lfp"])
    convert([tmp_path / "0.nwb", tmp_path / "1.nwb"], Output(tmp_path / "out"), config)
    with pytest.raises(ValueError, match=r"lfp is \[100, 2\] of float32 in one recording and \[150, 2\]"):
        load(tmp_path / "out", fill=True)
    assert next(iter(load(tmp_path / "out", fill=["spikes"])))["spikes"].shape == (4, 25, 2)


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    for text in ("", "[]", '{"version": 1}', '{"version": 2, "sessions": [], "units": [], "subjects": []}',
                 '{"version": 1, "sessions": [3], "units": [], "subjects": []}'):  # fmt: skip
        path.write_text(text)
        with pytest.raises(StateError, match=r"vocabulary\.json"):
            Vocabulary.load(path)
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "nothing.json")


def test_other_splits_have_the_indices_and_means_of_training(recordings: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from neurofmx_wds.lightning import NeuroDataModule

    config = SourceConfig.of(**BINS)
    for name, files in (("train", [recordings[2], recordings[0]]), ("val", recordings[:2])):
        convert(files, Output(tmp_path / name), config)
    options: dict[str, Any] = {"vocabulary": True, "normalize": "zscore", "pad_units": 4, "modalities": ["spikes"]}
    data = NeuroDataModule(train=tmp_path / "train", val=tmp_path / "val", **options)
    train, val = data.train_dataloader(), data.val_dataloader()
    assert [each["name"] for each in train.vocabulary.sessions] == ["s2", "s0"]
    assert indices(val)["s0"] == indices(train)["s0"] and indices(val)["s1"] == (2, [7, 8, 0, 0])
    assert val.normalization["spikes"]["s0"] == train.normalization["spikes"]["s0"]
    own = NeuroDataModule(
        train=tmp_path / "train", val=tmp_path / "val", **options, per_split={"val": {"vocabulary": False}}
    )
    assert "unit_index" not in next(iter(own.val_dataloader()))
