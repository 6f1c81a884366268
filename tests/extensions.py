"""Recordings with objects of extensions, written in a process of its own: only the file itself defines their types.

Run as ``python extensions.py DIRECTORY``. The types have the structure of ndx-pose's, ndx-labels', ndx-events' and
ndx-fiber-photometry's, which pynwb reads from the cached specification.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

N = 600
TIMES = 1.0 + np.arange(N) / 60
NOSE = np.stack([np.sin(TIMES), np.cos(TIMES)], axis=1)
TAIL = np.stack([TIMES, -TIMES], axis=1)
CONFIDENCE = np.where(np.arange(N) % 7 == 0, 0.2, 0.9).astype(np.float32)
WORDS = ("groom", "rear", "rest")
LABELS = (np.arange(N)[:, None] // 60) % 3 == np.arange(3)
CUES = {"timestamps": np.array([2.0, 4.5, 7.25]), "data": np.array([0, 2, 0], np.uint8)}
CUE_WORDS = ("left", "none", "right")
LICKS = np.array([1.5, 1.75, 9.0])
DFF = np.stack([np.sin(TIMES), TIMES], axis=1)
TYPES = {"Reward": [3.0, 6.0], "Poke": [2.0, 5.0, 8.0]}


def write(directory: Path) -> None:
    """Write pose.nwb, labels.nwb, events.nwb and photometry.nwb."""
    command = [sys.executable, "-W", "ignore", __file__, str(directory)]
    search = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": search}, stdout=subprocess.DEVNULL)


def _load(directory: Path) -> Any:
    """Define the types, and return what gives their classes by name."""
    from pynwb import get_class, load_namespaces
    from pynwb.spec import NWBAttributeSpec as Attribute
    from pynwb.spec import NWBDatasetSpec as Dataset
    from pynwb.spec import NWBGroupSpec as Group
    from pynwb.spec import NWBNamespaceBuilder

    made = NWBNamespaceBuilder("made up", "ndx-made-up", version="0.1.0", author="a", contact="c")
    for name in ("NWBDataInterface", "SpatialSeries", "TimeSeries", "DynamicTable", "VectorData", "VectorIndex"):
        made.include_type(name, namespace="hdmf-common" if name[:6] in ("Dynami", "Vector") else "core")

    def row(name: str, dtype: str, *attributes: Any, quantity: Any = None) -> Any:
        return Dataset(
            name, dtype, name=name, shape=(None,), dims=("n",), attributes=list(attributes), quantity=quantity or 1
        )

    pose = Group("p", neurodata_type_def="PoseEstimationSeries", neurodata_type_inc="SpatialSeries")
    pose.set_dataset(row("confidence", "float32", Attribute("definition", "d", "text", required=False), quantity="?"))
    poses = Group("p", neurodata_type_def="PoseEstimation", neurodata_type_inc="NWBDataInterface")
    poses.set_group(Group("s", neurodata_type_inc="PoseEstimationSeries", quantity="*"))
    poses.set_dataset(Dataset("d", "uint16", name="dimensions", shape=(None, 2), dims=("v", "d"), quantity="?"))
    labels = Group("l", neurodata_type_def="LabelSeries", neurodata_type_inc="TimeSeries")
    labels.set_dataset(row("vocabulary", "text"))
    events = Group("e", neurodata_type_def="Events", neurodata_type_inc="NWBDataInterface")
    events.set_dataset(row("timestamps", "float64", Attribute("unit", "u", "text", value="seconds")))
    labeled = Group("e", neurodata_type_def="LabeledEvents", neurodata_type_inc="Events")
    labeled.set_dataset(row("data", "uint8", Attribute("labels", "t", "text", shape=(None,), dims=("n",))))
    ttls = Group("t", neurodata_type_def="TTLs", neurodata_type_inc="LabeledEvents")
    photometry = Group("f", neurodata_type_def="FiberPhotometryResponseSeries", neurodata_type_inc="TimeSeries")
    for spec in (pose, poses, labels, events, labeled, ttls, photometry):
        made.add_spec("made.extensions.yaml", spec)
    made.export("made.namespace.yaml", outdir=str(directory))
    load_namespaces(str(directory / "made.namespace.yaml"))
    return lambda name: get_class(name, "ndx-made-up")


def _main(directory: Path) -> None:
    from hdmf.common import DynamicTable, VectorData
    from recordings import make_recording

    of = _load(directory)

    def pose(nwb: Any) -> None:
        about = {"reference_frame": "corner", "unit": "pixels"}
        nose = of("PoseEstimationSeries")(name="nose", data=NOSE, timestamps=TIMES, confidence=CONFIDENCE, **about)
        tail = of("PoseEstimationSeries")(name="tail", data=TAIL, timestamps=nose, confidence=np.ones(N), **about)
        size = np.array([[640, 480]], "uint16")
        both = of("PoseEstimation")(name="DLC", dimensions=size, pose_estimation_series=[nose, tail])
        nwb.create_processing_module("tracking", "pose").add(both)

    def labels(nwb: Any) -> None:
        series = of("LabelSeries")(name="labels", data=LABELS, vocabulary=list(WORDS), unit="label", timestamps=TIMES)
        nwb.create_processing_module("deg", "labels").add(series)

    def events(nwb: Any) -> None:
        module = nwb.create_processing_module("behavior", "b")
        module.add(of("Events")(name="lick", timestamps=LICKS))
        cues = of("LabeledEvents")(name="cue", data__labels=list(CUE_WORDS), **CUES)
        module.add(cues)
        nwb.add_acquisition(
            of("TTLs")(name="ttl", data__labels=["", "camera"], timestamps=[3.0], data=np.array([1], "u1"))
        )
        table = DynamicTable(
            name="annotated",
            description="x",
            columns=[
                VectorData(name="label", description="l", data=list(TYPES)),
            ],
        )
        table.add_column(
            name="event_times",
            description="t",
            data=[t for times in TYPES.values() for t in times],
            index=np.cumsum([len(times) for times in TYPES.values()]).tolist(),
        )
        module.add(table)

    def photometry(nwb: Any) -> None:
        nwb.add_acquisition(of("FiberPhotometryResponseSeries")(name="dff", data=DFF, unit="a.u.", timestamps=TIMES))

    for each in (pose, labels, events, photometry):
        make_recording(directory / f"{each.__name__}.nwb", seconds=12, extra=each)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
