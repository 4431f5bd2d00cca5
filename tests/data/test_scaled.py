"""Parts of images as training sees them: the same as of a full decoding, or close to it by bounds."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data import Folder, ImageDataModule, PretrainTransform, scaled
from jepa_lightning.data.image_files import read_image
from jepa_lightning.data.scaled import plain_size, read_part, resized_part
from jepa_lightning.data.transforms import random_box, to_tensor
from jepa_lightning.masking import MultiBlock, seeded

PHOTOGRAPH = Image.fromarray(load_sample_image("china.jpg"))


def save(path: Path, size: tuple[int, int], orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    if orientation > 1:
        exif[0x0112] = orientation
    PHOTOGRAPH.resize(size, Image.Resampling.BICUBIC).save(path, quality=90, exif=exif, **options)
    return path


def values(picture: Any) -> np.ndarray:
    return to_tensor(picture).permute(1, 2, 0).numpy().astype(int)


def expected(path: Path, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = box
    part = read_image(path).crop((left, top, left + width, top + height))
    return np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [90, 400, 900, 1500])
def test_a_part_is_that_of_the_upright_image_at_every_scale(tmp_path: Path, side: int, orientation: int) -> None:
    path = save(tmp_path / "a.jpg", (side, side * 3 // 4 + 1), orientation)
    height, width = read_image(path).height, read_image(path).width
    for share in (0.35, 0.9):
        box = (height // 17, width // 13, int(height * share), int(width * share))
        found = values(read_part(path, lambda h, w, box=box: box, (48, 40)))
        difference = np.abs(found - expected(path, box, (48, 40)))
        # Another filter on the way: less than a quarter of what a shift by one pixel changes, in the mean.
        assert difference.mean() < 3.0
        assert np.quantile(difference, 0.99) < 20
        moved = np.abs(np.roll(expected(path, box, (48, 40)), 1, axis=1) - expected(path, box, (48, 40))).mean()
        assert difference.mean() < 0.25 * moved


def test_where_the_part_must_be_decoded_in_full_pixels_differ_by_one_at_most(tmp_path: Path) -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}):
        path = save(tmp_path / "a.jpg", (500, 400), **options)
        for seed in range(5):
            box = random_box(400, 500, (0.3, 0.9), torch.Generator().manual_seed(seed))
            found = values(read_part(path, lambda h, w, box=box: box, (224, 224)))
            assert np.abs(found - expected(path, box, (224, 224))).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_print_colours_are_those_of_a_full_decoding(tmp_path: Path, mode: str) -> None:
    PHOTOGRAPH.convert(mode).save(tmp_path / "a.jpg", quality=95)
    for size, bound in (((300, 300), 1), ((100, 90), 40)):
        found = values(read_part(tmp_path / "a.jpg", lambda h, w: (5, 6, 400, 420), size))
        assert np.abs(found - expected(tmp_path / "a.jpg", (5, 6, 400, 420), size)).max() <= bound


def test_without_torchvisions_decoder_pillow_gives_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.jpg", (500, 400))
    read = partial(read_part, path, lambda h, w: (20, 30, 300, 310), (224, 224))
    first = values(read())
    monkeypatch.setattr(scaled, "_pixels", lambda content: torch.ops.image.no_such_operator(content))
    difference = np.abs(values(read()) - first)
    assert difference.max() <= 24  # Pillow's filter looks beyond the part at its borders
    assert difference[2:-2, 2:-2].max() <= 1


def test_a_large_file_is_not_decoded_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.jpg", (1600, 1200))
    monkeypatch.setattr(scaled, "_pixels", lambda content: pytest.fail("decoded in full"))
    seen = []
    before = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: (seen.append(self.size), before(self, *a, **k))[1])
    for part, scale in ((200, None), (600, 2), (1000, 4), (1200, 4)):
        seen.clear()
        if scale is not None:
            read_part(path, lambda h, w, part=part: (0, 0, part, part), (224, 224))
            assert seen == [(1600 // scale, 1200 // scale)]


def test_what_only_ends_like_a_jpeg_file_is_read_by_what_it_is(tmp_path: Path) -> None:
    PHOTOGRAPH.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    box = (3, 4, 200, 220)
    assert np.abs(values(read_part(tmp_path / "a.jpg", lambda h, w: box, (64, 64))) -
                  expected(tmp_path / "a.jpg", box, (64, 64))).max() <= 1  # fmt: skip
    content = io.BytesIO(save(tmp_path / "b.jpeg", (500, 400)).read_bytes())
    assert np.array_equal(
        values(read_part(content, lambda h, w: box, (64, 64))),
        values(read_part(tmp_path / "b.jpeg", lambda h, w: box, (64, 64))),
    )


def test_damaged_jpeg_files_are_errors_in_one_line(tmp_path: Path) -> None:
    content = save(tmp_path / "a.jpg", (500, 400)).read_bytes()
    for size in (300, 64):
        for end in (0, 2, 20, 300, len(content) // 2, len(content) - 40):
            (tmp_path / "b.jpg").write_bytes(content[:end])
            with pytest.raises((OSError, ValueError, SyntaxError)) as raised:
                read_part(tmp_path / "b.jpg", lambda h, w: (0, 0, 400, 400), (size, size))
            assert "\n" not in str(raised.value)


def test_noise_after_the_first_bytes_is_no_crash(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "a.jpg", (300, 200)).read_bytes())
    random = np.random.default_rng(0)
    for _ in range(60):
        noisy = bytearray(content)
        for place in random.integers(2, len(content), 12):
            noisy[place] = int(random.integers(256))
        plain_size(bytes(noisy))
        plain_size(bytes(noisy[: random.integers(len(noisy))]))
        try:
            picture = read_part(io.BytesIO(noisy), lambda h, w: (0, 0, h, w), (32, 32))
        except (OSError, ValueError, SyntaxError):
            continue
        assert values(picture).shape == (32, 32, 3)


# ---------------------------------------------------------------------- draws


@pytest.mark.parametrize("size", [(400, 500), (500, 400), (7, 900), (900, 7), (1, 1), (48, 48)])
@pytest.mark.parametrize("scale", [(0.3, 1.0), (0.9, 1.0), (0.05, 0.3)])
def test_boxes_are_those_of_random_resized_crop(size: tuple[int, int], scale: tuple[float, float]) -> None:
    crop = v2.RandomResizedCrop(24, scale=scale)
    for seed in range(40):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wanted = crop.make_params([torch.empty(3, *size)])
            after = torch.rand(2)
        generator = torch.Generator().manual_seed(seed)
        found = random_box(*size, scale, generator)
        assert found == (wanted["top"], wanted["left"], wanted["height"], wanted["width"])
        assert torch.equal(torch.rand(2, generator=generator), after)


def test_a_sample_is_what_the_transform_makes_of_the_image_with_the_same_seed(image_folder: Path) -> None:
    transform = PretrainTransform((32, 32), horizontal_flip=True, color_jitter=0.5, gaussian_blur=True)
    data = ImageDataModule(
        Folder(str(image_folder)), masks=partial(MultiBlock, min_keep=1), patch_size=8, num_workers=0, img_size=32,
        transform=lambda size: transform, seed=3,  # type: ignore[arg-type]
    )  # fmt: skip
    dataset = data.dataset("train", augment=True)
    for index in range(8):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seeded("crop", 3, 0, index).initial_seed())
            wanted = transform(dataset.images.image(index))
        found = dataset[index].inputs
        assert (found.int() - wanted.int()).abs().float().mean() < 1.0


class Shifted(PretrainTransform):
    """Somebody's own, that overrides the whole."""

    def __call__(self, image: Any) -> torch.Tensor:
        return super().__call__(image).bitwise_not()


