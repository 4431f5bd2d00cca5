"""Image transforms of the papers. Pixels stay uint8 until they are on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from jepa_lightning.preprocessing import CROP_PCT, Preprocessing
from jepa_lightning.ranges import within


class Views(NamedTuple):
    """What a transform makes for methods that compare several views of a sample.

    Attributes:
        inputs: One of the views, or one more, (C, H, W) or (C, T, H, W).
        views: All views of each size, (V, C, h, w) or (V, C, T, h, w); the global ones first.
    """

    inputs: Tensor
    views: tuple[Tensor, ...]


Transform = Callable[[Image.Image], Tensor | Views]
"""A PIL image in; a uint8 tensor (C, H, W) out, or several."""


class Augmentation:
    """What training and evaluation must know of each other.

    Attributes:
        several: Whether it makes Views; held-out samples then have views too, beside the clean one.
        crop_pct: Fraction of the resized picture that the centre crop of evaluation keeps.
    """

    several = False
    crop_pct: float = CROP_PCT


class TrainTransform(Augmentation, ABC):
    """What happens to a training image; subclass it to bring your own."""

    @abstractmethod
    def __call__(self, image: Image.Image) -> Tensor | Views:
        """A random view, uint8 (3, H, W), or several; drawn from PyTorch's generator."""


class Beside:
    """A clean view, and beside it the views of a training transform: what methods of several views validate on.

    Args:
        clean: Makes the inputs, which probes and pictures see.
        several: Makes the views, and inputs that are not used.
    """

    def __init__(self, clean: Callable[[Any], Any], several: Callable[[Any], Any]) -> None:
        self.clean, self.several = clean, several

    def __call__(self, content: Any) -> Views:
        """The clean view and the others."""
        return Views(self.clean(content), self.several(content).views)


class PretrainTransform(TrainTransform):
    """What I-JEPA does to a training image: a random resized crop and, unless asked, nothing else.

    Draws from PyTorch's generator, which the data set seeds with (seed, epoch, index).

    Args:
        size: Height and width of the result; a configuration leaves it out, the data module takes it from the model.
        crop_scale: Smallest and largest area of the crop over that of the image.
        horizontal_flip: Mirror every other image.
        color_jitter: Strength of colour distortion (the reference's factors times this, and grey in one of five);
            0 for none.
        gaussian_blur: Blur every other image, radius 0.1 to 2 pixels.
        crop_pct: Fraction of the resized picture that the centre crop of evaluation keeps: 0.875 as in the papers; 1
            where objects fill their pictures.

    Raises:
        ValueError: If crop_pct is not above 0 and at most 1.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_scale: tuple[float, float] = (0.3, 1.0),
        horizontal_flip: bool = False,
        color_jitter: float = 0.0,
        gaussian_blur: bool = False,
        crop_pct: float = CROP_PCT,
    ) -> None:
        self.crop_pct = _fraction(crop_pct)
        within(0.0, 1.0, crop_scale=crop_scale)
        self.crop = v2.RandomResizedCrop(size, scale=crop_scale, interpolation=InterpolationMode.BILINEAR)
        self.horizontal_flip = horizontal_flip
        colors: list[nn.Module] = []
        if color_jitter > 0:
            s = color_jitter
            colors += [
                v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
                v2.RandomGrayscale(0.2),
            ]
        if gaussian_blur:
            colors.append(v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.5))
        self.colors = v2.Compose(colors) if colors else None

    def __call__(self, image: Image.Image) -> Tensor:
        """A random view, uint8 (3, H, W)."""
        # What the modules call, called here: a fifth less time for an image of 28 pixels, a twentieth for one of 224.
        place = self.crop.make_params([image])
        view = F.resized_crop(image, **place, size=self.crop.size, interpolation=InterpolationMode.BILINEAR)
        if self.horizontal_flip and torch.rand(1) < 0.5:
            view = F.horizontal_flip(view)
        return F.pil_to_tensor(view if self.colors is None else self.colors(view))


class CleanTransform:
    """What evaluation does: resize, then cut out the centre.

    Args:
        size: Height and width of the result in pixels.
        crop_pct: Fraction of the resized image that the centre crop keeps; None to resize both sides and keep all.

    Raises:
        ValueError: If crop_pct is not above 0 and at most 1.
    """

    def __init__(self, size: tuple[int, int], crop_pct: float | None = CROP_PCT) -> None:
        self.preprocessing = Preprocessing(size, None if crop_pct is None else _fraction(crop_pct))

    def __call__(self, image: Image.Image) -> Tensor:
        """The same view every time, uint8 (3, H, W)."""
        return F.pil_to_tensor(self.preprocessing.crop(image))


def _fraction(crop_pct: float) -> float:
    """The same number.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0.0 < crop_pct <= 1.0:
        raise ValueError(f"crop_pct is the fraction of the picture that is kept: use above 0 to 1, not {crop_pct}")
    return crop_pct
