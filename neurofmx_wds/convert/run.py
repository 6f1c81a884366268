"""Carries out a conversion plan: shards made here or by workers, kept when a run is killed, shown when all are there.

Knows plans and shards; knows nothing of what is in a recording.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import FieldError, OutputError, ShardError, SourceError
from ..format.encoding import encode
from ..format.index import ShardIndex, index_path, modalities_of
from ..format.manifest import Manifest, config_hash
from ..format.shard_file import ShardFile
from ..format.verify import Problem, members, open_tar
from ..format.writer import shard_record
from ..storage.atomic import StagedDirectory, fsync_path, write_atomic
from ..storage.cache import ShardCache
from ..storage.location import Given, on_disk
from ..storage.processes import OrderedMap, ordered_map
from ..version import CREATED_BY
from .place import refuse_inside, staging
from .plan import (
    ConversionPlan,
    FileState,
    Piece,
    PlannedSource,
    ShardPlan,
    as_source_error,
    beside,
    differences,
    plan_source,
    stamp,
    what_went_wrong,
    why_empty,
)
from .sources import Source, SourceConfig

_PLAN_NAME = "plan.json"
_PLANS = "plan*.json"
_MADE = "made"  # in it, for each shard by name: the digest of what it was made of
_MAKING = ".making-"  # begins the name of the directory in which a worker makes a shard
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


def _read(piece: Piece) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A piece's samples; whatever goes wrong is the source's error."""
    try:
        yield from _opened.get(piece.file, piece.config).read(piece.start, piece.stop)
        piece.file.check()
        if not gc.isenabled():
            gc.collect(1)  # of what is new; of all it takes long
    except Exception as error:
        _opened.close()
        raise what_went_wrong(error, piece.file) from error


def write_shard(directory: Path, shard: ShardPlan) -> str:
    """Make one shard and its index in `directory`.

    It may be made twice at the same time, as when a cluster gives a silent worker's work to another one.

    Returns:
        Its file name.

    Raises:
        SourceError: one of its sources cannot be read, or gives what no shard can hold.
        OutputError: it cannot be written.
    """
    try:
        _begin(directory, shard)
        with tempfile.TemporaryDirectory(prefix=_MAKING, dir=directory) as aside:
            _fill(ShardFile(aside, shard.name, shard.compression, shard.field_format), shard)
            for name in files_of(shard.name):
                os.replace(Path(aside, name), directory / name)
        fsync_path(directory)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        problem = f"cannot be written: {error.strerror or error}"
        raise OutputError(problem, file=directory / shard.name, remedy="free space, or choose another place") from error
    return shard.name


def files_of(shard: str) -> tuple[str, str]:
    """Names of a shard's files, in the order in which they may appear: a shard that is there has its index."""
    return index_path(shard).name, shard


def _begin(directory: Path, shard: ShardPlan) -> None:
    """Note what the shard is made of, before it is; what stands there under its name may be made of something else."""
    note = directory / _MADE / shard.name
    if _read_note(note) == shard.digest():
        return
    with contextlib.suppress(FileNotFoundError):
        (directory / shard.name).unlink()
        fsync_path(directory)
    note.parent.mkdir(exist_ok=True)
    write_atomic(note, shard.digest().encode())


def _fill(file: ShardFile, shard: ShardPlan) -> None:
    try:
        for piece in shard.pieces:
            for sample, metadata in _read(piece):
                key = f"{shard.key_prefix}{shard.first + file.n_samples:09d}"
                try:
                    file.write({"__key__": key, **sample, "metadata": metadata})
                except FieldError as error:
                    raise as_source_error(error, piece.file.path) from error
        if file.n_samples != shard.n_samples:
            problem = f"gave {file.n_samples} samples for {shard.name}, not {shard.n_samples}"
            raise SourceError(problem, file=shard.pieces[-1].file.path, remedy="was it changed meanwhile?")
        file.close()
    except BaseException:
        file.abort()
        raise


def look_at(
    paths: Sequence[str | os.PathLike[str]],
    config: SourceConfig,
    apply: OrderedMap = map,
    show_progress: bool = False,
    cache: Path | None = None,
    keep: bool = False,
    turn: int = 0,
) -> tuple[PlannedSource | SourceError, ...]:
    """What every file will give, or what is wrong with it, in order.

    Args:
        paths: the files.
        config: how they are read.
        apply: how the work is spread, see :func:`neurofmx_wds.storage.processes.ordered_map`.
        show_progress: show a bar, on a terminal.
        cache: a directory where tasks may have written down what they saw.
        keep: write down there what is seen.
        turn: which file to begin with.
    """
    names = [os.fspath(path) for path in (*paths[turn:], *paths[:turn])]
    entries = apply(functools.partial(_look, config=config, cache=cache, keep=keep), names)
    seen = [*tqdm(entries, "planning", len(names), unit="file", disable=_hidden(show_progress))]
    back = len(names) - turn
    return beside([*seen[back:], *seen[:back]], config)


