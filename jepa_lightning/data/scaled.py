"""The part of an image file that a training view shows, at the size of the view: no more is decoded than that takes."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.channels import Picture, as_channels, read_picture
from jepa_lightning.data.image_files import ImageFile, name_of, opened
from jepa_lightning.preprocessing import WHITE

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""
Draw = Callable[[int, int], Box]
"""Chooses a part of an image of this height and width."""
JPEG_ENDINGS = (".jpg", ".jpeg")
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
    result. Pixels differ from those of a full decoding by less than what another bilinear filter would change
    (docs/data.md has numbers). Other files are decoded in full.

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
    if _may_be_jpeg(source):
        with opened(source) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L") and channels in (1, 3):
                return _part_of_jpeg(image, source, draw, size, channels)
    return resized_part(read_picture(source, channels, background), draw, size)


def resized_part(picture: Picture, draw: Draw, size: tuple[int, int]) -> Picture:
    """A part of a decoded image, resized bilinearly with antialiasing."""
    place = draw(*F.get_size(picture))
    return F.resized_crop(picture, *place, size=list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)


def _may_be_jpeg(source: ImageFile) -> bool:
    if isinstance(source, BytesIO):
        return source.getvalue()[:2] == b"\xff\xd8"
    return Path(source).suffix.lower() in JPEG_ENDINGS


def _part_of_jpeg(image: Image.Image, source: ImageFile, draw: Draw, size: tuple[int, int], channels: int) -> Picture:
    orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    orientation = orientation if orientation in UPRIGHT else 1
    swapped = orientation in SWAPPED
    width, height = image.size
    box = _stored(draw(*((width, height) if swapped else (height, width))), height, width, orientation)
    rows, columns = reversed(size) if swapped else size
    whole = max(1, min(box[2] // rows, box[3] // columns))
    if whole < 2 and channels == 3 and orientation == 1:
        return _decoded_at_once(image, source, box, size)
    # Pillow takes the largest of 1, 2, 4 and 8 that leaves at least this many pixels.
    image.draft("L" if channels == 1 else "RGB", (max(1, width // whole), max(1, height // whole)))
    scale = max(1, round(width / image.width), round(height / image.height))
    top, left, high, wide = (side / scale for side in box)
    part = (left, top, min(image.width, left + wide), min(image.height, top + high))
    picture = as_channels(_without_exif(image), channels)
    assert isinstance(picture, Image.Image)  # JPEG has 8 bits
    view = picture.resize((columns, rows), Image.Resampling.BILINEAR, part)
    return view.transpose(UPRIGHT[orientation]) if orientation > 1 else view


def _without_exif(image: Image.Image) -> Image.Image:
    """The decoded image, not to be turned: its part is."""
    image.load()
    image.info.pop("exif", None)
    image.getexif().clear()
    return image


def _decoded_at_once(image: Image.Image, source: ImageFile, box: Box, size: tuple[int, int]) -> Tensor:
    """A part of a JPEG file in its own size, by PyTorch's resize, which is three times as fast as Pillow's."""
    top, left, height, width = box
    try:
        pixels = _pixels(source)[:, top : top + height, left : left + width]
    except (AttributeError, NotImplementedError):  # this torchvision has no decoder: the same pixels, copied twice
        part = np.array(image.crop((left, top, left + width, top + height)).convert("RGB"))
        pixels = torch.from_numpy(part).permute(2, 0, 1)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].strip()
        raise OSError(f"{name_of(source)} is damaged ({reason}): replace it") from error
    return torch.nn.functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


def _pixels(source: ImageFile) -> Tensor:
    """A JPEG file in RGB as torchvision's operator decodes it, whose Python function warns that it will go some day."""
    content = source.getvalue() if isinstance(source, BytesIO) else Path(source).read_bytes()
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
