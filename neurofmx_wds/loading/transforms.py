"""Users' functions on samples, batches and labels: how they are called, and the random numbers that they get.

Knows nothing of files, order or workers.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch

from .collate import stack, to_array

Transform = Callable[..., Any]
BatchTransform = Callable[..., Any]
TargetTransform = Mapping[Any, Any] | Callable[[Any], Any]


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """The random numbers that a sample's augmentation gets in an epoch, wherever and whenever it is loaded.

    Args:
        seed: the loader's seed. One from -2^64 to -1 gives the numbers of that plus 2^64; all others differ.
        epoch: the epoch.
        sample_id: the sample's place in the whole dataset.
    """
    high, low = divmod(seed, 1 << 64)
    words = np.array([low, epoch, sample_id], np.uint64).tobytes()
    if high not in (0, -1):  # so that those of small seeds are what they were before larger ones were told apart
        words += str(high).encode()
    key = np.frombuffer(hashlib.blake2b(words, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class SampleRngs(Sequence[np.random.Generator]):
    """The generators of a batch's samples; each is made when it is first asked for, and goes on from there.

    What one transform has drawn for a sample the next one does not get again, and how the samples are put into batches
    makes no difference to any of them.

    Attributes:
        seed: the loader's seed.
        epoch: the epoch.
        sample_ids: the samples' places in the whole dataset, shape (B,), int64.
    """

    def __init__(self, seed: int, epoch: int, sample_ids: np.ndarray) -> None:
        self.seed = seed
        self.epoch = epoch
        self.sample_ids = sample_ids
        self._made: dict[int, np.random.Generator] = {}

    @classmethod
    def joined(cls, singles: Sequence[SampleRngs]) -> SampleRngs:
        """The generators of single samples as those of a batch."""
        first = singles[0]
        batch = cls(first.seed, first.epoch, np.concatenate([single.sample_ids for single in singles]))
        batch._made = {row: single[0] for row, single in enumerate(singles)}
        return batch

    def __len__(self) -> int:
        return len(self.sample_ids)

    @overload
    def __getitem__(self, row: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, row: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, row: int | slice) -> np.random.Generator | list[np.random.Generator]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        i = range(len(self))[row]
        if i not in self._made:
            self._made[i] = sample_rng(self.seed, self.epoch, int(self.sample_ids[i]))
        return self._made[i]


def takes_rng(transform: Transform) -> bool:
    """Whether a transform is ``transform(sample, rng)`` or ``transform(batch, rngs)``."""
    try:
        called = transform.forward if isinstance(transform, torch.nn.Module) else transform
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty or p.name in ("rng", "rngs")]) >= 2


def as_target_transform(given: TargetTransform | None) -> Callable[[Any], Any] | None:
    """What the loaders take for `target_transform`, as a function of one label.

    Raises:
        TypeError: it is neither a mapping nor a function.
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
    """The labels of a batch, as plain numbers, strings or arrays.

    Args:
        column: the batch's field ``label``, or None where it has none.
        metadata: of its samples; their ``label`` stands in where there is no field.

    Returns:
        B labels; None for a sample without.
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
    """Mapped labels as the field of a batch: an int64 tensor of shape (B,) where they are whole numbers."""
    if all(type(label) is int for label in labels):
        return torch.tensor(labels)
    return stack(labels)


def as_batch_transforms(given: BatchTransform | Sequence[BatchTransform] | None) -> tuple[BatchTransform, ...]:
    """What the loaders take for `batch_transform`, as a tuple.

    Raises:
        TypeError: something in it cannot be called.
    """
    several = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(map(callable, several)):
        raise TypeError(f"batch_transform must be a function of a batch, or a list of them, not {given!r}")
    return several
