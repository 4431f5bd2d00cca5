"""Image transforms of the papers. Pixels stay uint8 until they are on the device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from jepa_lightning.data.channels import Picture, channels_of
from jepa_lightning.data.scaled import Box, resized_part
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


Transform = Callable[[Any], Tensor | Views]
"""A PIL image in (RGB or grey), or values (C, H, W) where a model takes other channels; a tensor (C, H, W) out, uint8
as the image was, or several."""


class Augmentation:
    """What training and evaluation must know of each other.

    Attributes:
        several: Whether it makes Views; held-out samples then have views too, beside the clean one.
        crop_pct: Fraction of the resized picture that the centre crop of evaluation keeps.
    """

    several = False
    crop_pct: float = CROP_PCT

    def check_channels(self, channels: int) -> None:  # most transforms take any
        """Say what cannot be done with this number of channels.

        Raises:
            ValueError: If something cannot, with the option that leaves it out.
        """


class TrainTransform(Augmentation, ABC):
    """What happens to a training image; subclass it to bring your own."""

    @abstractmethod
    def __call__(self, image: Any) -> Tensor | Views:
        """A random view, (C, H, W), or several; drawn from PyTorch's generator."""


class CropTransform(TrainTransform):
    """A training transform that shows one part of an image: no more of the file needs to be decoded.

    Attributes:
        size: Height and width of the view.
    """

    size: tuple[int, int]

    @abstractmethod
    def box(self, height: int, width: int, generator: Generator | None = None) -> Box:
        """Top, left, height and width of the part, for the size of an image; drawn first.

        Args:
            height: Of the image in pixels.
            width: Likewise.
            generator: Source of the choice; None for PyTorch's.
        """

    @abstractmethod
    def finish(self, view: Picture) -> Tensor:
        """What happens to the part after it was resized; drawn from PyTorch's generator."""

    def __call__(self, image: Picture) -> Tensor:
        """A random view of a decoded image."""
        return self.finish(resized_part(image, self.box, self.size))


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


class PretrainTransform(CropTransform):
    """What I-JEPA does to a training image: a random resized crop and, unless asked, nothing else.

    Draws from PyTorch's generator, which the data set seeds with (seed, epoch, index).

    Args:
        size: Height and width of the result; a configuration leaves it out, the data module takes it from the model.
        crop_scale: Smallest and largest area of the crop over that of the image.
        horizontal_flip: Mirror every other image.
        color_jitter: Strength of colour distortion (the reference's factors times this, and grey in one of five);
            0 for none, and for channels that are neither colours nor grey.
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
        self.size, self.crop_scale = (size[0], size[1]), crop_scale
        self.horizontal_flip, self.color_jitter = horizontal_flip, color_jitter
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

    def check_channels(self, channels: int) -> None:
        """Colours are changed of one or three.

        Raises:
            ValueError: If they were to be changed of others.
        """
        if self.color_jitter and channels not in (1, 3):
            raise ValueError(
                f"color_jitter {self.color_jitter:g} changes colours, and {channels} channels have none: set "
                "data.transform.init_args.color_jitter to 0"
            )

    def box(self, height: int, width: int, generator: Generator | None = None) -> Box:
        """As torchvision's RandomResizedCrop draws it."""
        return random_box(height, width, self.crop_scale, generator)

    def finish(self, view: Picture) -> Tensor:
        """Mirror, change colours, blur."""
        if self.horizontal_flip and torch.rand(1) < 0.5:
            view = F.horizontal_flip(view)
        if self.colors is None:
            return to_tensor(view)
        self.check_channels(channels_of(view))
        if isinstance(view, Tensor) and view.dtype == torch.uint8 and len(view) == 3:
            view = F.to_pil_image(view)  # whose colours change faster
        return to_tensor(self.colors(view))


RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width of a box over its height."""
LOG_RATIO: tuple[float, float] = tuple(torch.tensor(RATIO).log().tolist())  # in single precision, as torchvision draws


def random_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    generator: Generator | None = None,
) -> Box:
    """The box that torchvision's RandomResizedCrop draws from the same generator: ten tries, else the centre.

    Args:
        height: Of the image in pixels.
        width: Likewise.
        scale: Smallest and largest area of the box over that of the image.
        generator: Source of the choice; None for PyTorch's.
    """
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*scale, generator=generator).item()
        aspect = torch.empty(1).uniform_(*LOG_RATIO, generator=generator).exp().item()
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(torch.randint(0, height - tall + 1, (1,), generator=generator))
            return top, int(torch.randint(0, width - wide + 1, (1,), generator=generator)), tall, wide
    wide = min(width, round(height * RATIO[1])) if width / height > RATIO[1] else width
    tall = min(height, round(width / RATIO[0])) if width / height < RATIO[0] else height
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def to_tensor(picture: Picture) -> Tensor:
    """A picture as a tensor (C, H, W)."""
    return picture if isinstance(picture, Tensor) else F.pil_to_tensor(picture)


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

    def __call__(self, image: Picture) -> Tensor:
        """The same view every time, (C, H, W)."""
        return to_tensor(self.preprocessing.crop(image))


def _fraction(crop_pct: float) -> float:
    """The same number.

    Raises:
        ValueError: If it is not above 0 and at most 1.
    """
    if not 0.0 < crop_pct <= 1.0:
        raise ValueError(f"crop_pct is the fraction of the picture that is kept: use above 0 to 1, not {crop_pct}")
    return crop_pct
