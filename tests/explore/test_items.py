from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.data import ImageDataModule, image_files
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.explore.items import dropped, of_data
from jepa_lightning.models import VisionTransformer

EncoderFactory = Callable[..., VisionTransformer]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_samples_of_a_data_set_have_names_of_classes_and_pixels(image_folder: object) -> None:
    data = ImageDataModule(root=str(image_folder), img_size=32, patch_size=8, num_workers=0)
    found = of_data(data, 3)
    assert len(found) == 3
    assert all(item.pixels.shape == (3, 1, 32, 32) and item.pixels.dtype == torch.uint8 for item in found)
    assert {item.labels[0] for item in found} <= {"class0", "class1"}
    assert found[0].title() == f"sample 0: {found[0].labels[0]}"


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (64, 48)])
def test_an_image_of_any_size_becomes_an_input(tiny_encoder: EncoderFactory, size: tuple[int, int]) -> None:
    item = dropped("x.png", encoded(Image.new("RGB", size, (255, 0, 0))), tiny_encoder())
    assert item.pixels.shape == (3, 1, 32, 32)
    assert item.pixels[0].min() == 255
    assert item.pixels[1:].max() == 0


def test_a_video_becomes_a_clip_for_a_network_of_clips(tiny_encoder: EncoderFactory, tmp_path: object) -> None:
    path = tmp_path / "x.mp4"  # type: ignore[operator]
    write_video(path, np.full((16, 48, 48, 3), 200, np.uint8))
    item = dropped("x.mp4", path.read_bytes(), tiny_encoder(num_frames=4, tubelet_size=2))
    assert item.pixels.shape == (3, 4, 32, 32)
    assert (item.pixels.float() - 200).abs().max() < 6


@pytest.mark.parametrize(
    ("name", "content"), [("x.png", b"no image"), ("x.mp4", b"no video"), ("x.txt", b"words"), ("x.jpg", b"")]
)
def test_what_is_no_image_or_video_is_refused_by_name(tiny_encoder: EncoderFactory, name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image or a video .*: drop one of .*\.png"):
        dropped(name, content, tiny_encoder())


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    tiny_encoder: EncoderFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    content = encoded(Image.new("L", (40, 40)))[:60]  # its header alone: decoding would fail with another message
    with pytest.raises(ValueError, match=r"more than 0\.001 million pixels"):
        dropped("x.png", content, tiny_encoder())
