"""Values ↔ member bytes: what numpy, pickle and webdataset make of them, and nothing that runs."""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import example, given, settings
from hypothesis import strategies as st
from values import FIELD_NAMES, JSON_FIELDS, NUMBERS, PLAIN_DTYPES, TENSORS, VALUES, arrays, plain, same
from webdataset import autodecode

import neurofmx_wds.format.limits as limits
from neurofmx_wds.errors import FieldError, UnsafeDataError
from neurofmx_wds.format.decoding import _DECODERS, decode, decode_json
from neurofmx_wds.format.encoding import encode, encode_json
from neurofmx_wds.format.names import check_key, field_of
from neurofmx_wds.format.npy import npy_layout
from neurofmx_wds.format.pickles import decode_pickle


def encoded(name: str, value: Any, **options: Any) -> tuple[str, bytes]:
    suffix, buffers, _ = encode(name, value, **options)
    return suffix, b"".join(buffers)


# --- what is written -------------------------------------------------------------------------------------------------


@given(array=arrays())
def test_an_array_is_stored_as_numpy_saves_it(array: np.ndarray) -> None:
    expected = io.BytesIO()
    np.save(expected, array.copy(order="C"), allow_pickle=False)
    assert encoded("x", array) == ("x.npy", expected.getvalue())


@given(name=FIELD_NAMES, value=VALUES)
def test_a_value_is_read_back_as_it_was(name: str, value: Any) -> None:
    suffix, payload = encoded(name, value)
    assert field_of(suffix) == name
    assert same(decode(suffix, payload), plain(value))


@given(value=VALUES)
def test_webdataset_decodes_what_is_written(value: Any) -> None:
    suffix, payload = encoded("x", value)
    extension = suffix.rpartition(".")[2]
    read = autodecode.decoders[extension](payload) if extension in autodecode.decoders else payload
    assert same(read, plain(value))


@example(value=np.zeros(1, [(("a title", "f1"), "?")]))
@given(value=arrays() | TENSORS | NUMBERS)
def test_pyd_is_a_pickle_of_the_array(value: Any) -> None:
    suffix, payload = encoded("x", value, field_format="pyd")
    assert suffix == "x.pyd"
    reference = pickle.loads(payload)  # numpy's, which may be in this machine's byte order
    assert same(decode(suffix, payload), reference)
    assert same(reference.astype(plain(value).dtype), plain(value))


@given(array=arrays())
def test_the_layout_tells_where_the_array_lies(array: np.ndarray) -> None:
    suffix, buffers, layout = encode("x", array)
    payload = b"".join(buffers)
    assert npy_layout(payload) == layout
    if layout is not None:
        assert payload[layout.header_size :] == array.tobytes()
        assert (layout.dtype, layout.shape) == (array.dtype.str, array.shape)


@given(array=arrays())
def test_decoded_arrays_are_writable_and_own_their_memory(array: np.ndarray) -> None:
    payload = bytearray(encoded("x", array)[1])
    first, second = decode("x.npy", payload), decode("x.npy", payload)
    payload[-8:] = b"\xff" * 8
    assert first.flags.writeable
    assert same(first, array)
    assert not np.shares_memory(first, second)


@given(value=arrays(PLAIN_DTYPES))
def test_fortran_arrays_that_others_wrote_are_read(value: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(value))
    read = decode("x.npy", stream.getvalue())
    assert same(read, np.load(io.BytesIO(stream.getvalue())))


def test_a_header_with_names_beyond_latin1() -> None:
    array = np.array([(1, 2.5)], [("刺激", "i4"), ("y", "f8")])
    suffix, payload = encoded("x", array)
    assert payload[6] == 3  # numpy's format version for such names
    assert same(decode(suffix, payload), array)
    assert same(autodecode.decoders["npy"](payload), array)


def test_names_with_extensions_go_through_webdatasets_encoder() -> None:
    table = {"a": np.arange(3), "b": np.zeros((2, 2), "f4")}
    cases: list[tuple[str, Any]] = [
        ("x.npz", table),
        ("y.cls", 7),
        ("note.txt", "é"),
        ("about.json", {"a": [1, None]}),
        ("x.ten", [np.arange(4.0, dtype="f4")]),
        ("w.pth", torch.arange(3)),
        ("x.pyd", {"a": np.arange(3)}),
    ]
    encoder = wds.writer.make_encoder(True)
    for name, value in cases:
        suffix, payload = encoded(name, value)
        official = encoder({"__key__": "k", name: value})[name]
        assert suffix == name
        assert field_of(suffix) == name.split(".")[0]
        if name not in ("x.npz", "w.pth"):  # zip files hold the time of day
            assert payload == official
        read, reference = decode(suffix, payload), autodecode.decoders[name.split(".")[1]](payload)
        assert same(read, reference), name


