"""Batches of one form: recordings with different units or columns, and samples that lack a field, in one tensor.

Knows batches and what samples of each recording hold; knows nothing of files or order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import available_hint
from .collate import to_tensor
from .memory import Memory
from .views import Batch, SourcedReader

UNIT_MASK = "unit_mask"
_OF_UNITS = ("spikes", "spikes_mask")
_RAGGED = ("spike_times", "spike_units", "spike_mask", "spike_offsets")
_AT_ONCE = 1 << 20
Fill = bool | Sequence[str]
PadUnits = bool | int


@dataclass(frozen=True)
class Form:
    """What a field is in every batch: dtype, and shape of a sample; arrays with fewer columns are filled up."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def joined(self, other: Form, name: str) -> Form:
        """Return the form that both fit into.

        Raises:
            ValueError: they differ in more than columns.
        """
        alike = (
            self.dtype == other.dtype and len(self.shape) == len(other.shape) and self.shape[:-1] == other.shape[:-1]
        )
        if not alike:
            theirs, ours = (f"{list(each.shape)} of {str(each.dtype).removeprefix('torch.')}" for each in (other, self))
            raise ValueError(f"{name} is {ours} in one recording and {theirs} in another: no tensor can hold both")
        return Form(self.dtype, (*self.shape[:-1], max(self.shape[-1:] + other.shape[-1:]))) if self.shape else self


@dataclass(frozen=True)
class Filled:
    """Fields in one form: zeros where a sample lacks columns or the field, and False in its mask.

    Attributes:
        forms: field → its form.
        masks: field → its mask, for fields that have one.
        n_units: of each source, how many units it has, int64; None: batches have no ``unit_mask``.
        width: columns of ``unit_mask``.
    """

    forms: Mapping[str, Form]
    masks: Mapping[str, str]
    n_units: np.ndarray | None
    width: int

    def fields(self, names: Sequence[str]) -> list[str]:
        """Return the fields, with masks."""
        own = [*self.forms, *self.masks.values(), *([] if self.n_units is None else [UNIT_MASK])]
        return list(dict.fromkeys([*names, *own]))

    def __call__(self, batch: Batch, sources: np.ndarray, memory: Memory) -> Batch:
        """Return the batch with every field in its form."""
        filled = dict(batch)
        for name, form in self.forms.items():
            values = batch.get(name)
            values = [None] * len(sources) if values is None else values
            filled[name] = _filled(name, values, form, memory)
            if name in self.masks:
                mask = batch.get(self.masks[name])
                there = _there(values, [None] * len(sources) if mask is None else mask)
                filled[self.masks[name]] = _filled(self.masks[name], there, Form(torch.bool, form.shape), memory)
        if self.n_units is not None:
            filled[UNIT_MASK] = torch.from_numpy(np.arange(self.width) < self.n_units[sources][:, None])
        return filled


def _there(values: Any, mask: Any) -> Any:
    """Return what is there of each value: its mask, or all of it where it has none."""
    if isinstance(mask, torch.Tensor) and isinstance(values, torch.Tensor):
        return mask
    pairs = zip(values, mask, strict=True)
    return [None if v is None else torch.ones(v.shape, dtype=torch.bool) if m is None else m for v, m in pairs]


def _filled(name: str, values: Any, form: Form, memory: Memory) -> torch.Tensor:
    """Return values in one tensor of shape (B, …), zeros where there are none."""
    if isinstance(values, torch.Tensor) and tuple(values.shape[1:]) == form.shape and values.dtype == form.dtype:
        return values
    whole = memory.empty((len(values), *form.shape), form.dtype).zero_()
    if isinstance(values, torch.Tensor):
        _check(name, values[0], form)
        whole[(..., slice(values.shape[-1])) if form.shape else ...] = values
        return whole
    for row, value in enumerate(values):
        if value is not None:
            array = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
            _check(name, array, form)
            whole[row][(..., slice(array.shape[-1])) if form.shape else ...] = array
    return whole


def _check(name: str, value: torch.Tensor, form: Form) -> None:
    shape = tuple(value.shape)
    fits = len(shape) == len(form.shape) and shape[:-1] == form.shape[:-1] and shape[-1:] <= form.shape[-1:]
    if not fits or value.dtype != form.dtype:
        wanted = f"{list(form.shape)} of {str(form.dtype).removeprefix('torch.')}"
        got = f"{list(shape)} of {str(value.dtype).removeprefix('torch.')}"
        raise ValueError(f"{name} is {got} in a sample, but {wanted} where it was first looked at: it cannot be filled")


