"""The loaders inside other people's tools: plain DataLoader, torchdata, Lightning, Accelerate."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import row_of, rows
from torch.utils.data import DataLoader

from neurofmx_wds import WebDatasetLoader, collate_webdataset, create_webdataset_dataloader

SMALL: dict[str, Any] = {"buffer_size": 7, "block_size": 3}
ALL = sorted(row_of(i) for i in range(24))


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        warnings.filterwarnings("ignore", message="Length of IterableDataset")
        yield


def order(batches: Any) -> list[Any]:
    return [row for batch in list(batches) for row in rows(batch)]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_plain_dataloader_gets_every_sample_once(directory: Path, num_workers: int) -> None:
    for batch_size in (1, 5, 32):
        samples = WebDatasetLoader(directory, **SMALL)
        loader = DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=collate_webdataset)
        first = order(loader)
        assert sorted(first) == ALL
        samples.set_epoch(1)
        second = order(loader)
        assert sorted(second) == ALL and second != first
    whole = DataLoader(
        create_webdataset_dataloader(directory, 5, num_workers=0, **SMALL), batch_size=None, num_workers=num_workers
    )
    assert sorted(order(whole)) == ALL


def test_plain_dataloader_deals_samples_over_ranks(directory: Path) -> None:
    found: list[Any] = []
    for rank in range(3):
        samples = WebDatasetLoader(directory, rank=rank, world_size=3, **SMALL)
        found += order(DataLoader(samples, 4, num_workers=2, collate_fn=collate_webdataset))
    assert sorted(found) == ALL


def test_persistent_workers_of_a_plain_dataloader_obey_the_trainer(directory: Path) -> None:
    samples = WebDatasetLoader(directory, **SMALL)
    loader = DataLoader(samples, 2, num_workers=2, persistent_workers=True, collate_fn=collate_webdataset)
    epochs = []
    for epoch in (0, 1, 0):
        samples.set_epoch(epoch)
        for _ in itertools.islice(loader, 11):  # one worker may be done, another not
            pass
        epochs.append(order(loader))
        assert sorted(epochs[-1]) == ALL
    assert epochs[0] == epochs[2] != epochs[1]


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_torchdata_stateful_dataloader(directory: Path, num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def made() -> Any:
        samples = WebDatasetLoader(directory, **SMALL)
        return stateful.StatefulDataLoader(
            samples, batch_size=3, num_workers=num_workers, collate_fn=collate_webdataset
        )

    whole = [rows(batch) for batch in made()]
    assert sorted(row for batch in whole for row in batch) == ALL
    for stop in range(1, len(whole)) if num_workers == 0 else (1, 4, len(whole) - 1):
        loader = made()
        assert [rows(batch) for batch in itertools.islice(loader, stop)] == whole[:stop]
        again = made()
        again.load_state_dict(loader.state_dict())
        assert [rows(batch) for batch in again] == whole[stop:], stop
        assert sorted(order(again)) == ALL  # the epoch after


def test_torchdata_wraps_a_batch_loader(directory: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader, again = (
        stateful.StatefulDataLoader(
            create_webdataset_dataloader(directory, 5, num_workers=0, prefetch_factor=0, **SMALL), batch_size=None
        )
        for _ in range(2)
    )
    first = order(itertools.islice(loader, 2))
    again.load_state_dict(loader.state_dict())
    assert sorted(first + order(again)) == ALL


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_resumes_in_mid_epoch(directory: Path, tmp_path: Path, num_workers: int) -> None:
    lightning = pytest.importorskip("lightning")
    numbers_right = [*map(int, lightning.__version__.split(".")[:2])] >= [2, 5]  # before, one too low once resumed
    seen: list[Any] = []

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, die_at: int | None = None) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)
            self.die_at = die_at

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.global_step == self.die_at:
                raise InterruptedError
            number = batch_idx if numbers_right else self.global_step
            seen.append((self.current_epoch, number, rows(batch)))
            return self.layer(batch["x"]).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    def fit(die_at: int | None = None, **resume: Any) -> list[Any]:
        saver = lightning.pytorch.callbacks.ModelCheckpoint
        checkpoints = saver(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, callbacks=[checkpoints], enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        seen.clear()
        loader = create_webdataset_dataloader(directory, 5, num_workers=num_workers, **SMALL)
        trainer.fit(Model(die_at), loader, **resume)
        return list(seen)

    whole = fit()
    assert len(whole) == 15
    for epoch in range(3):
        assert sorted(row for e, _, batch in whole for row in batch if e == epoch) == ALL
    with pytest.raises(InterruptedError):
        fit(die_at=8)
    for step in (2, 4, 6, 8):  # in mid-epoch, and in the second epoch
        rest = fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert rest == whole[step:], step


def test_accelerate_in_one_process(directory: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    samples = WebDatasetLoader(directory, **SMALL)
    loader = DataLoader(samples, 5, collate_fn=collate_webdataset)
    assert sorted(order(accelerate.Accelerator(cpu=True).prepare(loader))) == ALL
