"""Speed of windows cut while training, beside windows cut before and libraries that cut while training.

Knows made-up recordings and how each library reads them; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neurofmx_wds import Windows, create_webdataset_dataloader
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

from . import datasets
from .harness import Case, Group, Setting, Target, Work

OURS = "neurofmx_wds"
BATCH = 32
_SPIKE_RATE, _BEHAVIOR_RATE = 5, 100  # Hz
_START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


@dataclass(frozen=True)
class Hours:
    """Made-up recordings of an hour each.

    Attributes:
        root: where all their files are.
        n: how many.
        n_units: units of each, spiking at 5 Hz; behavior has two columns at 100 Hz.
    """

    root: Path
    n: int
    n_units: int = 64

    @property
    def directory(self) -> Path:
        """Where the files of these recordings are."""
        return self.root / f"hours_{self.n}_{self.n_units}"

    @property
    def raw_bytes(self) -> int:
        """Bytes of the numbers in one form: int64 time and uint16 unit of each spike, float32 behavior."""
        return self.n * 3600 * (self.n_units * _SPIKE_RATE * 10 + _BEHAVIOR_RATE * 2 * 4)

    def arrays(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times (s, ascending) and units of the spikes, and the behavior, of one recording."""
        rng = np.random.default_rng(i)
        n = 3600 * self.n_units * _SPIKE_RATE
        times = np.sort(rng.uniform(0, 3600, n))
        return times, rng.integers(0, self.n_units, n), rng.standard_normal((3600 * _BEHAVIOR_RATE, 2), np.float32)

    def recordings(self) -> list[Path]:
        """Return the recordings as NWB files, made if need be."""
        return sorted(datasets.made(self.directory / "nwb", self._write).glob("*.nwb"))

    def _write(self, directory: Path) -> None:
        import pynwb
        from pynwb.behavior import Position, SpatialSeries

        directory.mkdir(parents=True)
        for i in range(self.n):
            times, units, behavior = self.arrays(i)
            about = {"identifier": f"r{i}", "session_id": f"s{i}", "session_start_time": _START}
            nwb = pynwb.NWBFile(session_description="made up", **about)
            for unit in range(self.n_units):
                nwb.add_unit(spike_times=times[units == unit])
            place = {"rate": float(_BEHAVIOR_RATE), "unit": "m", "reference_frame": "corner"}
            position = Position(name="Position", spatial_series=SpatialSeries(name="xy", data=behavior, **place))
            nwb.create_processing_module("behavior", "made up").add(position)
            with pynwb.NWBHDF5IO(str(directory / f"{i:04d}.nwb"), "w") as io:
                io.write(nwb)

    def stored(self, name: str, **config: Any) -> Path:
        """Return a dataset of these recordings, made with these settings if need be."""

        def make(directory: Path) -> None:
            convert(self.recordings(), Output(directory), SourceConfig.of(**config))

        return datasets.made(self.directory / name, make)

    def segments(self) -> Path:
        """Return the recordings in segments of 60 s."""
        return self.stored("segments", layout="segments")

    def windows(self, **form: Any) -> Path:
        """Return the recordings in windows of 1 s that do not overlap."""
        return self.stored("_".join(["windows", *form.values()]), overlap=0.0, **form)

    def torch_brain(self) -> Path:
        """Return the recordings as files of torch_brain."""
        return datasets.made(self.directory / "torch_brain", self._write_torch_brain)

    def _write_torch_brain(self, directory: Path) -> None:
        from torch_brain.data import ArrayDict, Data, Interval, IrregularTimeSeries, RegularTimeSeries

        directory.mkdir(parents=True)
        for i in range(self.n):
            times, units, behavior = self.arrays(i)
            data = Data(
                spikes=IrregularTimeSeries(times, unit_index=units, domain="auto"),
                behavior=RegularTimeSeries(xy=behavior, sampling_rate=_BEHAVIOR_RATE, domain="auto"),
                units=ArrayDict(id=np.array([f"u{k}" for k in range(self.n_units)])),
                domain=Interval(0.0, 3600.0),
            )
            data.save(directory / f"{i:04d}.h5")


