"""Operations on whole batches of images give what a loop over single images gives, by an independent formula."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neurofmx_wds.loading.labels import as_target_transform
from neurofmx_wds.loading.memory import BatchMemory
from neurofmx_wds.loading.transforms import sample_rng
from neurofmx_wds.stimulus.images import (
    CenterCrop,
    ColorJitter,
    Compose,
    Grayscale,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToFloat,
    formatted,
)
from neurofmx_wds.stimulus.presets import CIFAR100, LABEL_GROUPS, STATISTICS, get_data_transform, get_target_transform

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 11, 8), "uint8")
RANDOM = (
    RandomCrop(6, padding=2),
    RandomResizedCrop(7),
    RandomHorizontalFlip(),
    RandomAffine(30, (0.2, 0.3)),
    ColorJitter(0.4, 0.3, 0.5),
)


class Fixed:
    """A generator that draws what it was told."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def random(self, k: int) -> np.ndarray:
        assert k == len(self.values)
        return np.array(self.values)


def rngs_of(n: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(first, first + n)]


def batch(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    images = torch.from_numpy(IMAGES.copy())
    return images if dtype == torch.uint8 else (images.double() / 255).to(dtype)


@given(
    st.sampled_from([torch.uint8, torch.float32, torch.float16, torch.float64, torch.int16]),
    st.sampled_from([None, torch.float16, torch.bfloat16, torch.float32]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_formatting_is_normalising_then_rounding(
    given_type: torch.dtype, wanted: Any, normalized: bool, channels_last: bool, reuse: bool
) -> None:
    images = batch(given_type) if given_type.is_floating_point else batch().to(given_type)
    reference = images.double().numpy() / (255 if given_type == torch.uint8 else 1)
    statistics = STATISTICS["cifar10"] if normalized else None
    if statistics:
        mean, std = (np.reshape(values, (3, 1, 1)) for values in statistics)
        reference = (reference - mean) / std
    out = formatted(images, statistics, wanted, channels_last, BatchMemory() if reuse else None)
    if not normalized and wanted is None:
        assert torch.equal(out, images)
    else:
        assert out.dtype == (wanted or (given_type if given_type.is_floating_point else torch.float32))
        relative = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(out.dtype, 1e-5)
        np.testing.assert_allclose(out.double().numpy(), reference, rtol=relative, atol=relative)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert out.shape == images.shape and out.is_contiguous(memory_format=memory_format)
    assert torch.equal(images.double(), (batch(given_type) if given_type.is_floating_point else batch()).double())


def test_what_cannot_be_formatted_is_refused() -> None:
    for statistics in (((0.5,), (0.5,)), ((0.5,) * 3, (0.5, 0.5, 0.0)), ((0.5,) * 3, (0.5,) * 2)):
        with pytest.raises(ValueError, match=r"does not fit images \(6, 3, 11, 8\)"):
            formatted(batch(), statistics)
    for dtype in (torch.int64, "float16"):
        with pytest.raises(ValueError, match=rf"floating-point type such as torch.float16, not {dtype!r}"):
            formatted(batch(), dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"channels_last needs images \(B, C, H, W\), not \(6, 3\)"):
        formatted(torch.zeros(6, 3), channels_last=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("transform", [*RANDOM, Compose(RANDOM)], ids=lambda each: type(each).__name__)
def test_an_image_gets_the_same_in_any_batch(transform: Any, dtype: torch.dtype) -> None:
    images = batch(dtype)
    whole = transform(images, rngs_of(6))
    for i in range(6):
        torch.testing.assert_close(transform(images[i : i + 1], rngs_of(1, i))[0], whole[i], rtol=0, atol=1e-6)
    assert torch.equal(images, batch(dtype))
    assert not torch.equal(transform(images, rngs_of(6, 1)), whole)
    for rngs in (None, rngs_of(5)):
        with pytest.raises(ValueError, match="one numpy generator for each of the 6 images"):
            transform(images, rngs)


def test_crops_are_cut_where_the_generators_say() -> None:
    images = batch()
    padded = np.pad(IMAGES, ((0, 0), (0, 0), (2, 2), (2, 2)))
    crops = RandomCrop(6, padding=2)(images, rngs_of(6)).numpy()
    for i, rng in enumerate(rngs_of(6)):
        u, v = rng.random(2)
        y, x = int(u * 10), int(v * 7)
        assert np.array_equal(crops[i], padded[i, :, y : y + 6, x : x + 6])
    assert torch.equal(CenterCrop(6)(images), images[:, :, 2:8, 1:7])
    assert torch.equal(CenterCrop(10)(images)[..., 1:9], images[:, :, 0:10])
    assert (CenterCrop(10)(images)[..., [0, 9]] == 0).all()
    assert RandomCrop(12)(images, rngs_of(6)).shape == (6, 3, 12, 12)
    corners = RandomCrop(2)(torch.arange(9).view(1, 1, 3, 3).expand(400, -1, -1, -1), rngs_of(400))[:, 0, 0, 0]
    counts = np.bincount(corners.numpy(), minlength=5)
    assert counts[2] == 0 and counts[[0, 1, 3, 4]].min() > 70


def test_parts_for_resizing_keep_to_area_ratio_and_image() -> None:
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(300, 1, 48, 64).contiguous()
    ramp = torch.cat([ramp, torch.arange(48.0).view(1, 1, 48, 1).expand(300, 1, 48, 64)], 1)
    views = RandomResizedCrop(16, scale=(0.2, 0.6), ratio=(0.5, 2.0))(ramp, rngs_of(300))
    wide = (views[:, 0].amax((1, 2)) - views[:, 0].amin((1, 2))) * 16 / 15
    high = (views[:, 1].amax((1, 2)) - views[:, 1].amin((1, 2))) * 16 / 15
    share, ratio = wide * high / (48 * 64), wide / high
    assert 0.1 < share.min() < 0.3 and 0.45 < share.max() < 0.7
    assert 0.45 < ratio.min() < 0.7 and 1.5 < ratio.max() < 2.2
    assert views.min() >= 0 and views[:, 0].max() <= 63 and views[:, 1].max() <= 47


def test_resizing_is_pillows() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 90, 61), "uint8")
    ours = Resize(23)(torch.from_numpy(pixels)).numpy()
    assert ours.shape == (2, 3, 33, 23) and ours.dtype == np.uint8
    for i in range(2):
        theirs = np.asarray(image.fromarray(np.moveaxis(pixels[i], 0, -1)).resize((23, 33), image.BILINEAR))
        assert np.abs(np.moveaxis(theirs, -1, 0).astype(int) - ours[i]).max() <= 1
    assert Resize((4, 5))(torch.from_numpy(pixels)).shape == (2, 3, 4, 5)


def test_mirroring_has_its_probability() -> None:
    images = batch().repeat(100, 1, 1, 1)
    for p in (0, 0.3, 1):
        out = RandomHorizontalFlip(p)(images, rngs_of(600))
        flipped = (out == images.flip(-1)).all(-1).all(-1).all(-1)
        assert torch.equal(out[~flipped], images[~flipped])
        assert abs(flipped.double().mean() - p) < (0.06 if 0 < p < 1 else 1e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 9), (7, 12)])
