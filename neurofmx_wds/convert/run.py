"""Carries out a conversion plan: shards made here or by workers, kept when a run is killed, shown when all are there.

Knows plans and shards; knows nothing of what is in a recording.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import fields
from ..atomic import StagedDirectory, write_atomic
from ..cache import ShardCache
from ..errors import FieldError, OutputError, ShardError, SourceError
from ..index import ShardIndex, index_path
from ..manifest import Manifest
from ..processes import OrderedMap, ordered_map
from ..verify import Problem, members, open_tar
from ..version import CREATED_BY
from ..writer import ShardFile, modalities_of, shard_record
from .plan import ConversionPlan, FileState, Piece, PlannedSource, ShardPlan, as_source_error, plan_source
from .sources import Source, SourceConfig

_PLAN_NAME = "plan.json"
_VALIDATED_SAMPLES = 100


class _OpenSource(threading.local):
    """The source that this thread read last, kept open for the next shard."""

    key: tuple[FileState, SourceConfig] | None = None
    source: Source | None = None

    def get(self, file: FileState, config: SourceConfig) -> Source:
        if self.source is None or self.key != (file, config):
            self.close()
            self.source, self.key = file.open(config), (file, config)
        return self.source

    def close(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            source.close()


_opened = _OpenSource()


def _read(piece: Piece, config: SourceConfig) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A piece's samples; whatever goes wrong is the source's error."""
    try:
        yield from _opened.get(piece.file, config).read(piece.start, piece.stop)
    except Exception as error:
        raise as_source_error(error, piece.file.path) from error


def write_shard(directory: Path, shard: ShardPlan) -> str:
    """Make one shard and its index in `directory`.

    Returns:
        Its file name.

    Raises:
        SourceError: one of its sources cannot be read, or gives what no shard can hold.
        OutputError: it cannot be written.
    """
    try:
        file = ShardFile(directory, shard.name, shard.compression, shard.field_format)
        try:
            for piece in shard.pieces:
                for sample, metadata in _read(piece, shard.config):
                    key = f"sample_{shard.first + file.n_samples:09d}"
                    try:
                        file.write({**sample, "metadata": metadata, "__key__": key})
                    except FieldError as error:
                        raise as_source_error(error, piece.file.path) from error
            if file.n_samples != shard.n_samples:
                problem = f"gave {file.n_samples} samples for {shard.name}, not {shard.n_samples}"
                raise SourceError(problem, file=shard.pieces[-1].file.path, remedy="was it changed meanwhile?")
            file.close()
        except BaseException:
            file.abort()
            raise
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        problem = f"cannot be written: {error.strerror or error}"
        raise OutputError(problem, file=directory / shard.name, remedy="free space, or choose another place") from error
    return shard.name


def look_at(
    paths: Sequence[str | os.PathLike[str]], config: SourceConfig, apply: OrderedMap = map, show_progress: bool = False
) -> tuple[PlannedSource | SourceError, ...]:
    """What every file will give, or what is wrong with it, in order.

    Args:
        paths: the files.
        config: how they are read.
        apply: how the work is spread, see :func:`neurofmx_wds.processes.ordered_map`.
        show_progress: show a bar, on a terminal.
    """
    names = [os.fspath(path) for path in paths]
    entries = apply(functools.partial(plan_source, config=config), names)
    return tuple(tqdm(entries, "planning", len(names), unit="file", disable=_hidden(show_progress)))


