"""Noise on images, relative to their power, from one random generator for each image.

Knows arrays; knows nothing of loaders or time, except that an image may be needed several times with different noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """Add noise to frames that show an image.

    The level is the share of the signal in the total power, ``ssnr = signal power / (signal power + noise power)``. The
    signal power is the variance of the values of the image, so that an image gets the same noise in any batch
    (DynVision uses the variance over the batch). ``ssnr=1`` adds no noise; ``ssnr=0`` replaces the image by its mean
    and adds noise with the power of the image (DynVision divides by zero).

    Frames without a stimulus get noise of the same power (in DynVision none, because it uses the power of the empty
    frames).

    Attributes:
        kind: ``"uniform"``; ``"gaussian"``, with ``spatially_correlated=True`` smoothed over space by a Gaussian of
            `correlation_kernel_size` pixels whose standard deviation is a sixth of that; ``"poisson"``: photon counts
            above the darkest value of the image, so that brighter values vary more; ``"saltpepper"``: random values are
            replaced by the largest value of the image (a share `salt_vs_pepper`) or the smallest, as many as the power
            requires and at most all; ``"phasescrambled"``: waves of random phase and zero mean, whose power falls with
            frequency as ``f ** spectral_exponent`` or, with ``use_image_spectrum=True``, equals that of the image,
            averaged over channels.
        ssnr: in [0, 1].
        spatially_correlated: see `kind`.
        correlation_kernel_size: in pixels; see `kind`.
        salt_vs_pepper: in [0, 1]; see `kind`.
        use_image_spectrum: see `kind`.
        spectral_exponent: see `kind`.

    Raises:
        ValueError: the kind is unknown, or a number is out of range.

    Example:
        >>> image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
        >>> frames = np.broadcast_to(image, (5, 3, 4))
        >>> Noise("gaussian", ssnr=0.7).on(frames, image, np.random.default_rng(0)).shape
        (5, 3, 4)
    """

    kind: str = "uniform"
    ssnr: float = 0.5
    spatially_correlated: bool = False
    correlation_kernel_size: int = 7
    salt_vs_pepper: float = 0.5
    use_image_spectrum: bool = False
    spectral_exponent: float = -1.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"unknown noise {self.kind!r}; choose one of {', '.join(_KINDS)}")
        for name in ("ssnr", "salt_vs_pepper"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], not {getattr(self, name)!r}")
        if self.correlation_kernel_size < 1:
            raise ValueError(f"correlation_kernel_size must be positive, not {self.correlation_kernel_size!r}")

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return the image without noise; with ``ssnr=0``, its mean at every pixel."""
        return np.full_like(image, image.mean()) if self.ssnr == 0 else image

    def on(self, frames: np.ndarray, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return frames with independent noise.

        Args:
            frames: (F, …) float32, the frames without noise.
            image: (…) float32, the image; its variance sets the power of the noise.
            rng: the random generator.

        Returns:
            (F, …) float32; a new array.
        """
        signal = float(image.var(dtype=np.float64))
        power = signal if self.ssnr == 0 else signal * (1 - self.ssnr) / self.ssnr
        if power == 0:
            return frames.copy()
        return _KINDS[self.kind](self, frames, image, power, rng)


def _uniform(noise: Noise, frames: np.ndarray, image: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.random(frames.shape, np.float32)
    drawn -= np.float32(0.5)
    return _scaled_onto(frames, drawn, (12 * power) ** 0.5)


def _gaussian(
    noise: Noise, frames: np.ndarray, image: np.ndarray, power: float, rng: np.random.Generator
) -> np.ndarray:
    if not noise.spatially_correlated:
        return _scaled_onto(frames, rng.standard_normal(frames.shape, np.float32), power**0.5)
    _needs_space(frames, noise)
    kernel = _smoothing(noise.correlation_kernel_size)
    margin = len(kernel) - 1
    # Drawn with a margin and cropped, so that the edges have as much noise as the middle.
    drawn = rng.standard_normal((*frames.shape[:-2], frames.shape[-2] + margin, frames.shape[-1] + margin), np.float32)
    for axis in (-2, -1):
        windows = np.lib.stride_tricks.sliding_window_view(drawn, len(kernel), axis)
        drawn = windows @ kernel
    return _scaled_onto(frames, drawn, power**0.5)


@functools.cache
def _smoothing(size: int) -> np.ndarray:
    """Return Gaussian weights over an odd number of pixels, scaled so that smoothing white noise keeps its variance."""
    size += size % 2 == 0
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 6)) ** 2)
    return (weights / np.sqrt((weights**2).sum())).astype(np.float32)


def _poisson(noise: Noise, frames: np.ndarray, image: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    dark = image.min()
    photons = (float(image.mean(dtype=np.float64)) - float(dark)) / power  # for each unit of brightness
    light = np.maximum(frames - dark, 0, dtype=np.float64)
    noisy = rng.poisson(light * photons) / photons - light
    return frames + noisy.astype(np.float32)


def _saltpepper(
    noise: Noise, frames: np.ndarray, image: np.ndarray, power: float, rng: np.random.Generator
) -> np.ndarray:
    salt, pepper, share = image.max(), image.min(), noise.salt_vs_pepper
    of_one = share * np.square(salt - image, dtype=np.float64).mean()
    of_one += (1 - share) * np.square(pepper - image, dtype=np.float64).mean()
    replaced = min(1.0, power / of_one) if of_one else 1.0
    drawn = rng.random(frames.shape, np.float32)
    return np.where(drawn < replaced, np.where(drawn < replaced * share, salt, pepper), frames)


def _phasescrambled(
    noise: Noise, frames: np.ndarray, image: np.ndarray, power: float, rng: np.random.Generator
) -> np.ndarray:
    _needs_space(frames, noise)
    waves = np.fft.rfft2(rng.standard_normal(frames.shape, np.float32))  # of real noise: their phases fit together
    if noise.use_image_spectrum:
        spectrum = np.abs(np.fft.rfft2(image))
        waves *= spectrum.reshape(-1, *spectrum.shape[-2:]).mean(0) / np.maximum(np.abs(waves), 1e-12)
        waves[..., 0, 0] = 0
    else:
        waves *= _falling(frames.shape[-2:], noise.spectral_exponent)
    drawn = np.fft.irfft2(waves, frames.shape[-2:]).astype(np.float32)
    own = np.sqrt(np.square(drawn, dtype=np.float64).mean(tuple(range(1, drawn.ndim)), keepdims=True))
    drawn /= np.maximum(own, 1e-12).astype(np.float32)
    return _scaled_onto(frames, drawn, power**0.5)


@functools.lru_cache(maxsize=16)
def _falling(size: tuple[int, int], exponent: float) -> np.ndarray:
    """Return the amplitude of each wave for power ∝ f ** exponent; 0 at f = 0."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
    frequency[0, 0] = 1
    amplitude = frequency ** (exponent / 2)
    amplitude[0, 0] = 0
    return amplitude.astype(np.float32)


def _scaled_onto(frames: np.ndarray, drawn: np.ndarray, deviation: float) -> np.ndarray:
    """Return ``frames + deviation · drawn``, computed in place in `drawn`."""
    drawn *= np.float32(deviation)
    drawn += frames
    return drawn


def _needs_space(frames: np.ndarray, noise: Noise) -> None:
    if frames.ndim < 3:
        raise ValueError(f"{noise.kind} noise over space needs images (…, H, W), not shape {frames.shape[1:]}")


_KINDS: Mapping[str, Callable[[Noise, np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "uniform": _uniform,
    "gaussian": _gaussian,
    "poisson": _poisson,
    "saltpepper": _saltpepper,
    "phasescrambled": _phasescrambled,
}
