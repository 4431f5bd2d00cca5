"""The closed loop: plan, act, see, plan again, in all episodes at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.environments import TwoRooms
from jepa_lightning.planning.planners import Planner, shifted
from jepa_lightning.planning.world import WorldModel, features_of

Policy = Callable[[Any, dict[str, Any]], Float[np.ndarray, "episodes action"]]
"""What is seen and the information of the environment -> actions."""


class Outcome(NamedTuple):
    """How episodes ended.

    Attributes:
        success: Which reached the goal, (N,).
        steps: Steps of each until success, or the most there are, (N,).
        seconds: Mean time of a decision, for all episodes together.
        path: Positions, (T + 1, N, 2).
    """

    success: Bool[np.ndarray, " episodes"]
    steps: Int[np.ndarray, " episodes"]
    seconds: float
    path: Float[np.ndarray, "time episodes 2"]


def run_episodes(env: TwoRooms, policy: Policy, seed: int, title: str | None = None) -> Outcome:
    """Run all episodes of an environment until they succeed or are cut off.

    Args:
        env: The environment.
        policy: Chooses the actions.
        seed: Of the episodes.
        title: Of a progress bar; None for no bar.
    """
    seen, info = env.reset(seed=seed)
    goal, path, steps, seconds = info["goal"], [info["position"]], np.full(env.num_envs, env.max_steps), []
    for step in tqdm(range(1, env.max_steps + 1), desc=title, leave=False, disable=title is None):
        start = time.perf_counter()
        actions = policy(seen, {**info, "goal": goal, "step": step - 1})
        seconds.append(time.perf_counter() - start)
        seen, _, done, _, news = env.step(actions)
        info = {**info, **news}
        path.append(info["position"])
        steps = np.where(done & (steps == env.max_steps), step, steps)
        if done.all():
            break
    return Outcome(done, steps, float(np.mean(seconds)), np.stack(path))


class Receding:
    """A policy that plans in every step, executes the first action and goes on with the rest of the plan.

    Args:
        planner: Finds plans.
        world: The world model.
        observe: Makes of what is seen and the information of the environment what ``world.encode`` takes; it is called
            with the goal image in place of what is seen for the goal.
        generator: Where random numbers come from.
    """

    def __init__(
        self,
        planner: Planner,
        world: WorldModel,
        observe: Callable[[Any, dict[str, Any]], Any],
        generator: torch.Generator,
    ) -> None:
        self.planner, self.world, self.observe, self.generator = planner, world, observe, generator
        self.mean: Tensor | None = None

    def __call__(self, seen: Any, info: dict[str, Any]) -> Float[np.ndarray, "episodes action"]:
        """The first action of a new plan for each episode."""
        if info["step"] == 0:
            self.mean = None
        state = self.world.encode(self.observe(seen, info))
        goal = features_of(self.world.encode(self.observe(info["goal"], {**info, "position": info["target"]})))
        plan = self.planner.plan(self.world, state, goal.unsqueeze(1), self.mean, self.generator)
        self.mean = shifted(plan.mean)
        return plan.actions[:, 0].cpu().numpy().astype(np.float64)
