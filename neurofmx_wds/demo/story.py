"""The steps of the demo, and its verdict: did the killed and resumed run see the same batches as an uninterrupted one?

Knows the public names of the package; prints nothing itself.
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

from .. import NWBToWebDatasetConverter, create_webdataset_dataloader
from ..errors import NeurofmxError, OutputError
from ..storage.atomic import refuse_url
from .heldout import decode
from .recording import ARENA_M, simulate, write_nwb
from .train import LOG, Job, read_checkpoint, windows_within

RECORDING, PICTURE = "demo_recording.nwb", "demo.png"
SEGMENTS = "segments"
INTERRUPTED, UNINTERRUPTED = "runs/interrupted", "runs/uninterrupted"
SEGMENT_S, SHARD_SIZE = 10, 8
TRAINING_PART = 0.8
SECONDS = (50, 1800)
FEWEST_EPOCHS = 3
GUARD_S = 1.0  # between the parts: the length of a window

Report = Callable[[str], None]


def check_arguments(seconds: float, epochs: int, seed: int) -> None:
    """Raise ValueError if the demo cannot run with these arguments; see :func:`run`."""
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        raise ValueError(f"seconds={seconds:g}: it must be between {SECONDS[0]} and {SECONDS[1]}")
    if epochs < FEWEST_EPOCHS:
        raise ValueError(
            f"epochs={epochs}: it must be at least {FEWEST_EPOCHS}, so that a run can be interrupted and resumed"
        )
    if seed < 0:
        raise ValueError(f"seed={seed}: it must not be negative")


def run(
    output: Path,
    *,
    seconds: float = 240,
    epochs: int = 12,
    seed: int = 0,
    report: Report = lambda line: None,
) -> dict[str, Any]:
    """Simulate a recording, convert it, train on it, kill the training in mid-epoch, resume it, and compare.

    Args:
        output: directory for all results; it must be new, empty, or of an earlier demo, which is replaced.
        seconds: length of the recording in seconds, 50 to 1800.
        epochs: passes over the training windows, at least 3.
        seed: non-negative seed of the recording, the model and the order of the batches.
        report: receives each line of output.

    Returns:
        The results: ``windows`` (number of training windows), ``killed_after`` and ``resumed_after`` (in batches),
        ``state`` (of the loader, at the checkpoint), ``batches`` (of the uninterrupted run), ``redone`` (number of
        repeated batches), ``identical`` (True, since a difference is an error), ``error_cm`` and ``baseline_cm``
        (medians over the held-out bins, in centimetres), ``picture`` (a path, or None without matplotlib).

    Raises:
        ValueError: an argument is out of range.
        NeurofmxError: the resumed run differs from the uninterrupted one, or a training process failed.
        OutputError: `output` holds files that are not of an earlier demo.
    """
    check_arguments(seconds, epochs, seed)
    output = Path(output)
    _make_room(output)
    _record(output / RECORDING, seconds, seed, report)
    units = _convert(output, report)
    training, held_out = parts_of(seconds)
    job = Job(str(output / SEGMENTS), str(output / INTERRUPTED), units, epochs, seed, within=training)
    windows = _count_windows(job, training)
    report(f"   {training[0]:g}-{training[1]:g} s: {windows} windows of 1 s to train on, moved at random in each epoch")
    report(f"   {held_out[0]:g}-{held_out[1]:g} s: held out")
    interruption = _interrupt(job, windows, report)
    report("4. Start it again")
    _train(job)
    report("   it continued from the checkpoint to the end")
    report("5. Train again without interruption, to compare")
    uninterrupted = replace(job, directory=str(output / UNINTERRUPTED))
    _train(uninterrupted)
    comparison = _compare(job, uninterrupted, interruption, report)
    quality = _evaluate(output, job, held_out, interruption["killed_after"], report)
    return {"windows": windows, **interruption, **comparison, **quality}


def _make_room(output: Path) -> None:
    if output.exists() and not (output / RECORDING).exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError("holds files that are not of an earlier demo", file=output, remedy="choose another --output")
    refuse_url(output)
    output.mkdir(parents=True, exist_ok=True)
    for made in (SEGMENTS, INTERRUPTED, UNINTERRUPTED):
        shutil.rmtree(output / made, ignore_errors=True)


def _record(path: Path, seconds: float, seed: int, report: Report) -> None:
    report("1. Simulate a recording")
    session = simulate(seconds, seed)
    write_nwb(session, path)
    units, spikes = len(session.spike_times), sum(map(len, session.spike_times))
    report(f"   {seconds:g} s of foraging in a {ARENA_M:g} m arena: {units} units, {spikes:,} spikes, LFP")
    report(f"   {path}")


def _convert(output: Path, report: Report) -> int:
    """Store the recording in segments; return the number of units."""
    report("2. Convert it once; windows are cut while training")
    converter = NWBToWebDatasetConverter(
        output / SEGMENTS, shard_size=SHARD_SIZE, layout="segments", segment_s=SEGMENT_S
    )
    converter.convert_nwb_file(output / RECORDING)
    summary = converter.finalize()
    report(f"   {summary['total_samples']} segments of {SEGMENT_S} s, {summary['total_shards']} shards")
    return len(summary["modalities"]["spike_units"]["columns"])


def parts_of(seconds: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the part of a recording to train on and the part that is held out: start and stop of each, in seconds."""
    boundary = round(TRAINING_PART * seconds)
    return (0.0, float(boundary)), (boundary + GUARD_S, float(seconds))


