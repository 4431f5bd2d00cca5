"""Clip transforms of the papers: one choice for all frames. Pixels stay uint8 until they are on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import RandomErasing, RandomResizedCrop, v2
from torchvision.transforms.v2 import InterpolationMode

from jepa_lightning.data.transforms import Augmentation, Views
from jepa_lightning.preprocessing import CROP_PCT, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from jepa_lightning.ranges import within

ClipTransform = Callable[[Tensor], Tensor | Views]
"""Frames (T, H, W, 3) in, a clip (3, T, H, W) or several out, all uint8."""

Frames = UInt8[Tensor, "time height width 3"]
Clip = UInt8[Tensor, "3 time rows columns"]

RAND_AUGMENT = {"num_ops": 4, "magnitude": 21, "num_magnitude_bins": 31}
"""As ``rand-m7-n4``: its magnitudes end at 10, torchvision's at 30."""
ERASED_AREA, ERASED_RATIO = [0.02, 1 / 3], [0.3, 1 / 0.3]


class TrainClipTransform(Augmentation, ABC):
    """What happens to a training clip; subclass it to bring your own."""

    @abstractmethod
    def __call__(self, frames: Frames) -> Clip | Views:
        """A random view, or several; drawn from PyTorch's generator."""


class PretrainClipTransform(TrainClipTransform):
    """What V-JEPA does to a training clip: a random resized crop and a flip, the same for every frame.

    Draws from PyTorch's generator, which the data set seeds with (seed, epoch, index).

    Args:
        size: Height and width of the result; a configuration leaves it out, the data module takes it from the model.
        crop_scale: Smallest and largest area of the crop over that of the frame.
        crop_ratio: Smallest and largest width of the crop over its height, in pixels of the frame.
        horizontal_flip: Mirror every other clip.
        motion_shift: Move the crop evenly from one random box in the first frame to another in the last.
        auto_augment: Four operations of RandAugment on the whole clip, before the crop.
        erasing: Probability that a random box is filled with noise in all frames.
        antialias: Average pixels where a crop is scaled down; false for the reference's plain bilinear sampling.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_ratio: tuple[float, float] = (0.75, 1.35),
        horizontal_flip: bool = True,
        motion_shift: bool = False,
        auto_augment: bool = False,
        erasing: float = 0.0,
        antialias: bool = True,
    ) -> None:
        if not 0.0 <= erasing <= 1.0:
            raise ValueError(f"erasing is a probability from 0 to 1, got {erasing}")
        within(0.0, 1.0, crop_scale=crop_scale)
        self.size, self.crop_scale, self.crop_ratio = size, crop_scale, crop_ratio
        self.horizontal_flip, self.motion_shift, self.erasing, self.antialias = (
            horizontal_flip, motion_shift, erasing, antialias,
        )  # fmt: skip
        self.augment = (
            v2.RandAugment(**RAND_AUGMENT, interpolation=InterpolationMode.BILINEAR) if auto_augment else None
        )

    def __call__(self, frames: Frames) -> Clip:
        """A random view."""
        images = frames.permute(0, 3, 1, 2)  # (T, 3, H, W), in memory still channels last, which resizes faster
        if self.augment is not None:
            images = self.augment(images)
        images = self._crop(images)
        if self.horizontal_flip and torch.rand(()) < 0.5:
            images = v2.functional.horizontal_flip(images)
        if self.erasing and torch.rand(()) < self.erasing:
            images = _erase(images)
        return images.permute(1, 0, 2, 3).contiguous()

    def _crop(self, images: UInt8[Tensor, "time 3 height width"]) -> UInt8[Tensor, "time 3 rows columns"]:
        first = self._box(images)
        if not self.motion_shift:
            return self._resized(images, first)
        ways = torch.linspace(0, 1, len(images)).unsqueeze(1)
        boxes = torch.lerp(torch.tensor(first).float(), torch.tensor(self._box(images)).float(), ways).round().int()
        crops = [self._resized(image, box) for image, box in zip(images.split(1), boxes.tolist(), strict=True)]
        return torch.cat(crops)

    def _box(self, images: Tensor) -> list[int]:
        """Top, left, height and width; the centre if ten boxes do not fit."""
        return list(RandomResizedCrop.get_params(images, list(self.crop_scale), list(self.crop_ratio)))

    def _resized(self, images: Tensor, box: list[int]) -> Tensor:
        return v2.functional.resized_crop(
            images, *box, list(self.size), interpolation=InterpolationMode.BILINEAR, antialias=self.antialias
        )


class CleanClipTransform:
    """What evaluation does: the centre of the frames, or one of several views along their longer side.

    Args:
        size: Height and width of the result in pixels.
        view: Which of the views, from 0.
        views: Their number. Several are as high as the frames, and nothing of the shorter side is cut off.
        crop_pct: Fraction of the resized frames that a single view keeps; None to resize both sides and keep all.
    """

    def __init__(self, size: tuple[int, int], view: int = 0, views: int = 1, crop_pct: float | None = CROP_PCT) -> None:
        if not 0 <= view < views:
            raise ValueError(f"view must be from 0 to views - 1 = {views - 1}, got {view}")
        self.preprocessing = Preprocessing(size, crop_pct if views == 1 else 1.0)
        self.view, self.views = view, views

    def __call__(self, frames: Frames) -> Clip:
        """The same view every time."""
        images = self.preprocessing.crop(frames.permute(0, 3, 1, 2), self.view, self.views)
        return images.permute(1, 0, 2, 3).contiguous()


def _erase(images: UInt8[Tensor, "time 3 height width"]) -> UInt8[Tensor, "time 3 height width"]:
    """Noise of the images' mean and spread in one box of all frames."""
    top, left, height, width, _ = RandomErasing.get_params(images[0].float(), ERASED_AREA, ERASED_RATIO)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    noise = (torch.randn(len(images), 3, height, width) * std + mean).mul(255).clamp(0, 255).round().to(torch.uint8)
    return v2.functional.erase(images, top, left, height, width, noise)
