"""A look at the files before anything is converted: what each will give, or what is wrong with it.

Knows sources by their descriptions; writes nothing but notes for other tasks.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from ..errors import SourceError
from ..format.manifest import config_hash
from ..storage.atomic import write_atomic
from ..storage.location import Version, is_url, name_of
from ..storage.progress import progress_bar
from ..version import CREATED_BY
from .config import Task, Work
from .file_state import FileState, as_source_error, stamp, what_went_wrong
from .plan import PlannedSource, in_utf8
from .sources import SourceConfig, SourceDescription

logger = logging.getLogger("neurofmx_wds")


@dataclass(frozen=True)
class Notes:
    """What tasks write down for each other of the files that they have looked at.

    Attributes:
        directory: where.
        task: the task that writes; None: only read. Tasks that start together look at different files first.
    """

    directory: Path
    task: Task | None = None

    def find(self, path: str, key: str) -> PlannedSource | None:
        """Return what was noted of the file at `path`, under this key."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return PlannedSource.from_json(json.loads(self._place(key).read_bytes()), path)
        return None

    def write(self, key: str, entry: PlannedSource) -> None:
        """Note what a file gives."""
        with contextlib.suppress(FileNotFoundError):  # another task has just put it there
            write_atomic(self._place(key), json.dumps(entry.to_json()).encode())

    def _place(self, key: str) -> Path:
        return self.directory / f"source-{key[:32]}.json"


def look_at(
    paths: Sequence[str | os.PathLike[str]], config: SourceConfig, work: Work = Work(), notes: Notes | None = None
) -> tuple[PlannedSource | SourceError, ...]:
    """Return what every file will give, or what is wrong with it, in order.

    Args:
        paths: the files.
        config: how they are read.
        work: how the work is spread.
        notes: what tasks have noted of them.
    """
    turn = notes.task.of(len(paths)).start if notes and notes.task else 0
    given = [os.fspath(path) for path in (*paths[turn:], *paths[:turn])]
    entries = work.apply(functools.partial(_look, config=config, notes=notes), given)
    seen = []
    for path, entry in zip(given, progress_bar(entries, len(given), "file", work.show_progress, desc="planning"),
                           strict=True):  # fmt: skip
        found = f"{entry.description.n_samples} samples" if isinstance(entry, PlannedSource) else "cannot be converted"
        logger.info("planned %s: %s", name_of(path), found)
        seen.append(entry)
    back = len(given) - turn
    return reject_conflicts([*seen[back:], *seen[:back]], config)


def _look(path: str, config: SourceConfig, notes: Notes | None) -> PlannedSource | SourceError:
    try:
        seen = stamp(path)
    except (OSError, SourceError) as error:
        return as_source_error(error, path)
    key = config_hash({"about": [path, *astuple(seen), config.to_json(), CREATED_BY]})
    known = notes and notes.find(path, key)
    if known:
        return known
    entry = plan_source(path, config, seen)
    if notes and notes.task and isinstance(entry, PlannedSource):
        notes.write(key, entry)
    return entry


def plan_source(path: str, config: SourceConfig, seen: Version | None = None) -> PlannedSource | SourceError:
    """Look at one file, seen before: what it will give, or what is wrong with it."""
    try:
        state = FileState.of(path, seen)
    except Exception as error:  # whatever is wrong with one file, the others go on
        return as_source_error(error, path)
    try:
        return PlannedSource(state, _describe(state, config))
    except Exception as error:
        return what_went_wrong(error, state)


def plan_again(known: PlannedSource, config: SourceConfig) -> PlannedSource | SourceError:
    """Look at a known file once more: what it will give when it is read with `config` instead of the plan's."""
    try:
        return PlannedSource(known.file, _describe(known.file, config), config)
    except Exception as error:
        return what_went_wrong(error, known.file)


def _describe(file: FileState, config: SourceConfig) -> SourceDescription:
    source = file.open(config)
    try:
        found = source.describe()
        found = replace(found, fields=in_utf8(found.fields), report=in_utf8(found.report))
        file.check()
    finally:
        source.close()
    if not is_url(file.path) or file.tag:
        return found
    doubt = "the server names no version of it: a change that keeps its size would not be noticed"
    return replace(found, report={**found.report, "warnings": [*found.report.get("warnings", []), doubt]})


def reject_conflicts(
    entries: Iterable[PlannedSource | SourceError],
    config: SourceConfig,
    labels: Sequence[str] | None = None,
    keys: Iterable[str] = (),
) -> tuple[PlannedSource | SourceError, ...]:
    """Put an error in the place of each source that cannot be in one dataset with those before it.

    Its labels stand for something else, or it gives its samples keys that are taken.

    Args:
        entries: the sources.
        config: how they are read.
        labels: names of the labels that the dataset has already.
        keys: keys that it has already.
    """
    taken, checked = set(keys), list(entries)
    keyed = config.format == "files" and (len(checked) > 1 or bool(taken))
    for i, entry in enumerate(checked):
        if isinstance(entry, PlannedSource):
            own = entry.description.fields.get("label", {}).get("names")
            labels = labels or own
            if own != labels:
                problem = f"its labels are {_shortened(own)}, those of the sources before it {_shortened(labels)}"
                checked[i] = SourceError(problem, file=entry.file.path, remedy="give each a dataset of its own")
            elif keyed:
                checked[i] = _with_own_keys(entry, config, taken)
    return tuple(checked)


def _shortened(labels: Sequence[str] | None) -> str:
    first = ", ".join((labels or ())[:5])
    return f"{first}, … ({len(labels)})" if labels and len(labels) > 5 else first or "none"


def _with_own_keys(entry: PlannedSource, config: SourceConfig, taken: set[str]) -> PlannedSource | SourceError:
    from .sources.files import FilesSource

    try:
        keys = FilesSource(entry.file.path, config.files).keys
    except SourceError as error:
        return as_source_error(error, entry.file.path)
    common = taken.intersection(keys)
    if common:
        problem = f"{len(common):,} of its samples have keys that others have, such as {min(common)!r}"
        remedy = "give the directory that holds both: the folders' names then tell the keys apart"
        return SourceError(problem, file=entry.file.path, remedy=remedy)
    taken.update(keys)
    return entry
