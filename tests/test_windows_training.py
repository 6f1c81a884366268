"""Windows cut while loading, where training meets them: Lightning, loaders read by plan, the command line."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from recordings import make_recording
from windows import load, starts

from neurofmx_wds import WebDatasetLoader, Windows
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig

JITTERED = Windows(length_s=0.5, jitter=True)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments")
    for i in range(3):
        made: dict[str, Any] = {"seconds": 5 + 2 * i, "n_units": 3, "behavior_rate": 100, "trials": 3, "seed": i}
        make_recording(out / f"{i}.nwb", session_id=f"s{i}", **made)
    config = SourceConfig.of(layout="segments", segment_s=2.0)
    convert([out / f"{i}.nwb" for i in range(3)], Output(out / "segments", shard_size=4), config)
    return out / "segments"


def fit(segments: Path, resume: str | None = None, save: tuple[str, int] | None = None, **options: Any) -> Any:
    """Train for two epochs; return the windows of the training and of the validation batches, in order."""
    lightning = pytest.importorskip("lightning")
    from neurofmx_wds.lightning import NeuroDataModule

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: dict[str, list[Any]] = {"train": [], "val": []}

        def training_step(self, batch: Any, _: int) -> Any:
            self.seen["train"] += starts([batch])
            if save is not None and self.global_step == save[1]:
                self.trainer.save_checkpoint(save[0])
            return (self.weight * batch["spikes"].mean()).sum()

        def validation_step(self, batch: Any, _: int) -> None:
            self.seen["val"] += starts([batch])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"batch_size": 5, "windows": JITTERED, "shuffle": "full", **options}
    data = NeuroDataModule(train=segments, val=segments, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        model = Model()
        trainer.fit(model, datamodule=data, ckpt_path=resume)
    assert data.hparams["windows"]["length_s"] == "1/2"
    return model.seen


def test_lightning_resumes_inside_an_epoch_and_validates_without_jitter(segments: Path, tmp_path: Path) -> None:
    whole = fit(segments, save=(str(tmp_path / "a.ckpt"), 9))
    unmoved = starts(load(segments, windows=Windows(length_s=0.5)))
    assert whole["val"] == unmoved * 2 and not set(whole["train"]) & set(unmoved)
    steps = -(-len(unmoved) // 5)
    assert steps < 9 < 2 * steps, "the checkpoint lies inside the second epoch"
    resumed = fit(segments, resume=str(tmp_path / "a.ckpt"), batch_size=3)
    n = len(resumed["train"])
    assert 0 < n < len(unmoved) and resumed["train"] == whole["train"][-n:]


def test_splits_may_have_windows_of_their_own(segments: Path) -> None:
    pytest.importorskip("lightning")
    from neurofmx_wds.lightning import NeuroDataModule

    own = {"test": {"windows": JITTERED}}
    data = NeuroDataModule(train=segments, val=segments, test=segments, windows=JITTERED, per_split=own)
    found = [starts(each) for each in (data.val_dataloader(), data.test_dataloader())]
    assert found[0] == starts(load(segments, windows=Windows(length_s=0.5)))
    assert found[1] == starts(load(segments, windows=JITTERED))


@pytest.mark.parametrize("epoch", [0, 3])
def test_batches_read_by_plan_are_those_of_the_epoch(segments: Path, epoch: int) -> None:
    """Frameworks that deal a DataLoader's batches read them by the plans of its batch sampler."""
    loader = load(segments, windows=JITTERED, shuffle="full")
    loader.set_epoch(epoch)
    expected = starts(loader)
    loader.set_epoch(epoch)
    by_plan = [loader.dataset[plan] for plan in list(loader.batch_sampler)]
    assert starts(by_plan) == expected


def test_samples_in_workers_of_a_plain_dataloader(segments: Path) -> None:
    options: dict[str, Any] = {"windows": JITTERED, "shuffle": True, "buffer_size": 7, "seed": 3}
    expected = [(each["metadata"], each["spikes"].tobytes()) for each in WebDatasetLoader(segments, **options)]
    loader = torch.utils.data.DataLoader(WebDatasetLoader(segments, **options), batch_size=None, num_workers=2)
    found = [(each["metadata"], each["spikes"].numpy().tobytes()) for each in loader]
    assert found == expected


def test_the_command_line_shows_windows(segments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["read", str(segments), "--window-s", "0.5", "--bin-ms", "25", "-n", "2"]) == 0
    shown = capsys.readouterr().out
    assert "spikes         20 × 3 float32" in shown and '"t_start_ns": ' in shown
    total = len(starts(load(segments, windows=Windows(length_s=0.5, bin_ms=25))))
    assert f"2 of {total} windows in" in shown
    assert main(["read", str(segments), "--align", "trials", "--before", "0.1", "--after", "0.2", "-n", "1"]) == 0
    assert "event_ns" in capsys.readouterr().out
    for wrong, told in (
        (["--window-s", "x"], "--window-s='x': must be a number"),
        (["--bin-ms", "5"], "--window-s=None"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["read", str(segments), *wrong])
        assert stopped.value.code == 2 and told in capsys.readouterr().err
