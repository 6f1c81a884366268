"""MNIST's files (idx), gzipped or not, and those of the sets that share their names: Fashion-MNIST, KMNIST, QMNIST.

Knows idx; knows nothing of samples.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import numpy as np

from .arrays import BLOCK_BYTES, PackedRows, Rows, mapped
from .image_set import ImageSet, Part
from .listing import Listing

_STEMS = {"train": "train", "test": "t10k"}
_UINT8 = np.dtype(np.uint8)
_MOST_DEFLATED = 1032  # bytes that one deflated byte can become
_DAMAGED = "it may be cut or damaged: download it again"


def find_mnist(listing: Listing, subsets: Sequence[str]) -> ImageSet:
    """Find the images, uint8 (H, W), and labels in ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` and so on.

    The labels are named by their numbers.

    Raises:
        SourceError: a file is missing, damaged, or does not belong to the other.
    """
    closing = contextlib.ExitStack()
    try:
        opened = {
            subset: (
                _open(listing, f"{_STEMS[subset]}-images", 3, closing),
                _open(listing, f"{_STEMS[subset]}-labels", 1, closing),
            )
            for subset in subsets
        }
        parts = []
        for subset, (images, labels) in opened.items():
            n = images.shape[0]
            if n != labels.shape[0]:
                raise listing.refused(f"its {n} {subset} images have {labels.shape[0]} labels", _DAMAGED)
            numbers = np.concatenate([np.empty(0, np.uint8), *_blocks(listing, labels, 0, n)]).astype(np.int64)
            parts.append(Part({"subset": subset}, {"label": numbers}, functools.partial(_read, listing, images)))
    except BaseException:
        closing.close()
        raise
    most = max(int(part.labels["label"].max(initial=9)) for part in parts)
    shapes = {images.shape[1:] for images, _ in opened.values()}
    shape = shapes.pop() if len(shapes) == 1 else None
    return ImageSet({"label": [str(i) for i in range(most + 1)]}, parts, shape, closing=closing)


def _open(listing: Listing, stem: str, dims: int, closing: contextlib.ExitStack) -> Rows:
    names = f"{stem}-idx{dims}-ubyte", f"{stem}.idx{dims}-ubyte"
    entry = listing.find(*names, *(f"{name}.gz" for name in names))
    path, packed = os.path.join(listing.root, entry.path), entry.path.endswith(".gz")
    stream = closing.enter_context(cast(IO[bytes], gzip.open(path, "rb") if packed else open(path, "rb")))
    with _reading(listing, entry.path):
        header = stream.read(4 + 4 * dims)
    if len(header) < 4 + 4 * dims or header[:4] != bytes([0, 0, 8, dims]):
        begin = header[:4].hex(" ") or "nothing"
        problem = f"{entry.path!r} begins with {begin}, not as an idx file of uint8 in {dims} dimension(s)"
        raise listing.refused(problem, _DAMAGED)
    shape = struct.unpack(f">{dims}I", header[4:])
    needed = len(header) + math.prod(shape)
    if (needed > entry.size * _MOST_DEFLATED) if packed else (needed != entry.size):
        problem = f"{entry.path!r} of {entry.size} bytes cannot hold the {needed} that its header tells of"
        raise listing.refused(problem, _DAMAGED)
    return PackedRows(stream, _UINT8, shape, len(header)) if packed else mapped(path, _UINT8, shape, False, len(header))


@contextlib.contextmanager
def _reading(listing: Listing, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise listing.refused(f"{what!r} cannot be unpacked: {error}", _DAMAGED) from error


def _blocks(listing: Listing, rows: Rows, start: int, stop: int) -> Iterator[np.ndarray]:
    block = max(1, BLOCK_BYTES // max(1, math.prod(rows.shape[1:])))
    for first in range(start, stop, block):
        end = min(first + block, stop)
        with _reading(listing, "an idx file"):
            values = np.array(rows[first:end])
            if end == rows.shape[0] and isinstance(rows, PackedRows) and not rows.ends_here():
                raise EOFError("it holds more than its header tells of")
        yield values


def _read(listing: Listing, images: Rows, start: int, stop: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for block in _blocks(listing, images, start, stop):
        yield from (("image", image, {}) for image in block)
