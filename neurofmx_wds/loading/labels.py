"""Labels of samples: where they are found, how they are replaced, and how a batch holds them.

Knows samples' fields and metadata; knows nothing of files or order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .collate import stack, to_array

TargetTransform = Mapping[Any, Any] | Callable[[Any], Any]


def as_target_transform(given: TargetTransform | None) -> Callable[[Any], Any] | None:
    """Return a loader's `target_transform` as a function of one label.

    Raises:
        TypeError: it is neither a mapping nor a function.

    Example:
        >>> as_target_transform({3: 0, 8: 1})(8)
        1
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        return functools.partial(_of_a_label, functools.partial(_look_up, dict(given)))
    if callable(given):
        return functools.partial(_of_a_label, given)
    raise TypeError(f"target_transform must be a mapping or a function of a label, not {given!r}")


def _look_up(mapping: Mapping[Any, Any], label: Any) -> Any:
    if label not in mapping:
        raise LookupError(f"it has no label {label!r}")
    return mapping[label]


def _of_a_label(function: Callable[[Any], Any], label: Any) -> Any:
    if label is None:
        raise LookupError("the sample has no label, neither as a field nor in its metadata")
    return function(label)


def labels_of(column: Any, metadata: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the labels of a batch, as plain numbers, strings or arrays.

    Args:
        column: the batch's field ``label``, B values; None where it has no such field.
        metadata: of its samples; their ``label`` stands in where there is no field.

    Returns:
        B labels; None for a sample without.

    Example:
        >>> labels_of(torch.tensor([4, 7]), [{}, {}]), labels_of(None, [{"label": "cat"}, {}])
        ([4, 7], ['cat', None])
    """
    if isinstance(column, torch.Tensor):
        return column.tolist() if column.ndim == 1 else list(to_array(column))
    given = [None] * len(metadata) if column is None else column
    return [
        _plain(about.get("label") if label is None else label) for label, about in zip(given, metadata, strict=True)
    ]


def _plain(label: Any) -> Any:
    if isinstance(label, torch.Tensor):
        label = to_array(label)
    return label.item() if isinstance(label, (np.ndarray, np.generic, torch.Tensor)) and label.ndim == 0 else label


def label_column(labels: Sequence[Any]) -> Any:
    """Return labels as the field of a batch: an int64 tensor of shape (B,) where they are whole numbers.

    Example:
        >>> label_column([3, 0, 1])
        tensor([3, 0, 1])
    """
    if all(type(label) is int for label in labels):
        return torch.tensor(labels)
    return stack(labels)


def label_field(label: Any) -> Any:
    """Return a label as the field of a single sample: numbers as 0-d arrays."""
    return np.asarray(label) if isinstance(label, (int, float)) else label
