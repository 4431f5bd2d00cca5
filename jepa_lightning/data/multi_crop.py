"""Several views of one image or clip: global and local crops, each with its own photometric changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from jepa_lightning.data.channels import Picture
from jepa_lightning.data.transforms import TrainTransform, Views
from jepa_lightning.data.video_transforms import TrainClipTransform

BLUR_KERNEL, BLUR_SIGMA = 9, (0.1, 2.0)
SOLARIZE_THRESHOLD = 128


@dataclass(frozen=True)
class Photometric:
    """What happens to a view after it was cropped; every probability is drawn for each view. Defaults are LeJEPA's.

    Args:
        flip: Probability to mirror it.
        jitter: Probability to change its colours.
        jitter_strength: How much brightness, contrast, saturation and hue are changed then.
        gray: Probability to take the colours away.
        blur: Probability to blur it, with a radius of 0.1 to 2 pixels.
        solarize: Probability to invert the brighter half of the values.
    """

    flip: float = 0.5
    jitter: float = 0.8
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    gray: float = 0.2
    blur: float = 0.5
    solarize: float = 0.2

    def steps(self) -> list[nn.Module]:
        """The transforms with a probability above 0."""
        steps: list[tuple[float, nn.Module]] = [
            (self.flip, v2.RandomHorizontalFlip(self.flip)),
            (self.jitter, v2.RandomApply([v2.ColorJitter(*self.jitter_strength)], p=self.jitter)),
            (self.gray, v2.RandomGrayscale(self.gray)),
            (self.blur, v2.RandomApply([v2.GaussianBlur(BLUR_KERNEL, BLUR_SIGMA)], p=self.blur)),
            (self.solarize, v2.RandomSolarize(SOLARIZE_THRESHOLD, self.solarize)),
        ]
        return [step for probability, step in steps if probability > 0]


CLIP_PHOTOMETRIC = Photometric(blur=0.0, solarize=0.0)
"""LeVJEPA's."""


class Crops:
    """Crops of two sizes of anything that torchvision's transforms take.

    Args:
        size: Height and width of the global views.
        counts: Number of global and of local views.
        local_size: Side of the local views in pixels.
        global_scale: Smallest and largest area of a global crop over that of the image.
        local_scale: The same of a local crop.
        photometric: What happens to every crop.

    Raises:
        ValueError: If there are fewer than two views or no global one, or local views are larger than global ones.
    """

    def __init__(
        self,
        size: tuple[int, int],
        counts: tuple[int, int],
        local_size: int,
        global_scale: tuple[float, float],
        local_scale: tuple[float, float],
        photometric: Photometric,
    ) -> None:
        if counts[0] < 1 or counts[1] < 0 or sum(counts) < 2:
            raise ValueError(
                f"num_global {counts[0]} and num_local {counts[1]} must be at least 1 and 0, and 2 together: "
                "views are compared with each other"
            )
        if counts[1] and local_size > min(size):
            raise ValueError(
                f"local_size {local_size} is larger than the global views, {size[0]}x{size[1]}: "
                "set transform.local_size to less, to a multiple of the model's patch_size"
            )
        kinds = [(counts[0], size, global_scale), (counts[1], (local_size, local_size), local_scale)]
        self.kinds = [(count, _crop(side, scale, photometric)) for count, side, scale in kinds if count]

    def __call__(self, image: Picture) -> tuple[Tensor, ...]:
        """All views of each size, (V, ..., h, w)."""
        return tuple(torch.stack([crop(image) for _ in range(count)]) for count, crop in self.kinds)


class MultiCrop(TrainTransform):
    """Global and local views of an image, as in LeJEPA (which has them from DINO).

    Draws from PyTorch's generator, which the data set seeds with (seed, epoch, index).

    Args:
        size: Height and width of the global views; a configuration leaves it out, the data module takes it from the
            model.
        num_global: Number of global views.
        num_local: Number of local views; 0 for none.
        local_size: Side of the local views in pixels; a Vision Transformer needs a multiple of its patch size.
        global_scale: Smallest and largest area of a global crop over that of the image.
        local_scale: The same of a local crop.
        photometric: Flip, colours, blur and so on; null for LeJEPA's.
    """

    several = True

    def __init__(
        self,
        size: tuple[int, int],
        num_global: int = 2,
        num_local: int = 6,
        local_size: int = 96,
        global_scale: tuple[float, float] = (0.3, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.3),
        photometric: Photometric | None = None,
    ) -> None:
        self.photometric = photometric or Photometric()
        self.crops = Crops(size, (num_global, num_local), local_size, global_scale, local_scale, self.photometric)

    def check_channels(self, channels: int) -> None:
        """Colours are changed of one or three.

        Raises:
            ValueError: If they were to be changed of others.
        """
        if channels not in (1, 3) and (self.photometric.jitter or self.photometric.gray):
            raise ValueError(
                f"MultiCrop changes colours, and {channels} channels have none: set "
                "data.transform.init_args.photometric to {jitter: 0, gray: 0}"
            )

    def __call__(self, image: Picture) -> Views:
        """Views (V, C, h, w) of each size; the inputs are the first of them."""
        views = self.crops(image)
        return Views(views[0][0], views)


class MultiCropClip(TrainClipTransform):
    """Global and local views of a clip, as in LeVJEPA: all of the same frames, one choice for all frames of a view.

    Args:
        size: Height and width of the global views; a configuration leaves it out, the data module takes it from the
            model.
        num_global: Number of global views.
        num_local: Number of local views (LeVJEPA: 4 in its comparisons, 10 in its largest runs).
        local_size: Side of the local views in pixels, a multiple of the patch size.
        global_scale: Smallest and largest area of a global crop over that of the frame.
        local_scale: The same of a local crop.
        photometric: Flip, colours, blur and so on; null for LeVJEPA's, which neither blurs nor solarizes.
    """

    several = True

    def __init__(
        self,
        size: tuple[int, int],
        num_global: int = 1,
        num_local: int = 4,
        local_size: int = 96,
        global_scale: tuple[float, float] = (0.8, 1.0),
        local_scale: tuple[float, float] = (0.02, 0.4),
        photometric: Photometric | None = None,
    ) -> None:
        changes = photometric or CLIP_PHOTOMETRIC
        self.crops = Crops(size, (num_global, num_local), local_size, global_scale, local_scale, changes)

    def __call__(self, frames: UInt8[Tensor, "time height width 3"]) -> Views:
        """Views (V, 3, T, h, w) of each size; the inputs are the first of them."""
        views = tuple(v.transpose(1, 2).contiguous() for v in self.crops(frames.permute(0, 3, 1, 2)))
        return Views(views[0][0], views)


def _crop(size: tuple[int, int], scale: tuple[float, float], photometric: Photometric) -> v2.Compose:
    crop = v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return v2.Compose([crop, *photometric.steps(), v2.PILToTensor()])
