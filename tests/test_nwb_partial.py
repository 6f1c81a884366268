"""Objects that pynwb cannot make: each is left out with its reason and what needs it, and all else is as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from hdmf.common import DynamicTable, VectorData
from pynwb import behavior as nwb_behavior
from pynwb import ophys
from recordings import make_recording, read_all

from neurofmx_wds.errors import SourceError
from neurofmx_wds.nwb.recording import Recording

XY, LFP = "processing/behavior/Position/xy", "processing/ecephys/LFP/lfp"
F, ROIS = "processing/ophys/Fluorescence/F", "processing/ophys/ImageSegmentation/cells"
ELECTRODES, GROUP = "general/extracellular_ephys/electrodes", "general/extracellular_ephys/shank0"
POSE = "processing/behavior/pose"
Edit = Callable[[h5py.File], None]


def _add(nwb: pynwb.NWBFile) -> None:
    times = np.arange(1000) / 100
    lamp = pynwb.TimeSeries(name="lamp", data=np.arange(1000.0), unit="V", timestamps=times)
    nwb.add_acquisition(lamp)
    nwb.add_acquisition(pynwb.TimeSeries(name="shutter", data=np.sin(times), unit="V", timestamps=lamp))
    columns = [VectorData(name=name, description="d", data=times) for name in ("when", "where")]
    nwb.processing["behavior"].add(DynamicTable(name="pose", description="d", columns=columns))
    light = ophys.OpticalChannel(name="green", description="d", emission_lambda=500.0)
    plane = nwb.create_imaging_plane(
        name="plane", optical_channel=light, description="d", device=nwb.devices["probe"], excitation_lambda=600.0,
        indicator="GCaMP", location="V1", imaging_rate=10.0,
    )  # fmt: skip
    segmentation = ophys.ImageSegmentation(name="ImageSegmentation")
    cells = segmentation.create_plane_segmentation(name="cells", description="d", imaging_plane=plane)
    for _ in range(3):
        cells.add_roi(image_mask=np.ones((4, 4)))
    rois = cells.create_roi_table_region(region=[0, 1, 2], description="all")
    dff = ophys.RoiResponseSeries(name="F", data=np.ones((100, 3)), rois=rois, unit="n", rate=10.0)
    for each in (segmentation, ophys.Fluorescence(roi_response_series=dff)):
        (nwb.processing.get("ophys") or nwb.create_processing_module("ophys", "o")).add(each)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "a.nwb"
    make_recording(path, lfp_channels=3, behavior_rate=100, trials=4, invalid_times=[(8.0, 8.1)], extra=_add)
    return path


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    def damage(edit: Edit) -> Path:
        shutil.copy(whole, tmp_path / "a.nwb")
        with h5py.File(tmp_path / "a.nwb", "a") as file:
            edit(file)
        return tmp_path / "a.nwb"

    return damage


def attribute(path: str, name: str, value: Any) -> Edit:
    """An attribute of another value, or none."""

    def edit(file: h5py.File) -> None:
        del file[path].attrs[name]
        if value is not None:
            file[path].attrs[name] = value

    return edit


def without(path: str) -> Edit:
    return lambda file: file.__delitem__(path)


def dataset(path: str, value: Any) -> Edit:
    """A dataset of other values, its attributes as they were."""

    def edit(file: h5py.File) -> None:
        attributes = dict(file[path].attrs)
        del file[path]
        file[path] = value
        file[path].attrs.update(attributes)

    return edit


def fields_of(path: Path, asked: list[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Gives every field by its samples, and the warnings."""
    description, samples = read_all(path, modalities=asked, overlap=0.0)
    return {name: [fields[name] for fields, _ in samples] for name in samples[0][0]}, description.report["warnings"]


def all_in(path: Path) -> list[str]:
    """Gives every modality and every series of none that there is."""
    recording = Recording(path)
    asked = [*recording.modalities, *(each.path for each in recording.unused())]
    recording.close()
    return asked


