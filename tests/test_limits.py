"""Decoding costs time and memory in proportion to the bytes that are there, whatever they say."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fields import _npy
from test_pickles import Storage, legacy, tensor, zipped
from values import same

from neurofmx_wds.errors import FieldError, UnsafeDataError
from neurofmx_wds.format.decoding import decode
from neurofmx_wds.format.encoding import encode
from neurofmx_wds.format.npy import npy_layout
from neurofmx_wds.format.pickles import decode_objects, decode_pickle

torch.zeros(1)  # its first tensor takes memory that later ones do not


@contextmanager
def memory_below(n_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


# --- pickles: parts of programs, each of which pushes one value ------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def got(i: int) -> bytes:
    return b"h" + bytes([i])


BUFFER, WORD, DTYPE, WIDE, TUPLES, LIST, HUGE, PAIRS, SHAPE, FILE, NARROW = range(11)
N = 20_000
STORED = legacy(Storage(view=None))


def memoised() -> bytes:
    """Values that every program may use again and again, for two bytes each time."""
    columns = [f"f{i}" for i in range(200)]

    def structured(size: int) -> bytes:
        """A dtype of 200 columns in so many bytes."""
        made = call(name("numpy", "dtype"), text(f"V{size}"), b"\x89", b"\x88")
        column = call(name("numpy", "dtype"), text("u1"), b"\x89", b"\x88")
        places = b"".join(text(c) + column + b"K" + bytes([i % size]) + b"\x86" for i, c in enumerate(columns))
        state = b"N(" + b"".join(map(text, columns)) + b"t}(" + places + b"uK" + bytes([size]) + b"K\1K\x10t"
        return made + b"(K\3" + text("|") + state + b"b"

    values = {
        BUFFER: raw(b"\1" * N),
        WORD: text("x" * N),
        DTYPE: call(name("numpy", "dtype"), text("u1"), b"\x89", b"\x88"),
        WIDE: structured(200),
        TUPLES: b")" + b"2\x86" * 60,
        LIST: b"](" + b"K\1" * 2000 + b"e",
        HUGE: b"\x8b" + struct.pack("<I", N) + b"\x7f" * N,
        PAIRS: b"](" + b"".join(text(str(i)) + b"N\x86" for i in range(500)) + b"e",
        SHAPE: b"(" + b"K\1" * 60 + b"t",
        FILE: raw(STORED),
        NARROW: structured(1),
    }
    return b"\x80\x04" + b"".join(value + b"q" + bytes([i]) + b"0" for i, value in values.items())


def array(dtype: bytes, data: bytes, shape: bytes, order: bytes = b"\x89") -> bytes:
    made = call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), b"K\0\x85", raw(b"b"))
    return made + b"(K\1" + shape + dtype + order + data + b"tb"


SHAPE_N = b"M" + struct.pack("<H", N) + b"\x85"
PARTS: dict[str, bytes] = {
    "key of tuples": b"}" + got(TUPLES) + b"Ns",
    "keys of tuples": b"}(" + got(TUPLES) + b"N" + got(TUPLES) + b"Nu",
    "dict of tuples": b"(" + got(TUPLES) + b"Nd",
    "set of tuples": b"\x8f(" + got(TUPLES) + b"\x90",
    "frozenset of tuples": b"(" + got(TUPLES) + b"\x91",
    "set called": call(name("builtins", "set"), b"](" + got(TUPLES) + b"e"),
    "frozenset called": call(name("builtins", "frozenset"), b"](" + got(TUPLES) + b"e"),
    "ordered": call(name("collections", "OrderedDict"), b"](" + got(TUPLES) + b"N\x86e"),
    "ordered key": call(name("collections", "OrderedDict")) + got(TUPLES) + b"Ns",
    "key of sets": b"}(K\1\x91" + b"(2\x91" * 40 + b"Ns",
    "key of a huge number": b"}" + got(HUGE) + b"Ns",
    "set of a list": call(name("builtins", "set"), got(LIST)),
    "ordered pairs": call(name("collections", "OrderedDict"), got(PAIRS)),
    "dtype named tuples": call(name("numpy", "dtype"), got(TUPLES), b"\x89", b"\x88"),
    "dtype named words": call(name("numpy", "dtype"), got(WORD), b"\x89", b"\x88"),
    "many columns": call(name("numpy", "dtype"), text("f4," * 300), b"\x89", b"\x88"),
    "encode": call(name("_codecs", "encode"), got(WORD), text("latin1")),
    "encode as tuples": call(name("_codecs", "encode"), got(WORD), got(TUPLES)),
    "complex": call(name("builtins", "complex"), got(WORD)),
    "array": array(got(DTYPE), got(BUFFER), SHAPE_N),
    "array of text": array(got(DTYPE), got(WORD), SHAPE_N),
    "array of tuples": array(got(DTYPE), got(BUFFER), got(TUPLES)),
    "wide array": array(got(WIDE), raw(b"\1" * 200), b"K\1\x85"),
    "narrow array": array(got(NARROW), got(BUFFER), SHAPE_N),
    "array of no dtype": array(got(LIST), got(BUFFER), SHAPE_N),
    "array with items": array(got(DTYPE), got(BUFFER), SHAPE_N) + b")K\2s",
    "array appended to": array(got(DTYPE), got(BUFFER), SHAPE_N) + b"K\2a",
    "frombuffer": call(name("numpy._core.numeric", "_frombuffer"), got(BUFFER), got(DTYPE), SHAPE_N, text("C")),
    "scalar": call(name("numpy._core.multiarray", "scalar"), call(name("numpy", "dtype"), text("U400000000"))),
    "scalar again": call(
        name("numpy._core.multiarray", "scalar"), call(name("numpy", "dtype"), text(f"V{N}")), got(BUFFER)
    ),
    "tensor": call(
        name("torch._utils", "_rebuild_tensor_v2"),
        call(name("torch.storage", "_load_from_bytes"), got(FILE)),
        *(b"K\0", b"K\4\x85", b"K\1\x85", b"\x89", call(name("collections", "OrderedDict"))),
    ),
    "size": call(name("torch", "Size"), got(SHAPE)),
    "size of tuples": call(name("torch", "Size"), got(TUPLES)),
    "extended": b"](" + got(LIST) * 50 + b"e",
    "bytearray": b"\x96" + struct.pack("<Q", 5) + b"hello",
    "view": got(BUFFER) + b"\x98",
    "empty sets": b"\x8f",
    "metadata": call(name("collections", "OrderedDict")) + b"}" + text("_metadata") + got(TUPLES) + b"sb",
    "inside itself": b"]q\x20h\x20a",
    "words": got(WORD),
    "tuples": got(TUPLES),
    "numbers": got(HUGE),
    "plain": b"](K\1" + text("a") + b"G" + struct.pack(">d", 2.5) + b"e",
}


def program(parts: list[bytes], times: int) -> bytes:
    return memoised() + b"](" + b"".join(parts) * times + b"e."


def decoded_or_named(payload: bytes, read: Callable[[bytes], Any] = decode_pickle, most: int | None = None) -> Any:
    """What the payload holds, or None where it is refused; in either case not for more memory than its size allows."""
    with memory_below(120 * len(payload) + (4 << 20) if most is None else most):
        try:
            value = read(payload)
        except UnsafeDataError as error:
            assert len(str(error)) < 1000
            return None
    return value


@pytest.mark.parametrize("kind", PARTS)
def test_repeated_calls_cost_no_more_than_their_bytes(kind: str) -> None:
    """A thousand times: what makes 20 kB, or takes as much work, of five bytes would make 20 MB."""
    for times in (1, 1000):
        decoded_or_named(program([PARTS[kind]], times))


def test_the_parts_are_real() -> None:
    """The harmless ones of them are read once, and as pickle reads them, so the others are not refused by mistake."""
    fine = {"set of a list", "ordered pairs", "encode", "array", "array of text", "wide array", "frombuffer"}
    fine |= {"scalar again", "tensor", "size", "bytearray", "empty sets", "words", "plain", "extended", "numbers"}
    for kind, part in PARTS.items():
        value = decoded_or_named(program([part], 1))
        assert (value is not None) == (kind in fine), kind
        if value is not None and kind not in ("tensor", "array of text", "numbers"):
            assert same(value, pickle.loads(program([part], 1))), kind


@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4),
    times=st.sampled_from([1, 2, 30, 300]),
    data=st.data(),
)
@settings(max_examples=150)
def test_programs_cost_no_more_than_their_bytes(parts: list[str], times: int, data: st.DataObject) -> None:
    payload = bytearray(program([PARTS[kind] for kind in parts], times))
    for _ in range(data.draw(st.integers(0, 2))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_named(bytes(payload))


MODULUS = 2**61 - 1  # of Python's hash of numbers
COLLIDING: dict[str, Callable[[int], Any]] = {
    "int": lambda i: i * MODULUS,
    "negative": lambda i: -i * MODULUS,
    "tuple": lambda i: (i * MODULUS, "a"),
    "complex": lambda i: complex(i, -i / 1000003),
    "powers": lambda i: (i << 40) + 7,
}


@pytest.mark.parametrize("kind", COLLIDING)
@pytest.mark.parametrize("make", [dict.fromkeys, set, frozenset, OrderedDict.fromkeys])
@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_that_collide_are_limited(kind: str, make: Callable[[Any], Any], protocol: int) -> None:
    """Dictionaries and sets of numbers are read, but not with so many that collisions could take hours."""
    few = make([COLLIDING[kind](i) for i in range(300)])
    assert decode_pickle(pickle.dumps(few, protocol)) == few
    many = make(range(20_000))  # whose hashes do not collide: so the test is quick
    with pytest.raises(UnsafeDataError, match="keys"):
        decode_pickle(pickle.dumps(many, protocol))


def test_many_text_keys_are_no_work() -> None:
    value = {f"trial {i}": i for i in range(50_000)}
    assert decode_pickle(pickle.dumps(value)) == value
    assert decode_pickle(pickle.dumps(set(value))) == set(value)


KEYS = [1, 2.5, 1j, None, True, "a", b"b", (1, "a"), ((1, 2), (3, (4,))), np.int64(3), np.float32(2), np.str_("x")]


@given(keys=st.lists(st.sampled_from(KEYS), max_size=12), protocol=st.integers(0, 5))
def test_usual_keys_are_read(keys: list[Any], protocol: int) -> None:
    value = {key: i for i, key in enumerate(keys)}
    for each in (value, set(value), frozenset(value), OrderedDict(value)):
        assert decode_pickle(pickle.dumps(each, protocol), encoding="latin1") == each


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_arrays_of_any_order_of_axes_are_read(protocol: int, axes: tuple[int, ...]) -> None:
    """numpy pickles such an array in memory order from protocol 5 on, with the order of its axes."""
    value = np.arange(24).reshape(2, 3, 4).transpose(axes)
    assert same(decode_pickle(pickle.dumps(value, protocol)), value)


def test_values_in_values_may_be_as_deep_as_anybody_needs() -> None:
    value: Any = 1
    for _ in range(90):
        value = [value, {"a": (value,)}] if isinstance(value, int) else [value]
    assert decode_pickle(pickle.dumps(value)) == value
    for _ in range(20):
        value = (value,)
    with pytest.raises(UnsafeDataError, match="deep"):
        decode_pickle(pickle.dumps(value))


def test_shared_parts_are_measured_as_deep_as_they_lie() -> None:
    inner: Any = 1
    for _ in range(60):
        inner = [inner]
    outer: Any = inner
    for _ in range(60):
        outer = [outer]
    assert decode_pickle(pickle.dumps([inner, inner])) == [inner, inner]
    for value in ([inner, outer], [outer, inner]):
        with pytest.raises(UnsafeDataError, match="deep"):
            decode_pickle(pickle.dumps(value))


def test_objects_of_zarr_are_limited_too() -> None:
    item = pickle.dumps(np.array(["x"] * 50, object), 4)
    assert decode_objects(item).tolist() == ["x"] * 50
    state = item.index(b"]")
    assert decoded_or_named(item[:state] + b")" + b"2\x86" * 50 + item[state:], decode_objects) is None


# --- torch files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [zipped, legacy])
def test_tensors_that_repeat_few_bytes_are_limited_together(container: Callable[[Any], bytes]) -> None:
    storage = Storage() if container is zipped else Storage(view=None)
    big = tensor(storage, size=(1 << 22,), stride=(0,))  # 16 MiB, of 16 bytes
    assert decode("x.pth", container([big] * 2))[1].shape == (1 << 22,)
    with pytest.raises(UnsafeDataError, match="repeat"):
        decode("x.pth", container([big] * 9))


@pytest.mark.parametrize("container", [zipped, legacy])
@pytest.mark.parametrize("size", [(1,) * 65, (0,) * 100_000, (1 << 62,), (0, 1 << 62), (True, 4)])
def test_tensors_of_impossible_shapes(container: Callable[[Any], bytes], size: tuple[int, ...]) -> None:
    storage = Storage() if container is zipped else Storage(view=None)
    with pytest.raises(UnsafeDataError):
        decode("x.pth", container(tensor(storage, size=size, stride=(1,) * len(size))))


def test_a_zip_whose_entries_overlap() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", b"".join(map(bytes, encode("a", np.zeros(5000))[1])))
        info = archive.infolist()[0]
        for i in range(300):
            other = zipfile.ZipInfo(f"b{i}.npy")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(other, field, getattr(info, field))
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    for suffix in ("x.npz", "x.pth"):
        with pytest.raises(UnsafeDataError):
            decode(suffix, stream.getvalue())


# --- npy, npz, gzip, JSON --------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.lists(st.sampled_from([0, 1, 2**16, 2**31, 2**40, 2**62, 2**64, 10**300]), max_size=4).map(tuple),
    st.integers(0, 200).map(lambda n: (0,) * n),
    st.integers(0, 200).map(lambda n: (1,) * n),
)
COLUMN = st.sampled_from("abcdef")
SUBSHAPES = st.lists(st.sampled_from([0, 1, 3, 2**30]), max_size=3).map(tuple)
DESCRIPTIONS = st.recursive(
    st.sampled_from(["<f4", "|V0", "<U0", "|S0", "<U1", "|u1", "V3", "<U500000000", "<M8[ns]", "|O", "T"]),
    lambda inner: st.lists(
        st.tuples(COLUMN, inner) | st.tuples(COLUMN, inner, SUBSHAPES), max_size=3, unique_by=lambda column: column[0]
    ),
    max_leaves=5,
)


@given(
    shape=SHAPES,
    description=DESCRIPTIONS,
    fortran=st.booleans(),
    version=st.sampled_from([1, 2, 3]),
    n_bytes=st.integers(0, 300),
)
@settings(max_examples=400)
def test_npy_headers_cost_no_more_than_their_bytes(
    shape: tuple[int, ...], description: Any, fortran: bool, version: int, n_bytes: int
) -> None:
    """Whatever a header says: an array of the bytes that are there, as numpy makes it, or a named error."""
    header = repr({"descr": description, "fortran_order": fortran, "shape": shape})
    payload = _npy(header, bytes(n_bytes), version)
    with memory_below(2 << 20):
        try:
            value = decode("x.npy", payload)
        except UnsafeDataError:
            with pytest.raises(UnsafeDataError):
                npy_layout(payload)
            return
        layout = npy_layout(payload)
        value.copy()
        str(value)
        assert value.nbytes <= len(payload) + 4 * 64 and value.size <= 1 << 24  # numpy has no text of no length
    if layout is not None:
        assert (layout.shape, np.dtype(layout.dtype)) == (value.shape, value.dtype)
        torch.empty(layout.shape)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1000, 0), "<f4"), ((0, 96), "<f4"), ((1 << 20, 0), "<f8"), ((0,), "<U3"), ((), "|V0"), ((3,), "|V0")],
)
def test_empty_arrays_are_written_and_read(shape: tuple[int, ...], dtype: str) -> None:
    value = np.zeros(shape, dtype)
    suffix, buffers, _ = encode("x", value)
    assert same(decode(suffix, b"".join(buffers)), value)


def test_an_array_of_nothing_is_not_written() -> None:
    with pytest.raises(FieldError, match="nothing"):
        encode("x", np.zeros(1000, "V0"))


def test_long_headers_are_not_kept() -> None:
    """Each of them is parsed into a thousand objects."""
    fields = [(f"field{i}", "<f4") for i in range(400)]
    payloads = [
        _npy(repr({"descr": [(f"a{i}", "<f4"), *fields], "fortran_order": False, "shape": (0,)})) for i in range(200)
    ]
    decode("x.npy", payloads[0])
    tracemalloc.start()
    try:
        for payload in payloads:
            decode("x.npy", payload)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def packed(n_bytes: int, layers: int = 1) -> bytes:
    """Zeros in a gzip file, in a gzip file …"""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(n_bytes >> 20)]
    data = b"".join([*parts, packer.flush()])
    for _ in range(layers - 1):
        data = gzip.compress(data)
    return data


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gzip_grows_a_hundredfold_or_to_64_mib(layers: int) -> None:
    suffix = "x.bin" + ".gz" * layers
    assert len(decode(suffix, packed(60 << 20, layers))) == 60 << 20
    with memory_below(170 << 20), pytest.raises(UnsafeDataError, match="unpacks"):
        decode(suffix, packed(400 << 20, layers))


def test_an_npz_grows_a_hundredfold_or_to_64_mib() -> None:
    def zipped_zeros(n_bytes: int) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
            file.write(_npy(repr({"descr": "|u1", "fortran_order": False, "shape": (n_bytes,)})))
            for _ in range(n_bytes >> 20):
                file.write(bytes(1 << 20))
        return stream.getvalue()

    assert decode("x.npz", zipped_zeros(60 << 20))["a"].shape == (60 << 20,)
    with memory_below(10 << 20), pytest.raises(UnsafeDataError, match="unpacks"):
        decode("x.npz", zipped_zeros(200 << 20))
    with memory_below(150 << 20), pytest.raises(UnsafeDataError, match="unpacks"):
        decode("x.npz.gz", gzip.compress(zipped_zeros(200 << 20)))


def test_what_is_no_array_in_an_npz_is_bytes_as_numpy_gives_it() -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(3))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("about.txt", "hello")
    expected = dict(np.load(io.BytesIO(stream.getvalue())))
    assert same(decode("x.npz", stream.getvalue()), expected) and expected["about.txt"] == b"hello"


@pytest.mark.parametrize(
    "payload",
    [
        b"[" + b",".join([b"[]"] * 30_000) + b"]",
        b"[" + b",".join([b"{}"] * 30_000) + b"]",
        b"[" * 900 + b"]" * 900,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"1e" + b"9" * 100_000,
        b"1" * 4000,
        b"1" * 5000,
        b"[" + b",".join([b"1" * 4000] * 50) + b"]",
        b"-" + b"9" * 100_000,
        json.dumps({str(i): i for i in range(5000)}).encode(),
    ],
    ids=["lists", "dicts", "deep", "deep dicts", "exponent", "long", "too long", "many", "minus", "keys"],
)
def test_json_costs_no_more_than_its_bytes(payload: bytes) -> None:
    with memory_below(60 * len(payload) + (2 << 20)):
        try:
            decode("x.json", payload)
        except UnsafeDataError as error:
            assert len(str(error)) < 300


@pytest.mark.parametrize("shape", [(1 << 40, 0), (0, 1 << 40), (-1,), (1 << 63, 2), (1 << 32, 1 << 32)])
def test_tensors_of_webdatasets_own_format(shape: tuple[int, ...]) -> None:
    header = struct.pack("<3q", int.from_bytes(b"f4".ljust(8, b"\0"), "little"), 0, len(shape))
    header += b"".join((n % 2**64).to_bytes(8, "little") for n in shape)
    chunks = [b"~TenBin~" + struct.pack("<q", len(each)) + each + bytes(-len(each) % 64) for each in (header, b"")]
    with memory_below(2 << 20):
        try:
            (array,) = decode("x.ten", b"".join(chunks))
        except UnsafeDataError:
            return
    assert max(array.shape) <= 1 << 24
