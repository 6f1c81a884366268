"""Simulate a small NWB recording: an animal foraging in a square arena, two populations of units, LFP and trials.

Knows numpy and pynwb; it must know nothing of shards, loaders or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pynwb
from numpy.typing import NDArray
from pynwb.behavior import Position, SpatialSeries
from pynwb.ecephys import LFP, ElectricalSeries
from pynwb.file import Subject

ARENA_M = 1.0
POSITION_HZ = 60.0
LFP_HZ = 1250.0
LFP_CHANNELS = 8
LFP_VOLT_PER_COUNT = 0.195e-6
TRIAL_S = 10.0
N_PLACE, N_DIRECTION, N_BORDER = 40, 10, 10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """A simulated session.

    Attributes:
        seconds: duration; all data lies in [0, seconds).
        position: (n, 2) float64, metres from the corner of the arena, sampled at ``POSITION_HZ``.
        spike_times: sorted float64 seconds for each unit: place cells, then head-direction cells, then border cells.
        lfp: (n, LFP_CHANNELS) int16 at ``LFP_HZ``, in units of ``LFP_VOLT_PER_COUNT`` volts.
    """

    seconds: float
    position: Floats
    spike_times: list[Floats]
    lfp: NDArray[np.int16]


def simulate(seconds: float, seed: int) -> Recording:
    """Simulate a session; equal arguments give equal sessions.

    Args:
        seconds: duration in seconds, at least one trial (10 s).
        seed: seed of all random numbers.

    Raises:
        ValueError: ``seconds`` is less than one trial.

    Example:
        >>> session = simulate(seconds=10, seed=0)
        >>> session.position.shape, len(session.spike_times), session.lfp.shape
        ((600, 2), 60, (12500, 8))
    """
    if seconds < TRIAL_S:
        raise ValueError(f"seconds={seconds}: a session must have at least one trial of {TRIAL_S:g} s")
    rng = np.random.default_rng(seed)
    position = _walk(int(seconds * POSITION_HZ), rng)
    return Recording(seconds, position, _spikes(_rates(position, seconds, rng), seconds, rng), _lfp(seconds, rng))


def _walk(n: int, rng: np.random.Generator) -> Floats:
    """Return positions (n, 2) in metres: velocity is an Ornstein-Uhlenbeck process (0.8 s, 0.25 m/s), walls reflect."""
    step_s, memory_s, speed = 1 / POSITION_HZ, 0.8, 0.25
    keep = np.exp(-step_s / memory_s)  # exact update of the process over one step
    kicks = speed * np.sqrt(1 - keep**2) * rng.standard_normal((n, 2))
    path = np.empty((n, 2))
    place, velocity = np.full(2, ARENA_M / 2), np.zeros(2)
    for i in range(n):
        velocity = keep * velocity + kicks[i]
        place = place + step_s * velocity
        outside = (place < 0) | (place > ARENA_M)
        velocity[outside] *= -1
        place = np.clip(place, 0, ARENA_M)
        path[i] = place
    return path


def _rates(position: Floats, seconds: float, rng: np.random.Generator) -> Floats:
    """Return firing rates (units, milliseconds) in Hz: Gaussian place fields, von Mises tuning, exponential borders."""
    sampled = np.arange(len(position)) / POSITION_HZ
    fine = np.arange(0, seconds, 1e-3)
    x, y = (np.interp(fine, sampled, axis)[None] for axis in position.T)
    heading = np.arctan2(np.gradient(y[0]), np.gradient(x[0]))

    centre_x, centre_y = rng.uniform(0, ARENA_M, (2, N_PLACE, 1))
    width, peak = rng.uniform(0.10, 0.18, (N_PLACE, 1)), rng.uniform(15, 35, (N_PLACE, 1))
    place = peak * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * width**2))

    preferred = np.linspace(-np.pi, np.pi, N_DIRECTION, endpoint=False)[:, None]
    direction = 20 * np.exp(4 * (np.cos(heading - preferred) - 1))

    distance = np.concatenate([x, ARENA_M - x, y, ARENA_M - y])[np.arange(N_BORDER) % 4]
    border = 25 * np.exp(-distance / rng.uniform(0.06, 0.15, (N_BORDER, 1)))
    return np.concatenate([place, direction, border]) + 0.2


def _spikes(rates: Floats, seconds: float, rng: np.random.Generator) -> list[Floats]:
    """Draw Poisson spike times of each unit in seconds: counts in 1 ms bins, then a uniform time in the bin."""
    counts = (rng.poisson(rate * 1e-3) for rate in rates)
    milliseconds = (np.repeat(np.arange(len(count)), count) for count in counts)
    times = (np.sort((ms + rng.random(len(ms))) * 1e-3) for ms in milliseconds)
    return [time[time < seconds] for time in times]


def _lfp(seconds: float, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return theta (8 Hz, drifting, with a phase shift along the probe) plus 1/f noise, (n, LFP_CHANNELS) int16."""
    n = int(seconds * LFP_HZ)
    phase = 2 * np.pi * np.cumsum(8 + 0.02 * np.cumsum(rng.standard_normal(n)) / np.sqrt(LFP_HZ)) / LFP_HZ
    theta = 150e-6 * np.cos(phase[:, None] - np.linspace(0, np.pi / 2, LFP_CHANNELS))
    frequency = np.fft.rfftfreq(n, 1 / LFP_HZ)
    white = np.fft.rfft(rng.standard_normal((n, LFP_CHANNELS)), axis=0)
    noise = np.fft.irfft(white / np.sqrt(np.maximum(frequency, 1.0))[:, None], n, axis=0)
    volts = theta + 60e-6 * noise / noise.std()
    return np.rint(volts / LFP_VOLT_PER_COUNT).astype(np.int16)


