"""Fabric and Hugging Face's Trainer on two real processes: every sample once, and an exact rest after a restart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_accelerate import finish, on_two_ranks, tensors

from neurofmx_wds import create_webdataset_dataloader

EPOCHS = 2


def reference(directory: Path, epochs: int = EPOCHS) -> list[list[int]]:
    """The samples of each epoch, in the order of one process."""
    loader = create_webdataset_dataloader(directory, batch_size=5, num_workers=0)
    return [[number for batch in loader for number in batch["number"].tolist()] for _ in range(epochs)]


def joined(ranks: list[list[list[int]]]) -> list[int]:
    """The samples of several steps in global order; an error if one rank has more steps than another."""
    return [number for step in zip(*ranks, strict=True) for batch in step for number in batch]


def loader_of(directory: str, batch_size: int = 5, num_workers: int = 0) -> Any:
    """A loader of batches of tensors alone."""
    return create_webdataset_dataloader(directory, batch_size, num_workers).map(tensors)


def fabric_job(directory: str, out: str) -> None:
    """Read two epochs; save after one step of the second; continue with other batch sizes and with a worker."""
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    loader = fabric.setup_dataloaders(loader_of(directory))
    whole = []
    for epoch in range(EPOCHS):
        steps = []
        for step, batch in enumerate(loader):
            steps.append(batch["number"].tolist())
            if (epoch, step) == (1, 0):
                fabric.save(Path(out) / "checkpoint", {"loader": loader})
        whole.append(steps)
    rests = []
    for batch_size, num_workers in ((5, 0), (2, 0), (3, 1)):
        again = fabric.setup_dataloaders(loader_of(directory, batch_size, num_workers))
        fabric.load(Path(out) / "checkpoint", {"loader": again})
        rests.append([batch["number"].tolist() for batch in again])
    finish(out, {"whole": whole, "rests": rests})


def test_fabric_on_two_ranks_resumes_with_any_batch_size(tmp_path: Path, directory: Path) -> None:
    pytest.importorskip("lightning.fabric")
    ranks = on_two_ranks(tmp_path, "fabric_job", directory, __name__)
    order = reference(directory)
    for epoch in range(EPOCHS):
        assert joined([rank["whole"][epoch] for rank in ranks]) == order[epoch]
    for rest in zip(*(rank["rests"] for rank in ranks), strict=True):
        assert joined(list(rest)) == order[1][10:]  # one step of two batches of 5 was delivered


class Model(torch.nn.Module):
    """Notes which samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def forward(self, number: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        """Return a loss."""
        if self.training:
            self.seen.append(number.tolist())
        return {"loss": self.layer(torch.ones(1, 1)).sum()}


def trainer_job(directory: str, out: str) -> None:
    """Train two epochs with a checkpoint after every step, then continue from each checkpoint."""
    import transformers

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            return loader_of(directory)

    def run(resume: str | None = None) -> list[list[int]]:
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=f"{out}/trainer", num_train_epochs=EPOCHS, save_strategy="steps", save_steps=1, report_to=[],
            use_cpu=True, remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments).train(resume_from_checkpoint=resume)
        return model.seen

    whole = run()
    rests = [[step, run(f"{out}/trainer/checkpoint-{step}")] for step in range(1, len(whole))]
    finish(out, {"whole": whole, "rests": rests})


def test_a_hugging_face_trainer_on_two_ranks_resumes(tmp_path: Path, directory: Path) -> None:
    pytest.importorskip("transformers")
    ranks = on_two_ranks(tmp_path, "trainer_job", directory, __name__)
    assert joined([rank["whole"] for rank in ranks]) == list(itertools.chain(*reference(directory)))
    for rank in ranks:
        assert len(rank["rests"]) == len(rank["whole"]) - 1 == 5
        for step, rest in rank["rests"]:
            assert rest == rank["whole"][step:], step
