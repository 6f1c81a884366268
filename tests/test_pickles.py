"""Torch files read without torch.load: what torch saves comes back as torch loads it, and nothing else does."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from values import same

from neurofmx_wds.errors import UnsafeDataError
from neurofmx_wds.format.decoding import decode
from neurofmx_wds.format.pickles import decode_pickle, decode_torch

DTYPES = [
    torch.double, torch.float, torch.half, torch.bfloat16, torch.long, torch.int, torch.short, torch.int8, torch.uint8,
    torch.bool, torch.cdouble, torch.cfloat, torch.uint16, torch.uint32, torch.uint64, torch.float8_e5m2,
]  # fmt: skip
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(value: Any, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    known = (a.dtype, a.shape, a.stride(), a.requires_grad) == (b.dtype, b.shape, b.stride(), b.requires_grad)
    return known and bytes(a.detach().flatten().contiguous().view(torch.uint8).tolist()) == bytes(
        b.detach().flatten().contiguous().view(torch.uint8).tolist()
    )


@pytest.mark.parametrize(
    ("dtype", "zipped"),
    [(dtype, True) for dtype in DTYPES] + [(dtype, False) for dtype in DTYPES[:12]],  # torch does not read the others
)
def test_every_dtype_comes_back_as_torch_loads_it(dtype: torch.dtype, zipped: bool) -> None:
    whole = torch.arange(24).reshape(2, 3, 4).to(dtype)
    tensors = [
        whole,
        whole.transpose(0, 2),
        whole[1, 1:],
        whole[:, :, 0],
        torch.empty(0, 3, dtype=dtype),
        whole[0, 0, 0],
    ]
    try:
        data = saved(tensors, zipped)
    except KeyError:
        assert dtype in DTYPES[12:]
        pytest.skip("torch itself cannot save these: 2.4")
    truth = torch.load(io.BytesIO(data), weights_only=True)
    assert all(map(alike, decode_torch(data), truth))
    assert all(map(alike, truth, tensors))
    for tensor in tensors[: 0 if dtype in DTYPES[12:] else None]:
        assert alike(decode_pickle(pickle.dumps(tensor)), pickle.loads(pickle.dumps(tensor)))


@FORMATS
def test_containers_parameters_and_arrays_come_back(zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    value = {
        "state": module.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(6.0).reshape(2, 3),
        "plain": [1, "a", None, 2.5, (True,), {3}, torch.Size([2, 3]), b"bytes"],
        "repeated": torch.ones(1).expand(7),
    }
    data = saved(value, zipped)
    found, truth = decode_torch(data), torch.load(io.BytesIO(data), weights_only=False)
    assert same(found["array"], truth["array"]) and found["plain"] == truth["plain"]
    assert alike(found["parameter"], truth["parameter"].data.requires_grad_()) and alike(
        found["repeated"], torch.ones(1).expand(7)
    )
    assert found["state"]._metadata == truth["state"]._metadata
    assert found["state"].keys() == truth["state"].keys()
    assert all(map(alike, found["state"].values(), truth["state"].values()))
    module.load_state_dict(found["state"])


@FORMATS
def test_views_share_their_storage(zipped: bool) -> None:
    base = torch.zeros(5)
    first, second = decode_torch(saved([base, base[2:]], zipped))
    second[0] = 7
    assert first.tolist() == [0, 0, 7, 0, 0]


class Names:
    """Pickles as a call of a function by its name, which need not exist."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class HostilePickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what it is told: calls of any name, and storages of any type, name and size."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Names):
            module, name, *args = value.parts
            self.write(f"c{module}\n{name}\n".encode())
            if args:
                super().save(tuple(args[0]))
                self.write(b"R")
        else:
            super().save(value, save_persistent_id)

    def persistent_id(self, value: Any) -> Any:
        return value.said if isinstance(value, Storage) else None


class Storage:
    """A storage that says of itself whatever it is told."""

    def __init__(self, kind: Any = None, name: Any = "0", count: Any = 4, tag: Any = "storage", **more: Any) -> None:
        self.said = (tag, kind or Names("torch", "FloatStorage"), name, "cpu", count, *more.values())


def hostile_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    HostilePickler(stream, 2).dump(value)
    return stream.getvalue()


def zipped(value: Any, records: dict[str, bytes] | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        archive.writestr("archive/data.pkl", hostile_pickle(value))
        archive.writestr("archive/version", "3\n")
        for name, data in (records or {"data/0": bytes(16)}).items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()


def legacy(value: Any, storages: dict[str, bytes] | None = None, **about: Any) -> bytes:
    heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, **about}]
    told = {"0": struct.pack("<q", 4) + bytes(16)} if storages is None else storages
    parts = [pickle.dumps(head, 2) for head in heads] + [hostile_pickle(value), pickle.dumps(list(told), 2)]
    return b"".join([*parts, *told.values()])


def tensor(storage: Any = None, offset: Any = 0, size: Any = (4,), stride: Any = (1,), hooks: Any = None) -> Names:
    hooks = Names("collections", "OrderedDict", ()) if hooks is None else hooks
    return Names("torch._utils", "_rebuild_tensor_v2", (storage or Storage(), offset, size, stride, False, hooks))


