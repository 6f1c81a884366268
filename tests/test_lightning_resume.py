"""Lightning resumed from a checkpoint of any moment, under every option that touches loading: the rest is the same.

The reference is always the uninterrupted run. Some cases run by default, all of them with ``-m slow``.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import key_of, write_dataset

from neurofmx_wds import create_webdataset_dataloader

lightning = pytest.importorskip("lightning")
from lightning.pytorch.utilities import CombinedLoader  # noqa: E402

from neurofmx_wds.lightning import NeuroDataModule  # noqa: E402

MODES = ("max_size_cycle", "min_size", "max_size")
SMALL: dict[str, Any] = {"batch_size": 5, "num_workers": 0, "buffer_size": 7, "block_size": 3}
COUNTS = {"long": (1, 9, 2, 7, 5), "short": (6, 7), "val": (4, 3)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"accumulate_grad_batches": 2},
    {"val_check_interval": 2},
    {"val_check_interval": 0.5},
    {"limit_train_batches": 2},
    {"limit_train_batches": 0.7},
    {"limit_val_batches": 0},
    {"limit_val_batches": 1, "num_sanity_val_steps": 2},
    {"reload_dataloaders_every_n_epochs": 1},
    {"reload_dataloaders_every_n_epochs": 2},
    {"max_epochs": -1, "max_steps": 12},
    {"max_epochs": -1, "max_steps": 5, "accumulate_grad_batches": 3},
    {"overfit_batches": 2},
    {"check_val_every_n_epoch": 2},
    {"check_val_every_n_epoch": None, "val_check_interval": 4},
    {"max_epochs": 4, "max_steps": 12},
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sets")
    return {name: write_dataset(directory / name, counts) for name, counts in COUNTS.items()}


class TwoModules(lightning.LightningDataModule):  # type: ignore[misc, name-defined]
    """The loaders of two data modules in one."""

    def __init__(self, first: NeuroDataModule, second: NeuroDataModule, mode: str) -> None:
        super().__init__()
        self.first, self.second, self.mode = first, second, mode

    def setup(self, stage: str) -> None:
        for each in (self.first, self.second):
            each.trainer = self.trainer
            each.setup(stage)

    def train_dataloader(self) -> CombinedLoader:
        return CombinedLoader([self.first.train_dataloader(), {"b": self.second.train_dataloader()}], self.mode)

    def val_dataloader(self) -> Any:
        return CombinedLoader([self.first.val_dataloader(), self.second.val_dataloader()], "sequential")


def made(kind: str, sets: dict[str, Path]) -> dict[str, Any]:
    """The data of one fit, new: what ``Trainer.fit`` is given."""
    kind, _, mode = kind.partition(" ")
    val = {"val": {"shuffle": True}}
    if kind == "module":
        return {"datamodule": NeuroDataModule(sets["long"], sets["val"], per_split=val, **SMALL)}
    if kind == "modules":
        first = NeuroDataModule(sets["long"], sets["val"], per_split=val, **SMALL)
        return {"datamodule": TwoModules(first, NeuroDataModule(sets["short"], sets["short"], **SMALL), mode)}
    long = create_webdataset_dataloader(sets["long"], **SMALL)
    train: Any = long.map(dict) if kind == "mapped" else long
    if kind == "plain" and mode:
        train = CombinedLoader({"a": long, "b": create_webdataset_dataloader(sets["short"], **SMALL)}, mode)
    return {"train_dataloaders": train, "val_dataloaders": create_webdataset_dataloader(sets["val"], **SMALL)}


KINDS = ["module", "plain", "mapped", *(f"{kind} {mode}" for mode in MODES for kind in ("modules", "plain"))]


def keys(batch: Any) -> Any:
    """The keys of a batch, or of a collection of batches."""
    if isinstance(batch, dict):
        return batch["__key__"] if "__key__" in batch else {name: keys(each) for name, each in batch.items()}
    return None if batch is None else [keys(each) for each in batch]


class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Notes what it is given."""

    def __init__(self, estimates: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.estimates = estimates
        self.seen: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch_idx, keys(batch)))
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((self.current_epoch, batch_idx, dataloader_idx, keys(batch)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if not self.estimates:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SaveEverywhere(lightning.Callback):  # type: ignore[misc, name-defined]
    """Saves a checkpoint in every hook in which one may: `saved` says after how many training batches each was."""

    def __init__(self, directory: Path, some: Callable[[str, int], bool]) -> None:
        self.directory, self.some = directory, some
        self.saved: dict[Path, int] = {}

    def save(self, trainer: Any, model: Model, hook: str) -> None:
        path = self.directory / f"{len(model.seen)}-{hook}.ckpt"
        if not trainer.sanity_checking and self.some(hook, len(model.seen)) and path not in self.saved:
            trainer.save_checkpoint(path)
            self.saved[path] = len(model.seen)

    def on_train_start(self, trainer: Any, model: Any) -> None:
        self.save(trainer, model, "start")

    def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
        self.save(trainer, model, "batch")

    def on_validation_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
        self.save(trainer, model, "validating")

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        self.save(trainer, model, "validated")

    def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
        self.save(trainer, model, "epoch")


def fit(kind: str, sets: dict[str, Path], estimates: bool, resume: Path | None = None, **options: Any) -> Model:
    defaults = {
        "accelerator": "cpu", "max_epochs": 3, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    model = Model(estimates)
    trainer = lightning.Trainer(**{**defaults, "default_root_dir": sets["long"].parent, **options})
    trainer.fit(model, **made(kind, sets), ckpt_path=resume)
    return model


def differences(
    out: Path, sets: dict[str, Path], some: Callable[[str, int], bool], kind: str, estimates: bool, **options: Any
) -> Iterator[str]:
    """The checkpoints of one run from which the rest is not that of the uninterrupted run."""
    directory = out / str(next(numbers))  # the same on all ranks
    directory.mkdir(exist_ok=True)
    callback = SaveEverywhere(directory, some)
    whole = fit(kind, sets, estimates, callbacks=[callback], **options)
    assert len(callback.saved) > 1
    for path, done in callback.saved.items():
        if lightning_stops_early(path.stem, options):
            continue
        rest = fit(kind, sets, estimates, path, **options)
        if rest.seen != whole.seen[done:]:
            yield f"{kind}, {options}, estimates={estimates}, {path.stem}: {rest.seen[:1]} of {len(rest.seen)}"
        if not all(each in whole.validated for each in rest.validated):
            yield f"{kind}, {options}, estimates={estimates}, {path.stem}: {rest.validated}"


numbers = itertools.count()


def lightning_stops_early(moment: str, options: dict[str, Any]) -> bool:
    """Lightning counts an epoch twice after a checkpoint at its end, if it must count both steps and epochs."""
    return moment.endswith("epoch") and options.get("max_epochs", 3) > 0 and "max_steps" in options


def cases(kinds: Sequence[str]) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    for kind, options, estimates in itertools.product(kinds, OPTIONS, (False, True)):
        if not (estimates and options.get("max_epochs") == -1):  # the number of steps needs no loader then
            yield kind, estimates, options


def everywhere(hook: str, done: int) -> bool:
    return True


def sometimes(hook: str, done: int) -> bool:
    """In mid-epoch, with the last batch of an epoch and after it."""
    return (hook, done) in {("batch", 2), ("batch", 3), ("batch", 5), ("validated", 4), ("epoch", 3), ("epoch", 5)}


@pytest.mark.parametrize("number", range(len(OPTIONS)), ids=lambda number: str(OPTIONS[number]))
def test_resumed_wherever_it_was_saved(sets: dict[str, Path], tmp_path: Path, number: int) -> None:
    """Each option with two kinds of data, with estimated steps and without; together all kinds."""
    options = OPTIONS[number]
    for kind, estimates in ((KINDS[number % len(KINDS)], True), (KINDS[(number + 4) % len(KINDS)], False)):
        estimates = estimates and options.get("max_epochs") != -1
        assert [*differences(tmp_path, sets, sometimes, kind, estimates, **options)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_every_option_resumed_from_every_moment(
    sets: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    for _, estimates, options in cases([kind]):
        assert [*differences(tmp_path, sets, everywhere, kind, estimates, **options)] == []


def job(sets: dict[str, str], out: Path, slow: bool) -> None:
    """One of two ranks: what differs, and the uninterrupted order."""
    torch.set_num_threads(1)
    ranks = {"devices": 2, "strategy": "ddp"}
    paths = {name: Path(path) for name, path in sets.items()}
    chosen = [*cases(KINDS)] if slow else [*cases(KINDS)][1::43]
    found = [
        each
        for kind, estimates, options in chosen
        for each in differences(out, paths, everywhere if slow else sometimes, kind, estimates, **ranks, **options)
    ]
    order = {kind: fit(kind, paths, True, **ranks).seen for kind in ("module", "plain")}
    rank = torch.distributed.get_rank()
    (out / f"rank{rank}.json").write_text(json.dumps({"differences": found, "order": order, "cases": len(chosen)}))
    torch.distributed.barrier()
    os._exit(0)  # torch with gloo aborts once in a while when the interpreter is taken down


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_ranks(sets: dict[str, Path], tmp_path: Path, slow: bool) -> None:
    arguments = f"{ {name: str(path) for name, path in sets.items()}!r}, Path({str(tmp_path)!r}), {slow}"
    script = f"from pathlib import Path\nfrom test_lightning_resume import job\njob({arguments})\n"
    (tmp_path / "job.py").write_text(script)
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job.py")], env=environment, capture_output=True, text=True,
        timeout=7200 if slow else 240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        assert rank["differences"] == [] and rank["cases"] > 5
    loader = create_webdataset_dataloader(sets["long"], **SMALL)
    reference = [key for _ in range(3) for batch in loader for key in batch["__key__"]]
    assert {key_of(i) for i in range(24)} == set(reference)
    for kind in ("module", "plain"):
        steps = zip(*(rank["order"][kind] for rank in ranks), strict=True)
        assert [key for step in steps for _, _, batch in step for key in batch] == reference
