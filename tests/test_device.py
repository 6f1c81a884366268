"""Batches on a device: the same batches and states, and no memory that is filled again while its copy is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import webdataset as wds
from loading import LAYOUTS, array_of, flip, global_rows, ranks, resumed, steps, through_json, write_dataset

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.loading.device import PlainLane, on_device

SETTINGS: dict[str, Any] = {"batch_size": 4, "buffer_size": 7, "block_size": 3}


class LateLane:
    """A device whose copies are made at the last moment: when the consumer waits for them."""

    def __init__(self) -> None:
        self.begun: deque[tuple[torch.Tensor, torch.Tensor]] = deque()
        self.most = 0

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = torch.full_like(tensor, 77)
        self.begun.append((tensor, copy))
        return copy

    def mark(self) -> Callable[[Any], None]:
        n = len(self.begun)
        self.most = max(self.most, n)

        def arrive(batch: Any) -> None:
            for _ in range(min(n, len(self.begun))):
                source, copy = self.begun.popleft()
                copy.copy_(source)

        return arrive


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 3])
def test_same_sequence_and_states(dataset: Callable[..., Path], num_workers: int, world_size: int) -> None:
    directory = dataset("unequal")
    expected = list(steps(ranks(directory, world_size, **SETTINGS)))
    for stop in {1, 2, len(expected) - 1} - {len(expected)}:
        loaders = ranks(directory, world_size, device="cpu", num_workers=num_workers, **SETTINGS)
        first = []
        for step in steps(loaders):
            first.append(step)
            if len(first) == stop:
                break
        states = [through_json(loader.state_dict()) for loader in loaders]
        assert all(state == states[0] for state in states)  # what is on its way is not counted
        rest = list(steps(resumed(directory, states[0], world_size, device="cpu", **SETTINGS)))
        assert global_rows(first + rest) == global_rows(expected)


def test_tensors_arrive_on_the_device_and_the_rest_stays(dataset: Callable[..., Path]) -> None:
    loader = create_webdataset_dataloader(dataset("equal"), device="meta", **SETTINGS)
    plain = create_webdataset_dataloader(dataset("equal"), **SETTINGS)
    batches = list(loader)
    assert len(batches) == len(loader) == len(plain) > 1
    for batch, expected in zip(batches, plain, strict=True):
        assert batch["__key__"] == expected["__key__"] and batch["metadata"] == expected["metadata"]
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert batch[name].device.type == "meta" and batch[name].shape == value.shape


class Pair(NamedTuple):
    x: torch.Tensor
    y: list[torch.Tensor | None]


def test_tensors_are_found_wherever_a_batch_holds_them() -> None:
    pair = Pair(torch.ones(1), [torch.ones(3), None])
    batch = {"a": {"b": [torch.zeros(2), None]}, "pair": pair, "text": "x", "n": 3}
    (sent,) = on_device([batch], PlainLane(torch.device("meta")))
    assert sent["a"]["b"][0].device.type == "meta" and sent["a"]["b"][1] is None and sent["text"] == "x"
    assert isinstance(sent["pair"], Pair) and sent["pair"].y[0].device.type == "meta" and sent["n"] == 3


def test_what_is_delivered_has_arrived_while_the_next_is_on_its_way(directory: Path) -> None:
    loader = create_webdataset_dataloader(directory, num_workers=0, **SETTINGS)
    expected = [{k: v.clone() for k, v in b.items() if isinstance(v, torch.Tensor)} for b in loader]
    loader.start_epoch(0)
    lane, n = LateLane(), 0
    for batch, wanted in zip(on_device(loader, lane), expected, strict=True):
        n += 1
        assert all(torch.equal(batch[name], value) for name, value in wanted.items())
    assert n > 2 and lane.most == 2 * len(expected[0])


def test_skipped_samples_are_counted_on_the_device_too(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "damaged", LAYOUTS["equal"])
    shard = sorted(directory.glob("*.tar"))[0]
    flip(shard, shard.read_bytes().index(array_of(2).tobytes()) + 3)
    options = {**SETTINGS, "handler": wds.ignore_and_continue, "shuffle": False}
    plain, on = (create_webdataset_dataloader(directory, device=device, **options) for device in (None, "cpu"))
    expected = [key for batch in plain for key in batch["__key__"]]
    assert [key for batch in on for key in batch["__key__"]] == expected
    assert on.skipped == plain.skipped > 0 and len(expected) + on.skipped == sum(LAYOUTS["equal"])


WRONG = [("cuda:77", "not there"), ("gpu", "name of a torch device"), (3.5, "name of a torch device")]


@pytest.mark.parametrize(("device", "match"), WRONG)
def test_unknown_devices_are_refused(directory: Path, device: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        create_webdataset_dataloader(directory, device=device)


def test_a_map_behind_the_loader_sees_the_device(directory: Path) -> None:
    loader = create_webdataset_dataloader(directory, device="meta", **SETTINGS)
    assert list(loader.map(lambda batch: batch["x"].device.type)) == ["meta"] * len(loader)