def _count_windows(job: Job, within: tuple[float, float]) -> int:
    loader = create_webdataset_dataloader(job.shards, num_workers=0, windows=windows_within(within, jitter=True))
    return int(loader.state_dict()["num_samples"])


def _interrupt(job: Job, windows: int, report: Report) -> dict[str, Any]:
    """Train until the process is killed, about half way; return where it will resume."""
    steps = -(-windows // job.batch_size)
    kill_at = job.epochs // 2 * steps + steps // 2
    job = replace(job, checkpoint_every=max(2, min(job.checkpoint_every, kill_at // 3)))
    kill_at += kill_at % job.checkpoint_every == 0  # not at a checkpoint, so that some batches are lost
    report(f"3. Train a decoder, {job.epochs} epochs of {steps} batches, and kill it in mid-epoch")
    _train(replace(job, kill_at=kill_at))
    saved = read_checkpoint(Path(job.directory))
    state = saved["loader"]
    report(f"   SIGKILL after batch {kill_at}; last checkpoint after batch {saved['step']}:")
    report(f"   epoch {state['epoch']}, next: window {state['position']} of {state['num_samples']} in its order")
    return {"killed_after": kill_at, "resumed_after": saved["step"], "state": state}


def _train(job: Job) -> None:
    """Run a job in a separate process, and check how it ends."""
    ended = subprocess.run([sys.executable, "-m", __package__, json.dumps(asdict(job))], check=False).returncode
    expected = 0 if job.kill_at is None else -signal.SIGKILL
    if ended != expected:
        raise NeurofmxError(
            f"the training process ended with status {ended}, not {expected}",
            file=job.directory,
            remedy="see its error message above",
        )


def _log(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(job.directory) / LOG).read_text().splitlines()]


def _compare(job: Job, uninterrupted: Job, interruption: dict[str, Any], report: Report) -> dict[str, Any]:
    """Compare the two runs, batch by batch and weight by weight."""
    report("6. Compare")
    seen, reference = _log(job), _log(uninterrupted)
    killed, resumed = interruption["killed_after"], interruption["resumed_after"]
    expected = reference[:killed] + reference[resumed:]  # batches after the last checkpoint are repeated
    if seen != expected:
        differ = next((a for a, b in zip(seen, expected, strict=False) if a != b), {"step": "the end"})
        raise NeurofmxError(f"the runs differ, first at batch {differ['step']}", file=job.directory)
    weights, others = (read_checkpoint(Path(each.directory))["decoder"] for each in (job, uninterrupted))
    if not all(torch.equal(weights[name], others[name]) for name in others):
        raise NeurofmxError("the batches are equal, but the trained weights differ", file=job.directory)
    report(f"   all {len(reference)} batches are equal: samples, order, bytes, loss")
    report(f"   the {killed - resumed} batches between checkpoint and kill were repeated, and equal both times")
    report("   the trained weights are equal, bit for bit")
    return {"batches": len(reference), "redone": killed - resumed, "identical": True}


def _evaluate(
    output: Path, job: Job, held_out: tuple[float, float], killed_after: int, report: Report
) -> dict[str, Any]:
    """Decode the held-out windows with the model of the resumed run, and draw the results."""
    report("7. Decode the position in the held-out part")
    weights = read_checkpoint(Path(job.directory))["decoder"]
    parts = [windows_within(part, jitter=False) for part in (held_out, job.within or (0.0, held_out[0]))]
    heldout = decode(weights, output / SEGMENTS, *parts)
    report(
        f"   median error {heldout.error_cm:.1f} cm; constant guess of the mean position: {heldout.baseline_cm:.1f} cm"
    )
    picture: str | None = str(output / PICTURE)
    try:
        from .picture import draw
    except ImportError:
        picture = None
        report("   to get a picture: pip install 'neurofmx-wds[plot]'")
    else:
        draw(output / PICTURE, heldout, _log(job), killed_after)
        report(f"   {picture}")
    return {"error_cm": heldout.error_cm, "baseline_cm": heldout.baseline_cm, "picture": picture}
