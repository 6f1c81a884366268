"""The training loader as Lightning's fit loop needs it: it starts the loop's epochs and sets its count of batches.

Knows the counters of Lightning's fit loop; knows nothing of data modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..loading.batch_loader import WebDatasetDataLoader
from ..order import cursor as cursors
from .webloader import WebLoader


class TrainLoader:
    """A loader whose epochs are those of a Lightning trainer.

    Args:
        loader: the batches.
        trainer: Lightning's trainer.
    """

    def __init__(self, loader: WebDatasetDataLoader | WebLoader, trainer: Any) -> None:
        self.loader = loader
        self.trainer = trainer
        self._resumed_epoch = 0

    def __iter__(self) -> Iterator[Any]:
        if self._resumed_epoch <= self.trainer.current_epoch:  # else the saved epoch had no batch left
            yield from self.loader

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> TrainLoader:
        """The object whose ``set_epoch`` Lightning calls at the start of an epoch."""
        return self

    def set_epoch(self, _: int) -> None:
        """Let the next iteration be of the trainer's epoch; a state loaded for this very epoch stays."""
        # Not the number that Lightning passes: after some resumes that is one too large.
        self.loader.set_epoch(max(self.trainer.current_epoch, self._resumed_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state: for JSON, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, and set the trainer's count of batches to what it is with this loader.

        Raises:
            StateError: it is of another dataset, selection, seed or shuffle.
        """
        loader = self.loader
        loader.load_state_dict(state)
        self._resumed_epoch = loader.epoch
        epoch_loop = self.trainer.fit_loop.epoch_loop
        progress = epoch_loop.batch_progress.current
        done = progress.ready if isinstance(loader, WebLoader) else len(loader)
        if isinstance(loader, WebDatasetDataLoader) and loader.epoch <= self.trainer.current_epoch:
            size = (len(loader.order), loader.batch_size, loader.world_size, loader.drop_last)
            done -= cursors.n_steps(loader.state_dict()["position"], *size)
        unfinished = progress.ready - progress.completed  # 1 if it was saved in on_train_batch_end
        progress.ready = progress.started = progress.processed = done
        progress.completed = done - unfinished if hasattr(epoch_loop, "update_restart_stage") else done  # before 2.5.1