def calls(canary: str) -> dict[str, Any]:
    system = Names("os", "system", (f"touch {canary}",))
    return {
        "os.system": system,
        "eval": Names("builtins", "eval", (f"open({canary!r}, 'w')",)),
        "builtins.getattr": Names("builtins", "getattr", ("x", "__class__")),
        "hooks that call": tensor(hooks=system),
        "hooks that are there": tensor(hooks={"a": 1}),
        "a storage that is called for": tensor(storage=system),
        "rebuild with state": Names("torch._utils", "_rebuild_parameter_with_state", (tensor(), False, {}, system)),
        "rebuild of a type": Names("torch._tensor", "_rebuild_from_type_v2", (system, (), (), {})),
        "wrapper subclass": Names("torch._utils", "_rebuild_wrapper_subclass", ()),
        "parameter of something": Names("torch._utils", "_rebuild_parameter", ("x", False, {})),
        "jit": Names("torch.jit", "load", (canary,)),
        "load": Names("torch", "load", (canary,)),
        "hub": Names("torch.hub", "load_state_dict_from_url", ("http://localhost:9/x",)),
        "Size of a call": Names("torch", "Size", (system,)),
        "a function alone": Names("torch._utils", "_rebuild_tensor_v2"),
    }


SHAPES: dict[str, Any] = {
    "terabytes": tensor(size=(1 << 40,)),
    "terabytes repeated": tensor(size=(1 << 40,), stride=(0,)),
    "overflow": tensor(size=(1 << 40, 1 << 40), stride=(0, 0)),
    "negative": tensor(size=(-1,)),
    "negative stride": tensor(stride=(-1,)),
    "outside": tensor(offset=1),
    "far outside": tensor(size=(2,), stride=(1 << 61,)),
    "offset below": tensor(offset=-4),
    "ranks differ": tensor(size=(2, 2)),
    "no numbers": tensor(size=("a",)),
    "floats": tensor(size=(2.0,)),
    "no storage": tensor(storage="0"),
    "storage too small": tensor(storage=Storage(count=8), size=(8,)),
    "storage that is huge": tensor(storage=Storage(count=1 << 50)),
    "storage that is negative": tensor(storage=Storage(count=-4)),
    "storage of another name": tensor(storage=Storage(name="1")),
    "storage above its directory": tensor(storage=Storage(name="../data.pkl")),
    "storage of no type": tensor(storage=Storage(kind=Names("torch", "FloatTensor"))),
    "storage that is a module": tensor(storage=Storage(tag="module")),
    "storage with a view": tensor(storage=Storage(view=("1", 0, 1 << 40))),
    "untyped": tensor(storage=Storage(kind=Names("torch.storage", "UntypedStorage"), count=16)),
    "of two types": [tensor(), tensor(storage=Storage(kind=Names("torch", "IntStorage")))],
    "a storage alone": Storage(),
    "a type alone": Names("torch", "FloatStorage"),
}


@pytest.mark.parametrize("container", [zipped, legacy])
@pytest.mark.parametrize("kind", [*calls(""), *SHAPES])
def test_hostile_torch_files_run_nothing(
    kind: str, container: Callable[[Any], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = container({**calls(str(tmp_path / "canary")), **SHAPES}[kind])
    with pytest.raises(UnsafeDataError):
        value = decode("x.pth", payload)
        assert kind == "a function alone" and callable(value)
        raise UnsafeDataError("a name that nobody calls is harmless")
    if container is legacy:  # the same, as a tensor's pickle holds it
        with pytest.raises(UnsafeDataError):
            decode("x.pyd", hostile_pickle(Names("torch.storage", "_load_from_bytes", (payload,))))
    assert os.listdir(tmp_path) == []


def test_the_hostile_files_are_real(tmp_path: Path) -> None:
    """A good tensor written in the same way is read, and torch itself runs the calls when it is told to."""
    for container in (zipped, legacy):
        assert decode_torch(container(tensor())).tolist() == [0] * 4
        whole = tensor(Storage() if container is zipped else Storage(view=None))
        payload = container([whole, calls(str(tmp_path / "canary"))["os.system"]])
        torch.load(io.BytesIO(payload), weights_only=False)
        assert (tmp_path / "canary").exists()
        (tmp_path / "canary").unlink()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"PK\x03\x04",
        zipped(tensor(), {"data/1": b""}),
        zipped(tensor(), {"data/0": bytes(12)}),
        zipped(tensor(), {"data/0": bytes(16), "byteorder": b"big"}),
        zipped(tensor(), {"data/0": bytes(16)}, compression=zipfile.ZIP_DEFLATED),
        legacy(tensor(), {}),
        legacy(tensor(), {"0": struct.pack("<q", 4) + bytes(15)}),
        legacy(tensor(), {"0": struct.pack("<q", 1 << 60) + bytes(16)}),
        legacy(tensor(), {"1": struct.pack("<q", 4) + bytes(16)}),
        legacy(tensor(), little_endian=False),
        saved(torch.ones(2).to_sparse()),
        saved(collections.Counter("a")),
    ],
    ids=lambda payload: str(len(payload)),
)
def test_damaged_and_unusual_files_are_refused(payload: bytes) -> None:
    with pytest.raises(UnsafeDataError):
        decode_torch(payload)


GOOD = [saved({"a": torch.arange(5.0), "b": [torch.ones(2, 2).T, 3]}, way) for way in (True, False)]


@settings(max_examples=300)
@given(data=st.data())
def test_damage_gives_a_value_or_a_named_error(data: st.DataObject) -> None:
    payload = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(0, len(payload)) | st.just(len(payload))) :]
    try:
        value = decode_torch(payload)
    except UnsafeDataError as error:
        assert error.problem
    else:
        for each in value.values() if isinstance(value, dict) else ():
            if isinstance(each, torch.Tensor):
                each.clone()
