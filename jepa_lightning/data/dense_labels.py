"""The embedded scenes and clips with a label for each pixel: drawn again by the generator that wrote the files.

No label is stored: a scene or clip follows from its split and its number, which is the name of its file.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning.data import embedded, moving_digits
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.dense import DenseSource, Labelled
from jepa_lightning.data.sources import Images, Listing, Source, Split
from jepa_lightning.data.video_sources import FileVideos

OPAQUE = 0.5
"""Opacity of the digit from which a pixel is its."""
CLASSES = ["background", *(str(digit) for digit in range(10))]
POINTS = 8
"""Points of a digit that are followed."""
NEAR, FAR = 1.0, 2.0
"""Stand for depth: the generator draws the digit over the background, and knows no other distance."""

_parts = functools.cache(embedded.parts)
"""Reading the digits takes longer than drawing a clip of them."""


def scene_labels(split: str, number: int, size: int = 64) -> Int[Tensor, "size size"]:
    """Label of each pixel of a scene of DigitScenes: 0 for the background, 1 + the digit elsewhere.

    Args:
        split: ``train``, ``val`` or ``test``.
        number: Of the scene: ``00123.jpg`` has 123.
        size: Side of the scenes in pixels.
    """
    digits, labels, photographs = _parts(split)
    random = np.random.default_rng([embedded.VERSION, list(embedded.COUNTS).index(split), number])
    digit = int(random.integers(len(digits)))
    _, mask = embedded.render_with_mask(digits[digit], photographs, size, random)
    opaque = torch.from_numpy(np.array(mask)) > 255 * OPAQUE
    return opaque * (1 + int(labels[digit]))


def clip_labels(
    split: str, number: int, size: int = 64, style: moving_digits.Style = moving_digits.CLUTTERED
) -> Int[Tensor, "frames size size"]:
    """Label of each pixel of each frame of a clip of MovingDigits: 0 for the background, 1 + the digit elsewhere.

    Args:
        split: ``train``, ``val`` or ``test``.
        number: Of the clip: ``00123.mp4`` has 123.
        size: Side of the frames in pixels.
        style: PLAIN or CLUTTERED, as the source was made.
    """
    masks, digit = clip_masks(split, number, size, style)
    return (masks > OPAQUE) * (1 + digit)


def clip_masks(
    split: str, number: int, size: int, style: moving_digits.Style
) -> tuple[Float[Tensor, "frames size size"], int]:
    """How opaque the digit of a clip is in each pixel, from 0 to 1, and which digit it is; arguments as clip_labels."""
    digits, labels, photographs = _parts(split)
    random = np.random.default_rng([moving_digits.VERSION, list(moving_digits.COUNTS).index(split), number])
    digit, motion = int(random.integers(len(digits))), str(random.choice(list(moving_digits.MOTIONS)))
    _, masks = moving_digits.render_with_mask(digits[digit], photographs, motion, size, random, style)
    return torch.from_numpy(masks), int(labels[digit])


def followed(masks: Float[Tensor, "frames height width"], count: int = POINTS) -> Float[Tensor, "frames k 2"]:
    """Points on the digit in the first frame and where they are in the others: it moves, and does not turn or grow.

    Args:
        masks: How opaque the digit is; its centre of mass moves as it does, by parts of a pixel.
        count: Number of points.
    """
    rows, columns = (torch.arange(side) + 0.5 for side in masks.shape[1:])
    mass = masks.sum(dim=(1, 2))
    centres = torch.stack([(masks.sum(1) * columns).sum(1) / mass, (masks.sum(2) * rows).sum(1) / mass], dim=1)
    opaque = (masks[0] > OPAQUE).nonzero().flip(1) + 0.5
    chosen = opaque[torch.linspace(0, len(opaque) - 1, count).round().long()]
    return chosen[None] + (centres - centres[0])[:, None]


S = TypeVar("S", bound=Source[Any])
L = TypeVar("L", bound=Listing)


class Embedded(DenseSource, Generic[S, L]):
    """An embedded data set whose generator knows the digit of each pixel.

    Args:
        source: The data set.
    """

    classes = CLASSES
    depth_range = (0.5, 2.5)

    def __init__(self, source: S) -> None:
        self.source = source
        self.listings: dict[str, L] = {}

    @property
    def title(self) -> str:
        """Name of the data set."""
        return self.source.title

    def prepare(self) -> None:
        """Write the files, if they are not there."""
        self.source.prepare()

    def count(self, split: str) -> int:
        """Number of samples."""
        return len(self.listing(split))

    def listing(self, split: str) -> L:
        """The samples of a split, listed once."""
        if split not in self.listings:
            self.listings[split] = self.source.split(cast(Split, split))
        return self.listings[split]

    def depth_of(self, labels: Tensor) -> Tensor:
        """1 on the digit, 2 behind it."""
        return torch.where(labels > 0, NEAR, FAR)


class EmbeddedScenes(Embedded[embedded.DigitScenes, Images]):
    """DigitScenes with the digit of each pixel; depth is 1 on the digit and 2 behind it, the order of drawing.

    Args:
        size: Side of a scene in pixels.
        cache: Where the files are written, once; null for ~/.cache/jepa_lightning.
    """

    def __init__(self, size: int = 64, cache: str | None = None) -> None:
        super().__init__(embedded.DigitScenes(size, cache))
        self.size = size

    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """A scene."""
        images = self.listing(split)
        name = images.name(index)
        labels = scene_labels(split, int(Path(name).stem), self.size)
        return Labelled(pil_to_tensor(images.image(index))[None], labels[None], name)


class EmbeddedClips(Embedded[moving_digits.MovingDigits, FileVideos]):
    """MovingDigits with the digit of each pixel, and points on it; depth as in EmbeddedScenes.

    Args:
        size: Side of a frame in pixels, even.
        cache: Where the files are written, once; null for ~/.cache/jepa_lightning.
        plain: The clips that MovingDigits makes with ``plain``.
        frame_step: Frames of the file from one frame of a clip to the next; it has 24, 8 a second.
    """

    clips = True

    def __init__(self, size: int = 64, cache: str | None = None, plain: bool = True, frame_step: int = 2) -> None:
        super().__init__(moving_digits.MovingDigits(size, cache, plain))
        self.frame_step = frame_step

    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """The frames in the middle of a clip.

        Raises:
            ValueError: If a clip is to be longer than its file.
        """
        last = self.frame_step * (num_frames - 1)
        if last >= moving_digits.FRAMES:
            raise ValueError(
                f"{num_frames} frames at a frame_step of {self.frame_step} are more than the {moving_digits.FRAMES} of "
                "an embedded clip: use --data.frame_step 1, or an encoder of fewer frames"
            )
        frames = [(moving_digits.FRAMES - 1 - last) // 2 + self.frame_step * i for i in range(num_frames)]
        clips = self.listing(split)
        name = clips.name(index)
        with clips.open(index, PyAVDecoder()) as video:
            pixels = torch.as_tensor(video.frames(frames)).permute(0, 3, 1, 2)
        masks, digit = clip_masks(split, int(Path(name).stem), self.source.size, self.source.style)
        shown = masks[frames]
        return Labelled(pixels, (shown > OPAQUE) * (1 + digit), name, followed(shown))
