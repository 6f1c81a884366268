"""Small NWB recordings made with pynwb, for everyone's tests; each comes with the truth it was made of."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pynwb
from hdmf.backends.hdf5 import H5DataIO
from pynwb import behavior as nwb_behavior
from pynwb.ecephys import LFP

from neurofmx_wds.convert.sources import SourceConfig, SourceDescription, open_source

START = dt.datetime(2024, 5, 17, 9, 30, tzinfo=dt.timezone.utc)


def make_recording(
    path: Path | str,
    *,
    seconds: float = 10.0,
    n_units: int = 4,
    lfp_channels: int = 0,
    lfp_rate: float = 1000.0,
    behavior_rate: float = 0.0,
    trials: int = 0,
    seed: int = 0,
    spike_rate: float = 10.0,
    spike_times: list[Any] | None = None,
    obs_intervals: list[Any] | None = None,
    invalid_times: list[tuple[float, float]] | None = None,
    behavior_times: Any | None = None,
    compass_unit: str | None = None,
    lfp_times: Any | None = None,
    lfp_start: float = 0.0,
    lfp_data: Any | None = None,
    lfp_scaling: dict[str, Any] | None = None,
    session_id: str = "session-1",
    identifier: str = "recording-1",
    extra: Any | None = None,
) -> dict[str, Any]:
    """Writes a recording of random spikes, a wandering position and oscillating LFP.

    Args:
        path: the file to write.
        seconds: length of the recording.
        n_units: rows of the Units table; 0 makes a file without one.
        lfp_channels: LFP channels at `lfp_rate`; 0 makes none.
        behavior_rate: position samples per second (regular timestamps); 0 makes none unless `behavior_times` is given.
        trials: rows of the trials table, evenly spread, with half of each period between them.
        spike_times, obs_intervals: per unit, in seconds, instead of the random ones.
        invalid_times: (start, stop) in seconds.
        behavior_times, lfp_times: explicit timestamps in seconds, written as they are.
        compass_unit: adds a CompassDirection/heading series of this unit (a turning angle).
        lfp_data: dataset (time, channels) to use, e.g. an ``H5DataIO``.
        lfp_scaling: keyword arguments of ElectricalSeries, e.g. ``conversion``, ``channel_conversion``, ``offset``.
        extra: called with the NWBFile before it is written.

    Returns:
        The truth: ``spike_times`` (list of float64 arrays), ``position`` (n, 2), ``behavior_times``, ``heading``,
        ``lfp`` (n, channels), ``trials`` (list of (start, stop)), ``seconds``, ``session_id``, ``identifier``.
    """
    rng = np.random.default_rng(seed)
    nwb = pynwb.NWBFile(
        session_description="a made-up session",
        identifier=identifier,
        session_start_time=START,
        session_id=session_id,
        subject=pynwb.file.Subject(subject_id="mouse-1", species="Mus musculus", sex="F", age="P90D"),
    )
    truth: dict[str, Any] = {"seconds": seconds, "session_id": session_id, "identifier": identifier}
    device = nwb.create_device("probe")
    group = nwb.create_electrode_group("shank0", description="a shank", location="CA1", device=device)
    for channel in range(max(1, lfp_channels)):
        nwb.add_electrode(id=channel + 10, group=group, location="CA1")
    if spike_times is None:
        spike_times = [np.sort(rng.uniform(0, seconds, rng.poisson(spike_rate * seconds))) for _ in range(n_units)]
    truth["spike_times"] = [np.asarray(times, dtype=float) for times in spike_times]
    for unit, times in enumerate(truth["spike_times"]):
        observed = {} if obs_intervals is None else {"obs_intervals": np.asarray(obs_intervals[unit], dtype=float)}
        nwb.add_unit(id=unit + 100, spike_times=times, electrode_group=group, **observed)
    if behavior_rate or behavior_times is not None:
        _add_behavior(nwb, truth, rng, behavior_rate, behavior_times, compass_unit)
    if lfp_channels:
        electrodes = nwb.create_electrode_table_region(list(range(lfp_channels)), "all channels")
        if lfp_data is None:
            n = len(lfp_times) if lfp_times is not None else round(seconds * lfp_rate)
            phase = np.arange(n)[:, None] / lfp_rate * 2 * np.pi * (8 + np.arange(lfp_channels))
            truth["lfp"] = np.sin(phase) + 0.1 * rng.standard_normal((n, lfp_channels))
            chunks = (min(n, 512), lfp_channels)
            lfp_data = H5DataIO(truth["lfp"], chunks=chunks, compression="gzip", compression_opts=1)
        clock = (
            {"timestamps": np.asarray(lfp_times, dtype=float)}
            if lfp_times is not None
            else {"rate": float(lfp_rate), "starting_time": float(lfp_start)}
        )
        container = LFP(name="LFP")
        nwb.create_processing_module("ecephys", "filtered").add(container)
        container.create_electrical_series(
            name="lfp", data=lfp_data, electrodes=electrodes, **clock, **(lfp_scaling or {})
        )
    period = seconds / max(1, trials)
    truth["trials"] = [(i * period, (i + 0.5) * period) for i in range(trials)]
    for start, stop in truth["trials"]:
        nwb.add_trial(start_time=start, stop_time=stop)
    for start, stop in invalid_times or []:
        nwb.add_invalid_time_interval(start_time=float(start), stop_time=float(stop))
    if extra is not None:
        extra(nwb)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return truth


def read_all(path: Path | str, **options: Any) -> tuple[SourceDescription, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Opens a source with 10 ms bins and windows of 50 unless told otherwise, and reads all its samples."""
    source = open_source(path, SourceConfig.of(**{"bin_size_ms": 10, "sequence_length": 50, **options}))
    try:
        description = source.describe()
        return description, list(source.read(0, description.n_samples))
    finally:
        source.close()


def _add_behavior(
    nwb: pynwb.NWBFile, truth: dict[str, Any], rng: Any, rate: float, times: Any | None, compass_unit: str | None
) -> None:
    if times is None:
        times = np.arange(round(truth["seconds"] * rate)) / rate
    times = np.asarray(times, dtype=float)
    truth["behavior_times"] = times
    truth["position"] = np.cumsum(rng.standard_normal((len(times), 2)), axis=0) * 0.01
    module = nwb.create_processing_module("behavior", "where the animal is")
    position = nwb_behavior.SpatialSeries(
        name="xy", data=truth["position"], timestamps=times, reference_frame="arena corner", unit="meters"
    )
    module.add(nwb_behavior.Position(spatial_series=position, name="Position"))
    if compass_unit:
        turn = 2 * np.pi if compass_unit.startswith("rad") else 360.0
        truth["heading"] = np.mod(np.cumsum(rng.normal(0.3, 0.2, len(times))), 2 * np.pi) * turn / (2 * np.pi)
        heading = nwb_behavior.SpatialSeries(
            name="heading", data=truth["heading"], timestamps=times, reference_frame="north", unit=compass_unit
        )
        module.add(nwb_behavior.CompassDirection(spatial_series=heading, name="CompassDirection"))
