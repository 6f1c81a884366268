"""Large recordings take no more memory than was estimated, and are read about once; many files are planned at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hdmf.backends.hdf5 import H5DataIO
from recordings import make_recording
from test_convert import contents, make_npz

from neurofmx_wds.convert.estimate import estimate
from neurofmx_wds.convert.plan import ConversionPlan
from neurofmx_wds.convert.run import convert, look_at
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.processes import ordered_map

RATE, CHANNELS = 30_000.0, 64

MEASURED = """
import json, resource, sys
import neurofmx_wds.convert.sources.nwb
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

def now():
    [read] = [int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar")]
    return read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

before = now()
convert([sys.argv[1]], sys.argv[2], SourceConfig(sequence_length=20, modalities=("lfp",)), shard_size=int(sys.argv[3]))
print(json.dumps([b - a for a, b in zip(before, now())]))
"""


def measured(path: Path, out: Path, shard_size: int) -> tuple[int, int]:
    """Bytes read, and memory over that of the libraries, of a conversion in a process of its own."""
    command = [sys.executable, "-c", MEASURED, str(path), str(out), str(shard_size)]
    read, memory = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return read, memory


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what is read")
@pytest.mark.parametrize("seconds", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_a_large_recording_is_read_about_once_and_in_pieces(seconds: int, tmp_path: Path) -> None:
    data = np.lib.format.open_memmap(tmp_path / "lfp.npy", "w+", "<i2", (int(seconds * RATE), CHANNELS))
    for start in range(0, len(data), 100_000):
        rows = data[start : start + 100_000]
        rows[:] = np.arange(start, start + len(rows))[:, None] % 1009
    path, out = tmp_path / "large.nwb", tmp_path / "out"
    chunked = H5DataIO(data, chunks=(5000, CHANNELS))
    make_recording(path, n_units=0, seconds=seconds, lfp_channels=CHANNELS, lfp_rate=RATE, lfp_data=chunked)
    config = SourceConfig(sequence_length=20, modalities=("lfp",))
    found = estimate(ConversionPlan(look_at([path], config), config, shard_size=50))
    read, memory = measured(path, out, 50)
    assert path.stat().st_size > data.nbytes
    assert read < 3 * path.stat().st_size  # its checksum, and its windows, which overlap by half
    assert memory < found.memory_bytes < 160 << 20
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    assert written <= found.n_bytes < 1.01 * written
    assert written > 3 * data.nbytes


@pytest.mark.slow
def test_many_small_files_are_planned_in_parallel(tmp_path: Path) -> None:
    for i in range(500):
        make_npz(tmp_path / f"{i:03d}.npz", 3, i)
    paths = sorted(tmp_path.glob("*.npz"))
    start = time.perf_counter()
    with ordered_map(2) as apply:
        entries = look_at(paths, SourceConfig(), apply)
    assert time.perf_counter() - start < 60
    assert entries == look_at(paths, SourceConfig())
    convert(paths, tmp_path / "one", shard_size=100)
    convert(paths, tmp_path / "two", shard_size=100, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
