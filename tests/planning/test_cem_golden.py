"""The CEM of V-JEPA 2-AC against the official function, with its noise; poses against scipy's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jepa_lightning.planning import CEM, robot_cem
from jepa_lightning.planning import pose as poses

GOLDEN = Path(__file__).parent.parent / "golden" / "cem"


class State(NamedTuple):
    features: Tensor
    pose: Tensor


class Toy:
    """next features = features + action @ W (+ pose @ V)."""

    def __init__(self, with_pose: bool) -> None:
        tables = torch.load(GOLDEN / "checkpoint.pt", weights_only=True)
        self.w, self.v = tables["W"], tables["V"] * with_pose

    def encode(self, observation: State) -> State:
        return observation

    def step(self, state: State, action: Tensor) -> State:
        moved = state.features + (action @ self.w + state.pose[:, :6] @ self.v).unsqueeze(1)
        return State(moved, poses.advance(state.pose, action))


class Recorder:
    """Wraps the parts of a CEM, to see what happens inside."""

    def __init__(self, planner: CEM) -> None:
        self.energy: list[Tensor] = []
        self.samples: list[Tensor] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        cost, update = planner.cost, planner.update

        def priced(world: Any, state: Any, actions: Tensor, goals: Tensor) -> Tensor:
            self.samples.append(actions)
            self.energy.append(cost(world, state, actions, goals))
            return self.energy[-1]

        def updated(chosen: Tensor, costs: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
            self.before.append((mean, std))
            return update(chosen, costs, mean, std)

        planner.cost, planner.update = priced, updated  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("episodes", [1, 3])
def test_noise_energies_means_and_result_are_the_official_ones(
    golden: Callable[[str], dict[str, Any]], number: int, episodes: int
) -> None:
    numbers, about = golden("cem/golden.safetensors"), golden("cem/golden.json")["cases"][number]
    case = {name.removeprefix(f"case{number}."): x for name, x in numbers.items() if name.startswith(f"case{number}.")}
    arguments = dict(about["arguments"])
    arguments["axis"] = {int(key): value for key, value in arguments.get("axis", {}).items()}
    planner = robot_cem(**arguments)
    recorder, world = Recorder(planner), Toy(about["world_model"] == "action+pose")
    state = State(
        *(
            numbers[name][0].expand(episodes, *[-1] * (numbers[name][0].ndim - 1))
            for name in ("context_features", "context_pose")
        )
    )
    goals = numbers["goal_features"].expand(episodes, -1, -1, -1)
    plan = planner.plan(world, state, goals, noise=lambda i: case["noise"][i].transpose(0, 1)[None])
    for episode in range(episodes):
        close(recorder.samples[0][episode], case["first_samples"])
        close(recorder.samples[-1][episode], case["last_samples"])
        close(torch.stack(recorder.energy)[:, episode], case["energy"])
        close(torch.stack([mean for mean, _ in recorder.before])[:, episode], case["mean_before"])
        close(torch.stack([std for _, std in recorder.before])[:, episode], case["std_before"])
        close(plan.actions[episode], case["action"][0])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_poses(golden: Callable[[str], dict[str, Any]]) -> None:
    numbers = golden("cem/golden.safetensors")
    close(poses.advance(numbers["pose.state"], numbers["pose.action"]), numbers["pose.new"])
    difference = poses.difference(numbers["pose.start"].double(), numbers["pose.end"].double())
    close(difference, numbers["pose.diff"])
    path = numbers["pose.trajectory"]
    close(poses.difference(path[:-1], path[1:]), numbers["pose.trajectory_actions"])
    close(poses.in_camera(path, numbers["pose.camera"]), numbers["pose.trajectory_in_camera"])