def test_turns_and_shifts_are_numpys(height: int, width: int) -> None:
    images = np.random.default_rng(2).random((1, 2, height, width)).astype("float32")
    affine = functools.partial(RandomAffine(180, (0.5, 0.5)), torch.from_numpy(images))
    turned = affine([Fixed(1.0, 0.5, 0.5)]).numpy()  # type: ignore[list-item]
    np.testing.assert_allclose(turned, images[..., ::-1, ::-1], atol=1e-4)
    if height == width:
        turned = affine([Fixed(0.75, 0.5, 0.5)]).numpy()  # type: ignore[list-item]
        np.testing.assert_allclose(turned, np.rot90(images, 1, (2, 3)), atol=1e-4)
    for x, y in ((2, 0), (-1, 3), (0, -2)):
        shifted = affine([Fixed(0.5, (x / width / 0.5 + 1) / 2, (y / height / 0.5 + 1) / 2)]).numpy()  # type: ignore[list-item]
        expected = np.zeros_like(images)
        for row in range(height):
            for column in range(width):
                if 0 <= row - y < height and 0 <= column - x < width:
                    expected[..., row, column] = images[..., row - y, column - x]
        np.testing.assert_allclose(shifted, expected, atol=1e-5)
    both = affine([Fixed(1.0, (2 / width / 0.5 + 1) / 2, 0.5)]).numpy()  # type: ignore[list-item]
    np.testing.assert_allclose(both[..., 2:], images[..., ::-1, ::-1][..., :-2], atol=1e-4)  # turned, then shifted