def test_an_image_is_webdatasets_png() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    suffix, payload = encoded("image.png", pixels)
    assert (suffix, field_of(suffix)) == ("image.png", "image")
    assert np.array_equal(np.asarray(image.open(io.BytesIO(payload))), pixels)
    assert decode(suffix, payload) == payload  # images stay bytes until they are asked for


@given(value=arrays(PLAIN_DTYPES) | st.text() | JSON_FIELDS | st.binary())
def test_gz_comes_back_as_what_was_given(value: Any) -> None:
    suffix, payload = encoded("x.gz", value)
    assert suffix.endswith(".gz") and field_of(suffix) == "x"
    assert same(decode(suffix, payload), value)
    assert payload == encoded("x.gz", value)[1]


def test_json_gz_is_read_by_webdataset() -> None:
    suffix, payload = encoded("x.json.gz", {"a": 1})
    assert suffix == "x.json.gz"
    assert json.loads(gzip.decompress(payload)) == {"a": 1} == decode(suffix, payload)


@given(value=JSON_FIELDS)
def test_json_is_json(value: Any) -> None:
    suffix, payload = encoded("x", value)
    assert suffix == "x.json"
    assert json.loads(payload) == value


def test_json_takes_numpy_and_torch_numbers() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(3), "c": torch.tensor([1, 2]), "d": np.bool_(True)}
    assert decode_json(encode_json(value)) == {"a": 0.5, "b": [0, 1, 2], "c": [1, 2], "d": True}


# --- what is refused when written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("field_format", ["npy", "pyd"])
def test_tensors_of_dtypes_that_numpy_lacks_are_torch_files(dtype: torch.dtype, field_format: Any) -> None:
    whole = torch.arange(60_000.0).reshape(2, -1).to(dtype).requires_grad_(dtype is torch.bfloat16)
    for value in (whole[0, :6], whole[:, :3].T, whole[0, 0], torch.zeros(0, 3, dtype=dtype)):
        suffix, payload = encoded("x", value, field_format=field_format)
        assert (suffix, field_of(suffix)) == ("x.pth", "x") and payload == encoded("x", value)[1]
        read, reference = decode(suffix, payload), autodecode.decoders["pth"](payload)
        for each in (read, reference):
            assert each.dtype == dtype and torch.equal(each.float(), value.detach().float())
        assert len(payload) < 4000  # of a view, only what it shows


def test_the_remedies_for_tensors_that_cannot_be_stored_work() -> None:
    for name, value in (("x.npy", torch.ones(2, dtype=torch.bfloat16)), ("x", torch.eye(2).to_sparse())):
        with pytest.raises(FieldError) as caught:
            encode(name, value)
        remedy = str(caught.value.remedy)
        assert "tensor.float()" in remedy and "tensor.to_dense()" in remedy
        fixed = value.to_dense() if value.is_sparse else value.float()
        assert same(decode("x.npy", encoded(name, fixed)[1]), fixed.numpy())


BAD_NAMES = ["", "Spikes", "a/b", "_x", "__key__", ".x", "x.", "a..b", "a\n", "a\0b", 7, None]
BAD_KEYS = ["", "a.b", "a/", "/a", "a//b", "__a__", "__a", "a\n", "a\0", 7, None]
BAD_VALUES: dict[str, Any] = {
    "objects": np.array([object()]),
    "ragged": np.array([[1], [1, 2]], dtype=object),
    "object field": np.zeros(2, [("a", "i4"), ("b", "O")]),
    "masked": np.ma.array([1, 2], mask=[True, False]),
    "sparse": torch.eye(2).to_sparse(),
    "none": None,
    "object": object(),
    "huge integer": 2**70,
    "set": {1, 2},
    "unknown in json": {"a": object()},
    "surrogate in json": {"a": "\udc80"},
    "surrogate": "\udc80",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_field_names_are_refused(name: Any) -> None:
    with pytest.raises(FieldError) as caught:
        encode(name, 1)
    assert caught.value.remedy


@pytest.mark.parametrize("key", BAD_KEYS)
def test_bad_keys_are_refused(key: Any) -> None:
    with pytest.raises(FieldError) as caught:
        check_key(key)
    assert caught.value.remedy


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_values_are_refused(kind: str) -> None:
    with pytest.raises(FieldError, match="x") as caught:
        encode("x", BAD_VALUES[kind])
    assert caught.value.member == "x"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("y.cls", np.zeros(3)),
        ("y.id", "cat"),
        ("x.npz", np.zeros(3)),
        ("x.json", object()),
        ("x.npy", "text"),
        ("x.pyd", pytest.raises),
        ("x.pyd", np.array([object()])),
        ("x.json.gz", object()),
    ],
)
def test_what_an_extension_cannot_hold_is_refused(name: str, value: Any) -> None:
    with pytest.raises(FieldError) as caught:
        encode(name, value)
    assert caught.value.member and caught.value.remedy


