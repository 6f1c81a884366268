"""Worker processes that read batches, and the checks that each batch arrives, in order, or an error does.

Knows torch's DataLoader and parcels; knows nothing of datasets or positions.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing.connection
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
import torch.utils.data
import webdataset as wds

from ..errors import NeurofmxError
from .memory import BatchMemory
from .options import WorkerOptions
from .parcels import CONNECTION_ERRORS, is_death, pack, unpack
from .plans import Start
from .slots import Slot, SlotWriter

BUNDLE, BUNDLE_BYTES = 16, 8 << 20  # batches, and their bytes, that a worker hands over at once
_LOOK_AFTER = 10.0  # seconds without a batch, after which workers are looked at
_GO_ON = "state_dict() says where to go on"


@dataclass(frozen=True)
class Bundle:
    """A few batches on their way from a worker.

    Attributes:
        number: how many bundles of all workers come before it.
        slot: which of the worker's slots holds their tensors, and how large that is.
        parcels: the batches.
    """

    number: int
    slot: tuple[int, int]
    parcels: list[bytes]


class Diary:
    """What each worker is at, in memory that it shares with the trainer.

    Args:
        n_workers: number of workers.
    """

    def __init__(self, n_workers: int) -> None:
        values = torch.zeros(n_workers, 2, dtype=torch.int64)
        self._values = values.share_memory_()  # type: ignore[no-untyped-call]

    def note(self, worker: int, run: int, is_reading: bool) -> None:
        """Note which iteration a worker serves, and whether it is reading a bundle."""
        self._rows[worker] = run, is_reading

    def is_idle(self, worker: int, run: int) -> bool:
        """Return whether a worker serves this iteration and has handed over all it was asked for."""
        return bool((self._rows[worker] == (run, False)).all())

    @property
    def _rows(self) -> np.ndarray:
        return self._values.numpy()


@dataclass
class Sender:
    """Last stage in a worker: batches → bundles.

    Attributes:
        slots: those of each worker.
        writer: puts tensors into them.
        diary: where the worker notes what it is at.
        start: says which iteration it serves.
        bundle: batches handed over at once: each hop between processes takes longer than reading a small one.
    """

    slots: list[list[Slot]]
    writer: SlotWriter
    diary: Diary
    start: Start
    bundle: int

    def __call__(self, batches: Iterable[Any]) -> Iterator[Bundle]:
        """Yield the bundles of this worker."""
        info = torch.utils.data.get_worker_info()
        worker, n_workers = (info.id, info.num_workers) if info else (0, 1)
        self.writer.slots = self.slots[worker]
        run = self.start.run
        self.diary.note(worker, run, True)
        try:
            for number, parcels in enumerate(self._parcels(iter(batches))):
                slot = self.writer.current
                self.diary.note(worker, run, False)
                yield Bundle(worker + number * n_workers, (slot, len(self.writer.slots[slot])), parcels)
                del parcels
                self.diary.note(worker, run, True)
        except Exception as error:
            if _can_travel(type(error)):
                raise
            raise NeurofmxError(f"{type(error).__name__} in a worker: {error}") from error
        finally:
            self.diary.note(worker, run, False)

    def _parcels(self, batches: Iterator[Any]) -> Iterator[list[bytes]]:
        while True:
            self.writer.next_slot()
            parcels = [pack(batch, self.writer) for batch in itertools.islice(batches, self.bundle)]
            if not parcels:
                return
            yield parcels
            del parcels


class LostBatchError(NeurofmxError):
    """A batch that a worker has read and that did not arrive."""


def in_order(
    bundles: Iterator[Bundle], n_workers: int, is_idle: Callable[[int], bool], may_time_out: bool
) -> Iterator[Bundle]:
    """Yield the bundles that come from workers, as long as each is the next one.

    Args:
        bundles: torch's iterator, which may raise that it has timed out, and goes on when it is asked again.
        n_workers: number of workers; they deliver in turn.
        is_idle: whether a worker has handed over all it was asked for.
        may_time_out: whether the user wants the error that it has timed out.

    Raises:
        LostBatchError: another bundle came than the next one, or its worker is idle and none comes.
    """
    n_received, n_idle = 0, 0
    while True:
        try:
            bundle = next(bundles)
        except StopIteration:
            return
        except RuntimeError as error:
            if may_time_out or not str(error).startswith("DataLoader timed out"):
                raise
            n_idle = n_idle + 1 if is_idle(n_received % n_workers) else 0
            if n_idle == 2:  # the first time it may just have handed something over
                raise _lost(n_received % n_workers) from error
            continue
        if bundle.number != n_received:
            raise _lost(n_received % n_workers)
        n_received, n_idle = n_received + 1, 0
        yield bundle
        del bundle


def _lost(worker: int) -> LostBatchError:
    problem = f"worker {worker} has read a batch that did not arrive"
    return LostBatchError(problem, remedy=f"look above for its error message; {_GO_ON}")


class Workers:
    """Worker processes that read batches for one iteration at a time.

    Args:
        stages: makes what a worker runs, of where its iteration begins and of what puts tensors into shared memory.
        options: how many they are, and how torch starts them.
        bundle: batches that a worker hands over at once.
        sent: name → what must be pickled for workers that are not forked, for an error message.

    Attributes:
        usable: whether they can serve another iteration.

    Raises:
        NeurofmxError: no file handles are left.
    """

    def __init__(
        self,
        stages: Callable[[Start, SlotWriter], wds.DataPipeline],
        options: WorkerOptions,
        bundle: int,
        sent: Mapping[str, Any],
    ) -> None:
        self.usable = True
        self._n, depth = options.num_workers or 1, options.prefetch_factor or 2
        self._options = options
        self._sent = sent
        self._start = Start().share()
        with _clear_if_out_of_files():
            self._slots = [[Slot() for _ in range(depth + 1)] for _ in range(self._n)]
        self._diary = Diary(self._n)
        writer = SlotWriter()
        pipeline = stages(self._start, writer)
        pipeline.append(Sender(self._slots, writer, self._diary, self._start, bundle))
        init = None if options.worker_init_fn is None else _Init(options.worker_init_fn)
        self._loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            pipeline,
            batch_size=None,
            num_workers=self._n,
            prefetch_factor=depth,
            collate_fn=as_is,
            persistent_workers=options.persistent_workers,
            multiprocessing_context=options.multiprocessing_context,
            timeout=options.timeout,
            worker_init_fn=init,
        )

    def batches(self, begin: Start, memory: BatchMemory) -> Iterator[Any]:
        """Yield the batches of an iteration, in order.

        Args:
            begin: where it begins.
            memory: where batches are copied to.

        Raises:
            NeurofmxError: a worker died, or a batch did not arrive; or as in a worker.
        """
        self._start.set(*begin.get())
        bundles = None
        try:
            bundles = self._iterator()
            for bundle in in_order(bundles, self._n, self._is_idle, 0 < self._options.timeout):
                yield from self._unpacked(bundle, memory)
        except Exception as error:
            has_died = is_death(error) or _is_due_to_death(error, bundles)
            self.usable = not (has_died or isinstance(error, LostBatchError))
            if bundles is not None and not (self.usable and self._options.persistent_workers):
                # The error holds them in a cycle: left to the garbage collector, torch waits 5 s for each.
                bundles._shutdown_workers()
            if not has_died:
                raise
            remedy = f"perhaps memory ran out: use fewer workers; {_GO_ON}"
            raise NeurofmxError(f"a worker process of the loader died: {error}", remedy=remedy) from error
        finally:
            if bundles is not None:
                bundles._timeout = self._options.timeout

    def _iterator(self) -> Any:
        """Return torch's iterator, its workers started."""
        try:
            with _clear_if_out_of_files():
                bundles = iter(self._loader)
        except Exception as error:
            for name, value in self._sent.items():
                try:
                    ForkingPickler.dumps(value)
                except Exception as cause:
                    problem = f"the {name} cannot be sent to worker processes: {cause}"
                    remedy = (
                        "define it in a module, not in a function and not as a lambda; or use num_workers=0, "
                        "or multiprocessing_context='fork'"
                    )
                    raise NeurofmxError(problem, remedy=remedy) from error
            raise
        bundles._timeout = self._options.timeout or _LOOK_AFTER  # not before: workers may be late with their answer
        return bundles

    def _is_idle(self, worker: int) -> bool:
        return self._diary.is_idle(worker, self._start.run)

    def _unpacked(self, bundle: Bundle, memory: BatchMemory) -> Iterator[Any]:
        which, size = bundle.slot
        slot = self._slots[bundle.number % self._n][which]
        slot.map(size)
        for parcel in bundle.parcels:
            batch = unpack(parcel, slot, memory)
            yield batch
            del batch


