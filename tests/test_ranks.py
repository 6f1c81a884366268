"""Which share a process reads: by torch's variables, its process group, or what MPI and Slurm launchers set."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from neurofmx_wds import WebDatasetLoader, create_shards_from_arrays, create_webdataset_dataloader
from neurofmx_wds.loading import ranks
from neurofmx_wds.loading.ranks import find_rank

PREFIXES = ("RANK", "WORLD_SIZE", "WORKER", "NUM_WORKERS", "SLURM_", "OMPI_", "PMI", "MV2_", "PALS_", "FLUX_")
SRUN = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "9", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(name)
    ranks._warn_once.cache_clear()
    yield
    ranks._warn_once.cache_clear()


def setenv(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "expected", "warning"),
    [
        ({}, (0, 1), None),
        ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3), None),
        ({"RANK": " 0 ", "WORLD_SIZE": "1"}, (0, 1), None),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3), "share 2 of 3"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, (0, 1), None),
        ({"OMPI_COMM_WORLD_RANK": "2"}, (0, 1), None),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, (0, 2), "rank=0, world_size=1 if every process should read everything"),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, (1, 2), "share 1 of 2"),
        ({"PALS_RANKID": "1", "PALS_SIZE": "2"}, (1, 2), "share 1 of 2"),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2"}, (1, 2), "share 1 of 2"),
        # mpirun in a batch script, torchrun in a task of srun
        ({**BATCH, "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, (3, 4), "share 3 of 4"),
        ({**SRUN, "RANK": "5", "WORLD_SIZE": "6"}, (5, 6), None),
        # srun
        (SRUN, (1, 3), "SLURM_PROCID and SLURM_STEP_NUM_TASKS"),
        ({**SRUN, "SLURM_PROCID": "0"}, (0, 3), "share 0 of 3"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2), "SLURM_PROCID and SLURM_NTASKS"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, (0, 2), "share 0 of 2"),
        ({**BATCH, "SLURM_PROCID": "3"}, (3, 4), "share 3 of 4"),
        # alone: a batch script that does not use srun, and interactive shells
        (BATCH, (0, 1), "reads everything: the Slurm job has 4 tasks.*srun has not started this process"),
        ({**BATCH, "SLURM_NTASKS": "1"}, (0, 1), None),
        ({"SLURM_JOB_ID": "7"}, (0, 1), None),
        ({**BATCH, "SLURM_STEP_NUM_TASKS": "1"}, (0, 1), None),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_PTY_PORT": "40000"}, (0, 1), "reads everything"),
        # half of a pair
        ({"RANK": "1"}, (0, 1), "RANK is set without the other"),
        ({"WORLD_SIZE": "2"}, (0, 1), "WORLD_SIZE is set without the other"),
        ({"WORLD_SIZE": "2", **SRUN}, (1, 3), "WORLD_SIZE is set without the other"),
    ],
)
def test_what_the_environment_says(
    variables: dict[str, str],
    expected: tuple[int, int],
    warning: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    setenv(monkeypatch, variables)
    for _ in range(2):
        assert find_rank() == expected
    if warning is None:
        assert not caplog.messages
    else:
        assert len(caplog.messages) == len(set(caplog.messages)) <= 2
        caplog.clear()
        ranks._warn_once.cache_clear()
        find_rank()
        assert any(re.search(warning, message) for message in caplog.messages)


PAIRS = [("RANK", "WORLD_SIZE"), *ranks._LAUNCHERS, ("SLURM_PROCID", "SLURM_NTASKS")]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "values", [("", ""), ("0", ""), ("", "2"), ("2", "2"), ("-1", "2"), ("0", "0"), ("x", "2"), ("0", "1.0")]
)
def test_variables_that_make_no_sense_are_named(
    pair: tuple[str, str], values: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(10)})
    setenv(monkeypatch, dict(zip(pair, values, strict=True)))
    said = rf"{pair[0]}='{values[0]}' and {pair[1]}='{values[1]}'.*unset both"
    with pytest.raises(ValueError, match=said):
        create_webdataset_dataloader(tmp_path / "d", num_workers=0)
    with pytest.raises(ValueError, match=said):
        next(iter(WebDatasetLoader(tmp_path / "d")))
    explicit = create_webdataset_dataloader(tmp_path / "d", num_workers=0, rank=0, world_size=1)
    if pair[0] == "RANK":  # which webdataset's own stages read, whatever they are given
        with pytest.raises(ValueError, match=said):
            list(explicit)
    else:
        assert sum(len(batch["x"]) for batch in explicit) == 10


def test_webdatasets_worker_variables_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(10)})
    loader = WebDatasetLoader(tmp_path / "d", shuffle=False)
    setenv(monkeypatch, {"WORKER": "1", "NUM_WORKERS": "2"})
    assert [int(sample["x"]) for sample in loader] == [1, 3, 5, 7, 9]
    monkeypatch.setenv("NUM_WORKERS", "")
    with pytest.raises(ValueError, match="WORKER='1' and NUM_WORKERS=''"):
        list(loader)


@pytest.mark.parametrize("names", [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_tasks_of_a_launcher_share_the_samples(
    names: tuple[str, str], num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(40)}, shard_size=10)
    found: list[list[int]] = []
    for rank in range(3):
        setenv(monkeypatch, dict(zip(names, (str(rank), "3"), strict=True)))
        options: dict[str, Any] = {"multiprocessing_context": "spawn"} if num_workers else {}
        loader = create_webdataset_dataloader(tmp_path / "d", batch_size=4, num_workers=num_workers, **options)
        assert (loader.rank, loader.world_size) == (rank, 3)
        found.append([int(x) for batch in loader for x in batch["x"]])
    assert sorted(itertools.chain(*found)) == list(range(40))


def test_a_process_group_counts_where_no_variable_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setenv(monkeypatch, SRUN)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert find_rank() == (0, 1) and not caplog.messages
        monkeypatch.setenv("RANK", "0")  # left behind by something else
        assert find_rank() == (0, 1)
        monkeypatch.setenv("WORLD_SIZE", "2")
        caplog.set_level(logging.WARNING)
        caplog.clear()
        assert find_rank() == (0, 2)  # as webdataset does
        assert "torch.distributed says share 0 of 1" in caplog.text
    finally:
        dist.destroy_process_group()
