"""What can go wrong, by name. Every message says which file and sample are at fault and what to do about it.

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

_MOST_SHOWN = 20
_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_secrets(text: str) -> str:
    """Takes out of a text what URLs in it may hold of credentials: passwords, and what follows a question mark."""
    text = re.sub(r"\b([a-z][a-z0-9+.-]*://)[^/\s'\"@]*@", r"\1***@", text)
    return re.sub(r"\b([a-z][a-z0-9+.-]*://[^?\s'\"]*)\?[^\s'\"]+", r"\1?***", text)


def shown(items: Iterable[object]) -> str:
    """Some things in a message, not too many."""
    several = [str(item) for item in items]
    more = f" and {len(several) - _MOST_SHOWN} more" if len(several) > _MOST_SHOWN else ""
    return ", ".join(several[:_MOST_SHOWN]) + more if several else "none"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The known name that is most like another, as a question; empty where none is like it."""
    close = difflib.get_close_matches(str(name), list(map(str, known)), 1)
    return f"did you mean {close[0]}?" if close else ""


def available_hint(known: Iterable[object], wanted: object) -> str:
    """What a message says of the things that there are, when one is wanted that is not: the most alike first."""
    known = list(known)
    return f"{did_you_mean(wanted, known)} there are {shown(known)}".lstrip()


class NeurofmxError(Exception):
    """Base of every error that the data or its use can cause.

    Args:
        problem: what is wrong, one sentence.
        file: the file at fault.
        sample: the key of the sample at fault.
        member: the field or tar member at fault.
        remedy: what the user can do about it.
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
        self.problem = problem = without_secrets(problem)
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
        text = f"{without_secrets(', '.join(place))}: {self.problem}" if place else self.problem
        return f"{text} ({self.remedy})" if self.remedy else text

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
    """What to say where an import failed because a package is not installed; None of any other error."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", __package__):
        return None
    if not error.msg.startswith("No module named"):  # one that is there, and done without
        return None
    return NeurofmxError(f"the package {package} is not installed", remedy=f"pip install {package}")


def refuse_unknown(taker: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that `taker` does not have.

    Raises:
        TypeError: naming the first of them, and what may have been meant.
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
    """Bytes that ask for more than plain arrays and containers: they are refused, never run."""


class StateError(NeurofmxError, ValueError):
    """A saved loader state that does not belong to this dataset, selection, seed or shuffle."""


class GroupError(NeurofmxError, ValueError):
    """A group of labels that is ill-defined, or that a dataset does not have."""


class SourceError(NeurofmxError, ValueError):
    """A recording or array file that cannot be converted."""
