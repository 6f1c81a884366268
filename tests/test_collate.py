"""Samples → batches: what torch's own collation makes of arrays, and lists where it would fail."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from torch.utils.data import default_collate
from values import PLAIN_DTYPES, SHAPES, TEXT_DTYPES, same

from neurofmx_wds import collate_webdataset
from neurofmx_wds.errors import FieldError, UnsafeDataError
from neurofmx_wds.loading.collate import MetadataList, stack

TORCH_DTYPES = PLAIN_DTYPES.filter(lambda dtype: dtype.isnative)


@given(data=st.data(), count=st.integers(1, 4))
def test_arrays_become_what_torch_makes_of_them(data: st.DataObject, count: int) -> None:
    dtype, shape = data.draw(TORCH_DTYPES), data.draw(SHAPES)
    arrays = [data.draw(nps.arrays(dtype, shape)) for _ in range(count)]
    reference = torch.stack([torch.from_numpy(array) for array in arrays])
    assert same(stack(arrays), reference)
    assert same(stack([torch.from_numpy(array) for array in arrays]), reference)
    assert same(stack([array[::-1] if array.ndim else array for array in arrays]), _flipped(reference))


def _flipped(batch: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(batch.numpy()[:, ::-1].copy()) if batch.ndim > 1 else batch


@given(value=st.lists(st.integers(-(2**40), 2**40), min_size=1) | st.lists(st.floats(allow_nan=False), min_size=1))
def test_numbers_become_what_torch_makes_of_them(value: list[Any]) -> None:
    assert same(stack(value), default_collate(value))


@given(data=st.data())
def test_foreign_byte_order_keeps_its_values(data: st.DataObject) -> None:
    array = data.draw(nps.arrays(data.draw(PLAIN_DTYPES.filter(lambda dtype: not dtype.isnative)), (2, 3)))
    assert same(stack(list(array)), torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))


@given(data=st.data())
def test_text_and_times_stay_arrays(data: st.DataObject) -> None:
    array = data.draw(nps.arrays(data.draw(TEXT_DTYPES.filter(lambda dtype: dtype.isnative)), (2, 3)))
    assert same(stack(list(array)), array)


def test_what_cannot_be_stacked_comes_as_a_list() -> None:
    a, b = np.zeros((2, 3), "f4"), np.ones((4, 3), "f4")
    assert [tensor.shape for tensor in stack([a, b])] == [(2, 3), (4, 3)]
    assert [tensor.dtype for tensor in stack([a, a.astype("f8")])] == [torch.float32, torch.float64]
    assert [tensor.ndim for tensor in stack([a, a[0]])] == [2, 1]
    assert stack(["a", "b"]) == ["a", "b"]
    assert stack([{"a": 1}, [2]]) == [{"a": 1}, [2]]
    missing = stack([a, None])
    assert same(missing[0], torch.from_numpy(a)) and missing[1] is None


def test_views_that_torch_cannot_hold_are_copied() -> None:
    a, b = np.arange(4.0)[::-1], np.arange(3.0)
    b.flags.writeable = False
    first, second = stack([a, b])
    assert first.tolist() == [3, 2, 1, 0]
    second += 1
    assert b.tolist() == [0, 1, 2]


def test_a_field_of_a_structured_array_is_copied() -> None:
    table = np.array([(1.5, 2), (3.5, 4), (5.5, 6)], [("a", "f4"), ("b", "u1")])
    assert [part.tolist() for part in stack([table["a"], table["a"][:2]])] == [[1.5, 3.5, 5.5], [1.5, 3.5]]


def test_byte_orders_do_not_tell_values_apart() -> None:
    assert same(stack([np.ones(2, "<f4"), np.full(2, 2, ">f4")]), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))


@given(data=st.data(), count=st.integers(1, 3))
def test_batches_are_contiguous(data: st.DataObject, count: int) -> None:
    array = data.draw(nps.arrays(data.draw(TORCH_DTYPES | TEXT_DTYPES.filter(lambda dtype: dtype.isnative)), SHAPES))
    permuted = array.transpose(data.draw(st.permutations(range(array.ndim))))
    batch = stack([permuted] * count)
    assert batch.flags.c_contiguous if isinstance(batch, np.ndarray) else batch.is_contiguous()
    if isinstance(batch, torch.Tensor):
        assert same(batch, torch.from_numpy(np.stack([permuted] * count)))
        again = stack([torch.from_numpy(array).permute([*range(array.ndim)][::-1])] * count)
        assert again.is_contiguous() and same(again, torch.from_numpy(np.stack([array.T] * count)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_tensors_that_numpy_does_not_know(dtype: torch.dtype) -> None:
    tensors = [torch.ones(3, dtype=dtype), torch.zeros(3, dtype=dtype)]
    assert torch.equal(stack(tensors), torch.stack(tensors))
    unequal = [tensors[0], tensors[1][:2]]
    assert all(map(torch.equal, stack(unequal), unequal))
    padded = torch.tensor([[1, 1, 1], [0, 0, 7]], dtype=dtype)
    assert torch.equal(stack(unequal, 7), padded) and stack(unequal, 7).dtype == dtype


def test_gradients_are_kept_out_of_numpy() -> None:
    tensors = [torch.ones(3, requires_grad=True)] * 2
    assert stack(tensors).shape == (2, 3)
    unequal = [tensors[0], 2 * tensors[0][:1]]
    assert all(map(torch.equal, stack(unequal), unequal))
    stack(unequal, 5).sum().backward()
    assert torch.equal(tensors[0].grad, torch.tensor([3.0, 1, 1]))


def test_arrays_and_tensors_make_one_batch() -> None:
    assert same(stack([np.ones(2), torch.zeros(2, dtype=torch.float64)]), torch.tensor([[1.0, 1], [0, 0]]).double())
    assert [type(each) for each in stack([np.array(["a"]), torch.zeros(1)])] == [np.ndarray, torch.Tensor]
    assert stack([torch.eye(2).to_sparse()] * 2).shape == (2, 2, 2)


@given(data=st.data(), pad=st.integers(0, 9))
def test_padding_fills_behind_each_array(data: st.DataObject, pad: int) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4))
    arrays = [np.full(shape, i + 10, "f4") for i, shape in enumerate(shapes)]
    batch = collate_webdataset([{"__key__": "k", "x": array, "y": i} for i, array in enumerate(arrays)], pad_value=pad)
    tallest, widest = np.max(shapes, axis=0)
    expected = [
        np.pad(array, [(0, tallest - len(array)), (0, widest - array.shape[1])], constant_values=pad)
        for array in arrays
    ]
    assert same(batch["x"], torch.from_numpy(np.stack(expected)))
    assert batch["y"].tolist() == list(range(len(arrays)))
    assert batch["x_lengths"].tolist() == [list(shape) for shape in shapes] and "y_lengths" not in batch


def test_lengths_are_there_whatever_samples_meet() -> None:
    """Also of text; of what cannot be padded there are none, and samples' own fields stay."""

    def batch(*shapes: tuple[int, ...], **more: Any) -> dict[str, Any]:
        samples = [{"x": np.ones(shape, "i2"), "t": np.full(shape, "a"), **more} for shape in shapes]
        return collate_webdataset(samples, pad_value=0)

    for shapes in (((2,), (2,)), ((2,), (3,)), ((4,),)):
        found = batch(*shapes)
        assert set(found) == {"x", "x_lengths", "t", "t_lengths"}
        assert found["x_lengths"].dtype == torch.int64
        assert found["x_lengths"].tolist() == found["t_lengths"].tolist() == [list(shape) for shape in shapes]
    assert "x_lengths" not in batch((2,), (2, 1)) and "x_lengths" not in batch((), ())
    own = batch((2,), (3,), x_lengths=np.int64(7))
    assert own["x_lengths"].tolist() == [7, 7]
    assert set(collate_webdataset([{"x": np.ones(2)}])) == {"x"}


