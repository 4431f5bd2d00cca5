"""Images with any number of channels: grey, colour, the bands of a TIFF file, arrays of NumPy."""

from __future__ import annotations

import logging
import math
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.files import check_file
from jepa_lightning.data.image_files import (
    EXTENSIONS,
    MAX_PIXELS,
    ChannelError,
    ImageFile,
    check_bands,
    content_of,
    name_of,
    opened,
    to_grey,
    to_rgb,
)
from jepa_lightning.preprocessing import WHITE

ARRAYS = {".npy", ".npz"}
PICTURE_EXTENSIONS = EXTENSIONS | ARRAYS
MAX_VALUES = 4 * MAX_PIXELS
"""Most values of an array."""
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Readers for the versions of NumPy's format that hold numbers."""
BEGINNINGS = {
    b"\x93NUMP": ".npy",
    b"PK\3\4": ".npz",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"II+\0": ".tif",
    b"MM\0+": ".tif",
}
Picture = Image.Image | Tensor
"""A PIL image, RGB or L; or values (C, H, W), uint8, or float32: those of integers from 0 to 1, others as they are."""


def read_picture(source: ImageFile, channels: int = 3, background: tuple[int, int, int] = WHITE) -> Picture:
    """An image file with a number of channels.

    Pictures are turned upright. One channel of a colour picture is its luma; three of a grey one are equal. Other
    numbers of channels are those of the file: an array (C, H, W) in .npy, or alone in .npz, or the bands or pages of a
    TIFF file, whose integers are read by the range of their type.

    Args:
        source: The file, or its content.
        channels: How many.
        background: Colour behind transparent pixels, where there are one or three channels.

    Raises:
        FileNotFoundError: No such file.
        ChannelError: If it has another number of channels.
        ValueError: If it is no image, too large, or its values are of no use.
        OSError: If it is damaged.
    """
    kind = _kind(source)
    if kind in ARRAYS:
        return _as_picture(_read_array(source, kind), channels, name_of(source))
    if kind == ".tif" and _needs_tifffile(source, channels):
        return _as_picture(_read_bands(source, channels), channels, name_of(source))
    with opened(source) as image:
        return as_channels(image, channels, background)


def as_channels(image: Image.Image, channels: int, background: tuple[int, int, int] = WHITE) -> Picture:
    """A PIL image of any mode, upright, with a number of channels.

    Args:
        image: The image.
        channels: How many.
        background: Colour behind transparent pixels, where there are one or three channels.

    Raises:
        ChannelError: If it has another number of channels.
    """
    if channels in (1, 3):
        converted = (to_rgb if channels == 3 else to_grey)(image, background)
        ImageOps.exif_transpose(converted, in_place=True)
        return F.pil_to_tensor(converted) if converted.mode == "F" else converted
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    _check_channels(len(image.getbands()), channels)
    return torch.from_numpy(np.array(ImageOps.exif_transpose(image))).permute(2, 0, 1)


def channels_of(picture: Picture) -> int:
    """How many channels it has."""
    return len(picture) if isinstance(picture, Tensor) else len(picture.getbands())


def _kind(source: ImageFile) -> str:
    """The extension that says how to read it; empty for a picture."""
    if not isinstance(source, BytesIO):
        suffix = Path(source).suffix.lower()
        return ".tif" if suffix == ".tiff" else suffix if suffix in (".tif", *ARRAYS) else ""
    start = source.getvalue()[:5]
    return next((kind for beginning, kind in BEGINNINGS.items() if start.startswith(beginning)), "")


def _check_channels(found: int, channels: int) -> None:
    """Say what to do if the numbers differ.

    Raises:
        ChannelError: If they do.
    """
    if found != channels:
        raise ChannelError(
            f"has {found} channel{'s' * (found != 1)}, the model takes {channels}: set in_chans of the encoder to "
            f"{found}, or give images of {channels}"
        )


# ---------------------------------------------------------------------- arrays


