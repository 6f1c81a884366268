"""Loaders inside wrappers of Accelerate that deal samples among processes themselves: they get those of all ranks.

``Accelerator.prepare`` wraps a ``DataLoader``, and so does ``transformers.Trainer``. If our loader took this process's
share and the wrapper a share of that, samples would be lost. Knows the names of the wrappers; imports nothing of them.
"""

from __future__ import annotations

import logging
from typing import Any

from .callers import calling_object

logger = logging.getLogger("neurofmx_wds")

_MODULES = frozenset({"accelerate.data_loader", "transformers.trainer_pt_utils"})
_WRAPPERS = frozenset({"IterableDatasetShard", "DataLoaderDispatcher", "BatchSamplerShard"})


def dealing_wrapper() -> Any | None:
    """Return the wrapper that asks for the samples of all ranks to deal them itself, or None."""
    found = calling_object(_MODULES)
    return found if _WRAPPERS & {kind.__name__ for kind in type(found).__mro__} else None
