"""Large recordings take no more memory than was estimated, and are read about once; many files are planned at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conversions import contents, make_npz
from hdmf.backends.hdf5 import H5DataIO
from recordings import make_recording

from neurofmx_wds.convert.config import Output, ShardConfig, Work, Workers
from neurofmx_wds.convert.estimate import estimate
from neurofmx_wds.convert.look import look_at
from neurofmx_wds.convert.plan import ConversionPlan, report_of
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.storage.processes import ordered_map

RATE, CHANNELS = 30_000.0, 64

MEASURED = """
import json, sys
import neurofmx_wds.convert.sources.nwb
import neurofmx_wds.nwb.recording
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

def told(path, name):
    [number] = [int(line.split()[1]) for line in open(path) if line.startswith(name)]
    return number

before = told("/proc/self/io", "rchar"), told("/proc/self/status", "VmRSS") << 10
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew: a child's would be that of its parent
convert([sys.argv[1]], Output(sys.argv[2], shard_size=int(sys.argv[3])), SourceConfig.of(sequence_length=20))
after = told("/proc/self/io", "rchar"), told("/proc/self/status", "VmHWM") << 10
print(json.dumps([b - a for a, b in zip(before, after)]))
"""


def measured(path: Path, out: Path, shard_size: int) -> tuple[int, int]:
    """Bytes read, and memory over that of the libraries, of a conversion in a process of its own."""
    command = [sys.executable, "-c", MEASURED, str(path), str(out), str(shard_size)]
    read, memory = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return read, memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not count what is read")
@pytest.mark.parametrize("seconds", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_a_large_recording_is_read_about_once_and_in_pieces(seconds: int, tmp_path: Path) -> None:
    data = np.lib.format.open_memmap(tmp_path / "lfp.npy", "w+", "<i2", (int(seconds * RATE), CHANNELS))
    for start in range(0, len(data), 100_000):
        rows = data[start : start + 100_000]
        rows[:] = np.arange(start, start + len(rows))[:, None] % 1009
    path, out = tmp_path / "large.nwb", tmp_path / "out"
    chunked = H5DataIO(data, chunks=(5000, CHANNELS))
    make_recording(path, n_units=0, seconds=seconds, lfp_channels=CHANNELS, lfp_rate=RATE, lfp_data=chunked)
    config = SourceConfig.of(sequence_length=20)
    found = estimate(ConversionPlan(look_at([path], config), config, ShardConfig(shard_size=75)))
    read, memory = measured(path, out, 75)
    assert path.stat().st_size > data.nbytes
    assert read < 2.1 * path.stat().st_size  # for its checksum, and for its windows, which overlap by half
    shards, chunk_row = [path.stat().st_size for path in out.glob("*.tar")], 5000 * CHANNELS * data.itemsize
    assert 8 << 20 < memory < max(shards) + chunk_row < data.nbytes
    assert memory < found.memory_bytes < 160 << 20
    written = sum(shards)
    assert written <= found.n_bytes < 1.01 * written
    assert written > 3 * data.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not count what is used")
def test_many_spikes_take_no_more_memory_than_was_estimated(tmp_path: Path) -> None:
    n = 4_000_000
    make_recording(tmp_path / "a.nwb", n_units=8, seconds=50)
    times = np.sort(np.random.default_rng(0).uniform(0, 50, (8, n // 8)), axis=1).ravel()
    with h5py.File(tmp_path / "a.nwb", "a") as file:  # pynwb takes long to write as many
        for name, data in (("spike_times", times), ("spike_times_index", np.arange(1, 9) * (n // 8))):
            about = dict(file["units"][name].attrs)
            del file["units"][name]
            file["units"].create_dataset(name, data=data).attrs.update(about)
        file["units/spike_times_index"].attrs["target"] = file["units/spike_times"].ref
    config = SourceConfig.of(sequence_length=20)
    found = estimate(ConversionPlan(look_at([tmp_path / "a.nwb"], config), config))
    read, memory = measured(tmp_path / "a.nwb", tmp_path / "out", 1000)
    assert read < 4 * (tmp_path / "a.nwb").stat().st_size  # their checksum; once to count them, once to convert them
    assert 20 * n < memory < found.memory_bytes


@pytest.mark.parametrize("n", [30, pytest.param(500, marks=pytest.mark.slow)])
def test_many_small_files_are_planned_in_parallel(n: int, tmp_path: Path) -> None:
    make_recording(tmp_path / "good.nwb", seconds=3)
    paths = [tmp_path / f"{i:03d}.{'nwb' if i % 5 == 0 else 'npz'}" for i in range(n)]
    for i, path in enumerate(paths):
        if i % 7 == 3:
            path.write_text(f"damaged {i}")
        elif i % 11 == 4:
            pass  # missing
        elif i % 5 == 0:
            shutil.copy(tmp_path / "good.nwb", path)
        else:
            make_npz(path, 1 + i % 4, i)
    with ordered_map(2) as apply:
        entries = look_at(paths, SourceConfig(), Work(apply))
    reports = [report_of(entry) for entry in entries]
    assert reports == [report_of(entry) for entry in look_at(paths, SourceConfig())]
    assert [report["path"] for report in reports] == [path.name for path in paths]
    failed = [path.name for i, path in enumerate(paths) if i % 7 == 3 or i % 11 == 4]
    made = [convert(paths, Output(tmp_path / f"out{w}", shard_size=10), workers=Workers(w)) for w in (1, 2)]
    for conversion in made:
        assert [Path(error.file or "").name for error in conversion.plan.failures] == failed
        assert [source["path"] for source in conversion.summary["sources"] if "error" in source] == failed
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2")
