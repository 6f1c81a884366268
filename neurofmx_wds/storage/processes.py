"""The same function over many items, here or in worker processes, with the results in order.

Knows nothing of what is worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.abc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from types import ModuleType
from typing import Any

from ..errors import NeurofmxError, OutputError

_UNKNOWN_WORKERS = 256
_MOST_WAITING = 512  # results that wait for an earlier one
_starting = threading.Lock()

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def ordered_map(
    workers: int = 1, executor: Executor | None = None, *, ready: Sequence[str] = (), without: Sequence[str] = ()
) -> Iterator[OrderedMap]:
    """Something that is called like :func:`map` and works in parallel.

    Args:
        workers: processes that work, of which this is one; the others start at once.
        executor: any executor to use instead; it is left running, and this process does not work.
        ready: modules that the other processes import as they start, while this one goes on.
        without: packages that seem not to be installed to the other processes: what can do without them starts sooner.

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
        room = 2 * getattr(executor, "_max_workers", _UNKNOWN_WORKERS)
        yield _on(lambda function, item, *_: executor.submit(function, item), room)
    elif workers == 1:
        yield map
    else:
        spawn = multiprocessing.get_context("spawn")  # a forked child may inherit a lock that a thread holds
        with ProcessPoolExecutor(workers - 1, spawn, initializer=_start_worker, initargs=(ready, without)) as pool:
            for _ in range(workers - 1):
                _submit_uninterrupted(pool, int, 0)  # a process starts with its first job
            yield _on(functools.partial(_submit_or_run_inline, pool, workers - 1), _MOST_WAITING)


def _on(begin: Callable[..., Future[Any]], most: int) -> OrderedMap:
    """What gives `begin` an item, the number of items that are under way and that of items left, up to `most` ahead."""

    # Jobs are not cancelled but not handed out before their time: a process pool that breaks while one is cancelled
    # never ends (Python 3.11).
    def apply(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        jobs: deque[tuple[Any, Future[Any]]] = deque()
        left = deque(items)
        item = None
        try:
            while left:
                item = left.popleft()
                job = begin(function, item, sum(not job.done() for _, job in jobs), len(left))
                jobs.append((item, job))
                if job.done() and job.exception():
                    break
                while jobs and (jobs[0][1].done() or len(jobs) == most):
                    yield _first_result(jobs)
            while jobs:
                yield _first_result(jobs)
        except Exception as error:
            if not _is_loss(error):
                raise
            raise OutputError(
                f"a worker process died while {jobs[0][0] if jobs else item} was being made, or one after it",
                remedy="perhaps memory ran out: run again with fewer workers, what is finished is kept",
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
    except (OSError, ValueError, asyncio.TimeoutError) as error:
        remedy = "start one with `dask scheduler`, and give the address that it prints"
        raise NeurofmxError(f"no dask scheduler answers at {address}: {error}", remedy=remedy) from error
    with client:
        yield client.get_executor(pure=False)


def _submit_or_run_inline(
    pool: ProcessPoolExecutor, others: int, function: Callable[[Any], Any], item: object, under_way: int, left: int
) -> Future[Any]:
    """Let one of the `others` work on an item, or do it here and now.

    Each of them has one to work on and one waiting, unless this process would then be done before they are.
    """
    waiting = under_way - others
    if left and (waiting < 0 or (waiting < others and left * (others + 1) > waiting + left)):
        return _submit_uninterrupted(pool, function, item)
    job: Future[Any] = Future()
    try:
        job.set_result(function(item))
    except Exception as error:
        job.set_exception(error)
    return job


def _first_result(jobs: deque[tuple[Any, Future[Any]]]) -> Any:
    result = jobs[0][1].result()
    jobs.popleft()
    return result


def _submit_uninterrupted(pool: ProcessPoolExecutor, function: Callable[[Any], Any], item: object) -> Future[Any]:
    """Hand out a job; a process that this starts does not know of Ctrl-C until :func:`_start_worker`.

    Nor does it run the program's main script, as it would otherwise: that may import much, and more than it needs.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _starting:
            main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                return pool.submit(function, item)
            finally:
                sys.modules["__main__"] = main
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(ready: Sequence[str] = (), without: Sequence[str] = ()) -> None:
    """Let the worker go quietly with Ctrl-C, and at once when its parent is killed; import what it will need."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    block_imports(without)
    for module in ready:
        importlib.import_module(module)


class _Absent(importlib.abc.MetaPathFinder):
    """Finds that packages are not there."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, *_: object) -> None:
        """Refuse these packages, and leave all others to the next finder."""
        if name in self._packages:
            raise ModuleNotFoundError(f"{name} is not used in this process", name=name)


def block_imports(packages: Sequence[str]) -> None:
    """Let packages seem not to be installed, from now on, unless they have been imported already."""
    sys.meta_path.insert(0, _Absent(packages))


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
