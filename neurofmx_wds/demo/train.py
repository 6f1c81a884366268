"""A training run as users write them: it logs every batch, saves checkpoints, and resumes from its checkpoint.

Knows the loader and the model; it must know nothing of the rest of the demo, which runs it in a separate process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import Windows, create_webdataset_dataloader
from ..storage.atomic import write_atomic
from .decoder import Decoder, squared_error

LOG, CHECKPOINT = "batches.jsonl", "checkpoint.pt"
BIN_MS = 20


@dataclass(frozen=True)
class Job:
    """Settings of a training run.

    Attributes:
        shards: directory of the shards.
        directory: where the run keeps its log and checkpoint; it resumes from a checkpoint that it finds there.
        units: number of units in ``spikes``.
        epochs: number of passes over the data.
        seed: seed of the weights and of the order of the samples.
        batch_size: windows in a batch.
        checkpoint_every: batches between checkpoints.
        kill_at: number of the batch, from 1, after which the process kills itself before saving; None: never.
        within: the seconds (start, stop) of the recording from which training windows are cut; None: the shards hold
            windows.
    """

    shards: str
    directory: str
    units: int
    epochs: int
    seed: int
    batch_size: int = 16
    checkpoint_every: int = 10
    kill_at: int | None = None
    within: tuple[float, float] | None = None


def windows_within(seconds: tuple[float, float], jitter: bool) -> Windows:
    """Return windows of 1 s in bins of 20 ms, one every half second.

    Args:
        seconds: start and stop of the part of the recording that they lie in.
        jitter: whether they are moved at random, as is good for training.
    """
    return Windows(length_s=1, overlap=0.5, bin_ms=BIN_MS, jitter=jitter, within=[seconds])


def train(job: Job) -> None:
    """Train for `job.epochs` epochs; write ``batches.jsonl`` (one line per batch) and ``checkpoint.pt``."""
    torch.set_num_threads(1)  # one order of summation, so that weights can be compared bit by bit
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(job.seed)
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)

    windows = None if job.within is None else windows_within(job.within, jitter=True)
    options: dict[str, Any] = {"batch_size": job.batch_size, "num_workers": 0, "seed": job.seed}
    loader = create_webdataset_dataloader(job.shards, windows=windows, **options)
    decoder = Decoder(job.units)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    step = 0
    if (directory / CHECKPOINT).exists():
        saved = read_checkpoint(directory)
        decoder.load_state_dict(saved["decoder"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]

    def checkpoint() -> None:
        state = {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
        content = io.BytesIO()
        torch.save({**state, "step": step}, content)
        write_atomic(directory / CHECKPOINT, content.getvalue())

    with open(directory / LOG, "a") as log:
        for epoch in range(loader.epoch, job.epochs):
            for batch in loader:
                loss = squared_error(decoder(batch["spikes"]), batch["behavior"], batch["behavior_mask"])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                line = {"step": step, "epoch": epoch, "loss": loss.item(), "keys": batch["__key__"]}
                log.write(json.dumps({**line, "sha256": checksum(batch)}) + "\n")
                log.flush()
                if step == job.kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if step % job.checkpoint_every == 0:
                    checkpoint()
    checkpoint()


def read_checkpoint(directory: Path) -> dict[str, Any]:
    """Return the last checkpoint in `directory`: ``decoder``, ``optimizer`` and ``loader`` states, and ``step``."""
    saved: dict[str, Any] = torch.load(directory / CHECKPOINT, weights_only=True)
    return saved


def checksum(batch: dict[str, Any]) -> str:
    """Return the SHA-256 of all tensors of a batch: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()
