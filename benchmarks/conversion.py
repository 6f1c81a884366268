"""Speed of converting a recording, against reading it with h5py and writing the same number of bytes.

Knows the ways of converting; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pynwb
from hdmf.backends.hdf5 import H5DataIO
from pynwb.ecephys import LFP

from neurofmx_wds import NWBToWebDatasetConverter
from neurofmx_wds.convert.config import Workers
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.demo.recording import simulate, write_nwb

from .datasets import made
from .harness import Case, Group, Setting, Target, Work
from .writing import raw_write

_CHANNELS, _RATE, _UNITS, _SPIKE_RATE = 32, 1250.0, 64, 5.0
_SHARD_SIZE = 250  # more shards than workers, so that two can share them evenly


def recording(root: Path, seconds: int) -> Path:
    """Make an NWB file of `seconds` s: 64 units and 32 channels of int16 LFP at 1250 Hz, 80 kB/s."""

    def make(path: Path) -> None:
        path.mkdir()
        rng = np.random.default_rng(0)
        start = dt.datetime(2024, 5, 17, 9, 30, tzinfo=dt.timezone.utc)
        nwb = pynwb.NWBFile("a synthetic session", "benchmark", start, session_id="session-1")
        device = nwb.create_device("probe")
        group = nwb.create_electrode_group("shank0", description="a shank", location="CA1", device=device)
        for channel in range(_CHANNELS):
            nwb.add_electrode(id=channel, group=group, location="CA1")
        for unit in range(_UNITS):
            times = np.sort(rng.uniform(0, seconds, rng.poisson(_SPIKE_RATE * seconds)))
            nwb.add_unit(id=unit, spike_times=times)
        module = nwb.create_processing_module("ecephys", "filtered")
        container = LFP(name="LFP")
        module.add(container)
        lfp = rng.integers(-1000, 1000, (_rows(seconds), _CHANNELS), np.int16)
        container.create_electrical_series(
            name="lfp",
            data=H5DataIO(lfp, chunks=(_rows(1), _CHANNELS)),
            electrodes=nwb.create_electrode_table_region(list(range(_CHANNELS)), "all channels"),
            rate=_RATE,
            starting_time=0.0,
            conversion=1.95e-7,
        )
        with pynwb.NWBHDF5IO(str(path / "recording.nwb"), "w") as io:
            io.write(nwb)

    return made(root / f"recording-{seconds}s", make) / "recording.nwb"


def _rows(seconds: int) -> int:
    return int(seconds * _RATE)


def read_with_h5py(path: Path) -> None:
    """Read all spike times and LFP, ten seconds at a time."""
    with h5py.File(path) as file:
        units, lfp = file["units"], file["processing/ecephys/LFP/lfp/data"]
        units["spike_times"][:], units["spike_times_index"][:]
        for first in range(0, len(lfp), _rows(10)):
            lfp[first : first + _rows(10)]


def conversion(setting: Setting) -> Group:
    """Convert NWB to shards; windows of 1 s that overlap by half."""
    out = setting.root / "converted"
    seconds = 500 if setting.quick else 5000  # 1.9 GB of shards
    one, two = "neurofmx_wds, 1 worker", "neurofmx_wds, 2 workers"
    alone, running = "neurofmx_wds, 1 worker on one core", "neurofmx_wds, 2 workers, already running"
    raw = "h5py reading and raw write"

    def convert(workers: int = 1, executor: Executor | None = None) -> float:
        path = recording(setting.root, seconds)
        with NWBToWebDatasetConverter(out, shard_size=_SHARD_SIZE, workers=workers, executor=executor) as converter:
            converter.convert_nwb_file(path)
        return float(sum(shard["n_bytes"] for shard in converter.summary["shards"]))

    def on_one_core() -> float:  # one worker otherwise keeps more than one core busy
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            return convert()
        finally:
            os.sched_setaffinity(0, cores)

    def in_running_workers() -> Work:
        executor = ProcessPoolExecutor(2, get_context("spawn"))
        return functools.partial(convert, executor=executor)

    def with_h5py() -> Work:
        path = recording(setting.root, seconds)
        clear()
        convert()
        shards = [path.read_bytes() for path in sorted(out.glob("*.tar"))]

        def work() -> float:
            read_with_h5py(path)
            raw_write(out, shards, sync=True)
            return float(sum(map(len, shards)))

        return work

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)

    def case(name: str, make: Callable[[], Any]) -> Case:
        return Case(name, make, before=clear, ours=name != raw)

    return Group(
        f"conversion of an NWB file of {seconds * 0.08:.0f} MB: Units and LFP",
        [
            case(one, lambda: functools.partial(convert, 1)),
            case(alone, lambda: on_one_core),
            case(two, lambda: functools.partial(convert, 2)),
            case(running, in_running_workers),
            case(raw, with_h5py),
        ],
        [
            Target(one, raw, at_least=0.5),
            Target(two, one, at_least=1.6),
            Target(running, one),
            Target(two, alone),
            Target(running, alone, at_least=1.6),
        ],
        unit="MB/s of shards",
        scale=1e6,
    )


def planning(setting: Setting) -> Group:
    """Plan the conversion of many small NWB files: count their windows, compute their checksums."""
    n = 50 if setting.quick else 500

    def files(path: Path) -> None:
        path.mkdir()
        small = recording(setting.root, 5)
        for i in range(n):
            shutil.copy(small, path / f"{i:03d}.nwb")

    def plan(workers: int) -> float:
        paths = sorted(made(setting.root / f"{n}-recordings", files).iterdir())
        with Workers(workers).start() as work:
            return float(len(look_at(paths, SourceConfig(), work)))

    def case(workers: int) -> Case:
        return Case(f"{workers} workers", lambda: functools.partial(plan, workers), ours=True)

    one, two = case(1), case(2)
    return Group(
        f"planning the conversion of {n} small NWB files", [one, two], [Target(two.name, one.name)], "files/s", scale=1
    )


_PLAIN = """
import os, sys
import h5py, pynwb
with h5py.File(sys.argv[1]) as file:
    file.visititems(lambda name, item: item[()] if isinstance(item, h5py.Dataset) else None)
for i, size in enumerate(map(int, sys.argv[3:])):
    with open(f"{sys.argv[2]}-{i}.raw", "wb") as out:
        out.write(bytes(size))
        os.fsync(out.fileno())
"""


def first_conversion(setting: Setting) -> Group:
    """Convert one small recording as a new user does: with a command, whose start counts too."""
    out = setting.root / "small"
    ours, plain = "neurofmx_wds convert", "importing pynwb, reading with h5py, plain writing"

    def source() -> Path:
        return made(setting.root / "small.nwb", lambda path: write_nwb(simulate(seconds=600, seed=0), path))

    def command(*arguments: object) -> Work:
        def work() -> float:
            subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)
            return 1.0

        return work

    def convert() -> Work:
        return command("-m", "neurofmx_wds", "convert", "-i", source(), "-o", out, "--overwrite")

    def plainly() -> Work:
        convert()()
        return command("-c", _PLAIN, source(), out, *(path.stat().st_size for path in out.glob("*.tar")))

    cases = [Case(ours, convert, ours=True), Case(plain, plainly)]
    return Group("the first conversion of a small NWB file", cases, [Target(ours, plain, at_least=0.5)], "a second", 1)


GROUPS = {"conversion": conversion, "planning": planning, "first-conversion": first_conversion}
