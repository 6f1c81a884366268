"""Recordings as they really are: odd times, broken links, damaged or foreign files, each made here as once met."""

from __future__ import annotations

import errno
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from counting import some
from hdmf.common import DynamicTable, VectorData
from pynwb import behavior as nwb_behavior
from recordings import make_recording, read_all

from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.manifest import Manifest
from neurofmx_wds.nwb import recording as recording_module

XY = "processing/behavior/Position/xy"


def edited(path: Path, edit: Callable[[h5py.File], None], **options: Any) -> Path:
    make_recording(path, **options)
    with h5py.File(path, "a") as file:
        edit(file)
    return path


def replaced(group: h5py.Group, name: str, value: Any) -> None:
    """Puts something else in the place of a dataset, or nothing, and keeps its attributes."""
    attributes = dict(group[name].attrs)
    del group[name]
    if value is not None:
        group[name] = value
        if name in group:
            group[name].attrs.update(attributes)


# -- spike times -----------------------------------------------------------------------------------------------------


def test_spike_times_in_samples_or_milliseconds_are_noticed_and_time_scale_mends_them(tmp_path: Path) -> None:
    true = [np.sort(np.random.default_rng(u).integers(0, 300_000, 200)) for u in range(3)]  # 10 s at 30 kHz
    make_recording(tmp_path / "s.nwb", spike_times=[t / 30_000 for t in true], trials=5)
    good, expected = read_all(tmp_path / "s.nwb")
    for name, times, scale in (
        ("samples", true, "1/30000"),
        ("ms", [t / 30 for t in true], 0.001),
    ):
        make_recording(tmp_path / f"{name}.nwb", spike_times=times, trials=5)
        source = open_source(tmp_path / f"{name}.nwb", SourceConfig.of(bin_size_ms=1000, sequence_length=10))
        assert "in ms or samples? set time_scale" in " ".join(source.describe().report["warnings"])
        source.close()
        mended, samples = read_all(tmp_path / f"{name}.nwb", time_scale=scale)
        assert "time_scale" not in " ".join(mended.report["warnings"] + good.report["warnings"])
        assert len(samples) == len(expected) > 30
        for (ours, _), (theirs, _) in zip(samples, expected, strict=True):
            np.testing.assert_array_equal(ours["spikes"], theirs["spikes"])


@pytest.mark.parametrize(
    ("times", "doubt"),
    [
        (np.arange(0, 400_000, 2000.0), "whole seconds"),
        (np.arange(200) * 77.7, "0.013 spikes/s"),
        (np.arange(200) * 1.5, None),
    ],
)
def test_the_doubt_about_seconds_says_what_raised_it(tmp_path: Path, times: Any, doubt: str | None) -> None:
    make_recording(tmp_path / "a.nwb", spike_times=[times])
    source = open_source(tmp_path / "a.nwb", SourceConfig.of(bin_size_ms=1000))
    text = " ".join(source.describe().report["warnings"])
    source.close()
    assert ("time_scale" in text) == (doubt is not None) and (doubt or "") in text


def test_observation_intervals_that_differ_by_unit_become_a_mask(tmp_path: Path) -> None:
    observed = [[[0, 10]], [[0, 4.005], [6.002, 10]], [[2, 3]]]
    make_recording(tmp_path / "a.nwb", n_units=3, obs_intervals=observed)
    description, samples = read_all(tmp_path / "a.nwb", overlap=0.3)
    assert description.fields["spikes_mask"]["shape"] == [50, 3] and description.report["segments"] == [[0, 10**10]]
    for fields, metadata in some(samples):
        starts = metadata["t_start_ns"] + np.arange(50) * 10**7
        expected = np.zeros((50, 3), dtype=bool)
        for unit, intervals in enumerate(observed):
            for a, b in intervals:
                expected[:, unit] |= (starts >= round(a * 1e9)) & (starts + 10**7 <= round(b * 1e9))
        np.testing.assert_array_equal(fields["spikes_mask"], expected)
    make_recording(tmp_path / "b.nwb", n_units=3, obs_intervals=[[[0, 5], [5, 10]], [[0, 10]], [[0, 10]]])
    assert "spikes_mask" not in read_all(tmp_path / "b.nwb")[0].fields


