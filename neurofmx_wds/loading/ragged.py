"""Fields whose arrays differ in length: the values of a batch in one piece, with nothing decoded or padded by sample.

Knows where payloads lie; knows nothing of batches' other fields.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..format.columns import Column
from ..format.index import ShardIndex
from ..storage.checksums import crc32_function
from .collate import torch_dtype

if TYPE_CHECKING:
    from .open_shard import OpenShard


class Ragged(NamedTuple):
    """A field of a shard: arrays of one dtype that differ at most in their first dimension.

    Attributes:
        column: where its payloads lie.
        dtype: of the arrays.
        trailing: their shape without the first dimension.
        header_size: bytes before an array's data.
        starts, sizes: offset and size of each sample's payload, in bytes.
        crc32s: the payloads' checksums; None where they are not compared.
    """

    column: Column
    dtype: torch.dtype
    trailing: tuple[int, ...]
    header_size: int
    starts: list[int]
    sizes: list[int]
    crc32s: list[int] | None

    @property
    def row_size(self) -> int:
        """Bytes of one step along the first dimension."""
        return self.dtype.itemsize * math.prod(self.trailing)

    @classmethod
    def of(cls, index: ShardIndex, column: Column | None, checksums: bool) -> Ragged | None:
        """Return the field if its payloads are as described: a header, the data and no more; else None."""
        if column is None or not len(column.layout_id) or (column.layout_id < 0).any():
            return None
        layouts = [index.layouts[i] for i in np.unique(column.layout_id).tolist()]
        kinds = {(layout.dtype, layout.shape[1:], layout.header_size) for layout in layouts if layout.shape}
        if len(kinds) != 1 or not all(layout.shape for layout in layouts):
            return None
        [(name, trailing, header_size)] = kinds
        dtype = torch_dtype(name)
        n_bytes = np.array([layout.n_bytes for layout in index.layouts], np.int64)[column.layout_id]
        if dtype is None or not math.prod(trailing) or (column.size != header_size + n_bytes).any():
            return None
        crc32s = column.crc32.tolist() if checksums and column.crc32 is not None else None
        return cls(column, dtype, trailing, header_size, column.offset.tolist(), column.size.tolist(), crc32s)


def read_ragged(name: str, shards: Sequence[OpenShard], rows: Sequence[int]) -> tuple[torch.Tensor, list[int]] | None:
    """Read a field of some samples.

    Args:
        name: the field's name.
        shards: the shard of each sample.
        rows: its place in the shard.

    Returns:
        The samples' values one after the other, shape (sum of lengths, …), and the lengths; None where the arrays do
        not differ in their first dimension only.

    Raises:
        ShardError: a payload is not what was written.
    """
    fields = [shard.ragged(name) for shard in shards]
    first = fields[0]
    if first is None or any(f is None or (f.dtype, f.trailing) != (first.dtype, first.trailing) for f in fields):
        return None
    here: list[Any] = fields
    sizes = [field.sizes[row] for field, row in zip(here, rows, strict=True)]
    starts = [field.starts[row] for field, row in zip(here, rows, strict=True)]
    payloads = shards[0].access.read([shard.source for shard in shards], starts, sizes)
    crc32 = crc32_function(max(sizes))
    found = list(map(crc32, payloads, itertools.repeat(0)))
    if found != [None if field.crc32s is None else field.crc32s[row] for field, row in zip(here, rows, strict=True)]:
        for field, row, shard, value in zip(here, rows, shards, found, strict=True):
            if field.crc32s is not None and field.crc32s[row] != value:
                raise shard.error_if_changed(field.column, row)
    data = bytearray().join([payload[field.header_size :] for payload, field in zip(payloads, here, strict=True)])
    lengths = [(size - field.header_size) // first.row_size for size, field in zip(sizes, here, strict=True)]
    flat = torch.frombuffer(data, dtype=first.dtype) if data else torch.empty(0, dtype=first.dtype)
    return flat.view(-1, *first.trailing), lengths


def split(flat: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
    """Return each sample's array: a tensor of shape (B, …) where all have one length, else a list of B tensors.

    Example:
        >>> [part.tolist() for part in split(torch.arange(5), [2, 0, 3])]
        [[0, 1], [], [2, 3, 4]]
        >>> split(torch.arange(6), [3, 3]).shape
        torch.Size([2, 3])
    """
    if len(set(lengths)) == 1:
        return flat.view(len(lengths), lengths[0], *flat.shape[1:])
    return list(torch.split(flat, list(lengths)))
