"""Samples that cannot be read or transformed: what a user's handler lets pass, and what is left of their batches.

Knows recipes, readers and errors; knows nothing of order or ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from ..errors import NeurofmxError
from ..storage.regular import is_out_of_files
from .interfaces import Reader
from .readers import Handler
from .recipes import Recipe

BadFiles = dict[Path | None, Exception]


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
    however many samples it holds. These are then skipped without another look at the file.

    Args:
        handler: raises, or returns whether to go on.
        recipe: how plans are made.
        reader: says in which file a sample is.
        bad_files: those that are known; more are added.

    Attributes:
        recipe: as given.
    """

    def __init__(self, handler: Handler, recipe: Recipe, reader: Reader, bad_files: BadFiles) -> None:
        self._handler = handler
        self.recipe = recipe
        self._reader = reader
        self._bad_files = bad_files
        self._asking = threading.Lock()  # of several threads that find the same bad file, one asks

    def read(self, ids: np.ndarray) -> Any:
        """Return what the recipe makes of a plan, or a :class:`PartialBatch`.

        Args:
            ids: of the plan's samples, shape (B,), int64.

        Raises:
            Exception: one that the handler does not let pass.
        """
        if not (self._bad_files and any(self._reader.file(i) in self._bad_files for i in ids.tolist())):
            try:
                return self.recipe.read(ids)
            except Exception:
                if self._handler is wds.reraise_exception:
                    raise
        with self._asking:
            return self._what_is_left(ids)

    def _what_is_left(self, ids: np.ndarray) -> PartialBatch:
        causes: dict[str, str] = {}
        made: list[Any] = []
        left = self._good(lambda one: made.append(self.recipe.make(one)), ids, causes)
        rest: list[Any] = []
        try:
            rest = [self.recipe.join(left, made)] if made else []
        except Exception:
            left, rest = self._joinable(left, causes)
        return PartialBatch(len(ids) - len(left), rest, causes)

    def _joinable(self, ids: np.ndarray, causes: dict[str, str]) -> tuple[np.ndarray, list[Any]]:
        """Return which of some samples can be in a batch, and that: those that can be in one alone, or none."""
        read = self.recipe.read
        while len(ids):
            kept = self._good(read, ids, causes)
            try:
                return kept, [read(kept)] if len(kept) else []
            except Exception as error:
                if len(kept) == len(ids):  # no single one is at fault
                    self._ask(error, causes)
                    break
            ids = kept
        return ids[:0], []

    def _good(self, read: Callable[[np.ndarray], Any], ids: np.ndarray, causes: dict[str, str]) -> np.ndarray:
        """Return the ids of the samples that can be read one by one."""
        good = []
        for place, i in enumerate(ids.tolist()):
            file = self._reader.file(i)
            if file in self._bad_files:
                _note(self._bad_files[file], causes)
                continue
            try:
                read(ids[place : place + 1])
                good.append(place)
            except Exception as error:
                if is_out_of_files(error):
                    raise
                self._ask(error, causes)
                if file is not None and is_about_a_file(error):
                    self._bad_files[file] = error
        return ids[good]

    def _ask(self, error: Exception, causes: dict[str, str]) -> None:
        # Stopping one rank or worker would lose samples silently, or hang the others.
        if not self._handler(error):
            raise error
        _note(error, causes)


def _note(error: Exception, causes: dict[str, str]) -> None:
    causes.setdefault(getattr(error, "file", None) or "", str(error))


def is_about_a_file(error: Exception) -> bool:
    """Return whether an error says that a file is bad as a whole: it names that, and no sample in it.

    Example:
        >>> is_about_a_file(NeurofmxError("the shard is missing", file="a.tar"))
        True
        >>> is_about_a_file(NeurofmxError("the bytes have changed", file="a.tar", sample="7"))
        False
    """
    return isinstance(error, NeurofmxError) and error.file is not None and error.sample is None
