"""Windows cut while loading, of every kind of input: the bytes and metadata of those that a conversion cuts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pynwb import NWBHDF5IO, TimeSeries
from pynwb.image import ImageSeries
from recordings import make_recording
from windows import assert_same_batches, load

from neurofmx_wds import WebDatasetLoader, Windows
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import NeurofmxError

SECONDS = 6


def _arrays(n: int) -> dict[str, Any]:
    rng = np.random.default_rng(n)
    return {
        "emg": rng.standard_normal((n, 2, 3)).astype(np.float32),
        "lick": rng.random(n) > 0.9,
        "count": rng.integers(-9, 9, (n, 2)).astype(np.int16),
    }


def _videos(nwb: Any) -> None:
    rng = np.random.default_rng(0)
    eye = rng.integers(0, 255, (150, 4, 3), np.uint8)
    nwb.add_acquisition(ImageSeries(name="eye", data=eye, timestamps=0.2 + np.arange(150) / 30, unit="n.a."))
    nwb.add_acquisition(ImageSeries(name="body", data=eye[:60], rate=12.5, starting_time=0.5, unit="n.a."))
    about = {"external_file": ["a.mp4", "b.mp4"], "starting_frame": [0, 40], "format": "external", "unit": "n.a."}
    nwb.add_acquisition(ImageSeries(name="far", timestamps=1 + np.arange(90) / 25, **about))


def _shared_times(nwb: Any) -> None:
    """Add series that share irregular timestamps, one of them out of order, and scaled integers."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, SECONDS, 400))
    shuffled = rng.permutation(400)
    scaling: dict[str, Any] = {"conversion": 0.5, "offset": -1.0}
    for name, at, data, how in (
        ("pupil", times, rng.standard_normal(400), {}),
        ("speed", times, rng.integers(0, 99, 400).astype(np.int16), scaling),
        ("late", times[shuffled], rng.standard_normal((400, 2)), {}),
    ):
        nwb.processing["behavior"].add(TimeSeries(name=name, data=data, timestamps=at, unit="x", **how))


Make = Callable[[Path], Path]
INPUTS: dict[str, tuple[Make, dict[str, Any]]] = {}


def given(name: str, **config: Any) -> Callable[[Make], Make]:
    def register(make: Make) -> Make:
        INPUTS[name] = make, config
        return make

    return register


def _nwb(path: Path, **made: Any) -> Path:
    made = {"seconds": SECONDS, "n_units": 3, "trials": 3, "behavior_rate": 60, **made}
    make_recording(path / "a.nwb", **made)
    return path / "a.nwb"


@given("npz at a rate", rate=100.0)
def _(path: Path) -> Path:
    np.savez(path / "a.npz", **_arrays(600))
    return path / "a.npz"


