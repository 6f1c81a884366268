"""Columns of units, electrodes and ROIs are kept, keys tell units apart, and expressions over columns choose."""

from __future__ import annotations

import ast
import json
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynwb.ophys import Fluorescence, ImageSegmentation, OpticalChannel, RoiResponseSeries
from recordings import make_recording
from viewing import assert_laws

from neurofmx_wds import NWBToWebDatasetConverter, Windows, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.choosing import Choice

BINS: dict[str, Any] = {"bin_size_ms": 20, "sequence_length": 25, "overlap": 0.0}
GOOD = 'quality == "good" and location != "V1"'


def describe_units(nwb: pynwb.NWBFile, qualities: list[str], locations: list[str]) -> None:
    """Give the units of `make_recording` a quality, a depth that is not always known, text that is too long, and an
    electrode each."""
    for location in locations:
        nwb.add_electrode(group=nwb.electrode_groups["shank0"], location=location)
    table, first = nwb.units, len(nwb.electrodes) - len(locations)
    table.add_column("quality", "q", data=qualities)
    table.add_column("depth", "um", data=[np.nan if i % 3 == 2 else 10.5 * i for i in range(len(qualities))])
    table.add_column("is_cell", "truth", data=[q == "good" for q in qualities])
    table.add_column("note", "long", data=["x" * 5000] * len(qualities))
    table.add_column("waveform_mean", "rows of many numbers", data=np.zeros((len(qualities), 40)))
    region = nwb.electrodes
    table.add_column(
        "electrodes", "each one", data=[[first + i] for i in range(len(locations))], index=True, table=region
    )  # fmt: skip


def units_of(directory: Path, source: int = 0) -> dict[str, list[Any]]:
    manifest = json.loads((directory / "dataset_metadata.json").read_text())
    units: dict[str, list[Any]] = manifest["sources"][source]["units"]
    return units


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three recordings: 4 units with columns, 3 units without, and 4 others that have the session of the first."""
    directory = tmp_path_factory.mktemp("recordings")
    paths = [directory / f"{name}.nwb" for name in "abc"]

    def described(nwb: pynwb.NWBFile) -> None:
        describe_units(nwb, ["good", "mua", "good", "mua"], ["CA1", "CA1", "V1", "CA3"])

    make_recording(paths[0], seconds=6, n_units=4, behavior_rate=50, session_id="s1", extra=described)
    make_recording(paths[1], seconds=5, n_units=3, behavior_rate=50, session_id="s2", seed=1)
    make_recording(paths[2], seconds=4, n_units=4, behavior_rate=50, session_id="s1", seed=2, extra=described)
    return paths


@pytest.fixture(scope="module")
def datasets(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the recordings as windows, and as segments."""
    out = tmp_path_factory.mktemp("datasets")
    convert(recordings, Output(out / "windows", shard_size=5), SourceConfig.of(**BINS))
    convert(recordings, Output(out / "segments", shard_size=3), SourceConfig.of(layout="segments", segment_s=2.0))
    return out / "windows", out / "segments"


def test_all_scalar_columns_are_in_the_manifest(recordings: list[Path], datasets: tuple[Path, Path]) -> None:
    with h5py.File(recordings[0]) as file:
        truth = {name: file["units"][name][:] for name in ("quality", "depth", "is_cell")}
        rows = file["units/electrodes"][:]
        locations = [file["general/extracellular_ephys/electrodes/location"][row].decode() for row in rows]
    for directory in datasets:
        units = units_of(directory)
        assert units["quality"] == [text.decode() for text in truth["quality"]]
        assert units["depth"] == [None if np.isnan(each) else each for each in truth["depth"]]
        assert units["is_cell"] == truth["is_cell"].astype(bool).tolist()
        assert units["location"] == locations
        assert units["electrode_group_name"] == ["shank0"] * 4
        assert {len(text) for text in units["note"]} == {200}
        assert not {"waveform_mean", "spike_times", "obs_intervals"} & units.keys()
        assert "quality" not in units_of(directory, 1)


