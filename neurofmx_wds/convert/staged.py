"""What a run notes of the shards that it makes, so that the next one can go on where it stopped.

Knows plans, and the files in a staging directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError, ShardError
from ..format.index import ShardIndex, index_path
from ..storage.atomic import write_atomic
from .plan import ConversionPlan, ShardPlan, differences
from .shards import MADE, STATISTICS, read_note, read_statistics

PLAN_NAME = "plan.json"
_PLANS = "plan*.json"


def note(plan: ConversionPlan, path: Path) -> None:
    """Write down what is being made of what, for a later run to compare itself with."""
    sources = {source.file.place: source.file.identity for source in plan.sources}
    write_atomic(path, json.dumps({"settings": plan.to_json(), "sources": sources}).encode())


def refuse_another(plan: ConversionPlan, directory: Path) -> None:
    """Refuse to take over what was begun with other settings, or from files that have changed since."""
    now = {source.file.place: source.file.identity for source in plan.sources}
    for path in sorted(directory.glob(_PLANS)):
        noted = json.loads(path.read_bytes())
        told = differences(noted["settings"], plan.to_json())
        told += [f"{name} has changed" for name, known in noted["sources"].items() if now.get(name, known) != known]
        if told:
            raise OutputError(
                f"a run that was begun here and not finished differs: {'; '.join(told)}",
                file=directory,
                remedy="give the same again to finish it, or overwrite=True (--overwrite) to begin anew",
            )


def missing(shards: Sequence[ShardPlan], directory: Path) -> list[ShardPlan]:
    """Which of these shards are not there, or not as they shall be."""
    return [shard for shard in shards if not _is_made(directory, shard)]


def _is_made(directory: Path, shard: ShardPlan) -> bool:
    noted = read_note(directory / MADE / shard.name) == shard.digest() and _is_whole(directory, shard)
    return noted and read_statistics(directory, shard) is not None


def clear(directory: Path, done: set[str]) -> None:
    """Remove everything but these shards, their indexes and the notes on them."""
    keep = done | {index_path(name).name for name in done} | {PLAN_NAME, MADE, STATISTICS}
    for entry in os.scandir(directory):
        if entry.name in keep:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def noted(directory: Path) -> list[str]:
    """Return the shards that have been begun or made in a staging directory."""
    made = directory / MADE
    return sorted(os.listdir(made)) if made.is_dir() else []


def remove_notes(directory: Path) -> None:
    """Remove what was noted for another try; what is left is the dataset alone."""
    for path in directory.glob(_PLANS):
        path.unlink()
    for name in (MADE, STATISTICS):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(directory / name)


def _is_whole(directory: Path, shard: ShardPlan) -> bool:
    path = directory / shard.name
    try:
        index = ShardIndex.load(index_path(path))
        return (index.n_samples, index.file_size) == (shard.n_samples, path.stat().st_size)
    except (OSError, ShardError):
        return False