def test_a_transform_that_overrides_the_whole_sees_whole_images(image_folder: Path) -> None:
    plain, shifted = (
        ImageDataModule(Folder(str(image_folder)), img_size=32, patch_size=8, num_workers=0, transform=kind, seed=0)
        .dataset("train", augment=True)[5].inputs
        for kind in (PretrainTransform, Shifted)
    )  # fmt: skip
    assert (plain.int() + shifted.int() - 255).abs().max() <= 8


def test_the_evaluation_transform_is_exactly_that_of_a_full_decoding(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "x" / str(number)).mkdir(parents=True)
        save(tmp_path / "x" / str(number) / "a.jpg", (1600, 1200))
    data = ImageDataModule(Folder(str(tmp_path / "x"), holdout=0.0), img_size=64, patch_size=8, num_workers=0, seed=0)
    found = data.dataset("train", augment=False)[0].inputs
    whole = read_image(tmp_path / "x" / "0" / "a.jpg")
    assert torch.equal(found, F.pil_to_tensor(data.preprocessing.crop(whole)))


def test_parts_of_decoded_pictures_are_resized_as_torchvision_does() -> None:
    found = resized_part(PHOTOGRAPH, lambda h, w: (10, 20, 300, 310), (64, 48))
    assert np.array_equal(values(found), values(F.resized_crop(PHOTOGRAPH, 10, 20, 300, 310, [64, 48])))
