"""What evaluation does to a picture before an encoder sees it: one description, and one resize-and-crop for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_PCT = 0.875
"""224 of 256 pixels: the fraction of the resized picture that evaluation keeps in the papers; timm's name for it."""
WHITE = (255, 255, 255)


class Preprocessing(NamedTuple):
    """How a picture or a frame becomes an input: resize, cut out the centre, normalise.

    Attributes:
        size: Height and width of the result in pixels.
        crop_pct: Fraction of the resized picture that the centre crop keeps, above 0 to 1; None to resize both sides to
            ``size`` and cut nothing off.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        background: Colour behind transparent pixels, from 0 to 255.
    """

    size: tuple[int, int]
    crop_pct: float | None = CROP_PCT
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    background: tuple[int, int, int] = WHITE

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width in pixels that a resized picture covers; one of them exactly, before the centre is cut."""
        height, width = (round(side / (self.crop_pct or 1.0)) for side in self.size)
        return (height, width)

    @property
    def shorter_side(self) -> int | None:
        """The shorter side of ``covered`` in pixels, as other libraries describe the resize; None without a crop."""
        return None if self.crop_pct is None else min(self.covered)

    def with_shorter_side(self, pixels: int | None) -> Preprocessing:
        """The same with the crop that other libraries describe by the shorter side of the resized picture.

        Args:
            pixels: The shorter side before the crop; None for no crop.
        """
        if pixels is None:
            return self._replace(crop_pct=None)
        usual = pixels == round(min(self.size) / CROP_PCT)  # 55 of 48 pixels is 0.875 rounded, not 48 / 55
        return self._replace(crop_pct=CROP_PCT if usual else min(self.size) / pixels)

    def resized(self, height: int, width: int) -> list[int]:
        """Height and width to which a picture of this height and width is resized."""
        if self.crop_pct is None:
            return list(self.size)
        scale = max(self.covered[0] / height, self.covered[1] / width)
        return [max(side, round(old * scale)) for side, old in zip(self.size, (height, width), strict=True)]

    def resize(self, picture: Any) -> Any:
        """Resize a PIL image, or a tensor (..., H, W), bilinearly with antialiasing."""
        size = self.resized(*F.get_size(picture))
        return F.resize(picture, size, interpolation=InterpolationMode.BILINEAR, antialias=True)

    def crop(self, picture: Any) -> Any:
        """Resize a PIL image, or a tensor (..., H, W), and cut out its centre."""
        return F.center_crop(self.resize(picture), list(self.size))

    def normalize(self, inputs: Tensor) -> Float[Tensor, "channels *size"]:
        """uint8, or float from 0 to 1, (C, H, W) or (C, T, H, W), to what an encoder takes."""
        values = inputs.float() / 255.0 if inputs.dtype == torch.uint8 else inputs
        shape = (-1, *[1] * (values.ndim - 1))
        mean, std = (torch.tensor(statistic, device=values.device).view(shape) for statistic in (self.mean, self.std))
        return (values - mean) / std
