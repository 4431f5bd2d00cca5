"""Image files of any mode as 8-bit RGB, or grey: deep and floating-point grey, palettes, transparency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from jepa_lightning.data.files import check_file, printable
from jepa_lightning.preprocessing import WHITE

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
MAX_PIXELS = 89_478_485
"""Most pixels of an image, a quarter of a gigabyte as RGB: from here on Pillow warns of decompression bombs."""
FORMATS = ("JPEG", "PNG", "GIF", "PPM", "BMP", "DIB", "TIFF", "WEBP", "JPEG2000")
"""What is decoded, whatever a file is called. Pillow knows more, and runs Ghostscript for some of it."""
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANES, SAMPLE_FORMAT = 258, 262, 277, 284, 339
"""TIFF tags."""
ImageFile = str | Path | BytesIO
"""The path of an image file, or its content."""


class OutOfRangeError(ValueError):
    """The values of an image have no known range."""


class ChannelError(ValueError):
    """An image has another number of channels than the model takes."""


def name_of(source: ImageFile) -> str:
    """What messages call it."""
    return "the image" if isinstance(source, BytesIO) else printable(str(source))


def content_of(source: ImageFile) -> AbstractContextManager[Any]:
    """An image file, opened for reading.

    Pillow, given a path, would map grey TIFF files into memory and forget that they are to be turned upright.
    """
    return nullcontext(source) if isinstance(source, BytesIO) else Path(check_file(source)).open("rb")


@contextmanager
def opened(source: ImageFile, name: str = "") -> Iterator[Image.Image]:
    """An image file of which only the header was read; errors on the way name it.

    Args:
        source: The file, or its content.
        name: What messages call it; that of the file where it is empty.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is a folder, a pipe, a device, empty, or no image, has more than MAX_PIXELS pixels, or values
            without a known range.
        OSError: If it is damaged.
    """
    name = name or name_of(source)
    try:
        with content_of(source) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has more than {MAX_PIXELS / 1e6:.3g} million pixels: scale it down") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} has no known format: replace it") from error
    except (OutOfRangeError, ChannelError) as error:
        raise type(error)(f"{name} {error}") from error


def read_image(source: ImageFile, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Decode an image file as 8-bit RGB, upright as its EXIF data says.

    The whole file is decoded, at its full size, so that a truncated one fails here. Of several pictures in a file
    (animations, pages) the first is taken.

    Args:
        source: The file, or its content.
        background: Colour behind transparent pixels.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is no image, or one that ``opened`` refuses; ChannelError if it has more bands than a picture.
        OSError: If it is damaged.
    """
    with opened(source) as image:
        check_bands(image)
        rgb = to_rgb(image, background)
    ImageOps.exif_transpose(rgb, in_place=True)
    return rgb


def check_bands(image: Image.Image) -> None:
    """Refuse TIFF files that Pillow would read wrongly without a word.

    Raises:
        ChannelError: If they have bands that it leaves out.
        OutOfRangeError: If their values are signed bytes, or planes of more than 8 bits.
    """
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        samples, bits = tags.get(SAMPLES_PER_PIXEL, 1), max(tags.get(BITS_PER_SAMPLE, (1,)))
        if 2 in tags.get(SAMPLE_FORMAT, ()) and bits == 8:
            raise OutOfRangeError("has values of signed bytes: save unsigned ones")
        if samples > 1 and bits > 8 and tags.get(PLANES, 1) == 2:
            raise OutOfRangeError(f"has {samples} planes of {bits} bits: store the values of a pixel side by side")
        if samples > len(image.getbands()):
            raise ChannelError(f"has {samples} bands: set in_chans of the encoder to {samples}, or save it as RGB")


def to_rgb(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Args:
        image: The image.
        background: Colour behind transparent pixels.

    Raises:
        OutOfRangeError: If its values have no known range.
    """
    if is_deep(image):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    key: Any = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # of 16 bits, which Pillow has made 8
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    layer = image.convert("RGBA")
    rgb = Image.new("RGB", image.size, background)
    rgb.paste(layer, mask=layer.getchannel("A"))
    rgb.info = layer.info  # the orientation
    return rgb


def to_grey(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """An image of any mode in grey: 8 bits (mode L), or from 0 to 1 (mode F) where it has more.

    Args:
        image: The image; colours become their luma.
        background: Colour behind transparent pixels.

    Raises:
        OutOfRangeError: If its values have no known range.
    """
    if is_deep(image) and "transparency" not in image.info:
        grey = Image.fromarray(deep_values(image) / np.float32(255))
        grey.info = image.info
        return grey
    opaque = is_deep(image) or image.has_transparency_data
    return (to_rgb(image, background) if opaque else image).convert("L")


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def deep_values(image: Image.Image) -> Float[np.ndarray, "height width"]:
    """Grey of 12 or 16 bits, as integers, or from 0 to 1, as floats, by the range of the type: from 0 to 255.

    Raises:
        OutOfRangeError: If its values are outside.
    """
    image.load()  # which turns a TIFF file upright
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    largest = 1.0 if image.mode == "F" else 2.0 ** (12 if tags.get(BITS_PER_SAMPLE) == (12,) else 16) - 1
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= largest):  # not a number fails, too
        raise OutOfRangeError(f"has values from {least:g} to {most:g}, not 0 to {largest:g}: scale it, or save 8 bits")
    scaled = values.astype(np.float32) * np.float32(255 / largest)
    return np.float32(255) - scaled if tags.get(PHOTOMETRIC) == 0 else scaled


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Deep grey as grey of 8 bits."""
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    values = deep_values(image)
    rounded = np.rint(255 - values if inverted else values).astype(np.uint8)
    grey = Image.fromarray(255 - rounded if inverted else rounded)
    key: Any = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray((np.asarray(image) != key).astype(np.uint8) * 255))
    grey.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return grey
