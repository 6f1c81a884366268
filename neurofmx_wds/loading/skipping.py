"""Samples that cannot be read or transformed: whom a user's handler lets pass, and what is left of their batches.

Knows recipes and errors; knows nothing of order, ranks or what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NeurofmxError
from ..storage.regular import is_out_of_files
from .readers import Handler
from .recipes import Recipe


@dataclass
class PartialBatch:
    """What is left of a plan some of whose samples are skipped.

    Attributes:
        n_skipped: how many are.
        rest: the batch (or sample) of the others; none where nothing is left and no other rank waits.
        causes: file → what is wrong first in it.
    """

    n_skipped: int
    rest: list[Any]
    causes: Mapping[str, str]


class Skipper:
    """Asks a handler about errors, and makes what is left of plans.

    The handler is asked once about each sample that is bad by itself, and once about a file that is bad as a whole,
    however many samples it holds.

    Args:
        handler: raises, or returns whether to go on.
        recipe: how plans are made.
    """

    def __init__(self, handler: Handler, recipe: Recipe) -> None:
        self._handler = handler
        self._recipe = recipe
        self._bad_files: set[str] = set()

    def what_is_left(self, ids: np.ndarray) -> PartialBatch:
        """Return what can be made of a plan that could not be made at once.

        Args:
            ids: of the plan's samples, shape (B,), int64.

        Raises:
            Exception: one that the handler does not let pass.
        """
        causes: dict[str, str] = {}

        def suppress(error: Exception) -> None:
            file = bad_file(error)
            if file is None or file not in self._bad_files:
                # Stopping one rank or worker would lose samples silently, or hang the others.
                if not self._handler(error):
                    raise error
                if file is not None:
                    self._bad_files.add(file)
            causes.setdefault(getattr(error, "file", None) or "", str(error))

        made: list[Any] = []
        left = self._good(lambda one: made.append(self._recipe.make(one)), ids, suppress)
        rest: list[Any] = []
        try:
            rest = [self._recipe.join(left, made)] if made else []
        except Exception:
            left, rest = self._joinable(left, suppress)
        return PartialBatch(len(ids) - len(left), rest, causes)

    def _joinable(self, ids: np.ndarray, suppress: Callable[[Exception], None]) -> tuple[np.ndarray, list[Any]]:
        """Return which of some samples can be in a batch, and that: those that can be in one alone, or none."""
        read = self._recipe.read_apart
        while len(ids):
            kept = self._good(read, ids, suppress)
            try:
                return kept, [read(kept)] if len(kept) else []
            except Exception as error:
                if len(kept) == len(ids):  # no single one is at fault
                    suppress(error)
                    break
            ids = kept
        return ids[:0], []

    @staticmethod
    def _good(read: Callable[[np.ndarray], Any], ids: np.ndarray, suppress: Callable[[Exception], None]) -> np.ndarray:
        """Return the ids of the samples that can be read one by one."""
        good = []
        for place in range(len(ids)):
            try:
                read(ids[place : place + 1])
                good.append(place)
            except Exception as error:
                if is_out_of_files(error):
                    raise
                suppress(error)
        return ids[good]


def bad_file(error: Exception) -> str | None:
    """Return the file that is bad as a whole by an error; None where the error is about a single sample.

    Example:
        >>> bad_file(NeurofmxError("the shard is missing", file="a.tar"))
        'a.tar'
        >>> bad_file(NeurofmxError("the bytes have changed", file="a.tar", sample="7"))
    """
    if isinstance(error, NeurofmxError):
        return error.file if error.sample is None else None
    return str(error.filename) if isinstance(error, OSError) and error.filename is not None else None
