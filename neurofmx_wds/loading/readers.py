"""Sample ids → samples and batches, read from a dataset's shards.

Knows indexes and shards; knows nothing of order, epochs or ranks.
"""

from __future__ import annotations

import bisect
import copy
import functools
import mmap
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..errors import available_hint, join_some
from ..format.decoding import decode_json
from ..format.shards import ShardSet
from ..storage.mounts import is_local
from .collate import MetadataList, collate_webdataset, stack, to_array
from .memory import BatchMemory, Memory
from .open_shard import OpenShard, ShardOpener
from .ragged import read_ragged, split
from .sessions import Sessions
from .shard_pool import ShardPool

IOMode = Literal["auto", "mmap", "pread"]
Handler = Callable[[Exception], bool]
_IS_STORED = {"dtype", "format"}  # what a manifest records of a field that samples have, not only a user's remarks


def _flags(n: int) -> mmap.mmap:
    """Return `n` bytes, all 0, shared with the processes forked from this one; untouched pages take no memory."""
    return mmap.mmap(-1, max(1, n))


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

    Example:
        >>> import tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> from neurofmx_wds.format.shards import open_shards
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"spikes": np.zeros((50, 100, 96), "float32")}, shard_size=20)
        >>> reader = ShardReader(open_shards(out))
        >>> reader.counts
        array([20, 20, 10])
        >>> batch = reader.read_batch(np.array([49, 0, 7]))
        >>> batch["spikes"].shape, batch["__key__"][0]
        (torch.Size([3, 100, 96]), 'sample_000000049')
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
        self.checksums = checksums
        self.selected = selected
        self._starts = np.concatenate([[0], np.cumsum(shards.counts)])
        self._first = self._starts.tolist()
        self._compared = _flags(shards.n_samples)  # of each sample, whether its plain arrays have been
        self._memory = BatchMemory()
        self._check_modalities()
        self.mapped = io == "mmap" or (io == "auto" and all(map(is_local, {path.parent for path in shards.paths})))
        self._pool = ShardPool(ShardOpener(shards, self.modalities, self.fields, self.mapped, checksums), max_open)

    def _check_modalities(self) -> None:
        if self.modalities is None or not self.shards.paths:
            return
        known: set[str] = set(self.shards.manifest.modalities) if self.shards.manifest else set()
        unread = iter(range(0 if self.shards.manifest else len(self.shards.paths)))
        while missing := [name for name in self.modalities if name not in known and name != "metadata"]:
            i = next(unread, None)
            if i is None:
                raise ValueError(
                    f"no field {join_some(missing)} in the dataset; {available_hint(sorted(known), missing[0])}"
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
        if self.selected is None:
            return self.shards.counts
        places = np.searchsorted(self.selected, self._starts)
        return np.diff(places)

    @property
    def open_bytes(self) -> int:
        """Memory that the shards kept open take at most, in bytes, judged by one of them."""
        i = int(np.flatnonzero(self.counts)[0])  # the first may be one that cannot be read
        return self._pool.max_bytes(i, self.shards.n_samples / max(1, self.shards.counts[i]))

    def expect_share(self, share: float) -> None:
        """Prepare for reading this share of the samples (0 … 1) in this process."""
        self._pool.share = share * int(self.counts.sum()) / max(1, self.shards.n_samples)

    def locate(self, ids: np.ndarray) -> tuple[list[int], list[int]]:
        """Return the shard of each sample id, and the sample's place in that shard."""
        if self.selected is not None:
            ids = self.selected[ids]
        shard = self._starts.searchsorted(ids, side="right") - 1
        return shard.tolist(), (ids - self._starts[shard]).tolist()

    def array(self, sample_id: int, name: str) -> np.ndarray:
        """Return one array of a sample, read-only; see :meth:`OpenShard.array`."""
        shard, row = self.place(sample_id)
        return shard.array(name, row)

    def place(self, sample_id: int) -> tuple[OpenShard, int]:
        """Return the shard that holds a sample, opened, and the sample's place in it."""
        i = bisect.bisect_right(self._first, sample_id) - 1
        return self._pool.held.get(i) or self._pool[i], sample_id - self._first[i]

    def metadata(self, sample_id: int) -> dict[str, Any]:
        """Return the metadata of a sample, from its shard's index where that has them."""
        shard = bisect.bisect_right(self._first, sample_id) - 1
        row = sample_id - self._first[shard]
        text = self.shards.index(shard).sample_metadata[row]
        found = decode_json(text) if text else self._pool[shard].decode("metadata", row)
        return found or {}

    def file(self, sample_id: int) -> Path:
        """Return the shard that holds a sample."""
        (shard,), _ = self.locate(np.array([sample_id]))
        return self.shards.paths[shard]

    def name(self, sample_id: int) -> tuple[Path, str]:
        """Return the shard and key of a sample, to name it in an error."""
        (shard,), (row,) = self.locate(np.array([sample_id]))
        return self.shards.paths[shard], self.shards.index(shard).sample_keys[row]

    def of_epoch(self, seed: int, epoch: int) -> ShardReader:
        """Return itself: stored samples are the same in every epoch."""
        return self

    def dataset_ids(self, ids: np.ndarray) -> np.ndarray:
        """Return the samples' ids in the whole dataset, whatever the selection."""
        return ids if self.selected is None else self.selected[ids]

    def sources(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of each sample's source in the manifest, int64 (B,)."""
        return np.searchsorted(self._source_ends, self.dataset_ids(ids), side="right")

    @functools.cached_property
    def _source_ends(self) -> np.ndarray:
        return Sessions.of(self.shards.manifest, self.where, self.shards.n_samples).ends

    def read_batch(self, ids: np.ndarray, memory: Memory | None = None) -> dict[str, Any]:
        """Read the samples with these ids as the batch that :func:`neurofmx_wds.collate_webdataset` would make of them.

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
        if len(ids) > self._pool.n_at_once and len(set(where)) > self._pool.n_at_once:
            return self._read_in_parts(ids, memory)
        opened, shards = self._open(where)
        to_compare = self._to_compare(ids, opened)
        batch = _read_rows(opened.values(), shards, rows, to_compare, memory or self._memory)
        if to_compare:
            self._mark_compared(ids, opened)
        return batch

    def _open(self, where: Sequence[int]) -> tuple[dict[int, OpenShard], list[OpenShard]]:
        """Return shards by their number, and the shard of each sample."""
        held = self._pool.held
        opened = {i: held.get(i) or self._pool[i] for i in dict.fromkeys(where)}
        return opened, [opened[i] for i in where]

    def with_fields(self, fields: Sequence[str]) -> ShardReader:
        """Return a reader of the same samples all batches of which have these fields."""
        twin = copy.copy(self)
        twin.fields = list(fields)
        opener = replace(self._pool.opener, fields=twin.fields)
        twin._pool = ShardPool(opener, self._pool.max_open)
        return twin

    @property
    def kind(self) -> tuple[str, bool]:
        """What readers must have in common to read one batch together."""
        return "shards", self.mapped

    @staticmethod
    def read_together(
        parts: Sequence[tuple[ShardReader, np.ndarray]], order: np.ndarray, memory: Memory | None = None
    ) -> dict[str, Any] | None:
        """Read one batch by several readers of one kind; None where it has more shards than may be open at once.

        Args:
            parts: readers and the ids of their samples.
            order: int64 (B,): the samples of the parts, one part after the other, in the order of the batch.
            memory: where its tensors are made.

        Returns:
            As :meth:`read_batch`.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        found = [(reader, ids, *reader.locate(ids)) for reader, ids in parts]
        if sum(len(set(where)) for _, _, where, _ in found) > min(reader._pool.n_at_once for reader, _ in parts):
            return None
        opened = [reader._open(where) for reader, _, where, _ in found]
        shards = [shard for _, each in opened for shard in each]
        rows = [row for *_, each in found for row in each]
        to_compare = [
            (reader, ids, here)
            for (reader, ids, _, _), (here, _) in zip(found, opened, strict=True)
            if reader._to_compare(ids, here)
        ]
        pick = operator.itemgetter(*order.tolist())
        batch = _read_rows(
            [shard for here, _ in opened for shard in here.values()],
            pick(shards),
            pick(rows),
            bool(to_compare),
            memory or parts[0][0]._memory,
        )
        for reader, ids, here in to_compare:
            reader._mark_compared(ids, here)
        return batch

    def _read_in_parts(self, ids: np.ndarray, memory: Memory | None) -> dict[str, Any]:
        """Read a batch of samples in more shards than may be open at once."""
        n = self._pool.n_at_once
        samples = [sample for begin in range(0, len(ids), n) for sample in self.read_samples(ids[begin : begin + n])]
        batch = {name: [None] * len(ids) for name in self.fields} | collate_webdataset(samples)
        batch["metadata"] = MetadataList(batch["metadata"])
        return memory.pin(batch) if isinstance(memory, BatchMemory) else batch

    def _to_compare(self, ids: np.ndarray, opened: Mapping[int, OpenShard]) -> bool:
        """Return whether any of these samples' copied fields have not been compared with their checksums yet."""
        if not any(shard.to_check for shard in opened.values()):
            return False
        return b"\0" in np.frombuffer(self._compared, np.uint8)[self.dataset_ids(ids)].tobytes()

    def _mark_compared(self, ids: np.ndarray, opened: Mapping[int, OpenShard]) -> None:
        np.frombuffer(self._compared, np.uint8)[self.dataset_ids(ids)] = 1
        for i, shard in opened.items():
            shard.to_check = shard.to_check and self._compared.find(b"\0", self._first[i], self._first[i + 1]) >= 0

    def read_samples(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """Read the samples with these ids, each a dict of writable numpy arrays, ``metadata`` and ``__key__``.

        A value whose dtype numpy lacks (bfloat16) stays a tensor.

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
        return {**self.__dict__, "_pool": copy.copy(self._pool), "_compared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _compared=_flags(state["shards"].n_samples))


class JoinedShards:
    """The shards of several readers as those of one, so that a batch of samples of many costs no more than of one.

    Args:
        readers: of one kind.
    """

    def __init__(self, readers: Sequence[ShardReader]) -> None:
        self._pools = [(reader._pool, i) for reader in readers for i in range(len(reader.shards.paths))]
        self.bases = np.cumsum([0, *(reader.shards.n_samples for reader in readers)])
        starts = [reader._starts[:-1] + base for reader, base in zip(readers, self.bases, strict=False)]
        self._starts = np.concatenate(starts)
        self._n_at_once = min(reader._pool.n_at_once for reader in readers)

    def read_batch(self, numbers: np.ndarray, memory: Memory) -> dict[str, Any] | None:
        """Read samples by their numbers, those of one reader counted after those of the other.

        Args:
            numbers: int64 (B,).
            memory: where tensors are made.

        Returns:
            A batch; None where there may be payloads that have not been compared with their checksums yet, or too many
            shards for one batch.

        Raises:
            ShardError: a shard is missing or damaged.
        """
        places = self._starts.searchsorted(numbers, side="right") - 1
        rows = (numbers - self._starts[places]).tolist()
        where = places.tolist()
        opened: dict[int, OpenShard] = {}
        for i in dict.fromkeys(where):
            pool, own = self._pools[i]
            opened[i] = pool.held.get(own) or pool[own]
            if opened[i].to_check or len(opened) > self._n_at_once:
                return None
        return _read_rows(opened.values(), [opened[i] for i in where], rows, False, memory)


def _read_rows(
    opened: Iterable[OpenShard],
    shards: Sequence[OpenShard],
    rows: Sequence[int],
    compare: bool,
    memory: Memory,
) -> dict[str, Any]:
    """Read samples as a batch; where their shards have the same fields, what can be copied is, into one tensor.

    Args:
        opened: each of the shards at least once.
        shards: the shard of each sample.
        rows: its place in the shard.
        compare: whether what is copied is compared with its checksums.
        memory: where tensors are made.
    """
    records = [shard.records[row] for shard, row in zip(shards, rows, strict=True)]
    signature = shards[0].signature
    if not all(shard.signature is signature for shard in opened):
        names = dict.fromkeys(field.name for shard in opened for field in shard.signature)
        batch = {name: _decoded(name, shards, rows) for name in names}
        keys, texts = zip(*[record[-2:] for record in records], strict=True)
        return {**batch, "metadata": _metadata(texts, shards, rows), "__key__": list(keys)}
    *numbers, keys, texts = zip(*records, strict=True)
    sources = [shard.source for shard in shards]
    copy, copy_and_sum, _ = shards[0].access
    batch = {}
    for f, (name, dtype, shape, header_size) in enumerate(signature):
        if dtype is None:
            batch[name] = _decoded(name, shards, rows)
            continue
        batch[name], out = memory.with_rows((len(rows), *shape), dtype)
        starts, sums = numbers[2 * f : 2 * f + 2]
        if not compare:
            copy(sources, starts, out)
        else:
            _compare(copy_and_sum(sources, starts, out, header_size), sums, f, shards, rows)
    return {**batch, "metadata": _metadata(texts, shards, rows), "__key__": list(keys)}


def _compare(
    found: Sequence[int], expected: Sequence[int], f: int, shards: Sequence[OpenShard], rows: Sequence[int]
) -> None:
    """Refuse the first sample whose `f`-th field has another checksum than expected (-1: any)."""
    if found != list(expected):
        for shard, row, crc32, wanted in zip(shards, rows, found, expected, strict=True):
            if wanted not in (crc32, -1):
                raise shard.changed(f, row)


def _decoded(name: str, shards: Sequence[OpenShard], rows: Sequence[int]) -> Any:
    """Return a field that cannot be copied into one tensor at once, as :func:`stack` would."""
    found = read_ragged(name, shards, rows)
    if found is not None:
        return split(*found)
    return stack([shard.decode(name, row) for shard, row in zip(shards, rows, strict=True)])


def _metadata(texts: Sequence[bytes], shards: Sequence[OpenShard], rows: Sequence[int]) -> MetadataList:
    """Return the samples' metadata, decoded from their members where the index has no JSON of them; {} where absent."""
    if all(texts):
        return MetadataList(texts)
    given = [text or shard.decode("metadata", row) for text, shard, row in zip(texts, shards, rows, strict=True)]
    return MetadataList([{} if about is None else about for about in given])


def _sample(columns: dict[str, Any], row: int) -> dict[str, Any]:
    values = {
        name: column[row, ...] if isinstance(column, np.ndarray) else column[row] for name, column in columns.items()
    }
    return {
        name: to_array(value) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
        if value is not None
    }
