"""The package's exceptions. Every message names the file and the sample at fault, and what to do about it.

Knows nothing of the rest of the package.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

# What remedies advise. The command line adds to each the command that does it.
REBUILD_INDEX = "rebuild the index"
INDEX_SHARDS = "index the shards"
REPAIR_DATASET = "repair the dataset"
CONVERT_FIRST = "convert it first"
MERGE_DATASETS = "merge the datasets"
OVERWRITE = "overwrite the dataset"
INSPECT = "inspect it"
SHOW_DATASET = "show the dataset"
RESTORE = f"restore the shard from a copy, or {REPAIR_DATASET} if it was converted"

_MOST_NAMED = 20
_P = ParamSpec("_P")
_R = TypeVar("_R")


def hide_secrets(text: str) -> str:
    """Replace the credentials that URLs in a text may contain: passwords, and what follows a question mark."""
    text = re.sub(r"\b([a-z][a-z0-9+.-]*://)[^/\s'\"@]*@", r"\1***@", text)
    return re.sub(r"\b([a-z][a-z0-9+.-]*://[^?\s'\"]*)\?[^\s'\"]+", r"\1?***", text)


def printable(text: str, keep: str = "") -> str:
    r"""Escape the characters that act on a terminal: control codes, text direction marks, lone surrogates.

    Args:
        text: text that may come from a file.
        keep: control characters that stay, such as a line break.

    Example:
        >>> printable("µV\x1b[2J")
        'µV\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def join_some(items: Iterable[object]) -> str:
    """Join items for a message: the first 20, and how many more there are.

    Example:
        >>> join_some(["spikes", "lfp"]), join_some([])
        ('spikes, lfp', 'none')
    """
    names = [str(item) for item in items]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more if names else "none"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Ask about the known name that is most similar to `name`; empty if none is.

    Example:
        >>> did_you_mean("spike", ["spikes", "lfp"])
        'did you mean spikes?'
    """
    close = difflib.get_close_matches(str(name), list(map(str, known)), 1)
    return f"did you mean {close[0]}?" if close else ""


def available_hint(known: Iterable[object], wanted: object) -> str:
    """List what is available, after a question about the most similar name.

    Example:
        >>> available_hint(["spikes", "lfp"], "spike")
        'did you mean spikes? there are spikes, lfp'
    """
    known = list(known)
    return f"{did_you_mean(wanted, known)} there are {join_some(known)}".lstrip()


class NeurofmxError(Exception):
    """Base class of all errors that data, or the use of it, can cause.

    Args:
        problem: what is wrong, one sentence.
        file: the file at fault.
        sample: the key of the sample at fault.
        member: the field or tar member at fault.
        remedy: what the user can do about it. It names no command: the command line adds these.

    Example:
        >>> print(ShardError("the shard is missing", file="shards/shard_000003.tar", remedy="restore it"))
        shards/shard_000003.tar: the shard is missing (restore it)
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | os.PathLike[str] | None = None,
        sample: str | None = None,
        member: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem = hide_secrets(problem)
        self.file = None if file is None else os.fspath(file)
        self.sample = sample
        self.member = member
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        place = [
            f"{what} {value!r}" if what else str(value)
            for what, value in (("", self.file), ("sample", self.sample), ("field", self.member))
            if value is not None
        ]
        text = f"{hide_secrets(', '.join(place))}: {self.problem}" if place else self.problem
        return printable(f"{text} ({self.remedy})" if self.remedy else text, keep="\n")

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return _rebuild, (type(self), self.problem, self.file, self.sample, self.member, self.remedy)


def _rebuild(
    kind: type[NeurofmxError],
    problem: str,
    file: str | None,
    sample: str | None,
    member: str | None,
    remedy: str | None,
) -> NeurofmxError:
    return kind(problem, file=file, sample=sample, member=member, remedy=remedy)


def missing_package(error: Exception) -> NeurofmxError | None:
    """Return the error to report if `error` is an import of a package that is not installed, else None."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", __package__):
        return None
    if not error.msg.startswith("No module named"):  # it is installed, but blocked in this process
        return None
    return NeurofmxError(f"the package {package} is not installed", remedy=f"pip install {package}")


def refuse_unknown(taker: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that `taker` does not have.

    Raises:
        TypeError: there is one; the message names it and the most similar known name.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            raise TypeError("; ".join(filter(None, [f"{taker} takes no argument {name}", did_you_mean(name, known)])))


def suggest_keywords(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that a keyword argument that it does not have is answered with the one most like it.

    Example:
        >>> suggest_keywords(lambda shuffle=True: shuffle)(shufle=False)
        Traceback (most recent call last):
        TypeError: <lambda> takes no argument shufle; did you mean shuffle?
    """
    parameters = inspect.signature(function).parameters
    taker = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        refuse_unknown(taker, kwargs, parameters)
        return function(*args, **kwargs)

    return checked


class FieldError(NeurofmxError, ValueError):
    """A sample, key, field name or value that cannot be written."""


class OutputError(NeurofmxError, OSError):
    """An output directory that cannot be written: not empty, locked, or not on one file system."""

    def __str__(self) -> str:
        return NeurofmxError.__str__(self)


class ShardError(NeurofmxError, ValueError):
    """A shard whose bytes are not what they should be."""


class ShardIndexError(ShardError):
    """A sidecar index that is damaged, of another version, or of another shard."""


class ManifestError(ShardError):
    """A ``dataset_metadata.json`` that is damaged or does not match the shards beside it."""


class UnsafeDataError(ShardError):
    """Bytes that ask for more than plain arrays and containers. They are refused, never run."""


class StateError(NeurofmxError, ValueError):
    """A saved loader state that does not belong to this dataset, selection, seed or shuffle."""


class GroupError(NeurofmxError, ValueError):
    """A group of labels that is badly defined, or that a dataset does not have."""


class SourceError(NeurofmxError, ValueError):
    """A recording or array file that cannot be converted."""
