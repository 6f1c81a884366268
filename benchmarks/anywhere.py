"""Reading a dataset that is elsewhere, from a web server on this machine that answers 20 ms late.

Knows how each library reads over the network; knows nothing of measuring.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from neurofmx_wds import create_webdataset_dataloader

from . import datasets, peers
from .datasets import Samples
from .harness import Case, Group, Setting, Target, Work

LATENCY_MS = 20
OURS, LITDATA, WEBDATASET = "neurofmx_wds", "LitData", "webdataset (curl)"

Open = Callable[[], Iterable[Any]]


def _samples(setting: Setting) -> Samples:
    return Samples("anywhere", setting.n_samples // 2)


class Elsewhere:
    """A dataset of one library on a server, and an empty cache for it.

    Args:
        directory: the dataset.
    """

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.range_server", str(directory), str(LATENCY_MS)]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._server.stdout.readline())}"
        self.cache = Path(tempfile.mkdtemp(prefix="neurofmx-bench-"))
        atexit.register(self._close)

    def _close(self) -> None:
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.cache, ignore_errors=True)

    def forget(self) -> None:
        """Empty the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir(exist_ok=True)

    def sent(self) -> int:
        """Return the bytes that the server has sent."""
        with urllib.request.urlopen(f"{self.url}/__bytes") as answer:
            return int(answer.read())


def _ours(setting: Setting, **options: Any) -> tuple[Elsewhere, Open]:
    samples = _samples(setting)
    there = Elsewhere(datasets.ours(setting.root, samples))
    options = {"batch_size": samples.batch_size, "cache_dir": there.cache, **options}
    return there, functools.partial(create_webdataset_dataloader, there.url, **options)


def _litdata(setting: Setting, **options: Any) -> tuple[Elsewhere, Open]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_AVAILABLE = False  # it refuses http; boto3, its other way, does not
    samples = _samples(setting)
    there = Elsewhere(datasets.litdata(setting.root, samples))
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}

    def make() -> Iterable[Any]:
        dataset = StreamingDataset(
            "s3://bucket/", cache_dir=str(there.cache), storage_options={"endpoint_url": there.url}, shuffle=True,
            **options,
        )  # fmt: skip
        return StreamingDataLoader(dataset, batch_size=samples.batch_size)

    return there, make


def _webdataset(setting: Setting) -> tuple[Elsewhere, Open]:
    samples = _samples(setting)
    urls = datasets.webdataset(setting.root, samples)
    there = Elsewhere(Path(urls[0]).parent)
    pipes = [f"pipe:curl -s -f {there.url}/{Path(url).name}" for url in urls]
    return there, lambda: peers.webdataset(pipes, samples.batch_size)


def _epoch(there: Elsewhere, make: Open) -> Work:
    """Return work that reads a first epoch: its samples are what was done."""

    def work() -> float:
        there.forget()
        return sum(len(batch["__key__"] if "__key__" in batch else batch["metadata"]) if isinstance(batch, dict)
                   else len(batch[0]) for batch in make())  # fmt: skip

    return work


def _first_batch(there: Elsewhere, make: Open) -> Work:
    """Return work that opens a dataset and reads a batch: its milliseconds."""

    def work() -> float:
        there.forget()
        begin = time.perf_counter()
        batches = iter(make())
        next(batches)
        taken = 1e3 * (time.perf_counter() - begin)
        del batches
        return taken

    return work


def _second_epoch(there: Elsewhere, make: Open, n_bytes: int) -> Work:
    """Return work that reads two epochs: the bytes fetched in the second, as a share of the dataset."""

    def work() -> float:
        there.forget()
        loader = make()
        for _ in loader:
            pass
        before = there.sent()
        for _ in loader:
            pass
        return (there.sent() - before) / n_bytes

    return work


def _resume(there: Elsewhere, make: Open, n_batches: int) -> Work:
    """Return work that goes on from the middle of an epoch: milliseconds to the first batch."""
    loader: Any = make()
    batches = iter(loader)
    for _ in range(n_batches):
        next(batches)
    state = loader.state_dict()

    def work() -> float:
        there.forget()
        begin = time.perf_counter()
        other: Any = make()
        other.load_state_dict(state)
        next(iter(other))
        return 1e3 * (time.perf_counter() - begin)

    return work


def _cases(setting: Setting, work: Callable[..., Work], *arguments: Any, with_webdataset: bool = True) -> list[Case]:
    cases = [
        Case(OURS, lambda: work(*_ours(setting), *arguments), ours=True),
        Case(LITDATA, lambda: work(*_litdata(setting), *arguments)),
    ]
    if with_webdataset:
        cases.append(Case(WEBDATASET, lambda: work(*_webdataset(setting), *arguments)))
    return cases


def first_epoch(setting: Setting) -> Group:
    """Compare first epochs with an empty cache."""
    title = f"First epoch from a server that answers after {LATENCY_MS} ms, empty cache, shuffled"
    return Group(title, _cases(setting, _epoch), [Target(OURS, LITDATA), Target(OURS, WEBDATASET)])


def first_batch(setting: Setting) -> Group:
    """Compare the time to the first batch."""
    title = f"Time to the first batch from a server that answers after {LATENCY_MS} ms"
    cases = _cases(setting, _first_batch)
    return Group(title, cases, [Target(OURS, LITDATA)], unit="ms", scale=1, per_second=False)


def half_cache(setting: Setting) -> Group:
    """Compare the bytes of a second epoch with a cache for half the data."""
    samples = _samples(setting)
    n_bytes = samples.n * samples.sample_bytes
    ours = functools.partial(_ours, setting, cache_size=n_bytes // 2, shuffle="full", prefetch_bytes=4 << 20)
    lit = functools.partial(_litdata, setting, max_cache_size=n_bytes // 2)
    cases = [
        Case(OURS, lambda: _second_epoch(*ours(), n_bytes), ours=True),
        Case(LITDATA, lambda: _second_epoch(*lit(), n_bytes)),
    ]
    targets = [Target(OURS, at_most=0.55)]
    return Group("Bytes fetched in a second epoch, cache for half the data", cases, targets,
                 unit="of the dataset", scale=1, per_second=False)  # fmt: skip


def resume(setting: Setting) -> Group:
    """Compare the time to the first batch after resuming in the middle of an epoch."""
    samples = _samples(setting)
    cases = _cases(setting, _resume, samples.n // samples.batch_size // 2, with_webdataset=False)
    return Group("Time to the first batch after resuming at half an epoch, empty cache", cases,
                 [Target(OURS, LITDATA)], unit="ms", scale=1, per_second=False)  # fmt: skip


GROUPS = {
    "anywhere": first_epoch,
    "anywhere-first": first_batch,
    "anywhere-half": half_cache,
    "anywhere-resume": resume,
}
