"""Loaders inside Lightning's loops: each of its epochs is the loader's of the same number, also after a resume.

Lightning numbers epochs and saves the states of loaders, but it sets a resumed loader to its state only sometimes: not
after a checkpoint at the end of an epoch, and not if the model asked for ``trainer.estimated_stepping_batches``, as
most learning-rate schedules do (Lightning#20550). Its loops know the epoch and the number of batches done, so a loader
looks there. Knows the attributes of Lightning's loops; imports nothing of Lightning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DistributedSampler, SequentialSampler

from .callers import calling_object

_LOOPS = frozenset(
    f"{package}.loops.{loop}"
    for package in ("lightning.pytorch", "pytorch_lightning")
    for loop in ("fit_loop", "evaluation_loop", "prediction_loop")
)


class EpochLoader(Protocol):
    """A loader whose epochs are numbered."""

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""

    @property
    def n_delivered(self) -> int | None:
        """Batches delivered of the epoch that a loaded state is in; None if that is not known."""

    def __len__(self) -> int:
        """Return the batches of an epoch."""

    def start_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of an epoch, whatever state was loaded."""


def begin_iteration(loader: EpochLoader) -> bool:
    """Set a loader that a Lightning loop iterates to the loop's epoch, unless it continues an interrupted one.

    Returns:
        Whether there is anything to deliver: False if the loader had delivered all of the interrupted epoch.
    """
    loop = _loop_of(loader)
    if loop is None:
        return True
    epoch = loop.trainer.current_epoch
    if not _is_interrupted(loop, loader):
        loader.start_epoch(epoch)
        return True
    # A loader that is repeated beside longer ones is ahead of Lightning's epoch.
    return loader.epoch <= epoch or (loop._combined_loader._mode == "max_size_cycle" and not _is_alone(loop))


class EpochSampler(DistributedSampler[int], SequentialSampler):
    """A sampler only by name: tells a framework that ranks are dealt and the order is fixed, and is told of epochs.

    Args:
        loader: the loader it stands for.
    """

    def __init__(self, loader: EpochLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Do what Lightning's fit loop has left out when it starts an epoch after a resume.

        Args:
            epoch: ignored. The loader asks the loop when it is iterated; some resumes make this number too large.
        """
        loop = _loop_of(self.loader)
        if loop is not None and _is_fit(loop) and loop.restarting:
            loop._load_combined_loader_states()
            if _is_alone(loop):
                _set_batch_count(loop.epoch_loop, self.loader)


def _loop_of(loader: EpochLoader) -> Any | None:
    """Return the Lightning loop that iterates a loader, or None."""
    loop = calling_object(_LOOPS)
    combined = getattr(loop, "_combined_loader", None)
    return loop if combined is not None and any(each is loader for each in combined.flattened) else None


def _is_interrupted(loop: Any, loader: EpochLoader) -> bool:
    """Return whether a fit loop is in the middle of an epoch."""
    if not _is_fit(loop) or loop.epoch_loop.batch_progress.current.ready:
        return _is_fit(loop)
    # With a larger batch size the count of batches may be zero after some samples.
    return (
        loop.restarting
        and _is_alone(loop)
        and loader.n_delivered is not None
        and loader.epoch == loop.trainer.current_epoch
    )


def _is_alone(loop: Any) -> bool:
    return len(loop._combined_loader.flattened) == 1


def _is_fit(loop: Any) -> bool:
    return hasattr(loop, "epoch_loop")


def _set_batch_count(epoch_loop: Any, loader: EpochLoader) -> None:
    """Set Lightning's count of batches to what it is with this batch size and number of ranks."""
    progress = epoch_loop.batch_progress.current
    done = loader.n_delivered
    if done is None or not progress.ready:
        return
    unfinished = progress.ready - progress.completed  # 1 if it was saved in on_train_batch_end
    progress.ready = progress.started = progress.processed = done
    progress.completed = done - unfinished if hasattr(epoch_loop, "update_restart_stage") else done  # before 2.5.1
