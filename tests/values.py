"""Values of every kind that a field can hold, and what official webdataset makes of a shard: the tests' reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

SHAPES = nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
PLAIN_DTYPES = st.one_of(
    nps.boolean_dtypes(),
    nps.integer_dtypes(endianness="?"),
    nps.unsigned_integer_dtypes(endianness="?"),
    nps.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    nps.complex_number_dtypes(endianness="?"),
)
TEXT_DTYPES = st.one_of(
    nps.unicode_string_dtypes(endianness="?", max_len=5),
    nps.byte_string_dtypes(max_len=5),
    nps.datetime64_dtypes(max_period="D", min_period="ns", endianness="?"),
    nps.timedelta64_dtypes(max_period="D", min_period="ns", endianness="?"),
)
STRUCTURED_DTYPES = nps.nested_dtypes(PLAIN_DTYPES | TEXT_DTYPES, max_itemsize=64)
DTYPES = PLAIN_DTYPES | TEXT_DTYPES | STRUCTURED_DTYPES


@st.composite
def arrays(draw: st.DrawFn, dtypes: st.SearchStrategy[np.dtype[Any]] = DTYPES) -> np.ndarray:
    """An array of any storable dtype and shape, C- or Fortran-ordered, or a strided view."""
    dtype, shape = draw(dtypes), draw(SHAPES)
    count = int(np.prod(shape, dtype=np.int64))
    if dtype.fields or dtype.kind in "USmMV":
        array = draw(nps.arrays(dtype, shape))
    else:  # any bit pattern at all
        raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
        if dtype.kind == "b":
            raw = bytes(byte & 1 for byte in raw)
        array = np.frombuffer(raw, dtype).reshape(shape)
    way = draw(st.sampled_from(["c", "fortran", "reversed", "strided"]))
    if way == "fortran":
        return array.copy(order="F")
    if way == "reversed" and array.ndim:
        return array[::-1]
    if way == "strided" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    return array.copy()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
JSON_FIELDS = st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=5), JSON, max_size=3)
TENSORS = arrays(PLAIN_DTYPES.filter(lambda dtype: dtype.isnative)).map(lambda array: torch.from_numpy(array.copy()))
NUMBERS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.complex_numbers()
VALUES = st.one_of(arrays(), TENSORS, NUMBERS, st.text(max_size=20), st.binary(max_size=20), JSON_FIELDS)
LETTERS = st.characters(codec="utf-8", categories=["L", "N"]).filter(lambda c: c == c.lower())
FIELD_NAMES = st.text(LETTERS, min_size=1, max_size=12).filter(lambda name: name == name.lower() and name != "metadata")
KEYS = st.text(st.characters(codec="utf-8", categories=["L", "N"]) | st.sampled_from("-_ +"), min_size=1, max_size=200)
KEYS = KEYS.filter(lambda key: not key.startswith("__") and key.isprintable())


@st.composite
def samples(draw: st.DrawFn, max_samples: int = 5) -> list[dict[str, Any]]:
    """Samples with unique keys, metadata and any fields."""
    keys = draw(st.lists(KEYS, unique=True, min_size=1, max_size=max_samples))
    about = st.dictionaries(st.text(max_size=5), JSON, max_size=2)
    fields = st.dictionaries(FIELD_NAMES, VALUES, max_size=3)
    return [{"__key__": key, "metadata": draw(about), **draw(fields)} for key in keys]


def plain(value: Any) -> Any:
    """A written value as it must be read back: arrays for tensors and numbers, lists for tuples."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return np.asarray(value) if isinstance(value, (bool, int, float, complex)) else value


def native_order(value: Any) -> Any:
    """In this machine's byte order, in which torch computes."""
    return value.astype(value.dtype.newbyteorder("=")) if isinstance(value, np.ndarray) else value


def same(a: Any, b: Any) -> bool:
    """Whether two values are of one kind, dtype and shape, and equal bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = a.resolve_conj().numpy(), b.resolve_conj().numpy()
    if isinstance(a, (np.ndarray, np.generic)) and isinstance(b, (np.ndarray, np.generic)):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return a.tobytes() == b.tobytes() or (bool(a.dtype.fields) and _same_struct(a, b))
    return type(a) is type(b) and a == b


def _same_struct(a: Any, b: Any) -> bool:
    """Field by field: the bytes between fields mean nothing."""
    return all(same(np.asarray(a[name]), np.asarray(b[name])) for name in a.dtype.names)


def official(*shards: Path, decode: bool = True) -> list[dict[str, Any]]:
    """The samples as plain webdataset reads them, under the names that they have there."""
    dataset = wds.WebDataset([str(shard) for shard in shards], shardshuffle=False, empty_check=False)
    if decode:
        dataset = dataset.decode()
    return [{name: v for name, v in sample.items() if name not in ("__url__", "__local_path__")} for sample in dataset]
