"""Normalized batches: each column less its mean, divided by its standard deviation.

Knows statistics and batches; knows nothing of files or order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import available_hint, join_some
from ..format.statistics import Moments
from .collate import to_array
from .memory import Memory
from .sessions import Sessions
from .statistics import Counted, counted_of, pooled_over_sources
from .views import Batch

Scale = tuple[Any, Any]
Normalize = str | Mapping[str, str | Scale | Mapping[str, Scale]]
"""``"zscore"``, ``"zscore_all"``, or field → one of these, or (mean, std), or {session: (mean, std)}."""

EVERY = "*"  # stands for all sessions
_BY_SOURCE, _ALL = "zscore", "zscore_all"


def check_normalize(given: Normalize | None) -> None:
    """Refuse a value of ``normalize=`` that cannot be.

    Raises:
        ValueError: naming the field and what is wrong.
    """
    fields = given if isinstance(given, Mapping) else {} if given is None else {"all fields": given}
    for name, how in fields.items():
        if isinstance(how, str):
            if how not in (_BY_SOURCE, _ALL):
                raise ValueError(f'normalize: {name}: must be "zscore", "zscore_all" or (mean, std), not {how!r}')
            continue
        for each in how.values() if isinstance(how, Mapping) else [how]:
            _scale(name, each)


def _scale(name: str, given: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a mean, float64, and a divisor, float32, arrays of shape () or (columns,).

    Raises:
        ValueError: they are none.
    """
    try:
        mean, std = (np.asarray(each, np.float64) for each in given)
        good = (
            mean.ndim < 2 and std.ndim < 2 and np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()
        )
    except (TypeError, ValueError):
        good = False
    if not good:
        rule = "must be (mean, std), finite numbers or one for each column, with std not negative"
        raise ValueError(f"normalize: {name}: {rule}, not {given!r:.80}")
    return mean, np.where(std > 0, std, 1).astype(np.float32)


@dataclass(frozen=True)
class Normalized:
    """Fields of batches less their mean, divided by their standard deviation; NaN stays NaN, a constant becomes 0.

    Attributes:
        scales: field → for each source (mean, float64, and divisor, float32), of shape () or (columns,); None: the
            source lacks the field.
    """

    scales: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray] | None]]

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the same fields."""
        return list(names)

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the batch with its fields normalized, as float32."""
        changed = {}
        for name, scales in self.scales.items():
            if name in batch:
                rows = [scales[source] for source in sources.tolist()]
                changed[name] = _normalized(name, batch[name], rows, memory)
        return {**batch, **changed}


def _normalized(name: str, values: Any, scales: Sequence[Any], memory: Memory) -> Any:
    if isinstance(values, torch.Tensor):
        first = scales[0]
        if all(each is first for each in scales):
            mean, std = first
        else:
            mean, std = (np.stack([each[k] for each in scales]) for k in (0, 1))
            shape = (len(scales), *[1] * (values.ndim - 2), mean.shape[1]) if mean.ndim == 2 else (
                len(scales), *[1] * (values.ndim - 1))  # fmt: skip
            mean, std = mean.reshape(shape), std.reshape(shape)
        out = memory.empty(values.shape, torch.float32)
        _fit(name, values.shape, mean)
        near = mean.astype(np.float32)
        result = out.numpy()
        np.subtract(to_array(values), near, out=result, casting="unsafe", dtype=np.float32)
        result -= (mean - near).astype(np.float32)  # what the first step rounds away may be more than a deviation
        result /= std
        return out
    return [
        None if v is None else _normalized(name, v[None], [s], memory)[0] for v, s in zip(values, scales, strict=True)
    ]


def _fit(name: str, shape: Sequence[int], mean: np.ndarray) -> None:
    if mean.ndim and mean.shape[-1] not in (1, shape[-1]):
        raise ValueError(f"normalize: {name} has {shape[-1]} columns, its mean {mean.shape[-1]}")


def scales_of(
    given: Normalize, parts: Sequence[tuple[Any, Sessions, int]], fields: Sequence[str]
) -> dict[str, list[tuple[np.ndarray, np.ndarray] | None]]:
    """Return what ``normalize=`` means for the samples that are selected.

    Args:
        given: the option's value.
        parts: the datasets: a reader of their samples as they are normalized, their sources, and how many are selected.
        fields: that batches have.

    Raises:
        ValueError: there is no such field, it differs in columns, or a session is not among those given.
        NeurofmxError: a sample cannot be read.
    """
    asked: dict[str, Any] | None = dict(given) if isinstance(given, Mapping) else None
    unknown = [] if asked is None else [name for name in asked if name not in fields]
    if unknown:
        raise ValueError(f"normalize: no field {unknown[0]!r}; {available_hint(sorted(fields), unknown[0])}")
    counted: Counted = []
    if asked is None or any(isinstance(how, str) for how in asked.values()):
        names = None if asked is None else [name for name, how in asked.items() if isinstance(how, str)]
        counted = [each for reader, sessions, n in parts for each in counted_of(reader, sessions, n, names)]
    if asked is None:
        found = {name for each in counted for name in each if name in fields and not name.endswith("_mask")}
        asked = dict.fromkeys(sorted(found), given)
    sessions = [name for _, each, _ in parts for name in each.names]
    return {name: _of_field(name, how, counted, sessions) for name, how in asked.items()}


def _of_field(name: str, how: Any, counted: Counted, sessions: Sequence[str]) -> list[Any]:
    if isinstance(how, str) and not any(name in each for each in counted):
        raise ValueError(f"normalize: {name} cannot be counted: it holds no numbers along columns")
    if how == _BY_SOURCE:
        return [_of_moments(name, each[name]) if name in each else None for each in counted]
    if how == _ALL:
        whole = pooled_over_sources(counted, name)
        if whole is None:
            rule = 'has other columns in other recordings: use "zscore", which takes each recording alone'
            raise ValueError(f"normalize: {name} {rule}")
        return [_of_moments(name, whole)] * len(sessions)
    if not isinstance(how, Mapping):
        return [_scale(name, how)] * len(sessions)
    known = {session: _scale(name, each) for session, each in how.items()}
    missing = [session for session in sessions if session not in known and EVERY not in known]
    if missing:
        raise ValueError(f"normalize: {name}: no mean and std of the sessions {join_some(missing)}")
    return [known.get(session) or known[EVERY] for session in sessions]


def _of_moments(name: str, moments: Moments | None) -> tuple[np.ndarray, np.ndarray]:
    if moments is None:
        raise ValueError(f"normalize: the samples of {name} differ in columns: give (mean, std)")
    return _scale(name, (moments.mean, moments.std))


def as_mapping(
    given: Normalize, scales: Mapping[str, Sequence[Any]], sessions: Sequence[str]
) -> dict[str, dict[str, Scale]]:
    """Return scales as ``normalize=`` of another loader takes them: field → session → (mean, std), as JSON values.

    Where a field has the same in all sessions, these are called ``"*"``.
    """
    found: dict[str, dict[str, Scale]] = {}
    for name, of_sources in scales.items():
        how = given.get(name) if isinstance(given, Mapping) else given
        alike = how == _ALL or not isinstance(how, (str, Mapping))
        pairs = zip([EVERY] if alike else sessions, of_sources, strict=False)
        found[name] = {session: (each[0].tolist(), each[1].tolist()) for session, each in pairs if each is not None}
    return found