def _read_array(source: ImageFile, kind: str) -> np.ndarray:
    """The array in a file of NumPy; nothing is unpickled, and no more is read than its header says.

    Raises:
        ValueError: If there is not one array of numbers, or it is too large or cut off.
    """
    name = name_of(source)
    with content_of(source) as file:
        try:
            if kind == ".npy":
                return _read_npy(file)
            with zipfile.ZipFile(file) as members:
                names = members.namelist()
                if len(names) != 1:
                    listed = ", ".join(member.removesuffix(".npy") for member in names[:5])
                    raise ValueError(f"holds {len(names)} arrays ({listed}): save one in each file")
                with members.open(names[0]) as member:
                    return _read_npy(member)
        except (ValueError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{name} {error}") from error


def _read_npy(file: Any) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = HEADERS[version](file)
    except (ValueError, KeyError) as error:
        raise ValueError("is no array of numbers, or damaged: save it with np.save") from error
    if dtype.hasobject or dtype.fields:
        raise ValueError(f"is an array of {dtype}, not of numbers: save uint8, uint16 or float32")
    count = math.prod(shape)
    if count > MAX_VALUES or math.prod(shape[-2:]) > MAX_PIXELS:
        raise ValueError(f"is too large ({' x '.join(map(str, shape))}): cut it into pieces")
    content = file.read(count * dtype.itemsize)
    if len(content) < count * dtype.itemsize:
        raise ValueError("is cut off: replace it")
    values = np.frombuffer(content, dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _as_picture(values: np.ndarray, channels: int, name: str) -> Picture:
    """An array (C, H, W), or (H, W) for one channel, as a picture.

    Raises:
        ChannelError: If it has another number of channels.
        ValueError: If it has another shape or type, or values that are not finite.
    """
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"{name} is an array of shape {values.shape}: give (C, H, W)")
    try:
        _check_channels(len(values), channels)
    except ChannelError as error:
        turned = "; it may be (H, W, C): save it as (C, H, W)" if values.shape[-1] == channels else ""
        raise ChannelError(f"{name}, an array of shape {values.shape}, {error}{turned}") from error
    values = values.astype(values.dtype.newbyteorder("="))  # a copy that may be written, in this machine's byte order
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        pixels = np.ascontiguousarray(values.transpose(1, 2, 0))
        as_pil = {1: lambda: Image.fromarray(pixels[..., 0]), 3: lambda: Image.fromarray(pixels)}
        return as_pil[channels]() if channels in as_pil else torch.from_numpy(pixels).permute(2, 0, 1)
    if values.dtype == np.uint16:
        return torch.from_numpy(values.astype(np.float32) / np.float32(65535))
    if values.dtype.kind != "f":
        raise ValueError(f"{name} has values of type {values.dtype}: save uint8, uint16 or float32")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has values that are not finite: replace them")
    return torch.from_numpy(values.astype(np.float32))


# ---------------------------------------------------------------------- TIFF


def _needs_tifffile(source: ImageFile, channels: int) -> bool:
    """Whether Pillow cannot read these channels of a TIFF file."""
    if channels not in (1, 3):
        return True
    try:
        with opened(source) as image:
            check_bands(image)
            return False
    except OSError:
        raise
    except ValueError:  # more bands than a picture, or a type of values that Pillow does not know
        return _tifffile() is not None


def _tifffile() -> Any:
    """The library, None where it is not installed."""
    try:
        import tifffile
    except ImportError:
        return None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is raised, too
    return tifffile


def _read_bands(source: ImageFile, channels: int) -> np.ndarray:
    """All bands, or all pages, of a TIFF file, (C, H, W).

    Raises:
        ImportError: If tifffile is not installed.
        ValueError: If it cannot be read, or is too large.
    """
    name, library = name_of(source), _tifffile()
    if library is None:
        raise ImportError(f"{name} with {channels} channels needs tifffile: pip install 'jepa-lightning[tiff]'")
    path = source if isinstance(source, BytesIO) else check_file(source)
    try:
        with library.TiffFile(path) as file:
            series = file.series[0]
            if math.prod(series.shape) > MAX_VALUES:
                raise ValueError(f"it is too large, {' x '.join(map(str, series.shape))}")
            values, last = np.squeeze(series.asarray()), series.axes.endswith("S")
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(f"{name} cannot be read as TIFF ({' '.join(str(error).split())}): replace it") from error
    return np.moveaxis(values, -1, 0) if last and values.ndim == 3 else values
