"""What the conversion asks of a source of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class SourceDescription:
    """What a source holds: small, plain JSON values, and never growing with the number of samples.

    Attributes:
        n_samples: how many samples `Source.read` can give.
        fields: field → {"dtype", "shape", "unit", "columns", …} of one sample.
        report: the source's entry in the manifest: identity, support, segments, units, series, what was emitted,
            what was dropped, and why.
        empty: if there are no samples, the reason and the remedy.
    """

    n_samples: int
    fields: dict[str, dict[str, Any]]
    report: dict[str, Any]
    empty: str = ""


class Source(Protocol):
    """A file or directory that gives samples by number: a pure function of (file, configuration, index)."""

    def describe(self) -> SourceDescription:
        """Count the samples and describe them, without reading bulk data."""
        ...

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield (fields, metadata) of the samples [start, stop) in order; memory does not grow with their number.

        A sample that has a key of its own gives it as ``__key__``; another's is its number in the dataset.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...
