"""Planners that sample: the cross-entropy method, MPPI, random shooting; for many episodes at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from jepa_lightning.planning.costs import Cost
from jepa_lightning.planning.space import ActionSpace, RobotSpace
from jepa_lightning.planning.world import WorldModel

Noise = Callable[[int], Tensor]
"""Standard normal numbers of an iteration, (E or 1, samples, horizon, dim)."""
Numbers = float | tuple[float, ...]


class Plan(NamedTuple):
    """What a planner found.

    Attributes:
        actions: (E, horizon, A).
        mean: The same as numbers that are sampled, (E, horizon, dim): the start of the next plan.
        cost: Of the best sample of the last iteration, (E,).
    """

    actions: Float[Tensor, "episodes horizon action"]
    mean: Float[Tensor, "episodes horizon dim"]
    cost: Float[Tensor, " episodes"]


class Planner(ABC):
    """Draws plans around a mean, rolls them out, and moves the mean towards the good ones.

    Args:
        space: Numbers of an action and their bounds.
        cost: What is minimised.
        horizon: Actions of a plan.
        samples: Plans that are tried in each iteration.
        iterations: How often.
        elites: The best samples, from which the mean is made.
        std: Standard deviation of the first samples, of all numbers or of each.
        colour: Exponent of the noise's spectrum over the horizon: 0 white, 1 pink, 2 red.

    Raises:
        ValueError: If a number is too small, or there are more elites than samples.
    """

    def __init__(
        self, space: ActionSpace, cost: Cost, horizon: int, samples: int, iterations: int, elites: int,
        std: Numbers = 1.0, colour: float = 0.0,
    ) -> None:  # fmt: skip
        if min(horizon, samples, iterations, elites) < 1 or elites > samples:
            raise ValueError(
                f"horizon {horizon}, samples {samples}, iterations {iterations} and elites {elites} must be at least "
                "1, and elites at most samples"
            )
        self.space, self.cost, self.horizon, self.samples = space, cost, horizon, samples
        self.iterations, self.elites, self.std, self.colour = iterations, elites, std, colour

    @abstractmethod
    def update(
        self, chosen: Tensor, costs: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Float[Tensor, "episodes horizon dim"], Float[Tensor, "episodes horizon dim"]]:
        """Mean and standard deviation of the next samples, from elites (E, k, H, dim) with costs (E, k) ascending."""

    def result(self, mean: Tensor, best: Tensor) -> Float[Tensor, "episodes horizon dim"]:
        """What is returned: the mean of the last iteration."""
        return mean

    @torch.no_grad()
    def plan(
        self,
        world: WorldModel,
        state: Any,
        goals: Float[Tensor, "episodes goals *features"],
        start: Float[Tensor, "episodes horizon dim"] | None = None,
        noise: Noise | Generator | None = None,
    ) -> Plan:
        """Plan for all episodes at once.

        Args:
            world: The world model.
            state: Where each episode is, E rows.
            goals: Features of one or several goals for each episode.
            start: Mean of the first samples, see ``shifted``; None for 0.
            noise: Where random numbers come from; None for the global generator.
        """
        shape = (len(goals), self.horizon, self.space.dim)
        mean = goals.new_zeros(shape) if start is None else start
        std = goals.new_tensor(self.std).expand(shape)
        draw = noise if callable(noise) else self._noise(goals, noise)
        for iteration in range(self.iterations):
            samples = self.space.project(draw(iteration) * std.unsqueeze(1) + mean.unsqueeze(1))
            costs = self.cost(world, state, self.space.actions(samples), goals)  # (E, S)
            lowest, index = costs.topk(self.elites, dim=1, largest=False)
            chosen = samples.gather(1, index[:, :, None, None].expand(-1, -1, *shape[1:]))
            mean, std = self.update(chosen, lowest, mean, std)
        mean = self.result(mean, chosen[:, 0])
        return Plan(self.space.actions(self.space.final(mean)), mean, lowest[:, 0])

    def _noise(self, like: Tensor, generator: Generator | None) -> Noise:
        shape = (len(like), self.samples, self.space.dim, self.horizon)

        def draw(iteration: int) -> Tensor:
            white = torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
            return coloured(white, self.colour).transpose(2, 3)

        return draw


def coloured(white: Float[Tensor, "*batch time"], exponent: float) -> Float[Tensor, "*batch time"]:
    """Noise whose power falls with frequency to this exponent, of variance 1 (Pinneri et al. 2020, iCEM)."""
    length = white.shape[-1]
    if exponent == 0.0 or length < 2:
        return white
    frequency = torch.fft.rfftfreq(length, device=white.device).clamp_min(1.0 / length)
    scale = frequency ** (-exponent / 2)
    twice = torch.full_like(scale, 2.0)  # each frequency stands for its negative too
    twice[0] = 1.0
    if length % 2 == 0:
        twice[-1] = 1.0
    power = (twice * scale.square()).sum() / length
    return torch.fft.irfft(torch.fft.rfft(white) * scale / power.sqrt(), n=length)


def shifted(mean: Float[Tensor, "episodes horizon dim"], steps: int = 1) -> Float[Tensor, "episodes horizon dim"]:
    """The rest of a plan after its first steps were executed; the steps that follow it are 0."""
    return torch.cat([mean[:, steps:], torch.zeros_like(mean[:, :steps])], dim=1)


class CEM(Planner):
    """The cross-entropy method: mean and standard deviation of the elites, with momentum (V-JEPA 2, section 3.2).

    The arguments of sampling are those of Planner.

    Args:
        momentum_mean: Fraction of the old mean that is kept, of all numbers or of each.
        momentum_std: The same for the standard deviation.
    """

    def __init__(
        self, space: ActionSpace, cost: Cost, horizon: int = 1, samples: int = 100, iterations: int = 10,
        elites: int = 10, std: Numbers = 1.0, momentum_mean: Numbers = 0.0, momentum_std: Numbers = 0.0,
        colour: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(space, cost, horizon, samples, iterations, elites, std, colour)
        self.momentum_mean, self.momentum_std = momentum_mean, momentum_std

    def update(
        self, chosen: Tensor, costs: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Float[Tensor, "episodes horizon dim"], Float[Tensor, "episodes horizon dim"]]:
        """``(1 - m) new + m old``; the standard deviation is the unbiased one."""
        spread = chosen.std(dim=1) if self.elites > 1 else torch.zeros_like(std)
        old, kept = mean.new_tensor(self.momentum_mean), mean.new_tensor(self.momentum_std)
        return chosen.mean(dim=1) * (1 - old) + mean * old, spread * (1 - kept) + std * kept


class MPPI(Planner):
    """Model predictive path integral control: elites weighted by ``exp((lowest cost - cost) / temperature)``.

    The arguments of sampling are those of Planner; ``std`` stays in all iterations.

    Args:
        temperature: Difference of costs that divides a weight by e.
    """

    def __init__(
        self, space: ActionSpace, cost: Cost, horizon: int = 90, samples: int = 200, iterations: int = 20,
        elites: int = 20, std: Numbers = 1.5, temperature: float = 1.0, colour: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(space, cost, horizon, samples, iterations, elites, std, colour)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def update(
        self, chosen: Tensor, costs: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Float[Tensor, "episodes horizon dim"], Float[Tensor, "episodes horizon dim"]]:
        """The weighted mean."""
        weights = ((costs[:, :1] - costs) / self.temperature).softmax(dim=1)
        return (weights[:, :, None, None] * chosen).sum(dim=1), std


class RandomShooting(Planner):
    """The best of many samples around the start.

    Args:
        space: Numbers of an action and their bounds.
        cost: What is minimised.
        horizon: Actions of a plan.
        samples: Plans that are tried.
        std: Standard deviation of the samples.
        colour: Exponent of the noise's spectrum.
    """

    def __init__(
        self, space: ActionSpace, cost: Cost, horizon: int = 1, samples: int = 100, std: Numbers = 1.0,
        colour: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(space, cost, horizon, samples, 1, 1, std, colour)

    def update(
        self, chosen: Tensor, costs: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Float[Tensor, "episodes horizon dim"], Float[Tensor, "episodes horizon dim"]]:
        """The best one."""
        return chosen[:, 0], std


def robot_cem(
    rollout: int = 1, samples: int = 100, topk: int = 10, cem_steps: int = 100, momentum_mean: float = 0.25,
    momentum_std: float = 0.95, momentum_mean_gripper: float = 0.15, momentum_std_gripper: float = 0.15,
    maxnorm: float = 0.05, close_gripper: int | None = None, axis: Mapping[int, float] | None = None,
) -> CEM:  # fmt: skip
    """The planner of V-JEPA 2-AC with the arguments and defaults of the official function."""
    limit = (maxnorm, maxnorm, maxnorm, 0.75)
    space = RobotSpace(4, limit, pinned=dict(axis or {}), close_gripper=close_gripper)
    means, stds = (
        (m, m, m, g) for m, g in ((momentum_mean, momentum_mean_gripper), (momentum_std, momentum_std_gripper))
    )
    std = (maxnorm, maxnorm, maxnorm, 1.0)
    return CEM(space, Cost("l1", "last"), rollout, samples, cem_steps, topk, std, means, stds)
