from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.environments import TwoRooms
from jepa_lightning.models import ActionPredictor, RoPE, VisionTransformer
from jepa_lightning.planning import (
    CEM,
    MPPI,
    ActionSpace,
    Cost,
    Planner,
    PredictorWorld,
    RandomShooting,
    Receding,
    run_episodes,
)
from jepa_lightning.planning import pose as poses
from jepa_lightning.planning.planners import coloured, shifted
from jepa_lightning.planning.simulator import TrueTwoRooms, observe_truth, travel

PLANE = ActionSpace(2, max_norm=1.0)


class Plane:
    """A point that moves by the action."""

    def encode(self, observation: Tensor) -> Tensor:
        return observation

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        return state + action


PLANNERS: list[Any] = [
    partial(CEM, horizon=4, samples=100, iterations=8, elites=10),
    partial(MPPI, horizon=4, samples=200, iterations=8, elites=20, std=0.5, temperature=0.3),
    partial(RandomShooting, horizon=4, samples=5000),
]


@pytest.mark.parametrize("make", PLANNERS)
@pytest.mark.parametrize("over", ["last", "sum"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_plan_leads_towards_the_goal_of_its_own_episode(make: Any, over: Any, distance: Any) -> None:
    planner: Planner = make(PLANE, Cost(distance, over))
    starts, goals = (
        torch.tensor([[0.0, 0.0], [5.0, 5.0], [0.0, 1.0]]),
        torch.tensor([[3.0, 0.0], [5.0, 3.0], [0.0, 1.0]]),
    )
    plan = planner.plan(Plane(), starts, goals.unsqueeze(1), noise=torch.Generator().manual_seed(0))
    assert plan.actions.shape == plan.mean.shape == (3, 4, 2)
    assert (plan.actions.norm(dim=2) <= 1.0 + 1e-5).all()
    ends = starts + plan.actions.sum(dim=1)
    assert ((ends - goals).norm(dim=1) < (1.2 if isinstance(planner, RandomShooting) else 0.4)).all()


def test_episodes_in_a_batch_are_planned_as_each_alone() -> None:
    planner = CEM(PLANE, Cost("l2"), horizon=3, samples=50, iterations=5, elites=5)
    starts, goals, noise = torch.randn(4, 2), torch.randn(4, 1, 2), torch.randn(5, 4, 50, 3, 2)
    together = planner.plan(Plane(), starts, goals, noise=lambda i: noise[i])
    for episode in range(4):
        one = slice(episode, episode + 1)
        alone = planner.plan(Plane(), starts[one], goals[one], noise=lambda i, one=one: noise[i][one])  # type: ignore[misc]
        torch.testing.assert_close(together.actions[one], alone.actions)


def test_of_several_goals_the_nearest_counts() -> None:
    planner = CEM(PLANE, Cost("l2"), horizon=2, samples=200, iterations=8, elites=10)
    goals = torch.tensor([[[9.0, 9.0], [-1.0, 0.5]]])
    plan = planner.plan(Plane(), torch.zeros(1, 2), goals, noise=torch.Generator().manual_seed(0))
    assert (plan.actions.sum(dim=1) - goals[:, 1]).norm() < 0.1


def test_mppi_is_cem_without_a_changing_spread_where_temperature_is_high() -> None:
    options: dict[str, Any] = {"horizon": 2, "samples": 30, "iterations": 1, "elites": 6}
    noise, state, goal = torch.randn(1, 30, 2, 2), torch.zeros(1, 2), torch.ones(1, 1, 2)
    hot = MPPI(PLANE, Cost(), std=1.0, temperature=1e9, **options).plan(Plane(), state, goal, noise=lambda i: noise)
    equal = CEM(PLANE, Cost(), **options).plan(Plane(), state, goal, noise=lambda i: noise)
    torch.testing.assert_close(hot.actions, equal.actions)
    cold = MPPI(PLANE, Cost(), std=1.0, temperature=1e-6, **options).plan(Plane(), state, goal, noise=lambda i: noise)
    best = RandomShooting(PLANE, Cost(), 2, 30).plan(Plane(), state, goal, noise=lambda i: noise)
    torch.testing.assert_close(cold.actions, best.actions)


def test_a_warm_start_goes_on_with_the_rest_of_the_plan() -> None:
    mean = torch.arange(8.0).view(1, 4, 2)
    assert shifted(mean, 1)[0].tolist() == [[2, 3], [4, 5], [6, 7], [0, 0]]
    planner = RandomShooting(ActionSpace(2), Cost("l2"), 4, samples=1, std=0.0)
    plan = planner.plan(Plane(), torch.zeros(1, 2), torch.zeros(1, 1, 2), start=mean)
    assert torch.equal(plan.actions, mean)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("length", [16, 17])
def test_coloured_noise_has_variance_1_and_slow_parts(exponent: float, length: int) -> None:
    noise = coloured(torch.randn(20000, length, generator=torch.Generator().manual_seed(0)), exponent)
    assert noise.shape == (20000, length)
    assert noise.var().item() == pytest.approx(1.0, abs=0.03)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean().item()
    assert neighbours > 0.3 * exponent if exponent else abs(neighbours) < 0.02


def test_bounds_hold_for_every_sample() -> None:
    space = ActionSpace(3, (0.5, 1.0, 2.0), 1.5, {1: 0.25})
    samples = space.project(5 * torch.randn(1000, 4, 3))
    assert (samples.abs() <= torch.tensor([0.5, 1.0, 2.0])).all()
    assert (samples[..., 1] == 0.25).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CEM(PLANE, Cost(), samples=5, elites=6), "elites at most samples"),
        (lambda: CEM(PLANE, Cost(), horizon=0), "must be at least 1"),
        (lambda: MPPI(PLANE, Cost(), temperature=0.0), "temperature must be above 0"),
        (lambda: ActionSpace(2, (1.0,)), "limit has 1 values for 2 numbers"),
        (lambda: ActionSpace(2, pinned={2: 0.0}), "pinned names number 2 of 2"),
    ],
)
def test_settings_that_make_no_planner_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_roll_out_of_features_is_that_of_full_passes() -> None:
    encoder = VisionTransformer(16, 8, 3, 12, 1, 2, num_frames=2, tubelet_size=2, positions=RoPE(), init_std=None)
    predictor = ActionPredictor(encoder, 16, 2, 2, init_std=None)
    world = PredictorWorld(encoder, predictor, poses.advance)
    frames, start, actions = torch.randn(2, 3, 16, 16), 0.3 * torch.rand(2, 7), 0.1 * torch.randn(2, 4, 7)
    state = world.encode(frames, start)
    sequence, states = [state.features], [start]
    for step in range(4):
        state = world.step(state, actions[:, step])
        out = predictor(torch.cat(sequence, 1), actions[:, : step + 1], torch.stack(states, 1))[:, -4:]
        sequence.append(F.layer_norm(out, (12,)))
        states.append(poses.advance(states[-1], actions[:, step]))
        torch.testing.assert_close(state.features, sequence[-1], rtol=0, atol=1e-5)
        assert torch.equal(state.pose, states[-1])  # type: ignore[arg-type]
    goals = torch.randn(2, 1, 4, 12)
    planner = CEM(ActionSpace(7), Cost(), horizon=2, samples=6, iterations=2, elites=2)
    assert planner.plan(world, world.encode(frames, start), goals).actions.shape == (2, 2, 7)