def test_keys_are_unique_in_the_dataset(recordings: list[Path], datasets: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = [*(f"s1/{i}" for i in range(100, 104)), *(f"s2/{i}" for i in range(100, 103)),
              *(f"s1~2/{i}" for i in range(100, 104))]  # fmt: skip
    for directory in datasets:
        assert [key for i in range(3) for key in units_of(directory, i)["key"]] == wanted
    config = SourceConfig.of(**BINS)
    convert(recordings[:1], Output(tmp_path / "grown", shard_size=5), config)
    append(recordings[1:], Output(tmp_path / "grown", shard_size=5), config)
    convert(recordings[2:], Output(tmp_path / "c"), config)
    merge([tmp_path / "grown", tmp_path / "c"], tmp_path / "merged", repeat_keys=True)
    for name, n in (("grown", 3), ("merged", 4)):
        keys = [key for i in range(n) for key in units_of(tmp_path / name, i)["key"]]
        assert keys == wanted + (wanted[-4:] if n == 4 else []), "the same recording twice has the same units"
    loader = create_webdataset_dataloader(tmp_path / "merged", num_workers=0)
    assert list(loader.units["key"]) == wanted


def test_repeated_ids_are_told_and_have_keys_of_their_own(tmp_path: Path) -> None:
    def repeat(nwb: pynwb.NWBFile) -> None:
        nwb.units.add_column("probe", "p", data=["a", "a", "b", "b"])

    make_recording(tmp_path / "a.nwb", seconds=4, n_units=4, extra=repeat)
    with h5py.File(tmp_path / "a.nwb", "r+") as file:
        file["units/id"][:] = [0, 1, 0, 1]
    done = convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), SourceConfig.of(**BINS))
    assert units_of(tmp_path / "out")["key"] == ["session-1/0", "session-1/1", "session-1/0~2", "session-1/1~2"]
    assert any("ids that several units have: 0, 1" in line for line in done.summary["sources"][0]["warnings"])
    config = SourceConfig.of(units='probe == "b"', **BINS)
    convert([tmp_path / "a.nwb"], Output(tmp_path / "b"), config)
    assert units_of(tmp_path / "b")["key"] == ["session-1/0~2", "session-1/1~2"], "whatever else is chosen"


def test_units_chosen_at_conversion_are_columns_of_all(recordings: list[Path], tmp_path: Path) -> None:
    files = [recordings[0], recordings[2]]
    for layout in ({}, {"layout": "segments", "segment_s": 2.0}):
        options = layout or BINS
        name = "segments" if layout else "windows"
        convert(files, Output(tmp_path / name), SourceConfig.of(**options))
        convert(files, Output(tmp_path / f"{name}-good"), SourceConfig.of(units=GOOD, **options))
        load: dict[str, Any] = {"shuffle": False, "num_workers": 0, "batch_size": 100}
        if layout:
            load["windows"] = Windows(length_s=0.5, bin_ms=20)
        [every] = create_webdataset_dataloader(tmp_path / name, **load)
        [good] = create_webdataset_dataloader(tmp_path / f"{name}-good", **load)
        assert good["spikes"].equal(every["spikes"][..., [0]]) and good["behavior"].equal(every["behavior"])
        assert good["metadata"] == every["metadata"]
        assert units_of(tmp_path / f"{name}-good", 1)["key"] == ["s1~2/100"]
        [report, _] = json.loads((tmp_path / f"{name}-good/dataset_metadata.json").read_text())["sources"]
        assert any(line.startswith("units: 3 of 4, with ") for line in report["warnings"])
        assert report["spikes"]["total"] == units_of(tmp_path / f"{name}-good")["n_spikes"][0]


