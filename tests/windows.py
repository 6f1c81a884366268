"""Datasets of segments and the windows cut from them, beside the windows that a conversion cuts, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

DATA = Path(__file__).parents[2] / "shared" / "data"
REAL = ["A2929-200711.nwb", "sub-anm00239123_ses-20170627T093549.nwb"]


def load(directory: Path, **options: Any) -> Any:
    return create_webdataset_dataloader(directory, **{"num_workers": 0, "batch_size": 5, "shuffle": False, **options})


def assert_same_batches(cut_before: Any, cut_now: Any) -> int:
    """All batches have the same fields, bytes, metadata and keys, in the same order; return how many there are."""
    n = 0
    for stored, cut in zip(cut_before, cut_now, strict=True):
        assert sorted(stored) == sorted(cut)
        for name, values in stored.items():
            if isinstance(values, torch.Tensor):
                assert (values.dtype, values.shape) == (cut[name].dtype, cut[name].shape), name
                assert values.numpy().tobytes() == cut[name].numpy().tobytes(), name
            elif name in ("metadata", "__key__"):
                assert list(values) == list(cut[name])
            else:
                assert str(values) == str(cut[name])
        n += 1
    return n


def convert_both(files: list[Path], out: Path, segment_s: float, **config: Any) -> tuple[Path, Path]:
    both = out / "windows", out / "segments"
    convert(files, Output(both[0]), SourceConfig.of(**config))
    shared = {name: config[name] for name in ("modalities", "time_scale") if name in config}
    segments = SourceConfig.of(layout="segments", segment_s=segment_s, max_gap_s=0.05, **shared)
    convert(files, Output(both[1], shard_size=3), segments)
    return both


def starts(batches: Any) -> list[tuple[str, int]]:
    return [(about["session_id"], about["t_start_ns"]) for batch in batches for about in batch["metadata"]]


@st.composite
def recordings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `make_recording`: regular, irregular and missing behavior, fast and slow LFP, gaps, trials."""
    seconds = draw(st.integers(3, 9))
    made: dict[str, Any] = {"seconds": seconds, "n_units": draw(st.integers(1, 3)), "seed": draw(st.integers(0, 99))}
    made["spike_rate"] = draw(st.sampled_from([0.5, 20.0]))
    made["trials"] = draw(st.sampled_from([0, 3]))
    times = np.arange(0, seconds, draw(st.sampled_from([0.008, 0.05, 0.4])))
    if draw(st.booleans()):
        times = np.sort(times + np.random.default_rng(made["seed"]).uniform(0, 0.004, len(times)))
    if draw(st.booleans()):
        gap = draw(st.floats(0.5, seconds - 1))
        times = times[(times < gap) | (times > gap + 0.8)]
    made["behavior_times"] = times
    made["compass_unit"] = draw(st.sampled_from([None, "radians"]))
    if draw(st.booleans()):
        made |= {"lfp_channels": 2, "lfp_rate": draw(st.sampled_from([30.0, 512.0])), "lfp_start": 0.3}
    if draw(st.booleans()):
        stop = draw(st.floats(1.0, seconds))
        made["obs_intervals"] = [[[0.1, stop / 2], [stop / 2 + 0.3, stop + 0.5]]] * made["n_units"]
    if draw(st.booleans()):
        made["invalid_times"] = [(1.0, 1.25)]
    return made
