"""Batches on the device where the training step needs them, copied while the step before is under way.

Knows batches and devices; knows nothing of how batches are read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch

from .skipping import PartialBatch

_AHEAD = 1  # batches whose copy is begun before the one in front of them is delivered


class Lane(Protocol):
    """A way to a device. Copies begun on it are finished in turn."""

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor; return the copy, whose content is undefined until it has arrived."""

    def mark(self) -> Callable[[Any], None]:
        """Return what makes the consumer wait for all copies begun so far, given what was made of them."""


class PlainLane:
    """A way to any device that waits for each copy.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the copy; on the CPU the tensor itself."""
        return tensor.to(self._device)

    def mark(self) -> Callable[[Any], None]:
        """Return a function that does nothing: all is there."""
        return lambda batch: None


class CudaLane:
    """A way to a CUDA device, on a stream of its own, so that copies run beside the kernels of the training step.

    Page-locked memory is not used again before its copy has finished: torch's allocator sees to that. The consumer's
    stream waits for the copies, not its thread.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor."""
        with torch.cuda.stream(self._stream):
            return tensor.to(self._device, non_blocking=True)

    def mark(self) -> Callable[[Any], None]:
        """Return what lets the current stream wait for all copies begun so far."""
        copied = self._stream.record_event()

        def arrive(batch: Any) -> None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            # Otherwise memory freed by the consumer could be filled by the next copy while a kernel still reads it.
            _map_tensors(lambda tensor: tensor.record_stream(stream), batch)

        return arrive


def lane_to(device: torch.device) -> Lane:
    """Return the way to a device; to ``"cuda"`` without a number: the current one."""
    if device.type != "cuda":
        return PlainLane(device)
    return CudaLane(torch.device("cuda", torch.cuda.current_device()) if device.index is None else device)


def on_device(batches: Iterable[Any], lane: Lane) -> Iterator[Any]:
    """Yield batches with their tensors on a device, in the same order.

    While a batch is used, the next one is on its way.

    Args:
        batches: dictionaries, or anything else that holds tensors; what is left of batches with skipped samples too.
        lane: the way to the device.

    Example:
        >>> lane = PlainLane(torch.device("meta"))
        >>> [batch["spikes"].device.type for batch in on_device([{"spikes": torch.zeros(2, 100, 96)}], lane)]
        ['meta']
    """
    under_way: deque[tuple[Any, Callable[[Any], None]]] = deque()
    for batch in batches:
        under_way.append((_sent(batch, lane), lane.mark()))
        del batch
        if len(under_way) > _AHEAD:
            yield _arrived(*under_way.popleft())
    while under_way:
        yield _arrived(*under_way.popleft())


def _sent(batch: Any, lane: Lane) -> Any:
    if isinstance(batch, PartialBatch):
        return PartialBatch(batch.n_skipped, _map_tensors(lane.send, batch.rest), batch.causes)
    return _map_tensors(lane.send, batch)


def _arrived(batch: Any, arrive: Callable[[Any], None]) -> Any:
    arrive(batch.rest if isinstance(batch, PartialBatch) else batch)
    return batch


def _map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return a value with its tensors replaced: in dictionaries, lists and tuples; metadata are not looked at."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(function, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(function, each) for each in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(function, each) for each in value)
    return value