@pytest.mark.parametrize("spikes", ["dense", "ragged", "events"])
def test_units_chosen_at_load_are_those_chosen_at_conversion(
    recordings: list[Path], tmp_path: Path, spikes: Any
) -> None:
    files = [recordings[0], recordings[2]]
    convert(files, Output(tmp_path / "all"), SourceConfig.of(layout="segments", segment_s=1.5))
    convert(files, Output(tmp_path / "good"), SourceConfig.of(layout="segments", segment_s=1.5, units="depth < 50"))
    windows = Windows(length_s=0.5, bin_ms=20, jitter=True, spikes=spikes)
    load: dict[str, Any] = {"windows": windows, "num_workers": 0, "batch_size": 7}
    chosen = create_webdataset_dataloader(tmp_path / "all", units="depth < 50", **load)
    before = create_webdataset_dataloader(tmp_path / "good", **load)
    for a, b in zip(chosen, before, strict=True):
        names = a.keys() - {"metadata", "__key__"}
        assert names == b.keys() - {"metadata", "__key__"} and all(a[name].equal(b[name]) for name in names)
        assert a["metadata"] == b["metadata"]
    assert list(chosen.units["key"]) == list(before.units["key"])
    assert list(chosen.units["column"]) == [0, 1, 2] * 2


def test_observation_intervals_of_chosen_units(tmp_path: Path) -> None:
    observed = [[[0.0, 5.0]], [[0.0, 2.0]], [[0.0, 5.0]]]
    make_recording(tmp_path / "a.nwb", seconds=5, n_units=3, obs_intervals=observed)
    convert([tmp_path / "a.nwb"], Output(tmp_path / "all"), SourceConfig.of(layout="segments", segment_s=1.5))
    windows = Windows(length_s=0.5, bin_ms=20)
    for units, masked in (("id == 101 or id == 102", True), ("id != 101", False)):
        convert([tmp_path / "a.nwb"], Output(tmp_path / units), SourceConfig.of(units=units, **BINS))
        load: dict[str, Any] = {"shuffle": False, "num_workers": 0, "batch_size": 100}
        [now] = create_webdataset_dataloader(tmp_path / "all", windows=windows, units=units, **load)
        [before] = create_webdataset_dataloader(tmp_path / units, **load)
        assert ("spikes_mask" in now) == ("spikes_mask" in before) == masked
        assert all(now[name].equal(before[name]) for name in before if name.startswith("spikes"))


@pytest.mark.parametrize("form", ["windows", "ragged windows", "segments", "events", "mixture"])
def test_laws_with_units(recordings: list[Path], datasets: tuple[Path, Path], tmp_path: Path, form: str) -> None:
    options: dict[str, Any] = {"units": 'n_spikes > 40 and (quality is None or quality == "good")'}
    directory: Any = datasets[form in ("segments", "events")]
    if form == "ragged windows":
        directory = tmp_path / "ragged"
        convert(recordings, Output(directory, shard_size=5), SourceConfig.of(spike_format="both", **BINS))
    if form in ("segments", "events"):
        spikes: Any = "dense" if form == "segments" else "ragged"
        options["windows"] = Windows(length_s=0.5, bin_ms=20, jitter=True, spikes=spikes)
    if form == "mixture":
        parts: dict[str, Any] = {"windows": datasets[0], "all": {"shard_dir": datasets[0], "units": None}}
        parts["segments"] = {"shard_dir": datasets[1], "windows": Windows(length_s=0.5, bin_ms=20)}
        assert len({row[1:] for row in assert_laws(parts, **options)}) > 20
        return
    padded = ("spike_times", "spike_units", "spike_mask") if form == "events" else ()
    whole = assert_laws(directory, padded, **options)
    every = assert_laws(directory, padded, **{**options, "units": "n_spikes >= 0"}) if form == "windows" else whole
    assert [row[0] for row in whole] == [row[0] for row in every], "the order does not depend on the units"


