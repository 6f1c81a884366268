"""Names of the usual operations on the images and labels of well-known datasets.

Knows the operations on images; knows nothing of loaders.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..loading.transforms import takes_rng
from .images import (  # fmt: skip
    CenterCrop,
    ColorJitter,
    Compose,
    Grayscale,
    ImageTransform,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)

Named = str | Callable[..., Any]
Transforms = Named | list[Named] | tuple[Named, ...]

# Mean and standard deviation of each channel over the training images, in units of [0, 1].
STATISTICS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_IMAGENET = Normalize(*STATISTICS["imagenet"])

TRANSFORMS: Mapping[str, tuple[ImageTransform, ...]] = {
    "train": (RandomAffine(10, (0.1, 0.1)), RandomHorizontalFlip(), ColorJitter(0.2, 0.2, 0.2)),
    "test": (),
    "train_mnist": (RandomAffine(10, (0.1, 0.1)), Grayscale()),
    "train_cifar": (RandomCrop(32, padding=4), RandomHorizontalFlip()),
    "train_imagenet": (RandomResizedCrop(224), RandomHorizontalFlip()),
    "mnist": (Grayscale(), Normalize(*STATISTICS["mnist"])),
    "cifar10": (Normalize(*STATISTICS["cifar10"]),),
    "cifar100": (Normalize(*STATISTICS["cifar100"]),),
    "tinyimagenet": (_IMAGENET,),
    "imagenet": (Resize(256), CenterCrop(224), _IMAGENET),
    "imagenette": (Resize(256), CenterCrop(224), _IMAGENET),
}

# The fine labels 0…99 in their order, the alphabet's: A. Krizhevsky, "Learning multiple layers of features from tiny
# images", 2009, and the file `meta` of the dataset's own distribution.
CIFAR100 = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)


def _of_cifar100(names: str) -> tuple[int, ...]:
    return tuple(sorted(map(CIFAR100.index, names.split())))


# Dataset → group → the labels in it, with the names and members that users of DynVision know; the loaders take
# it as groups=. The invertebrates are CIFAR-100's two superclasses "insects" and "non-insect invertebrates".
LABEL_GROUPS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "cifar100": {
        "invertebrates": _of_cifar100("bee beetle butterfly caterpillar cockroach crab lobster snail spider worm"),
        "alphabet": _of_cifar100(
            "apple bicycle caterpillar dinosaur elephant forest girl house kangaroo lizard mushroom orange porcupine "
            "rocket sunflower"
        ),
    },
    "mnist": {"01": (0, 1), "38": (3, 8), "89": (8, 9)},
    "imagenet": {"imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)},
}
_WHOLE_DATASETS = ("mnist", "cifar10", "cifar100", "tinyimagenet", "imagenet", "imagenette")


def get_data_transform(transform: Transforms | None = None, data_name: str | None = None) -> Compose:
    """Return named operations on batches of images.

    Args:
        transform: ``"train"`` (rotate by up to 10°, shift by up to a tenth, flip, jitter colours), ``"test"`` (no
            operation), ``"train_mnist"``, ``"train_cifar"`` (random crop after padding by 4, flip),
            ``"train_imagenet"`` (crop and resize to 224, flip); the name of a dataset, for the operations that its
            images always need: resizing and cropping if their sizes vary, and normalisation by its statistics; a
            function of images, or of images and their generators; or a list of these, applied in order.
            Normalisation is always applied last.
        data_name: a dataset whose operations come first: ``("train", "imagenet")`` means ``["imagenet", "train"]``.

    Returns:
        A function ``f(images, rngs)`` of images (B, C, H, W) and B numpy generators; iterating over it yields its
        operations. As `data_transform` of a loader, its random numbers depend only on seed, epoch and sample.

    Raises:
        ValueError: a name is unknown, or the operations normalise in two different ways.
        TypeError: an entry is neither a name nor a function.

    Example:
        >>> images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
        >>> rngs = [np.random.default_rng(i) for i in range(2)]
        >>> get_data_transform(["train", "cifar100"])(images, rngs).shape
        torch.Size([2, 3, 32, 32])
    """
    wanted = list(transform) if isinstance(transform, (list, tuple)) else [transform]
    named = [name for name in [data_name, *wanted] if name is not None]
    steps = [step for name in named for step in _steps(name)]
    last = dict.fromkeys(step for step in steps if isinstance(step, Normalize))
    if len(last) > 1:
        raise ValueError(f"{named!r} would normalise the same images in {len(last)} different ways; choose one")
    return Compose((*(step for step in steps if not isinstance(step, Normalize)), *last))


def _steps(name: Named) -> Sequence[Any]:
    if isinstance(name, Compose):
        return name.steps
    if isinstance(name, str):
        return _found(name, TRANSFORMS, "data transform")
    if not callable(name):
        raise TypeError(f"a transform must be a name, a function of images, or a list of these, not {name!r}")
    return (name if takes_rng(name) else functools.partial(_without_rngs, name),)


def _without_rngs(function: Callable[[Any], Any], images: Any, rngs: Any = None) -> Any:
    return function(images)


def _found(name: str, among: Mapping[str, Any], what: str) -> Any:
    if name not in among:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(among)}")
    return among[name]


@dataclass(frozen=True)
class LabelGroup:
    """Map some labels of a dataset to 0…n−1, in ascending order.

    Attributes:
        name: name of the group.
        labels: the labels in the dataset, ascending.

    Example:
        >>> LabelGroup("mnist_38", (3, 8))(torch.tensor([8, 3, 3]))
        tensor([1, 0, 0])
    """

    name: str
    labels: tuple[int, ...]

    def __call__(self, label: Any) -> Any:
        """Return the index of a label in the group: int → int; tensor or array → int64 of the same shape.

        Raises:
            ValueError: a label is not in the group.
        """
        if isinstance(label, torch.Tensor):
            return torch.from_numpy(self(label.numpy()))
        values = np.asarray(label)
        place = np.searchsorted(self.labels, values)
        outside = np.take([*self.labels, -1], place) != values
        if outside.any():
            raise ValueError(
                f"label {values[outside].flat[0]} is not in {self.name}, which has {list(self.labels)}; "
                "select its samples with select="
            )
        return place if isinstance(label, np.ndarray) else int(place)


def get_target_transform(transform: str | None) -> LabelGroup | None:
    """Return the mapping from the labels of a group of classes to 0…n−1, for training on that group alone.

    A loader with ``group="cifar100/invertebrates", groups=LABEL_GROUPS`` does the same and loads only the samples of
    the group. DynVision's function of this name maps in the opposite direction, from the class numbers of a directory
    of images back to the labels of the dataset; shards already hold the labels of the dataset.

    Args:
        transform: a name such as ``"cifar100_invertebrates"``; ``"<dataset>_all"`` and None need no mapping.

    Returns:
        A function for `target_transform` of a loader, of one label or of a tensor or array of labels; or None.

    Raises:
        ValueError: no group has this name; the message lists the names.

    Example:
        >>> invertebrates = get_target_transform("cifar100_invertebrates")
        >>> [CIFAR100[label] for label in invertebrates.labels][:3], invertebrates(14)
        (['bee', 'beetle', 'butterfly'], 2)
    """
    if transform is None or transform in {f"{name}_all" for name in _WHOLE_DATASETS}:
        return None
    known = {f"{dataset}_{name}": labels for dataset, groups in LABEL_GROUPS.items() for name, labels in groups.items()}
    return LabelGroup(transform, _found(transform, known, "group of labels"))
