"""Samples → one batch: tensors of shape (B, …), lists where that cannot be.

Knows samples and batches; knows nothing of files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch

from ..errors import FieldError
from ..format.decoding import decode_json


class MetadataList:
    """The metadata of a batch: reads like a list of dicts, each decoded from its JSON when it is first asked for.

    It cannot be a ``list``, whose items C code takes without asking, and it is no ``Sequence`` to ``isinstance``: what
    moves batches to a device walks through each of those, and would decode what nobody reads. ``list(…)`` of it is a
    list of plain dicts, for ``json.dumps`` and the like.

    Args:
        texts: one JSON object for each sample.
    """

    __slots__ = ("_items",)

    def __init__(self, texts: Sequence[bytes | dict[str, Any]]) -> None:
        self._items: list[bytes | dict[str, Any]] = list(texts)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> MetadataList: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | MetadataList:
        if isinstance(index, slice):
            return MetadataList([self[i] for i in range(*index.indices(len(self)))])
        item = self._items[index]
        if isinstance(item, bytes):
            item = self._items[index] = self._decoded(index)
        return item

    def _decoded(self, index: int) -> dict[str, Any]:
        item = self._items[index]
        return decode_json(item) if isinstance(item, bytes) else item

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*self, *other]

    def __radd__(self, other: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*other, *self]

    def index(self, value: object) -> int:
        """Return the first place of a sample with this metadata.

        Raises:
            ValueError: there is none.
        """
        return list(self).index(value)  # type: ignore[arg-type]

    def count(self, value: object) -> int:
        """How many samples have this metadata."""
        return list(self).count(value)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (MetadataList, list, tuple)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


@functools.lru_cache(maxsize=256)
def torch_dtype(dtype: str) -> torch.dtype | None:
    """Return torch's dtype for a numpy dtype; None where torch has none, or the byte order is foreign.

    Example:
        >>> torch_dtype("<f4"), torch_dtype(">f4"), torch_dtype("<U3")
        (torch.float32, None, None)
    """
    if not np.dtype(dtype).isnative:
        return None
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        return None


def to_tensor(array: np.ndarray) -> torch.Tensor | np.ndarray:
    """Return the array as a tensor that shares its memory; unchanged where torch has no such dtype (strings, dates)."""
    array = _native(array)
    if not array.flags.writeable:
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError:
        return array
    except ValueError:  # strides that torch cannot have: negative, or no multiple of an item
        return torch.from_numpy(array.copy())


def to_array(tensor: torch.Tensor) -> np.ndarray | torch.Tensor:
    """Return the tensor as an array that shares its memory; unchanged where numpy has no such dtype (bfloat16)."""
    try:
        return tensor.numpy(force=True)  # without its gradient
    except TypeError:
        return tensor


def _native(array: np.ndarray) -> np.ndarray:
    native = array.dtype.newbyteorder("=")  # numpy's own isnative overlooks arrays within structures
    return array if array.dtype == native else array.astype(native)


def stack(values: Sequence[Any], pad_value: float | None = None) -> Any:
    """One field of a batch.

    Args:
        values: the field's value in each sample; None where a sample lacks it.
        pad_value: fill arrays of unequal shape up to the largest with this value.

    Returns:
        Of shape (B, …) and contiguous where the values are arrays, tensors or numbers of one dtype and shape (or are
        padded to it): a tensor, or an array where torch has no such dtype (strings, dates, structures). A list of B
        values otherwise, in which arrays are tensors too where torch has their dtype.
    """
    if any(isinstance(value, (str, bytes, Mapping, list, tuple)) or value is None for value in values):
        return [to_tensor(value) if isinstance(value, np.ndarray) else value for value in values]
    if any(isinstance(value, torch.Tensor) for value in values):
        given = [value if isinstance(value, torch.Tensor) else to_tensor(np.asarray(value)) for value in values]
        return _stack_tensors(given, pad_value)
    arrays = [np.asarray(value) for value in values]
    if len({array.dtype for array in arrays}) > 1:  # perhaps in their byte order only
        arrays = [_native(array) for array in arrays]
    shapes = {array.shape for array in arrays}
    if len({array.dtype for array in arrays}) > 1 or len({len(shape) for shape in shapes}) > 1:
        return [to_tensor(array) for array in arrays]
    if len(shapes) == 1:
        return to_tensor(np.stack(arrays, out=np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype)))
    if pad_value is None:
        return [to_tensor(array) for array in arrays]
    padded = np.full((len(arrays), *np.max(list(shapes), axis=0)), pad_value, arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return to_tensor(padded)


def _stack_tensors(values: Sequence[Any], pad_value: float | None) -> Any:
    """As :func:`stack`, of tensors; also of dtypes that numpy does not have, or with gradients."""
    kinds = {(value.dtype, value.ndim) for value in values}
    shapes = {value.shape for value in values}
    if len(kinds) > 1 or (len(shapes) > 1 and pad_value is None):
        return list(values)
    if len(shapes) == 1:
        stacked = torch.stack(list(values))  # permuted where they are
        return stacked.contiguous() if stacked.layout is torch.strided else stacked
    padded = values[0].new_full((len(values), *map(max, *shapes)), pad_value)
    for row, value in enumerate(values):
        padded[row][tuple(map(slice, value.shape))] = value
    return padded


def collate_webdataset(samples: Sequence[Mapping[str, Any]], pad_value: float | None = None) -> dict[str, Any]:
    """Make one batch of samples.

    Args:
        samples: dicts of arrays, ``metadata`` and ``__key__``, as the loaders yield them.
        pad_value: fill arrays of unequal shape up to the largest with this value. Every field of arrays then has
            ``<field>_lengths`` beside it, an int64 tensor of shape (B, ndim) with each array's own shape, also in a
            batch where all are alike: what a model asks for must not depend on which samples meet. A field of that
            name that the samples have stays theirs. By default arrays of unequal shape come as a list.

    Returns:
        field → tensor of shape (B, …) (an array where torch has no such dtype: strings, dates), or a list of B values
        where the samples differ in shape or are not arrays (None where a sample lacks the field); ``metadata``: list of
        B dicts; ``__key__``: list of B strings.

    Raises:
        FieldError: there is no sample.

    Example:
        >>> samples = [{"__key__": str(i), "spikes": np.zeros((100, 96), "float32")} for i in range(4)]
        >>> collate_webdataset(samples)["spikes"].shape
        torch.Size([4, 100, 96])
    """
    if not samples:
        raise FieldError("a batch needs at least one sample", remedy="check what your transform or filter leaves over")
    batch: dict[str, Any] = {}
    names = dict.fromkeys(name for sample in samples for name in sample)
    for name in names:
        values: list[Any] = [sample.get(name) for sample in samples]
        if name in ("metadata", "__key__"):
            batch[name] = values
            continue
        batch[name] = stack(values, pad_value)
        if pad_value is not None and f"{name}_lengths" not in names and getattr(batch[name], "ndim", 0) > 1:
            batch[f"{name}_lengths"] = torch.tensor([np.shape(value) for value in values])
    return batch
