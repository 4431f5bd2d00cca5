from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jepa_lightning.data import image_files
from jepa_lightning.data.image_files import read_image, to_rgb

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def values(path: Path, **options: Any) -> np.ndarray:
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def tiff(bits: int, pixels: bytes, width: int, height: int, photometric: int = 1) -> bytes:
    """A TIFF file without compression, grey, of any number of bits."""
    tags = [
        *((256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)),
        *((273, 4, 8 + 2 + 9 * 12 + 4), (277, 3, 1), (278, 3, height), (279, 4, len(pixels))),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + pixels


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_grey_of_16_bits_is_scaled_by_the_range_of_its_type(tmp_path: Path, name: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / name)
    assert np.array_equal(values(tmp_path / name), np.repeat(RAMP[..., None], 3, axis=2))


def test_a_narrow_range_of_16_bits_is_not_stretched(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "x.png")  # 12 of 16 bits
    assert values(tmp_path / "x.png").max() == round(255 * 16 / 257)


def test_grey_of_12_bits_is_scaled_by_what_the_file_says(tmp_path: Path) -> None:
    pixels = bytes.fromhex("000fff800400")  # 0, 4095, 2048, 1024
    (tmp_path / "x.tif").write_bytes(tiff(12, pixels, 2, 2))
    assert values(tmp_path / "x.tif")[..., 0].tolist() == [[0, 255], [128, 64]]


def test_zero_may_be_white(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(tiff(16, struct.pack("<HH", 0, 257), 2, 1, photometric=0))
    assert values(tmp_path / "x.tif")[0, :, 0].tolist() == [255, 254]


def test_floats_from_0_to_1_and_whole_numbers_of_16_bits_are_grey(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32) * 257).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        assert np.array_equal(values(tmp_path / name)[..., 1], RAMP)


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.float32([[0.0, 255.0]]), "values from 0 to 255, not 0 to 1"),
        (np.float32([[-0.5, 0.5]]), r"values from -0\.5 to 0\.5, not 0 to 1"),
        (np.float32([[np.nan, 0.5]]), "values from nan to nan"),
        (np.int32([[0, 70000]]), "values from 0 to 70000, not 0 to 65535"),
        (np.int32([[-1, 5]]), "values from -1 to 5, not 0 to 65535"),
    ],
)
def test_values_without_a_known_range_are_refused_with_theirs(tmp_path: Path, pixels: np.ndarray, found: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"x\.tif has {found}"):
        read_image(tmp_path / "x.tif")


def black_square(mode: str) -> Image.Image:
    """A black square on a transparent ground."""
    image = Image.new("LA", (20, 20), (0, 0))
    ImageDraw.Draw(image).rectangle((5, 5, 14, 14), fill=(0, 255))
    return image.convert("RGBA") if mode == "RGBA" else image


@pytest.mark.parametrize("case", ["RGBA", "LA", "palette", "colour key", "grey key", "grey key of 16 bits", "one bit"])
def test_black_on_transparent_is_black_on_white(tmp_path: Path, case: str) -> None:
    path, square = tmp_path / "x.png", black_square("RGBA")
    opaque = np.asarray(square)[..., 3] == 255
    grey = np.where(opaque, 0, 9)
    if case in ("RGBA", "LA"):
        black_square(case).save(path)
    elif case == "palette":
        palette = Image.new("P", (20, 20))
        palette.putdata(opaque.astype(int).ravel().tolist())
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.save(path, transparency=0)
    elif case == "colour key":
        Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)).save(path, transparency=(9, 9, 9))
    elif case == "one bit":
        Image.fromarray(~opaque).save(path, transparency=1)
    else:
        Image.fromarray(grey.astype(np.uint16 if "16" in case else np.uint8)).save(path, transparency=9)
    expected = np.repeat(np.where(opaque, 0, 255)[..., None], 3, axis=2)
    assert np.array_equal(values(path), expected)
    red = values(path, background=(255, 0, 0))
    assert (red[~opaque] == (255, 0, 0)).all()
    assert (red[opaque] == 0).all()


def test_half_transparent_pixels_are_blended_and_opaque_ones_stay(tmp_path: Path) -> None:
    pixels = np.dstack([RAMP, RAMP.T, RAMP[::-1]])
    image = Image.fromarray(pixels)
    image.putalpha(255)
    assert np.array_equal(np.asarray(to_rgb(image)), pixels)
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 51))
    assert to_rgb(half).getpixel((0, 0)) == (204, 224, 244)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_modes_without_transparency_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(np.dstack([RAMP, RAMP.T, RAMP[::-1]])).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("name", "mode"), [("x.jpg", "RGB"), ("x.png", "RGBA"), ("x.png", "I;16"), ("x.tif", "I;16"), ("x.tif", "L")]
)
def test_an_image_of_any_mode_is_turned_upright(tmp_path: Path, name: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    grey = np.zeros((16, 32), np.uint8)
    grey[:8, :8] = 255  # what was in the upper left ends in the upper right
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / name, exif=exif)
    assert np.array_equal(values(tmp_path / name)[..., 0] > 128, np.rot90(grey, -1) > 128)


def test_too_many_pixels_are_refused_with_the_name_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png has more than 89\.5 million pixels: scale it down"):
        read_image(tmp_path / "bomb.png")
    buffer = io.BytesIO()
    Image.new("L", (40, 40)).save(buffer, "PNG")
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"the image has more than 0\.001 million pixels"):
        read_image(io.BytesIO(buffer.getvalue()[:60]))  # the header alone


def test_what_is_no_file_with_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    for name, found in (("text.jpg", "no known format"), ("empty.jpg", "0 bytes"), (".", "a folder")):
        with pytest.raises(ValueError, match=found):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_image(tmp_path / "absent.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    (tmp_path / "y.jpg").symlink_to("/dev/zero")
    for name in ("x.jpg", "y.jpg"):
        with pytest.raises(ValueError, match=rf"{name[0]}\.jpg is a named pipe or a device"):
            read_image(tmp_path / name)
