"""What a plan will take, before it is carried out: shards, bytes and memory.

Reads one sample of every source; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import hide_secrets
from ..format.encoding import encode
from ..format.shard_file import tar_header
from ..storage.atomic import refuse_url
from .config import Output, Split, Work, Workers
from .file_state import as_source_error
from .look import look_at
from .plan import ConversionPlan, Piece
from .sources import SourceConfig
from .split_plan import split

_BLOCK = 512
_TAR_END = 10_240
_WORKING_BYTES = 128 << 20  # a held HDF5 chunk row, a block of bins, and the writer's pieces
_SPIKE_BYTES = 40  # while they are sorted: its time before and after, its place, its unit; 16 from then on


@dataclass(frozen=True)
class Estimate:
    """What a conversion will take.

    Attributes:
        sources: for each source that can be read: path, samples, and bytes in the (uncompressed) shards.
        n_samples: samples in all.
        n_shards: shards.
        n_bytes: bytes of the shards before they are compressed: of every source, as many per sample as its first takes.
        memory_bytes: memory a worker takes at most beside the libraries': one sample and one block of a recording, and
            its spike times.
    """

    sources: tuple[tuple[str, int, int], ...]
    n_samples: int
    n_shards: int
    n_bytes: int
    memory_bytes: int


def estimate(plan: ConversionPlan, work: Work = Work()) -> Estimate:
    """Say what a plan will take.

    Args:
        plan: the plan.
        work: how the work is spread.

    Raises:
        SourceError: a source's first sample cannot be read.
    """
    firsts = [
        Piece(source.file, 0, min(1, source.description.n_samples), source.config or plan.config)
        for source in plan.sources
    ]
    sizes = list(work.apply(_sample_bytes, firsts))
    counts = [source.description.n_samples for source in plan.sources]
    n_shards = len(plan.shards())
    spikes = [(source.description.report.get("spikes") or {}).get("total", 0) for source in plan.sources]
    return Estimate(
        sources=tuple(
            (hide_secrets(p.file.path), n, n * size) for p, n, size in zip(firsts, counts, sizes, strict=True)
        ),
        n_samples=plan.n_samples,
        n_shards=n_shards,
        n_bytes=sum(n * size for n, size in zip(counts, sizes, strict=True)) + n_shards * _TAR_END,
        memory_bytes=_WORKING_BYTES + 4 * max(sizes, default=0) + _SPIKE_BYTES * max(spikes, default=0),
    )


def preview(
    paths: Sequence[str], output: Output, config: SourceConfig, workers: Workers, how: Split | None
) -> tuple[ConversionPlan, dict[str, Estimate]]:
    """Say what a conversion would take, without writing anything.

    Args:
        paths: the files.
        output: where it would write.
        config: how the files are read.
        workers: who does the work.
        how: into which datasets the files would be dealt; None: into one.

    Returns:
        The plan, and for each dataset (by its name, empty where there is one) what it would take.

    Raises:
        OutputError: the output is a URL.
        SourceError: a first sample cannot be read, or a dataset would get no windows.
    """
    refuse_url(output.directory)
    with workers.start() as work:
        plan = ConversionPlan(look_at(paths, config, work), config, output)
        parts = split(plan, how, work) if how else {"": plan}
        return plan, {name: estimate(part, work) for name, part in parts.items()}


def _sample_bytes(first: Piece) -> int:
    """Bytes that the first sample takes in a tar."""
    if first.stop == first.start:
        return 0
    try:
        source = first.file.open(first.config)
        try:
            [(sample, metadata)] = source.read(first.start, first.stop)
        finally:
            source.close()
        key = sample.pop("__key__", "sample_000000000")
        encoded = [encode(*pair, "npy") for pair in {**sample, "metadata": metadata}.items()]
    except Exception as error:
        raise as_source_error(error, first.file.path) from error
    sizes = {f"{key}.{suffix}": sum(map(len, buffers)) for suffix, buffers, _ in encoded}
    return sum(len(tar_header(name, size)) + size + -size % _BLOCK for name, size in sizes.items())