def write_nwb(recording: Recording, path: Path) -> None:
    """Write a session as an NWB 2 file: subject, electrodes, units, position, LFP and trials.

    Args:
        recording: the session, from :func:`simulate`.
        path: the file to write; an existing file is replaced.
    """
    file = pynwb.NWBFile(
        session_description="an animal forages in a 1 m x 1 m arena (simulated)",
        identifier="neurofmx-demo",
        session_id="demo-session",
        session_start_time=datetime(2024, 1, 1, 9, 0, tzinfo=timezone.utc),
        subject=Subject(subject_id="demo-rat", species="Rattus norvegicus", sex="F", age="P90D"),
    )
    _add_units(file, recording)
    _add_series(file, recording)
    file.add_trial_column("rewarded", "whether the animal found the pellet")
    for trial in range(int(recording.seconds // TRIAL_S)):
        start = trial * TRIAL_S
        file.add_trial(start_time=start, stop_time=start + TRIAL_S - 0.5, rewarded=trial % 3 != 0)
    with pynwb.NWBHDF5IO(path, "w") as io:
        io.write(file)


def _add_units(file: pynwb.NWBFile, recording: Recording) -> None:
    device = file.create_device("probe", description="two shanks of four sites")
    file.add_unit_column("cell_type", "tuning of the cell")
    groups = [
        file.create_electrode_group(region, description=f"shank in {region}", location=region, device=device)
        for region in ("CA1", "MEC")
    ]
    for channel in range(LFP_CHANNELS):
        group = groups[channel * len(groups) // LFP_CHANNELS]
        file.add_electrode(group=group, location=group.location)
    cell_types = ["place"] * N_PLACE + ["head direction"] * N_DIRECTION + ["border"] * N_BORDER
    for times, cell_type in zip(recording.spike_times, cell_types, strict=True):
        file.add_unit(
            spike_times=times,
            obs_intervals=[[0.0, float(recording.seconds)]],
            electrode_group=groups[0 if cell_type == "place" else 1],
            cell_type=cell_type,
        )


def _add_series(file: pynwb.NWBFile, recording: Recording) -> None:
    position = SpatialSeries(
        name="position",
        description="the animal's head",
        data=recording.position,
        unit="meters",
        rate=POSITION_HZ,
        starting_time=0.0,
        reference_frame="the arena's south-west corner",
    )
    lfp = ElectricalSeries(
        name="lfp",
        description="local field potential",
        data=recording.lfp,
        electrodes=file.create_electrode_table_region(list(range(LFP_CHANNELS)), "all sites"),
        rate=LFP_HZ,
        starting_time=0.0,
        conversion=LFP_VOLT_PER_COUNT,
    )
    file.create_processing_module("behavior", "where the animal was").add(Position(spatial_series=position))
    container = LFP()
    file.create_processing_module("ecephys", "filtered and downsampled").add(container)
    container.add_electrical_series(
        lfp
    )  # only now: the series refers to electrodes, so its container must belong to the file
