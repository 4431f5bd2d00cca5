"""How far a plan ends from the goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.planning.world import WorldModel, features_of, repeat

Distance = Callable[[Tensor, Tensor], Tensor]
"""Features of states and of goals, (E, S, ...) both, to distances (E, S)."""


@dataclass(frozen=True)
class Cost:
    """The distance of features to those of the goal, at the end of a plan or summed over its steps.

    Args:
        distance: ``l1``: mean absolute difference (V-JEPA 2-AC); ``l2``: length of the difference (PLDM); or a function
            of both, for example a learned temporal distance.
        over: ``last`` step of the plan, or the ``sum`` over all of its steps.
    """

    distance: Literal["l1", "l2"] | Distance = "l1"
    over: Literal["last", "sum"] = "last"

    def __call__(
        self,
        world: WorldModel,
        state: Any,
        actions: Float[Tensor, "episodes samples horizon action"],
        goals: Float[Tensor, "episodes goals *features"],
    ) -> Float[Tensor, "episodes samples"]:
        """The cost of each plan: roll it out, all samples of all episodes in one batch.

        Args:
            world: Says what follows from an action.
            state: Where each episode is, E rows.
            actions: The plans.
            goals: Features of one or several goals for each episode; the nearest counts.
        """
        episodes, samples, horizon = actions.shape[:3]
        rows = repeat(state, samples)
        total = goals.new_zeros(episodes, samples)
        for step in range(horizon):
            rows = world.step(rows, actions[:, :, step].flatten(0, 1))
            if self.over == "sum" or step == horizon - 1:
                reached = features_of(rows).unflatten(0, (episodes, samples))
                total = total + self.to_goals(reached, goals)
        return total

    def to_goals(
        self, reached: Float[Tensor, "episodes samples *features"], goals: Float[Tensor, "episodes goals *features"]
    ) -> Float[Tensor, "episodes samples"]:
        """The distance to the nearest goal."""
        found = [self.between(reached, goals[:, number].unsqueeze(1)) for number in range(goals.shape[1])]
        return torch.stack(found).amin(dim=0)

    def between(self, reached: Tensor, goal: Tensor) -> Tensor:
        """Distances (E, S) of features (E, S, ...) and (E, 1, ...)."""
        if self.distance == "l1":
            return (reached - goal).abs().flatten(2).mean(dim=2)
        if self.distance == "l2":
            return (reached - goal).flatten(2).norm(dim=2)
        return self.distance(reached, goal.expand_as(reached))
