"""Arrays of unequal length in one tensor for a batch: one after the other, or padded.

Knows batches; knows nothing of shards, order or processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import FieldError
from .collate import to_tensor

RaggedForm = Literal["list", "flat", "padded"]
Empty = Mapping[str, torch.Tensor]  # field → an array of length 0
RAGGED_FORMS = ("list", "flat", "padded")
_OF_SPIKES = ("spike_times", "spike_units", "unit_index")  # fields with one value a spike


def ragged_fields(modalities: Mapping[str, Mapping[str, Any]]) -> Empty:
    """Return the fields whose arrays differ in their first dimension, by what a manifest says of them.

    Returns:
        field → what stands for an array of length 0.

    Example:
        >>> ragged_fields({"spike_times": {"dtype": "int64", "shape": [None]}, "lfp": {"shape": [500, 4]}})
        {'spike_times': tensor([], dtype=torch.int64)}
    """
    found: dict[str, torch.Tensor] = {}
    for name, about in modalities.items():
        shape, dtype = about.get("shape"), about.get("dtype")
        if shape and dtype and shape[0] is None and None not in shape[1:]:
            empty = to_tensor(np.empty((0, *shape[1:]), dtype))
            found |= {name: empty} if isinstance(empty, torch.Tensor) else {}
    return found


@dataclass(frozen=True)
class FlattenRagged:
    """Puts the arrays of some fields of a batch into one tensor each.

    Attributes:
        fields: the fields, whose arrays differ at most in their first dimension, and an empty array of each.
        form: "flat": ``<field>`` (n, …), all arrays one after the other, and ``<field>_offsets`` (B + 1,) int64, where
            each begins; "padded": ``<field>`` (B, n, …), zeros after each array, and ``<field>_mask`` (B, n) bool.
            ``spike_times`` and ``spike_units`` share ``spike_offsets`` or ``spike_mask``.
        multiple: n of padded arrays is a multiple of this.

    Example:
        >>> batch = {"x": [torch.tensor([1, 2, 3]), torch.tensor([4])]}
        >>> nothing = {"x": torch.empty(0, dtype=torch.int64)}
        >>> FlattenRagged(nothing, "flat")(batch)
        {'x': tensor([1, 2, 3, 4]), 'x_offsets': tensor([0, 3, 4])}
        >>> FlattenRagged(nothing, "padded", multiple=4)(batch)["x"].tolist()
        [[1, 2, 3, 0], [4, 0, 0, 0]]
    """

    fields: Empty
    form: RaggedForm
    multiple: int = 8

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with these fields in this form.

        Raises:
            FieldError: a field's arrays differ in more than their first dimension.
        """
        changed = dict(batch)
        of_spikes = {"unit_index": torch.empty(0, dtype=torch.int64)} if "spike_units" in self.fields else {}
        for name, empty in {**self.fields, **of_spikes}.items():
            if name in batch:
                flat, lengths = _joined(name, batch[name], empty)
                about = "spike" if name in _OF_SPIKES else name
                if self.form == "flat":
                    changed[name] = flat
                    changed[f"{about}_offsets"] = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
                else:
                    changed[name], changed[f"{about}_mask"] = self._padded(flat, lengths)
        return changed

    def _padded(self, flat: torch.Tensor, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        n = int(lengths.max(initial=0))
        n += -n % self.multiple
        sample = np.repeat(np.arange(len(lengths)), lengths)
        before = np.cumsum(lengths) - lengths
        cell = torch.from_numpy(sample * n + np.arange(len(sample)) - before[sample])
        padded = flat.new_zeros((len(lengths) * n, *flat.shape[1:]))
        padded[cell] = flat
        mask = torch.zeros(len(lengths) * n, dtype=torch.bool)
        mask[cell] = True
        return padded.view(len(lengths), n, *flat.shape[1:]), mask.view(len(lengths), n)


def _joined(name: str, values: Any, empty: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Return the arrays of a batch one after the other, and the length of each; a sample without one has length 0."""
    if isinstance(values, torch.Tensor) and values.ndim > 1:  # by chance of one length
        return values.flatten(0, 1), np.full(len(values), values.shape[1])
    arrays = [
        empty if value is None else to_tensor(value) if isinstance(value, np.ndarray) else value for value in values
    ]
    kinds = {(each.dtype, each.shape[1:]) for each in arrays if isinstance(each, torch.Tensor) and each.ndim}
    if len(kinds) > 1 or not all(isinstance(each, torch.Tensor) and each.ndim for each in arrays):
        problem = "its arrays differ in more than their first dimension, so that one tensor cannot hold them"
        raise FieldError(problem, member=name, remedy='use ragged="list", or a collate_fn of your own')
    return torch.cat([torch.as_tensor(each) for each in arrays]), np.array([len(each) for each in arrays], np.int64)


def check_ragged(form: str) -> None:
    """Refuse a form that there is not.

    Raises:
        ValueError: it is none of `RAGGED_FORMS`.
    """
    if form not in RAGGED_FORMS:
        raise ValueError(f"ragged must be one of {', '.join(RAGGED_FORMS)}, not {form!r}")


def flattening(form: RaggedForm, multiple: int, fields: Empty, where: str) -> FlattenRagged:
    """Return the function of batches that brings fields into a form.

    Raises:
        ValueError: there is no such field.
    """
    if not fields:
        raise ValueError(
            f"ragged={form!r}: {where} has no field whose arrays differ in length, by its manifest; the form of spikes "
            "that are cut while loading is chosen by Windows(spikes=…)"
        )
    return FlattenRagged(fields, form, multiple)
