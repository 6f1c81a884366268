"""Presentations and noise on whole batches give what a loop over samples and steps gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st

from neurofmx_wds.errors import NeurofmxError
from neurofmx_wds.stimulus.noise import Noise
from neurofmx_wds.stimulus.presentations import (
    StimulusContrast,
    StimulusDuration,
    StimulusInterval,
    StimulusNoise,
    StimulusRepetition,
    field_of,
    repeat_over_time,
)

KINDS = ("uniform", "gaussian", "poisson", "saltpepper", "phasescrambled")
durations = st.integers(0, 6)


def images_of(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, *shape), np.float32))


def rngs_of(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(n)]


def step_by_step(images: np.ndarray, shown: list[bool], outside: Any) -> np.ndarray:
    """What every sample shows at every step, one after the other."""
    return np.array([[image if on else np.full_like(image, outside) for on in shown] for image in images])


@given(st.data(), st.sampled_from([(3, 4, 5), (4, 5), (7,), ()]), st.sampled_from(["float32", "float16", "uint8"]))
def test_the_parts_add_up_and_hold_what_they_should(data: Any, shape: tuple[int, ...], dtype: str) -> None:
    intro, stimulus, interval, outro = (data.draw(durations) for _ in range(4))
    twice, n = data.draw(st.booleans()), data.draw(st.integers(1, 3))
    parts = [intro, stimulus, interval, stimulus] if twice else [intro, stimulus]
    total = sum(parts) + outro
    if total == 0:
        return
    options: dict[str, Any] = {"non_input_value": data.draw(st.sampled_from([0, 3])), "non_label_index": -100}
    presentation: Any
    if twice:
        presentation = StimulusInterval(total, stimulus, intro, interval, **options)
    else:
        presentation = StimulusDuration(total, stimulus, intro, **options)
    assert presentation.outro_duration == outro and len(presentation.periods) == 1 + twice
    assert sum(parts) + presentation.outro_duration == presentation.n_timesteps
    images = (images_of(n, *shape) * 9).numpy().astype(dtype)
    labels = np.arange(n) + 5
    shown = [bool(i % 2) for i, part in enumerate([*parts, outro]) for _ in range(part)]
    result = presentation({"image": torch.from_numpy(images), "label": torch.from_numpy(labels), "other": 1})
    assert result["image"].dtype == torch.from_numpy(images).dtype and result["other"] == 1
    assert result["image"].shape == (n, total, *shape)
    assert np.array_equal(result["image"].numpy(), step_by_step(images, shown, options["non_input_value"]))
    assert result["label"].dtype == torch.int64 and result["label"].shape == (n, total)
    assert np.array_equal(result["label"].numpy(), step_by_step(labels, shown, -100))
    as_tuple = presentation((torch.from_numpy(images), torch.from_numpy(labels), "path"))
    assert torch.equal(as_tuple[0], result["image"]) and torch.equal(as_tuple[1], result["label"])
    assert as_tuple[2] == "path"


@given(durations, durations, durations, durations, st.integers(1, 30))
def test_what_does_not_fit_is_refused_with_the_sum(a: int, b: int, c: int, d: int, missing: int) -> None:
    for kind, options, total in (
        (StimulusDuration, {"intro_duration": a, "stimulus_duration": b}, a + b),
        (StimulusInterval, {"intro_duration": a, "stimulus_duration": b, "interval_duration": c}, a + 2 * b + c),
        (StimulusContrast, {"intro_duration": a, "stimulus_duration": d}, a + d),
        (StimulusNoise, {"intro_duration": a, "stimulus_duration": d}, a + d),
    ):
        if total - missing >= 1:
            message = rf"= {total} steps do not fit into n_timesteps={total - missing}: -{missing} would remain"
            with pytest.raises(ValueError, match=message):
                kind(total - missing, **options)
        if total:
            assert kind(total, **options).outro_duration == 0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (StimulusDuration, {"n_timesteps": 0, "stimulus_duration": 0, "intro_duration": 0}, "must be positive, not 0"),
        (StimulusDuration, {"intro_duration": -1}, "intro_duration must not be negative, not -1"),
        (StimulusDuration, {"stimulus_duration": 2.5}, "stimulus_duration must be a whole number, not 2.5"),
        (StimulusContrast, {"stimulus_contrast": 1.1}, r"stimulus_contrast must be in \[0, 1\], not 1.1"),
        (
            StimulusNoise,
            {"noise_type": "pink"},
            "unknown noise 'pink'; choose one of uniform, gaussian, poisson, salt",
        ),
        (StimulusNoise, {"ssnr": -0.1}, r"ssnr must be in \[0, 1\]"),
        (StimulusNoise, {"temporal_mode": "correlated"}, '"static" or "dynamic", not \'correlated\''),
        (StimulusNoise, {"noise_seed": "indexed"}, "noise_seed must be a whole number"),
    ],
)
def test_bad_values_are_named(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_repetition_copies_nothing_and_the_others_can_be_written() -> None:
    images, labels = images_of(4, 3, 8, 8), torch.arange(4)
    data, over_time = StimulusRepetition(5)((images, labels))
    assert data.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    assert torch.equal(data, images[:, None].repeat(1, 5, 1, 1, 1))
    assert torch.equal(over_time, labels[:, None].repeat(1, 5))
    with pytest.raises(RuntimeError, match="single memory location"):
        repeat_over_time(images, 5).add_(1)
    data, _ = StimulusDuration(5, 5, 0)((images, labels))
    data[:, 0] += 1
    assert torch.equal(data[:, 1], images) and torch.equal(data[:, 0], images + 1)


def test_memory_is_used_again_only_when_the_batch_is_gone() -> None:
    show = StimulusDuration(4, 2, 1)
    first = show.data(torch.ones(2, 3))
    second = show.data(torch.full((2, 3), 2.0))
    assert first.sum() == 12 and second.sum() == 24
    kept, place = first[:, 1], first.data_ptr()
    del first
    assert show.data(torch.zeros(2, 3)).data_ptr() != place and kept.sum() == 6
    del kept
    assert show.data(torch.zeros(2, 3)).data_ptr() == place


@pytest.mark.parametrize("contrast", [0, 0.25, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_contrast_scales_what_is_shown(contrast: float, dtype: torch.dtype) -> None:
    images = (images_of(3, 2, 4, 4) * 200).to(dtype)
    reference = images.double() * contrast / (255 if dtype == torch.uint8 else 1)
    data = StimulusContrast(4, 2, 1, contrast, non_input_value=0.5).data(images)
    assert data.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    torch.testing.assert_close(data[:, 2].double(), reference, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=0)
    assert torch.equal(data[:, 1], data[:, 2]) and (data[:, [0, 3]] == 0.5).all()
    assert torch.equal(images, (images_of(3, 2, 4, 4) * 200).to(dtype))  # what came in is as it was


def test_labels_are_numbers_that_hold_minus_one() -> None:
    show = StimulusDuration(3, 1, 1)
    for given_labels in (torch.tensor([200, 1], dtype=torch.uint8), torch.tensor([[200], [1]]), [200, 1]):
        assert show.labels(given_labels).tolist() == [[-1, 200, -1], [-1, 1, -1]]
    assert show.labels(torch.tensor([0.5])).tolist() == [[-1, 0.5, -1]]
    assert show.labels(torch.ones(2, 4)).shape == (2, 3, 4)
    with pytest.raises(TypeError, match="labels must be numbers, not str; map them first"):
        show.labels(["cat", "dog"])


def test_a_void_value_that_the_dtype_cannot_hold_is_refused() -> None:
    for value in (-1, 0.5, 256):
        with pytest.raises(ValueError, match=r"torch.uint8 data cannot hold .* convert it first"):
            StimulusDuration(3, 1, 1, non_input_value=value).data(torch.zeros(1, 2, dtype=torch.uint8))


def test_a_presentation_is_a_stage_and_travels() -> None:
    batches = [{"image": images_of(2, 3), "label": torch.arange(2), "__key__": ["a", "b"]}] * 2
    show = pickle.loads(pickle.dumps(StimulusInterval(6, 1, 1, 2)))
    staged = list(wds.DataPipeline(lambda: iter(batches), wds.map(show)))
    assert [batch["label"].tolist() for batch in staged] == [[[-1, 0, -1, -1, 0, -1], [-1, 1, -1, -1, 1, -1]]] * 2
    with pytest.raises(NeurofmxError, match="no field 'label'; it has image"):
        show({"image": torch.zeros(1, 2)})
    with pytest.raises(NeurofmxError, match="not a dict of fields"):
        field_of(torch.zeros(1), "image")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_noise_has_the_asked_power_on_what_is_shown_and_on_nothing(kind: str, mode: Any) -> None:
    images = images_of(6, 3, 48, 48) * torch.linspace(0.5, 2, 6).view(-1, 1, 1, 1)
    for ssnr in (0.9, 0.5):
        show = StimulusNoise(7, 3, 2, kind, ssnr, temporal_mode=mode, non_input_value=0.5)
        data = show.noisy(images, rngs_of(6)).double()
        signal = images.double().var((1, 2, 3), correction=0)
        wanted = signal * (1 - ssnr) / ssnr
        added = data[:, 2:5] - images[:, None]
        power = added.square().mean((2, 3, 4))
        if kind == "saltpepper":  # as far as replacing can
            most = 0.5 * ((images.amax((1, 2, 3), True) - images) ** 2 + (images.amin((1, 2, 3), True) - images) ** 2)
            wanted = torch.minimum(wanted, most.double().mean((1, 2, 3)))
        tolerance = 0.25 if kind == "saltpepper" else 0.05  # few values are replaced
        torch.testing.assert_close(power, wanted[:, None].expand_as(power), rtol=tolerance, atol=0)
        void = data[:, [0, 1, 5, 6]]
        assert (void.std((2, 3, 4)) > 0).all()
        steps = data.flatten(2)
        same = (steps[:, 1:] == steps[:, :-1]).all(-1)
        assert same.tolist() == [[mode == "static" and i not in (1, 4) for i in range(6)]] * 6
        quiet = StimulusNoise(7, 3, 2, kind, ssnr, temporal_mode=mode, non_input_value=0.5, noise_void=False)
        assert (quiet.noisy(images, rngs_of(6))[:, [0, 1, 5, 6]] == 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_belongs_to_the_sample(kind: str) -> None:
    """The same in any batch, dtype by dtype, layout by layout; other numbers, other noise."""
    images, show = images_of(5, 3, 16, 16), StimulusNoise(6, 3, 1, kind, 0.4, temporal_mode="dynamic")
    whole = show.noisy(images, rngs_of(5))
    single = [show.noisy(images[i : i + 1], [np.random.default_rng(i)])[0] for i in (3, 0)]
    assert torch.equal(whole[3], single[0]) and torch.equal(whole[0], single[1])
    laid = show.noisy(images.to(memory_format=torch.channels_last), rngs_of(5))
    assert torch.equal(whole, laid) and laid.movedim(-3, -1).is_contiguous()
    half = show.noisy(images.half(), rngs_of(5))
    assert half.dtype == torch.float16
    bytes_ = (images * 255).to(torch.uint8)
    assert torch.equal(show.noisy(bytes_, rngs_of(5)), show.noisy(bytes_.float() / 255, rngs_of(5)))
    assert not torch.equal(show.noisy(images, rngs_of(6)[1:]), whole)
    seeded = [StimulusNoise(6, 3, 1, kind, 0.4, noise_seed=seed).noisy(images, rngs_of(5)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_scale_and_flat_images(kind: str) -> None:
    images = images_of(2, 3, 32, 32)
    assert torch.equal(
        StimulusNoise(4, 2, 1, kind, 1).noisy(images, rngs_of(2)), StimulusDuration(4, 2, 1).data(images)
    )
    noise = StimulusNoise(4, 2, 1, kind, 0).noisy(images, rngs_of(2))[:, 1]
    assert noise.isfinite().all()
    correlation = [abs(np.corrcoef(noise[i].ravel(), images[i].ravel())[0, 1]) for i in range(2)]
    assert max(correlation) < 0.1  # nothing of the image is left
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert torch.equal(StimulusNoise(4, 2, 1, kind, 0.1).noisy(flat, rngs_of(1))[:, 1], flat)


def test_what_distinguishes_the_kinds() -> None:
    image = np.zeros((1, 64, 64), np.float32)
    image[:, :, 32:] = 1
    frames, rng = image[None].repeat(200, 0), np.random.default_rng(0)

    def noise(**options: Any) -> np.ndarray:
        return Noise(**{"ssnr": 0.5, **options}).on(frames, image, rng) - image

    uniform = noise(kind="uniform")
    assert np.abs(uniform).max() <= np.sqrt(12 * 0.25) / 2 + 1e-6
    photons = noise(kind="poisson")
    assert (photons[..., :32] == 0).all() and np.isclose(photons[..., 32:].var(), 0.5, rtol=0.05)
    mixed = noise(kind="saltpepper", ssnr=0.9, salt_vs_pepper=1.0) + image
    assert set(np.unique(mixed)) == {0, 1} and (mixed[..., 32:] == 1).all()
    assert np.isclose((mixed[..., :32] == 1).mean(), 2 * 0.25 / 9, rtol=0.05)

    def next_to_each_other(added: np.ndarray) -> float:
        return float(np.corrcoef(added[..., :-1].ravel(), added[..., 1:].ravel())[0, 1])

    assert abs(next_to_each_other(noise(kind="gaussian"))) < 0.02
    smooth = noise(kind="gaussian", spatially_correlated=True)
    assert next_to_each_other(smooth) > 0.7
    assert np.isclose(smooth[..., 0, :].var(), smooth[..., 32, :].var(), rtol=0.1)  # the edge is as noisy
    pink = noise(kind="phasescrambled", spectral_exponent=-2.0)
    assert next_to_each_other(pink) > 0.7 and np.allclose(pink.mean((1, 2, 3)), 0, atol=1e-6)
    power = np.square(np.abs(np.fft.rfft2(pink))).mean(0)[0]
    assert np.isclose(power[0, 8] / power[0, 16], 4, rtol=0.4)
    own = noise(kind="phasescrambled", use_image_spectrum=True)
    spectrum = np.abs(np.fft.rfft2(own[0, 0]))
    assert np.isclose(spectrum[0, 1] / spectrum[0, 3], 3, rtol=0.02)  # a square wave's odd harmonics fall as 1/f
    assert spectrum[5:60].max() < 1e-2


def test_noise_over_space_needs_space() -> None:
    for options in ({"kind": "phasescrambled"}, {"kind": "gaussian", "spatially_correlated": True}):
        with pytest.raises(ValueError, match=r"needs images \(…, H, W\), not shape \(5,\)"):
            Noise(**options).on(np.zeros((1, 5), np.float32), np.arange(5, dtype=np.float32), np.random.default_rng(0))
    assert StimulusNoise(3, 1, 1, "uniform").noisy(images_of(2, 5), rngs_of(2)).shape == (2, 3, 5)
    with pytest.raises(ValueError, match="one generator for each of 2 images, not 1"):
        StimulusNoise(3, 1, 1).noisy(images_of(2, 5), rngs_of(1))
    with pytest.raises(TypeError, match="random numbers"):
        StimulusNoise(3, 1, 1).data(images_of(2, 5))
