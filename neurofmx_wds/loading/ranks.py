"""Which share of the samples this process reads: its rank, and the number of ranks.

Knows the environment and ``torch.distributed``; knows nothing of samples.
"""

from __future__ import annotations

import functools
import logging
import os

import torch.distributed
from webdataset.utils import pytorch_worker_info

logger = logging.getLogger("neurofmx_wds")

_TORCH = ("RANK", "WORLD_SIZE")
_LAUNCHERS = (  # the same of Open MPI, MVAPICH, MPICH and Intel MPI, Cray PALS, Flux; Slurm is a case of its own
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PALS_RANKID", "PALS_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
)


def find_rank() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; (0, 1) if it is alone.

    As webdataset does, read ``RANK`` and ``WORLD_SIZE``, else ask ``torch.distributed``. If neither answers, read what
    ``mpirun`` or ``srun`` has set, and warn once that this process reads only a share.

    Raises:
        ValueError: a variable is not a whole number, or the rank is not below the number of ranks.

    Example:
        >>> import pytest
        >>> with pytest.MonkeyPatch.context() as environment:
        ...     environment.setenv("RANK", "1")
        ...     environment.setenv("WORLD_SIZE", "4")
        ...     find_rank()
        (1, 4)
    """
    found, group = _read(*_TORCH), _process_group()
    if found and group and found != group:
        _warn_once(
            f"{' and '.join(_TORCH)} say {_share(*found)}, torch.distributed says {_share(*group)}: "
            "the variables count; unset them, or give rank and world_size"
        )
    if found or group:
        return found or group or (0, 1)
    for names in (*_LAUNCHERS, *_slurm_variables()):
        found = _read(*names)
        if found and found[1] > 1:
            _warn_once(
                f"this process reads {_share(*found)}, as {' and '.join(names)} say; "
                "give rank=0, world_size=1 if every process should read everything"
            )
        if found:
            return found
    return 0, 1


def worker_info() -> tuple[int, int, int, int]:
    """Return what webdataset finds: rank, number of ranks, worker, number of workers.

    Raises:
        ValueError: a variable that webdataset reads is not a whole number, or too large.
    """
    _read(*_TORCH)
    _read("WORKER", "NUM_WORKERS")
    found: tuple[int, int, int, int] = pytorch_worker_info()
    return found


def _process_group() -> tuple[int, int] | None:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _slurm_variables() -> list[tuple[str, str]]:
    """Return the variables that say which task of ``srun`` this process is; none if it is none of them.

    ``srun`` describes the tasks that it starts (the step). Batch scripts and interactive shells know only how many
    tasks the whole job may start, and a process that runs in them is alone.
    """
    if "SLURM_PTY_PORT" not in os.environ:
        if "SLURM_STEP_NUM_TASKS" in os.environ:
            return [("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")]
        if "SLURM_JOB_ID" not in os.environ or os.environ.get("SLURM_PROCID", "0") != "0":
            return [("SLURM_PROCID", "SLURM_NTASKS")]
    if os.environ.get("SLURM_NTASKS", "1") != "1":
        _warn_once(
            f"this process reads everything: the Slurm job has {os.environ['SLURM_NTASKS']} tasks, but srun has not "
            "started this process as one of them; start it with srun, or give rank and world_size, for a share"
        )
    return []


def _read(rank_name: str, size_name: str) -> tuple[int, int] | None:
    """Return the values of a pair of variables; None unless both are set."""
    given = [(name, os.environ[name]) for name in (rank_name, size_name) if name in os.environ]
    if len(given) < 2:
        if given and rank_name in _TORCH:
            _warn_once(f"{given[0][0]} is set without the other of {' and '.join(_TORCH)}, so it does not count")
        return None
    said = " and ".join(f"{name}={value!r}" for name, value in given)
    remedy = "unset both, or set them to this process's number (from 0) and the number of processes"
    try:
        rank, size = (int(value) for _, value in given)
    except ValueError as error:
        raise ValueError(f"{said} are not two whole numbers: {remedy}") from error
    if not 0 <= rank < size:
        raise ValueError(f"{said}: the first must be at least 0 and below the second; {remedy}")
    return rank, size


def _share(rank: int, world_size: int) -> str:
    return f"share {rank} of {world_size} (from 0)"


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
