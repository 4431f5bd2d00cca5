"""The part of an image file that a training view shows, at the size of the view: no more is decoded than that takes."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.channels import Picture, as_channels, read_picture
from jepa_lightning.data.image_files import MAX_PIXELS, ImageFile, name_of, opened
from jepa_lightning.preprocessing import WHITE

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""
Draw = Callable[[int, int], Box]
"""Chooses a part of an image of this height and width."""
JPEG_ENDINGS, SOI = (".jpg", ".jpeg"), b"\xff\xd8"
"""What names of JPEG files end with, and what the files begin with."""
HEADER = struct.Struct(">BHBHHB")
"""Marker and length of a segment; of a frame also precision, height, width, and number of components."""
FRAMES = {0xC0, 0xC1, 0xC2}
"""Markers of frames that everything decodes: baseline, extended, progressive."""
WITH_MEANING = {0xD8, 0xD9, 0xDA, 0xE1, 0xEE}
"""Markers that end the header, or may turn the picture (EXIF) or say other colours (Adobe)."""
LARGEST = 4 * MAX_PIXELS
"""Bytes; a file of more is not read at once."""
ORIENTATION = 0x0112
"""EXIF tag."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns a picture of each orientation upright (EXIF 2.32, 4.6.5 A)."""
COLUMNS_TURNED, ROWS_TURNED, SWAPPED = {2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}
"""Orientations whose stored columns, or rows, run the other way; and those whose rows are columns."""


def read_part(
    source: ImageFile, draw: Draw, size: tuple[int, int], channels: int = 3, background: tuple[int, int, int] = WHITE
) -> Picture:
    """A part of an image, resized bilinearly with antialiasing.

    A JPEG file is decoded at a half, a quarter or an eighth of its size where the part is then still as large as the
    result. Pixels of photographs then differ from those of a full decoding by 0.1 to 3 of 255 in the mean, 99 % of them
    by at most 20; without such a scale by at most 1. Other files are decoded in full.

    Args:
        source: The file, or its content.
        draw: Chooses the part, in pixels of the whole image as it is shown.
        size: Height and width of the result in pixels.
        channels: How many.
        background: Colour behind transparent pixels.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is no image, or of no use.
        OSError: If it is damaged.
    """
    if channels in (1, 3) and (content := _jpeg(source)):
        if channels == 3 and (plain := plain_size(content)):
            box = draw(*plain)
            if _reduction(box, size) < 2 and (view := _decoded_at_once(content, box, size)) is not None:
                return view
            draw = partial(_drawn, box)  # once for each image
        with opened(BytesIO(content), name_of(source)) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return _part_of_jpeg(image, content, draw, size, channels)
    return resized_part(read_picture(source, channels, background), draw, size)


def resized_part(picture: Picture, draw: Draw, size: tuple[int, int]) -> Picture:
    """A part of a decoded image, resized bilinearly with antialiasing."""
    place = draw(*F.get_size(picture))
    return F.resized_crop(picture, *place, size=list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


def _jpeg(source: ImageFile) -> bytes:
    """The content of a JPEG file, read at once; empty for others, and for one that is too large to be an image."""
    if isinstance(source, BytesIO):
        return source.getvalue() if source.getvalue().startswith(SOI) else b""
    if not str(source).lower().endswith(JPEG_ENDINGS):
        return b""
    try:
        file = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
    except OSError:  # said by whoever reads it next
        return b""
    try:
        status = os.fstat(file)
        usual = stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST
        content = os.read(file, status.st_size) if usual else b""
    finally:
        os.close(file)
    return content if content.startswith(SOI) else b""


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG file in which nothing needs Pillow: grey or YCbCr of 8 bits, upright; else None.

    Args:
        content: The file, whose segments are looked through up to the frame header (ITU-T T.81, B.1.1.4, B.2.2).
    """
    position = 2
    while position + 10 < len(content) and content[position] == 0xFF:
        marker, length, precision, height, width, components = HEADER.unpack_from(content, position + 1)
        if marker in FRAMES:
            usual = precision == 8 and components in (1, 3) and 0 < height * width <= MAX_PIXELS
            return (height, width) if usual else None
        if marker in WITH_MEANING or not 0xC0 < marker < 0xFF:
            return None
        position += 2 + length
    return None


def _drawn(box: Box, height: int, width: int) -> Box:
    return box


def _reduction(box: Box, size: tuple[int, int]) -> int:
    """By how much a part may be smaller and still be as large as the result."""
    return max(1, min(box[2] // size[0], box[3] // size[1]))


def _part_of_jpeg(image: Image.Image, content: bytes, draw: Draw, size: tuple[int, int], channels: int) -> Picture:
    orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    orientation = orientation if orientation in UPRIGHT else 1
    swapped = orientation in SWAPPED
    width, height = image.size
    box = _stored(draw(*((width, height) if swapped else (height, width))), height, width, orientation)
    rows, columns = reversed(size) if swapped else size
    whole = _reduction(box, (rows, columns))
    if whole < 2 and channels == 3 and orientation == 1 and (view := _decoded_at_once(content, box, size)) is not None:
        return view
    # Pillow takes the largest of 1, 2, 4 and 8 that leaves at least this many pixels.
    image.draft("L" if channels == 1 else "RGB", (max(1, width // whole), max(1, height // whole)))
    scale = max(1, round(width / image.width), round(height / image.height))
    top, left, high, wide = (side / scale for side in box)
    part = (left, top, min(image.width, left + wide), min(image.height, top + high))
    picture = as_channels(_without_exif(image), channels)
    assert isinstance(picture, Image.Image)  # JPEG has 8 bits
    small = picture.resize((columns, rows), Image.Resampling.BILINEAR, part)
    return small.transpose(UPRIGHT[orientation]) if orientation > 1 else small


def _without_exif(image: Image.Image) -> Image.Image:
    """The decoded image, not to be turned: its part is."""
    image.load()
    image.info.pop("exif", None)
    image.getexif().clear()
    return image


def _decoded_at_once(content: bytes, box: Box, size: tuple[int, int]) -> Tensor | None:
    """A part of a JPEG file in its own size, by PyTorch's resize, which is three times as fast as Pillow's.

    None if this torchvision has no decoder.
    """
    try:
        pixels = _pixels(content)
    except (AttributeError, NotImplementedError):
        return None
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise OSError(f"the file is damaged ({reason}): replace it") from error
    top, left, height, width = box
    part = pixels[:, top : top + height, left : left + width].unsqueeze(0)
    return torch.nn.functional.interpolate(part, size, mode="bilinear", antialias=True)[0]


def _pixels(content: bytes) -> Tensor:
    """A JPEG file in RGB as torchvision's operator decodes it, whose Python function warns that it will go some day."""
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Tensor = torch.ops.image.decode_jpeg(data, ImageReadMode.RGB.value, False)
    return pixels


def _stored(box: Box, height: int, width: int, orientation: int) -> Box:
    """Where a part of the upright image is in the file.

    Args:
        box: The part.
        height: Of the stored image.
        width: Likewise.
        orientation: From 1 to 8, as in EXIF.
    """
    top, left, high, wide = box
    if orientation in SWAPPED:
        top, left, high, wide = left, top, wide, high
    if orientation in ROWS_TURNED:
        top = height - top - high
    if orientation in COLUMNS_TURNED:
        left = width - left - wide
    return top, left, high, wide
