"""CIFAR-10's and CIFAR-100's files (the python version): pickles, of which nothing but arrays and containers is read.

Knows these files; knows nothing of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UnsafeDataError
from ...format.pickles import decode_pickle
from .image_set import ImageSet, Part
from .listing import Entry, Listing

_FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
_META = {"cifar10": "batches.meta", "cifar100": "meta"}
# Field of labels → what its labels and their names are called in the files.
_LABELS = {
    "cifar10": {"label": ("labels", "label_names")},
    "cifar100": {
        "label": ("fine_labels", "fine_label_names"),
        "coarse_label": ("coarse_labels", "coarse_label_names"),
    },
}
_PLANES = (3, 32, 32)
_MOST_BYTES = 1 << 30
_DAMAGED = "it may be cut or damaged: download it again"


def find_cifar(listing: Listing, kind: str, subsets: Sequence[str]) -> ImageSet:
    """Find the images, uint8 (32, 32, 3), and labels in ``data_batch_1``, …, ``test_batch`` or ``train`` and ``test``.

    Args:
        listing: the directory that was in the tar.
        kind: "cifar10" or "cifar100".
        subsets: "train", "test" or both.

    Raises:
        SourceError: a file is missing, damaged, or asks for more than plain arrays and containers.
    """
    meta = _unpickled(listing, listing.find(_META[kind]))
    names: dict[str, list[str]] = {}
    for field, (_, called) in _LABELS[kind].items():
        names[field] = _list_of(str, meta.get(called))
        if not names[field] or len(set(names[field])) < len(names[field]):
            raise listing.refused(f"{_META[kind]!r} holds no {called}", _DAMAGED)
    batches = _Batches(listing)
    parts = []
    for subset in subsets:
        for name in _FILES[kind][subset]:
            entry = listing.find(name)
            content = batches.load(entry)
            labels = {field: _labels(listing, entry, content, called) for field, (called, _) in _LABELS[kind].items()}
            parts.append(Part({"subset": subset}, labels, batches.reader(entry)))
    return ImageSet(names, parts, (*_PLANES[1:], _PLANES[0]))


def _unpickled(listing: Listing, entry: Entry) -> dict[Any, Any]:
    if entry.size > _MOST_BYTES:
        raise listing.refused(f"{entry.path!r} is too large for CIFAR: {entry.size} bytes", "give the files themselves")
    try:
        content = decode_pickle(listing.read(entry), encoding="latin1")
    except UnsafeDataError as error:
        raise listing.refused(f"{entry.path!r}: {error.problem}", _DAMAGED) from error
    if not isinstance(content, dict):
        raise listing.refused(f"{entry.path!r} holds no dictionary", _DAMAGED)
    return content


def _labels(listing: Listing, entry: Entry, content: dict[Any, Any], called: str) -> npt.NDArray[np.int64]:
    labels, n = _list_of(int, content.get(called)), len(content["data"])
    if len(labels) != n or any(abs(label) > 1 << 31 for label in labels):
        raise listing.refused(f"{entry.path!r} holds no {called} for its {n} images", _DAMAGED)
    return np.array(labels, np.int64)


def _list_of(kind: type, values: object) -> list[Any]:
    """Return the values if they are a list of this type alone, else an empty list."""
    return values if isinstance(values, list) and all(type(value) is kind for value in values) else []


class _Batches:
    """The batches of a directory, of which the last one read is kept."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._kept: tuple[Entry, npt.NDArray[np.uint8]] | None = None

    def load(self, entry: Entry) -> dict[Any, Any]:
        """Read a batch."""
        content = _unpickled(self._listing, entry)
        data: Any = content.get("data")
        good = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2
        if not good or data.shape[1] != math.prod(_PLANES):
            problem = f"{entry.path!r} holds no images, uint8 of shape (n, {math.prod(_PLANES)})"
            raise self._listing.refused(problem, _DAMAGED)
        self._kept = entry, data
        return content

    def reader(self, entry: Entry) -> Any:
        """Return a function that yields the images [start, stop) of a batch."""

        def read(start: int, stop: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
            kept = self._kept
            data = kept[1] if kept is not None and kept[0] == entry else self.load(entry)["data"]
            for row in data[start:stop]:
                yield "image", np.ascontiguousarray(row.reshape(_PLANES).transpose(1, 2, 0)), {}

        return read