def test_duplicate_spike_times_are_counted_and_reported(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", spike_times=[[1.0, 1.0, 1.0, 2.0], [1.0, 5.0]])
    description, samples = read_all(tmp_path / "a.nwb", overlap=0.0)
    assert samples[0][0]["spikes"][0].tolist() == [3, 1]
    assert "2 spikes at the very time of another of their unit" in " ".join(description.report["warnings"])


def test_a_file_without_units_or_without_spike_times_has_no_spikes(tmp_path: Path) -> None:
    def without_times(file: h5py.File) -> None:
        for name in ("spike_times", "spike_times_index"):
            del file["units"][name]
        file["units"].attrs["colnames"] = np.array(["electrode_group"], dtype=object)

    for path in (
        edited(tmp_path / "a.nwb", without_times, behavior_rate=50),
        edited(tmp_path / "b.nwb", lambda f: None, behavior_rate=50, n_units=0),
    ):
        assert list(read_all(path)[0].fields) == ["behavior", "behavior_mask"]
        with pytest.raises(SourceError, match="no spikes in it; it has behavior"):
            read_all(path, modalities=("spikes",))


# -- timestamps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.001, 0.3, 0.6])
def test_a_sentinel_however_frequent_is_clipped_before_the_grid_is_sized(tmp_path: Path, part: float) -> None:
    times = np.arange(1000) / 100
    times[: round(part * 1000)] = -1.5e9
    make_recording(tmp_path / "a.nwb", behavior_times=times, n_units=0)
    description, samples = read_all(tmp_path / "a.nwb")
    first = round(part * 1000)
    assert description.report["segments"] == [[first * 10**7, 10**10]]
    assert description.report["windows"]["dropped"] == {}
    assert f"{first} stray timestamps dropped" in " ".join(description.report["warnings"])
    assert all(fields["behavior_mask"][:-1].all() for fields, _ in samples) and samples  # none after the last sample


def test_timestamps_in_float32_are_read_and_their_coarseness_is_told(tmp_path: Path) -> None:
    times = 1e5 + np.arange(1000) / 100

    def narrowed(file: h5py.File) -> None:
        replaced(file[XY], "timestamps", times.astype(np.float32))

    path = edited(tmp_path / "a.nwb", narrowed, behavior_times=times, n_units=0)
    description, samples = read_all(path, bin_size_ms=100, sequence_length=10)
    assert "timestamps stored as float32 are only known to 0.0078 s" in " ".join(description.report["warnings"])
    with h5py.File(path) as file:
        bins = np.rint(file[XY]["timestamps"][:].astype(float) * 1e9).astype(np.int64) // 10**8
        data = file[XY]["data"][:, 0]
    for fields, metadata in some(samples):
        first = metadata["t_start_ns"] // 10**8
        expected = [data[bins == first + k].mean() if (bins == first + k).any() else np.nan for k in range(10)]
        np.testing.assert_allclose(fields["behavior"][:, 0], expected, rtol=1e-5)


def test_more_data_than_timestamps_or_fewer_is_cut_to_the_shorter(tmp_path: Path) -> None:
    for n_times in (700, 1000):
        path = edited(
            tmp_path / f"{n_times}.nwb",
            lambda file, n=n_times: replaced(file[XY], "timestamps", np.arange(n) / 100),
            behavior_times=np.arange(850) / 100,
            n_units=0,
        )
        description, _ = read_all(path)
        kept = min(n_times, 850)
        assert description.report["segments"] == [[0, kept * 10**7]]
        assert f"850 rows of data but {n_times} timestamps" in " ".join(description.report["warnings"])


# -- data ------------------------------------------------------------------------------------------------------------


def _series(name: str, data: Any, **more: Any) -> Any:
    return pynwb.TimeSeries(name=name, data=data, unit="m", **{"rate": 100.0, **more})


def test_useless_series_are_left_out_by_name_and_the_others_are_read(tmp_path: Path) -> None:
    data = {
        "none": np.zeros(0),
        "holes": np.full(1000, np.nan),
        "cube": np.zeros((1000, 2, 3)),
        "words": ["x"] * 1000,
        "flag": np.arange(1000) % 2 == 0,
    }

    def add(nwb: pynwb.NWBFile) -> None:
        module = nwb.create_processing_module("behavior", "b")
        module.add(nwb_behavior.BehavioralTimeSeries(time_series=[_series(n, d) for n, d in data.items()]))

    make_recording(tmp_path / "a.nwb", extra=add)
    description, samples = read_all(tmp_path / "a.nwb")
    assert description.fields["behavior"]["columns"] == ["BehavioralTimeSeries/flag", "BehavioralTimeSeries/holes"]
    text = " ".join(description.report["warnings"])
    assert all(f"/{name} left out" in text for name in ("none", "cube", "words"))
    for fields, _ in some(samples):
        assert fields["behavior_mask"].all(axis=0).tolist() == [True, False] and not fields["behavior_mask"][:, 1].any()


def test_attributes_that_are_no_utf8_are_reported_escaped(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        for place, name in ((f"{XY}/data", "unit"), ("general/extracellular_ephys/shank0", "location")):
            file[place].attrs.create(name, b"\xb5V", dtype=h5py.string_dtype())

    path = edited(tmp_path / "a.nwb", edit, behavior_rate=100)
    [report] = convert([path], Output(tmp_path / "out")).summary["sources"]
    assert report["units"]["location"] == [r"\xb5V"] * 4
    assert Manifest.load(tmp_path / "out").modalities["behavior"]["unit"] == r"\xb5V"


@pytest.mark.parametrize("kind", ["soft", "external"])
def test_a_link_is_followed_and_one_that_leads_nowhere_is_named(tmp_path: Path, kind: str) -> None:
    make_recording(tmp_path / "whole.nwb", behavior_rate=100)

    def link(there: bool) -> Callable[[h5py.File], None]:
        def edit(file: h5py.File) -> None:
            data = file[XY]["data"]
            if kind == "external":
                with h5py.File(tmp_path / "other.h5", "w") as other:
                    file.copy(data, other, "d")
                target: Any = h5py.ExternalLink("other.h5" if there else "gone.h5", "/d")
            else:
                target = h5py.SoftLink("/processing/behavior/Position/z/data" if there else "/nowhere")
                file.copy(file[XY], file["processing/behavior/Position"], "z")
                file["processing/behavior/Position/z"].attrs["object_id"] = "0" * 36
            del file[XY]["data"]
            file[XY]["data"] = target

        return edit

    _, expected = read_all(tmp_path / "whole.nwb")
    _, linked = read_all(edited(tmp_path / "linked.nwb", link(True), behavior_rate=100))
    assert expected
    for (ours, _), (theirs, _) in zip(linked, expected, strict=True):
        np.testing.assert_array_equal(ours["behavior"][:, :2], theirs["behavior"])
    description, _ = read_all(edited(tmp_path / "broken.nwb", link(False), behavior_rate=100))
    where = "gone.h5:/d" if kind == "external" else "/nowhere"
    assert f"{XY} left out: its data are a link to {where}, which does not exist" in description.report["warnings"]


def test_series_that_share_data_and_timestamps_are_both_read(tmp_path: Path) -> None:
    def add(nwb: pynwb.NWBFile) -> None:
        one = _series("a", np.arange(1000.0), rate=None, timestamps=np.arange(1000) / 100)
        two = _series("b", one, rate=None, timestamps=one)
        nwb.create_processing_module("behavior", "b").add(nwb_behavior.BehavioralTimeSeries(time_series=[one, two]))

    make_recording(tmp_path / "a.nwb", extra=add)
    _, samples = read_all(tmp_path / "a.nwb")
    assert samples
    for fields, _ in some(samples):
        np.testing.assert_array_equal(fields["behavior"][:, 0], fields["behavior"][:, 1])


def test_integers_without_a_conversion_are_doubted(tmp_path: Path) -> None:
    for conversion, doubted in ((1.0, True), (1e-6, False)):
        make_recording(
            tmp_path / f"{conversion}.nwb",
            lfp_channels=2,
            lfp_data=np.ones((10_000, 2), dtype=np.int16),
            lfp_scaling={"conversion": conversion},
        )
        description, _ = read_all(tmp_path / f"{conversion}.nwb")
        assert ("integers with conversion 1.0" in " ".join(description.report["warnings"])) == doubted


# -- files -----------------------------------------------------------------------------------------------------------


def _version(value: Any) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file.attrs["nwb_version"]
        if value is not None:
            file.attrs["nwb_version"] = value

    return edit


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        (None, "has no nwb_version attribute"),
        (2, "malformed nwb_version: .*2"),
        ("two", "malformed nwb_version: 'two'"),
        (np.array(["2.5.0"], dtype=h5py.string_dtype()), r"malformed nwb_version: array\(\['2.5.0'\]"),
        ("NWB-1.0.6", "is NWB NWB-1.0.6, which is not NWB 2"),
    ],
)
def test_a_version_that_is_none_is_named_with_a_remedy(tmp_path: Path, version: Any, problem: str) -> None:
    with pytest.raises(SourceError, match=rf"a\.nwb: .*{problem}.*\((give its root|convert it to NWB 2)"):
        read_all(edited(tmp_path / "a.nwb", _version(version)))