def hours(setting: Setting, n_units: int = 64) -> Hours:
    """Return the recordings of most cases."""
    return Hours(setting.root, 1 if setting.quick else 20 if n_units == 64 else 4, n_units)


def for_a_while(batches: Callable[[], Any], seconds: float = 2.0) -> Work:
    """Return the work of iterating for some seconds, over several epochs if need be."""
    every = _without_end(batches())

    def work() -> float:
        n, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            n += len(next(every)["behavior"])
        return n

    return work


def _without_end(batches: Any) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(batches))


def ours(directory: Path, windows: Windows | None, **options: Any) -> Any:
    """Open our loader."""
    options = {"batch_size": BATCH, "num_workers": 0, "shuffle": "full", **options}
    return create_webdataset_dataloader(directory, windows=windows, **options)


def random_windows(**settings: Any) -> Windows:
    """Return windows of 1 s, moved at random."""
    return Windows(length_s=1, jitter=True, **settings)


def two_workers(recordings: Hours, windows: Windows) -> Any:
    """Open our loader with workers that stay from epoch to epoch."""
    return ours(recordings.segments(), windows, num_workers=2, persistent_workers=True)


def torch_brain(recordings: Hours, form: str) -> Any:
    """Read random windows with torch_brain: binned, or as spikes padded to a multiple of 8."""
    import torch
    from torch_brain.batching.collate import collate, pad8, track_mask8
    from torch_brain.datasets import Dataset
    from torch_brain.samplers import RandomFixedWindowSampler
    from torch_brain.transforms import BinSpikes

    bins = BinSpikes(bin_size=0.01, dtype=np.float32)

    def binned(data: Any) -> dict[str, Any]:
        data = bins(data)
        spikes, behavior = data.spikes_binned.binned_counts, data.behavior.xy
        return {"spikes": spikes[:99], "behavior": behavior[:99]}  # some have 99 rows, others 100

    def padded(data: Any) -> dict[str, Any]:
        spikes = data.spikes
        fields = {"times": pad8(spikes.timestamps), "units": pad8(spikes.unit_index)}
        return {**fields, "mask": track_mask8(spikes.timestamps), "behavior": data.behavior.xy[:99]}

    dataset = Dataset(recordings.torch_brain(), transform=binned if form == "binned" else padded)
    sampler = RandomFixedWindowSampler(sampling_intervals=dataset.get_sampling_intervals(), window_length=1.0)
    return torch.utils.data.DataLoader(dataset, sampler=sampler, batch_size=BATCH, collate_fn=collate)


def braindecode(recordings: Hours) -> Any:
    """Read windows at random with braindecode: counts and behavior as channels of a signal at 100 Hz, in memory."""
    import mne
    import torch
    from braindecode.datasets import BaseConcatDataset, RawDataset
    from braindecode.preprocessing import create_fixed_length_windows

    each = []
    for i in range(min(4, recordings.n)):
        times, units, behavior = recordings.arrays(i)
        counts = np.zeros((recordings.n_units, 360_000), np.float32)
        np.add.at(counts, (units, (times * 100).astype(int)), 1)
        info = mne.create_info(recordings.n_units + 2, 100.0, "misc")
        each.append(RawDataset(mne.io.RawArray(np.concatenate([counts, behavior.T]), info, verbose=False)))
    sizes = {"window_size_samples": 100, "window_stride_samples": 100, "drop_last_window": True}
    windows = create_fixed_length_windows(BaseConcatDataset(each), preload=True, **sizes)

    def collate(samples: list[Any]) -> dict[str, Any]:
        x = torch.from_numpy(np.stack([sample[0] for sample in samples]))
        return {"spikes": x[:, :-2], "behavior": x[:, -2:]}

    return torch.utils.data.DataLoader(windows, shuffle=True, batch_size=BATCH, collate_fn=collate)


def _case(name: str, batches: Callable[[], Any]) -> Case:
    return Case(name, lambda: for_a_while(batches), ours=name.startswith(OURS))


