"""Statistics are what numpy says of the samples, whoever counts; normalized batches use those of their selection."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from recordings import make_recording
from viewing import assert_laws

from neurofmx_wds import WebDatasetLoader, Windows, create_shards_from_arrays, create_webdataset_dataloader, mix
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import ManifestError
from neurofmx_wds.format.manifest import MANIFEST_NAME, Manifest
from neurofmx_wds.format.statistics import Collector, Moments, merged
from neurofmx_wds.loading.statistics import count_dataset

BINS: dict[str, Any] = {"bin_size_ms": 20, "sequence_length": 25, "overlap": 0.5}
NAMES = ("count", "nan", "mean", "std", "min", "max")


def by_numpy(values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what numpy says of (rows, columns)."""
    exact = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = {"mean": np.nanmean(exact, 0), "std": np.nanstd(exact, 0)}
        found |= {"min": np.nanmin(exact, 0), "max": np.nanmax(exact, 0)}
    return {"count": np.isfinite(exact).sum(0), "nan": np.isnan(exact).sum(0), **found}


def assert_equals_numpy(found: dict[str, Any], values: np.ndarray) -> None:
    wanted = by_numpy(values)
    scale = np.nan_to_num(np.abs(wanted["mean"]) + wanted["std"] + 1)
    for name in NAMES:
        got = np.array([np.nan if each is None else each for each in found[name]])
        assert np.allclose(got / scale, wanted[name] / scale, rtol=1e-9, atol=1e-9, equal_nan=True), name


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int16]), st.tuples(st.integers(1, 300), st.integers(1, 5)),
        elements=st.integers(-1000, 1000),
    ),
    st.lists(st.tuples(st.integers(0, 299), st.integers(0, 4)), max_size=5),
    st.sampled_from([0.0, 1e6]),
    st.lists(st.integers(1, 299), max_size=3),
)  # fmt: skip
def test_moments_are_those_of_numpy_however_they_are_cut(
    values: np.ndarray, missing: list[tuple[int, int]], offset: float, cuts: list[int]
) -> None:
    if values.dtype.kind == "f":
        values = values * values.dtype.type(0.37) + values.dtype.type(offset)
        for row, column in missing:
            if row < len(values) and column < values.shape[1]:
                values[row, column] = (np.nan, np.inf)[row % 2]
    assert_equals_numpy(Moments.of(values).to_json(), values)
    parts = [Moments.of(each) for each in np.split(values, sorted(c for c in cuts if c < len(values))) if len(each)]
    whole = merged(parts)
    assert whole is not None
    assert_equals_numpy(whole.to_json(), values)
    again = Moments.from_parts(json.loads(json.dumps(whole.to_parts())))
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(whole).values(), strict=True))


def test_many_chunks_are_counted_in_bounded_memory() -> None:
    rng, collector = np.random.default_rng(0), Collector()
    values = rng.normal(1e5, 3, (1000, 200, 3)).astype("float32")
    values[500:, 7, 1] = np.nan
    for sample in values:
        collector.add({"x": sample, "label": np.int64(3), "x_mask": sample > 0, "name": "text"})
    found = collector.finish()
    assert list(found) == ["x"] and found["x"] is not None
    assert_equals_numpy(found["x"].to_json(), values.reshape(-1, 3))