def test_a_batch_has_every_field_of_every_sample() -> None:
    batch = collate_webdataset(
        [{"__key__": "a", "x": np.zeros(2), "metadata": {"i": 1}}, {"__key__": "b", "y": 1, "metadata": {"i": 2}}]
    )
    assert batch["__key__"] == ["a", "b"] and batch["metadata"] == [{"i": 1}, {"i": 2}]
    assert batch["x"][1] is None and batch["y"] == [None, torch.tensor(1)] or batch["y"][0] is None


def test_no_samples_are_refused() -> None:
    with pytest.raises(FieldError) as caught:
        collate_webdataset([])
    assert caught.value.remedy


def test_metadata_reads_like_a_list_of_dicts() -> None:
    texts = [b'{"a": 1}', b'{"a": 2}', b"{}"]
    about = MetadataList(texts)
    expected = [{"a": 1}, {"a": 2}, {}]
    assert about == expected and expected == about and list(about) == expected and repr(about) == repr(expected)
    assert len(about) == 3 and about[-1] == {} and about[1:] == expected[1:]
    assert about != expected[:2] and about != 7
    assert about + [{"z": 0}] == [*expected, {"z": 0}] and [{"z": 0}] + about == [{"z": 0}, *expected]
    assert about + about == expected + expected and type(about + about) is list
    assert about.index({}) == 2 and about.count({}) == 1 and {"a": 2} in about and [*reversed(about)] == expected[::-1]
    assert json.loads(json.dumps(list(about))) == json.loads(json.dumps(about, default=list)) == expected
    assert not isinstance(about, Sequence)  # Lightning walks through these, which would decode everything
    about[0]["b"] = 3
    assert about[0] == {"a": 1, "b": 3}
    assert pickle.loads(pickle.dumps(about)) == about == copy.deepcopy(about)
    with pytest.raises(IndexError):
        about[3]
    with pytest.raises(UnsafeDataError):
        MetadataList([b"{"])[0]
