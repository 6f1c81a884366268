"""Loaders under Accelerate on two real processes: every sample once, whoever deals them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import torchrun

from neurofmx_wds import WebDatasetLoader, create_webdataset_dataloader

pytest.importorskip("accelerate")

JOB = """
import os, sys
os.environ["ACCELERATE_USE_CPU"] = "true"
sys.path.insert(0, {tests!r})
import {module} as jobs
jobs.{name}({directory!r}, {out!r})
"""


def on_two_ranks(tmp_path: Path, name: str, directory: Path, module: str = __name__) -> list[Any]:
    """Run a function of a test module on two ranks; return what each has written."""
    script = tmp_path / "job.py"
    places = {"tests": str(Path(__file__).parent), "directory": str(directory), "out": str(tmp_path)}
    script.write_text(JOB.format(module=module, name=name, **places))
    done = torchrun([str(script)], 2, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]
    return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]


def finish(out: str, found: Any) -> None:
    """Write what this rank has found, and end."""
    rank = torch.distributed.get_rank()
    Path(out, f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # torch with gloo aborts once in a while when the interpreter is taken down


def numbers(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of tensors alone, as Accelerate needs it to deal it."""
    return {"number": torch.tensor([int(sample["number"]) for sample in samples])}


SETTINGS: list[tuple[dict[str, Any], int, dict[str, Any]]] = [  # of Accelerate, workers, of the loader
    ({}, 0, {}),
    ({}, 1, {"rank": 1, "world_size": 2}),
    ({"dispatch_batches": False}, 0, {"rank": 0, "world_size": 1}),
    ({"dispatch_batches": False}, 2, {}),
    ({"dispatch_batches": False, "split_batches": True}, 0, {"shuffle": "full"}),
    ({"split_batches": True}, 0, {}),
    ({"use_stateful_dataloader": True}, 0, {}),
]


def samples_job(directory: str, out: str) -> None:
    """The samples that this rank gets of a prepared DataLoader of samples, and its number of steps."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    found = []
    for config, num_workers, options in SETTINGS:
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**config))
        samples = WebDatasetLoader(directory, **options).map(dict)
        plain = torch.utils.data.DataLoader(samples, 4, collate_fn=numbers, num_workers=num_workers)
        found.append([batch["number"].tolist() for batch in accelerator.prepare(plain)])
    finish(out, found)


def test_a_prepared_dataloader_of_samples_delivers_all(tmp_path: Path, directory: Path) -> None:
    ranks = on_two_ranks(tmp_path, "samples_job", directory)
    for setting, *delivered in zip(SETTINGS, *ranks, strict=True):
        assert len({len(steps) for steps in delivered}) == 1, setting
        found = sorted(number for steps in delivered for batch in steps for number in batch)
        assert sorted(set(found)) == list(range(24)), setting
        assert len(found) == 24 or setting[1] == 2, setting  # workers' last batches are filled up by Accelerate


def tensors(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a batch alone."""
    return {"number": batch["number"]}


def batches_job(directory: str, out: str) -> None:
    """What this rank gets of a prepared loader of batches in two epochs, and of the rest of each after some batches."""
    from accelerate import Accelerator

    found: dict[str, Any] = {}
    for num_workers in (0, 1):
        accelerator = Accelerator(cpu=True)

        def made(accelerator: Any = accelerator, num_workers: int = num_workers) -> Any:
            loader = create_webdataset_dataloader(directory, batch_size=5, num_workers=num_workers)
            return accelerator.prepare(loader.map(tensors))

        prepared, rests = made(), []
        whole = [[batch["number"].tolist() for batch in prepared] for _ in range(2)]
        for epoch, skipped in ((0, 1), (1, 2)):
            fresh = accelerator.skip_first_batches(made(), skipped)
            fresh.set_epoch(epoch)
            rests.append([epoch, skipped, [batch["number"].tolist() for batch in fresh]])
        found[str(num_workers)] = {"length": len(prepared), "whole": whole, "rests": rests}
    finish(out, found)


def test_a_prepared_loader_of_batches_is_dealt_once_and_skips(tmp_path: Path, directory: Path) -> None:
    ranks = on_two_ranks(tmp_path, "batches_job", directory)
    loader = create_webdataset_dataloader(directory, batch_size=5, num_workers=0)
    reference = [[number for batch in loader for number in batch["number"].tolist()] for _ in range(2)]
    for kind in ranks[0]:
        for epoch in range(2):
            steps = zip(*(rank[kind]["whole"][epoch] for rank in ranks), strict=True)
            assert [number for step in steps for batch in step for number in batch] == reference[epoch], kind
        for rank in ranks:
            assert rank[kind]["length"] == len(rank[kind]["whole"][0]) == 3
            for epoch, skipped, rest in rank[kind]["rests"]:
                assert rest == rank[kind]["whole"][epoch][skipped:], (kind, epoch)
