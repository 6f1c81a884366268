"""The same function over many items, in this process or in several, with the results in order.

Knows nothing of what is worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from typing import Any, cast

from ..errors import NeurofmxError, OutputError

_UNKNOWN_WORKERS = 256
_MOST_WAITING = 512  # results that wait for an earlier one

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextlib.contextmanager
def ordered_map(
    workers: int = 1, executor: Executor | None = None, *, ready: Sequence[str] = (), without: Sequence[str] = ()
) -> Iterator[OrderedMap]:
    """Return a function that is called like :func:`map` and works in parallel.

    Args:
        workers: number of processes, including this one; the others start at once. As always with processes that are
            spawned, a script that starts them must do so under ``if __name__ == "__main__":``.
        executor: any executor to use instead; it is left running, and this process does not work.
        ready: modules that the other processes import as they start, while this one goes on.
        without: packages that the other processes do not import: what can do without them starts sooner.

    Yields:
        ``apply(function, items)``, which yields the results in the order of the items. The first item that fails ends
        it, after the few that are in progress. If a process dies, an OutputError names the item by its ``str``.

    Raises:
        ValueError: `workers` is not positive.

    Example:
        >>> with ordered_map(1) as apply:
        ...     list(apply(abs, [-3, 2]))
        [3, 2]
    """
    if isinstance(workers, bool) or workers < 1:
        raise ValueError(f"workers must be a positive integer, not {workers!r}")
    if executor is not None:
        room = 2 * getattr(executor, "_max_workers", _UNKNOWN_WORKERS)
        yield _in_order(lambda function, item, *_: executor.submit(function, item), room)
    elif workers == 1:
        yield map
    else:
        spawn = multiprocessing.get_context("spawn")  # a forked child may inherit a lock that a thread holds
        with ProcessPoolExecutor(workers - 1, spawn, initializer=_start_worker, initargs=(ready, without)) as pool:
            with _interrupts_blocked():  # in the processes until _start_worker, so that Ctrl-C shows no traceback
                for _ in range(workers - 1):
                    pool.submit(int)  # a process starts with its first job
            yield _in_order(functools.partial(_submit_or_run_inline, pool, workers - 1), _MOST_WAITING)


def _in_order(begin: Callable[..., Future[Any]], most: int) -> OrderedMap:
    """Return an ordered map over a function that begins work on an item.

    Args:
        begin: called with the function, an item, the number of items in progress and the number of items left.
        most: how many items may be begun before the first of them is done.
    """

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
                remedy="if memory ran out, run again with fewer workers: what is finished is kept; a script must start "
                'workers under `if __name__ == "__main__":`',
            ) from error
        finally:
            wait([job for _, job in jobs])  # what runs may still write somewhere

    return apply


def _first_result(jobs: deque[tuple[Any, Future[Any]]]) -> Any:
    result = jobs[0][1].result()
    jobs.popleft()
    return result


def _is_loss(error: Exception) -> bool:
    """Return whether an error is about the workers, not about the work."""
    lost = isinstance(error, (BrokenExecutor, CancelledError))
    return lost or type(error).__module__.partition(".")[0] == "distributed"


def _submit_or_run_inline(
    pool: ProcessPoolExecutor, others: int, function: Callable[[Any], Any], item: object, in_progress: int, left: int
) -> Future[Any]:
    """Let one of the `others` work on an item, or do it here and now.

    Each of them has one to work on and one waiting, unless this process would then be done before they are.
    """
    waiting = in_progress - others
    if left and (waiting < 0 or (waiting < others and left * (others + 1) > waiting + left)):
        return pool.submit(function, item)
    job: Future[Any] = Future()
    try:
        job.set_result(function(item))
    except Exception as error:
        job.set_exception(error)
    return job


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in this thread, and in the processes that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _start_worker(ready: Sequence[str], without: Sequence[str]) -> None:
    """End without a traceback at Ctrl-C, and at once when the parent is killed; import what will be needed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    do_without(*without)
    for module in ready:
        importlib.import_module(module)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def do_without(*packages: str) -> None:
    """Let imports of packages fail from now on, unless they have been imported already.

    webdataset imports torch wherever it is installed, and works without. That saves nearly 2 s of processor time and
    180 MB in each process.
    """
    for package in packages:
        sys.modules.setdefault(package, cast(Any, None))


@contextlib.contextmanager
def dask_executor(address: str) -> Iterator[Executor]:
    """Connect to the workers of a dask cluster, which see the same files under the same names.

    If a worker is lost, dask gives its work to another one.

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
