"""How far the trainer is: the state that is saved.

Knows cursors and delivered items; knows nothing of what delivers them.
"""

from __future__ import annotations

import logging
import os

import torch
import torch.utils.data

from ..order.cursor import Cursor
from .skipping import PartialBatch

logger = logging.getLogger("neurofmx_wds")


class Progress:
    """How far the trainer is: which epoch, where it began, and what has been delivered since.

    In somebody else's DataLoader each worker has its own, of its share of an epoch. Only the trainer knows when all
    are done, so a worker moves on to another epoch only where the trainer said so, through shared memory.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.skipped = 0
        self.by_plan = False
        self._warned_files: set[str] = set()
        self._resume_at = 0
        self._run: object = None
        self._taken: tuple[int, bool] | None = None
        self._heard = 0
        self._tell()

    def _tell(self) -> None:
        """Give this process's workers, now and later, something of their own to listen to."""
        told = torch.tensor([self.epoch, self.position, self._heard])  # and how often it was set
        self._told, self._teller = told.share_memory_(), os.getpid()  # type: ignore[no-untyped-call]

    def begin(self, by_plan: bool = False) -> object:
        """Start an iteration, at the epoch's start or once where a loaded state says. Returns its token.

        Args:
            by_plan: whether only plans are handed out, so that what is delivered of them is not known here.
        """
        self.by_plan = by_plan
        epoch, position, times = self._told.tolist()
        if in_worker() and times != self._heard:
            self.epoch, self._resume_at, self._heard = epoch, position, times
        self.position, self._resume_at = self._resume_at, 0
        self._run, self._taken = object(), None
        return self._run

    def take(self, run: object, position: int, last: bool) -> None:
        """Note that iteration `run` is making something of all before `position`; with the `last` its epoch is over."""
        if run is self._run:
            self._taken = position, last

    def deliver(self, run: object) -> None:
        """Note that what iteration `run` has made of all that it took is handed over."""
        if run is self._run and self._taken is not None:
            self.position, last = self._taken
            if last and not in_worker():
                self.set(Cursor(self.epoch + 1, 0))

    def note(self, remnant: PartialBatch) -> None:
        """Count what was skipped, and say of each shard once why."""
        self.skipped += remnant.n_skipped
        for file, cause in remnant.causes.items():
            if file not in self._warned_files:
                logger.warning("skipping samples that cannot be read, the first: %s", cause)
        self._warned_files.update(remnant.causes)

    def set(self, cursor: Cursor) -> None:
        """Let the next iteration start at `cursor`."""
        self.epoch, self.position, self._resume_at = cursor.epoch, cursor.position, cursor.position
        self._run, self.by_plan = None, False
        if not in_worker():
            self._heard += 1
            if self._teller != os.getpid():  # made by a process that has started this one and others as ranks
                self._tell()
            self._told.copy_(torch.tensor([cursor.epoch, cursor.position, self._heard]))


def in_worker() -> bool:
    """Whether this is a worker process of a DataLoader."""
    return torch.utils.data.get_worker_info() is not None