def random_reading(setting: Setting) -> Group:
    """Read windows at random, moved at random."""
    made = hours(setting)
    cut = {form: random_windows(spikes=form) for form in ("dense", "ragged", "events")}
    means = random_windows(behavior_method="bin_mean")
    before = {"dense": made.windows, "ragged": partial(made.windows, spike_format="ragged")}
    cases = [_case(f"{OURS}, {form}", lambda w=w: ours(made.segments(), w)) for form, w in cut.items()]
    cases += [
        _case(f"{OURS}, dense, behavior not interpolated", lambda: ours(made.segments(), means)),
        _case(f"{OURS}, dense, two workers", lambda: two_workers(made, cut["dense"])),
    ]
    cases += [_case(f"{OURS}, {form}, cut before", lambda m=make: ours(m(), None)) for form, make in before.items()]
    cases += [_case(f"torch_brain, {form}", partial(torch_brain, made, form)) for form in ("binned", "padded")]
    cases.append(_case("braindecode", partial(braindecode, made)))
    dense, ragged = f"{OURS}, dense", f"{OURS}, ragged"
    targets = [
        Target(dense, "torch_brain, binned", at_least=40),
        Target(ragged, "torch_brain, padded", at_least=40),
        Target(dense, f"{dense}, cut before", at_least=0.4),
        Target(ragged, f"{ragged}, cut before", at_least=3),
        Target(dense, "braindecode"),
        Target(f"{dense}, behavior not interpolated", dense, at_most=2),
        Target(f"{dense}, two workers", dense, at_least=1.0),
    ]
    title = f"{made.n} hours, 64 units, 2 columns of behavior: random windows of 1 s, moved at random"
    return Group(title, cases, targets, unit="thousand windows/s")


def many_units(setting: Setting) -> Group:
    """Read windows of many units at random."""
    made = hours(setting, 384)
    theirs = "torch_brain, binned"
    cases = [
        _case(OURS, lambda: ours(made.segments(), random_windows())),
        _case(theirs, partial(torch_brain, made, "binned")),
    ]
    title = f"{made.n} hours, 384 units, 2 columns of behavior: random windows of 1 s, moved at random"
    targets = [Target(OURS, theirs, at_least=12)]
    return Group(title, cases, targets, unit="thousand windows/s")


def first_batch(setting: Setting) -> Group:
    """Open 200 hours and read one batch at random."""
    made = hours(setting)

    def make(directory: Path) -> None:
        merge([made.segments()] * (10 if made.n > 1 else 3), directory, repeat_keys=True)

    def work() -> float:
        started = time.perf_counter()
        next(iter(ours(datasets.made(made.directory / "merged", make), random_windows())))
        return time.perf_counter() - started

    case = Case(OURS, lambda: work, ours=True)
    title = f"{10 * made.n} hours of segments: from opening to the first batch"
    return Group(title, [case], [Target(OURS, at_most=0.5)], unit="s", scale=1, per_second=False)


def memory(setting: Setting) -> Group:
    """Measure memory beside mapped files, growing over two epochs, and what lies on the disk."""
    made = hours(setting)

    def private() -> float:
        import psutil

        info = psutil.Process().memory_info()
        return float(info.rss - info.shared)

    def growth() -> float:
        list(itertools.islice(ours(made.segments(), random_windows()), 2))  # what the first batch imports
        before = private()
        loader = ours(made.segments(), random_windows())
        for _ in range(2):
            for _ in loader:
                pass
        return private() - before

    title = "memory beside mapped pages that two epochs take"
    return Group(
        title, [Case(OURS, lambda: growth, ours=True)], [Target(OURS, at_most=50)], unit="MB", scale=1e6,
        per_second=False, once=True,
    )  # fmt: skip


def disk(setting: Setting) -> Group:
    """Measure segments on the disk beside the raw numbers."""
    made = hours(setting)
    size = sum(path.stat().st_size for path in made.segments().iterdir())
    cases = [
        Case(OURS, lambda: lambda: float(size), ours=True),
        Case("the numbers", lambda: lambda: float(made.raw_bytes)),
    ]
    targets = [Target(OURS, "the numbers", at_most=1.1)]
    return Group("bytes on the disk", cases, targets, unit="MB", scale=1e6, per_second=False, once=True)


GROUPS: dict[str, Callable[[Setting], Group]] = {
    "windows": random_reading,
    "windows-units": many_units,
    "windows-first": first_batch,
    "windows-memory": memory,
    "windows-disk": disk,
}