def check_filling(pad_units: PadUnits, fill: Fill) -> None:
    """Refuse values of ``pad_units=`` and ``fill=`` that cannot be.

    Raises:
        ValueError: naming the option.
    """
    if not isinstance(pad_units, (bool, int, np.integer)) or pad_units < 0:
        raise ValueError(f"pad_units must be True, False or a number of units, not {pad_units!r}")
    names = [] if isinstance(fill, bool) else fill
    if isinstance(names, str) or not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"fill must be True, False or names of fields, not {fill!r}")


def filling(
    parts: Sequence[tuple[SourcedReader, int, int]], pad_units: PadUnits, fill: Fill, fields: Sequence[str]
) -> Filled:
    """Find the form that every batch of a dataset or mixture has, by one sample of each recording.

    Args:
        parts: the datasets: a reader of their samples, how many sources they have, and how many samples.
        pad_units: whether ``spikes`` have as many columns as the recording with most units, or how many.
        fill: which fields are there for every sample; True: all of numbers.
        fields: that batches have.

    Raises:
        ValueError: there is no such field, recordings differ in more than columns, or have too many units.
        NeurofmxError: a sample cannot be read.
    """
    if not isinstance(fill, bool):
        for name in fill:
            if name not in fields:
                raise ValueError(f"fill: no field {name!r}; {available_hint(sorted(fields), name)}")
    first = [each for reader, n_sources, n in parts for each in _first_samples(reader, n_sources, n)]
    known: dict[str, Form] = {}
    for sample in first:
        for name, form in _forms_of(sample or {}).items():
            if (pad_units and name in _OF_UNITS) or _is_filled(name, fill):
                known[name] = known[name].joined(form, name) if name in known else form
    for name in () if isinstance(fill, bool) else fill:
        if name not in known:
            raise ValueError(f"fill: {name} does not hold arrays of numbers in the selected samples")
    n_units, width = None, 0
    if pad_units:
        n_units, width = _units_of(first, pad_units, parts)
        for name in _OF_UNITS:
            if name in known:
                known[name] = Form(known[name].dtype, (*known[name].shape[:-1], width))
    return Filled(*_with_masks(known, first, fields), n_units, width)


def _is_filled(name: str, fill: Fill) -> bool:
    return name not in _RAGGED and (fill if isinstance(fill, bool) else name in fill or _field_of(name) in fill)


def _field_of(mask: str) -> str:
    return mask.removesuffix("_mask")


def _with_masks(
    known: Mapping[str, Form], first: Sequence[Mapping[str, Any] | None], fields: Sequence[str]
) -> tuple[dict[str, Form], dict[str, str]]:
    """Return the forms without those of masks, and the mask of each field that has one, or that some samples lack."""
    lacking = {name for name in known for sample in first if sample is not None and name not in sample}
    forms = {name: form for name, form in known.items() if not (name.endswith("_mask") and _field_of(name) in known)}
    return forms, {name: f"{name}_mask" for name in forms if f"{name}_mask" in fields or name in lacking}


def _units_of(
    first: Sequence[Mapping[str, Any] | None], pad_units: PadUnits, parts: Sequence[tuple[SourcedReader, int, int]]
) -> tuple[np.ndarray, int]:
    n_units = np.array([0 if s is None or "spikes" not in s else s["spikes"].shape[-1] for s in first], np.int64)
    where = ", ".join(dict.fromkeys(reader.where for reader, _, _ in parts))
    if not any(sample is not None and "spikes" in sample for sample in first):
        raise ValueError(f"pad_units: {where} holds no dense spikes, or they are not among the modalities asked for")
    most = int(n_units.max())
    if pad_units is not True and pad_units < most:
        raise ValueError(f"pad_units={pad_units}: a recording of {where} has {most} units")
    return n_units, most if pad_units is True else int(pad_units)


def _forms_of(sample: Mapping[str, Any]) -> dict[str, Form]:
    """Return the forms of a sample's arrays of numbers."""
    forms = {}
    for name, value in sample.items():
        tensor = to_tensor(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value
        if isinstance(tensor, torch.Tensor):
            forms[name] = Form(tensor.dtype, tuple(tensor.shape))
    return forms


def _first_samples(reader: SourcedReader, n_sources: int, n: int) -> list[dict[str, Any] | None]:
    """Return the first sample of each source; None of a source of which none is selected."""
    found: dict[int, int] = {}
    for start in range(0, n, _AT_ONCE):
        sources, places = np.unique(reader.sources(np.arange(start, min(n, start + _AT_ONCE))), return_index=True)
        for source, place in zip(sources.tolist(), places.tolist(), strict=True):
            found.setdefault(source, start + place)
    samples: list[dict[str, Any] | None] = [None] * n_sources
    for source, sample_id in found.items():
        [samples[source]] = reader.read_samples(np.array([sample_id]))
    return samples
