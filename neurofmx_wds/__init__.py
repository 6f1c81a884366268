"""Multi-modal neural recordings to WebDataset shards, and from shards to resumable PyTorch training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .convert.converter import NWBToWebDatasetConverter
    from .format.info import ShardedDatasetInfo
    from .format.writer import WebDatasetWriter, create_shards_from_arrays
    from .loading.batch import Batch
    from .loading.batch_by import Budget
    from .loading.collate import collate_webdataset
    from .loading.loaders import ResumableWebDatasetLoader, WebDatasetLoader, create_webdataset_dataloader
    from .loading.mixture import Mixture, mix
    from .loading.vocabulary import Vocabulary
    from .loading.windows import Windows

# Imported on first use: `python -m neurofmx_wds --help` need not wait for torch.
_PLACES = {
    "Batch": "loading.batch",
    "Budget": "loading.batch_by",
    "Mixture": "loading.mixture",
    "NWBToWebDatasetConverter": "convert.converter",
    "ResumableWebDatasetLoader": "loading.loaders",
    "ShardedDatasetInfo": "format.info",
    "WebDatasetLoader": "loading.loaders",
    "WebDatasetWriter": "format.writer",
    "Vocabulary": "loading.vocabulary",
    "Windows": "loading.windows",
    "collate_webdataset": "loading.collate",
    "create_shards_from_arrays": "format.writer",
    "create_webdataset_dataloader": "loading.loaders",
    "mix": "loading.mixture",
}

__all__ = [
    "Budget",
    "Batch",
    "Mixture",
    "NWBToWebDatasetConverter",
    "ResumableWebDatasetLoader",
    "ShardedDatasetInfo",
    "WebDatasetLoader",
    "WebDatasetWriter",
    "Vocabulary",
    "Windows",
    "__version__",
    "collate_webdataset",
    "create_shards_from_arrays",
    "create_webdataset_dataloader",
    "mix",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return [*__all__, "errors", "lightning", "stimulus"]
