"""`jepa plan`: reach goals in Two Rooms with a world model, beside baselines that say what the number is worth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.commands.find import find_checkpoint
from jepa_lightning.commands.options import add_permissions, allowed
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.data.trajectories import fitted
from jepa_lightning.environments import TwoRooms, two_rooms
from jepa_lightning.evaluation.intervals import wilson
from jepa_lightning.loading import load
from jepa_lightning.methods import PLDM, VJEPA2AC
from jepa_lightning.planning import (
    CEM,
    MPPI,
    ActionSpace,
    Cost,
    Outcome,
    Planner,
    PredictorWorld,
    RandomShooting,
    Receding,
    run_episodes,
)
from jepa_lightning.planning.simulator import TrueTwoRooms, observe_truth, travel
from jepa_lightning.preprocessing import normalize
from jepa_lightning.weights.ours import Own

Policy = Callable[[Any, dict[str, Any]], np.ndarray]
SHOWN, STRIP, SCALE = 6, 8, 4
"""Episodes in the pictures; frames of each in the strip; pixels of the pictures for one of the canvas."""


class Row(NamedTuple):
    """How a policy did.

    Attributes:
        policy: Its name.
        success: Fraction of episodes that reached the goal.
        low: Lower end of the 95 % interval (Wilson).
        high: Upper end.
        median_steps: Of the episodes that succeeded; None without one.
        seconds: Of a decision for one episode.
    """

    policy: str
    success: float
    low: float
    high: float
    median_steps: float | None
    seconds: float


def main(args: Sequence[str]) -> None:
    """Run `jepa plan`.

    Args:
        args: The arguments after `plan`.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: If it is no world model of two-dimensional actions.
    """
    options = _parser().parse_args(list(args))
    policies = baselines(options)
    if options.ckpt_path is not None:
        with allowed(options):
            found = weights.open(find_checkpoint(options.ckpt_path, None))
            world, observe = world_of(found)
        learned = options.distance == "time"
        if learned and not isinstance(world, PLDM):
            raise ValueError(f"--distance time: {found.path} has no learned distance; use l1 or l2, or train PLDM")
        cost = Cost(world.temporal_distance, "last") if learned else Cost(options.distance, "sum")
        planner = planner_of(options, cost)
        policies = {"world model": lambda env: receding(planner, world, observe, options.seed), **policies}
    out = Path(options.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, make in policies.items():
        env = TwoRooms(options.episodes, options.walls, options.max_steps)
        env.reset(seed=options.seed)  # some policies look at the walls
        outcome = run_episodes(env, make(env), options.seed, name)
        rows.append(row_of(name, outcome))
        draw(out, name.replace(" ", "_").replace(",", ""), env, outcome)
    write_report(out, rows, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jepa plan", description=__doc__)
    parser.add_argument("--ckpt_path", metavar="FILE", help="a world model; without one only the baselines run")
    parser.add_argument("--episodes", type=int, default=100, metavar="N", help="episodes (default 100)")
    parser.add_argument("--seed", type=int, default=10000, metavar="N", help="of the episodes (default 10000)")
    parser.add_argument("--walls", choices=["random", "fixed"], default="random", help="layout of each episode")
    parser.add_argument("--max_steps", type=int, default=200, metavar="N", help="steps of an episode (default 200)")
    parser.add_argument("--planner", choices=["mppi", "cem", "shooting"], default="mppi")
    parser.add_argument("--horizon", type=int, default=30, metavar="N", help="actions of a plan (default 30)")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="plans in an iteration (default 64)")
    parser.add_argument("--iterations", type=int, default=3, metavar="N", help="iterations (default 3)")
    parser.add_argument("--elites", type=int, default=12, metavar="N", help="best plans that are kept (default 12)")
    parser.add_argument("--std", type=float, default=1.5, metavar="PIXELS", help="of the first samples (default 1.5)")
    parser.add_argument(
        "--distance", choices=["l1", "l2", "time"], default="l2",
        help="between features, summed over the plan (default l2), or `time`: the learned distance at its end",
    )  # fmt: skip
    parser.add_argument("--out", default="runs/plan", metavar="DIR", help="where the report goes (default runs/plan)")
    add_permissions(parser)
    return parser


def planner_of(options: Any, cost: Cost) -> Planner:
    """The planner that was asked for."""
    space = ActionSpace(2, max_norm=two_rooms.MAX_NORM)
    if options.planner == "shooting":
        return RandomShooting(space, cost, options.horizon, options.samples * options.iterations, options.std)
    make = MPPI if options.planner == "mppi" else CEM
    return make(space, cost, options.horizon, options.samples, options.iterations, options.elites, options.std)


def receding(planner: Planner, world: Any, observe: Any, seed: int) -> Receding:
    """A policy with random numbers of its own."""
    return Receding(planner, world, observe, torch.Generator().manual_seed(seed))


def baselines(options: Any) -> dict[str, Callable[[TwoRooms], Policy]]:
    """What a world model is compared with, by name."""

    def random(env: TwoRooms) -> Policy:
        draws = np.random.default_rng(options.seed + 1)
        return lambda seen, info: two_rooms.limited(draws.normal(0, options.std, (env.num_envs, 2)))

    def true_distance(env: TwoRooms) -> Policy:
        planner = planner_of(options, Cost("l2", "sum"))
        return receding(planner, TrueTwoRooms(), observe_truth(env), options.seed)

    def true_way(env: TwoRooms) -> Policy:
        wall, door = (torch.from_numpy(x)[:, None] for x in (env.wall, env.door))
        planner = planner_of(options, Cost(lambda a, b: travel(a, b, wall, door), "sum"))
        return receding(planner, TrueTwoRooms(), observe_truth(env), options.seed)

    return {
        "random actions": random,
        "straight to the goal": lambda env: lambda seen, info: info["target"] - info["position"],
        "true simulator, distance": true_distance,
        "true simulator, length of the way": true_way,
    }


def world_of(found: weights.Weights) -> tuple[Any, Callable[[Any, dict[str, Any]], Tensor]]:
    """The world model of a checkpoint, and what makes its inputs of images.

    Raises:
        ValueError: If it is no world model of two-dimensional actions without a state.
    """
    module = load(found)
    if not isinstance(module, VJEPA2AC | PLDM) or not isinstance(found, Own):
        raise ValueError(f"{found.path} is a {found.family}, no world model: train one, for example PLDM")
    if isinstance(module, PLDM) and module.dynamics.action_dim != 2:
        raise ValueError(f"{found.path} reads actions of {module.dynamics.action_dim} numbers: Two Rooms has 2")
    world = module if isinstance(module, PLDM) else conditioned(module, found)
    wanted = found.preprocessing(module.encoder.img_size)

    def observe(seen: np.ndarray, info: dict[str, Any]) -> Tensor:
        frames = fitted(torch.from_numpy(seen).permute(0, 3, 1, 2), module.encoder.img_size)
        return normalize(frames, wanted.mean, wanted.std, 1)

    return world, observe


def conditioned(module: VJEPA2AC, found: weights.Weights) -> PredictorWorld:
    """A V-JEPA 2-AC as a world model.

    Raises:
        ValueError: If it reads other things than two-dimensional actions and images.
    """
    predictor = module.predictor
    if predictor.action_encoder.in_features != 2 or predictor.state_encoder is not None or predictor.use_extrinsics:
        raise ValueError(
            f"{found.path} reads actions of {predictor.action_encoder.in_features} numbers"
            f"{' and states' if predictor.state_encoder is not None else ''}: Two Rooms has actions of 2 numbers and "
            "shows images only; train with action_dim: 2 and state_dim: null"
        )
    return PredictorWorld(module.encoder, predictor)


def row_of(name: str, outcome: Outcome) -> Row:
    """The numbers of a policy."""
    share = wilson(float(outcome.success.mean()), len(outcome.success))
    median = float(np.median(outcome.steps[outcome.success])) if outcome.success.any() else None
    return Row(name, share.mean, share.low, share.high, median, outcome.seconds / len(outcome.success))


def write_report(out: Path, rows: Sequence[Row], options: Any) -> None:
    """Print the table, and write it as ``report.md`` and ``report.json``."""
    names = ("planner", "horizon", "samples", "iterations", "elites", "std", "distance", "walls", "max_steps", "seed")
    settings = {name: getattr(options, name) for name in names}
    lines = ["| policy | success (95 % interval) | median steps | seconds a decision |", "|---|---|---|---|"]
    for row in rows:
        median = "-" if row.median_steps is None else f"{row.median_steps:g}"
        share = f"{100 * row.success:.0f} % ({100 * row.low:.0f} to {100 * row.high:.0f})"
        lines.append(f"| {row.policy} | {share} | {median} | {row.seconds:.4f} |")
    title = f"Two Rooms, {options.episodes} episodes, {options.walls} walls, at most {options.max_steps} steps"
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    text = f"{title}\n\n" + "\n".join(lines) + f"\n\n{told}; checkpoint {options.ckpt_path or 'none'}\n"
    (out / "report.md").write_text(text)
    content = {"environment": "two_rooms", "episodes": options.episodes, "checkpoint": options.ckpt_path, **settings}
    content["policies"] = [row._asdict() for row in rows]
    (out / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{text}\nWritten to {out}")  # noqa: T201  # what was asked for


def draw(out: Path, name: str, env: TwoRooms, outcome: Outcome) -> None:
    """A strip of some episodes (what was seen, the way so far, the goal) as PNG, and a video of them."""
    count = min(SHOWN, env.num_envs)
    frames = np.concatenate([scene(env, outcome, episode) for episode in range(count)], axis=2)  # (T, H, N W, 3)
    write_video(out / f"{name}.mp4", frames, fps=10)
    chosen = np.linspace(0, len(frames) - 1, STRIP).round().astype(int)
    rows = frames[chosen].reshape(STRIP, frames.shape[1], count, -1, 3).transpose(2, 1, 0, 3, 4)
    Image.fromarray(rows.reshape(count * frames.shape[1], -1, 3)).save(out / f"{name}.png")


def scene(env: TwoRooms, outcome: Outcome, episode: int) -> np.ndarray:
    """The frames of an episode, enlarged: walls green, dot red, goal blue, the way so far grey, (T, H, W, 3)."""
    path, one = outcome.path[:, episode], slice(episode, episode + 1)
    seen = two_rooms.render(path, env.wall[one].repeat(len(path)), env.door[one].repeat(len(path)))
    goal = two_rooms.render(env.target[one], env.wall[one], env.door[one])[0, ..., 0]
    way = np.zeros(seen.shape[1:3], dtype=np.uint8)
    for time, (x, y) in enumerate(path.round().astype(int)):
        way[y, x] = 110
        seen[time] = np.maximum(seen[time], way[..., None])
    seen[..., 2] = np.maximum(seen[..., 2], goal)
    return seen.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