# ---------------------------------------------------------------------- Two Rooms


def receding(env: TwoRooms, cost: Cost, planner: Any = MPPI, horizon: int = 8) -> Receding:
    made = planner(ActionSpace(2, max_norm=2.45), cost, horizon, 64, 3, 12, 1.5)
    return Receding(made, TrueTwoRooms(), observe_truth(env), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("planner", [MPPI, CEM])
def test_with_the_true_simulator_and_the_length_of_the_way_every_goal_is_reached(planner: Any) -> None:
    env = TwoRooms(30, max_steps=60)
    env.reset(seed=7)
    wall, door = torch.from_numpy(env.wall)[:, None], torch.from_numpy(env.door)[:, None]
    outcome = run_episodes(env, receding(env, Cost(lambda a, b: travel(a, b, wall, door), "sum"), planner), seed=7)
    assert outcome.success.all()
    assert (outcome.steps >= 1).all()
    ends = outcome.path[outcome.steps, np.arange(30)]
    assert (np.linalg.norm(ends - env.target, axis=1) < 4.5).all()
    assert (np.linalg.norm(np.diff(outcome.path, axis=0), axis=2) <= 2.45 + 1e-9).all()


def test_straight_to_the_goal_fails_at_walls() -> None:
    env = TwoRooms(100)
    outcome = run_episodes(env, lambda seen, info: info["target"] - info["position"], seed=7)
    assert 0.05 < outcome.success.mean() < 0.6
    assert (outcome.steps[~outcome.success] == 200).all()


def test_the_way_through_the_door_is_at_least_the_straight_one() -> None:
    a, b = 4 + 56 * torch.rand(200, 2), 4 + 56 * torch.rand(200, 2)
    way = travel(a, b, torch.full((200,), 32.0), torch.full((200,), 18.0))
    assert (way >= (a - b).norm(dim=1) - 1e-5).all()
    same = (a[:, 0] < 32) == (b[:, 0] < 32)
    assert torch.equal(way[same], (a - b).norm(dim=1)[same])


def test_episodes_together_are_at_least_five_times_faster_than_one_after_the_other() -> None:
    planner = CEM(PLANE, Cost("l2"), horizon=5, samples=32, iterations=3, elites=5)
    starts, goals = torch.zeros(32, 2), torch.ones(32, 1, 2)

    def seconds(parts: int) -> float:
        start = time.perf_counter()
        for part in zip(starts.chunk(parts), goals.chunk(parts), strict=True):
            planner.plan(Plane(), *part)
        return time.perf_counter() - start

    seconds(1)
    assert min(seconds(32) for _ in range(3)) > 5 * min(seconds(1) for _ in range(3))
