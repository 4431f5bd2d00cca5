"""How the frames of a video are turned for display."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from jaxtyping import UInt8


class Turn(NamedTuple):
    """How stored frames become upright.

    Attributes:
        swap: Exchange rows and columns, first.
        rows: -1 to turn the order of rows around.
        columns: -1 to turn the order of columns around.
    """

    swap: bool = False
    rows: int = 1
    columns: int = 1

    def upright(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """A view of an image, as it is shown."""
        return (image.swapaxes(0, 1) if self.swap else image)[:: self.rows, :: self.columns]

    @classmethod
    def asked_for_by(cls, frame: VideoFrame) -> Turn:
        """What the display matrix of a frame asks for, to the nearest quarter turn."""
        side_data: Any = frame.side_data
        try:
            matrix = np.frombuffer(side_data["DISPLAYMATRIX"], np.int32).reshape(3, 3)
        except (KeyError, ValueError):  # PyAV raises ValueError where a frame also carries what it has no name for
            return cls()
        # A pixel at (x, y) is shown at (x, y) @ matrix[:2, :2], moved to where coordinates are not negative.
        (a, b), (c, d) = matrix[:2, :2].astype(float)
        if swap := abs(b) + abs(c) > abs(a) + abs(d):
            a, d = c, b
        return cls(bool(swap), -1 if d < 0 else 1, -1 if a < 0 else 1)