# --- damaged and hostile payloads ------------------------------------------------------------------------------------


def _npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin1" if version < 3 else "utf8") + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


HOSTILE_NPY = {
    "objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([object])),
    "object field": _npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", b"x" * 64),
    "huge": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}", b"x" * 64),
    "huge product": _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**32}, {2**32})}}", b""),
    "huge and empty": _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {2**62}, {2**62})}}"),
    "beyond int64": _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': (0, {2**80})}}"),
    "huge item": _npy("{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1,)}"),
    "negative": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b"x" * 64),
    "two negatives": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -8)}", b"x" * 64),
    "code": _npy("__import__('os').system('touch {canary}')"),
    "code in shape": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (eval('1'),)}"),
    "nested": _npy("(" * 9000 + ")" * 900),
    "nested list": _npy("{'descr': " + "[" * 4000 + "]" * 4000 + ", 'fortran_order': False, 'shape': ()}"),
    "long header": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}" + " " * 20_000, b"x" * 8),
    "no header": b"\x93NUMPY",
    "header cut": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}")[:40],
    "data cut": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", b"x" * 15),
    "version 9": _npy("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", b"x" * 8, version=9),
    "version 3 code": _npy("{'descr': eval('1'), 'fortran_order': False, 'shape': ()}", b"x" * 8, version=3),
    "version 3 objects": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"x" * 8, version=3),
    "not numpy": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", HOSTILE_NPY)
def test_hostile_npy(kind: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeDataError):
            read = decode("x.npy", HOSTILE_NPY[kind])
            assert read.size == 0 and kind in ("huge and empty", "beyond int64")
            raise UnsafeDataError("an empty array is harmless too")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


class _Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def _dtype_state(dtype: str, state: tuple[Any, ...], n_bytes: int) -> bytes:
    """An array whose dtype was given this state, as numpy's own unpickler would believe it."""

    class Dtype:
        def __reduce__(self) -> Any:
            return np.dtype, (dtype, False, True), state

    class Array:
        def __reduce__(self) -> Any:
            reconstruct, args, _ = np.zeros(0).__reduce__()
            return reconstruct, args, (1, (1,), Dtype(), False, b"A" * n_bytes)

    return pickle.dumps(Array(), protocol=4)