def _hidden(show_progress: bool) -> bool | None:
    return None if show_progress else True  # tqdm's None: only on a terminal


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        plan: what was made of what; its ``failures`` are the sources that could not be read.
        summary: the dataset's manifest.
    """

    plan: ConversionPlan
    summary: dict[str, Any]


def convert(
    paths: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    config: SourceConfig | None = None,
    *,
    overwrite: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    show_progress: bool = False,
    **storage: Any,
) -> Conversion:
    """Turn files into a dataset, which appears in one step when it is whole.

    The result's bytes depend on the files and the settings alone: not on `workers`, the executor, or on how often the
    run was killed and started again. Started again, it keeps the finished shards.

    Args:
        paths: NWB, npz or npy files, in the order in which they shall be in the dataset.
        output_dir: the dataset's directory; new or empty unless `overwrite` is set.
        config: how the files are read.
        overwrite: replace an existing dataset, in one step, when this one is finished.
        workers: processes to work with.
        executor: any :class:`concurrent.futures.Executor` to use instead.
        show_progress: show bars, on a terminal.
        **storage: ``shard_size``, ``shard_name_pattern``, ``compression`` and ``field_format``.

    Returns:
        The plan and the manifest. Files that could not be read are in both; the dataset holds the others.

    Raises:
        SourceError: no file gives any sample.
        OutputError: the output is not empty, cannot be written, or a worker process died.
        ValueError: an impossible setting.
    """
    config = config or SourceConfig()
    ConversionPlan((), config, **storage)  # before anything is made on disk
    with staging(output_dir, overwrite) as staged, ordered_map(workers, executor) as apply:
        plan = ConversionPlan(look_at(paths, config, apply, show_progress), config, **storage)
        return write_plan(plan, staged, apply, show_progress)


@contextlib.contextmanager
def staging(output_dir: str | os.PathLike[str], overwrite: bool) -> Iterator[StagedDirectory]:
    """Hold the output's staging directory; when it is let go of, finished shards stay there for the next run."""
    staged = StagedDirectory(output_dir, overwrite)
    try:
        yield staged
    finally:
        with contextlib.suppress(OSError):
            staged.path.rmdir()  # nothing was made
        staged.release()


def write_plan(
    plan: ConversionPlan, staged: StagedDirectory, apply: OrderedMap = map, show_progress: bool = False
) -> Conversion:
    """Make the plan's shards and put the dataset in its place.

    What an unfinished run left in the staging directory is used again, shard by shard, wherever this plan would make
    the very same bytes; the rest of it is removed. A source that turns out to be unreadable half way is taken out of
    the plan, and the shards before it stay.

    Args:
        plan: what to make.
        staged: where; it is released in the end, or left as it is for another try when an error is raised.
        apply: how the work is spread.
        show_progress: show a bar, on a terminal.

    Raises:
        SourceError: no source gives any sample.
        OutputError: the output cannot be written, or a worker process died.
    """
    while plan.n_samples:
        try:
            _write_shards(plan, staged.path, apply, show_progress)
            break
        except SourceError as error:
            fewer = plan.without(error)
            if len(fewer.failures) == len(plan.failures):
                raise
            plan = fewer
            if not plan.n_samples:
                staged.discard()
        finally:
            _opened.close()
    else:
        raise _nothing_to_write(plan)
    manifest = _manifest(plan, staged.path)
    manifest.save(staged.path)
    (staged.path / _PLAN_NAME).unlink()
    staged.commit()
    return Conversion(plan, manifest.summary())


def _nothing_to_write(plan: ConversionPlan) -> SourceError:
    if len(plan.entries) == 1 and plan.failures:
        return plan.failures[0]
    told = [str(error) for error in plan.failures]
    told += [f"{source.file.path}: no window fits" for source in plan.sources]
    return SourceError(
        "\n  ".join(["nothing was converted:", *told]),
        remedy="shorter windows (sequence_length) fit shorter recordings" if plan.sources else None,
    )


def _write_shards(plan: ConversionPlan, directory: Path, apply: OrderedMap, show_progress: bool) -> None:
    shards = plan.shards()
    missing = _prepare(shards, directory)
    done = plan.n_samples - sum(shard.n_samples for shard in missing)
    with tqdm(
        desc="converting", total=plan.n_samples, initial=done, unit="window", disable=_hidden(show_progress)
    ) as bar:
        for shard, _ in zip(missing, apply(functools.partial(write_shard, directory), missing), strict=True):
            bar.update(shard.n_samples)