def test_what_pynwb_cannot_read_is_told_in_a_line(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["units/spike_times_index"]

    with pytest.raises(SourceError, match="Columns must be the same length") as caught:
        read_all(edited(tmp_path / "a.nwb", edit))
    assert len(str(caught.value)) < 600 + len(str(tmp_path)) and "pynwb-validate" in str(caught.value)


_EXTENDED = """
import sys
import numpy as np
from pynwb import get_class, load_namespaces
from pynwb.spec import NWBAttributeSpec, NWBGroupSpec, NWBNamespaceBuilder
from recordings import make_recording
made = NWBNamespaceBuilder("odd", "ndx-odd", version="0.1.0", author="a", contact="c")
made.include_type("TimeSeries", namespace="core")
odd = NWBAttributeSpec("odd", "o", "text", required=False)
spec = NWBGroupSpec("o", neurodata_type_def=sys.argv[3], neurodata_type_inc="TimeSeries", attributes=[odd])
made.add_spec("odd.extensions.yaml", spec)
made.export("odd.namespace.yaml", outdir=sys.argv[2])
load_namespaces(sys.argv[2] + "/odd.namespace.yaml")
OddSeries = get_class(sys.argv[3], "ndx-odd")
series = OddSeries(name="o", data=np.arange(1000.0), rate=100.0, unit="m", odd="yes")
make_recording(sys.argv[1], extra=lambda nwb: nwb.add_acquisition(series))
"""


def extended(path: Path, kind: str) -> None:
    """Writes a recording with acquisition/o of a type that only the file itself defines, in a process of its own."""
    search = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-W", "ignore", "-c", _EXTENDED, str(path), str(path.parent), kind]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": search}, stdout=subprocess.DEVNULL)


