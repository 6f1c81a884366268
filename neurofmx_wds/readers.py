"""Sample ids → samples and batches: one place that knows offsets, one that fills a batch.

Knows indexes and shards; knows nothing of order, epochs or ranks.
"""

from __future__ import annotations

import math
import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch

from . import fields
from .collate import MetadataList, stack
from .errors import NeurofmxError, ShardError
from .fields import ArrayLayout
from .index import Column, ShardIndex
from .shards import ShardSet

IO = Literal["auto", "mmap", "pread"]
Handler = Callable[[Exception], bool]
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "lustre", "gpfs", "beegfs", "ceph", "9p", "afs", "gluster")


class _Bytes(Protocol):
    """The bytes of one unpacked tar."""

    def copy_into(self, row: np.ndarray, offset: int) -> None:
        """Fill `row` (uint8) from `offset` on."""

    def payload(self, offset: int, size: int) -> bytes | memoryview:
        """`size` bytes from `offset` on."""


class _Mapped:
    """A tar mapped into memory. If the file shrinks while it is mapped, the kernel ends the process (SIGBUS)."""

    def __init__(self, fd: int, size: int) -> None:
        self.map = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self.map, np.uint8)

    def copy_into(self, row: np.ndarray, offset: int) -> None:
        row[:] = self.array[offset : offset + len(row)]

    def payload(self, offset: int, size: int) -> bytes | memoryview:
        return self.map[offset : offset + size]


class _Preads:
    """A tar read with system calls: a file that shrinks gives an error."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = os.dup(fd)
        self.path = path

    def copy_into(self, row: np.ndarray, offset: int) -> None:
        view = row.data
        while len(view):
            count = os.preadv(self.fd, [view], offset)
            if count == 0:
                raise ShardError("the shard was cut while it was read", file=self.path, remedy="restore it")
            view, offset = view[count:], offset + count

    def payload(self, offset: int, size: int) -> bytes | memoryview:
        row = np.empty(size, np.uint8)
        self.copy_into(row, offset)
        return row.data

    def __del__(self) -> None:
        os.close(self.fd)


class _OpenShard:
    """A shard in use: its bytes and its index."""

    def __init__(self, shards: ShardSet, i: int, io: IO) -> None:
        self.path = str(shards.paths[i])
        self.index: ShardIndex = shards.index(i)
        with shards.open(i) as stream:
            fd = stream.fileno()
            mapped = io == "mmap" or (io == "auto" and _is_local(os.fstat(fd).st_dev))
            self.bytes: _Bytes = _Mapped(fd, self.index.tar_size) if mapped else _Preads(fd, self.path)
        self.columns: dict[str, Column] = self.index.columns

    def decode(self, name: str, sample: int) -> Any:
        """The value of one field of one sample; None where the sample lacks it."""
        column = self.columns.get(name)
        if column is None or column.offset[sample] < 0:
            return None
        payload = self.bytes.payload(int(column.offset[sample]), int(column.size[sample]))
        try:
            return fields.decode(column.suffix, payload)
        except NeurofmxError as error:
            raise type(error)(
                error.problem,
                file=self.path,
                sample=self.index.sample_keys[sample],
                member=column.suffix,
                remedy=error.remedy or "restore the shard from a copy, or skip it with handler=",
            ) from error


def _is_local(device: int) -> bool:
    """Whether a device is a file system on which a mapped file cannot be replaced behind our back."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                major, minor = before.split()[2].split(":")
                if os.makedev(int(major), int(minor)) == device:
                    return not after.split()[0].startswith(_NETWORK_FILE_SYSTEMS)
    except OSError:
        pass
    return True


