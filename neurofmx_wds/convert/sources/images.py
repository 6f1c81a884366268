"""Sets of labelled images found in a directory; a folder of image files for each class is read here.

The other files that such sets come in are known to `.mnist` and `.cifar`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import SourceError
from ...format.encoding import Stored
from ...format.pixels import SUFFIXES, decode_image
from .cifar import find_cifar
from .image_set import ImageSet, ImageSource, Part
from .listing import Entry, Listing, list_files
from .mnist import find_mnist
from .settings import ImageConfig

_SUBSETS_NAMED = {"train", "training", "test", "val", "valid", "validation"}


def open_images(path: str | os.PathLike[str], kind: str, config: ImageConfig) -> ImageSource:
    """Open a directory of images.

    Args:
        path: of MNIST's idx files, of the CIFAR batches (python version), or of a folder for each class.
        kind: "mnist", "cifar10", "cifar100" or "imagefolder".
        config: ``subset``, ``keep_encoded`` and ``allow_missing`` choose.

    Raises:
        SourceError: as :func:`~.listing.list_files`; or files are missing, damaged, or not what their names say.
    """
    listing = list_files(path)
    if kind == "imagefolder":
        return ImageSource(listing, find_folders(listing, config))
    subsets = ("train", "test") if config.subset == "all" else (config.subset,)
    if kind == "mnist":
        return ImageSource(listing, find_mnist(listing, subsets))
    return ImageSource(listing, find_cifar(listing, kind, subsets))


def find_folders(listing: Listing, config: ImageConfig) -> ImageSet:
    """Find the image files in each class's folder and below it; the classes are numbered in the order of their names.

    Raises:
        SourceError: there are none, or files that are no image by their name and may not be left out; or the folders
            are subsets, not classes.
    """
    images = [entry for entry in listing.files if "/" in entry.path and entry.path.lower().endswith(SUFFIXES)]
    others = sorted(set(listing.files) - set(images))
    if others and not config.allow_missing:
        problem = f"holds {len(others):,} files that are no images in a class's folder, such as {others[0].path!r}"
        raise listing.refused(problem, "move them away, or leave them out with allow_missing (--allow-missing)")
    classes = sorted({_class_of(entry) for entry in images})
    if not classes or set(classes) <= _SUBSETS_NAMED:
        problem = f"has the folders {', '.join(classes)}: subsets, not classes" if classes else "has no images"
        raise listing.refused(problem, "give the directory that holds a folder of images for each class")
    odd = [name for name in classes if not name.isprintable()]
    if odd:
        raise listing.refused(f"the class {odd[0]!r} has a name that cannot be printed", "rename it")
    numbers = {name: i for i, name in enumerate(classes)}
    labels = np.array([numbers[_class_of(entry)] for entry in images], np.int64)

    def read(start: int, stop: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        for entry in images[start:stop]:
            data = listing.read(entry)
            about = {"path": entry.path}
            if config.keep_encoded:
                yield f"image{os.path.splitext(entry.path)[1].lower()}", Stored(data), about
            else:
                yield "image", _decoded(listing, entry, data), about

    left_out = {"no images in a class's folder": len(others)}
    return ImageSet({"label": classes}, [Part({}, {"label": labels}, read)], left_out=left_out)


def _class_of(entry: Entry) -> str:
    return entry.path.partition("/")[0]


def _decoded(listing: Listing, entry: Entry, data: bytes) -> npt.NDArray[np.uint8]:
    try:
        return decode_image(data)
    except SourceError as error:
        raise listing.refused(f"{entry.path!r} {error.problem}", error.remedy or "") from error
