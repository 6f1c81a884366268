"""The members of a shard by field: where each sample's value of it lies.

Knows the arrays of an index; knows nothing of tars or files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ShardError
from .names import field_of
from .npy import ArrayLayout

if TYPE_CHECKING:
    from .index import ShardIndex

_CELLS = 1 << 20  # places of samples' fields that a shard may have
_CELLS_PER_MEMBER = 64  # or so many for each field that is there


@dataclass(frozen=True)
class Column:
    """One field of a shard: for each sample that has it, where its payload lies.

    Attributes:
        suffix_id: for each sample the member's suffix, an index into the shard's `suffixes`; -1 where it has none.
        offset: payload offset in the (unpacked) tar, shape (n_samples,), int64; -1 where a sample lacks the field.
        size: payload size in bytes, shape (n_samples,), int64.
        crc32: checksum of each payload, shape (n_samples,), uint32; None where the index has none.
        layout_id: what each payload holds, an index into the shard's `layouts`; -1 where it is not a plain array.
        layout: what all payloads hold, if every sample has this field as an array of one dtype and shape.
    """

    suffix_id: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray | None
    layout_id: np.ndarray
    layout: ArrayLayout | None

    @functools.cached_property
    def data_starts(self) -> list[int]:
        """Where each array's data begins, behind its header, if all have one layout."""
        return (self.offset + (self.layout.header_size if self.layout else 0)).tolist()


class Columns(Mapping[str, Column]):
    """The fields of a shard by name; each column is made when it is asked for.

    Args:
        index: the shard's index.
    """

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._made: dict[str, Column] = {}

    def __getitem__(self, name: str) -> Column:
        if name not in self._made:
            self._made[name] = self._column(self._suffix_ids[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._suffix_ids)

    def __len__(self) -> int:
        return len(self._suffix_ids)

    def __contains__(self, name: object) -> bool:
        return name in self._suffix_ids

    def check_all(self, path: Path) -> None:
        """Refuse to make all columns if that takes far more memory than the shard's members.

        Args:
            path: the shard, to name it.

        Raises:
            ShardError: the samples have thousands of different fields.
        """
        cells = len(self) * self.index.n_samples
        if cells > max(_CELLS, _CELLS_PER_MEMBER * len(self.index.member_suffix)):
            problem = f"its {self.index.n_samples} samples have {len(self)} different fields, and each few of them"
            remedy = "choose fields (modalities=), or give the files keys without dots"
            raise ShardError(problem, file=path, remedy=remedy)

    @functools.cached_property
    def _suffix_ids(self) -> dict[str, list[int]]:
        """The suffixes of each field."""
        suffixes = self.index.suffixes
        by_name: dict[str, list[int]] = {}
        for i, suffix in enumerate(suffixes):
            by_name.setdefault(field_of(suffix), []).append(i)
        whole = {suffix: i for i, suffix in enumerate(suffixes)}
        columns: dict[str, list[int]] = {}
        for name, ids in by_name.items():
            taken = name in whole and whole[name] not in ids
            if taken or (len(ids) > 1 and self._have_several(ids)):
                columns |= {suffixes[i]: [i] for i in ids}
            else:
                columns[name] = ids
        return columns

    def _have_several(self, suffix_ids: list[int]) -> bool:
        """Whether any sample has members of more than one of these suffixes."""
        samples = np.sort(self._samples[self._members(suffix_ids)])
        return bool((samples[1:] == samples[:-1]).any())

    @functools.cached_property
    def _samples(self) -> np.ndarray:
        """The sample of each member."""
        return np.repeat(np.arange(self.index.n_samples), np.diff(self.index.sample_start))

    @functools.cached_property
    def _by_suffix(self) -> tuple[np.ndarray, np.ndarray]:
        """The members, sorted by suffix, and where those of each suffix begin."""
        order = np.argsort(self.index.member_suffix, kind="stable")
        starts = np.searchsorted(self.index.member_suffix[order], np.arange(len(self.index.suffixes) + 1))
        return order, starts

    def _members(self, suffix_ids: list[int]) -> np.ndarray:
        order, starts = self._by_suffix
        return np.concatenate([order[starts[i] : starts[i + 1]] for i in suffix_ids])

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        """The place of each suffix in every sample, if all samples have the same members in the same order."""
        index = self.index
        width, rest = divmod(len(index.member_suffix), max(1, index.n_samples))
        if not width or rest or not (index.sample_start == np.arange(index.n_samples + 1) * width).all():
            return {}
        table = index.member_suffix.reshape(index.n_samples, width)
        places = {suffix: i for i, suffix in enumerate(table[0].tolist())}
        return places if len(places) == width and (table == table[0]).all() else {}

    def _column(self, suffix_ids: list[int]) -> Column:
        """Return the members with these suffixes, of which no sample has several, as one column."""
        if len(suffix_ids) == 1 and suffix_ids[0] in self._places:
            return self._spread(slice(self._places[suffix_ids[0]], None, len(self._places)), None)
        members = self._members(suffix_ids)
        return self._spread(members, self._samples[members])

    def _spread(self, members: slice | np.ndarray, samples: np.ndarray | None) -> Column:
        """Return a column of these members; `samples` says of which samples they are, None: one of each, in order."""
        index = self.index

        def spread(values: np.ndarray, absent: int) -> np.ndarray:
            if samples is None:
                return values[members]
            column = np.full(index.n_samples, absent, values.dtype)
            column[samples] = values[members]
            return column

        layout_id = spread(index.member_layout, -1)
        is_one = len(layout_id) > 0 and layout_id[0] >= 0 and (layout_id == layout_id[0]).all()
        return Column(
            spread(index.member_suffix, -1),
            spread(index.member_offset, -1),
            spread(index.member_size, 0),
            spread(index.member_crc32, 0) if index.has_checksums else None,
            layout_id,
            index.layouts[layout_id[0]] if is_one else None,
        )
