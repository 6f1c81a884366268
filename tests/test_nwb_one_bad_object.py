"""An object that cannot be read, or must not be, is left out by name; all else is converted as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from pynwb import TimeSeries
from recordings import make_recording, read_all

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.recording import Recording

SPEED = "processing/behavior/speed"
SECRET = np.arange(1000, dtype="<f8") + 0.5


def with_speed(path: Path, edit: Callable[[h5py.File], None] | None = None, **options: Any) -> Path:
    """Writes spikes and a speed of a hundred samples a second, and changes the file."""

    def add(nwb: pynwb.NWBFile) -> None:
        speed = TimeSeries(name="speed", data=np.arange(1000) / 100, unit="cm/s", rate=100.0)
        nwb.create_processing_module("behavior", "b").add(speed)

    make_recording(path, extra=add, **options)
    if edit is not None:
        with h5py.File(path, "a") as file:
            edit(file)
    return path


def replaced(group: Any, name: str, data: Any) -> None:
    """Writes a dataset anew with the attributes that it had; links to it lead to the new one."""
    about = dict(group[name].attrs)
    del group[name]
    group.create_dataset(name, data=data).attrs.update(about)
    index = group.get(f"{name}_index")
    if index is not None:
        index.attrs["target"] = group[name].ref


def spikes_as_they_were(samples: list[Any], tmp_path: Path, **options: Any) -> None:
    _, expected = read_all(with_speed(tmp_path / "whole.nwb", **options))
    assert len(samples) == len(expected) > 0
    for (ours, _), (theirs, _) in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(ours["spikes"], theirs["spikes"])


def compressed(file: h5py.File, path: str, number: int) -> None:
    """Writes a dataset anew as if it were compressed with a filter of this number."""
    old = file[path]
    about, values, group = dict(old.attrs), old[:], old.parent
    del file[path]
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk(values.shape)
    made.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (3,))
    space, dtype = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype)
    stored = h5py.h5d.create(group.id, path.rsplit("/", 1)[-1].encode(), dtype, space, made)
    stored.write_direct_chunk((0,) * values.ndim, values.tobytes(), 0)
    h5py.Dataset(stored).attrs.update(about)


# -- what HDF5 cannot decompress -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "told"), [(32015, "zstd, which needs hdf5plugin"), (40000, "number 40000, which")])
def test_a_series_with_a_filter_that_is_missing_is_left_out(
    number: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurofmx_wds.nwb.access._is_available", lambda each: each != number)

    def edit(file: h5py.File) -> None:
        compressed(file, f"{SPEED}/data", number)

    description, samples = read_all(with_speed(tmp_path / "a.nwb", edit))
    assert list(description.fields) == ["spikes"]
    [left] = [line for line in description.report["warnings"] if line.startswith(f"{SPEED} left out")]
    assert told in left and "copy it again" not in left
    spikes_as_they_were(samples, tmp_path)
    with pytest.raises(SourceError, match=f"{SPEED}: it is compressed with"):
        read_all(tmp_path / "a.nwb", modalities=[SPEED])


# -- electrodes ------------------------------------------------------------------------------------------------------


def test_electrodes_that_are_no_rows_of_their_table_are_numbered(tmp_path: Path) -> None:
    make_recording(tmp_path / "whole.nwb", lfp_channels=4)
    make_recording(tmp_path / "a.nwb", lfp_channels=4)
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        file["processing/ecephys/LFP/lfp/electrodes"][:] = [1, 2, 3, 4]
    description, samples = read_all(tmp_path / "a.nwb")
    assert description.fields["lfp"]["columns"] == ["0", "1", "2", "3"]
    assert "not among the 4 of electrodes: do they count from 1?" in " ".join(description.report["warnings"])
    expected = read_all(tmp_path / "whole.nwb")[1]
    assert expected
    for (ours, _), (theirs, _) in zip(samples, expected, strict=True):
        np.testing.assert_array_equal(ours["lfp"], theirs["lfp"])


# -- tables of units -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)])
def test_spike_times_in_a_matrix_of_one_row_or_column_are_read(shape: tuple[int, int], tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        replaced(file["units"], "spike_times", file["units/spike_times"][:].reshape(shape))

    _, samples = read_all(with_speed(tmp_path / "a.nwb", edit))
    spikes_as_they_were(samples, tmp_path)


def matrix(units: Any) -> None:
    replaced(units, "spike_times", units["spike_times"][:].repeat(2).reshape(-1, 2))


def without_index(units: Any) -> None:
    values = units["spike_times"][:]
    del units["spike_times_index"], units["electrode_group"]
    units.attrs["colnames"] = ["spike_times"]
    replaced(units, "id", np.arange(len(values)))


def wrong_index(units: Any) -> None:
    units["spike_times_index"][0] = 60_000  # more than there are, and still a uint16


@pytest.mark.parametrize(
    ("edit", "told"),
    [(matrix, r"has the shape \(\d+, 2\)"), (without_index, "has no index"), (wrong_index, "does not fit its")],
)
def test_units_that_cannot_be_read_are_left_out_and_the_rest_is_converted(
    edit: Callable[[Any], None], told: str, tmp_path: Path
) -> None:
    path = with_speed(tmp_path / "a.nwb", lambda file: edit(file["units"]))
    description, samples = read_all(path)
    assert list(description.fields) == ["behavior", "behavior_mask"] and samples
    [left] = [each for each in description.report["not_taken"] if each["path"] == "units"]
    assert f"units left out: {left['why']}" in description.report["warnings"]
    with pytest.raises(SourceError, match=told):
        read_all(path, modalities=["spikes"])


def test_a_table_of_units_without_rows_is_no_spikes(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        for name in ("id", "spike_times", "spike_times_index", "electrode_group"):
            replaced(file["units"], name, file[f"units/{name}"][:0])
        file["units/spike_times_index"].attrs["target"] = file["units/spike_times"].ref

    description, samples = read_all(with_speed(tmp_path / "a.nwb", edit))
    assert list(description.fields) == ["behavior", "behavior_mask"] and samples
    with pytest.raises(SourceError, match="there is no spikes in it; it has behavior"):
        read_all(tmp_path / "a.nwb", modalities=["spikes"])


OBSERVED = [[[0.0, 2.0], [3.0, 8.0]], [[1.0, 9.0]], [[0.0, 4.0]], [[2.0, 8.0]]]


def test_observation_intervals_stored_as_columns_are_read(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        replaced(file["units"], "obs_intervals", file["units/obs_intervals"][:].T)

    make = {"obs_intervals": OBSERVED}
    ours = Recording(with_speed(tmp_path / "a.nwb", edit, **make)).spikes
    theirs = Recording(with_speed(tmp_path / "whole.nwb", **make)).spikes
    np.testing.assert_array_equal(ours.obs_intervals, theirs.obs_intervals)
    for mine, own in zip(ours.unit_intervals or (), theirs.unit_intervals or (), strict=True):
        np.testing.assert_array_equal(mine, own)
    assert len(ours.unit_intervals or ()) == 4


def test_one_observation_interval_for_each_unit_needs_no_index(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        del file["units/obs_intervals_index"]
        replaced(file["units"], "obs_intervals", np.array([[0.0, 5 + unit] for unit in range(4)]))

    trains = Recording(with_speed(tmp_path / "a.nwb", edit, obs_intervals=OBSERVED)).spikes
    assert [each.tolist() for each in trains.unit_intervals or ()] == [[[0, (5 + k) * 10**9]] for k in range(4)]


def test_observation_intervals_of_another_shape_are_left_out_and_the_spikes_kept(tmp_path: Path) -> None:
    def edit(file: h5py.File) -> None:
        replaced(file["units"], "obs_intervals", np.ones((5, 3)))

    description, samples = read_all(with_speed(tmp_path / "a.nwb", edit, obs_intervals=OBSERVED))
    assert "obs_intervals left out: data of shape (5, 3)" in " ".join(description.report["warnings"])
    assert "first to last spike" in description.report["support_rule"]
    spikes_as_they_were(samples, tmp_path)


# -- other files -----------------------------------------------------------------------------------------------------


def raw(group: Any, other: Path) -> None:
    group.create_dataset("data", (1000,), "<f8", external=[(str(other.with_suffix(".bin")), 0, 8000)])


def virtual(group: Any, other: Path) -> None:
    layout = h5py.VirtualLayout((1000,), "<f8")
    layout[:] = h5py.VirtualSource(str(other), "d", (1000,))
    group.create_virtual_dataset("data", layout)


def linked(group: Any, other: Path) -> None:
    group["data"] = h5py.ExternalLink(str(other), "/d")


def relative(group: Any, other: Path) -> None:
    group["data"] = h5py.ExternalLink("../elsewhere/other.h5", "/d")


def soft(group: Any, other: Path) -> None:
    holder = group.file.create_group("scratch_of_mine")
    raw(holder, other)
    group["data"] = h5py.SoftLink("/scratch_of_mine/data")


def through_another(group: Any, other: Path) -> None:
    middle = Path(group.file.filename).parent / "middle.h5"
    with h5py.File(middle, "w") as file:
        raw(file, other)
    group["data"] = h5py.ExternalLink("middle.h5", "/data")


def virtual_of_another(group: Any, other: Path) -> None:
    through_another(group, other)
    del group["data"]
    layout = h5py.VirtualLayout((1000,), "<f8")
    layout[:] = h5py.VirtualSource("middle.h5", "data", (1000,))
    group.create_virtual_dataset("data", layout)


@pytest.mark.parametrize("way", [raw, virtual, linked, relative, soft, through_another, virtual_of_another])
def test_bytes_outside_the_recordings_directory_are_never_read(way: Any, tmp_path: Path) -> None:
    elsewhere, inside = tmp_path / "elsewhere", tmp_path / "inside"
    elsewhere.mkdir()
    inside.mkdir()
    SECRET.tofile(elsewhere / "other.bin")
    with h5py.File(elsewhere / "other.h5", "w") as file:
        file["d"] = SECRET

    def edit(file: h5py.File) -> None:
        about = dict(file[SPEED]["data"].attrs)
        del file[SPEED]["data"]
        way(file[SPEED], elsewhere / "other.h5")
        stored = file[SPEED].get("data", getlink=True)
        if isinstance(stored, h5py.HardLink):
            file[SPEED]["data"].attrs.update(about)

    path = with_speed(inside / "a.nwb", edit)
    description, samples = read_all(path)
    assert list(description.fields) == ["spikes"]
    told = " ".join(description.report["warnings"])
    assert "not in the recording's directory and is not opened" in told and "copy it again" not in told
    [left] = [each for each in description.report["not_taken"] if each["path"].startswith(SPEED)]
    assert "is not opened" in left["why"]
    spikes_as_they_were(samples, inside)


@pytest.mark.parametrize("way", [raw, virtual, linked])
def test_bytes_in_files_beside_the_recording_are_read(way: Any, tmp_path: Path) -> None:
    SECRET.tofile(tmp_path / "other.bin")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["d"] = SECRET

    def edit(file: h5py.File) -> None:
        about = dict(file[SPEED]["data"].attrs)
        del file[SPEED]["data"]
        way(file[SPEED], tmp_path / "other.h5")
        file[SPEED]["data"].attrs.update(about) if way is not linked else None
        if way is linked:
            with h5py.File(tmp_path / "other.h5", "a") as other:
                other["d"].attrs.update(about)

    [speed] = Recording(with_speed(tmp_path / "a.nwb", edit)).behavior
    np.testing.assert_array_equal(speed.values(0, 1000)[:, 0], SECRET)


@pytest.mark.parametrize("name", ["identifier", "session_description", "specifications/core/secret"])
def test_a_file_that_needs_bytes_from_elsewhere_as_a_whole_is_refused(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"the secret")

    def edit(file: h5py.File) -> None:
        if name in file:
            del file[name]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_external(str(tmp_path / "secret").encode(), 0, 10)
        holder, _, last = name.rpartition("/")
        group = file[holder] if holder else file
        text = h5py.h5t.C_S1.copy()
        text.set_size(10)
        h5py.h5d.create(group.id, last.encode(), text, h5py.h5s.create_simple((1,)), made)

    path = with_speed(inside / "a.nwb", edit)
    with pytest.raises(SourceError, match="not in the recording's directory and is not opened") as refused:
        read_all(path)
    assert "the secret" not in str(refused.value)


# -- tables of intervals ---------------------------------------------------------------------------------------------


def unreadable(file: h5py.File) -> None:
    compressed(file, "intervals/trials/start_time", 32015)


def three_axes(file: h5py.File) -> None:
    replaced(file["intervals/trials"], "start_time", np.zeros((4, 2)))


@pytest.mark.parametrize(("edit", "told"), [(unreadable, "needs hdf5plugin"), (three_axes, r"the shape \(4, 2\)")])
def test_a_table_of_intervals_that_cannot_be_read_is_left_out(edit: Any, told: str, tmp_path: Path) -> None:
    path = with_speed(tmp_path / "a.nwb", edit, trials=4)
    description, samples = read_all(path)
    [left_out] = [each for each in description.report["not_taken"] if each["path"] == "intervals/trials"]
    assert re.search(told, left_out["why"])
    spikes_as_they_were(samples, tmp_path, trials=4)
    assert "trial" not in samples[0][1]
    with pytest.raises(SourceError, match=f"intervals/trials: .*{told}"):
        read_all(path, align="trials")


def test_times_of_one_column_are_read(tmp_path: Path) -> None:
    path = with_speed(
        tmp_path / "a.nwb",
        lambda f: replaced(f["intervals/trials"], "start_time", f["intervals/trials/start_time"][:][:, None]),
        trials=4,
    )
    _, expected = read_all(with_speed(tmp_path / "b.nwb", trials=4), align="trials")
    assert [m["event_ns"] for _, m in read_all(path, align="trials")[1]] == [m["event_ns"] for _, m in expected]


@pytest.mark.parametrize("where", ["acquisition", "electrodes", "ids"])
def test_objects_that_pynwb_cannot_read_for_want_of_a_filter_name_it(where: str, tmp_path: Path) -> None:
    paths = {"acquisition": "processing/ecephys/LFP/lfp/electrodes", "ids": "units/id",
             "electrodes": "processing/ecephys/LFP/lfp/data"}  # fmt: skip
    path = with_speed(tmp_path / "a.nwb", lambda f: compressed(f, paths[where], 32015), lfp_channels=2)
    left_out = read_all(path)[0].report["not_taken"]
    assert len(left_out) == 1 and "pip install 'neurofmx-wds[filters]'" in left_out[0]["why"]
