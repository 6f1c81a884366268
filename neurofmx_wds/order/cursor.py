"""The position in an epoch: batch plans from a position on, and the state that is saved.

Pure arithmetic: knows neither files nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import StateError
from .epoch import LIMIT
from .grouped import ResumableOrder
from .mixture import differences

STATE_VERSION = 1
_STATE_KEYS = (
    "version", "epoch", "position", "shard_idx", "sample_offset", "seed", "shuffle", "buffer_size", "block_size",
    "num_samples", "fingerprint",
)  # fmt: skip
_REMEDY = "pass what state_dict() returned"
_DIGEST = 32  # hexadecimal digits; a fingerprint is a digest of the content and one of the sizes, or one of the two


@dataclass(frozen=True)
class Cursor:
    """The next sample to be delivered.

    Attributes:
        epoch: 0, 1, …
        position: its place in the epoch's global order; the number of samples at the epoch's end.
    """

    epoch: int
    position: int


@dataclass(frozen=True)
class BatchPlan:
    """What one rank delivers in one step.

    Attributes:
        start: position of the first row.
        n: number of rows, at consecutive positions.
        fresh: None, except in the last step of an epoch if fewer samples than ranks remain. Then it is True for a rank
            that gets one of these samples, and False for a rank that gets a sample from the start of the epoch again.
    """

    start: int
    n: int
    fresh: bool | None = None


def batch_plans(
    position: int, n_samples: int, batch_size: int, world_size: int, drop_last: bool
) -> Iterator[BatchPlan]:
    """Yield the plans of all ranks for the rest of an epoch, in global order: rank r takes plans r, r + world_size, ….

    Args:
        position: where to begin.
        n_samples: samples in an epoch.
        batch_size: rows per rank and step.
        world_size: number of ranks.
        drop_last: leave out the tail that does not fill a batch on every rank.

    Yields:
        A multiple of `world_size` plans. The tail is divided evenly, larger shares first.

    Example:
        >>> [(plan.start, plan.n) for plan in batch_plans(0, n_samples=11, batch_size=2, world_size=2, drop_last=False)]
        [(0, 2), (2, 2), (4, 2), (6, 2), (8, 2), (10, 1)]
    """
    tail = (n_samples - position) % (batch_size * world_size)
    yield from (BatchPlan(start, batch_size) for start in range(position, n_samples - tail, batch_size))
    if tail == 0 or drop_last:
        return
    start = n_samples - tail
    if tail < world_size:
        for rank in range(world_size):
            fresh = rank < tail
            yield BatchPlan(start + rank if fresh else (rank - tail) % n_samples, 1, fresh)
        return
    share, larger = divmod(tail, world_size)
    for rank in range(world_size):
        n = share + (rank < larger)
        yield BatchPlan(start, n)
        start += n


def n_steps(position: int, n_samples: int, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Return how many plans each rank has in the rest of an epoch; arguments as :func:`batch_plans`.

    Example:
        >>> n_steps(0, n_samples=11, batch_size=2, world_size=2, drop_last=False)
        3
    """
    full, tail = divmod(n_samples - position, batch_size * world_size)
    return full + (tail > 0 and not drop_last)