def test_turns_keep_lengths_on_any_format() -> None:
    """A dot 10 pixels right of the middle of a wide image is 10 pixels from it after any turn; y runs down."""
    image = torch.zeros(1, 1, 31, 61)
    image[0, 0, 15, 40] = 1
    for u in np.linspace(0, 1, 9):
        out = RandomAffine(90)(image, [Fixed(u, 0.5, 0.5)])[0, 0].numpy()  # type: ignore[list-item]
        y, x = (np.average(place, weights=out) for place in np.indices(out.shape))
        assert math.isclose(math.hypot(y - 15, x - 30), 10, abs_tol=0.1)
        assert math.isclose(math.atan2(y - 15, x - 30), math.radians(90 - 180 * u), abs_tol=0.02)


def test_colours_image_by_image() -> None:
    jitter = ColorJitter(0.4, 0.3, 0.5)
    out = jitter(batch(), rngs_of(6)).numpy()
    for i, rng in enumerate(rngs_of(6)):
        brightness, contrast, saturation = 1 + (2 * rng.random(3) - 1) * (0.4, 0.3, 0.5)
        image = np.clip(IMAGES[i] / 255 * brightness, 0, 1)
        luma = np.tensordot((0.299, 0.587, 0.114), image, 1)
        image = np.clip(luma.mean() + (image - luma.mean()) * contrast, 0, 1)
        luma = np.tensordot((0.299, 0.587, 0.114), image, 1)
        np.testing.assert_allclose(out[i], np.clip(luma + (image - luma) * saturation, 0, 1), atol=1e-5)
    gray = ColorJitter(0.4, 0.3, 0.5)(batch()[:, :1], rngs_of(6))
    assert gray.shape == (6, 1, 11, 8)
    torch.testing.assert_close(ColorJitter()(batch(), rngs_of(6)), ToFloat()(batch()), rtol=0, atol=1e-6)
    luma = np.tensordot((0.299, 0.587, 0.114), IMAGES / 255, ((0,), (1,)))
    np.testing.assert_allclose(Grayscale()(batch())[:, 0].numpy(), luma, atol=1e-6)
    assert Grayscale(3)(batch()[:, :1]).shape == (6, 3, 11, 8) and Grayscale()(batch()[:, :1]).dtype == torch.uint8


def test_names_compose_and_normalising_comes_last() -> None:
    names = ("train", "test", "train_mnist", "train_cifar", "train_imagenet", *STATISTICS, "imagenette", "tinyimagenet")
    for name in names:
        images = torch.from_numpy(np.resize(IMAGES, (2, 1 if name == "mnist" else 3, 40, 36)))
        out = get_data_transform(name)(images, rngs_of(2))
        assert out.shape[0] == 2 and out.shape[1] == (1 if "mnist" in name else 3) and out.isfinite().all()
        assert out.shape[2:] == (224, 224) or "image" not in name.replace("tinyimage", "")
    one, other = get_data_transform(["imagenet", "train"]), get_data_transform("train", data_name="imagenet")
    assert one == other and list(one)[-1] == Normalize(*STATISTICS["imagenet"]) and len(one) == 6
    assert get_data_transform("test") == get_data_transform(None) == get_data_transform([]) == Compose(())
    assert get_data_transform(one) == one
    with pytest.raises(ValueError, match="unknown data transform 'cifar'; choose one of train, test, train_mnist,"):
        get_data_transform("cifar")
    for wrong in (3, ["train", 3]):
        with pytest.raises(TypeError, match="must be a name, a function of images, or a list of these, not 3"):
            get_data_transform(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="normalise the same images in 2 different ways"):
        get_data_transform(["cifar10", "cifar100"])


