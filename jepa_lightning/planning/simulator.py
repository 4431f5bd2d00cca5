"""The true simulator of Two Rooms as a world model: how well a planner does if nothing has to be learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.environments import two_rooms


class TrueState(NamedTuple):
    """Where the dot is, and its walls.

    Attributes:
        features: Position in pixels, (B, 2).
        wall: Column of the wall, (B,).
        door: Row of its door, (B,).
    """

    features: Float[Tensor, "batch 2"]
    wall: Float[Tensor, " batch"]
    door: Float[Tensor, " batch"]


class TrueTwoRooms:
    """Moves a dot as the environment does."""

    def encode(self, observation: tuple[np.ndarray, np.ndarray, np.ndarray]) -> TrueState:
        """The state at positions (N, 2) between walls (N,) with doors (N,)."""
        return TrueState(*(torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in observation))

    def step(self, state: TrueState, action: Float[Tensor, "batch 2"]) -> TrueState:
        """The state after an action."""
        moved = two_rooms.move(*(x.numpy() for x in (state.features, action.double(), state.wall, state.door)))
        return state._replace(features=torch.from_numpy(moved))


def travel(reached: TrueState | Tensor, goal: Tensor, wall: Tensor, door: Tensor) -> Tensor:
    """Length of the shortest way in pixels: straight inside of a room, else through the middle of the door.

    Args:
        reached: Positions (..., 2).
        goal: Positions that broadcast with them.
        wall: Columns of the walls.
        door: Rows of the doors.
    """
    reached = reached if isinstance(reached, Tensor) else reached.features
    middle = torch.stack([wall, door], dim=-1)
    across = (reached[..., 0] - wall) * (goal[..., 0] - wall) < 0
    straight = (reached - goal).norm(dim=-1)
    return torch.where(across, (reached - middle).norm(dim=-1) + (middle - goal).norm(dim=-1), straight)


def observe_truth(env: two_rooms.TwoRooms) -> Any:
    """What ``TrueTwoRooms.encode`` takes, of what is known in the closed loop."""
    return lambda seen, info: (info["position"], env.wall, env.door)
