"""What an open video is to the rest of the package, whichever library decodes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

Opened = TypeVar("Opened", bound="Video")


class VideoError(ValueError):
    """A file is no video, or not one that can be decoded; says which file and what is wrong with it."""


class VideoInfo(NamedTuple):
    """What a video is, as it is displayed: turned upright, with square pixels.

    Where pixels are not square, frames are scaled to the width that makes them so. A pixel that is said to be over 8
    times wider than high, or higher than wide, is taken for an error of the file, and for square.

    Attributes:
        frames: Number of frames.
        fps: Mean frame rate in 1/s.
        duration: Length in seconds, the last frame's share included.
        height: Rows of a frame.
        width: Columns of a frame.
    """

    frames: int
    fps: float
    duration: float
    height: int
    width: int


class Video(ABC):
    """An open video; a context manager that closes it.

    Attributes:
        info: What the video is.
        path: Name of the file, for messages.
    """

    info: VideoInfo
    path: str = "this video"

    @property
    def fps(self) -> float:
        """Mean frame rate in 1/s."""
        return self.info.fps

    @abstractmethod
    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame is shown, in seconds from the first, strictly ascending."""

    @abstractmethod
    def frames(self, index: Sequence[int]) -> UInt8[Tensor, "n height width 3"]:
        """Frames by their position in the order in which they are shown, from 0; in any order, also repeatedly.

        Raises:
            IndexError: If the video has no such frame.
            VideoError: If one cannot be decoded.
        """

    def close(self) -> None:  # noqa: B027  # not every video holds a file
        """Let go of the file."""

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Decoder(ABC):
    """How files are opened. Holds no open file, so that it can be sent to loader workers."""

    @abstractmethod
    def open(self, path: str | Path) -> Video:
        """Open a file.

        Raises:
            FileNotFoundError: If there is no such file.
            VideoError: If it is empty, or no video.
        """
