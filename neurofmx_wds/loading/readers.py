"""Sample ids → samples and batches: one place that knows offsets, one that fills a batch.

Knows indexes and shards; knows nothing of order, epochs or ranks.
"""

from __future__ import annotations

import errno
import functools
import io
import itertools
import math
import mmap
import operator
import os
import resource
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import NeurofmxError, ShardError, available_hint, shown
from ..format import fields
from ..format.fields import Buffer
from ..format.index import AGAIN, Column, ShardIndex
from ..format.shards import ShardSet
from ..storage.cache import is_compressed
from ..storage.checksums import LET_OTHERS_RUN, crc32_of
from ..storage.mounts import is_local
from .collate import MetadataList, collate_webdataset, stack, to_array
from .memory import BatchMemory, Memory, Rows

IOMode = Literal["auto", "mmap", "pread"]
Handler = Callable[[Exception], bool]
_OPEN_BYTES = 512 << 20
_MOST_OPEN = 1 << 14  # of all readers: the system lets a process map some 65,000 files
_MAPPING: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # keep no file handle of its own
_PIECE = 1 << 20  # bytes whose checksum is taken at once, where they are read for it
_IS_STORED = {"dtype", "format"}  # what a manifest says of a field that samples have, not only somebody's words on it
_RESTORE = f"restore the shard from a copy, {AGAIN}, or skip the sample with handler="


def _copy_mapped(views: Sequence[memoryview], starts: Sequence[int], rows: Rows) -> None:
    """Fill each row with what begins at its start in the tar that is mapped beside it."""
    size, step = rows.size, _step(starts)
    if step >= size and all(map(operator.is_, views, itertools.repeat(views[0]))):
        evenly = np.ndarray((len(starts), size), np.uint8, views[0], starts[0], (step, 1))
        np.frombuffer(rows.whole, np.uint8).reshape(-1, size)[:] = evenly  # one call, in which other threads can run
    elif size < LET_OTHERS_RUN:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            row[:] = view[start : start + size]
    else:
        for row, view, start in zip(rows.each, views, starts, strict=True):
            np.frombuffer(row, np.uint8)[:] = np.frombuffer(view, np.uint8, size, start)  # numpy lets other threads run


def _step(starts: Sequence[int]) -> int:
    """The distance between neighbours where it is the same for all, as for samples one after the other; else 0."""
    step = starts[1] - starts[0] if len(starts) > 1 else 0
    even = step > 0 and all(map(operator.eq, starts, range(starts[0], starts[0] + len(starts) * step, step)))
    return step if even else 0


def _copy_pread(files: Sequence[io.FileIO], starts: Sequence[int], rows: Rows) -> None:
    """As :func:`_copy_mapped`, from open files: one that shrinks gives an error."""
    for row, file, start in zip(rows.each, files, starts, strict=True):
        while len(row):
            count = os.preadv(file.fileno(), [row], start)
            if count == 0:
                raise ShardError("the shard was cut while it was read", file=file.name, remedy="restore it")
            row, start = row[count:], start + count