def test_a_field_whose_samples_differ_in_columns_has_none() -> None:
    collector = Collector()
    for width in (3, 3, 4):
        collector.add({"x": np.ones((5, width), "float32")})
    assert collector.finish() == {"x": None}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three recordings, two of them alike, with LFP, and positions that are missing for a while."""
    directory = tmp_path_factory.mktemp("recordings")
    for i, units in enumerate((4, 4, 3)):
        times = np.arange(0, 6 + i, 0.02)
        make_recording(
            directory / f"{i}.nwb", seconds=6 + i, n_units=units, session_id=f"s{i}", seed=i, spike_rate=5 + 20 * i,
            behavior_times=times[(times < 2) | (times > 2.6)], lfp_channels=2, lfp_rate=200.0,
            lfp_scaling={"conversion": 1e-6, "offset": 0.5},
        )  # fmt: skip
    return [directory / f"{i}.nwb" for i in range(3)]


@pytest.fixture(scope="module")
def windows(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "shards"
    convert(recordings, Output(out, shard_size=7), SourceConfig.of(**BINS))
    return out


@pytest.fixture(scope="module")
def segments(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments") / "shards"
    convert(recordings, Output(out, shard_size=3), SourceConfig.of(layout="segments", segment_s=1.5))
    return out


def samples_by_source(directory: Path, **options: Any) -> dict[str, list[dict[str, Any]]]:
    samples: dict[str, list[dict[str, Any]]] = {}
    for sample in WebDatasetLoader(directory, shuffle=False, **options):
        samples.setdefault(sample["metadata"]["session_id"], []).append(sample)
    return samples


def rows_of(samples: list[dict[str, Any]], field: str) -> np.ndarray:
    return np.concatenate([sample[field] for sample in samples])


def test_the_manifest_has_what_numpy_says_of_the_samples(windows: Path) -> None:
    manifest, samples = Manifest.load(windows), samples_by_source(windows)
    for source in manifest.sources:
        assert {"spikes", "behavior", "lfp"} <= source["statistics"].keys()
        assert not any(name.endswith("_mask") for name in source["statistics"])
        for field, found in source["statistics"].items():
            assert_equals_numpy(found, rows_of(samples[source["session_id"]], field))
        assert sum(source["statistics"]["behavior"]["nan"]) > 0


def test_segments_have_the_statistics_of_what_was_measured(recordings: list[Path], segments: Path) -> None:
    import h5py

    for path, source in zip(recordings, Manifest.load(segments).sources, strict=True):
        with h5py.File(path) as file:
            stored = file["processing/ecephys/LFP/lfp/data"]
            values = stored[:] * stored.attrs["conversion"] + stored.attrs["offset"]
            positions = file["processing/behavior/Position/xy/data"][:]
        assert_equals_numpy(source["statistics"]["lfp"], values)
        assert_equals_numpy(source["statistics"]["behavior_xy"], positions)
        assert set(source["statistics"]) == {"lfp", "behavior_xy"}


@pytest.mark.parametrize("layout", ["windows", "segments"])
def test_the_same_bytes_whoever_counts(recordings: list[Path], tmp_path: Path, layout: str) -> None:
    options = BINS if layout == "windows" else {"layout": "segments", "segment_s": 1.5}
    config = SourceConfig.of(**options)
    convert(recordings, Output(tmp_path / "one", shard_size=7), config)
    convert(recordings, Output(tmp_path / "two", shard_size=7), config, Workers(2))
    text = (tmp_path / "one" / MANIFEST_NAME).read_bytes()
    assert (tmp_path / "two" / MANIFEST_NAME).read_bytes() == text
    assert sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_dir()) == []
    manifest = Manifest.load(tmp_path / "one")
    older = [{k: v for k, v in source.items() if k != "statistics"} for source in manifest.sources]
    replace(manifest, sources=older).save(tmp_path / "two")
    assert main(["stats", str(tmp_path / "two")]) == 0
    assert json.loads((tmp_path / "two" / MANIFEST_NAME).read_bytes()) == json.loads(text)
    convert(recordings[:1], Output(tmp_path / "grown", shard_size=7), config)
    append(recordings[1:], Output(tmp_path / "grown", shard_size=7), config)
    assert Manifest.load(tmp_path / "grown").sources[0]["statistics"] == manifest.sources[0]["statistics"]
    for a, b in zip(Manifest.load(tmp_path / "grown").sources, manifest.sources, strict=True):
        for field in a["statistics"]:  # other shards: other sums
            assert np.allclose(a["statistics"][field]["mean"], b["statistics"][field]["mean"], rtol=1e-12)


def zscored(samples: list[dict[str, Any]], field: str, of: np.ndarray) -> np.ndarray:
    found = by_numpy(of)
    std = np.where(found["std"] > 0, found["std"], 1)
    return (rows_of(samples, field) - found["mean"]) / std


def assert_zscored(directory: Path, normalize: Any, fields: tuple[str, ...], **options: Any) -> None:
    plain, normal = (samples_by_source(directory, **options, **more) for more in ({}, {"normalize": normalize}))
    for session, samples in plain.items():
        for field in fields:
            wanted = zscored(samples, field, rows_of(samples, field))
            got = rows_of(normal[session], field)
            assert got.dtype == np.float32
            assert np.allclose(got, wanted, rtol=2e-4, atol=2e-4, equal_nan=True), (session, field)
        others = normal[session][0].keys() - set(fields) - {"metadata", "__key__", "__mask__"}
        for name in others:
            np.testing.assert_array_equal(rows_of(normal[session], name), rows_of(samples, name))


@pytest.mark.parametrize("selection", [{}, {"session_id": "s1"}, {"session_id": ["s0", "s2"]}, "half"])
def test_zscore_is_of_the_selected_samples_of_each_recording(windows: Path, selection: Any) -> None:
    select = (lambda about: about["window_index"] % 2 == 0) if selection == "half" else selection or None
    assert_zscored(windows, "zscore", ("spikes", "behavior", "lfp"), select=select)
    assert_zscored(windows, {"behavior": "zscore"}, ("behavior",), select=select)


@pytest.mark.parametrize("jitter", [False, True])
def test_zscore_of_windows_cut_while_loading(segments: Path, jitter: bool) -> None:
    cut: dict[str, Any] = {"windows": Windows(length_s=0.5, bin_ms=20)}
    assert_zscored(segments, "zscore", ("spikes", "behavior", "lfp"), **cut)
    assert_zscored(segments, "zscore", ("spikes", "behavior", "lfp"), **cut, select={"session_id": "s1"})
    if jitter:
        moved = {"windows": Windows(length_s=0.5, bin_ms=20, jitter=True)}
        known = [
            create_webdataset_dataloader(segments, normalize="zscore", **each).normalization for each in (cut, moved)
        ]
        assert known[0] == known[1]


def test_statistics_of_a_split_never_see_the_others(recordings: list[Path], tmp_path: Path) -> None:
    """Whatever the second recording holds, the first is normalized alike, also where all columns are pooled."""
    found = []
    for other in (recordings[1], recordings[2]):
        out = tmp_path / other.stem
        convert([recordings[0], other], Output(out), SourceConfig.of(**BINS))
        for how in ("zscore", "zscore_all"):
            loader = create_webdataset_dataloader(out, select={"session_id": "s0"}, normalize=how, num_workers=0)
            found.append((how, [batch["spikes"].numpy().tobytes() for batch in loader]))
    assert found[:2] == found[2:]


def test_statistics_of_one_split_for_another(windows: Path) -> None:
    train = {"select": lambda about: about["window_index"] < 8}
    test = {"select": lambda about: about["window_index"] >= 8}
    of_train = create_webdataset_dataloader(windows, normalize="zscore", num_workers=0, **train).normalization
    assert json.loads(json.dumps(of_train)) == json.loads(json.dumps(of_train))
    plain, normal = samples_by_source(windows, **test), samples_by_source(windows, normalize=of_train, **test)
    seen = samples_by_source(windows, **train)
    for session, samples in plain.items():
        for field in ("spikes", "behavior", "lfp"):
            wanted = zscored(samples, field, rows_of(seen[session], field))
            assert np.allclose(rows_of(normal[session], field), wanted, rtol=2e-4, atol=2e-4, equal_nan=True)
    with pytest.raises(ValueError, match="normalize: spikes: no mean and std of the sessions s1"):
        only = {"spikes": {"s0": of_train["spikes"]["s0"]}}
        create_webdataset_dataloader(windows, normalize=only, select={"session_id": ["s0", "s1"]})


def test_pooled_statistics_hold_for_new_sessions(windows: Path) -> None:
    train = {"select": {"session_id": ["s0", "s1"]}}
    pooled = create_webdataset_dataloader(
        windows, normalize={"lfp": "zscore_all"}, num_workers=0, **train
    ).normalization
    assert list(pooled["lfp"]) == ["*"]
    [plain], [normal] = (samples_by_source(windows, select={"session_id": "s2"}, **more).values()
                         for more in ({}, {"normalize": pooled}))  # fmt: skip
    seen = np.concatenate([rows_of(each, "lfp") for each in samples_by_source(windows, **train).values()])
    assert np.allclose(rows_of(normal, "lfp"), zscored(plain, "lfp", seen), rtol=2e-4, atol=2e-4)


def test_pooled_and_given_statistics(windows: Path) -> None:
    plain = [sample for each in samples_by_source(windows).values() for sample in each]
    given = {"lfp": ([0.25, 0.5], 2.0), "behavior": "zscore_all", "spikes": (1, 0)}
    normal = [s for each in samples_by_source(windows, normalize=given).values() for s in each]
    assert np.allclose(rows_of(normal, "lfp"), (rows_of(plain, "lfp") - [0.25, 0.5]) / 2, rtol=1e-5, atol=1e-6)
    wanted = zscored(plain, "behavior", rows_of(plain, "behavior"))
    assert np.allclose(rows_of(normal, "behavior"), wanted, rtol=2e-4, atol=2e-4, equal_nan=True)
    assert all(np.array_equal(a["spikes"], b["spikes"] - 1) for a, b in zip(normal, plain, strict=True))


def test_zscore_of_chosen_units(windows: Path, segments: Path) -> None:
    assert_zscored(windows, "zscore", ("spikes", "behavior", "lfp"), units="column != 1")
    cut: dict[str, Any] = {"windows": Windows(length_s=0.5, bin_ms=20)}
    assert_zscored(segments, {"spikes": "zscore"}, ("spikes",), units="column != 1", **cut)


def test_arrays_without_sources(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    create_shards_from_arrays(tmp_path / "a", {"eeg": rng.normal(3, 2, (40, 30, 4)).astype("float32")}, shard_size=9)
    [batch] = create_webdataset_dataloader(tmp_path / "a", batch_size=100, normalize="zscore", num_workers=0)
    assert batch["eeg"].mean().abs() < 1e-5 and abs(batch["eeg"].std(correction=0) - 1) < 1e-5
    with pytest.raises(ManifestError, match="no sources"):
        count_dataset(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        count_dataset(tmp_path / "nothing")


@pytest.mark.parametrize("form", ["windows", "selected", "segments", "mixture"])
def test_laws_with_normalized_batches(windows: Path, segments: Path, form: str) -> None:
    options: dict[str, Any] = {"normalize": "zscore"}
    directory: Any = segments if form == "segments" else windows
    if form == "selected":
        options |= {"select": {"session_id": ["s0", "s2"]}, "units": "column > 0"}
    if form == "segments":
        options["windows"] = Windows(length_s=0.5, bin_ms=20, jitter=True)
    if form == "mixture":
        part = {"shard_dir": segments, "windows": Windows(length_s=0.5, bin_ms=20)}
        directory = mix({"a": windows, "b": part}, {"a": 2, "b": 1})
    assert_laws(directory, **options)


@pytest.mark.parametrize(
    ("normalize", "why"),
    [
        ("minmax", 'must be "zscore"'),
        ({"spikes": "minmax"}, "spikes: must be"),
        ({"nothing": "zscore"}, "no field 'nothing'"),
        ({"spikes": (0, -1)}, "not negative"),
        ({"spikes": (np.nan, 1)}, "finite"),
        ({"spikes": 3}, "must be"),
        ({"spikes": (1, 2, 3)}, "must be"),
        ({"behavior_mask": "zscore"}, "cannot be counted"),
        ({"spikes": "zscore_all"}, "other columns in other recordings"),
    ],
)
def test_what_cannot_be_normalized_is_refused_by_name(windows: Path, normalize: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"normalize.*{why}"):
        create_webdataset_dataloader(windows, normalize=normalize)


def test_a_mean_of_other_columns_is_refused(windows: Path) -> None:
    with pytest.raises(ValueError, match="lfp has 2 columns, its mean 3"):
        next(iter(create_webdataset_dataloader(windows, normalize={"lfp": ([1, 2, 3], 1)}, num_workers=0)))


def test_the_command_line(windows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(windows), "--stats"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("spikes", "behavior", "lfp", "mean", "std"))
    assert main(["info", str(windows), "--stats", "--all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + (4 + 4 + 3) + 3 * 2 + 3 * 2
    assert main(["info", str(windows), "--stats", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"0.nwb", "1.nwb", "2.nwb"}
    assert main(["stats", str(tmp_path)]) == 1
    assert "no manifest" in capsys.readouterr().err
