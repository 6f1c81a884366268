"""Rows that only fill a step, so that all ranks make the same number of steps: how they are found and marked.

Knows recipes; knows nothing of plans or ranks.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import torch

from .recipes import Recipe

logger = logging.getLogger("neurofmx_wds")


def mark(item: Any, fresh: bool) -> None:
    """Note in a batch of one row, or in a sample, whether no other rank has it too: its ``__mask__``."""
    if isinstance(item, dict):
        single = isinstance(item.get("__key__"), str)
        item["__mask__"] = fresh if single else torch.tensor([fresh])


def stand_in(recipe: Recipe, ids: np.ndarray, n_samples: int) -> Any:
    """Return a sample that can be read, for a plan of which no sample can be; it is marked as not fresh.

    Args:
        recipe: makes it.
        ids: of the plan, shape (B,), int64.
        n_samples: samples in an epoch.

    Raises:
        Exception: no sample at all can be read.
    """
    leaps = (1 << k for k in range(n_samples.bit_length()))  # soon out of a shard that cannot be read
    for i in (int(ids[-1]) + step for step in itertools.chain(leaps, range(1, n_samples))):
        try:
            item = recipe.read(np.array([i % n_samples]))
        except Exception as another:
            logger.debug("no stand-in: %s", another)
            continue
        mark(item, False)
        return item
    return recipe.read(ids)  # raises why not