class ShardReader:
    """Reads samples and batches by sample id, the place of a sample in its dataset.

    Args:
        shards: the dataset.
        modalities: the fields to read; by default all. Nothing of the others is read.
        selected: ids of the samples to be seen, ascending; sample ids then count within them.
        io: ``"mmap"`` maps shards into memory, ``"pread"`` reads them with system calls, ``"auto"`` maps on local
            file systems only. A mapped file that is shrunk in place ends the process: no program can prevent that.
        max_open: shards kept open at once.

    Raises:
        ValueError: a bad `io`, or a modality that no shard has.
    """

    def __init__(
        self,
        shards: ShardSet,
        modalities: Sequence[str] | None = None,
        selected: np.ndarray | None = None,
        io: IO = "auto",
        max_open: int | None = None,
    ) -> None:
        if io not in ("auto", "mmap", "pread"):
            raise ValueError(f'io must be "auto", "mmap" or "pread", not {io!r}')
        self.shards = shards
        self.modalities = None if modalities is None else tuple(modalities)
        self.io = io
        self.max_open = max_open or max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        self._starts = np.concatenate([[0], np.cumsum(shards.counts)])
        self._selected = selected
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._check_modalities()

    def _check_modalities(self) -> None:
        if self.modalities is None or not self.shards.paths:
            return
        manifest = self.shards.manifest
        known = set(manifest.modalities) if manifest else set(self.shards.index(0).columns)
        missing = [name for name in self.modalities if name not in known]
        if missing and manifest:
            raise ValueError(f"no field {', '.join(missing)} in the dataset; it has {', '.join(sorted(known))}")

    @property
    def counts(self) -> np.ndarray:
        """Samples to be seen in each shard, shape (n_shards,), int64."""
        if self._selected is None:
            return self.shards.counts
        places = np.searchsorted(self._selected, self._starts)
        return np.diff(places)

    def locate(self, ids: np.ndarray) -> tuple[list[int], list[int]]:
        """Shard and place in it of each sample id."""
        if self._selected is not None:
            ids = self._selected[ids]
        shard = np.searchsorted(self._starts, ids, side="right") - 1
        return shard.tolist(), (ids - self._starts[shard]).tolist()

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """The samples' ids in the whole dataset, whatever the selection."""
        return ids if self._selected is None else self._selected[ids]

    def _shard(self, i: int) -> _OpenShard:
        shard = self._open.pop(i, None)
        if shard is None:
            shard = _OpenShard(self.shards, i, self.io)
        self._open[i] = shard
        if len(self._open) > self.max_open:
            self._open.popitem(last=False)
        return shard

    def read_batch(self, ids: np.ndarray) -> dict[str, Any]:
        """A batch of the samples with these ids, as :func:`neurofmx_wds.collate_webdataset` would make it.

        Args:
            ids: sample ids, shape (B,), int64.

        Returns:
            field → tensor of shape (B, …) or list; ``metadata``: decoded when asked for; ``__key__``: list of B str.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        where, rows = self.locate(ids)
        shards = {i: self._shard(i) for i in dict.fromkeys(where)}
        places = [(shards[i], row) for i, row in zip(where, rows, strict=True)]
        names = self.modalities or dict.fromkeys(name for shard in shards.values() for name in shard.columns)
        batch = {name: _read_field(name, places, shards.values()) for name in names if name != "metadata"}
        batch["metadata"] = MetadataList([shard.index.metadata_json(row) for shard, row in places])
        batch["__key__"] = [shard.index.sample_keys[row] for shard, row in places]
        return batch

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The samples with these ids, each a dict of writable numpy arrays, ``metadata`` and ``__key__``.

        Args:
            ids: sample ids, shape (B,), int64.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        batch = self.read_batch(ids)
        columns = {
            name: values.numpy() if isinstance(values, torch.Tensor) else values for name, values in batch.items()
        }
        return [_sample(columns, row) for row in range(len(ids))]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def _sample(columns: dict[str, Any], row: int) -> dict[str, Any]:
    values = {name: column[row] for name, column in columns.items()}
    return {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
        if value is not None
    }


def _read_field(name: str, places: Sequence[tuple[_OpenShard, int]], shards: Any) -> Any:
    layouts = {None if (c := shard.columns.get(name)) is None else c.layout for shard in shards}
    layout = layouts.pop() if len(layouts) == 1 else None
    if layout is None:
        return stack([shard.decode(name, row) for shard, row in places])
    out, rows = _empty_rows(layout, len(places))
    if out is None:
        return stack([shard.decode(name, row) for shard, row in places])
    header = layout.header_size
    for target, (shard, row) in zip(rows, places, strict=True):
        shard.bytes.copy_into(target, int(shard.columns[name].offset[row]) + header)
    return out


def _empty_rows(layout: ArrayLayout, n: int) -> tuple[torch.Tensor | None, np.ndarray]:
    dtype = np.dtype(layout.dtype)
    sample = torch_dtype(dtype)
    if sample is None:
        return None, np.empty(0, np.uint8)
    out = torch.empty((n, *layout.shape), dtype=sample)
    rows = out.numpy().reshape(n, math.prod(layout.shape)).view(np.uint8)
    return out, rows


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype | None:
    """torch's name for a numpy dtype; None where there is none, or in foreign byte order."""
    if not dtype.isnative:
        return None
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        return None


def skipping(read: Callable[[np.ndarray], Any], ids: np.ndarray, handler: Handler) -> list[int]:
    """Which places of `ids` can be read, asking `handler` about each that cannot.

    Args:
        read: reads the samples with the given ids, or raises.
        ids: sample ids, shape (B,).
        handler: one of webdataset's handlers: raises, or says whether to go on.

    Returns:
        Places in `ids` of the samples to keep.
    """
    kept = []
    for place in range(len(ids)):
        try:
            read(ids[place : place + 1])
            kept.append(place)
        except Exception as error:
            if not handler(error):
                break
    return kept
