"""Items that workers of somebody else's DataLoader send to the trainer: each arrives, or an error does.

torch's workers pickle items in a thread. One that cannot be pickled is printed there and dropped, and the trainer waits
for it for ever or goes on without it. Knows the queues of processes; knows nothing of datasets.
"""

from __future__ import annotations

import io
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from pickle import PickleBuffer
from typing import Any, NoReturn

from ..errors import NeurofmxError
from .parcels import unsendable
from .progress import in_worker

_put = Queue.put


def report_unsendable() -> None:
    """From now on, raise an error in the trainer for each item that this worker process cannot send to it."""
    if in_worker():
        Queue.put = _put_queued  # type: ignore[method-assign, assignment]


def _put_queued(queue: Queue[Any], item: Any, block: bool = True, timeout: float | None = None) -> None:
    _put(queue, _Queued(item), block, timeout)


class _Queued:
    """Becomes an item where it is unpickled, or raises the error why that could not be sent."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __reduce__(self) -> tuple[Any, ...]:
        file, buffers = io.BytesIO(), list[PickleBuffer]()
        try:
            ForkingPickler(file, 5, True, buffers.append).dump(self.item)
        except Exception as error:
            return _raise, (unsendable(self.item, error, ForkingPickler.dumps),)
        return _loads, (file.getvalue(), [each.raw().tobytes() for each in buffers])


def _raise(error: NeurofmxError) -> NoReturn:
    raise error


def _loads(pickled: bytes, buffers: list[bytes]) -> Any:
    return ForkingPickler.loads(pickled, buffers=[bytearray(each) for each in buffers])