@dataclass
class _Init:
    """A user's ``worker_init_fn``, whose error can be sent to the trainer."""

    function: Callable[[int], None]

    def __call__(self, worker: int) -> None:
        try:
            self.function(worker)
        except Exception as error:
            raise NeurofmxError(f"the worker_init_fn raised {type(error).__name__}: {error}") from error


def _is_due_to_death(error: Exception, bundles: object) -> bool:
    """Return whether an error is one of a connection, because the worker at its other end has died."""
    if not isinstance(error, CONNECTION_ERRORS):
        return False
    workers = [worker.sentinel for worker in getattr(bundles, "_workers", ())]
    return bool(workers and multiprocessing.connection.wait(workers, timeout=1))  # its death may show late


def _can_travel(kind: type[Exception]) -> bool:
    """Return whether a class of errors can be pickled: torch sends it to the trainer to raise one there."""
    try:
        ForkingPickler.dumps(kind)
    except Exception:
        return False
    return True


@contextlib.contextmanager
def _clear_if_out_of_files() -> Iterator[None]:
    """Say what helps where no file handle is left to start workers."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        remedy = "use fewer workers, or allow more open files (ulimit -n)"
        raise NeurofmxError(f"worker processes cannot be started: {error.strerror}", remedy=remedy) from error


def as_is(batch: Any) -> Any:
    """Return what a DataLoader is given instead of collating it."""
    return batch