def _hostile_pickles(canary: str) -> dict[str, bytes]:
    touch = f"open({canary!r}, 'w').close()"
    rebuild = torch._utils._rebuild_tensor_v2
    storage = torch.zeros(1).untyped_storage()
    float8 = (np.dtype("f8"), 1 << 33)
    state = (0, 0, 0, 0)
    return {
        "os.system": pickle.dumps(_Calls(os.system, f"touch {canary}")),
        "eval": pickle.dumps(_Calls(eval, touch)),
        "exec, protocol 0": pickle.dumps(_Calls(exec, touch), protocol=0),
        "getattr": pickle.dumps(_Calls(getattr, "x", "__class__")),
        "Popen": pickle.dumps(_Calls(subprocess.Popen, ["touch", canary])),
        "in a list": pickle.dumps([np.zeros(2), {"a": _Calls(eval, touch)}]),
        "numpy loader": pickle.dumps(_Calls(np.load, "/etc/passwd")),
        "numpy runner": b"cnumpy.testing._private.utils\nruncstring\n(S'" + touch.encode() + b"'\n}tR.",
        "torch.load": pickle.dumps(_Calls(torch.load, canary)),
        "torch rebuild": pickle.dumps(_Calls(torch._utils._rebuild_tensor, storage, 0, (9,), (1,))),
        "torch hooks": pickle.dumps(_Calls(rebuild, "x", 0, (1,), (1,), False, _Calls(eval, touch))),
        "nested in torch": pickle.dumps(_Calls(torch.storage._load_from_bytes, pickle.dumps(_Calls(eval, touch)))),
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0cf2py.os.system\x93\x8c\x02id\x85R.",
        "ndarray called": pickle.dumps(_Calls(np.ndarray, (1 << 40,))),
        "reconstruct big": pickle.dumps(_Calls(np.zeros(0).__reduce__()[0], np.ndarray, (1 << 40,), b"b")),
        "reconstruct other": pickle.dumps(_Calls(np.zeros(0).__reduce__()[0], np.memmap, (0,), b"b")),
        "object array": pickle.dumps(np.array([1, "a"], object)),
        "object scalar dtype": pickle.dumps(np.dtype("O")),
        "dtype reads outside": _dtype_state("V8", (3, "|", None, ("a",), {"a": float8}, 8, 1, 16), 8),
        "dtype hides objects": _dtype_state("V8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0), 8),
        "dtype grows": _dtype_state("V8", (3, "|", None, ("a",), {"a": (np.dtype("f8"), 64)}, 80, 1, 0), 8),
        "dtype subarray": _dtype_state("V8", (3, "|", (np.dtype("f8"), (1 << 30,)), None, None, 8, 1, 0), 8),
        "array without data": pickle.dumps(np.zeros(3)).replace(b"\x00" * 24, b""),
        "persistent id": b"\x80\x04\x8c\x01aQ.",
        "persistent id, protocol 0": b"Pabc\n.",
        "extension": b"\x80\x02\x82\x01.",
        "new object": b"\x80\x04\x8c\x08builtins\x8c\x03set\x93)\x81.",
        "inst": b"(S'id'\nios\nsystem\n.",
        "state of a function": b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93N}\x8c\x0c__defaults__N\x86s\x86b.",
        "huge memo": b"\x80\x04Nr\xff\xff\xff\xff0.",
        "huge bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
        "huge bytearray": b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b"x.",
        "huge frame": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N",
        "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"X",
        "cut": pickle.dumps(np.zeros(3))[:-5],
        "nothing": b"",
        "text": b"hello",
        "state": pickle.dumps(_Calls(collections.OrderedDict, state)),
    }


@pytest.mark.parametrize("kind", _hostile_pickles("x"))
@pytest.mark.parametrize("suffix", ["x.pyd", "x.pkl", "x.pickle", "x.pyd.gz"])
def test_hostile_pickles_run_nothing(kind: str, suffix: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    payload = _hostile_pickles(str(canary))[kind]
    tracemalloc.start()
    try:
        with pytest.raises(UnsafeDataError):
            decode(suffix, gzip.compress(payload) if suffix.endswith("gz") else payload)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert not canary.exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    """The hostile pickles are real: python's own unpickler runs them."""
    canary = tmp_path / "canary"
    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"],
        input=_hostile_pickles(str(canary))["eval"],
        check=True,
    )
    assert canary.exists()


def test_a_pickle_of_pickles_is_not_walked_for_ever() -> None:
    nested: Any = ("x",)
    for _ in range(60):
        nested = (nested, nested)
    with pytest.raises(UnsafeDataError, match="repeats"):
        decode_pickle(pickle.dumps(nested))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_every_protocol_are_read(protocol: int) -> None:
    value = {
        "a": np.arange(6.0).reshape(2, 3).T,
        "b": [np.float32(1.5), ("x", None, True)],
        "c": np.array(["a", "bcd"]),
        "d": np.zeros(2, [("a", ">i4"), ("b", "f8", (2,))]),
        "e": np.array(["2020-01-01"], "M8[D]"),
        "f": np.arange(3, dtype=">i2"),
        "g": 2**100,
        "h": "é",
        "i": b"x",
    }
    payload = pickle.dumps(value, protocol=protocol)
    assert same(decode_pickle(payload), pickle.loads(payload))


def test_pickled_tensors_are_read() -> None:
    for tensor in (torch.arange(6.0).reshape(2, 3).T, torch.zeros(0, 3), torch.ones(2, dtype=torch.bfloat16)):
        assert torch.equal(decode_pickle(pickle.dumps(tensor)), tensor)


def test_an_array_made_by_an_older_numpy_is_read() -> None:
    payload = pickle.dumps(np.arange(3), protocol=4).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    payload = payload.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
    start = payload.index(b"\x95")
    frame = len(payload) - start - 9
    payload = payload[: start + 1] + frame.to_bytes(8, "little") + payload[start + 9 :]
    assert same(decode_pickle(payload), np.arange(3))