def position_after(position: int, steps: int, n_samples: int, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Return the position of the next sample after every rank has made `steps` steps from `position` on.

    It is `n_samples` at the end of the epoch, also if `drop_last` has left samples out.

    Example:
        >>> position_after(0, steps=2, n_samples=11, batch_size=2, world_size=2, drop_last=False)
        8
    """
    if steps >= n_steps(position, n_samples, batch_size, world_size, drop_last):
        return n_samples
    return position + steps * batch_size * world_size


def to_state(cursor: Cursor, order: ResumableOrder, fingerprint: str) -> dict[str, Any]:
    """Return the state that is saved: a dictionary for JSON, under 1 KiB.

    The end of an epoch is written as the start of the next one.

    Args:
        cursor: the next sample.
        order: the order of any epoch.
        fingerprint: identifies the dataset and selection.

    Example:
        >>> from neurofmx_wds.order.epoch import EpochOrder
        >>> order = EpochOrder([3, 2], seed=0, epoch=0, shuffle=False, buffer_size=1000, block_size=1)
        >>> state = to_state(Cursor(epoch=0, position=4), order, "f" * 32)
        >>> state["shard_idx"], state["sample_offset"], state["num_samples"]
        (1, 1, 5)
        >>> from_state(state, order.of_epoch, "f" * 32)
        Cursor(epoch=0, position=4)
    """
    epoch, position = cursor.epoch, cursor.position
    if position >= len(order) > 0:
        epoch, position = epoch + 1, 0
    if order.epoch != epoch:
        order = order.of_epoch(epoch)
    shard_idx, sample_offset = 0, 0
    if len(order):
        shard, offset = order.locate(order.sample_ids(position, position + 1))
        shard_idx, sample_offset = int(shard[0]), int(offset[0])
    return {
        "version": STATE_VERSION,
        "epoch": epoch,
        "position": position,
        "shard_idx": shard_idx,
        "sample_offset": sample_offset,
        "seed": order.seed,
        "shuffle": order.shuffle,
        "buffer_size": order.buffer_size,
        "block_size": order.block_size,
        "num_samples": len(order),
        "fingerprint": fingerprint,
        **order.about,
    }


def from_state(state: Any, order_of_epoch: Callable[[int], ResumableOrder], fingerprint: str) -> Cursor:
    """Return the cursor that a state describes.

    Args:
        state: what :func:`to_state` returned; or only ``shard_idx`` and ``sample_offset`` (and ``epoch``), where
            ``(i, count of shard i)`` means ``(i + 1, 0)``. With a selection, places count the selected samples.
        order_of_epoch: the order of each epoch here.
        fingerprint: of the dataset and selection here.

    Raises:
        StateError: it is not a state, or it belongs to another dataset, selection, seed, shuffle or version. The
            message names the difference.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a state is a dictionary, not {type(state).__name__}", remedy=_REMEDY)
    if {"shard_idx", "sample_offset"} <= set(state) <= {"shard_idx", "sample_offset", "epoch"}:
        return _from_place(state, order_of_epoch)
    missing = [key for key in _STATE_KEYS if key not in state]
    if missing:
        raise StateError(f"the state lacks {', '.join(missing)}", remedy=_REMEDY)
    if _whole(state, "version") != STATE_VERSION:
        raise StateError(
            f"the state has version {state['version']}, this program reads {STATE_VERSION}",
            remedy="use the version of neurofmx_wds that saved it",
        )
    order = order_of_epoch(_whole(state, "epoch"))
    _compare(state, order, fingerprint)
    position = _whole(state, "position")
    if position > len(order):
        raise StateError(f"the state's position {position} is outside an epoch of {len(order)} samples", remedy=_REMEDY)
    expected = to_state(Cursor(order.epoch, position), order, fingerprint)
    for key in ("shard_idx", "sample_offset"):
        if _whole(state, key) != expected[key]:
            problem = f"the state contradicts itself: position {position} has {key} {expected[key]}, not {state[key]}"
            raise StateError(problem, remedy=_REMEDY)
    return Cursor(expected["epoch"], expected["position"])


def _from_place(state: Mapping[str, Any], order_of_epoch: Callable[[int], ResumableOrder]) -> Cursor:
    epoch = _whole(state, "epoch") if "epoch" in state else 0
    order = order_of_epoch(epoch)
    try:
        sample = order.sample_id(_whole(state, "shard_idx"), _whole(state, "sample_offset"))
    except IndexError as error:
        raise StateError(str(error), remedy="pass a state of this dataset") from error
    if sample == len(order):  # the epoch's end, which is its start where there are no samples
        return Cursor(epoch + (sample > 0), 0)
    return Cursor(epoch, int(order.positions(np.array([sample]))[0]))


def _whole(state: Mapping[str, Any], key: str) -> int:
    value = state[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LIMIT:
        raise StateError(f"the state's {key} must be a whole number from 0 to {LIMIT:g}, not {value!r}", remedy=_REMEDY)
    return value


def _compare(state: Mapping[str, Any], order: ResumableOrder, fingerprint: str) -> None:
    """Reject a state that belongs to another order; settings that do not matter for this shuffle may differ."""
    mixture = order.about.get("mixture")
    if mixture is None and "mixture" in state:
        raise StateError("the state is of a mixture of datasets", remedy="load it with the same datasets")
    if mixture is not None and (found := differences(state.get("mixture"), mixture)):
        raise StateError(f"the state is of another mixture: {found}", remedy="mix the same datasets, or start afresh")
    if state.get("batch_by") != (by := order.about.get("batch_by")):
        problem = f"the state is of other batches: batch_by is {state.get('batch_by')} there and {by} here"
        raise StateError(problem, remedy="load it with the same batch_by, batch_size and buffer_size, or start afresh")
    here: dict[str, Any] = {"num_samples": len(order), "fingerprint": fingerprint, "shuffle": order.shuffle}
    if order.shuffle is not False or mixture is not None:
        here["seed"] = order.seed
    if order.shuffle is True:
        here |= {"buffer_size": order.buffer_size, "block_size": order.block_size}
    what = {"num_samples": "dataset or selection", "fingerprint": "dataset or selection"}
    for key, value in here.items():
        there = state[key]
        if not (_one_dataset(there, value) if key == "fingerprint" else type(there) is type(value) and there == value):
            raise StateError(
                f"the state is of another {what.get(key, key)}: {key} is {there!r} there and {value!r} here",
                remedy=f"load it with the same {what.get(key, key)}, or start afresh",
            )


def _one_dataset(there: object, here: str) -> bool:
    """Return whether two fingerprints belong to one dataset; a fingerprint of one digest may match either of two."""
    if not isinstance(there, str) or {len(there), len(here)} != {_DIGEST, 2 * _DIGEST}:
        return there == here
    short, long = sorted((there, here), key=len)
    return short in (long[:_DIGEST], long[_DIGEST:])
