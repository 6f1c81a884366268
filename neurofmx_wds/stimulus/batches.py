"""A loader of batches from anything that holds images: shards, another loader, or a map-style dataset.

Knows the loaders; knows nothing of images or presentations.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

import torch.utils.data

from ..errors import refuse_unknown
from ..loading.batch_loader import BatchPipeline, WebDatasetDataLoader, as_dataloader
from ..loading.collate import collate_webdataset
from ..loading.dataset import OpenDataset
from ..loading.loaders import ResumableWebDatasetLoader, WebDatasetLoader, create_webdataset_dataloader
from ..loading.map_style import open_map_style
from ..loading.options import BatchOptions, OrderOptions, ProcessingOptions, WorkerOptions, take_options
from ..loading.transforms import as_batch_transforms


def batches_of(
    dataset: Any,
    names: Sequence[str],
    batch_transforms: tuple[Callable[..., Any], ...],
    options: dict[str, Any],
) -> WebDatasetDataLoader:
    """Make a loader of batches.

    Args:
        dataset: a shard directory, a pattern, a list of tars, a :class:`~neurofmx_wds.WebDatasetLoader`, a loader of
            batches, or a map-style dataset.
        names: of the fields of a map-style dataset's items.
        batch_transforms: run on every batch, after those that a given loader already has.
        options: arguments of :func:`~neurofmx_wds.create_webdataset_dataloader`.

    Raises:
        TypeError: the dataset is of another kind, or an option is unknown or contradicts the given loader.
    """
    if isinstance(dataset, (WebDatasetLoader, WebDatasetDataLoader)):
        return _batches_of_loader(dataset, batch_transforms, options)
    options = {"num_workers": 0, "shuffle": False, **options}
    tars = isinstance(dataset, (list, tuple)) and all(isinstance(each, (str, os.PathLike)) for each in dataset)
    if isinstance(dataset, (str, os.PathLike)) or tars:
        return create_webdataset_dataloader(dataset, batch_transform=batch_transforms, **options)
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
        kind = type(dataset).__name__
        raise TypeError(f"dataset must be a shard directory, a WebDatasetLoader or a map-style dataset, not {kind}")
    opened = open_map_style(dataset, names, take_options(OrderOptions, options))
    given = take_options(ProcessingOptions, options, collate_fn=collate_webdataset, batch_transform=batch_transforms)
    return _loader(opened, given, options)


def _batches_of_loader(
    loader: WebDatasetLoader | WebDatasetDataLoader,
    batch_transforms: tuple[Callable[..., Any], ...],
    options: dict[str, Any],
) -> WebDatasetDataLoader:
    if isinstance(loader, ResumableWebDatasetLoader):
        raise TypeError(
            "a ResumableWebDatasetLoader would no longer write its checkpoints; pass a WebDatasetLoader, and save the "
            "state_dict() of this loader"
        )
    if loader.pipeline:
        raise TypeError(
            "the loader has further stages; pass their functions as transform= or batch_transform= instead, or append "
            "the presentation to them: loader.map(StimulusDuration(…))"
        )
    before = as_batch_transforms(loader.processing.batch_transform)
    processing = replace(loader.processing, batch_transform=(*before, *batch_transforms))
    if isinstance(loader, WebDatasetDataLoader):
        if options:
            raise TypeError(f"{', '.join(options)}: set this when making the loader that is passed as dataset")
        twin = copy.copy(loader)
        twin.processing = processing
        return twin
    options = {"rank": loader._rank, "world_size": loader._world_size, **options}
    batches = _loader(loader.opened, replace(processing, collate_fn=collate_webdataset), options)
    batches.progress = loader.progress
    return batches


def _loader(opened: OpenDataset, processing: ProcessingOptions, options: dict[str, Any]) -> WebDatasetDataLoader:
    """Make a loader of the batches of an open dataset, by the other `options` of a loader."""
    batches, workers = take_options(BatchOptions, options), take_options(WorkerOptions, options, num_workers=0)
    known = {
        each.name for kind in (OrderOptions, ProcessingOptions, BatchOptions, WorkerOptions) for each in fields_of(kind)
    }
    refuse_unknown("a loader of batches", options, known)
    return as_dataloader(BatchPipeline(opened, processing, batches, workers))
