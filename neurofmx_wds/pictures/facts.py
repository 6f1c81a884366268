"""Facts of a dataset for a report: its fields in numbers, firing rates, padding, and how well a shuffle mixes.

Computed from samples that are given; knows nothing of files or drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..nwb.clock import NS_PER_S
from .recordings import populations
from .samples import About, Sample

Floats = npt.NDArray[np.float64]
_NOT_FIELDS = ("__key__", "metadata", "__mask__")
#: Values of a column that are kept for a histogram.
_MOST_VALUES = 20_000


@dataclass
class FieldFacts:
    """What some samples hold in one field.

    Attributes:
        n: samples that have the field.
        values: numbers in it that were measured; missing: those that were not (NaN, or False in the field's mask).
        mean, deviation, low, high: of the measured values; NaN if there are none.
        lengths: the first dimension in each sample.
        columns: values of each column, thinned, for histograms.
    """

    n: int = 0
    values: int = 0
    missing: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = np.nan
    high: float = np.nan
    lengths: list[int] = field(default_factory=list)
    columns: list[Floats] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """The mean of the measured values."""
        return self.total / self.values if self.values else np.nan

    @property
    def deviation(self) -> float:
        """Their standard deviation."""
        return float(np.sqrt(max(0.0, self.squares / self.values - self.mean**2))) if self.values else np.nan

    @property
    def measured(self) -> float:
        """The share of the numbers that was measured."""
        return self.values / max(1, self.values + self.missing)

    def add(self, array: npt.NDArray[Any], mask: Any, most: int) -> None:
        """Add the field of one sample.

        Args:
            array: its values.
            mask: which were measured, or None.
            most: rows of it to keep for histograms.
        """
        self.n += 1
        self.lengths.append(len(array) if array.ndim else 1)
        if array.dtype.kind not in "biuf":
            return
        values = array.astype(np.float64)
        if mask is not None:
            known = np.asarray(mask)
            values = np.where(known.reshape(known.shape + (1,) * (values.ndim - known.ndim)), values, np.nan)
        measured = values[np.isfinite(values)]
        self.values += measured.size
        self.missing += values.size - measured.size
        self.total += float(measured.sum())
        self.squares += float((measured**2).sum())
        if measured.size:
            self.low = float(np.fmin(self.low, measured.min()))
            self.high = float(np.fmax(self.high, measured.max()))
        if values.ndim == 2:
            step = max(1, len(values) // max(1, most))
            self.columns.append(values[::step])


def facts_of(samples: Sequence[Sample]) -> dict[str, FieldFacts]:
    """Return the facts of the arrays in some samples, by field, without the masks.

    Example:
        >>> facts = facts_of([{"x": np.array([1.0, 2.0, np.nan])}, {"x": np.array([3.0])}])["x"]
        >>> facts.mean, facts.measured, facts.lengths
        (2.0, 0.75, [3, 1])
    """
    facts: dict[str, FieldFacts] = {}
    most = max(1, _MOST_VALUES // max(1, len(samples)))
    for sample in samples:
        for name, value in sample.items():
            array = np.asarray(value) if isinstance(value, (np.ndarray, np.generic, int, float)) else None
            if array is not None and name not in _NOT_FIELDS and not name.endswith("_mask"):
                facts.setdefault(name, FieldFacts()).add(array, sample.get(f"{name}_mask"), most)
    return facts


def firing_rates(samples: Sequence[Sample], about: About) -> dict[str, Floats]:
    """Return the rate (spikes/s) of each unit in some windows, by population, over all recordings.

    Args:
        samples: windows with ``spikes`` (bins, units), or ``spike_times`` and ``spike_units``.
        about: tells the units' populations.
    """
    spikes: dict[Any, Floats] = {}
    seconds: dict[Any, float] = {}
    names: dict[Any, list[str]] = {}
    for sample in samples:
        metadata = sample.get("metadata", {})
        counts = _counts(sample, about)
        if counts is None or not {"t_start_ns", "t_stop_ns"} <= metadata.keys():
            continue
        key = metadata.get("source"), len(counts)
        spikes[key] = spikes.get(key, np.zeros(len(counts))) + counts
        seconds[key] = seconds.get(key, 0.0) + (metadata["t_stop_ns"] - metadata["t_start_ns"]) / NS_PER_S
        names.setdefault(key, populations(about.source_of(sample).get("units", {}), len(counts)))
    rates: dict[str, list[float]] = {}
    for key, counts in spikes.items():
        for name, rate in zip(names[key] or ["units"] * len(counts), counts / seconds[key], strict=True):
            rates.setdefault(name, []).append(float(rate))
    return {name: np.array(values) for name, values in sorted(rates.items())}


def _counts(sample: Sample, about: About) -> Floats | None:
    if "spikes" in sample and np.asarray(sample["spikes"]).ndim == 2:
        return np.asarray(np.asarray(sample["spikes"], np.float64).sum(axis=0))
    if "spike_units" in sample:
        n = len(about.fields.get("spike_units", {}).get("columns") or ())
        return np.bincount(np.asarray(sample["spike_units"]).astype(np.int64), minlength=n).astype(np.float64)
    return None


def padding(facts: Mapping[str, FieldFacts], batch_size: int) -> dict[str, float]:
    """Return, for fields whose length differs, the share of a batch that would be padding, on average.

    Example:
        >>> padding({"x": FieldFacts(lengths=[1, 3, 2, 2, 4, 2])}, 2)
        {'x': 0.2222222222222222}
    """
    shares = {}
    for name, each in facts.items():
        if len(set(each.lengths)) > 1:
            n = max(1, len(each.lengths) // batch_size) * batch_size
            batches = [each.lengths[i : i + batch_size] for i in range(0, min(n, len(each.lengths)), batch_size)]
            padded = sum(max(lengths) * len(lengths) for lengths in batches)
            shares[name] = 1 - sum(map(sum, batches)) / padded if padded else 0.0
    return shares


@dataclass(frozen=True)
class Mixing:
    """How well an order mixes samples.

    Attributes:
        shards: shards in a batch, on average.
        sources: recordings in a batch, on average; None where the recording of a sample is not known.
        neighbors: share of the samples of a batch whose next sample, as stored, is in the same batch.
        correlation: of the place in the epoch with the place in the dataset; 0 for a perfect shuffle, 1 in order.
    """

    shards: float
    sources: float | None
    neighbors: float
    correlation: float


def mixing(ids: npt.NDArray[np.int64], ends: Floats, source_ends: Floats | None, places: Floats) -> Mixing:
    """Return how well batches are mixed.

    Args:
        ids: int64 (n_batches, batch size), samples by their place in the dataset.
        ends: (n_shards,), where each shard ends.
        source_ends: (n_sources,), the same of recordings; None: not known.
        places: (n_batches, batch size), the position of each in the epoch.

    Example:
        >>> ids = np.arange(8).reshape(2, 4)
        >>> mixing(ids, np.array([4.0, 8.0]), None, ids.astype(float)).neighbors
        0.75
    """
    shard_of = np.searchsorted(ends, ids, side="right")
    source_of = None if source_ends is None else np.searchsorted(source_ends, ids, side="right")
    neighbors = float(np.mean([np.isin(batch + 1, batch).mean() for batch in ids])) if ids.size else 0.0
    spread = ids.size > 1 and float(ids.std()) > 0
    correlation = float(np.corrcoef(ids.ravel(), places.ravel())[0, 1]) if spread else 1.0
    return Mixing(
        float(np.mean([len(np.unique(row)) for row in shard_of])),
        None if source_of is None else float(np.mean([len(np.unique(row)) for row in source_of])),
        neighbors,
        correlation,
    )