def test_stored_ragged_spikes_of_chosen_units(recordings: list[Path], tmp_path: Path) -> None:
    convert(recordings[:1], Output(tmp_path / "all"), SourceConfig.of(spike_format="both", **BINS))
    convert(recordings[:1], Output(tmp_path / "some"), SourceConfig.of(spike_format="both", units="depth > 5", **BINS))
    load: dict[str, Any] = {"shuffle": False, "num_workers": 0, "batch_size": 4}
    now = create_webdataset_dataloader(tmp_path / "all", units="depth > 5", **load)
    for a, b in zip(now, create_webdataset_dataloader(tmp_path / "some", **load), strict=True):
        assert a["spikes"].equal(b["spikes"])
        for name in ("spike_times", "spike_units"):
            assert all(x.equal(y) and x.dtype == y.dtype for x, y in zip(a[name], b[name], strict=True))


def add_rois(nwb: pynwb.NWBFile) -> None:
    device, channel = nwb.create_device("microscope"), OpticalChannel("o", "x", 500.0)
    plane = nwb.create_imaging_plane(
        name="ip", optical_channel=channel, description="x", device=device, excitation_lambda=920.0, indicator="g",
        location="V1", imaging_rate=30.0,
    )  # fmt: skip
    module, segmentation = nwb.create_processing_module("ophys", "x"), ImageSegmentation()
    module.add(segmentation)
    table = segmentation.create_plane_segmentation(name="ps", description="x", imaging_plane=plane)
    for i in range(6):
        table.add_roi(pixel_mask=[(i, i, 1.0)])
    table.add_column("Accepted", "x", data=[1, 0, 1, 0, 1, 0])
    rois = table.create_roi_table_region(region=[5, 4, 3, 2, 1, 0], description="x")
    data = np.arange(600)[:, None] * 0.5 + np.arange(6.0)
    module.add(Fluorescence(roi_response_series=RoiResponseSeries("rrs", data, rois=rois, unit="a.u.", rate=100.0)))


def test_rois_and_electrodes_are_kept_and_choose_columns(tmp_path: Path) -> None:
    def extra(nwb: pynwb.NWBFile) -> None:
        add_rois(nwb)
        nwb.electrodes.add_column("label", "x", data=["a", "b", "a"])

    make_recording(tmp_path / "a.nwb", seconds=6, lfp_channels=3, lfp_rate=200.0, extra=extra)
    load: dict[str, Any] = {"shuffle": False, "num_workers": 0, "batch_size": 100}
    found: dict[str, Any] = {}
    for name, options in (("all", {}), ("some", {"rois": "Accepted == 1", "electrodes": 'label == "a"'})):
        config = SourceConfig.of(modalities=["ophys", "lfp", "spikes"], **options, **BINS)
        done = convert([tmp_path / "a.nwb"], Output(tmp_path / name), config)
        series = {each["path"].split("/")[-1]: each for each in done.summary["sources"][0]["series"]}
        found[name] = series, next(iter(create_webdataset_dataloader(tmp_path / name, **load))), done.summary
    series, every, _ = found["all"]
    assert series["rrs"]["columns"] == {"id": [5, 4, 3, 2, 1, 0], "Accepted": [0, 1, 0, 1, 0, 1]}
    assert series["lfp"]["columns"]["label"] == ["a", "b", "a"] and series["lfp"]["columns"]["id"] == [10, 11, 12]
    series, some, summary = found["some"]
    assert series["rrs"]["columns"]["id"] == [4, 2, 0] and series["lfp"]["columns"]["id"] == [10, 12]
    assert some["ophys"].equal(every["ophys"][..., [1, 3, 5]]) and some["lfp"].equal(every["lfp"][..., [0, 2]])
    assert summary["modalities"]["ophys"]["columns"] == ["4", "2", "0"]
    assert any("3 of its 6 rois do not fulfil" in line for line in summary["sources"][0]["warnings"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"units": 'quality == "bad"'}, "none of its 4 units fulfils"),
        ({"units": 'qualty == "good"'}, "no column 'qualty'.*did you mean quality"),
        ({"units": "depth > quality"}, "cannot be compared"),
        ({"units": "quality"}, "holds text"),
        ({"electrodes": "nothing == 1", "modalities": ["lfp"]}, "no column 'nothing'"),
    ],
)  # fmt: skip
def test_what_chooses_nothing_is_an_error_naming_the_file(tmp_path: Path, options: Any, why: str) -> None:
    def extra(nwb: pynwb.NWBFile) -> None:
        describe_units(nwb, ["good", "mua", "good", "mua"], ["CA1"] * 4)

    make_recording(tmp_path / "a.nwb", seconds=3, lfp_channels=2, behavior_rate=50, extra=extra)
    with pytest.raises(SourceError, match=rf"a\.nwb.*{why}"):
        convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), SourceConfig.of(**options, **BINS))


