from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.data import ImageDataModule, VideoDataModule
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.data.videos import ClipFormat
from jepa_lightning.preprocessing import Preprocessing

SMALL = Preprocessing((16, 16))
BYTES = Preprocessing((16, 16), mean=(0.0,) * 3, std=(1 / 255,) * 3)


def picture(width: int = 60, height: int = 40) -> Image.Image:
    values = torch.randint(256, (height, width, 3), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_an_image_is_seen_as_in_evaluation(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(90, 50).save(tmp_path / "a.png")
    data = ImageDataModule(root=str(tmp_path), img_size=size, patch_size=8, normalization=((0.1, 0.2, 0.3), (0.5,) * 3))
    expected = data.normalize(data.dataset("all", augment=False)[0].inputs.unsqueeze(0))[0]
    found = Preprocess(Preprocessing(size, 0.875, (0.1, 0.2, 0.3), (0.5,) * 3))(tmp_path / "a.png")
    assert found.shape == (3, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_video_is_seen_as_in_evaluation(make_video: Any, tmp_path: Path) -> None:
    make_video("a.mp4", count=30)
    data = VideoDataModule(root=str(tmp_path), inputs=ClipFormat(4, 16, 8, 2))
    expected = data.normalize(data.dataset("all", augment=False)[0].inputs.unsqueeze(0))[0]
    found = Preprocess(SMALL, 4)(str(tmp_path / "a.mp4"))
    assert found.shape == (3, 4, 16, 16)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_image_array_tensor_and_file_are_the_same(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    preprocess, values = Preprocess(SMALL), np.array(image)
    first = preprocess(image)
    for other in (values, torch.from_numpy(values), tmp_path / "a.png", str(tmp_path / "a.png"), image.convert("RGBA")):
        assert torch.equal(preprocess(other), first)


def test_an_image_is_repeated_where_a_clip_is_wanted() -> None:
    image = picture()
    clip = Preprocess(SMALL, 6)(image)
    assert clip.shape == (3, 6, 16, 16)
    assert torch.equal(clip, Preprocess(SMALL)(image).unsqueeze(1).expand(-1, 6, -1, -1))


@pytest.mark.parametrize(("there", "wanted", "chosen"), [(4, 4, [0, 1, 2, 3]), (9, 3, [0, 4, 8]), (2, 4, [0, 0, 1, 1])])
def test_of_an_array_of_frames_as_many_as_are_wanted_are_taken_evenly(
    there: int, wanted: int, chosen: list[int]
) -> None:
    frames = torch.arange(there, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 20, 20, 3)
    clip = Preprocess(BYTES, wanted)(frames)
    assert clip[0, :, 3, 5].round().int().tolist() == chosen


def test_of_a_video_one_frame_is_taken_where_an_image_is_wanted() -> None:
    frames = torch.arange(9, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 20, 20, 3)
    image = Preprocess(BYTES)(frames)
    assert image.shape == (3, 16, 16)
    assert image.mean().round() == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("absent.jpg", "no such file: absent.jpg"),
        (".", "is a folder: give a file"),
        (3, "give a PIL image, a path, or uint8 values .*, not int"),
        (torch.zeros(3, 16, 16), r"not torch.float32 \[3, 16, 16\]"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"not torch.uint8 \[3, 16, 16\]"),
        (torch.zeros(0, 16, 16, 3, dtype=torch.uint8), "frames are .* with T of at least 1"),
        (torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), "frames are "),
    ],
)
def test_anything_else_is_refused_with_what_it_is(source: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Preprocess(SMALL)(source)
