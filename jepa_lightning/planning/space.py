"""Which actions a planner may sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ActionSpace:
    """Numbers that are sampled for an action, and their bounds.

    Args:
        dim: How many numbers.
        limit: Largest absolute value of each; None for none.
        max_norm: Longest action; longer ones are shortened. None for none.
        pinned: Number -> value that it always has.
    """

    dim: int
    limit: tuple[float, ...] | None = None
    max_norm: float | None = None
    pinned: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.limit is not None and len(self.limit) != self.dim:
            raise ValueError(f"limit has {len(self.limit)} values for {self.dim} numbers: give one for each")
        if wrong := [number for number in self.pinned if not 0 <= number < self.dim]:
            raise ValueError(f"pinned names number {wrong[0]} of {self.dim}: use 0 to {self.dim - 1}")

    def project(self, samples: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The samples inside of the bounds."""
        if self.limit is not None:
            limit = samples.new_tensor(self.limit)
            samples = samples.clamp(-limit, limit)
        if self.max_norm is not None:
            samples = samples * (self.max_norm / samples.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        for number, value in self.pinned.items():
            samples = samples.clone()
            samples[..., number] = value
        return samples

    def actions(self, samples: Float[Tensor, "*batch horizon dim"]) -> Float[Tensor, "*batch horizon action"]:
        """What the world model and the environment get."""
        return samples

    def final(self, mean: Float[Tensor, "*batch horizon dim"]) -> Float[Tensor, "*batch horizon dim"]:
        """What becomes of the mean that is returned."""
        return mean


@dataclass(frozen=True)
class RobotSpace(ActionSpace):
    """Three coordinates and the gripper of V-JEPA 2-AC; the action has 7 numbers, of which the rotation is 0.

    Args:
        close_gripper: Step of the plan from which on the gripper closes; None to plan that too.
        dead_zone: Smaller movements of the gripper in the result are 0.
    """

    close_gripper: int | None = None
    dead_zone: float = 0.25

    def actions(self, samples: Float[Tensor, "*batch horizon dim"]) -> Float[Tensor, "*batch horizon action"]:
        """(..., H, 7)."""
        return torch.cat([samples[..., :3], torch.zeros_like(samples[..., :3]), samples[..., 3:]], dim=-1)

    def project(self, samples: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The samples inside of the bounds; the gripper closes where that is set."""
        samples = super().project(samples)
        if self.close_gripper is not None:
            samples = samples.clone()
            samples[..., self.close_gripper :, 3] = 1.0
        return samples

    def final(self, mean: Float[Tensor, "*batch horizon dim"]) -> Float[Tensor, "*batch horizon dim"]:
        """The mean with small movements of the gripper left out."""
        gripper = mean[..., 3:]
        return torch.cat([mean[..., :3], torch.where(gripper.abs() < self.dead_zone, 0.0, gripper)], dim=-1)
