"""Single samples as they are delivered: read, with their labels, transformed.

Knows a reader and users' functions; knows nothing of batches or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .dataset import OpenDataset
from .labels import as_target_transform, label_field, labels_of
from .options import ProcessingOptions
from .transforms import SampleRngs, call_each, takes_rng


class SampleMaker:
    """Makes samples of one epoch.

    Args:
        opened: the dataset in that epoch.
        processing: what is done to them.

    Attributes:
        reader: reads them.
        replaces_labels: whether labels are delivered otherwise than they are stored.
    """

    def __init__(self, opened: OpenDataset, processing: ProcessingOptions) -> None:
        self.reader = opened.reader
        self._group_labels = opened.labels
        self._seed, self._epoch = opened.order.seed, opened.order.epoch
        self._transform = processing.transform
        self._takes_rng = self._transform is not None and takes_rng(self._transform)
        self._target_transform = as_target_transform(processing.target_transform)
        self.replaces_labels = self._group_labels is not None or self._target_transform is not None

    def rngs(self, ids: np.ndarray) -> SampleRngs:
        """Return the random numbers of samples."""
        return SampleRngs(self._seed, self._epoch, self.reader.dataset_ids(ids))

    def samples(self, ids: np.ndarray, rngs: SampleRngs) -> list[Any]:
        """Return the samples with these ids, transformed.

        Args:
            ids: sample ids, shape (B,), int64.
            rngs: their random numbers.

        Raises:
            NeurofmxError: one cannot be read or transformed.
        """
        samples = self.reader.read_samples(ids)
        if self.replaces_labels:
            fields = [sample.get("label") for sample in samples]
            labels = self.labels(ids, fields, [sample["metadata"] for sample in samples])
            for sample, label in zip(samples, labels, strict=True):
                sample["label"] = label_field(label)
        if self._transform is None:
            return samples
        transform = self._transform
        if self._takes_rng:
            return call_each(
                self.reader, "transform", ids, (transform(each, rngs[i]) for i, each in enumerate(samples))
            )
        return call_each(self.reader, "transform", ids, (transform(each) for each in samples))

    def labels(self, ids: np.ndarray, column: Any, metadata: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the labels of samples as they are delivered, by their group and `target_transform`.

        Args:
            ids: sample ids, shape (B,), int64.
            column: their field ``label``, B values; None where there is no such field.
            metadata: B dictionaries.
        """
        labels = labels_of(column, metadata) if self._group_labels is None else self._group_labels[ids].tolist()
        if self._target_transform is None:
            return labels
        target_transform = self._target_transform
        return call_each(self.reader, "target_transform", ids, (target_transform(label) for label in labels))