def test_an_extension_that_is_not_installed_is_read_from_the_file_or_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    extended(path, "OddSeries")
    description, samples = read_all(path, modalities=("spikes", "acquisition/o"))
    assert description.fields["o"]["paths"] == ["acquisition/o"]
    assert samples[0][0]["o"].shape == (50, 1) and samples[0][0]["o_mask"].all()
    with h5py.File(path, "a") as file:
        del file["specifications/ndx-odd"]
    why = r"acquisition/o left out: it uses the extension ndx-odd.*install it: pip install ndx-odd"
    with pytest.raises(SourceError, match=f"no acquisition/o in it; it has spikes; {why}"):
        read_all(path, modalities=("spikes", "acquisition/o"))
    rest, others = read_all(path)
    assert re.search(why, " ".join(rest.report["warnings"])) and len(others) == len(samples)


def test_photometry_of_an_extension_is_ophys(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    extended(tmp_path / "sub" / "a.nwb", "FiberPhotometryResponseSeries")
    description, _ = read_all(tmp_path / "sub" / "a.nwb")
    assert description.fields["ophys"]["paths"] == ["acquisition/o"] and description.report["unused"] == []


@pytest.mark.skipif("HDF5_USE_FILE_LOCKING" in os.environ, reason="HDF5_USE_FILE_LOCKING may have switched locks off")
def test_a_file_that_is_being_written_is_locked_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.nwb"
    make_recording(path)
    hold = (
        "import h5py, sys; f = h5py.File(sys.argv[1], 'a', locking=True); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
        with pytest.raises(SourceError, match="is locked by a program.*HDF5_USE_FILE_LOCKING=FALSE"):
            read_all(path)
        writer.communicate(b"")
    assert read_all(path)[0].n_samples > 0


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:  # root may read everything, so no mode of the file would do
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    make_recording(tmp_path / "a.nwb")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied.*check the path and the permissions"):
        read_all(tmp_path / "a.nwb")


def test_bad_files_are_reported_and_the_others_converted(tmp_path: Path) -> None:
    make_recording(tmp_path / "good.nwb")
    (tmp_path / "empty.nwb").touch()
    (tmp_path / "lfs.nwb").write_text("version https://git-lfs.github.com/spec/v1\n")
    edited(tmp_path / "old.nwb", _version("1.0.6"))
    paths = [tmp_path / f"{name}.nwb" for name in ("empty", "good", "lfs", "old")]
    done = convert(paths, Output(tmp_path / "out"), SourceConfig())
    assert [failure.file for failure in done.plan.failures] == [str(paths[0]), str(paths[2]), str(paths[3])]
    assert all(failure.remedy for failure in done.plan.failures)
    assert done.summary["total_samples"] > 0


# --- tables whose rows are in time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", ["timestamps", "timestamp", "time"])
@pytest.mark.parametrize("module", ["behavior", "tracking"])
def test_columns_of_a_table_with_timestamps_are_series(time: str, module: str, tmp_path: Path) -> None:
    times = 0.5 + np.arange(300) / 30
    truth = {"nose_x": np.sin(times), "nose_y": np.cos(times)}

    def add(nwb: pynwb.NWBFile) -> None:
        columns = {time: times, **truth, "in_port": np.arange(300) % 60 < 30, "note": ["a"] * 300}
        made = [VectorData(name=name, description=name, data=data) for name, data in columns.items()]
        table = DynamicTable(name="pose", description="tracked", columns=made)
        table.add_column(name="spots", description="ragged", data=[0.0] * 300, index=list(range(1, 301)))
        other = DynamicTable(
            name="cells", description="no times", columns=[VectorData(name="x", description="x", data=[1.0])]
        )
        holder = nwb.create_processing_module(module, "pose")
        holder.add(table)
        holder.add(other)

    make_recording(tmp_path / "a.nwb", seconds=12, extra=add)
    paths = [f"processing/{module}/pose/{name}" for name in ("in_port", "nose_x", "nose_y")]
    if module == "behavior":
        description, samples = read_all(tmp_path / "a.nwb", modalities=["behavior"], overlap=0)
        about = description.fields["behavior"]
        assert about["columns"] == ["pose/in_port", "pose/nose_x", "pose/nose_y"] and about["paths"] == paths
        assert about["ways"] == ["previous", "linear", "linear"]
        assert "processing/behavior/pose/note left out" in " ".join(description.report["warnings"])
        values = np.concatenate([fields["behavior"] for fields, _ in samples])
    else:
        description, _ = read_all(tmp_path / "a.nwb")
        assert set(paths) < set(description.report["unused"]) and list(description.fields) == ["spikes"]
        description, samples = read_all(tmp_path / "a.nwb", modalities=[f"processing/{module}/pose"], overlap=0)
        values = np.concatenate([np.hstack([f[n] for n in ("in_port", "nose_x", "nose_y")]) for f, _ in samples])
    start = samples[0][1]["t_start_ns"] / 1e9
    centres = start + (np.arange(len(values)) + 0.5) * 0.01
    assert len(values) >= 900
    last = np.minimum(np.searchsorted(times, centres + 1e-9, side="right") - 1, 299)
    np.testing.assert_array_equal(values[:, 0], (last % 60 < 30).astype(np.float32))
    for column, name in ((1, "nose_x"), (2, "nose_y")):
        expected = np.interp(centres, times, truth[name], right=np.nan)
        np.testing.assert_allclose(values[:, column], expected, atol=1e-6)


def test_a_warning_about_something_else_is_not_the_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is collected while a recording is opened, such as a file that somebody left open, is none of its affair."""
    path = tmp_path / "a.nwb"
    make_recording(path)
    opened = recording_module.open_nwb

    def with_garbage(*args: Any) -> Any:
        rubbish: list[Any] = [open(path, "rb")]
        rubbish.append(rubbish)
        del rubbish
        gc.collect()
        return opened(*args)

    monkeypatch.setattr(recording_module, "open_nwb", with_garbage)
    source = open_source(path, SourceConfig.of(sequence_length=10))
    warned = source.describe().report["warnings"]
    source.close()
    assert not [each for each in warned if "unclosed" in each]
