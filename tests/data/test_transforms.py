from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from jepa_lightning.data import CleanTransform, PretrainTransform


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(256, (300, 400, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


@pytest.mark.parametrize("options", [{}, {"horizontal_flip": True}, {"crop_scale": (0.7, 1.0), "color_jitter": 1.0}])
def test_a_view_is_that_of_the_modules_of_torchvision(image: Image.Image, options: dict[str, Any]) -> None:
    jitter = [v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(0.2)]
    reference = v2.Compose(
        [
            v2.RandomResizedCrop((32, 48), scale=options.get("crop_scale", (0.3, 1.0)), antialias=True),
            *([v2.RandomHorizontalFlip()] if options.get("horizontal_flip") else []),
            *(jitter if options.get("color_jitter") else []),
            v2.PILToTensor(),
        ]
    )
    transform = PretrainTransform((32, 48), **options)
    for seed in range(6):
        torch.manual_seed(seed)
        ours = transform(image)
        torch.manual_seed(seed)
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


def test_the_whole_picture_may_be_kept(image: Image.Image) -> None:
    small = image.resize((32, 24))
    whole = CleanTransform((24, 32), crop_pct=1.0)(small)
    assert torch.equal(whole, v2.functional.pil_to_tensor(small))
    assert torch.equal(CleanTransform((24, 32))(small), CleanTransform((24, 32), crop_pct=224 / 256)(small))
    assert not torch.equal(CleanTransform((24, 32))(small), whole)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_what_is_kept_is_a_fraction(share: float) -> None:
    for transform in (CleanTransform, PretrainTransform):
        with pytest.raises(ValueError, match=rf"crop_pct .*not {share}"):
            transform((24, 32), crop_pct=share)