class _OpenShard:
    """A shard in use.

    Attributes:
        source: its tar, mapped or open.
        signature: name, dtype (None where the samples differ or are no plain arrays) and shape of each field. Shards
            that are alike have the very same object.
        to_check: whether there may be samples whose plain arrays have not been compared with their checksums yet.
        records: for each sample where its fields' data begin, its key and its metadata: one look gives all.
    """

    def __init__(self, shards: ShardSet, i: int, names: Iterable[str], mapped: bool, checksums: bool) -> None:
        self.index = shards.index(i)
        self.path = shards.paths[i]
        stream = shards.open(i)
        self.source: Any = stream
        self._remedy = _RESTORE
        if is_compressed(self.path):  # whose own checksum was compared when it was unpacked
            self._remedy = f"remove its unpacked copy, {shards.cache.copy_of(self.path)}; else {_RESTORE}"
        if mapped:
            with stream:
                mapped_file = mmap.mmap(stream.fileno(), self.index.tar_size, access=mmap.ACCESS_READ, **_MAPPING)
                self.source = memoryview(mapped_file)
        else:
            weakref.finalize(self, stream.close)
        here = _columns(self.index, names)
        self.signature = _same(tuple((name, *_plain_array(column)) for name, column in here))
        starts = [column.data_starts if column else [-1] * self.index.n_samples for _, column in here]
        self.records = list(zip(*starts, self.index.sample_keys, self.index.sample_metadata, strict=True))
        self._checksums = checksums
        self._copied = [column for _, column in here if column and column.layout]
        self.to_check = checksums and self.index.has_checksums and bool(self._copied)

    @property
    def n_bytes(self) -> int:
        """Memory that it takes, roughly."""
        return len(self.records) * (250 + 40 * len(self.signature)) + self.index.n_bytes

    def decode(self, name: str, row: int, copy: Callable[..., None]) -> Any:
        """The value of one field of one sample; None where the sample lacks it."""
        column = self.index.columns.get(name)
        if column is None or column.offset[row] < 0:
            return None
        suffix = self.index.suffixes[column.suffix_id[row]]
        payload = bytearray(int(column.size[row]))
        if payload:
            copy([self.source], [int(column.offset[row])], Rows(memoryview(payload)))
        self._compare(column, row, [payload])
        try:
            return fields.decode(suffix, payload)
        except NeurofmxError as error:
            raise type(error)(
                error.problem,
                file=self.path,
                sample=self.index.sample_keys[row],
                member=suffix,
                remedy=error.remedy or _RESTORE,
            ) from error

    def check(self, row: int) -> None:
        """Compare a sample's plain arrays with their checksums.

        Raises:
            ShardError: they are not what was written.
        """
        for column in self._copied:
            start = int(column.offset[row])
            self._compare(column, row, self._pieces(start, start + int(column.size[row])))

    def _pieces(self, start: int, stop: int) -> Iterator[memoryview]:
        if isinstance(self.source, memoryview):
            yield self.source[start:stop]
            return
        piece = memoryview(bytearray(min(_PIECE, stop - start)))
        for place in range(start, stop, _PIECE):
            part = piece[: stop - place]
            _copy_pread([self.source], [place], Rows(part))
            yield part

    def _compare(self, column: Column, row: int, payload: Iterable[Buffer]) -> None:
        if self._checksums and column.crc32 is not None and crc32_of(payload) != column.crc32[row]:
            raise ShardError(
                "the bytes have changed since they were written: their checksum differs",
                file=self.path,
                sample=self.index.sample_keys[row],
                member=self.index.suffixes[column.suffix_id[row]],
                remedy=self._remedy,
            )


def _columns(index: ShardIndex, names: Iterable[str]) -> list[tuple[str, Column | None]]:
    """The fields with these names; None for what only other shards have. What is in several columns is left out."""
    held = {fields.field_of(suffix) for suffix in index.suffixes} - set(index.columns) | {"metadata"}
    return [(name, index.columns.get(name)) for name in names if name not in held]


_Signature = tuple[tuple[str, torch.dtype | None, tuple[int, ...]], ...]


@functools.lru_cache(maxsize=1024)
def _same(signature: _Signature) -> _Signature:
    return signature


def _plain_array(column: Column | None) -> tuple[torch.dtype | None, tuple[int, ...]]:
    if column is None or column.layout is None:
        return None, ()
    return torch_dtype(column.layout.dtype), column.layout.shape


def _flags(n: int) -> mmap.mmap:
    """`n` bytes, all 0, that this process shares with those forked from it; one that is never set takes no memory."""
    return mmap.mmap(-1, max(1, n))


_readers: weakref.WeakSet[ShardReader] = weakref.WeakSet()  # of this process, and those inherited from its parent
_bookkeeping = threading.Lock()  # of what they have open; held for moments only
os.register_at_fork(
    before=_bookkeeping.acquire, after_in_parent=_bookkeeping.release, after_in_child=_bookkeeping.release
)


