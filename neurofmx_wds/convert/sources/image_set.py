"""A set of labelled images as a source of samples, whatever files it comes in."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import SourceDescription
from .listing import Listing, left_out_lines


@dataclass(frozen=True)
class Part:
    """Consecutive images of a set.

    Attributes:
        about: what is known of all of them, such as their subset.
        labels: field → the label of each, int64 (n,).
        read: gives the images [start, stop): the field's name, its value and what else is known of the image.
    """

    about: Mapping[str, str]
    labels: Mapping[str, npt.NDArray[np.int64]]
    read: Callable[[int, int], Iterator[tuple[str, Any, dict[str, Any]]]]

    def __len__(self) -> int:
        return len(self.labels["label"])


@dataclass(frozen=True)
class ImageSet:
    """What was found in a directory.

    Attributes:
        names: field of labels → what they stand for.
        parts: the images.
        shape: of an image, where all have one.
        left_out: how many files of which kind are left out.
        closing: what to close in the end.
    """

    names: Mapping[str, Sequence[str]]
    parts: Sequence[Part]
    shape: tuple[int, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class ImageSource:
    """The images of one directory: fields ``image`` and ``label``, int64, and ``coarse_label`` where there is one.

    Args:
        listing: the directory.
        found: what is in it.

    Raises:
        SourceError: a label has no name.
    """

    def __init__(self, listing: Listing, found: ImageSet) -> None:
        self.listing = listing
        self._found = found
        self._n = sum(map(len, found.parts))
        for part in found.parts:
            for name, labels in part.labels.items():
                most = len(found.names[name])
                if len(labels) and not 0 <= labels.min() <= labels.max() < most:
                    self.close()
                    problem = f"has the {name}s {labels.min()} to {labels.max()}, and names for {most}"
                    raise listing.refused(problem, "it may be damaged: download it again")

    def describe(self) -> SourceDescription:
        """Describe how many images there are, of which classes."""
        fields: dict[str, dict[str, Any]] = {"image": {"dtype": "uint8"}}
        if self._found.shape is not None:
            fields["image"]["shape"] = list(self._found.shape)
        for name, names in self._found.names.items():
            fields[name] = {"dtype": "int64", "shape": [], "names": list(names)}
        report = {
            "path": self.listing.name,
            "size_bytes": self.listing.size,
            "classes": {name: self._counts(name) for name in self._found.names},
            "windows": {"emitted": self._n, "dropped": {}},
            "warnings": left_out_lines({"hidden": self.listing.hidden, **self._found.left_out}),
        }
        subsets: Counter[str] = Counter()
        for part in self._found.parts:
            subsets[part.about.get("subset", "")] += len(part)
        return SourceDescription(self._n, fields, report | ({} if subsets[""] else {"subsets": dict(subsets)}))

    def _counts(self, field: str) -> dict[str, int]:
        names = self._found.names[field]
        counts = sum(np.bincount(part.labels[field], minlength=len(names)) for part in self._found.parts)
        return dict(zip(names, np.atleast_1d(counts).tolist(), strict=True))

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the images [start, stop) in order.

        Yields:
            (fields, metadata): ``image`` uint8 (H, W) or (H, W, C), or the file itself as ``image.EXTENSION``; its
            label(s), int64 (); ``source``, ``sample_index``, ``subset`` or ``path``, each label and its name.

        Raises:
            IndexError: there are no such images.
            SourceError: a file is damaged, gone, or has changed.
        """
        if not 0 <= start <= stop <= self._n:
            raise IndexError(f"images [{start}, {stop}) of {self._n} in {self.listing.root}")
        first = 0
        for part in self._found.parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            for i, (name, image, about) in enumerate(part.read(low, high) if low < high else (), low):
                fields: dict[str, Any] = {name: image}
                metadata: dict[str, Any] = {"source": self.listing.name, "sample_index": first + i}
                metadata |= {**part.about, **about}
                for label, numbers in part.labels.items():
                    fields[label] = np.array(numbers[i])
                    metadata[label] = int(numbers[i])
                    metadata[f"{label}_name"] = self._found.names[label][numbers[i]]
                yield fields, metadata
            first += len(part)

    def close(self) -> None:
        """Close the files that are open."""
        self._found.closing.close()
