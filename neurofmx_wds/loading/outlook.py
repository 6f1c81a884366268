"""What an iteration will read next, for whoever keeps data in advance of that.

Knows orders and positions; knows nothing of readers or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Outlook:
    """Where an iteration is.

    Attributes:
        order: the order of its epoch, with a method ``positions``.
        position: of the next sample.
        horizon: positions from there on that have been requested.
    """

    order: Any
    position: int
    horizon: int

    def next_use(self, ids: np.ndarray) -> np.ndarray:
        """Return how many samples are read before each of these, int64 (n,).

        -1: it was requested already, here or by a process of the job that is a little behind.

        Args:
            ids: sample ids, shape (n,), int64.
        """
        n = len(self.order)
        behind = min(n // 8, self.horizon)
        ahead = self.order.positions(ids) - self.position
        next_epoch = n - self.position + self.order.of_epoch(self.order.epoch + 1).positions(ids)
        return np.where(ahead >= self.horizon, ahead, np.where(ahead >= -behind, -1, next_epoch))
