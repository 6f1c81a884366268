"""The same function over many items, here or in worker processes, with the results in order.

Knows nothing of what is worked on.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from typing import Any

from .errors import NeurofmxError, OutputError

_UNKNOWN_WORKERS = 256

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def ordered_map(workers: int = 1, executor: Executor | None = None) -> Iterator[OrderedMap]:
    """Something that is called like :func:`map` and works in parallel.

    Args:
        workers: worker processes; 1 works in this process.
        executor: any executor to use instead; it is left running.

    Yields:
        ``apply(function, items)``, which gives the results in the items' order. The first item that fails ends
        it, after the few that are under way. A process that dies gives OutputError, naming the
        item by its ``str``.

    Raises:
        ValueError: `workers` is not positive.
    """
    if isinstance(workers, bool) or workers < 1:
        raise ValueError(f"workers must be a positive integer, not {workers!r}")
    if executor is not None:
        yield _on(executor.submit, getattr(executor, "_max_workers", _UNKNOWN_WORKERS))
    elif workers == 1:
        yield map
    else:
        spawn = multiprocessing.get_context("spawn")  # a forked child may inherit a lock that a thread holds
        with ProcessPoolExecutor(workers, spawn, initializer=_start_worker) as pool:
            yield _on(functools.partial(_submit_uninterrupted, pool), workers)


def _on(submit: Callable[..., Future[Any]], workers: int) -> OrderedMap:
    # Jobs are not cancelled but not handed out before their time: a process pool that breaks while one is cancelled
    # never ends (Python 3.11).
    def apply(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        jobs: deque[tuple[Any, Future[Any]]] = deque()
        item = None
        try:
            for item in items:
                if len(jobs) == 2 * workers:
                    yield _first_result(jobs)
                jobs.append((item, submit(function, item)))
            while jobs:
                yield _first_result(jobs)
        except Exception as error:
            if not _is_loss(error):
                raise
            raise OutputError(
                f"a worker process died while {jobs[0][0] if jobs else item} was being made, or one after it",
                remedy="perhaps memory ran out: run again with fewer workers, what is finished is kept; "
                'in a script, call this under `if __name__ == "__main__":`',
            ) from error
        finally:
            wait([job for _, job in jobs])  # what runs may still write somewhere

    return apply


def _is_loss(error: Exception) -> bool:
    """Whether an error tells of the workers, not of the work."""
    lost = isinstance(error, (BrokenExecutor, CancelledError))
    return lost or type(error).__module__.partition(".")[0] == "distributed"


@contextlib.contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """An executor that works on the workers of a dask cluster, which see the same files under the same names.

    A worker that is lost is no loss: dask gives its work to another one.

    Args:
        address: of the scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises:
        NeurofmxError: dask is not installed, or no scheduler answers there.
    """
    try:
        import distributed
    except ImportError as error:
        raise NeurofmxError("dask is not installed", remedy="pip install 'neurofmx-wds[dask]'") from error
    try:
        client: Any = distributed.Client(address, set_as_default=False)  # type: ignore[no-untyped-call, unused-ignore]
    except (OSError, ValueError) as error:
        remedy = "start one with `dask scheduler`, and give the address that it prints"
        raise NeurofmxError(f"no dask scheduler answers at {address}: {error}", remedy=remedy) from error
    with client:
        yield client.get_executor(pure=False)


def _first_result(jobs: deque[tuple[Any, Future[Any]]]) -> Any:
    result = jobs[0][1].result()
    jobs.popleft()
    return result


def _submit_uninterrupted(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: object) -> Future[Any]:
    """Hand out a job; a worker that this starts does not know of Ctrl-C until :func:`_start_worker`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker() -> None:
    """Let the worker go quietly with Ctrl-C, and at once when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
