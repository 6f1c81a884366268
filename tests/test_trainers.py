"""Loaders of batches given as they are to Fabric, to Lightning's predict and to Hugging Face's Trainer."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.errors import StateError

SMALL: dict[str, Any] = {"batch_size": 5, "num_workers": 0, "buffer_size": 7, "block_size": 3}


def numbers(batches: Any) -> list[list[int]]:
    """The samples of each batch, by number."""
    return [batch["number"].tolist() for batch in batches]


def tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a batch alone."""
    return {"number": batch["number"]}


def reference(directory: Path, epoch: int) -> list[list[int]]:
    loader = create_webdataset_dataloader(directory, **SMALL)
    loader.set_epoch(epoch)
    return numbers(loader)


def test_copies_and_pickles_know_the_stages(directory: Path) -> None:
    loader = create_webdataset_dataloader(directory, **SMALL).map(tensors)
    for each in (copy.copy(loader), pickle.loads(pickle.dumps(loader)), type(loader)(loader.dataset, batch_size=1)):
        assert isinstance(each, torch.utils.data.DataLoader)
        assert [set(batch) for batch in each] == [{"number", "__key__"}] * 5  # webdataset's map keeps the keys


def test_there_is_no_state_while_a_framework_reads_by_plan(directory: Path) -> None:
    loader = create_webdataset_dataloader(directory, **SMALL)
    view = torch.utils.data.DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn)
    batches = iter(view)
    first = [next(batches), next(batches)]
    with pytest.raises(StateError, match="does not know what was delivered"):
        loader.state_dict()
    assert numbers([*first, *batches]) == reference(directory, 0)
    assert (loader.epoch, loader.state_dict()["position"]) == (1, 0)
    assert numbers(loader) == reference(directory, 1)


def test_fabric_takes_a_loader_and_saves_its_state(directory: Path, tmp_path: Path) -> None:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(create_webdataset_dataloader(directory, **SMALL))
    for stop, _ in enumerate(loader, 1):
        if stop == 3:
            fabric.save(tmp_path / "checkpoint", {"loader": loader})
            break
    again = fabric.setup_dataloaders(create_webdataset_dataloader(directory, **SMALL))
    fabric.load(tmp_path / "checkpoint", {"loader": again})
    assert numbers(again) == reference(directory, 0)[3:]
    assert numbers(again) == reference(directory, 1)


def test_lightning_predicts_on_a_loader_with_stages(directory: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            assert set(batch) == {"number", "__key__"}
            return batch["number"].tolist()

        def predict_dataloader(self) -> Any:
            return create_webdataset_dataloader(directory, **SMALL).map(tensors)

    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    assert trainer.predict(Model(), Model().predict_dataloader()) == reference(directory, 0)
    assert trainer.predict(Model()) == reference(directory, 0)


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"accumulate": 2}], ids=str)
def test_a_hugging_face_trainer_resumes(directory: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    accumulate = options.get("accumulate", 1)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[list[int]] = []

        def forward(self, number: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
            self.seen.append(number.tolist())
            return {"loss": self.layer(torch.ones(1, 1)).sum()}

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            workers = {"num_workers": options.get("num_workers", 0)}
            return create_webdataset_dataloader(directory, **{**SMALL, **workers}).map(tensors)

    def run(resume: str | None = None) -> list[list[int]]:
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=3, save_strategy="steps", save_steps=1, report_to=[],
            use_cpu=True, remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
            gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        Trainer(model, arguments).train(resume_from_checkpoint=resume)
        return model.seen

    whole = run()
    assert whole == [batch for epoch in range(3) for batch in reference(directory, epoch)]
    steps = -(-5 // accumulate)  # in an epoch
    for step in (2, steps, steps + 1):
        done = step // steps * 5 + step % steps * accumulate
        assert run(str(tmp_path / f"checkpoint-{step}")) == whole[done:], step