NUMBERS = np.arange(3)
CASES = {
    # damage, what is left out, the fields that go
    "unit of a wrong type": (attribute(f"{XY}/data", "unit", NUMBERS), [XY], {"behavior"}),
    "shape": (dataset(f"{XY}/data", np.zeros((5, 3, 3))), [XY], {"behavior"}),
    "data are a scalar": (dataset(f"{LFP}/data", 5.0), [LFP], {"lfp"}),
    "no clock": (without(f"{LFP}/starting_time"), [LFP], {"lfp"}),
    "clock of a wrong type": (attribute(f"{LFP}/starting_time", "rate", "fast"), [LFP], {"lfp"}),
    "timestamps that others share": (
        attribute("acquisition/lamp/data", "unit", NUMBERS),
        ["acquisition/lamp"],
        {"lamp"},
    ),
    "timestamps that others need": (
        dataset("acquisition/lamp/timestamps", np.zeros((3, 3))),
        ["acquisition/lamp", "acquisition/shutter"],
        {"lamp", "shutter"},
    ),
    "no type definition": (attribute("acquisition/lamp", "namespace", "ndx-lamps"), ["acquisition/lamp"], {"lamp"}),
    "no such type": (attribute("acquisition/lamp", "neurodata_type", "Lamp"), ["acquisition/lamp"], {"lamp"}),
    "a column": (attribute(f"{ROIS}/image_mask", "description", None), [ROIS, F], {"ophys"}),
    "a plane without its column": (without(f"{ROIS}/image_mask"), [ROIS, F], {"ophys"}),
    "a table of no use": (attribute(POSE, "colnames", NUMBERS), [POSE], set()),
    "units": (without("units/spike_times_index"), ["units"], {"spikes"}),
    "electrodes": (attribute(ELECTRODES, "colnames", NUMBERS), [ELECTRODES, LFP], {"lfp"}),
    "a device": (
        attribute("general/devices/probe", "namespace", "ndx-probes"),
        ["general/devices/probe", GROUP, "general/optophysiology/plane", ROIS, F],
        {"ophys"},
    ),
    "a group that tables refer to": (attribute(GROUP, "location", None), [GROUP], set()),
    "subject": (attribute("general/subject", "namespace", "ndx-mice"), ["general/subject"], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_made_is_left_out_with_what_needs_it_and_the_rest_is_as_it_was(
    name: str, whole: Path, damaged: Callable[[Edit], Path]
) -> None:
    edit, left_out, fields_gone = CASES[name]
    path = damaged(edit)
    asked = all_in(path)
    assert {each.rsplit("/", 1)[-1] for each in set(all_in(whole)) - set(asked)} == fields_gone
    expected, before = fields_of(whole, asked)
    found, warnings = fields_of(path, asked)
    assert found.keys() == expected.keys()
    for field, samples in found.items():
        np.testing.assert_array_equal(samples, expected[field], err_msg=field)
    told = [line for line in warnings if line not in before]
    told = [line for line in told if not line.startswith("pynwb: ")]
    assert sorted(line.split(" left out: ")[0] for line in told) == sorted(left_out)
    assert all(line.endswith(")") and len(line) < 550 for line in told)  # each with its remedy, and no dump
    assert all("left out: it needs " in line for line in told[1:] if name != "timestamps that others need")


@pytest.mark.parametrize("name", ["data", "timestamps"])
def test_a_series_whose_data_are_a_table_s_column_is_read(name: str, whole: Path, damaged: Any) -> None:
    def edit(file: h5py.File) -> None:
        del file["acquisition/lamp"][name]
        file["acquisition/lamp"][name] = h5py.SoftLink("/processing/behavior/pose/when")

    path = damaged(edit)
    assert all_in(path) == all_in(whole)
    expected, _ = fields_of(whole, all_in(whole))
    found, warnings = fields_of(path, all_in(whole))
    assert found.keys() == expected.keys() and "left out" not in " ".join(warnings)
    recording = Recording(path)
    (lamp,) = recording.fields_of("acquisition/lamp").values()
    np.testing.assert_array_equal(lamp.data[:], np.arange(1000) / (100 if name == "data" else 1))
    assert lamp.timeline.n == 1000
    recording.close()
    for field in set(found) - ({"lamp"} if name == "data" else set()):
        np.testing.assert_array_equal(found[field], expected[field], err_msg=field)


def test_a_link_to_what_cannot_be_made_goes_with_it(whole: Path, damaged: Any) -> None:
    def edit(file: h5py.File) -> None:
        attribute(f"{XY}/data", "unit", NUMBERS)(file)
        file["acquisition/also"] = h5py.SoftLink(f"/{XY}")

    recording = Recording(damaged(edit))
    assert list(recording.left_out) == [XY] and not recording.has("acquisition/also") and not recording.has("behavior")
    recording.close()


def test_a_stream_is_read_likewise(damaged: Any) -> None:
    path = damaged(attribute(f"{XY}/data", "unit", NUMBERS))
    recording = Recording("elsewhere", stream=path.open("rb"))
    assert list(recording.left_out) == [XY] and {"spikes", "lfp"} <= set(recording.modalities)
    recording.close()


def test_tables_that_refer_to_what_is_left_out_are_read(damaged: Any) -> None:
    recording = Recording(damaged(attribute(GROUP, "location", None)))
    assert recording.units_table["electrode_group"] == ["shank0"] * 4
    assert recording.units_table["location"] == [None] * 4
    assert list(recording.intervals) == ["trials"]
    recording.close()


def test_without_invalid_times_nobody_knows_what_is_valid(damaged: Any) -> None:
    edit = attribute("intervals/invalid_times/start_time", "description", NUMBERS)
    with pytest.raises(SourceError, match=r"a\.nwb: pynwb cannot read it.*description.*pynwb-validate"):
        read_all(damaged(edit))


def test_what_is_asked_for_and_left_out_is_one_error_with_the_reason(damaged: Any) -> None:
    with pytest.raises(SourceError, match=r"no lfp in it; it has spikes.*lfp left out: .*'rate' must be specified"):
        read_all(damaged(without(f"{LFP}/starting_time")), modalities=["lfp"])


def test_a_file_with_nothing_left_is_one_error_with_the_reason(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb")
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        file["units"].attrs["namespace"] = "ndx-units"
    with pytest.raises(SourceError, match=r"no time series at all; units left out: .*ndx-units.*pip install ndx-units"):
        read_all(tmp_path / "a.nwb")


def test_a_file_with_more_bad_objects_than_good_ones_is_unreadable(tmp_path: Path) -> None:
    def many(nwb: pynwb.NWBFile) -> None:
        series = [pynwb.TimeSeries(name=f"s{k}", data=[1.0], unit="m", rate=1.0) for k in range(101)]
        nwb.create_processing_module("behavior", "b").add(nwb_behavior.BehavioralTimeSeries(time_series=series))

    make_recording(tmp_path / "a.nwb", extra=many)
    with h5py.File(tmp_path / "a.nwb", "a") as file:
        for each in file["processing/behavior/BehavioralTimeSeries"].values():
            each["data"].attrs["unit"] = 5
    with pytest.raises(SourceError, match="pynwb cannot read it: .*incorrect type for 'unit'"):
        read_all(tmp_path / "a.nwb")
