"""Parts of a dataset (train, val, test; folds) that have no recording, or no time, in common: the setting.

Knows names and shares; knows nothing of datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Shares = Mapping[str, float] | int


@dataclass(frozen=True)
class Partition:
    """Into which parts a dataset is split, and which of them are read.

    Attributes:
        shares: name → its share; or a number of folds, which are called fold0, fold1, ….
        by: "session", "subject", "time", "random", or a name of the samples' metadata, whose values stay together.
        parts: the names of those that are read.
        stratify: a name of the samples' metadata: each of its values is split in these shares.
        seed: of what is random; 0: as ``convert --split``.

    Raises:
        ValueError: a value that is not allowed.

    Example:
        >>> Partition(4, "session", ("fold1", "fold2")).shares
        {'fold0': 0.25, 'fold1': 0.25, 'fold2': 0.25, 'fold3': 0.25}
    """

    shares: Mapping[str, float]
    by: str
    parts: tuple[str, ...]
    stratify: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", _shares(self.shares))
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, np.integer)):
            raise ValueError(f"split_seed must be a whole number, not {self.seed!r}")
        for name in ("by", "stratify"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value or (value is None and name == "stratify")):
                raise ValueError(f"{'split_by' if name == 'by' else name} must be a name, not {value!r}")
        if self.stratify is not None and self.by == "time":
            raise ValueError("stratify does not go together with split_by='time'")
        known = ", ".join(self.shares)
        for part in self.parts:
            if part not in self.shares:
                raise ValueError(f"part={part!r} is none of the split's parts: {known}")
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise ValueError(f"part must name one or several of the split's parts, each once: {known}")

    @property
    def numbers(self) -> list[int]:
        """The places of the parts that are read."""
        return [i for i, name in enumerate(self.shares) if name in self.parts]

    def nothing(self) -> ValueError:
        """Return the error that there is nothing to read."""
        what = {"time": "longer recordings", "random": "more samples"}.get(self.by, f"more values of {self.by}")
        return ValueError(f"split by {self.by}: {' and '.join(self.parts)} would get no samples; it takes {what}")


def _shares(given: object) -> dict[str, float]:
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        if given < 2:
            raise ValueError(f"split must be at least 2 folds, not {given}")
        return {f"fold{i}": 1 / int(given) for i in range(int(given))}
    if not isinstance(given, Mapping) or len(given) < 2 or not all(isinstance(name, str) for name in given):
        raise ValueError(f"split must be a number of folds, or name → share of two parts or more, not {given!r}")
    shares = {name: float(share) for name, share in given.items()}
    if any(not share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"split={given!r}: shares must be positive and their sum 1")
    return shares


def as_partition(
    split: Shares | None, by: str | None, part: str | Sequence[str] | None, stratify: str | None, seed: int
) -> Partition | None:
    """Return a loader's arguments of these names as a value; None where nothing is split.

    Raises:
        ValueError: arguments that do not go together.
    """
    if split is None:
        for name, value in (("split_by", by), ("part", part), ("stratify", stratify), ("split_seed", seed or None)):
            if value is not None:
                raise ValueError(f"{name}= goes together with split=, the parts and their shares")
        return None
    if part is None:
        raise ValueError(f"say by part= which part of the split is read: {', '.join(_shares(split))}")
    parts = (part,) if isinstance(part, str) else tuple(part)
    by = by or ("random" if stratify else "session")
    return Partition(split, by, parts, stratify, seed)  # type: ignore[arg-type]
