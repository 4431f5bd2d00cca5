"""Image transforms of the papers. Pixels stay uint8 until they are on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode


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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainTransform(ABC):
    """What happens to a training image; subclass it to bring your own.

    Attributes:
        several: Whether it makes Views; held-out images then have views too, beside the clean one.
    """

    several = False

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
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_scale: tuple[float, float] = (0.3, 1.0),
        horizontal_flip: bool = False,
        color_jitter: float = 0.0,
        gaussian_blur: bool = False,
    ) -> None:
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(size, scale=crop_scale, interpolation=InterpolationMode.BILINEAR, antialias=True)
        ]
        if horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        if color_jitter > 0:
            s = color_jitter
            steps += [
                v2.RandomApply([v2.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8),
                v2.RandomGrayscale(0.2),
            ]
        if gaussian_blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.5))
        self.steps = v2.Compose([*steps, v2.PILToTensor()])

    def __call__(self, image: Image.Image) -> Tensor:
        """A random view, uint8 (3, H, W)."""
        return self.steps(image)


class CleanTransform:
    """What evaluation does: shorter side to 256/224 of the size, then the centre.

    Args:
        size: Height and width of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        height, width = (round(side * 256 / 224) for side in size)
        self.size, self.resized = size, (height, width)

    def __call__(self, image: Image.Image) -> Tensor:
        """The same view every time, uint8 (3, H, W)."""
        scale = max(self.resized[0] / image.height, self.resized[1] / image.width)
        size = [max(s, round(side * scale)) for s, side in zip(self.size, (image.height, image.width), strict=True)]
        image = v2.functional.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        return v2.functional.pil_to_tensor(v2.functional.center_crop(image, list(self.size)))