def test_users_functions_and_images_of_any_size() -> None:
    def brighter(images: torch.Tensor, rngs: Any) -> torch.Tensor:
        return images + torch.tensor([rng.random() for rng in rngs], dtype=torch.float32).view(-1, 1, 1, 1)

    mixed = get_data_transform([lambda images: images.float(), brighter, RandomHorizontalFlip()])
    out = mixed(batch(), rngs_of(6))
    for i, rng in enumerate(rngs_of(6)):
        expected = IMAGES[i] + np.float32(rng.random())
        assert np.array_equal(out[i], expected[..., ::-1] if rng.random() < 0.5 else expected)
    sizes = [(3, 300, 260), (3, 256, 400), (3, 500, 333)]
    uneven = [torch.from_numpy(np.resize(IMAGES, size)) for size in sizes]
    transform = get_data_transform(["imagenet", "train"])
    together = transform(uneven, rngs_of(3))
    assert together.shape == (3, 3, 224, 224)
    for i, image in enumerate(uneven):
        torch.testing.assert_close(transform(image[None], rngs_of(1, i))[0], together[i], rtol=0, atol=1e-5)
    assert isinstance(get_data_transform("train_cifar")(uneven[:0] or uneven, rngs_of(3)), torch.Tensor)
    assert isinstance(Compose((ToFloat(),))(uneven), list)
    assert get_data_transform("mnist")(batch()[:, 0]).shape == (6, 1, 11, 8)


def test_groups_of_labels_are_numbered_in_order() -> None:
    assert len(set(CIFAR100)) == 100 and list(CIFAR100) == sorted(CIFAR100)
    invertebrates = get_target_transform("cifar100_invertebrates")
    assert invertebrates is not None
    assert invertebrates.labels == (6, 7, 14, 18, 24, 26, 45, 77, 79, 99)
    assert [invertebrates(label) for label in invertebrates.labels] == list(range(10))
    assert type(invertebrates(14)) is int and type(invertebrates(np.int64(14))) is int
    labels = torch.tensor([[99, 6], [45, 6]])
    assert invertebrates(labels).tolist() == [[9, 0], [6, 0]] and invertebrates(labels).dtype == torch.int64
    assert invertebrates(labels.numpy()).tolist() == [[9, 0], [6, 0]]
    assert LABEL_GROUPS["cifar100"]["alphabet"] == (0, 8, 18, 29, 31, 33, 35, 37, 38, 44, 51, 53, 63, 69, 82)
    for group in (group for groups in LABEL_GROUPS.values() for group in groups.values()):
        assert list(group) == sorted(set(group))
    for label in (5, 100, -1):
        with pytest.raises(ValueError, match=rf"label {label} is not in cifar100_invertebrates, which has \[6, 7"):
            invertebrates(torch.tensor([6, label]))
    assert get_target_transform(None) is None and get_target_transform("cifar100_all") is None
    with pytest.raises(ValueError, match="unknown group of labels 'cifar100_fish'; choose one of cifar100_inv"):
        get_target_transform("cifar100_fish")
    of_a_label = as_target_transform(invertebrates)
    assert of_a_label is not None and of_a_label(7) == 1


def test_random_numbers_are_pinned_and_use_every_bit_of_the_seed() -> None:
    """A checkpoint outlives a new version only if its augmentation stays; and no seed is another one in disguise."""
    pinned = {
        0: 0.1313076443732637,
        42: 0.7036993681723742,
        -1: 0.8992788236110899,
        2**63: 0.47141075945795996,
        2**64 - 1: 0.8992788236110899,
        -(2**63): 0.47141075945795996,
    }
    assert {seed: sample_rng(seed, 3, 7).random() for seed in pinned} == pinned
    larger = (1, 1 + 2**64, 1 - 2**65, 1 + 2**65, 1 + 2**127, 1 - 2**128, 2**128, -(2**128), 0)
    assert len({sample_rng(seed, 3, 7).random() for seed in larger}) == len(larger)