def _look(path: str, config: SourceConfig, cache: Path | None, keep: bool) -> PlannedSource | SourceError:
    try:
        seen = stamp(path)
    except (OSError, SourceError) as error:
        return as_source_error(error, path)
    about = [path, *astuple(seen), config.to_json(), CREATED_BY]
    note = (cache or Path()) / f"source-{config_hash({'about': about})[:32]}.json"
    if cache is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return PlannedSource.from_json(json.loads(note.read_bytes()), path)
    entry = plan_source(path, config, seen)
    if keep and isinstance(entry, PlannedSource):
        with contextlib.suppress(FileNotFoundError):  # another task has just put it there
            write_atomic(note, json.dumps(entry.to_json()).encode())
    return entry


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
    paths: Sequence[Given],
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
        paths: NWB, npz or npy files, in the order in which they shall be in the dataset: paths, URLs, or open binary
            files, which are copied to temporary ones meanwhile.
        output_dir: the dataset's directory; new or empty unless `overwrite` is set.
        config: how the files are read.
        overwrite: replace an existing dataset, in one step, when this one is finished.
        workers: processes to work with.
        executor: any :class:`concurrent.futures.Executor` to use instead.
        show_progress: show bars, on a terminal.
        **storage: ``shard_size``, ``shard_name_pattern``, ``compression``, ``field_format`` and
            ``key_prefix``.

    Returns:
        The plan and the manifest. Files that could not be read are in both; the dataset holds the others.

    Raises:
        SourceError: no file gives any sample.
        OutputError: the output is not empty, cannot be written, or a worker process died.
        ValueError: an impossible setting.
    """
    config = config or SourceConfig()
    ConversionPlan((), config, **storage)  # before anything is made on disk
    with on_disk(paths) as names, staging(output_dir, overwrite) as staged, working(workers, executor) as apply:
        refuse_inside(names, staged.target)
        plan = ConversionPlan(look_at(names, config, apply, show_progress, staged.path), config, **storage)
        return write_plan(plan, staged, apply, show_progress)


def working(workers: int, executor: Executor | None) -> contextlib.AbstractContextManager[OrderedMap]:
    """What a conversion is spread with: see :func:`neurofmx_wds.storage.processes.ordered_map`.

    Converting needs no torch, but webdataset imports it where it is installed: starting without takes half the time.
    """
    return ordered_map(workers, executor, ready=(__name__, f"{__package__}.sources.nwb"), without=("torch",))


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
        OutputError: the output cannot be written, a worker process died, or an unfinished run there had other settings
            or other files of these names and `staged` is not to be overwritten.
    """
    try:
        plan, manifest = build(plan, staged.path, apply, show_progress, anew=staged.overwrite)
    except NothingToWrite:
        if plan.n_samples:  # seen, but unreadable; what cannot even be seen may be there again tomorrow
            staged.discard()
        raise
    remove_notes(staged.path)
    staged.commit()
    return Conversion(plan, manifest.summary())


class NothingToWrite(SourceError):
    """No source gives any sample."""


def build(
    plan: ConversionPlan, directory: Path, apply: OrderedMap = map, show_progress: bool = False, anew: bool = False
) -> tuple[ConversionPlan, Manifest]:
    """Make the plan's shards and manifest in a directory that nobody reads yet; what is in it already is used again.

    Args:
        plan: what to make.
        directory: where; the record of what has been made stays there.
        apply: how the work is spread.
        show_progress: show a bar, on a terminal.
        anew: whether what was begun there with other settings may be thrown away.

    Returns:
        The plan that was carried out, without the sources that turned out to be unreadable, and the manifest.

    Raises:
        NothingToWrite: no source gives any sample.
        SourceError, OutputError: as :func:`write_plan`.
    """
    if not anew:
        _refuse_another(plan, directory)
    while plan.n_samples:
        try:
            _write_shards(plan, directory, apply, show_progress)
            break
        except SourceError as error:
            fewer = plan.without(error)
            if len(fewer.failures) == len(plan.failures):
                raise
            plan = fewer
        finally:
            _opened.close()
    else:
        raise nothing_to_write(plan)
    for left in directory.glob(f"{_MAKING}*"):  # by a worker that died
        shutil.rmtree(left, ignore_errors=True)
    manifest = _manifest(plan, directory)
    manifest.save(directory)
    return plan, manifest