@pytest.mark.parametrize(
    "text",
    ["", "1 + 1", "f(1)", "a.b == 1", "a[0] == 1", "a = 1", "__import__('os').system('x')", "lambda: a", "a == [[1]]",
     "not " * 900 + "a", "(" * 300 + "a" + ")" * 300, "a" * 20_000, "True", "a if a else a", "[a for a in b]",
     "-'x' == a", "f'{a}' == 'x'", "a := 1", "a and", "a == 1j", "'unclosed", "`a", "a == 1; b"],
)  # fmt: skip
def test_other_expressions_are_refused(text: str, datasets: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^units="):
        SourceConfig.of(units=text)
    with pytest.raises(ValueError, match="^units="):
        create_webdataset_dataloader(datasets[0], units=text)


CELLS = st.none() | st.integers(-3, 3) | st.floats(-3, 3)
WORDS = st.none() | st.sampled_from(["good", "mua", "CA1", 'a "b"'])
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Callable[[dict[str, Any]], bool]]:
    """An expression as text, and as a function of a row."""
    if depth and draw(st.booleans()):
        (a, f), (b, g) = draw(conditions(depth - 1)), draw(conditions(depth - 1))
        kind = draw(st.sampled_from(["and", "or", "not"]))
        if kind == "not":
            return f"not ({a})", lambda row: not f(row)
        both = (lambda row: f(row) and g(row)) if kind == "and" else (lambda row: f(row) or g(row))
        return f"({a}) {kind} ({b})", both
    if draw(st.booleans()):
        words = draw(st.lists(st.sampled_from(["good", "CA1", 'a "b"']), max_size=3))
        return f"`the word` in {words!r}", lambda row: row["the word"] is not None and row["the word"] in words
    sign, value = draw(st.sampled_from(sorted(OPERATORS))), draw(st.integers(-3, 3))
    compare = OPERATORS[sign]
    if sign in ("==", "!="):
        return f"n {sign} {value}", lambda row: compare(row["n"], value)
    return f"n {sign} {value}", lambda row: row["n"] is not None and compare(row["n"], value)


@given(conditions(), st.lists(st.tuples(CELLS, WORDS), max_size=8))
def test_rows_that_fulfil_an_expression(
    condition: tuple[str, Callable[[dict[str, Any]], bool]], cells: list[tuple[Any, Any]]
) -> None:
    text, holds = condition
    rows = [{"n": n, "the word": word} for n, word in cells]
    choice = Choice(text)
    table = {name: [row[name] for row in rows] for name in ("n", "the word")}
    assert choice.rows(table).tolist() == [holds(row) for row in rows]
    assert set(choice.columns) <= {"n", "the word"}
    ast.parse(text.replace("`the word`", "word"))


