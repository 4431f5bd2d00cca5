"""Image files of any mode as 8-bit RGB: deep and floating-point grey, palettes, transparency."""

from __future__ import annotations

from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jepa_lightning.data.files import check_file, printable
from jepa_lightning.preprocessing import WHITE

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
MAX_PIXELS = 89_478_485
"""Most pixels of an image, a quarter of a gigabyte as RGB: from here on Pillow warns of decompression bombs."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags."""


def read_image(source: str | Path | BytesIO, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Decode an image file as 8-bit RGB, upright as its EXIF data says.

    The whole file is decoded, at its full size, so that a truncated one fails here.

    Args:
        source: The file, or its content.
        background: Colour behind transparent pixels.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is a folder, a pipe, a device, empty, or no image, has more than MAX_PIXELS pixels, or values
            without a known range.
        OSError: If it is damaged.
    """
    if isinstance(source, str | Path):
        # Opened here: Pillow would map grey TIFF files into memory, and forget that they are to be turned upright.
        with Path(check_file(source)).open("rb") as file:
            return _decode(file, printable(str(source)), background)
    return _decode(source, "the image", background)


def _decode(file: BufferedReader | BytesIO, name: str, background: tuple[int, int, int]) -> Image.Image:
    try:
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            rgb = to_rgb(image, background)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS / 1e6:.3g} million pixels: scale it down") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} has no known format: replace it") from error
    except OutOfRangeError as error:
        raise ValueError(f"{name} {error}") from error
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


class OutOfRangeError(ValueError):
    """The values of an image have no known range."""


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Args:
        image: The image.
        background: Colour behind transparent pixels.

    Raises:
        OutOfRangeError: If its values have no known range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, background)
    rgb.paste(layer, mask=layer.getchannel("A"))
    rgb.info = layer.info  # the orientation
    return rgb


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 12 or 16 bits, as integers, or from 0 to 1, as floats, by the range of the type."""
    image.load()  # which turns a TIFF file upright
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    largest = 1.0 if image.mode == "F" else 2.0 ** (12 if tags.get(BITS_PER_SAMPLE) == (12,) else 16) - 1
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= largest):  # not a number fails, too
        raise OutOfRangeError(f"has values from {least:g} to {most:g}, not 0 to {largest:g}: scale it, or save 8 bits")
    scaled = np.rint(values.astype(np.float32) * np.float32(255 / largest)).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == 0 else scaled)
    key: Any = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray((values != key).astype(np.uint8) * 255))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey
