"""A finished dataset compared with its sources."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..format.encoding import encode
from ..format.index import ShardIndex, index_path
from ..format.plain import members, open_tar
from ..format.problems import Problem
from ..storage.cache import ShardCache
from .plan import Piece, ShardPlan
from .run import Conversion
from .shards import close_source, read_piece

_VALIDATED_SAMPLES = 100


def compare_with_sources(conversion: Conversion, directory: str | os.PathLike[str]) -> list[Problem]:
    """Read samples of a finished dataset again, from the sources, and say where the shards hold something else.

    Looks at the first and last sample of every source in a shard, and at some evenly spread over the dataset.

    Args:
        conversion: what was made.
        directory: where the dataset is.
    """
    plan, problems = conversion.plan, []
    spaced = np.linspace(0, plan.n_samples - 1, _VALIDATED_SAMPLES).astype(int)
    spread = set((plan.first_sample + spaced).tolist())
    for shard in plan.shards():
        with tempfile.TemporaryDirectory(prefix="neurofmx-validate-") as cache:
            problems += _compare_shard(shard, Path(directory) / shard.name, spread, ShardCache(cache))
    close_source()
    return problems


def _compare_shard(shard: ShardPlan, path: Path, spread: set[int], cache: ShardCache) -> list[Problem]:
    differing = []
    index = ShardIndex.load(index_path(path))
    with open_tar(path, cache, index) as tar:
        for i, piece, number in _to_compare(shard, spread):
            stored = {suffix: payload for _, suffix, payload in members(index, tar, range(i, i + 1))}
            [(sample, metadata)] = read_piece(replace(piece, start=number, stop=number + 1))
            keys = {sample.pop("__key__", index.sample_keys[i]), index.sample_keys[i]}
            encoded = [encode(*pair, shard.field_format) for pair in {**sample, "metadata": metadata}.items()]
            given = {suffix: b"".join(buffers) for suffix, buffers, _ in encoded} if len(keys) == 1 else {}
            names = sorted(suffix for suffix in stored | given if stored.get(suffix) != given.get(suffix))
            differing += [(index.sample_keys[i], suffix) for suffix in names]
    what = "the shard does not hold what the source gives"
    return [Problem(what, str(path), key, suffix, "convert again") for key, suffix in differing]


def _to_compare(shard: ShardPlan, spread: set[int]) -> Iterator[tuple[int, Piece, int]]:
    """Place in the shard, piece, and number in the piece's source."""
    begin = 0
    for piece in shard.pieces:
        for number in range(piece.start, piece.stop):
            i = begin + number - piece.start
            if number in (piece.start, piece.stop - 1) or shard.first + i in spread:
                yield i, piece, number
        begin += piece.stop - piece.start
