"""Pictures and clips with a label for each pixel: what the evaluation of dense features reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import resize

UNKNOWN = -1
"""Class of a pixel that does not count. The depth of such a pixel is 0."""
SHOWN = 8
"""Most left out samples that are named."""


class Labelled(NamedTuple):
    """An image or a clip with its labels.

    Attributes:
        frames: Pixels; an image has one frame.
        labels: Class or object of each pixel, integers, UNKNOWN where it does not count; or its depth, floats, 0 where
            it is not known.
        name: For messages.
        points: The same K points in every frame, column x and row y in pixels; None where none are known.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    labels: Tensor
    name: str
    points: Float[Tensor, "frames k 2"] | None = None


class LabelError(ValueError):
    """The label of a sample cannot be used."""


class DenseSource(ABC):
    """Samples with labels for each pixel, in splits.

    Attributes:
        classes: Names of the classes; empty where labels are depths or objects.
        clips: Whether samples are clips.
        depth: Whether labels are depths.
        depth_range: Least and largest depth that can be predicted, in the unit of the labels.
    """

    classes: list[str]
    clips = False
    depth = False
    depth_range = (0.001, 10.0)

    @property
    def title(self) -> str:
        """Name of the data set, for tables and reports."""
        return type(self).__name__

    def prepare(self) -> None:  # noqa: B027  # most sources have nothing to do
        """Write what is missing."""

    @abstractmethod
    def count(self, split: str) -> int:
        """Number of samples of a split.

        Raises:
            FileNotFoundError: If there is no such split.
        """

    @abstractmethod
    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """One sample.

        Args:
            split: ``train``, ``val`` or ``test``.
            index: From 0.
            num_frames: Frames of a clip; images and sequences have as many as they have.

        Raises:
            LabelError: If its label is missing or makes no sense.
        """

    def depth_of(self, labels: Tensor) -> Tensor:
        """The depth of each pixel that follows from labels.

        Raises:
            ValueError: If nothing follows.
        """
        if self.depth:
            return labels
        raise ValueError(f"{self.title} has no depth: use --data DepthFolder --data.root FOLDER")


class Samples:
    """The samples of a split; those without a usable label are left out and counted.

    Args:
        source: The data.
        split: Which split.
        num_frames: Frames of a clip.
        most: At most that many, evenly spread; None for all.
    """

    def __init__(self, source: DenseSource, split: str, num_frames: int, most: int | None = None) -> None:
        self.source, self.split, self.num_frames = source, split, num_frames
        count = source.count(split)
        few = count if most is None else min(most, count)
        self.indices = torch.linspace(0, count - 1, few).round().long().tolist() if few else []
        self.left_out: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, position: int) -> Labelled | None:
        """A sample, or None if its label cannot be used."""
        index = self.indices[position]
        try:
            return self.source.sample(self.split, index, self.num_frames)
        except (LabelError, OSError) as error:
            self.left_out[f"{self.split} {index}"] = str(error)
            return None

    def draw(self, generator: torch.Generator) -> Labelled:
        """A random sample with a usable label.

        Raises:
            ValueError: If there is none.
        """
        start = int(torch.randint(len(self), (1,), generator=generator)) if len(self) else 0
        for step in range(len(self)):
            if found := self.read((start + step) % len(self)):
                return found
        raise ValueError(self.nothing())

    def nothing(self) -> str:
        """The message that no sample is left."""
        return f"{self.source.title} has no {self.split} sample with a usable label{self._reasons()}"

    def note(self) -> str:
        """One line on what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        return f"{len(self.left_out)} of {len(self)} {self.split} samples left out{self._reasons()}"

    def _reasons(self) -> str:
        if not self.left_out:
            return ""
        shown = "; ".join(list(self.left_out.values())[:SHOWN])
        more = f"; and {len(self.left_out) - SHOWN} more" if len(self.left_out) > SHOWN else ""
        return f": {shown}{more}"


def resized_frames(
    frames: UInt8[Tensor, "frames 3 h w"], size: tuple[int, int]
) -> UInt8[Tensor, "frames 3 height width"]:
    """Whole frames at another size, bilinear with antialiasing; nothing is cut off."""
    return frames if frames.shape[-2:] == size else resize(frames, list(size), antialias=True)


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (T, H, W) at another size, by the nearest pixel."""
    if labels.shape[-2:] == size:
        return labels
    return F.interpolate(labels[None].double(), size=size, mode="nearest-exact")[0].to(labels.dtype)
