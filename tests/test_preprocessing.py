from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data import CleanClipTransform, CleanTransform
from jepa_lightning.preprocessing import Preprocessing, denormalize, normalize

SIZES = [(32, 32), (24, 48), (33, 17)]
SHAPES = [(40, 60), (101, 57), (1, 1), (7, 5), (32, 32), (64, 190), (90, 20)]


def noise(height: int, width: int, frames: int = 1) -> Tensor:
    return torch.randint(256, (frames, height, width, 3), dtype=torch.uint8)


def as_tensor(image: Image.Image) -> Tensor:
    return F.pil_to_tensor(image)


def plain(image: Image.Image, size: tuple[int, int], crop_pct: float) -> Tensor:
    """The papers' evaluation, written out: the side that needs it more is made ``size / crop_pct`` long."""
    rows, columns = round(size[0] / crop_pct), round(size[1] / crop_pct)
    if rows / image.height >= columns / image.width:
        columns = max(round(image.width * rows / image.height), size[1])
    else:
        rows = max(round(image.height * columns / image.width), size[0])
    rows, columns = max(rows, size[0]), max(columns, size[1])
    values = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
    top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
    return torch.from_numpy(values[top : top + size[0], left : left + size[1]].copy()).permute(2, 0, 1)


@pytest.mark.parametrize(("shape", "size", "crop_pct"), list(product(SHAPES, SIZES, [0.875, 1.0, 0.6])))
def test_an_image_is_resized_and_its_centre_kept(
    shape: tuple[int, int], size: tuple[int, int], crop_pct: float
) -> None:
    image = Image.fromarray(noise(*shape)[0].numpy())
    expected = plain(image, size, crop_pct)
    assert torch.equal(as_tensor(Preprocessing(size, crop_pct).crop(image)), expected)
    assert torch.equal(CleanTransform(size, crop_pct)(image), expected)


@pytest.mark.parametrize(("shape", "size"), list(product(SHAPES, SIZES)))
def test_a_clip_is_seen_as_its_frames_are(shape: tuple[int, int], size: tuple[int, int]) -> None:
    frames = noise(*shape, frames=2)
    clip = CleanClipTransform(size)(frames)
    expected = torch.stack([plain(Image.fromarray(frame.numpy()), size, 0.875) for frame in frames], dim=1)
    assert (clip.int() - expected.int()).abs().max() <= 1  # PyTorch's filter and Pillow's round differently


def test_the_papers_cut_the_centre_out_of_what_is_a_seventh_larger() -> None:
    assert Preprocessing((224, 224)).shorter_side == 256
    assert Preprocessing((64, 64)).covered == (73, 73)
    assert Preprocessing((32, 48)).covered == (37, 55)
    assert Preprocessing((32, 48)).with_shorter_side(40).covered == (40, 60)
    assert Preprocessing((32, 48)).with_shorter_side(None).covered == (32, 48)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40)])
def test_views_are_crops_of_one_resized_clip_along_its_longer_side(shape: tuple[int, int]) -> None:
    frames = noise(*shape).permute(0, 3, 1, 2)
    whole = F.resize(frames, [32 * side // 40 for side in shape], antialias=True)
    for view in range(3):
        top, left = (view * (side // 40 - 1) * 16 for side in shape)
        crop = Preprocessing((32, 32), 1.0).crop(frames, view, 3)
        assert torch.equal(crop, whole[..., top : top + 32, left : left + 32])


@pytest.mark.parametrize(("shape", "views"), list(product([(2, 300), (300, 2), (200, 4000), (30, 900)], [1, 3])))
def test_of_a_thin_picture_only_what_is_kept_is_resized(
    shape: tuple[int, int], views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, wanted = noise(*shape), Preprocessing((24, 48))
    image, clip = Image.fromarray(frames[0].numpy()), frames.permute(0, 3, 1, 2)

    def crops() -> list[Tensor]:
        return [
            values
            for view in range(views)
            for values in (as_tensor(wanted.crop(image, view, views)), wanted.crop(clip, view, views)[0])
        ]

    found = crops()
    monkeypatch.setattr("jepa_lightning.preprocessing.THIN", float("inf"))
    for part, whole in zip(found, crops(), strict=True):
        assert part.shape == (3, 24, 48)
        assert (part.int() - whole.int()).abs().max() <= 2


def test_a_very_thin_picture_needs_little_memory() -> None:
    image = Image.new("RGB", (2_000_000, 2), "red")  # resized as a whole it would have 200 gigabytes
    assert as_tensor(Preprocessing((224, 224)).crop(image)).shape == (3, 224, 224)
    assert as_tensor(Preprocessing((224, 224)).crop(image.transpose(Image.Transpose.ROTATE_90)))[0].min() == 255


def test_without_a_crop_nothing_is_lost() -> None:
    image = Image.new("RGB", (40, 20))
    image.paste("white", (0, 0, 4, 20))  # the left edge of a wide image
    assert as_tensor(Preprocessing((20, 20), None).crop(image))[0, :, 0].min() > 200
    assert as_tensor(Preprocessing((20, 20)).crop(image)).max() == 0


def test_the_shorter_side_describes_the_crop_too() -> None:
    for side in (32, 48, 55, 96, 224, 384):
        usual = Preprocessing((side, side))
        assert usual.with_shorter_side(usual.shorter_side) == usual
    wider = Preprocessing((16, 16)).with_shorter_side(32)
    assert (wider.crop_pct, wider.shorter_side, wider.covered) == (0.5, 32, (32, 32))
    assert Preprocessing((16, 16)).with_shorter_side(None).shorter_side is None


@pytest.mark.parametrize(("shape", "axis"), [((3, 5, 7), 0), ((3, 2, 5, 7), 0), ((4, 3, 5, 7), 1)])
def test_normalization_is_the_plain_formula(shape: tuple[int, ...], axis: int) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    values = torch.randint(256, shape, dtype=torch.uint8)
    plain = [(values.select(axis, c).float() / 255 - mean[c]) / std[c] for c in range(3)]
    expected = torch.stack(plain, dim=axis)
    found = normalize(values, mean, std, axis)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(normalize(values.float() / 255, mean, std, axis), expected)
    torch.testing.assert_close(denormalize(found, mean, std, axis), values.float() / 255)
    if axis == 0:
        assert torch.equal(Preprocessing((5, 7), mean=mean, std=std).normalize(values), found)