@pytest.mark.parametrize("suffix", ["x.json", "metadata.json", "x.jsn"])
@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1} x', b"nonsense"])
def test_hostile_json(suffix: str, payload: bytes) -> None:
    with pytest.raises(UnsafeDataError):
        decode(suffix, payload)


def test_bombs_stop_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_SMALL", 1 << 20)
    monkeypatch.setattr(limits, "_GROWTH", 1)
    zipped = io.BytesIO()
    np.savez_compressed(zipped, a=np.zeros(1 << 20))
    for suffix, payload in [
        ("x.npz", zipped.getvalue()),
        ("x.txt.gz", gzip.compress(bytes(8 << 20))),
        ("x.bin.gz.gz", gzip.compress(gzip.compress(bytes(8 << 20)))),
    ]:
        with pytest.raises(UnsafeDataError, match="unpacks"):
            decode(suffix, payload)


@pytest.mark.parametrize("size", [-64, -(2**63), 2**62, 145])
def test_tensors_whose_chunks_lead_astray_are_refused(size: int) -> None:
    good = WHOLESOME["f.ten"]
    assert len(good) == 2 * (16 + 64)
    for place in (0, 80):
        payload = bytearray(good)
        payload[place + 8 : place + 16] = size.to_bytes(8, "little", signed=True)
        for suffix in ("x.ten", "x.tb"):
            assert same(decode(suffix, good)[0], np.arange(4.0, dtype="f4"))
            with pytest.raises(UnsafeDataError, match="claims"):
                decode(suffix, payload)


def test_an_npz_of_objects_is_refused() -> None:
    stream = io.BytesIO()
    np.savez(stream, a=np.array([object], object))
    with pytest.raises(UnsafeDataError):
        decode("x.npz", stream.getvalue())


def test_a_torch_file_that_calls_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    stream = io.BytesIO()
    torch.save({"a": _Calls(eval, f"open({str(canary)!r}, 'w').close()")}, stream)
    with pytest.raises(UnsafeDataError):
        decode("x.pth", stream.getvalue())
    assert not canary.exists()


def test_npz_is_read_as_numpy_reads_it() -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.arange(3), b=np.asfortranarray(np.ones((2, 3))), c=np.array("x"))
    assert same(decode("x.npz", stream.getvalue()), dict(np.load(io.BytesIO(stream.getvalue()))))
    with zipfile.ZipFile(io.BytesIO(stream.getvalue())) as archive:
        assert archive.namelist()


def _wholesome() -> dict[str, bytes]:
    return dict(
        [
            encoded("a", np.arange(6, dtype="f4").reshape(2, 3)),
            encoded("b", np.zeros(2, [("x", "i4"), ("y", "U2")])),
            encoded("c", np.arange(4.0), field_format="pyd"),
            encoded("d.npz", {"a": np.arange(3)}),
            encoded("e.pth", torch.arange(3)),
            encoded("f.ten", [np.arange(4.0, dtype="f4")]),
            encoded("g", {"a": [1, 2]}),
            encoded("h.cls", 3),
            encoded("i", "text"),
            encoded("j.json.gz", {"a": 1}),
            ("k.pyd", pickle.dumps(torch.arange(3.0))),
            ("l.pyd", pickle.dumps(np.zeros(2, [("x", "i4"), ("y", "U2")]))),
        ]
    )


@given(data=st.data())
@settings(max_examples=400)
def test_damage_gives_a_value_or_a_named_error(data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(sorted(WHOLESOME)))
    payload = bytearray(WHOLESOME[suffix])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(0, len(payload)) | st.just(len(payload))) :]
    _value_or_named_error(lambda: decode(suffix, payload))


@given(
    payload=st.binary(max_size=200),
    suffix=st.sampled_from(sorted({*_DECODERS, *autodecode.decoders}) + ["gz", "jpg", "", "x"]),
)
@settings(max_examples=300)
def test_rubbish_gives_a_value_or_a_named_error(payload: bytes, suffix: str) -> None:
    _value_or_named_error(lambda: decode(suffix, payload))


def _value_or_named_error(read: Callable[[], Any]) -> None:
    try:
        _touch(read())  # a forged dtype or object would crash here
    except UnsafeDataError as error:
        assert error.problem


def _touch(value: Any) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        for name in value.dtype.names or ():
            _touch(value[name])
        value.copy()
    elif isinstance(value, torch.Tensor):
        value.clone()
    elif isinstance(value, dict):
        for item in value.values():
            _touch(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _touch(item)
    else:
        repr(value)


WHOLESOME = _wholesome()
