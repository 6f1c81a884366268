"""Speed of reading: in order and shuffled, with workers and transforms, against other libraries and the limit.

Knows which loaders are compared, and their targets; knows nothing of how measurements are taken.
"""

from __future__ import annotations

import functools
import hashlib
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading.batch_loader import WebDatasetDataLoader
from neurofmx_wds.loading.readers import ShardReader

from . import datasets, peers
from .datasets import Samples
from .harness import Case, Group, Setting, Target, Unavailable, Work

OURS = "neurofmx_wds"
SHUFFLES: dict[str, bool | str] = {
    f"{OURS}, in order": False,
    f"{OURS}, shuffle=True": True,
    f'{OURS}, shuffle="full"': "full",
}


def rows(batch: Any) -> int:
    """Return the number of samples in a batch of any of the libraries."""
    if isinstance(batch, dict):
        return len(batch["behavior"])
    return len(batch.behavior if hasattr(batch, "behavior") else batch[0])


def epoch(batches: peers.Batches, n: int) -> Work:
    """Return the work of iterating once over `batches`, which must hold `n` samples."""

    def work() -> float:
        count = sum(map(rows, batches))
        if count != n:
            raise RuntimeError(f"received {count} samples, not {n}")
        return n

    return work


def reads(name: str, batches: Callable[[], peers.Batches], n: int, before: Callable[[], None] | None = None) -> Case:
    """Return a case that iterates over the batches that `batches` opens."""
    return Case(name, lambda: epoch(batches(), n), before, ours=name.startswith(OURS))


def ordinary(setting: Setting) -> Samples:
    """Return the samples of most groups."""
    return Samples("ordinary", setting.n_samples)


def our_loader(setting: Setting, samples: Samples, **options: Any) -> WebDatasetDataLoader:
    """Open our loader with its defaults, but in order and in this process unless the options say otherwise."""
    options = {"batch_size": samples.batch_size, "num_workers": 0, "shuffle": False, **options}
    return create_webdataset_dataloader(datasets.ours(setting.root, samples), **options)


def plain(setting: Setting, samples: Samples, transform: peers.Map | None = None) -> peers.Batches:
    """Read with webdataset the shards that it wrote."""
    return peers.webdataset(datasets.webdataset(setting.root, samples), samples.batch_size, transform)


def limit(setting: Setting, samples: Samples, shuffled: bool = False) -> peers.Batches:
    """Copy the payloads of our shards."""
    return peers.Limit(datasets.ours(setting.root, samples), samples.batch_size, shuffled)


def first_epoch(setting: Setting, samples: Samples, **options: Any) -> Work:
    """Return the work of opening our loader and iterating once, which compares every checksum."""
    return lambda: epoch(our_loader(setting, samples, **options), samples.n)()


def first_epochs(setting: Setting) -> Group:
    """Open our loader and read once, beside the bare loop: map anew, copy and checksum in the same order."""
    samples = ordinary(setting)

    def bare(how: bool | str) -> Work:
        order = our_loader(setting, samples, shuffle=how).order
        directory = datasets.ours(setting.root, samples)
        return epoch(peers.CheckedLimit(directory, samples.batch_size, order.sample_ids(0, samples.n)), samples.n)

    loops = {name: name.replace(OURS, "map, copy and checksum") for name in SHUFFLES}
    return Group(
        "one process, first epochs of a fresh loader",
        [
            case
            for name, how in SHUFFLES.items()
            for case in (
                Case(name, functools.partial(first_epoch, setting, samples, shuffle=how), ours=True),
                Case(loops[name], functools.partial(bare, how)),
            )
        ]
        + [reads("LitData", lambda: peers.litdata(setting.root, samples), samples.n)],
        [
            *(Target(name, loops[name], at_least=0.85) for name in SHUFFLES),
            Target([*SHUFFLES][0], "LitData", at_least=3),
        ],
    )


