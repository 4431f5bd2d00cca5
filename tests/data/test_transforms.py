from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from jepa_lightning.data import CleanTransform, PretrainTransform


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(256, (300, 400, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_the_default_is_the_reference_crop_and_nothing_else(image: Image.Image) -> None:
    reference = v2.Compose([v2.RandomResizedCrop(224, scale=(0.3, 1.0)), v2.PILToTensor()])
    torch.manual_seed(1)
    ours = PretrainTransform((224, 224))(image)
    torch.manual_seed(1)
    assert torch.equal(ours, reference(image))
    assert ours.dtype == torch.uint8


def test_every_augmentation_changes_the_view(image: Image.Image) -> None:
    def views(**options: object) -> torch.Tensor:
        torch.manual_seed(3)
        transform = PretrainTransform((32, 32), **options)  # type: ignore[arg-type]
        return torch.stack([transform(image) for _ in range(8)])

    plain = views()
    for options in ({"horizontal_flip": True}, {"color_jitter": 1.0}, {"gaussian_blur": True}):
        assert not torch.equal(plain, views(**options))


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_the_clean_view_is_the_centre_without_distortion(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (400, 300))
    picture.paste("white", (150, 100, 250, 200))  # a square in the middle
    view = CleanTransform(size)(picture)
    assert view.shape == (3, *size)
    white = view[0] > 128
    rows, columns = white.any(dim=1).nonzero().flatten(), white.any(dim=0).nonzero().flatten()
    assert abs(len(rows) - len(columns)) <= 1
    assert abs(int(rows.min() + rows.max()) - (size[0] - 1)) <= 1
    assert abs(int(columns.min() + columns.max()) - (size[1] - 1)) <= 1