def _prepare(shards: Sequence[ShardPlan], directory: Path) -> list[ShardPlan]:
    """Clear the staging directory of all that these shards are not made of, and say which are missing."""
    digests = {shard.name: shard.digest() for shard in shards}
    try:
        earlier = json.loads((directory / _PLAN_NAME).read_bytes())
    except (OSError, ValueError):
        earlier = {}
    done = {s.name for s in shards if earlier.get(s.name) == digests[s.name] and _is_whole(directory / s.name, s)}
    keep = done | {index_path(name).name for name in done} | {_PLAN_NAME}
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        elif entry.name not in keep:
            os.unlink(entry)
    write_atomic(directory / _PLAN_NAME, json.dumps(digests).encode())
    return [shard for shard in shards if shard.name not in done]


def _is_whole(path: Path, shard: ShardPlan) -> bool:
    try:
        index = ShardIndex.load(index_path(path))
        return (index.n_samples, index.file_size) == (shard.n_samples, path.stat().st_size)
    except (OSError, ShardError):
        return False


def _manifest(plan: ConversionPlan, directory: Path) -> Manifest:
    def indexes() -> Iterator[ShardIndex]:
        return (ShardIndex.load(index_path(directory / shard.name)) for shard in plan.shards())

    modalities = modalities_of(indexes())
    for name, about in plan.shared().items():
        modalities.setdefault(name, {}).update(about)
    return Manifest(
        shard_size=plan.shard_size,
        compression=plan.compression,
        modalities=modalities,
        shards=[shard_record(index) for index in indexes()],
        sources=plan.reports(),
        config=plan.to_json(),
        created_by=CREATED_BY,
    )


def compare_with_sources(conversion: Conversion, directory: str | os.PathLike[str]) -> list[Problem]:
    """Read samples of a finished dataset again, from the sources, and say where the shards hold something else.

    Looks at the first and last sample of every source in a shard, and at some evenly spread over the dataset.

    Args:
        conversion: what was made.
        directory: where the dataset is.
    """
    plan, problems = conversion.plan, []
    spread = set(np.linspace(0, plan.n_samples - 1, _VALIDATED_SAMPLES).astype(int).tolist())
    for shard in plan.shards():
        with tempfile.TemporaryDirectory(prefix="neurofmx-validate-") as cache:
            problems += _compare_shard(shard, Path(directory) / shard.name, spread, ShardCache(cache))
    _opened.close()
    return problems


def _compare_shard(shard: ShardPlan, path: Path, spread: set[int], cache: ShardCache) -> list[Problem]:
    differing = []
    index = ShardIndex.load(index_path(path))
    with open_tar(path, cache) as tar:
        for i, piece, number in _to_compare(shard, spread):
            stored = {suffix: payload for _, suffix, payload in members(index, tar, range(i, i + 1))}
            [(sample, metadata)] = _read(Piece(piece.file, number, number + 1), shard.config)
            encoded = [fields.encode(*pair, shard.field_format) for pair in {**sample, "metadata": metadata}.items()]
            given = {suffix: b"".join(buffers) for suffix, buffers, _ in encoded}
            names = sorted(suffix for suffix in stored | given if stored.get(suffix) != given.get(suffix))
            differing += [(index.sample_keys[i], suffix) for suffix in names]
    what = "the shard does not hold what the source gives"
    return [Problem(what, str(path), key, suffix, "convert again") for key, suffix in differing]


def _to_compare(shard: ShardPlan, spread: set[int]) -> Iterator[tuple[int, Piece, int]]:
    """Place in the shard, piece, and number in the piece's source."""
    begin = 0
    for piece in shard.pieces:
        for number in range(piece.start, piece.stop):
            i = begin + number - piece.start
            if number in (piece.start, piece.stop - 1) or shard.first + i in spread:
                yield i, piece, number
        begin += piece.stop - piece.start