def write_share(
    paths: Sequence[Given],
    output_dir: str | os.PathLike[str],
    config: SourceConfig | None = None,
    *,
    task: int,
    tasks: int,
    overwrite: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    show_progress: bool = False,
    **storage: Any,
) -> ConversionPlan:
    """Make one task's share of the shards, as one of several tasks of a job array that are given the same files.

    The shares lie in the staging directory; :func:`convert` with the same arguments then makes what is missing and puts
    the dataset in its place. The tasks may run at once or one after the other, on any machines that share the file
    system; the files are looked at once, by whichever task comes to them first.

    Args:
        paths, output_dir, config, overwrite, workers, executor, show_progress, **storage: as :func:`convert`.
        task: number of this task, from 0.
        tasks: how many there are.

    Returns:
        The whole plan; its ``failures`` are the sources that could not be read.

    Raises:
        SourceError: a source of this share cannot be read, or no file gives any sample.
        OutputError: as :func:`convert`.
        ValueError: an impossible setting.
    """
    config = config or SourceConfig()
    ConversionPlan((), config, **storage)
    if not 0 <= task < tasks:
        raise ValueError(f"task={task!r}: must be at least 0 and less than tasks ({tasks!r})")
    with (
        on_disk(paths) as names,
        staging(output_dir, overwrite, shared=True) as staged,
        working(workers, executor) as apply,
    ):
        refuse_inside(names, staged.target)
        turn = len(names) * task // tasks  # tasks that start together look at different files first
        seen = look_at(names, config, apply, show_progress, staged.path, keep=True, turn=turn)
        plan = ConversionPlan(seen, config, **storage)
        if not plan.n_samples:
            raise nothing_to_write(plan)
        if not overwrite:
            _refuse_another(plan, staged.path)
        shards = plan.shards()
        share = shards[len(shards) * task // tasks : len(shards) * (task + 1) // tasks]
        missing = _missing(share, staged.path)
        _note(plan, staged.path / f"plan-{task}.json")
        _make(share, missing, staged.path, apply, show_progress)
        _opened.close()
        return plan


def nothing_to_write(plan: ConversionPlan) -> NothingToWrite:
    """What to say of a plan without samples: what is wrong with each of its sources."""
    told = [entry if isinstance(entry, SourceError) else why_empty(entry) for entry in plan.entries]
    if not told:
        return NothingToWrite("nothing was converted: no file was taken", remedy="give one that can be read")
    if len(told) > 1:
        return NothingToWrite("\n  ".join(["nothing was converted:", *map(str, told)]))
    [only] = told
    return NothingToWrite(only.problem, file=only.file, sample=only.sample, member=only.member, remedy=only.remedy)


def _write_shards(plan: ConversionPlan, directory: Path, apply: OrderedMap, show_progress: bool) -> None:
    shards = plan.shards()
    missing = _missing(shards, directory)
    _clear(directory, {shard.name for shard in shards} - {shard.name for shard in missing})
    _note(plan, directory / _PLAN_NAME)
    _make(shards, missing, directory, apply, show_progress)


def _make(
    shards: Sequence[ShardPlan], missing: Sequence[ShardPlan], directory: Path, apply: OrderedMap, show_progress: bool
) -> None:
    total, left = (sum(shard.n_samples for shard in each) for each in (shards, missing))
    with tqdm(
        desc="converting", total=total, initial=total - left, unit="window", disable=_hidden(show_progress)
    ) as bar:
        for shard, _ in zip(missing, apply(functools.partial(write_shard, directory), missing), strict=True):
            bar.update(shard.n_samples)


def _note(plan: ConversionPlan, path: Path) -> None:
    """Write down what is being made of what, for a later run to compare itself with."""
    sources = {source.file.place: source.file.identity for source in plan.sources}
    write_atomic(path, json.dumps({"settings": plan.to_json(), "sources": sources}).encode())


def _refuse_another(plan: ConversionPlan, directory: Path) -> None:
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


def _missing(shards: Sequence[ShardPlan], directory: Path) -> list[ShardPlan]:
    """Which of these shards are not there, or not as they shall be."""
    return [s for s in shards if _read_note(directory / _MADE / s.name) != s.digest() or not _is_whole(directory, s)]


def _read_note(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return None


def _clear(directory: Path, done: set[str]) -> None:
    """Remove everything but these shards, their indexes and the notes on them."""
    keep = done | {index_path(name).name for name in done} | {_PLAN_NAME, _MADE}
    for entry in os.scandir(directory):
        if entry.name in keep:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def noted(directory: Path) -> list[str]:
    """The shards that were being made in a staging directory, or have been."""
    made = directory / _MADE
    return sorted(os.listdir(made)) if made.is_dir() else []


def remove_notes(directory: Path) -> None:
    """Remove what was noted for another try; what is left is the dataset alone."""
    for path in directory.glob(_PLANS):
        path.unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / _MADE)


def _is_whole(directory: Path, shard: ShardPlan) -> bool:
    path = directory / shard.name
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
    spaced = np.linspace(0, plan.n_samples - 1, _VALIDATED_SAMPLES).astype(int)
    spread = set((plan.first_sample + spaced).tolist())
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
            [(sample, metadata)] = _read(replace(piece, start=number, stop=number + 1))
            keys = {sample.pop("__key__", index.sample_keys[i]), index.sample_keys[i]}
            encoded = [encode(*pair, shard.field_format) for pair in {**sample, "metadata": metadata}.items()]
            given = {suffix: b"".join(buffers) for suffix, buffers, _ in encoded} if len(keys) == 1 else {}
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
