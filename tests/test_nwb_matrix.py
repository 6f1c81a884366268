"""Every kind of object that pynwb writes, in every place, is taken, taken by its path, or named with the reason.

What there is, is found with h5py alone: any typed group or dataset outside of ``general`` with numbers or times.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
import pytest
from hdmf.common import DynamicTable, VectorData
from pynwb import TimeSeries, behavior, ecephys, icephys, image, misc, ophys
from pynwb.base import Images
from pynwb.epoch import TimeIntervals
from pynwb.ogen import OptogeneticSeries
from recordings import make_recording, read_all

from neurofmx_wds.errors import SourceError

EventsTable = pytest.importorskip("pynwb.event", reason="tables of events need pynwb 4").EventsTable

N = 1000
AT = np.arange(N) / 100
CLOCK: dict[str, Any] = {"rate": 100.0}
FRAMES = np.zeros((N, 3, 4), np.uint8)


def electrodes(nwb: pynwb.NWBFile) -> Any:
    return nwb.create_electrode_table_region([0], "x")


def plane(nwb: pynwb.NWBFile) -> Any:
    device = nwb.create_device("camera")
    channel = ophys.OpticalChannel("c", "x", 500.0)
    about = {"description": "x", "excitation_lambda": 900.0, "indicator": "g", "location": "V1", "imaging_rate": 30.0}
    return nwb.create_imaging_plane(name="plane", optical_channel=channel, device=device, **about)


def rois(nwb: pynwb.NWBFile) -> tuple[Any, Any]:
    segmentation = ophys.ImageSegmentation()
    table = segmentation.create_plane_segmentation(name="rois", description="x", imaging_plane=plane(nwb))
    for i in range(2):
        table.add_roi(image_mask=np.full((2, 2), float(i)))
    nwb.create_processing_module("ophys", "x").add(segmentation)
    return segmentation, table.create_roi_table_region(region=[0, 1], description="x")


def responses(nwb: pynwb.NWBFile, container: Any) -> Any:
    _, region = rois(nwb)
    series = ophys.RoiResponseSeries("r", data=np.ones((N, 2)), rois=region, unit="n", **CLOCK)
    return container(roi_response_series=series)


def clamp(nwb: pynwb.NWBFile, kind: Any, **more: Any) -> Any:
    electrode = nwb.create_icephys_electrode(name="e", description="x", device=nwb.create_device("amplifier"))
    return kind(name="x", data=np.ones(N), electrode=electrode, gain=1.0, **more, **CLOCK)


def laser(nwb: pynwb.NWBFile) -> Any:
    about = {"device": nwb.create_device("laser"), "description": "x", "excitation_lambda": 473.0, "location": "CA1"}
    return OptogeneticSeries("x", data=np.ones(N), site=nwb.create_ogen_site("site", **about), **CLOCK)


def events_of(series: Any) -> Any:
    return ecephys.EventDetection(
        detection_method="x", source_electricalseries=series, source_idx=[1, 2], times=[1.0, 2.0]
    )


def voltage(nwb: pynwb.NWBFile, data: Any = None) -> Any:
    return ecephys.ElectricalSeries("x", np.ones((N, 1)) if data is None else data, electrodes(nwb), **CLOCK)


def table_of(kind: Any, rows: list[dict[str, Any]], **columns: str) -> Any:
    table = kind(name="x", description="x")
    for name, text in columns.items():
        table.add_column(name, text)
    for row in rows:
        table.add_row(**row)
    return table


def units(_: pynwb.NWBFile) -> Any:
    table = misc.Units(name="x", description="x")
    table.add_unit(spike_times=[1.0, 2.0])
    return table


def corrected(nwb: pynwb.NWBFile) -> Any:
    stack = image.ImageSeries("corrected", data=FRAMES, unit="n", **CLOCK)
    shift = TimeSeries("xy_translation", data=np.ones((N, 2)), unit="px", **CLOCK)
    original = image.ImageSeries("original", data=FRAMES, unit="n", **CLOCK)
    nwb.add_acquisition(original)
    one = ophys.CorrectedImageStack(corrected=stack, original=original, xy_translation=shift)
    return ophys.MotionCorrection(corrected_image_stacks=one)


def decomposed(_: pynwb.NWBFile) -> Any:
    series = misc.DecompositionSeries("x", data=np.ones((N, 3, 2)), metric="power", unit="V", **CLOCK)
    for name, limits in (("theta", (4.0, 8.0)), ("gamma", (30.0, 80.0))):
        series.add_band(band_name=name, band_limits=limits)
    return series


def features(_: pynwb.NWBFile) -> Any:
    return misc.AbstractFeatureSeries("x", feature_units=["n"] * 2, features=["a", "b"], data=np.ones((N, 2)), **CLOCK)


Make = Callable[[pynwb.NWBFile], Any]
KINDS: dict[str, Make] = {
    "numbers": lambda _: TimeSeries("x", data=AT, unit="V", **CLOCK),
    "columns": lambda _: TimeSeries("x", data=np.ones((N, 3)), unit="V", timestamps=AT),
    "booleans": lambda _: TimeSeries("x", data=AT > 3, unit="n", **CLOCK),
    "codes": lambda _: TimeSeries("x", data=np.arange(N) % 3, unit="n", **CLOCK),
    "three axes": lambda _: TimeSeries("x", data=np.ones((N, 2, 2)), unit="V", **CLOCK),
    "texts": lambda _: TimeSeries("x", data=["a"] * N, unit="n", **CLOCK),
    "one sample": lambda _: TimeSeries("x", data=[1.0], unit="V", timestamps=[2.0]),
    "voltage": voltage,
    "snippets": lambda n: ecephys.SpikeEventSeries("x", np.ones((5, 1, 8)), AT[:5], electrodes(n)),
    "annotations": lambda _: misc.AnnotationSeries("x", data=["a", "b"], timestamps=[1.0, 2.0]),
    "epochs": lambda _: misc.IntervalSeries("x", data=np.array([1, -1], "i1"), timestamps=[1.0, 2.0]),
    "features": features,
    "decomposed": decomposed,
    "frames": lambda _: image.ImageSeries("x", data=FRAMES, unit="n", **CLOCK),
    "frames elsewhere": lambda _: image.ImageSeries(
        "x", external_file=["a.avi"], starting_frame=[0], format="external", unit="n", timestamps=AT
    ),
    "stimulus frames": lambda _: image.OpticalSeries(
        "x", data=FRAMES, unit="n", distance=1.0, field_of_view=[1.0, 1.0], orientation="x", format="raw", **CLOCK
    ),
    "two photons": lambda n: ophys.TwoPhotonSeries("x", imaging_plane=plane(n), data=FRAMES, unit="n", **CLOCK),
    "one photon": lambda n: ophys.OnePhotonSeries("x", imaging_plane=plane(n), data=FRAMES, unit="n", **CLOCK),
    "laser": laser,
    "position": lambda _: behavior.SpatialSeries("x", data=np.ones((N, 2)), reference_frame="x", **CLOCK),
    "current clamp": lambda n: clamp(n, icephys.CurrentClampSeries),
    "voltage clamp": lambda n: clamp(n, icephys.VoltageClampSeries),
    "clamp stimulus": lambda n: clamp(n, icephys.CurrentClampStimulusSeries),
    "table": lambda _: DynamicTable("x", "x", columns=[VectorData("a", "x", data=[1.0, 2.0])]),
    "timed table": lambda _: DynamicTable(
        "x", "x", columns=[VectorData("timestamps", "x", data=AT), VectorData("speed", "x", data=AT)]
    ),
    "intervals": lambda _: table_of(TimeIntervals, [{"start_time": 1.0, "stop_time": 2.0}]),
    "images": lambda _: Images("x", images=[image.GrayscaleImage(name="one", data=np.ones((3, 3)))]),
}
CONTAINERS: dict[str, Make] = {
    "Position": lambda n: behavior.Position(spatial_series=KINDS["position"](n)),
    "CompassDirection": lambda n: behavior.CompassDirection(
        spatial_series=behavior.SpatialSeries("x", data=AT, reference_frame="x", unit="radians", **CLOCK)
    ),
    "EyeTracking": lambda n: behavior.EyeTracking(spatial_series=KINDS["position"](n)),
    "PupilTracking": lambda n: behavior.PupilTracking(time_series=KINDS["numbers"](n)),
    "BehavioralTimeSeries": lambda n: behavior.BehavioralTimeSeries(time_series=KINDS["numbers"](n)),
    "BehavioralEvents": lambda n: behavior.BehavioralEvents(time_series=KINDS["one sample"](n)),
    "BehavioralEpochs": lambda n: behavior.BehavioralEpochs(interval_series=KINDS["epochs"](n)),
    "LFP": lambda n: ecephys.LFP(electrical_series=voltage(n)),
    "FilteredEphys": lambda n: ecephys.FilteredEphys(electrical_series=voltage(n)),
    "Fluorescence": lambda n: responses(n, ophys.Fluorescence),
    "DfOverF": lambda n: responses(n, ophys.DfOverF),
    "MotionCorrection": corrected,
    "Units": units,
}


def in_acquisition(nwb: pynwb.NWBFile, item: Any) -> None:
    nwb.add_acquisition(item)


def in_processing(nwb: pynwb.NWBFile, item: Any) -> None:
    nwb.create_processing_module("x", "x").add(item)


def in_analysis(nwb: pynwb.NWBFile, item: Any) -> None:
    nwb.add_analysis(item)


def in_scratch(nwb: pynwb.NWBFile, item: Any) -> None:
    nwb.add_scratch(item)


def in_stimulus(nwb: pynwb.NWBFile, item: Any) -> None:
    nwb.add_stimulus(item)


PLACES = (in_acquisition, in_processing, in_analysis, in_scratch, in_stimulus)
#: By default each kind in one of the places, and each container.
CASES = [
    pytest.param(name, place, id=f"{name}-{place.__name__}", marks=[pytest.mark.slow] if (i + k) % len(PLACES) else [])
    for i, name in enumerate(KINDS)
    for k, place in enumerate(PLACES)
] + [pytest.param(name, in_processing, id=name) for name in CONTAINERS]


def objects_of(path: Path) -> Iterator[str]:
    """Yields the paths of all typed objects that hold numbers or times, by h5py."""
    with h5py.File(path, "r") as file:
        found: list[str] = []

        def look(name: str, item: Any) -> None:
            typed = "neurodata_type" in item.attrs and not name.startswith(("general", "specifications"))
            parts = list(item.values()) if isinstance(item, h5py.Group) else []
            own = [
                each for each in parts if isinstance(each, h5py.Dataset) and each.size and "namespace" not in each.attrs
            ]
            is_table = isinstance(item, h5py.Group) and "colnames" in item.attrs and len(item["id"])
            if typed and (
                is_table or any(each.name.rsplit("/", 1)[-1] in ("data", "timestamps", "external_file") for each in own)
            ):
                found.append(name)

        file.visititems(look)
    yield from found


@pytest.mark.parametrize(("name", "place"), CASES)
def test_each_kind_of_object_is_taken_or_named_wherever_it_is(name: str, place: Any, tmp_path: Path) -> None:
    def extra(nwb: pynwb.NWBFile) -> None:
        item = {**KINDS, **CONTAINERS}[name](nwb)
        try:
            place(nwb, item)
        except (TypeError, ValueError) as error:
            pytest.skip(f"pynwb does not write it there: {error}")

    make_recording(tmp_path / "a.nwb", extra=extra)
    report = read_all(tmp_path / "a.nwb")[0].report
    named = {each["path"]: each for each in report["not_taken"]}
    taken = {each["path"] for each in (*report["series"], *report["videos"])} | {"units"}
    tables = {f"intervals/{table}" for table in report["intervals"]} | {f"acquisition/{t}" for t in report["intervals"]}
    tables |= {f"processing/x/{table}" for table in report["intervals"]}
    described = {"processing/ophys/ImageSegmentation/rois"} if name in ("Fluorescence", "DfOverF") else set()
    covered = taken | set(named) | tables | described
    for path in objects_of(tmp_path / "a.nwb"):
        inside = [each for each in covered if f"{path}/".startswith(f"{each}/") or each.startswith(f"{path}/")]
        assert inside, f"{path} is neither taken nor named"
    for each in named.values():
        assert each["why"]
        if each["take"].startswith("--modalities "):
            asked = shlex.split(each["take"])[1].split(",")
            fields = read_all(tmp_path / "a.nwb", modalities=asked)[0]
            after = {e["path"] for e in fields.report["not_taken"]} if "icephys" not in asked else set()
            assert each["path"] not in after
        if each["take"].startswith("--align "):
            read_all(tmp_path / "a.nwb", align=shlex.split(each["take"])[1])


def test_a_table_of_events_is_taken_and_can_be_aligned_to(tmp_path: Path) -> None:
    def extra(nwb: pynwb.NWBFile) -> None:
        table = EventsTable(name="cues", description="x")
        for time in (2.0, 4.0):
            table.add_row(timestamp=time)
        nwb.add_events_table(table)

    make_recording(tmp_path / "a.nwb", extra=extra)
    description, _ = read_all(tmp_path / "a.nwb")
    assert "events/cues" in {each["path"] for each in description.report["series"]}
    assert len(read_all(tmp_path / "a.nwb", align="cues", after_s=0.5)[1]) == 2


@pytest.mark.parametrize("name", ["three axes", "texts"])
def test_what_cannot_be_a_field_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", extra=lambda nwb: nwb.add_acquisition(KINDS[name](nwb)))
    with pytest.raises(SourceError, match="acquisition/x: data of shape"):
        read_all(tmp_path / "a.nwb", modalities=["spikes", "acquisition/x"])
