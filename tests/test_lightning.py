"""Data modules under a real Trainer: every stage, checkpoints resumed at every step, two ranks, and bionemo's calls."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from counting import some
from loading import Row, jitter, key_of, row_of, rows, write_dataset

from neurofmx_wds import WebDatasetLoader, WebDatasetWriter, create_webdataset_dataloader
from neurofmx_wds.errors import OutputError, SourceError, StateError, UnsafeDataError

lightning = pytest.importorskip("lightning")
from neurofmx_wds.lightning import NeuroDataModule, PickledDataWDS, Split, WebDataModule  # noqa: E402

ModelCheckpoint = lightning.pytorch.callbacks.ModelCheckpoint
SMALL: dict[str, Any] = {"batch_size": 5, "buffer_size": 7, "block_size": 3}
COUNTS = {"train": (1, 9, 2, 7, 5), "val": (4, 3), "test": (6,), "predict": (2, 2)}
ALL = {split: [row_of(i) for i in range(sum(counts))] for split, counts in COUNTS.items()}


@pytest.fixture(autouse=True)
def _quiet(caplog: Any) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sets")
    made = {split: write_dataset(directory / split, counts) for split, counts in COUNTS.items()}
    for split in Split:  # the same tars under bionemo's names
        (directory / f"tars_{split.name}").mkdir()
        for i, path in enumerate(sorted(made[split.name].glob("*.tar"))):
            os.link(path, directory / f"tars_{split.name}" / f"wdshards-{i:06d}.tar")
    return made


class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Notes what it is given."""

    def __init__(self, die_at: int | None = None, look: Callable[[Any], Any] = rows) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.die_at, self.look = die_at, look
        self.seen: dict[str, list[Any]] = {split: [] for split in COUNTS}

    def note(self, split: str, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen[split].append((self.current_epoch, batch_idx, self.look(batch)))
        return self.layer(torch.ones(1)).sum()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.die_at:
            raise InterruptedError
        return self.note("train", batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("val", batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note("test", batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("predict", batch, batch_idx)
        return self.look(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(directory: Path, **options: Any) -> Any:
    defaults = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": bool(options.get("callbacks")),
        "num_sanity_val_steps": 0, "default_root_dir": directory,
    }  # fmt: skip
    return lightning.Trainer(**{**defaults, **options})


def flat(seen: list[Any], epoch: int | None = None) -> list[Any]:
    return [row for e, _, batch in seen for row in batch if epoch in (None, e)]


# --- NeuroDataModule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_stage_gets_its_split(sets: dict[str, Path], tmp_path: Path, num_workers: int) -> None:
    data = NeuroDataModule(**sets, num_workers=num_workers, **SMALL)
    model = Model()
    fitted = trainer(tmp_path, num_sanity_val_steps=2)
    fitted.fit(model, datamodule=data)
    for epoch in range(2):
        assert sorted(flat(model.seen["train"], epoch)) == ALL["train"]
    assert flat(model.seen["train"], 0) != flat(model.seen["train"], 1)
    assert flat(model.seen["val"]) == 3 * ALL["val"]  # once for the sanity check
    model.seen["val"].clear()
    fitted.validate(model, datamodule=data)
    assert flat(model.seen["val"]) == ALL["val"]
    fitted.test(model, datamodule=data)
    assert flat(model.seen["test"]) == ALL["test"]
    found = fitted.predict(model, datamodule=data)
    assert [row for batch in found for row in batch] == ALL["predict"]


def test_only_what_a_stage_needs(sets: dict[str, Path], tmp_path: Path, caplog: Any) -> None:
    model = Model()
    trainer(tmp_path).validate(model, datamodule=NeuroDataModule(val=sets["val"], **SMALL))
    trainer(tmp_path).predict(model, datamodule=NeuroDataModule({Split.test: sets["test"]}, **SMALL))
    assert (flat(model.seen["val"]), flat(model.seen["predict"])) == (ALL["val"], ALL["test"])
    trainer(tmp_path).fit(model, datamodule=NeuroDataModule({"train": sets["train"]}, **SMALL))
    assert len(flat(model.seen["train"])) == 48 and "nothing is validated" in caplog.text
    for stage in ("fit", "validate", "test", "predict"):
        with pytest.raises(ValueError, match=f"Trainer.{stage} needs the split"):
            getattr(trainer(tmp_path), stage)(model, datamodule=NeuroDataModule(**SMALL))
    data = NeuroDataModule(**sets)
    data.setup()
    with pytest.raises(ValueError, match="stage must be one of"):
        data.setup("training")
    with pytest.raises(ValueError, match="no such split 'dev'"):
        NeuroDataModule({"dev": "somewhere"})
    with pytest.raises(ValueError, match="no such split 'dev'"):
        NeuroDataModule(per_split={"dev": {}})
    with pytest.raises(TypeError, match="no argument batchsize"):
        NeuroDataModule(**sets, batchsize=3)
    with pytest.raises(TypeError, match=r"NeuroDataModule takes no argument trian; did you mean train\?"):
        NeuroDataModule(trian=sets["train"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"did you mean batch_size\?"):
        NeuroDataModule(**sets, per_split={"val": {"batchsize": 3}})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        NeuroDataModule(train=tmp_path / "nowhere").setup("fit")


def test_options_are_the_loaders_and_differ_by_split(sets: dict[str, Path]) -> None:
    data = NeuroDataModule(
        **sets, **SMALL, drop_last=True, shuffle="full", modalities=["x"],
        per_split={Split.val: {"batch_size": 2}, "test": {"shuffle": True, "modalities": ["number"]}},
    )  # fmt: skip
    data.setup("fit")
    options = {**SMALL, "num_workers": 0}
    expected = {
        "train": create_webdataset_dataloader(
            sets["train"], **options, drop_last=True, shuffle="full", modalities=["x"]
        ),
        "val": create_webdataset_dataloader(
            sets["val"], **{**options, "batch_size": 2}, shuffle=False, modalities=["x"]
        ),
        "test": create_webdataset_dataloader(sets["test"], **options, modalities=["number"]),
    }
    for split, reference in expected.items():
        loader = getattr(data, f"{split}_dataloader")()
        assert len(loader) == len(reference)
        for found, wanted in zip(loader, reference, strict=True):
            assert found["__key__"] == wanted["__key__"] and found.keys() == wanted.keys()


class SaveAlways(lightning.Callback):  # type: ignore[misc, name-defined]
    """Saves a checkpoint wherever ModelCheckpoint might: `saved` tells after how many training batches each was."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.saved: dict[Path, int] = {}

    def save(self, trainer: Any, model: Model, where: str) -> None:
        if not trainer.sanity_checking:
            done = len(model.seen["train"])
            path = self.directory / f"{done}-{where}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[path] = done

    def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
        self.save(trainer, model, "batch")

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        self.save(trainer, model, "validation")

    def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
        self.save(trainer, model, "epoch")


def fit(
    make: Callable[[], Any], directory: Path, look: Callable[[Any], Any] = rows, resume: Any = None, **options: Any
) -> list[Any]:
    """What the training step is given."""
    model = Model(look=look)
    trainer(directory, **options).fit(model, datamodule=make(), ckpt_path=resume)
    return model.seen["train"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"val_check_interval": 2},
        {"val_check_interval": 0.5, "num_sanity_val_steps": 1},
        {"limit_train_batches": 3},
        {"reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": -1, "max_steps": 8},
        {"use_distributed_sampler": False, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_resumed_wherever_it_was_saved(sets: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    num_workers = options.get("num_workers", 0)
    options = {name: value for name, value in options.items() if name != "num_workers"}

    def make() -> NeuroDataModule:
        return NeuroDataModule(sets["train"], sets["val"], num_workers=num_workers, transform=jitter, **SMALL)

    always = SaveAlways(tmp_path)
    whole = fit(make, tmp_path, callbacks=[always], **options)
    assert len(whole) == options.get("max_steps", 2 * options.get("limit_train_batches", 5))
    assert len(always.saved) > len(whole)
    for path, done in some(always.saved.items()):
        if not num_workers or done in (2, 5, 6):
            assert fit(make, tmp_path, resume=path, **options) == whole[done:], path.name


def test_resumed_from_what_model_checkpoint_saved(sets: dict[str, Path], tmp_path: Path) -> None:
    """After a run that died, and again after the one that went on."""

    def make() -> NeuroDataModule:
        return NeuroDataModule(sets["train"], sets["val"], **SMALL)

    def saver() -> Any:
        return ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2, enable_version_counter=False)

    whole = fit(make, tmp_path)
    for die_at, last in ((5, 4), (9, 8)):
        start = tmp_path / "step=4.ckpt"
        with pytest.raises(InterruptedError):
            model = Model(die_at)
            fitted = trainer(tmp_path, callbacks=[saver()])
            fitted.fit(model, datamodule=make(), ckpt_path=start if start.exists() else None)
        assert fit(make, tmp_path, resume=tmp_path / f"step={last}.ckpt") == whole[last:]


@pytest.mark.parametrize("batch_size", [3, 12, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 7))])
def test_resumed_with_another_batch_size(sets: dict[str, Path], tmp_path: Path, batch_size: int) -> None:
    """No sample is lost or repeated, and the epochs after it are whole."""

    def make(size: int = batch_size) -> NeuroDataModule:
        return NeuroDataModule(sets["train"], sets["val"], **{**SMALL, "batch_size": size})

    always = SaveAlways(tmp_path)
    whole = flat(fit(lambda: make(5), tmp_path, callbacks=[always]))
    n_batches = -(-24 // batch_size)
    for path, done in some(always.saved.items()):
        rest = fit(make, tmp_path, resume=path, callbacks=[last := LastBatches(tmp_path)])
        assert flat(rest) == whole[24 * (done // 5) + 5 * (done % 5) :], path.name
        assert set(last.found) <= {n_batches} and (done >= 10 or last.found), path.name


class LastBatches(lightning.Callback):  # type: ignore[misc, name-defined]
    """Notes how many batches Lightning counts when an epoch ends, where it knew that the last one was the last."""

    def __init__(self, _: Path) -> None:
        self.found: list[int] = []

    def on_train_epoch_end(self, trainer: Any, model: Any) -> None:
        assert trainer.is_last_batch
        self.found.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def test_epochs_cut_short_see_other_samples(sets: dict[str, Path], tmp_path: Path) -> None:
    model = Model()
    trainer(tmp_path, limit_train_batches=2).fit(model, datamodule=NeuroDataModule(sets["train"], **SMALL))
    loader = create_webdataset_dataloader(sets["train"], num_workers=0, **SMALL)
    for epoch in range(2):
        loader.set_epoch(epoch)
        expected = [row for batch in itertools.islice(loader, 2) for row in rows(batch)]
        assert flat(model.seen["train"], epoch) == expected
    model = Model()
    trainer(tmp_path, overfit_batches=2).fit(model, datamodule=NeuroDataModule(sets["train"], sets["train"], **SMALL))
    for epoch in range(2):
        assert flat(model.seen["train"], epoch) == flat(model.seen["val"], epoch) == ALL["train"][:10]


def test_hyperparameters_and_the_batch_size_finder(sets: dict[str, Path], tmp_path: Path) -> None:
    data = NeuroDataModule(
        sets["train"], val=sets["val"], transform=jitter, per_split={Split.val: {"select": {"group": 1}}}, **SMALL
    )
    fitted = trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    fitted.fit(Model(), datamodule=data)
    fitted.save_checkpoint(tmp_path / "some.ckpt")
    torch.load(tmp_path / "some.ckpt", weights_only=True)  # nothing but plain values in it
    again = NeuroDataModule.load_from_checkpoint(tmp_path / "some.ckpt")
    assert (again.hparams["train"], again.batch_size, again.per_split) == (str(sets["train"]), 5, data.per_split)
    assert "transform" not in again.hparams  # a function; a checkpoint holds plain values
    assert str(NeuroDataModule("/a", test="/b")) == "NeuroDataModule(train='/a', test='/b')"
    assert keys(next(iter(again.train_dataloader()))) == keys(next(iter(data.train_dataloader())))
    tuner = lightning.pytorch.tuner.Tuner(trainer(tmp_path))
    found = tuner.scale_batch_size(Model(), datamodule=again, init_val=2, max_trials=3, steps_per_trial=1)
    assert 2 < found == again.batch_size == again.hparams["batch_size"] == again.train_dataloader().batch_size


@pytest.mark.parametrize("name", ["ours", "bionemo's"])
def test_it_pickles_and_no_worker_outlives_a_fit(sets: dict[str, Path], tmp_path: Path, name: str) -> None:
    """As ``strategy="ddp_spawn"`` needs it; and left to the garbage collector, each worker is waited for for long."""
    data = pickle.loads(pickle.dumps(MODULES[name](sets)))
    workers = {"num_workers": 1, "persistent_workers": True}
    data.options = workers | {"buffer_size": 7, "block_size": 3}
    data._kwargs_wld = dict.fromkeys(Split, workers)
    whole = fit(lambda: data, tmp_path, keys)
    assert not multiprocessing.active_children()
    assert whole == fit(lambda: MODULES[name](sets), tmp_path, keys)


def test_a_checkpoint_of_another_dataset_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    always = SaveAlways(tmp_path)
    fit(lambda: NeuroDataModule(sets["train"], **SMALL), tmp_path, callbacks=[always])
    checkpoint = tmp_path / "2-batch.ckpt"
    for other in (NeuroDataModule(sets["val"], **SMALL), NeuroDataModule(sets["train"], seed=1, **SMALL)):
        with pytest.raises(StateError, match="the state is of another"):
            fit(lambda made=other: made, tmp_path, resume=checkpoint)  # type: ignore[misc]
    with pytest.raises(StateError, match="not one of a WebLoader"):
        fit(lambda: MODULES["bionemo's"](sets), tmp_path, keys, checkpoint)


# --- two ranks --------------------------------------------------------------------------------------------------------


def keys(batch: Any) -> list[str]:
    """The keys of a batch of either kind, without samples marked as repeated."""
    return [key for key, *_ in rows(batch)] if isinstance(batch, dict) else list(batch)


def first(sample: tuple[Any, ...]) -> Any:
    """Without the tuple that bionemo's users know."""
    return sample[0]


def tars(sets: dict[str, Any]) -> dict[Split, str]:
    """Where the tars with bionemo's names are."""
    return {split: f"{Path(sets[split.name]).parent}/tars_{split.name}" for split in Split}


N_SAMPLES = {split: sum(COUNTS[split.name]) for split in Split}
MODULES: dict[str, Callable[..., Any]] = {
    "ours": lambda sets, world_size=1: NeuroDataModule(sets["train"], sets["val"], **SMALL),
    "bionemo's": lambda sets, world_size=1: WebDataModule(
        tars(sets), N_SAMPLES, "__key__", 5 * world_size,
        pipeline_wds=dict.fromkeys(Split, wds.map(first)),
        pipeline_prebatch_wld=dict.fromkeys(Split, wds.batched(5, collation_fn=None)),
        kwargs_wds={Split.train: {"shardshuffle": True, "buffer_size": 7, "block_size": 3}},
    ),
}  # fmt: skip


def job(sets: dict[str, str], out: Path, of_one: dict[str, int]) -> None:
    """One of two ranks: whole runs, and runs that go on from their checkpoints and from those of a single process."""
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "val_check_interval": 2}
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, module in MODULES.items():
        make = functools.partial(module, sets, 2)
        always, model = SaveAlways(out / name), Model(look=keys)
        fitted = trainer(out, callbacks=[always], **options)
        fitted.fit(model, datamodule=make())
        saved = {path: done for path, done in always.saved.items() if path.stem in ("2-validation", "4-batch")}
        rest = [(done, fit(make, out, keys, path, **options)) for path, done in saved.items()]
        found[name] = {"whole": model.seen["train"], "val": model.seen["val"], "rest": rest}
    make = functools.partial(MODULES["ours"], sets)
    found["of one"] = [(done, fit(make, out, keys, path, **options)) for path, done in of_one.items()]
    (out / f"rank{fitted.global_rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # torch with gloo aborts once in a while when the interpreter is taken down


def dealt(ranks: list[Any]) -> list[str]:
    """What all ranks were given, in global order; they made the same steps."""
    steps = list(zip(*ranks, strict=True))
    assert all(len({(epoch, batch_idx) for epoch, batch_idx, _ in step}) == 1 for step in steps)
    return [key for step in steps for *_, batch in step for key in batch]


def test_two_ranks(sets: dict[str, Path], tmp_path: Path) -> None:
    """Both modules: the order of one process, resumed exactly; ours also from a checkpoint of one process, and back."""
    make = functools.partial(MODULES["ours"], sets)
    reference = flat(fit(make, tmp_path, keys, callbacks=[always := SaveAlways(tmp_path)]))
    of_one = {str(path): done for path, done in always.saved.items() if path.stem == "2-batch"}
    out = tmp_path / "two"
    out.mkdir()
    arguments = f"{ {split: str(path) for split, path in sets.items()}!r}, Path({str(out)!r}), {of_one!r}"
    (tmp_path / "job.py").write_text(f"from pathlib import Path\nfrom test_lightning import job\njob({arguments})\n")
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "job.py")], env=environment, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in ranks:
        for name in MODULES:
            assert len(rank[name]["whole"]) == 6 and len(rank[name]["rest"]) == 2
            for n_steps, rest in rank[name]["rest"]:
                assert rest == rank[name]["whole"][n_steps:]
    assert dealt([rank["ours"]["whole"] for rank in ranks]) == reference
    assert dealt([rank["ours"]["val"] for rank in ranks]) == 2 * [key_of(i) for i in range(7)]
    for i, rank in enumerate(ranks):  # single samples are dealt here, and there is no mask for the one that fills up
        assert flat(rank["bionemo's"]["whole"]) == reference[i::2]
        assert flat(rank["bionemo's"]["val"]) == 2 * [key_of(k % 7) for k in range(i, 8, 2)]
    for i, n_batches in enumerate(of_one.values()):
        position = 24 * (n_batches // 5) + 5 * (n_batches % 5)
        assert dealt([rank["of one"][i][1] for rank in ranks]) == reference[position:]
    for n_steps, path in ((2, "2-validation"), (4, "4-batch")):
        rest = fit(make, tmp_path, keys, out / "ours" / f"{path}.ckpt")
        assert flat(rest) == reference[24 * (n_steps // 3) + 10 * (n_steps % 3) :]


# --- bionemo's --------------------------------------------------------------------------------------------------------


def official(directory: str | Path, *suffixes: str, pattern: str = "*.tar") -> list[Any]:
    """What the official library yields of a directory's tars."""
    urls = sorted(str(path) for path in Path(directory).glob(pattern))
    return list(wds.WebDataset(urls, shardshuffle=False).decode().extract_keys(*[f"*.{suffix}" for suffix in suffixes]))


@pytest.mark.parametrize("num_workers", [0, 9])  # 9: more than tars
def test_every_stage_of_a_web_data_module(sets: dict[str, Path], tmp_path: Path, num_workers: int) -> None:
    data = WebDataModule(
        tars(sets), N_SAMPLES, ["__key__", "x.npy", "metadata.json"], 4,
        pipeline_prebatch_wld=dict.fromkeys(Split, [wds.map(list), wds.batched(4, collation_fn=None)]),
        kwargs_wds={Split.train: {"shardshuffle": True, "seed": 3, "nodesplitter": wds.split_by_node}},
        kwargs_wld={split: {"num_workers": num_workers} for split in Split},
    )  # fmt: skip

    def look(batch: Any) -> list[Row]:
        return [(key, np.asarray(x).tobytes(), about["i"]) for key, x, about in batch]

    model = Model(look=look)
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, datamodule=data)
    assert sorted(flat(model.seen["train"])) == ALL["train"] != flat(model.seen["train"])
    assert len(model.seen["train"]) == len(data.train_dataloader()) == 6
    fitted.validate(model, datamodule=data)
    fitted.test(model, datamodule=data)
    fitted.predict(model, datamodule=data)
    assert flat(model.seen["val"]) == 2 * ALL["val"]
    assert flat(model.seen["test"]) == flat(model.seen["predict"]) == ALL["test"]
    assert [each[0] for each in official(tars(sets)[Split.test], "__key__")] == [key for key, *_ in ALL["test"]]


@pytest.mark.parametrize(
    ("num_workers", "options"),
    [(0, {}), (0, {"val_check_interval": 2}), (0, {"limit_train_batches": 3}), (2, {})],
)
def test_a_web_data_module_resumes(
    sets: dict[str, Path], tmp_path: Path, num_workers: int, options: dict[str, Any]
) -> None:
    def make() -> WebDataModule:
        data = MODULES["bionemo's"](sets)
        data._kwargs_wld = {
            split: {"num_workers": num_workers, "persistent_workers": num_workers > 0} for split in Split
        }
        return data  # type: ignore[no-any-return]

    always = SaveAlways(tmp_path)
    whole = fit(make, tmp_path, keys, callbacks=[always], **options)
    assert len(whole) == 2 * options.get("limit_train_batches", 5)
    assert all(len(set(flat(whole, epoch))) == len(flat(whole, epoch)) for epoch in range(2))
    assert flat(whole, 0) != flat(whole, 1)
    for path, done in some(always.saved.items()):
        if not num_workers or done in (1, 4, 5, 8):
            assert fit(make, tmp_path, keys, path, **options) == whole[done:], path.name


def test_its_epochs_have_the_length_that_was_said(sets: dict[str, Path]) -> None:
    def made(n_samples: int, **options: Any) -> WebDataModule:
        data = WebDataModule(
            {"train": tars(sets)[Split.train]}, {"train": n_samples}, "__key__", 5,
            pipeline_wds={"train": wds.map(first)},
            pipeline_prebatch_wld={"train": wds.batched(5, collation_fn=None)}, **options,
        )  # fmt: skip
        data.setup("fit")
        return data

    everything = [key_of(i) for i in range(24)]
    for num_workers in (0, 2):
        short = made(12, kwargs_wld={"train": {"num_workers": num_workers}}).train_dataloader()
        assert [key for batch in short for key in batch] == everything[:15]
        long = made(50).train_dataloader()
        assert [key for batch in long for key in batch] == 2 * everything
        assert len(short) == 3 and len(long) == 10
    mixed = made(12, kwargs_wds={"train": {"shuffle": "full"}}).train_dataloader()
    assert list(mixed) != list(mixed)  # the next epoch's


def test_the_newer_form(sets: dict[str, Path], tmp_path: Path) -> None:
    stages = {
        "prefix_tars_wds": "wdshards",
        "pipeline_wds": dict.fromkeys(Split, [wds.map(first)]),
        "invoke_wds": {Split.val: [("map", {"f": str.upper})]},
        "invoke_wld": {
            Split.train: [("batched", {"batchsize": 5, "collation_fn": None}), ("with_epoch", {"nbatches": 4})]
        },
        "kwargs_wld": {Split.train: {"batch_size": None}},
    }
    for data in (
        WebDataModule("__key__", tars(sets), **stages),
        WebDataModule(suffix_keys_wds=["__key__"], dirs_tars_wds=tars(sets), **stages),
    ):
        data.prepare_data()
        data.setup("fit")
        batches = list(data.train_dataloader())
        assert [key for batch in batches for key in batch] == [key_of(i) for i in range(20)]
        assert len(data.train_dataloader()) == 4
        found = [tuple(batch) for batch in data.val_dataloader()]  # batch_size=1, as in torch
        assert found == [(key_of(i).upper(),) for i in range(7)]
        with pytest.raises(TypeError, match="number of batches is not known"):
            len(data.val_dataloader())
        with pytest.raises(RuntimeError, match="'test' is not set up"):
            data.test_dataloader()
    with pytest.raises(TypeError, match="give all arguments by name"):
        WebDataModule("__key__", tars(sets), "wdshards")
    with pytest.raises(TypeError, match="together"):
        WebDataModule(tars(sets), N_SAMPLES, "__key__")
    with pytest.raises(ValueError, match="same splits"):
        WebDataModule(tars(sets), {Split.train: 1}, "__key__", 2)


def test_arguments_of_web_dataset(sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def samples(**kwargs: Any) -> list[str]:
        data = WebDataModule("__key__", {"train": tars(sets)[Split.train]}, kwargs_wds={"train": kwargs})
        data.setup("fit")
        return [key for (key,) in data._dataset[Split.train]]

    everything = [key_of(i) for i in range(24)]
    harmless = {
        "seed": None,
        "cache_size": -1,
        "empty_check": False,
        "verbose": True,
        "workersplitter": wds.split_by_worker,
    }
    assert (
        samples() == samples(shardshuffle=False) == samples(shardshuffle=0, resampled=False, **harmless) == everything
    )
    reference = [s["__key__"] for s in WebDatasetLoader(sets["train"], seed=7)]
    assert samples(shardshuffle=100, seed=7) == samples(shardshuffle=True, seed=7) == reference != everything
    assert samples(select={"group": 1}) == everything[1::3]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert samples() == samples(nodesplitter=wds.split_by_node) == everything[1::2]
    assert samples(nodesplitter=None) == everything
    for refused in (
        {"resampled": True},
        {"select_files": len},
        {"nodesplitter": list},
        {"repeat": True},
        {"mode": "x"},
    ):
        with pytest.raises(ValueError, match="has no meaning here"):
            samples(**refused)
    with pytest.raises(TypeError, match="takes an argument shard_shuffle"):
        samples(shard_shuffle=True)


def write_pickles(directory: Path, names: list[str], suffixes: tuple[str, ...] = ("tensor.pyd",)) -> Path:
    """Files as bionemo's tests have them: pickled tensors."""
    directory.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        payload = pickle.dumps(torch.tensor(i, dtype=torch.int32))
        for suffix in suffixes:
            (directory / f"{name}.{suffix}").write_bytes(payload)
    return directory


NAMES = [f"sample-{i:04d}" for i in range(10)]


@pytest.mark.parametrize("form", ["older", "newer"])
def test_pickles_packed_and_trained_on(tmp_path: Path, form: str) -> None:
    """bionemo's own example: its arguments, its stages, its batches."""
    suffixes = ["tensor.pyd", "tensor_copy.pyd"]
    source = write_pickles(tmp_path / "pickles", NAMES, tuple(suffixes))
    names = {Split.train: NAMES[:6], Split.val: NAMES[6:8], Split.test: NAMES[8:]}
    n_batches = {Split.train: 3, Split.val: 1, Split.test: 1}
    shuffled = wds.shuffle(10, rng=random.Random(3))
    options: dict[str, Any] = {
        "n_tars_wds": 2, "prefix_tars_wds": "tensor",
        "pipeline_wds": {Split.train: [wds.map(torch.vstack), shuffled], Split.val: wds.map(torch.vstack),
                         Split.test: (stage for stage in [wds.map(torch.vstack)])},
        "pipeline_prebatch_wld": dict.fromkeys(Split, wds.batched(2, collation_fn=torch.stack)),
        "kwargs_wds": {split: {"shardshuffle": split == Split.train, "nodesplitter": wds.split_by_node, "seed": 1}
                       for split in Split},
    }  # fmt: skip
    if form == "older":
        data = PickledDataWDS(str(source), suffixes[0], names, f"{tmp_path}/tars-", 2, **options)
    else:
        directories = {split: f"{tmp_path}/tars-{split.name}" for split in Split}
        options["kwargs_wld"] = {split: {"batch_size": None, "num_workers": 1} for split in Split}
        options["invoke_wld"] = {split: [("with_epoch", {"nbatches": n_batches[split]})] for split in Split}
        data = PickledDataWDS(str(source), names, suffixes, directories, **options)
    width = 1 if form == "older" else 2
    model = Model(look=lambda batch: batch.tolist())
    fitted = trainer(tmp_path, max_epochs=1)
    fitted.fit(model, datamodule=data)
    fitted.test(model, datamodule=data)
    assert sorted(flat(model.seen["train"])) == [[[i]] * width for i in range(6)]
    assert flat(model.seen["val"]) == [[[i]] * width for i in (6, 7)]
    assert flat(model.seen["test"]) == [[[i]] * width for i in (8, 9)]
    assert len(model.seen["train"]) == 3
    assert [torch.stack(each).tolist() for each in official(tmp_path / "tars-train", "tensor.pyd")] == [
        [i] for i in range(6)
    ]
    assert len(list((tmp_path / "tars-train").glob("tensor-0*.tar"))) == 2


@pytest.mark.parametrize(("n_samples", "n_tars"), [(10, 3), (10, 4), (10, 6), (10, 10), (3, 5), (1, 1), (1001, None)])
def test_at_least_so_many_tars(tmp_path: Path, n_samples: int, n_tars: int | None, caplog: Any) -> None:
    names = [f"s.{i}" for i in range(n_samples)]
    source = write_pickles(tmp_path / "pickles", names)
    data = PickledDataWDS(source, "tensor.pyd", {"val": names}, tmp_path / "t", 2, n_tars_wds=n_tars)
    data.prepare_data()
    found = list((tmp_path / "tval").glob("wdshards-??????.tar"))
    assert len(found) >= min(n_samples, n_tars or 1) and len(found) >= -(-n_samples // 1000)
    assert ("cannot fill 5 tars" in caplog.text) == (n_tars == 5)
    data.setup("validate")
    loader = data.val_dataloader()
    assert [tensor.item() for (tensor,) in itertools.islice(loader.iterator(), n_samples)] == list(range(n_samples))
    assert [each[0] for each in official(tmp_path / "tval", "__key__")] == [f"s-{i}" for i in range(n_samples)]


def test_packing_again(tmp_path: Path) -> None:
    """Nothing is done when nothing changed; what changed is packed anew; what is not ours stays."""
    source = write_pickles(tmp_path / "pickles", NAMES)
    target = tmp_path / "train"

    def packed(names: list[str] = NAMES, **options: Any) -> tuple[dict[str, bytes], int, list[int]]:
        data = PickledDataWDS(source, "tensor.pyd", {Split.train: names}, f"{tmp_path}/", 2, **options)
        data.prepare_data()
        data.setup("fit")
        values = [tensor.item() for (tensor,) in data._dataset[Split.train]]
        return {path.name: path.read_bytes() for path in target.glob("*.tar")}, target.stat().st_ino, values

    tars, inode, values = packed()
    assert packed() == (tars, inode, values) and values == list(range(10))
    (source / "sample-0003.tensor.pyd").write_bytes(pickle.dumps(torch.tensor(33, dtype=torch.int32)))
    os.utime(source / "sample-0003.tensor.pyd", ns=(1, 1))  # an older file of the same size
    changed, _, values = packed()
    assert changed != tars and values == [0, 1, 2, 33, *range(4, 10)]
    assert packed(NAMES[::-2])[2] == [9, 7, 5, 33, 1]
    assert len(packed(n_tars_wds=5)[0]) == 5
    next(iter(target.glob("*.tar"))).unlink()
    assert len(packed(n_tars_wds=5)[0]) == 5
    assert packed()[0] == changed

    for name, remedy in ((NAMES[0], "two"), ("nobody", "nobody.tensor.pyd")):
        before = packed()[:2]
        with pytest.raises(SourceError, match="keys" if remedy == "two" else "nobody.tensor.pyd.*cannot be packed"):
            packed([*NAMES, name])
        assert packed()[:2] == before
    for other in ("train", "elsewhere"):
        if other == "train":
            WebDatasetWriter(target, overwrite=True).finalize()
        else:
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "thesis.tex").touch()
        data = PickledDataWDS(source, {"train": NAMES}, "tensor.pyd", {"train": tmp_path / other})
        with pytest.raises(OutputError, match="something else"):
            data.prepare_data()
    assert (tmp_path / "elsewhere" / "thesis.tex").exists()
    with pytest.raises(ValueError, match="n_tars_wds must be positive"):
        packed(n_tars_wds=0)


def test_any_suffix_is_kept_and_nothing_runs(tmp_path: Path) -> None:
    source = tmp_path / "files"
    source.mkdir()
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (ran,)

    (source / "a.mydata.pt").write_bytes(b"any bytes")
    (source / "a.pyd").write_bytes(pickle.dumps({"x": np.arange(3)}))
    (source / "b.mydata.pt").write_bytes(b"")
    (source / "b.pyd").write_bytes(pickle.dumps(Bad()))
    data = PickledDataWDS(source, {"test": ["a", "b"]}, ["mydata.pt", "pyd"], {"test": tmp_path / "tars"})
    data.prepare_data()
    data.setup("test")
    samples = iter(data._dataset[Split.test])
    payload, value = next(samples)
    assert payload == b"any bytes" and value["x"].tolist() == [0, 1, 2]
    with pytest.raises(UnsafeDataError, match="sample 'b', field 'pyd'.*touch"):
        next(samples)
    assert not ran.exists()


def test_relative_addresses_of_mixtures_stay_where_they_were_given(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurofmx_wds import mix

    monkeypatch.chdir(directory.parent)
    parts = {"a": directory.name, "b": {"shard_dir": directory.name, "select": {"group": 1}}}
    made = [NeuroDataModule(train=mix(parts)), NeuroDataModule(train=parts, weights={"a": 1, "b": 1})]
    monkeypatch.chdir(tmp_path)
    for data in made:
        data.setup("fit")
        assert len(next(iter(data.train_dataloader()))["__key__"]) == 32
