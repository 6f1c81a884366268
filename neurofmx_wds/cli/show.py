"""Single samples as lines of text, for a look by eye: the lines that `read` shows.

Knows readers and what values can be; knows nothing of order or recordings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..errors import NeurofmxError
from ..format.groups import linked_group
from ..format.info import count, human_size
from ..format.pixels import image_size
from ..format.shards import open_shards
from ..loading.readers import ShardReader
from ..loading.selection import choose_samples
from ..loading.window_reader import WindowReader
from ..loading.windows import Windows


def sample_lines(
    shard_dir: str | os.PathLike[str],
    most: int | None = None,
    width: int | None = None,
    windows: Windows | None = None,
) -> Iterator[str]:
    """Describe the samples of a dataset, in the order in which they are stored; of a linked group, the group's only.

    Nothing that a sample holds can act on a terminal: what cannot be printed is written as an escape.

    Args:
        shard_dir: a directory, a shard, or a pattern.
        most: how many samples; None: all.
        width: columns to cut lines to; None: as long as they are.
        windows: how windows are cut from segments; None: the samples as they are stored.

    Yields:
        For each sample its key; for each field a line with its text or JSON, its format, width and height (an image
        file; with pillow), its shape and dtype (an array), or its size in bytes.

    Raises:
        FileNotFoundError: there is no such directory or shard.
        ShardError: no shards, or a sample is damaged.
        GroupError: a linked group is damaged.
    """
    shards = open_shards(shard_dir)
    labels = None
    if windows is None:
        selected, labels = choose_samples(shards, None, None, None)
        reader: ShardReader | WindowReader = ShardReader(shards, selected=selected)
    else:
        reader = WindowReader(ShardReader(shards), windows)
    total = int(reader.counts.sum())
    shown = total if most is None else min(most, total)
    for i in range(shown):
        [sample] = reader.read_samples(np.array([i]))
        if labels is not None:  # as the loaders deliver it
            sample["label"] = labels[i]
        yield _cut(_escaped(sample.pop("__key__")), width)
        longest = max(map(len, sample), default=0)
        for name, value in sample.items():
            yield _cut(f"  {_escaped(name.ljust(longest))}  {_escaped(_told(value, width))}", width)
    group = linked_group(shards.manifest)
    whole = count(total, "sample" if windows is None else "window") + (f" of the group {group.name!r}" if group else "")
    yield _cut(f"{shown:,} of {whole} in {count(len(shards.paths), 'shard')}", width)


def _told(value: Any, width: int | None) -> str:
    if isinstance(value, str):
        return value[:width]
    if isinstance(value, (bytes, bytearray)):
        return _of_bytes(bytes(value))
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value} ({value.dtype})" if value.ndim == 0 else f"{' × '.join(map(str, value.shape))} {value.dtype}"
    if isinstance(value, Mapping):
        value = {name: _told(each, width) if isinstance(each, np.ndarray) else each for name, each in value.items()}
    return json.dumps(value, ensure_ascii=False, default=_type_name)


def _of_bytes(data: bytes) -> str:
    try:
        found = image_size(data)
    except NeurofmxError:  # no pillow
        found = None
    size = human_size(len(data))
    return f"{found[1]} × {found[2]} pixels, {found[0]}, {size}" if found else size


def _type_name(value: object) -> str:
    return f"<{type(value).__name__}>"


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else line[: width - 1] + "…"
