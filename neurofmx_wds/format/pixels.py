"""The bytes of an image file → its pixels or its size, through pillow, which is imported on use.

Knows nothing of samples or datasets.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NeurofmxError, SourceError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # of pillow's others, some start programs (EPS)
_MOST_PIXELS = 89_478_485  # where pillow warns of decompression bombs
_SHOWN_AS = {
    **{mode: mode for mode in ("L", "LA", "RGB", "RGBA")},
    **{"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"},
}
_KEEP = "mend or remove it, or take files as they are (keep_encoded)"


def decode_image(data: bytes) -> npt.NDArray[np.uint8]:
    """Return an image as it is displayed: rotated by its EXIF orientation, its palette replaced by colours.

    Args:
        data: a JPEG, PNG, PPM, BMP, TIFF, WebP or GIF file.

    Returns:
        uint8: (H, W) of grey and of black and white, (H, W, 3) of colours (also CMYK, which pillow turns into RGB);
        (H, W, 2) or (H, W, 4) where it has an alpha channel or a transparent colour.

    Raises:
        SourceError: it cannot be decoded, has several frames, more than 8 bits a channel, or more than 89 million
            pixels.
        NeurofmxError: pillow is not installed.
    """
    image = _open(data)
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise SourceError(f"its {width} × {height} pixels are more than {_MOST_PIXELS:,}", remedy=_KEEP)
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph with a preview
        raise SourceError("has several frames", remedy=_KEEP)
    if image.mode not in _SHOWN_AS or _has_deep_channels(image, data):
        raise SourceError(f"has more than 8 bits a channel (mode {image.mode})", remedy=_KEEP)
    from PIL import ImageOps

    transparent = "transparency" in image.info
    mode = _SHOWN_AS[image.mode]
    try:
        image = ImageOps.exif_transpose(image)
        return np.array(image.convert({"L": "LA", "RGB": "RGBA"}.get(mode, mode) if transparent else mode))
    except Exception as error:  # a damaged file can raise anything
        raise SourceError(f"cannot be decoded: {error}", remedy=_KEEP) from error


def image_size(data: bytes) -> tuple[str, int, int] | None:
    """Format, width and height of an image file, from its header; None where it is none that can be read.

    Raises:
        NeurofmxError: pillow is not installed.
    """
    try:
        image = _open(data)
    except SourceError:
        return None
    return image.format, *image.size


def _open(data: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise NeurofmxError("pillow is not installed", remedy="pip install 'neurofmx-wds[image]'") from error
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise SourceError(f"has too many pixels: {error}", remedy=_KEEP) from error
    except Exception as error:
        raise SourceError("is no image that can be read", remedy=_KEEP) from error


def _has_deep_channels(image: Any, data: bytes) -> bool:
    """Whether pillow would cut 16 bits to 8 without a word."""
    if image.format == "PNG":
        return data[24] > 8
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,))) > 8
    return image.format == "PPM" and image.tile[0][0].startswith("ppm") and image.tile[0][3][-1] > 255
