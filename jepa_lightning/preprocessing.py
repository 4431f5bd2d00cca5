"""What evaluation does to a picture before an encoder sees it: one description, and one resize-and-crop for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)
"""Of the grey of ImageNet's pictures: the means of the above."""
CROP_PCT = 0.875
"""224 of 256 pixels: the fraction of the resized picture that evaluation keeps in the papers; timm's name for it."""
WHITE = (255, 255, 255)
THIN = 16
"""Ratio between the sides of a picture from which on only the part that is kept is resized (for a square result): the
whole of 2 x 20000 pixels would take gigabytes."""


Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""


def default_normalization(channels: int) -> Normalization:
    """Of a number of channels whose statistics nobody gave: ImageNet's for colour and grey, else from 0..1 to -2..2."""
    known = {1: (GREY_MEAN, GREY_STD), 3: (IMAGENET_MEAN, IMAGENET_STD)}
    return known.get(channels, ((0.5,) * channels, (0.25,) * channels))


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

    def crop(self, picture: Any, view: int = 0, views: int = 1) -> Any:
        """Resize bilinearly with antialiasing, and cut out the centre.

        Args:
            picture: A PIL image, channels (C, H, W), or uint8 frames (T, 3, H, W).
            view: Which of several crops along the longer side, from 0.
            views: Their number; 1 for the centre.
        """
        resized = self.resized(*F.get_size(picture))
        slack = [new - side for new, side in zip(resized, self.size, strict=True)]
        top, left = (round(rest / 2) if views == 1 else view * (rest // (views - 1)) for rest in slack)
        if math.prod(resized) > THIN * math.prod(self.covered):
            return _resize_part(picture, resized, (top, left, *self.size))
        return F.crop(F.resize(picture, resized, InterpolationMode.BILINEAR, antialias=True), top, left, *self.size)

    def normalize(self, inputs: Tensor) -> Float[Tensor, "channels *size"]:
        """uint8, or float from 0 to 1, (C, H, W) or (C, T, H, W), to what an encoder takes."""
        return normalize(inputs, self.mean, self.std)


def normalize(inputs: Tensor, mean: Sequence[float], std: Sequence[float], axis: int = 0) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel.

    Args:
        inputs: uint8, or float from 0 to 1.
        mean: One number for each channel.
        std: Likewise.
        axis: The axis of ``inputs`` that counts channels.
    """
    values = inputs.float().div_(255.0) if inputs.dtype == torch.uint8 else inputs.clone()  # one copy, not four
    return values.sub_(_along(inputs, mean, axis)).div_(_along(inputs, std, axis))


def denormalize(inputs: Tensor, mean: Sequence[float], std: Sequence[float], axis: int = 0) -> Tensor:
    """The inverse of ``normalize``: values from 0 to 1."""
    return inputs.float() * _along(inputs, std, axis) + _along(inputs, mean, axis)


def _along(inputs: Tensor, values: Sequence[float], axis: int) -> Tensor:
    """One value for each channel, in a shape that broadcasts to the inputs."""
    return torch.tensor(values, device=inputs.device).view([-1 if i == axis else 1 for i in range(inputs.ndim)])


def _resize_part(picture: Any, resized: list[int], part: tuple[int, int, int, int]) -> Any:
    """Top, left, height and width of the resized picture, without making the rest: at most a rounding error apart."""
    if isinstance(picture, Tensor):
        # Channels one by one, of which floats stay floats; or frames.
        planes = [Image.fromarray(plane.numpy()) if plane.ndim == 2 else F.to_pil_image(plane) for plane in picture]
        parts = [F.pil_to_tensor(_resize_part(plane, resized, part)) for plane in planes]
        return torch.cat(parts) if picture.ndim == 3 else torch.stack(parts)
    top, left, height, width = part
    rows, columns = picture.height / resized[0], picture.width / resized[1]
    right, bottom = min(picture.width, (left + width) * columns), min(picture.height, (top + height) * rows)
    return picture.resize((width, height), Image.Resampling.BILINEAR, (left * columns, top * rows, right, bottom))