def _may_be_open() -> int:
    """Shards that all readers together may keep open: half of the process's files are left to everybody else."""
    return max(16, min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def _close_down_to(n: int) -> bool:
    """Keep no more than `n` shards open, each time closing one of the reader that has most; whether any was closed."""
    excess = sum(len(reader._open) for reader in _readers) - n
    for _ in range(excess):
        max(_readers, key=lambda reader: len(reader._open))._close_first()
    return excess > 0


def _is_out_of_files(error: Exception) -> bool:
    """Whether no file could be opened because too many are: which says nothing of any sample."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


class ShardReader:
    """Reads samples and batches by sample id, the place of a sample in its dataset.

    Args:
        shards: the dataset.
        modalities: the fields to read, or the name of one; by default all. Nothing of the others is read.
        selected: ids of the samples to be seen, ascending; sample ids then count within them.
        io: ``"mmap"`` maps shards into memory, ``"pread"`` reads them with system calls, ``"auto"`` maps on local
            file systems only. A mapped file that is shrunk in place ends the process: no program can prevent that.
        max_open: shards that this reader keeps open at most; those opened first are closed first. However many it is,
            all readers of a process together keep half as many open as it may open files (``ulimit -n``), and a batch
            of more shards than half of that, or than `max_open`, is read in parts.
        checksums: compare a sample's payloads with the checksums in its shard's index: plain arrays when the sample is
            read first, all others whenever they are decoded. None: where the index has them; True: it must.

    Attributes:
        fields: those asked for, else those that the manifest says the samples have: every batch has them.

    Raises:
        ValueError: a bad `io`, or a modality that no shard has.
    """

    def __init__(
        self,
        shards: ShardSet,
        modalities: Sequence[str] | None = None,
        selected: np.ndarray | None = None,
        io: IOMode = "auto",
        max_open: int | None = None,
        checksums: bool | None = None,
    ) -> None:
        if io not in ("auto", "mmap", "pread"):
            raise ValueError(f'io must be "auto", "mmap" or "pread", not {io!r}')
        self.shards = shards
        wanted = [modalities] if isinstance(modalities, str) else modalities
        self.modalities = None if wanted is None else tuple(wanted)
        manifest = shards.manifest
        stored = [name for name, about in manifest.modalities.items() if _IS_STORED & set(about)] if manifest else []
        self.fields = [name for name in (stored if wanted is None else wanted) if name != "metadata"]
        self.io = io
        self.max_open = max_open or _MOST_OPEN
        self._at_once = min(self.max_open, _may_be_open() // 2)  # others may be reading too
        self._mapped = io == "mmap" or (io == "auto" and all(map(is_local, {path.parent for path in shards.paths})))
        self._copy: Callable[..., None] = _copy_mapped if self._mapped else _copy_pread
        self._starts = np.concatenate([[0], np.cumsum(shards.counts)])
        self._selected = selected
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._open_bytes = 0
        self._checksums = checksums
        self._first = self._starts.tolist()
        self._checked = _flags(shards.n_samples)  # of each sample, whether its plain arrays have been
        self._opening = threading.Lock()  # several iterators, each with a thread that reads ahead, share a reader
        self._memory = BatchMemory()
        self._check_modalities()
        with _bookkeeping:
            _readers.add(self)

    def _check_modalities(self) -> None:
        if self.modalities is None or not self.shards.paths:
            return
        known: set[str] = set(self.shards.manifest.modalities) if self.shards.manifest else set()
        unread = iter(range(0 if self.shards.manifest else len(self.shards.paths)))
        while missing := [name for name in self.modalities if name not in known and name != "metadata"]:
            i = next(unread, None)
            if i is None:
                raise ValueError(
                    f"no field {shown(missing)} in the dataset; {available_hint(sorted(known), missing[0])}"
                )
            known.update(self.shards.index(i).columns)

    @property
    def where(self) -> str:
        """The directory of the shards; of the first, where they are a list from several."""
        return str(self.shards.paths[0].parent) if self.shards.paths else ""

    @property
    def sample_bytes(self) -> int:
        """About how many bytes a sample takes in its shard."""
        return self.shards.sample_bytes

    @property
    def counts(self) -> np.ndarray:
        """Samples to be seen in each shard, shape (n_shards,), int64."""
        if self._selected is None:
            return self.shards.counts
        places = np.searchsorted(self._selected, self._starts)
        return np.diff(places)

    @property
    def open_bytes(self) -> int:
        """Memory that the shards kept open take at most, roughly: what one of them takes says."""
        i = next(iter(self._open), int(np.flatnonzero(self.counts)[0]))  # the first may be one that cannot be read
        each = self._shard(i).n_bytes
        return min(_OPEN_BYTES + each, math.ceil(each * self.shards.n_samples / max(1, self.shards.counts[i])))

    def locate(self, ids: np.ndarray) -> tuple[list[int], list[int]]:
        """Shard and place in it of each sample id."""
        if self._selected is not None:
            ids = self._selected[ids]
        shard = self._starts.searchsorted(ids, side="right") - 1
        return shard.tolist(), (ids - self._starts[shard]).tolist()

    def name(self, sample_id: int) -> tuple[Path, str]:
        """Shard and key of a sample, to name it in an error."""
        (shard,), (row,) = self.locate(np.array([sample_id]))
        return self.shards.paths[shard], self.shards.index(shard).sample_keys[row]

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """The samples' ids in the whole dataset, whatever the selection."""
        return ids if self._selected is None else self._selected[ids]

    def _shard(self, i: int) -> _OpenShard:
        with self._opening:
            shard = self._open.get(i)
            if shard is not None:  # another thread was faster
                return shard
            shard = self._opened(i)
            if self._checksums and not shard.index.has_checksums:
                remedy = "run `python -m neurofmx_wds index` on the directory"
                raise ShardError("the index has no checksums", file=shard.path, remedy=remedy)
            with _bookkeeping:
                self._open[i] = shard
                self._open_bytes += shard.n_bytes
                while len(self._open) > self.max_open or (self._open_bytes > _OPEN_BYTES and len(self._open) > 1):
                    self._close_first()
                _close_down_to(_may_be_open())
            return shard

    def _opened(self, i: int) -> _OpenShard:
        """Shard i, opened. Where the process has no file left for it, half of what readers keep open is closed."""
        while True:
            try:
                here = self.shards.index(i).columns if self.modalities is None else ()
                names = dict.fromkeys([*here, *self.fields])
                return _OpenShard(self.shards, i, names, self._mapped, self._checksums is not False)
            except OSError as error:
                if not _is_out_of_files(error):
                    raise
                with _bookkeeping:
                    if not _close_down_to(sum(len(reader._open) for reader in _readers) // 2):
                        problem = f"{error.strerror}, though no shard is kept open (allow more: ulimit -n)"
                        raise OSError(error.errno, problem, error.filename) from error

    def _close_first(self) -> None:
        """Let go of the shard opened first: it is closed once no batch is being read from it."""
        self._open_bytes -= self._open.popitem(last=False)[1].n_bytes

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """A batch of the samples with these ids, as :func:`neurofmx_wds.collate_webdataset` would make it.

        Args:
            ids: sample ids, shape (B,), int64.
            memory: where its tensors are made; by default in memory that is used again when they are gone.

        Returns:
            field → tensor of shape (B, …) or list; ``metadata``: decoded when asked for; ``__key__``: list of B str.
            Each of `fields` is there: a list of None where no sample has it.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        if not len(ids):
            return {}
        where, rows = self.locate(ids)
        if len(ids) > self._at_once and len(set(where)) > self._at_once:
            return self._read_in_parts(ids, memory)
        opened = {i: self._open.get(i) or self._shard(i) for i in dict.fromkeys(where)}
        shards = [opened[i] for i in where]
        records = [shard.records[row] for shard, row in zip(shards, rows, strict=True)]
        signature = shards[0].signature
        batch: dict[str, Any] = {}
        if all(shard.signature is signature for shard in opened.values()):
            sources = [shard.source for shard in shards]
            *starts, keys, metadata = zip(*records, strict=True)
            for (name, dtype, shape), begin in zip(signature, starts, strict=True):
                if dtype is None:
                    batch[name] = self._decoded(name, shards, rows)
                else:
                    batch[name] = self._copied(sources, begin, dtype, shape, memory or self._memory)
        else:
            keys, metadata = zip(*[record[-2:] for record in records], strict=True)
            for name in dict.fromkeys(name for shard in opened.values() for name, *_ in shard.signature):
                batch[name] = self._decoded(name, shards, rows)
        if any(shard.to_check for shard in opened.values()):  # only now: copying has brought the bytes from the disk
            self._check(opened, where, rows)
        batch["metadata"] = MetadataList(metadata if all(metadata) else self._metadata(metadata, shards, rows))
        batch["__key__"] = list(keys)
        return batch

    def _read_in_parts(self, ids: np.ndarray, memory: Memory | None) -> dict[str, Any]:
        """A batch of samples in more shards than may be open at once."""
        parts = range(0, len(ids), self._at_once)
        samples = [sample for begin in parts for sample in self.read_samples(ids[begin : begin + self._at_once])]
        batch = {name: [None] * len(ids) for name in self.fields} | collate_webdataset(samples)
        batch["metadata"] = MetadataList(batch["metadata"])
        return memory.pin(batch) if isinstance(memory, BatchMemory) else batch

    def _check(self, opened: dict[int, _OpenShard], where: Sequence[int], rows: Sequence[int]) -> None:
        """Compare the samples here that have not been read before with their checksums."""
        for i, row in zip(where, rows, strict=True):
            place = self._first[i] + row
            if opened[i].to_check and not self._checked[place]:
                opened[i].check(row)
                self._checked[place] = 1
        for i, shard in opened.items():
            shard.to_check = shard.to_check and self._checked.find(b"\0", self._first[i], self._first[i + 1]) >= 0

    def _metadata(self, texts: Sequence[bytes], shards: Sequence[_OpenShard], rows: Sequence[int]) -> list[Any]:
        """Where the index has no JSON of a sample's metadata: decoded from its member, else an empty dictionary."""
        places = zip(texts, shards, rows, strict=True)
        given = [text or shard.decode("metadata", row, self._copy) for text, shard, row in places]
        return [{} if about is None else about for about in given]

    def _copied(
        self, sources: list[Any], starts: Sequence[int], dtype: torch.dtype, shape: tuple[int, ...], memory: Memory
    ) -> torch.Tensor:
        out, out_rows = memory.with_rows((len(sources), *shape), dtype)
        if out.numel():
            self._copy(sources, starts, out_rows)
        return out

    def _decoded(self, name: str, shards: Sequence[_OpenShard], rows: Sequence[int]) -> Any:
        values = [shard.decode(name, row, self._copy) for shard, row in zip(shards, rows, strict=True)]
        return stack(values)

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """The samples with these ids, each a dict of writable numpy arrays, ``metadata`` and ``__key__``.

        What numpy has no dtype for (bfloat16) comes as a tensor.

        Args:
            ids: sample ids, shape (B,), int64.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        batch = self.read_batch(ids)
        columns = {
            name: to_array(values) if isinstance(values, torch.Tensor) else values for name, values in batch.items()
        }
        return [_sample(columns, row) for row in range(len(ids))]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_open_bytes": 0, "_opening": None, "_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _opening=threading.Lock(), _checked=_flags(state["shards"].n_samples))
        with _bookkeeping:
            _readers.add(self)


def _sample(columns: dict[str, Any], row: int) -> dict[str, Any]:
    values = {
        name: column[row, ...] if isinstance(column, np.ndarray) else column[row] for name, column in columns.items()
    }
    return {
        name: to_array(value) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
        if value is not None
    }


@functools.lru_cache(maxsize=256)
def torch_dtype(dtype: str) -> torch.dtype | None:
    """torch's name for a numpy dtype; None where there is none, or in foreign byte order."""
    if not np.dtype(dtype).isnative:
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
            if _is_out_of_files(error):
                raise
            if not handler(error):
                break
    return kept