def in_order(setting: Setting) -> Group:
    """Read in one process, without shuffling."""
    samples, root = ordinary(setting), setting.root
    first = f"{OURS}, first epoch (compares checksums)"
    cases = [
        (OURS, lambda: our_loader(setting, samples)),
        ("webdataset", lambda: plain(setting, samples)),
        ("torchdata on webdataset", lambda: peers.torchdata(datasets.webdataset(root, samples), samples.batch_size)),
        ("Energon", lambda: peers.energon(root, samples)),
        ("MosaicML Streaming", lambda: peers.mosaicml(root, samples)),
        ("LitData", lambda: peers.litdata(root, samples)),
        ("DALI (CPU, raw bytes)", lambda: peers.Dali(datasets.webdataset(root, samples), samples.batch_size)),
        ("FFCV (arrays only)", lambda: peers.ffcv(root, samples)),
        ("the limit (one copy)", lambda: limit(setting, samples)),
    ]
    asked = {"webdataset": 50, "LitData": 5, "the limit (one copy)": 0.6, "FFCV (arrays only)": 0.8}
    return Group(
        "one process, in order",
        [
            *(reads(name, batches, samples.n) for name, batches in cases),
            Case(first, lambda: first_epoch(setting, samples), ours=True),
        ],
        [*(Target(OURS, name, at_least=asked.get(name)) for name, _ in cases[1:]), Target(first, "webdataset")],
    )


def shuffled(setting: Setting) -> Group:
    """Measure the cost of shuffling."""
    samples = ordinary(setting)
    loaders = {name: functools.partial(our_loader, setting, samples, shuffle=how) for name, how in SHUFFLES.items()}
    unshuffled, *others = SHUFFLES
    limits = {f"the limit, {how}": functools.partial(limit, setting, samples, how == "shuffled") for how in _LIMITS}
    return Group(
        "one process, shuffled",
        [reads(name, loader, samples.n) for name, loader in (loaders | limits).items()],
        [*(Target(name, unshuffled, at_least=0.8) for name in others), Target(*list(limits)[::-1])],
    )


_LIMITS = ("in order", "shuffled")


def two_workers(setting: Setting) -> Group:
    """Read in persistent worker processes, in epochs after the first."""
    samples, root = ordinary(setting), setting.root
    cases = [
        (OURS, lambda: our_loader(setting, samples, num_workers=2, persistent_workers=True)),
        ("webdataset WebLoader", lambda: peers.webloader(datasets.webdataset(root, samples), samples.batch_size, 2)),
        ("LitData", lambda: peers.litdata(root, samples, num_workers=2)),
    ]
    return Group(
        "num_workers=2, in order, epochs after the first",
        [reads(name, batches, samples.n) for name, batches in cases],
        [Target(OURS, "webdataset WebLoader", at_least=8), Target(OURS, "LitData", at_least=4)],
    )


def one_modality(setting: Setting) -> Group:
    """Read some of the fields."""
    samples = ordinary(setting)
    every, one = f"{OURS}, all", f'{OURS}, modalities=["behavior"]'
    return Group(
        "one process, in order, all fields and one of them",
        [
            reads(every, lambda: our_loader(setting, samples), samples.n),
            reads(one, lambda: our_loader(setting, samples, modalities=["behavior"]), samples.n),
        ],
        [Target(one, every, at_least=3)],
    )


def root_of(field: str, sample: dict[str, Any]) -> dict[str, Any]:
    """Take the square root of a field, a common transform of spike counts."""
    return {**sample, field: np.sqrt(sample[field])}


def transformed(setting: Setting) -> Group:
    """Apply the same function to every sample."""
    samples = ordinary(setting)
    ours = functools.partial(root_of, "spikes")
    theirs = functools.partial(root_of, "spikes.npy")
    return Group(
        "one process, in order, transform: the square root of spikes",
        [
            reads(OURS, lambda: our_loader(setting, samples, transform=ours), samples.n),
            reads("webdataset", lambda: plain(setting, samples, theirs), samples.n),
        ],
        [Target(OURS, "webdataset", at_least=10)],
    )


