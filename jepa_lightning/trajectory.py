"""What a world model learns from: frames, the actions between them, and what is known of the state."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Trajectory(NamedTuple):
    """A batch of pieces of episodes.

    Attributes:
        frames: (B, C, T, H, W).
        actions: What was done between two frames, (B, T - 1, A).
        states: State at each frame, for example the pose of a robot, (B, T, S); None where it is not known.
        extrinsics: Where the camera is at each frame, (B, T, E); None where it is not known.
    """

    frames: Float[Tensor, "batch channels time height width"]
    actions: Float[Tensor, "batch steps action"]
    states: Float[Tensor, "batch time state"] | None = None
    extrinsics: Float[Tensor, "batch time extrinsics"] | None = None

    @property
    def inputs(self) -> Tensor:
        """The frames, by the name that they have in a MaskedBatch."""
        return self.frames

    def families(self) -> tuple[()]:
        """No families of masks, for observers of MaskedBatches."""
        return ()
