"""A webdataset pipeline that knows how far the trainer is, and goes on from there in another process.

Knows the stages and the cursor; knows nothing of files.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import webdataset as wds

from ..errors import NeurofmxError, StateError
from ..order import cursor as cursors
from ..order.batching import Batching, EvenBatches, GroupedBatches
from ..order.cursor import BatchPlan, Cursor
from ..order.grouped import GroupedOrder
from .accelerate_shards import dealing_wrapper
from .dataset import OpenDataset
from .describe import Location, fields_of, loader_html, locate
from .fetcher import Fetcher
from .lengths import Batched, length_after
from .lightning_loops import EpochSampler, begin_iteration
from .memory import Memory
from .options import BatchOptions, Collate, ProcessingOptions
from .plans import Chunks, PlanSource, SplitByNode, Start, flatten
from .progress import Progress, in_worker
from .queued import report_unsendable
from .ranks import find_rank, worker_info
from .sessions import as_data_frame
from .skipping import PartialBatch
from .vocabulary import Vocabulary


class ResumablePipeline(wds.DataPipeline, wds.FluidInterface):  # type: ignore[misc]
    """A webdataset pipeline that knows where it is. Base of the loaders; not made directly.

    ``state_dict()``, ``load_state_dict()``, ``set_epoch()`` and ``len()`` are exact; ``.map(...)``, ``.compose(...)``
    and the other webdataset methods give a pipeline that goes on from here and shares the same state. It has a length
    where every stage is known to keep the number of items, as ``map`` (of what returns no None), or is ``batched``. A
    stage that holds samples back, such as ``.shuffle(…)``, has taken more than it has handed on, and the state counts
    these too. Where a stage fails, the state is that of the last item that came out of all of them.
    """

    def __init__(self, opened: OpenDataset, processing: ProcessingOptions, batches: BatchOptions) -> None:
        super().__init__()
        self.opened = opened
        self.order = opened.order
        self.processing = processing
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        order = opened.order
        self.batching: Batching = EvenBatches(len(order), batches.batch_size, batches.drop_last)
        if isinstance(order, GroupedOrder):
            self.batching = GroupedBatches(order, batches.drop_last)
            self.batch_size = order.rule.batch_size
        self.progress = Progress()
        self.samples_per_worker_chunk = 1  # neighbours in the order that one worker of somebody else's DataLoader gets
        self._rank, self._world_size = batches.rank, batches.world_size

    def _fetcher(self, start: Start, memory: Memory | None = None) -> Fetcher:
        return Fetcher(self.opened, self.processing, start, memory)

    @property
    def samples_in_item(self) -> int:
        """Samples of which an item is made, if all stages but ``batched`` make one of one."""
        return math.prod(stage.size for stage in self.pipeline if isinstance(stage, Batched))

    @property
    def rank(self) -> int:
        """This process's rank: as given, or as :func:`~neurofmx_wds.loading.ranks.find_rank` finds it now."""
        return self._share()[0]

    @property
    def world_size(self) -> int:
        """Number of ranks: as given, or as :func:`~neurofmx_wds.loading.ranks.find_rank` finds it now."""
        return self._share()[1]

    def _share(self) -> tuple[int, int]:
        """Return rank and number of ranks; (0, 1) while a wrapper asks that deals the samples among ranks itself."""
        if dealing_wrapper() is not None:
            return 0, 1
        return find_rank() if self._rank is None or self._world_size is None else (self._rank, self._world_size)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration is of, or the running one."""
        return int(self._state()["epoch"])

    @property
    def skipped(self) -> int:
        """Samples that this rank has skipped, by `handler`'s leave (in somebody else's DataLoader: not counted)."""
        return self.progress.skipped

    @property
    def units(self) -> Any:
        """The units of the dataset, of which ``units=`` may have chosen some.

        It is a pandas DataFrame where pandas is installed, else a dictionary of lists. ``key`` is unique in the
        dataset, ``column`` is the unit's place along the last axis of its session's ``spikes``, and the other columns
        are those of the recordings' tables of units, with None where a recording lacks one.
        """
        return as_data_frame(self.opened.sessions.table)

    @property
    def vocabulary(self) -> Vocabulary:
        """The sessions, units and subjects of the dataset or mixture; the index of each is its place there.

        It begins with the vocabulary that was given. All units are in it, whatever ``units=`` and ``select=`` choose.
        """
        return (self.opened.vocabulary or Vocabulary()).extended(self.opened.sessions)

    @property
    def normalization(self) -> dict[str, Any]:
        """What fields are normalized by, as ``normalize=`` of another loader takes it.

        It is a dictionary of JSON values: field → session → (mean, standard deviation), each one number a column.
        """
        return dict(self.opened.normalization)

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        """What is known of each field: dtype, shape of one sample, unit, columns and the like.

        What differs between recordings, or is not known, is left out.
        """
        return fields_of(self.opened)

    def locate(self, batch: Mapping[str, Any], row: int) -> Location:
        """Return where a row of a batch comes from: session, source, the time of each bin, units.

        Args:
            batch: as this loader delivered it; it needs ``metadata`` and ``__key__`` only.
            row: 0 … B − 1.

        Raises:
            StateError: several recordings of the dataset have the file name and session of this one.
        """
        return locate(self.opened, batch, row)

    def _repr_html_(self) -> str:
        about = {"dataset": self.opened.reader.where, "samples": len(self.order), "batch size": self.batch_size}
        about |= {"steps": self.n_steps, "epoch": self.progress.epoch, "position": self.progress.position}
        return loader_html(self.opened, about)

    def __repr__(self) -> str:
        size = f"samples={len(self.order)}, batch_size={self.batch_size}, steps={self.n_steps}"
        place = f"epoch={self.progress.epoch}, position={self.progress.position}"
        return f"{type(self).__name__}({self.opened.reader.where!r}, {size}, {place})"

    @property
    def n_steps(self) -> int:
        """Batches (or samples) of this rank in a whole epoch, before any composed stage."""
        return self.batching.n_steps(self.progress.epoch, 0, self.world_size)

    def __len__(self) -> int:
        """Items that this rank gets in a whole epoch, those included that `handler` will skip.

        Raises:
            TypeError: a composed stage may drop items or make several of one; ``with_length(n)`` says how many.
        """
        if self.repetitions == sys.maxsize:
            if self.nsamples < 1:
                raise TypeError("what is repeated without end has no length")
            return int(self.nsamples)
        length = self._items_of(self.n_steps) * self.repetitions
        return min(length, self.nsamples) if self.repetitions > 1 and self.nsamples > 0 else length

    def _items_of(self, n_steps: int) -> int:
        """Return the number of items that the composed stages make of so many steps."""
        return functools.reduce(lambda length, stage: length_after(stage, length), self.pipeline, n_steps)

    @property
    def n_delivered(self) -> int | None:
        """Items before the place where the next iteration starts; at the end of an epoch all; None if not known."""
        state = self.state_dict()
        if self.repetitions > 1:
            return None
        if not state["position"]:
            return len(self) if state["epoch"] else 0
        try:
            steps_left = self.batching.n_steps(state["epoch"], state["position"], self.world_size)
            return len(self) - self._items_of(steps_left)
        except TypeError:
            return None

    batch_sampler: Any = None  # frameworks that look for a sampler also look for this

    @property
    def sampler(self) -> EpochSampler:
        """What frameworks that look for a sampler find: one that needs no replacing."""
        return EpochSampler(self)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of this epoch, from its start; a state loaded for this very epoch stays.

        Raises:
            ValueError: `epoch` is not a whole number, or negative.
        """
        epoch = self.order.of_epoch(epoch).epoch  # refuses what is none; numpy's integers are not for JSON
        if epoch != self.epoch:
            self.start_epoch(epoch)

    def start_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch, whatever state was loaded."""
        self.progress.set(Cursor(epoch, 0))

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: one JSON object under 1 KiB, the same on every rank.

        It counts what has been delivered, not what workers have read ahead. With it another process goes on with the
        next sample, whatever its number of ranks, workers or its batch size.

        Raises:
            StateError: a framework is reading the batches of an epoch by their plans, so what it has delivered is not
                known here.
        """
        if self.progress.by_plan:
            raise StateError(
                "a framework reads the batches of this loader itself, so the loader does not know what was delivered",
                remedy="save the framework's state, such as by accelerator.save_state(), or its count of batches",
            )
        return self._state()

    def _state(self) -> dict[str, Any]:
        cursor = Cursor(self.progress.epoch, self.progress.position)
        state = cursors.to_state(cursor, self.order.of_epoch(cursor.epoch), self.opened.fingerprint)
        if in_worker() and cursor.position == len(self.order):  # this worker is done; others may not be
            state |= {"epoch": cursor.epoch, "position": cursor.position}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on where `state` was taken.

        Args:
            state: what :meth:`state_dict` returned, or a bare ``{"shard_idx", "sample_offset"}``.

        Raises:
            StateError: it is of another dataset, selection, seed, shuffle or version, or damaged.
        """
        cursor = cursors.from_state(state, self.order.of_epoch, self.opened.fingerprint)
        if in_worker() and state.get("position") == len(self.order):
            cursor = Cursor(state["epoch"], state["position"])
        self.progress.set(cursor)

    get_state = state_dict
    set_state = load_state_dict

    def batched(
        self, batchsize: int, collation_fn: Collate | None = wds.filters.default_collation_fn, partial: bool = True
    ) -> ResumablePipeline:
        """Collect items to batches as webdataset does, but yield a full batch before taking another item."""
        return self.compose(Batched(batchsize, collation_fn, partial))

    def iterator(self) -> Iterator[Any]:
        """As webdataset's, which holds on to an item while the next is made."""
        yield from self.iterator1() if self.repetitions == 1 else super().iterator()

    def iterator1(self) -> Iterator[Any]:
        """One epoch, or its rest: what is delivered here, through the stages that were composed."""
        # Not a first stage in the list: bound to this object it would make a reference cycle, and workers that are
        # left to the garbage collector take torch five seconds each to stop.
        if not begin_iteration(self):
            return
        report_unsendable()
        run = self.progress.begin()
        items = self._deliver(run)
        for stage in self.pipeline:
            items = self.invoke(stage, items)
        for item in items:
            self.progress.deliver(run)  # only now: were a stage to fail, what it took would be lost
            yield item
            del item
        self.progress.deliver(run)  # also what stages have made nothing of

    def _deliver(self, run: object) -> Iterator[Any]:
        """Yield what this rank gets, and note it."""
        epoch, first = self.progress.epoch, self.progress.position
        rank, world_size = self.rank, self.world_size
        # Inside somebody's DataLoader worker, a step here stands for one in each of the workers.
        workers = worker_info()[3]
        ends = self.batching.ends(epoch, first, world_size)
        following = next(ends, None)
        position = len(self.order)
        if following is None:
            self.progress.take(run, position, True)
        for item in self._items(epoch, first, rank, world_size):
            for _ in range(workers):
                if following is not None:
                    position, following = following, next(ends, None)
            self.progress.take(run, position, following is None)
            if isinstance(item, PartialBatch):
                self.progress.note(item)
                yield from item.rest
            else:
                yield item
            del item
        if following is not None and workers == 1:
            n_missing = 1 + sum(1 for _ in ends)
            problem = f"{n_missing} of {self.batching.n_steps(epoch, first, world_size)} batches did not arrive"
            raise NeurofmxError(problem, remedy="look above for an error; state_dict() says where to go on")

    def _items(self, epoch: int, first: int, rank: int, world_size: int) -> Iterator[Any]:
        raise NotImplementedError

    def _stages(
        self, start: Start, fetch: Callable[[Iterable[BatchPlan]], Iterator[Any]], chunk: int = 1
    ) -> wds.DataPipeline:
        """Return what a process runs: plans, split over ranks, in chunks over workers, and fetched."""
        source = PlanSource(start, self.batching)
        return wds.DataPipeline(source, SplitByNode(start), Chunks(chunk), wds.split_by_worker, flatten, fetch)

    def __copy__(self) -> ResumablePipeline:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker may not be able to ask torch for them. A process that is one of several can; before there are
        # several (a loader handed to torch.multiprocessing.spawn) each will have to look for itself.
        if self._rank is None and worker_info()[1] == 1:
            return self.__dict__
        return {**self.__dict__, "_rank": self.rank, "_world_size": self.world_size}