def test_the_command_line(recordings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["convert", "-i", str(recordings[0]), "-o", out, "--units", GOOD, "--sequence-length", "50"]) == 0
    assert "units: 3 of 4" in capsys.readouterr().out
    assert main(["info", out, "--units"]) == 0
    shown = capsys.readouterr().out
    assert "s1/100" in shown and "s1/101" not in shown and "quality" in shown and "1 unit" in shown
    assert main(["info", out, "--units", 'quality == "good"', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == ["s1/100"]
    assert main(["info", out, "--units", 'quality == "bad"']) == 1
    assert "none of the 1 units" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["convert", "-i", str(recordings[0]), "-o", str(tmp_path / "x"), "--units", "f(1)"])
    assert stop.value.code == 2


def test_from_python(recordings: list[Path], tmp_path: Path) -> None:
    with NWBToWebDatasetConverter(tmp_path / "out", units=GOOD, **BINS) as converter:
        converter.convert_nwb_file(recordings[0])
    assert units_of(tmp_path / "out")["quality"] == ["good"]


def test_units_without_pandas(datasets: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = create_webdataset_dataloader(datasets[0], num_workers=0, units="column == 1").units
    assert isinstance(table, dict) and table["key"] == ["s1/101", "s2/101", "s1~2/101"] and table["column"] == [0, 0, 0]


def test_choosing_where_it_cannot_be_is_refused(
    datasets: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for directory, options in ((datasets[0], {"modalities": ["behavior"]}), (tmp_path / "arrays", {})):
        if not directory.exists():
            from neurofmx_wds import create_shards_from_arrays

            create_shards_from_arrays(directory, {"spikes": np.zeros((4, 5, 3), "float32")})
        with pytest.raises(ValueError, match="units"):
            create_webdataset_dataloader(directory, units="id == 100", **options)
    create_webdataset_dataloader(datasets[0], num_workers=0, units='quality == "good"')
    assert "no unit of b.nwb fulfils it" in caplog.text


def test_columns_of_other_kinds(tmp_path: Path) -> None:
    """Names that are taken, words of an enumeration, bytes, references, times and what no table of a manifest holds."""

    def extra(nwb: pynwb.NWBFile) -> None:
        table = nwb.units
        table.add_column("key", "their own", data=["x", "y", "z"])
        table.add_column("n_spikes", "their own", data=[1, 2, 3])
        table.add_column("column", "their own", data=[7, 8, 9])
        table.add_column("group", "references", data=[nwb.electrode_groups["shank0"]] * 3)
        table.add_column("pairs", "two numbers each", data=[[1, 2]] * 3)
        table.add_column("odd", "control characters", data=["a\x1b[31m", "b\nc", ""])
        table.add_column("huge", "not finite", data=[np.inf, -np.inf, np.nan])

    make_recording(tmp_path / "a.nwb", seconds=4, n_units=3, extra=extra)
    done = convert(
        [tmp_path / "a.nwb"], Output(tmp_path / "out"), SourceConfig.of(units="n_spikes_in_table > 1", **BINS)
    )
    units = done.summary["sources"][0]["units"]
    assert units["key"] == ["session-1/101", "session-1/102"] and units["key_in_table"] == ["y", "z"]
    assert units["n_spikes_in_table"] == [2, 3] and units["n_spikes"] != [2, 3] and units["column_in_table"] == [8, 9]
    assert units["group"] == ["shank0"] * 2 and "pairs" not in units and units["huge"] == [None] * 2
    assert units["odd"] == ["b\nc", ""]
    loader = create_webdataset_dataloader(tmp_path / "out", num_workers=0)
    assert list(loader.units["column"]) == [0, 1] and list(loader.units["source"]) == ["a.nwb"] * 2
    assert main(["info", str(tmp_path / "out"), "--units"]) == 0


def test_an_expression_with_nothing_to_choose_from_is_told(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=4, n_units=0, behavior_rate=50)
    config = SourceConfig.of(units="n_spikes > 1", rois="Accepted == 1", **BINS)
    done = convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), config)
    warnings = done.summary["sources"][0]["warnings"]
    assert [line.split(":")[0] for line in warnings if "could choose from" in line] == ["units", "rois"]