@given("npz with timestamps", timestamps="t")
def _(path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(path / "a.npz", t=rng.permutation(np.cumsum(rng.exponential(0.01, 600))), **_arrays(600))
    return path / "a.npz"


@given("npy", rate=250.0)
def _(path: Path) -> Path:
    np.save(path / "a.npy", _arrays(1500)["emg"])
    return path / "a.npy"


@given("zarr")
def _(path: Path) -> Path:
    hdmf_zarr = pytest.importorskip("hdmf_zarr", reason="stores are read with hdmf-zarr")
    source = _nwb(path, lfp_channels=2, lfp_rate=300.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with NWBHDF5IO(str(source), "r") as there, hdmf_zarr.NWBZarrIO(str(path / "b.nwb.zarr"), mode="w") as here:
            here.export(src_io=there, write_args={"link_data": False})
    return path / "b.nwb.zarr"


@given("videos", modalities=("spikes", "video"))
def _(path: Path) -> Path:
    return _nwb(path, extra=_videos)


@given("masks, observation intervals and invalid times")
def _(path: Path) -> Path:
    observed = [[[0.0, 2.5], [3.0, 6.0]], [[0.0, 6.0]], [[1.0, 4.0]]]
    return _nwb(path, obs_intervals=observed, invalid_times=[(1.5, 1.75), (4.0, 4.1)])


@given("shared timestamps, out of order, scaled")
def _(path: Path) -> Path:
    return _nwb(path, extra=_shared_times)


@given("scaled integers at their own rate")
def _(path: Path) -> Path:
    data = np.random.default_rng(0).integers(-999, 999, (1800, 2)).astype(np.int16)
    scaling = {"conversion": 1e-6, "channel_conversion": [1.0, 2.5], "offset": 0.25}
    return _nwb(path, lfp_channels=2, lfp_rate=300.0, lfp_data=data, lfp_scaling=scaling)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bins", [(10, 50, 0.5), (40, 8, 0.25)], ids=["10 ms", "40 ms"])
def test_every_input(name: str, bins: tuple[int, int, float], tmp_path: Path) -> None:
    make, options = INPUTS[name]
    path = make(tmp_path)
    bin_ms, length, overlap = bins
    shared = {key: value for key, value in options.items() if key != "spike_format"}
    config = {"bin_size_ms": bin_ms, "sequence_length": length, "overlap": overlap, "max_gap_s": 0.1, **options}
    convert([path], Output(tmp_path / "windows"), SourceConfig.of(**config))
    segments = SourceConfig.of(layout="segments", segment_s=0.7, max_gap_s=0.1, **shared)
    convert([path], Output(tmp_path / "segments", shard_size=3), segments)
    windows = Windows(length_s=length * bin_ms / 1000, overlap=overlap, bin_ms=bin_ms, max_gap_s=0.1)
    now = load(tmp_path / "segments", modalities=options.get("modalities"), windows=windows)
    assert assert_same_batches(load(tmp_path / "windows"), now) > 1


def test_ragged_spikes_of_samples(tmp_path: Path) -> None:
    path = _nwb(tmp_path, spike_rate=3.0)
    convert([path], Output(tmp_path / "windows"), SourceConfig.of(spike_format="ragged", sequence_length=30))
    convert([path], Output(tmp_path / "segments"), SourceConfig.of(layout="segments", segment_s=0.7))
    before = WebDatasetLoader(tmp_path / "windows", shuffle="full")
    windows = Windows(length_s=0.3, overlap=0.5, spikes="ragged")
    now = WebDatasetLoader(tmp_path / "segments", shuffle="full", windows=windows)
    for stored, cut in zip(before, now, strict=True):
        assert sorted(stored) == sorted(cut) and stored["metadata"] == cut["metadata"]
        assert stored["__key__"] == cut["__key__"]
        for name in sorted(set(stored) - {"metadata", "__key__"}):
            assert (stored[name].dtype, stored[name].tobytes()) == (cut[name].dtype, cut[name].tobytes())


def test_series_with_the_same_times_store_them_once(tmp_path: Path) -> None:
    config = SourceConfig.of(layout="segments", segment_s=2.0)
    convert([_nwb(tmp_path, extra=_shared_times)], Output(tmp_path / "segments"), config)
    (batch,) = load(tmp_path / "segments")
    times = [name for name in batch if name.endswith("_times") and name != "spike_times"]
    assert times == ["behavior_late_times"] and sum(len(each) for each in batch[times[0]]) == 400
    assert batch["behavior_speed"][0].dtype.itemsize == 2


def test_arrays_are_chosen_by_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **_arrays(600))
    config = SourceConfig.of(layout="segments", segment_s=2.0, rate=100.0)
    convert([tmp_path / "a.npz"], Output(tmp_path / "segments"), config)
    batch = next(iter(load(tmp_path / "segments", modalities=["emg"], windows=Windows(length_s=1))))
    assert batch["emg"].shape == (5, 100, 2, 3) and "lick" not in batch
    assert next(iter(load(tmp_path / "segments")))["emg"].shape == (3, 200, 2, 3)
    with pytest.raises(NeurofmxError, match="there is no emgs in it"):
        load(tmp_path / "segments", modalities=["emgs"], windows=Windows(length_s=1))
