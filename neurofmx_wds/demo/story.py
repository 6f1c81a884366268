"""Tells the demo, step by step, and judges it: did the killed and resumed run see what the run left alone saw?

Knows the package's public names; prints nothing itself.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import NWBToWebDatasetConverter
from ..errors import NeurofmxError, OutputError
from ..storage.atomic import refuse_url
from .heldout import decode
from .recording import ARENA_M, simulate, write_nwb
from .train import LOG, Job, read_checkpoint

RECORDING, PICTURE = "demo_recording.nwb", "demo.png"
TRAINING, HELD_OUT = "shards/train", "shards/held_out"
INTERRUPTED, UNINTERRUPTED = "runs/interrupted", "runs/uninterrupted"
BIN_MS, BINS, SHARD_SIZE = 20, 50, 64
TRAINING_PART = 0.8
SECONDS = (50, 1800)
FEWEST_EPOCHS = 3
GUARD_S = BINS * BIN_MS / 1000

Say = Callable[[str], None]


def check_arguments(seconds: float, epochs: int, seed: int) -> None:
    """Raises ValueError where the demo cannot run with these; see :func:`run`."""
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise ValueError(f"seconds={seconds:g}: the recording lasts {SECONDS[0]} to {SECONDS[1]} s")
    if epochs < FEWEST_EPOCHS:
        raise ValueError(f"epochs={epochs}: there must be at least {FEWEST_EPOCHS}, to interrupt and resume")
    if seed < 0:
        raise ValueError(f"seed={seed}: it must not be negative")


def run(
    output: Path,
    *,
    seconds: float = 240,
    epochs: int = 12,
    seed: int = 0,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Makes a recording, converts it, trains on it, kills the training in mid-epoch, resumes it, and compares.

    Args:
        output: directory for everything that is made; new, empty, or an earlier demo's, which is replaced.
        seconds: length of the recording; 50 to 1800.
        epochs: passes over the training windows; at least 3.
        seed: not negative; of the recording, the model and the order of the batches.
        say: takes each line of the story.

    Returns:
        What was found: ``windows`` (to train on), ``killed_after`` and ``resumed_after`` (batches), ``state`` (the
        loader's, resumed from), ``batches`` (of the uninterrupted run), ``redone`` (batches), ``identical`` (True: a
        difference is an error), ``error_cm`` and ``baseline_cm`` (medians over the held-out bins, centimetres),
        ``picture`` (a path, or None without matplotlib).

    Raises:
        ValueError: an argument is out of range.
        NeurofmxError: the resumed run differs from the uninterrupted one, or a training process failed.
        OutputError: `output` holds something that is not an earlier demo's.
    """
    check_arguments(seconds, epochs, seed)
    output = Path(output)
    _make_room(output)
    _record(output / RECORDING, seconds, seed, say)
    windows, units = _convert(output, seconds, say)
    job = Job(str(output / TRAINING), str(output / INTERRUPTED), units, epochs, seed)
    interruption = _interrupt(job, windows, say)
    say("4. Start it again")
    _train(job)
    say("   it went on there, to the end")
    say("5. Train once more, undisturbed, to compare")
    undisturbed = replace(job, directory=str(output / UNINTERRUPTED))
    _train(undisturbed)
    comparison = _compare(job, undisturbed, interruption, say)
    quality = _evaluate(output, job, interruption["killed_after"], say)
    return {"windows": windows, **interruption, **comparison, **quality}


def _make_room(output: Path) -> None:
    if output.exists() and not (output / RECORDING).exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError("is in use, and not by an earlier demo", file=output, remedy="choose another --output")
    refuse_url(output)
    output.mkdir(parents=True, exist_ok=True)
    for made in (TRAINING, HELD_OUT, INTERRUPTED, UNINTERRUPTED):
        shutil.rmtree(output / made, ignore_errors=True)


def _record(path: Path, seconds: float, seed: int, say: Say) -> None:
    say("1. Make a recording")
    session = simulate(seconds, seed)
    write_nwb(session, path)
    units, spikes = len(session.spike_times), sum(map(len, session.spike_times))
    say(f"   {seconds:g} s of foraging in a {ARENA_M:g} m arena: {units} units, {spikes:,} spikes, LFP")
    say(f"   {path}")