def smoothed(sample: dict[str, Any]) -> dict[str, Any]:
    """Smooth spike counts along time: numpy does it, and lets other threads run meanwhile."""
    spectrum = np.fft.rfft(sample["spikes"], axis=0)
    spectrum[10:] = 0
    return {**sample, "spikes": np.fft.irfft(spectrum, len(sample["spikes"]), axis=0).astype(np.float32)}


def counted(sample: dict[str, Any]) -> dict[str, Any]:
    """Compute a number in Python, which holds other threads back."""
    return {**sample, "number": np.int64(sum(i * i for i in range(2000)))}


def threads(setting: Setting, transform: peers.Map, what: str, target: Target) -> Group:
    """Apply a function to every sample: in this process, in two threads and in two processes."""
    samples, root = ordinary(setting), setting.root
    n_batches = -(-samples.n // samples.batch_size)

    def by_number() -> Callable[[int], Any]:
        reader = ShardReader(open_shards(datasets.ours(root, samples)), checksums=False)
        return functools.partial(peers.batch_of, reader, transform, samples.batch_size)

    def torchs() -> peers.Batches:
        kept = {"num_workers": 2, "persistent_workers": True}
        return torch.utils.data.DataLoader(peers.ByNumber(by_number(), n_batches), batch_size=None, **kept)

    def ours(**options: Any) -> Callable[[], peers.Batches]:
        return lambda: our_loader(setting, samples, transform=transform, **options)

    cases = [
        (OURS, ours()),
        (f"{OURS}, 2 threads", ours(num_workers=2, workers="threads")),
        (f"{OURS}, 2 processes", ours(num_workers=2, persistent_workers=True)),
        ("SPDL, 2 threads, on our reader", lambda: peers.Spdl(by_number(), n_batches, 2)),
        ("torch, 2 processes, on our reader", torchs),
    ]
    return Group(f"transform: {what}", [reads(name, batches, samples.n) for name, batches in cases], [target])


def numpy_threads(setting: Setting) -> Group:
    """Apply a function that is mostly numpy's work."""
    target = Target(f"{OURS}, 2 threads", "SPDL, 2 threads, on our reader", at_least=1)
    return threads(setting, smoothed, "smoothing with numpy", target)


def python_threads(setting: Setting) -> Group:
    """Apply a function that is Python's work."""
    return threads(setting, counted, "a loop in Python", Target(f"{OURS}, 2 threads", OURS))


def small(setting: Setting) -> Group:
    """Read small samples, where overhead dominates."""
    samples = Samples("small", setting.n_samples, spikes=(10, 8), behavior=(10, 2))
    return Group(
        "one process, in order, small samples (10, 8)",
        [
            reads(OURS, lambda: our_loader(setting, samples), samples.n),
            reads("webdataset", lambda: plain(setting, samples), samples.n),
        ],
        [Target(OURS, "webdataset", at_least=20)],
    )


def large(setting: Setting) -> Group:
    """Read large samples, where copying dominates."""
    n = 16 if setting.quick else 64
    samples = Samples("large", n, spikes=(2000, 1024), shard_size=16, batch_size=4)
    return Group(
        "one process, in order, samples of 8 MB, batches of 4",
        [
            reads(OURS, lambda: our_loader(setting, samples), samples.n),
            reads("the limit (one copy)", lambda: limit(setting, samples), samples.n),
        ],
        [Target(OURS, "the limit (one copy)", at_least=0.9)],
        unit="samples/s",
        scale=1,
    )


def our_shards(setting: Setting) -> Group:
    """Read our shards with webdataset, and compare with shards that it wrote itself."""
    samples = ordinary(setting)

    def on_ours() -> peers.Batches:
        urls = sorted(map(str, datasets.ours(setting.root, samples).glob("*.tar")))
        return peers.webdataset(urls, samples.batch_size)

    return Group(
        "webdataset on our shards and on its own",
        [
            reads("webdataset on our shards", on_ours, samples.n),
            reads("webdataset on its own", lambda: plain(setting, samples), samples.n),
        ],
        [Target("webdataset on our shards", "webdataset on its own", at_least=1.4)],
    )


def no_index(setting: Setting) -> Group:
    """Read tars that webdataset wrote, which are indexed in the first epoch."""
    samples = ordinary(setting)
    first, later, theirs = f"{OURS}, first epoch", f"{OURS}, later epochs", "webdataset"

    def tars() -> list[str]:
        return datasets.webdataset(setting.root, samples)

    def open_tars() -> peers.Batches:
        return create_webdataset_dataloader(tars(), batch_size=samples.batch_size, num_workers=0, shuffle=False)

    def forget() -> None:
        for tar in tars():
            Path(tar).with_suffix(".index").unlink(missing_ok=True)

    def first_epoch() -> float:
        return epoch(open_tars(), samples.n)()

    return Group(
        "one process, in order, a tar with no index",
        [
            Case(first, lambda: first_epoch, before=forget, ours=True),
            reads(later, open_tars, samples.n),
            reads(theirs, lambda: plain(setting, samples), samples.n),
        ],
        [Target(first, theirs, at_least=1), Target(later, theirs, at_least=50)],
    )


def cold(setting: Setting) -> Group:
    """Read with an empty page cache."""
    samples = ordinary(setting)
    piece = memoryview(bytearray(4 << 20))

    @functools.cache
    def files() -> list[Path]:
        return sorted(datasets.ours(setting.root, samples).iterdir())

    def drop() -> None:
        for file in files():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def readinto() -> float:
        for file in files():
            with open(file, "rb", buffering=0) as stream:
                while stream.readinto(piece):
                    pass
        return samples.n

    def checked(work: Work) -> Work:
        drop()
        begin = _bytes_from_disk()
        readinto()
        if _bytes_from_disk() - begin < 0.9 * sum(file.stat().st_size for file in files()):
            raise Unavailable("the page cache cannot be dropped here")
        return work

    return Group(
        "one process, in order, cold page cache",
        [
            Case(OURS, lambda: checked(first_epoch(setting, samples)), before=drop, ours=True),
            Case("readinto", lambda: checked(readinto), before=drop),
        ],
        [Target(OURS, "readinto", at_least=0.9)],
    )


def _bytes_from_disk() -> int:
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError as error:
        raise Unavailable(f"cannot measure what is read from the disk: {error}") from error
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def overlap(setting: Setting) -> Group:
    """Load while a training step runs."""
    samples = ordinary(setting)
    n_batches = -(-samples.n // samples.batch_size)

    @functools.cache
    def step() -> Callable[[], object]:
        """Return a step that takes as long as loading a batch and releases the GIL: hashing."""
        load = epoch(our_loader(setting, samples), samples.n)
        load()
        seconds = min(_seconds(load) for _ in range(3)) / n_batches
        piece = bytes(1 << 20)
        speed = len(piece) / min(_seconds(lambda: hashlib.sha256(piece)) for _ in range(10))
        return functools.partial(hashlib.sha256, bytes(int(speed * seconds)))

    def steps() -> float:
        hash_something = step()
        for _ in range(n_batches):
            hash_something()
        return samples.n

    def train(prefetch: int) -> Work:
        hash_something = step()
        loader = our_loader(setting, samples, prefetch_factor=prefetch)

        def work() -> float:
            for _ in loader:
                hash_something()
            return samples.n

        return work

    def side_by_side() -> Work:
        step()
        load = epoch(our_loader(setting, samples), samples.n)

        def work() -> float:
            with ThreadPoolExecutor(1) as thread:
                loaded = thread.submit(load)
                steps()
                return loaded.result()

        return work

    loading, stepping, both, neither = "loading alone", "the step alone", f"{OURS}, both", f"{OURS}, prefetch_factor=0"
    apart = "both, no batch passed on"
    return Group(
        "one process, a step that takes as long as loading a batch",
        [
            reads(loading, lambda: our_loader(setting, samples), samples.n),
            Case(stepping, lambda: steps),
            Case(both, lambda: train(2), ours=True),
            Case(neither, lambda: train(0), ours=True),
            Case(apart, side_by_side),
        ],
        # The times' ratio is that of the speeds the other way round.
        [Target((loading, stepping), both, at_most=1.15), *(Target((loading, stepping), x) for x in (neither, apart))],
    )


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def memory_growth(setting: Setting, samples: Samples, shuffle: bool | str) -> float:
    """Return the growth of resident memory between the ends of the first and the fifth epoch, in %."""
    import psutil

    loader = our_loader(setting, samples, shuffle=shuffle)
    resident = []
    for _ in range(5):
        epoch(loader, samples.n)()
        resident.append(psutil.Process().memory_info().rss)
    return 100 * (resident[-1] / resident[0] - 1)


def memory(setting: Setting) -> Group:
    """Check whether memory grows from epoch to epoch."""
    samples = ordinary(setting)

    def growth(shuffle: bool | str) -> Work:
        datasets.ours(setting.root, samples)
        return lambda: memory_growth(setting, samples, shuffle)

    return Group(
        "growth of resident memory over 5 epochs",
        [Case(name, functools.partial(growth, how), ours=True) for name, how in SHUFFLES.items()],
        [Target(name, at_most=5) for name in SHUFFLES],
        unit="%",
        scale=1,
        per_second=False,
        once=True,
    )


def many_shards(setting: Setting) -> Samples:
    """Return 1,000 shards of a few small samples."""
    size = 4 if setting.quick else 32
    return Samples("many-shards", 1000 * size, spikes=(10, 8), behavior=(10, 2), shard_size=size)


def open_files(setting: Setting, samples: Samples) -> float:
    """Return the largest number of files that this process has open while it reads."""
    import psutil

    process = psutil.Process()
    loader = our_loader(setting, samples, shuffle="full")
    return float(max(process.num_fds() for _ in loader))


def open_memory(setting: Setting, samples: Samples) -> float:
    """Return the peak of private memory (without pages of files) that reading adds, in bytes."""
    import psutil

    process = psutil.Process()

    def own() -> int:
        info = process.memory_info()
        return info.rss - info.shared

    begin = own()
    loader = our_loader(setting, samples, shuffle="full")
    return float(max(own() for _ in loader) - begin)


def handles(setting: Setting) -> Group:
    """Count open files."""
    samples = many_shards(setting)
    name = f'{OURS}, shuffle="full"'
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def work() -> Work:
        datasets.ours(setting.root, samples)
        return lambda: open_files(setting, samples)

    return Group(
        f"1,000 shards: files open at once, of {allowed} allowed",
        [Case(name, work, ours=True)],
        [Target(name, at_most=allowed / 2 + 100)],
        unit="open files",
        scale=1,
        per_second=False,
        once=True,
    )


def shards_memory(setting: Setting) -> Group:
    """Measure the memory that open shards take."""
    samples = many_shards(setting)
    name = f'{OURS}, shuffle="full"'

    def work() -> Work:
        datasets.ours(setting.root, samples)
        return lambda: open_memory(setting, samples)

    return Group(
        f"1,000 shards, {samples.n:,} samples: peak memory",
        [Case(name, work, ours=True)],
        [Target(name, at_most=512)],
        unit="MB",
        scale=1e6,
        per_second=False,
        once=True,
    )


GROUPS = {
    "in-order": in_order,
    "first": first_epochs,
    "shuffle": shuffled,
    "workers": two_workers,
    "modality": one_modality,
    "transform": transformed,
    "threads-numpy": numpy_threads,
    "threads-python": python_threads,
    "small": small,
    "large": large,
    "our-shards": our_shards,
    "no-index": no_index,
    "cold": cold,
    "overlap": overlap,
    "memory": memory,
    "open-files": handles,
    "open-memory": shards_memory,
}
