"""Every reader of bytes under a fuzzer that looks for new ways through the code; minutes: run with -m fuzz.

NEUROFMX_FUZZ_SECONDS says for how long each target (60).
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fields import HOSTILE_NPY, WHOLESOME, _hostile_pickles
from test_index import HOSTILE_TARS, make_shard
from test_pickles import GOOD, SHAPES, legacy, zipped
from webdataset import autodecode

from neurofmx_wds.format.decoding import _DECODERS
from neurofmx_wds.format.encoding import encode

pytestmark = pytest.mark.fuzz
SECONDS = int(os.environ.get("NEUROFMX_FUZZ_SECONDS", "60"))
# as in fuzz_bytes.py
SUFFIXES = [*sorted({*_DECODERS, *autodecode.decoders} - {"mp", "msg", "cbor"}), "npy.gz", "pyd.gz", "jpg"]


def corpora(shard: Path) -> dict[str, list[bytes]]:
    """What each target begins with: good bytes and hostile ones."""
    tar, index = shard.read_bytes(), shard.with_suffix(".index").read_bytes()[:-4]
    pickles = [pickle.dumps(value, protocol) for value in ([np.arange(3), "a"], torch.ones(2)) for protocol in range(6)]
    torch_files = [*GOOD, *(make(shape) for make in (zipped, legacy) for shape in SHAPES.values())]
    members = [(suffix.rpartition(".")[2], payload) for suffix, payload in WHOLESOME.items()]
    members += [("npy", payload) for payload in HOSTILE_NPY.values()]
    shard_0 = {"shard_name": "shard_0.tar", "n_samples": 3, "n_bytes": len(tar), "sha256": None}
    manifest = {"shard_size": 3, "compression": "none", "modalities": {"x": {"dtype": "int64", "shape": [3]}}}
    manifest |= {"shards": [shard_0], "total_samples": 3, "total_shards": 1}
    place = {"shard_idx": 1, "sample_offset": 2, "epoch": 0}
    whole = {"version": 1, "position": 3, "seed": 1, "shuffle": True, "buffer_size": 4, "block_size": 2}
    return {
        "member": [bytes([SUFFIXES.index(s)]) + data for s, data in members if s in SUFFIXES],
        "pickled": pickles + list(_hostile_pickles("x").values()),
        "torch_file": torch_files,
        "tar": [tar, *(data + bytes(1024) for data in HOSTILE_TARS.values())],
        "index": [index],
        "manifest": [json.dumps(manifest).encode()],
        "state": [json.dumps(s).encode() for s in (place, whole | place | {"num_samples": 7, "fingerprint": "f" * 32})],
        "compressed": [bytes([0]) + encode("x.bin.gz", bytes(999))[1][0]],
    }


@pytest.mark.parametrize(
    "target", ["member", "pickled", "torch_file", "tar", "index", "manifest", "state", "compressed"]
)
def test_fuzzed_bytes_give_a_value_or_a_named_error(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="the fuzzer is not installed: pip install atheris")
    make_shard(tmp_path / "shard_0.tar", 3)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, data in enumerate(corpora(tmp_path / "shard_0.tar")[target]):
        (corpus / str(i)).write_bytes(data)
    limits = [
        f"-max_total_time={SECONDS}",
        "-timeout=120",
        "-rss_limit_mb=3000",
        "-malloc_limit_mb=1000",
        "-max_len=20000",
    ]
    command = [sys.executable, str(Path(__file__).with_name("fuzz_bytes.py")), target, *limits, str(corpus)]
    environment = {**os.environ, "NEUROFMX_FUZZ_SHARD": str(tmp_path / "shard_0.tar"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS + 300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "DONE" in done.stderr and "Done 0 runs" not in done.stderr