def _convert(output: Path, seconds: float, say: Say) -> tuple[int, int]:
    """Makes both datasets; gives the numbers of training windows and of units."""
    say("2. Convert it to shards: the beginning to train on, the end to test with")
    boundary = round(TRAINING_PART * seconds)
    parts = {TRAINING: (0.0, float(boundary)), HELD_OUT: (boundary + GUARD_S, float(seconds))}
    for directory, interval in parts.items():
        converter = NWBToWebDatasetConverter(
            output / directory,
            shard_size=SHARD_SIZE,
            bin_size_ms=BIN_MS,
            sequence_length=BINS,
            overlap=0.5,
            intervals=[interval],
        )
        converter.convert_nwb_file(output / RECORDING)
        summary = converter.finalize()
        windows, shards = summary["total_samples"], summary["total_shards"]
        say(f"   {interval[0]:g}-{interval[1]:g} s: {windows} windows of {BINS} bins of {BIN_MS} ms, {shards} shards")
        if directory == TRAINING:
            found = windows, summary["modalities"]["spikes"]["shape"][-1]
    return found


def _interrupt(job: Job, windows: int, say: Say) -> dict[str, Any]:
    """Trains and has the process killed about half way; says where it will go on."""
    steps = -(-windows // job.batch_size)
    kill_at = job.epochs // 2 * steps + steps // 2
    job = replace(job, checkpoint_every=max(2, min(job.checkpoint_every, kill_at // 3)))
    kill_at += kill_at % job.checkpoint_every == 0  # not at a checkpoint: some batches must be lost
    say(f"3. Train a decoder, {job.epochs} epochs of {steps} batches, and kill it in mid-epoch")
    _train(replace(job, kill_at=kill_at))
    saved = read_checkpoint(Path(job.directory))
    state = saved["loader"]
    say(f"   SIGKILL after batch {kill_at}; last checkpoint after batch {saved['step']}:")
    say(f"   epoch {state['epoch']}, next is sample {state['sample_offset']} of shard {state['shard_idx']}")
    return {"killed_after": kill_at, "resumed_after": saved["step"], "state": state}


def _train(job: Job) -> None:
    """Runs a job in a process of its own, which must end as the job says."""
    ended = subprocess.run([sys.executable, "-m", __package__, json.dumps(asdict(job))], check=False).returncode
    expected = 0 if job.kill_at is None else -signal.SIGKILL
    if ended != expected:
        raise NeurofmxError(
            f"the training process ended with status {ended}, not {expected}",
            file=job.directory,
            remedy="its own message is above",
        )


def _log(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job.directory) / LOG).read_text().splitlines()]


def _compare(job: Job, undisturbed: Job, interruption: dict[str, Any], say: Say) -> dict[str, Any]:
    """Compares the two runs, batch by batch and weight by weight."""
    say("6. Compare")
    seen, reference = _log(job), _log(undisturbed)
    killed, resumed = interruption["killed_after"], interruption["resumed_after"]
    expected = reference[:killed] + reference[resumed:]  # what was lost with the kill is done again
    if seen != expected:
        differ = next((a for a, b in zip(seen, expected, strict=False) if a != b), {"step": "the end"})
        raise NeurofmxError(f"the runs differ, first at batch {differ['step']}", file=job.directory)
    weights, others = (read_checkpoint(Path(each.directory))["decoder"] for each in (job, undisturbed))
    if not all(torch.equal(weights[name], others[name]) for name in others):
        raise NeurofmxError("the batches agree, but the trained weights differ", file=job.directory)
    say(f"   all {len(reference)} batches are the same: samples, order, bytes, loss")
    say(f"   {killed - resumed} came twice, those from the checkpoint to the kill: the same both times")
    say("   the trained weights are the same, bit for bit")
    return {"batches": len(reference), "redone": killed - resumed, "identical": True}


def _evaluate(output: Path, job: Job, killed_after: int, say: Say) -> dict[str, Any]:
    """Decodes the held-out windows with the resumed run's model, and draws what came out."""
    say("7. Decode where the animal was, at times that training never saw")
    weights = read_checkpoint(Path(job.directory))["decoder"]
    heldout = decode(weights, output / HELD_OUT, output / TRAINING)
    say(f"   median error {heldout.error_cm:.1f} cm; always guessing the mean place: {heldout.baseline_cm:.1f} cm")
    picture: str | None = str(output / PICTURE)
    try:
        from .picture import draw
    except ImportError:
        picture = None
        say("   for a picture of it: pip install 'neurofmx-wds[plot]'")
    else:
        draw(output / PICTURE, heldout, _log(job), killed_after)
        say(f"   {picture}")
    return {"error_cm": heldout.error_cm, "baseline_cm": heldout.baseline_cm, "picture": picture}
