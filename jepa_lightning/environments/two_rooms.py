"""Two Rooms: a dot, a wall, a door (PLDM, Sobal et al. 2025, arXiv 2502.14819), many episodes at once in NumPy.

The canvas has 65 x 65 pixels. Its border walls are at pixels 4 and 60. The inner wall is 3 pixels wide, around a column
from 20 to 45, with a door of 4 pixels to both sides of a row from 10 to 55; the fixed layout has them at 32 and 18.
The dot moves by the action and stops where it meets a wall. Everything is in pixels; x is to the right, y down.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.random import Generator

CANVAS = 65
LOW, HIGH = 4.0, 60.0
"""Border walls."""
HALF_WALL, HALF_DOOR = 1.5, 4.0
WALL_RANGE, DOOR_RANGE = (20, 45), (10, 55)
FIXED = (32, 18)
DOT_STD = 1.3
MAX_NORM = 2.45
"""Longest action in pixels."""
SUCCESS = 4.5
"""Distance to the goal in pixels below which an episode has succeeded."""
SKIN = 0.01
"""Distance that the dot keeps from a wall."""

Points = Float[np.ndarray, "episodes 2"]


class TwoRooms:
    """Episodes side by side, with the methods of Gymnasium's vector environments.

    An observation is what is seen, (N, 65, 65, 3) uint8: the dot in the first channel, the walls in the second.

    Args:
        num_envs: Number of episodes.
        walls: ``random`` places the wall and its door anew in every episode, ``fixed`` has them at 32 and 18.
        max_steps: Steps after which an episode is cut off.
    """

    def __init__(self, num_envs: int = 1, walls: Literal["random", "fixed"] = "random", max_steps: int = 200) -> None:
        if walls not in ("random", "fixed"):
            raise ValueError(f"walls are 'random' or 'fixed', not {walls!r}")
        if num_envs < 1 or max_steps < 1:
            raise ValueError(f"num_envs and max_steps must be at least 1, got {num_envs} and {max_steps}")
        self.num_envs, self.walls, self.max_steps = num_envs, walls, max_steps
        self.random = np.random.default_rng()
        self.reset()

    def reset(self, *, seed: int | None = None) -> tuple[UInt8[np.ndarray, "n h w 3"], dict[str, Any]]:
        """Begin all episodes: walls, a start in one room and a goal in the other, uniform.

        Args:
            seed: Everything that is random follows from it; None to go on with the last one.

        Returns:
            The observation, and ``{"goal": what is seen at the goal, "position": ..., "target": ...}``.
        """
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.wall, self.door = layouts(self.num_envs, self.walls, self.random)
        left = self.random.random(self.num_envs) < 0.5
        self.position = places(self.wall, left, self.random)
        self.target = places(self.wall, ~left, self.random)
        self.steps = 0
        self.done = np.zeros(self.num_envs, dtype=bool)
        info = {"goal": render(self.target, self.wall, self.door), "position": self.position, "target": self.target}
        return self.observe(), info

    def step(
        self, actions: np.ndarray
    ) -> tuple[
        UInt8[np.ndarray, "n h w 3"],
        Float[np.ndarray, " n"],
        Bool[np.ndarray, " n"],
        Bool[np.ndarray, " n"],
        dict[str, Any],
    ]:
        """Move all dots; an episode that has succeeded stays where it is.

        Args:
            actions: Movements (N, 2); longer ones than 2.45 pixels are shortened to that.

        Returns:
            Observation, reward (minus the distance to the goal), success, cut off, and ``{"position": ...}``.

        Raises:
            ValueError: If the actions have another shape, or are not finite.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, 2) or not np.isfinite(actions).all():
            raise ValueError(f"actions must be finite and ({self.num_envs}, 2), got {actions.shape}")
        moved = move(self.position, limited(actions), self.wall, self.door)
        self.position = np.where(self.done[:, None], self.position, moved)
        self.steps += 1
        distance = np.linalg.norm(self.position - self.target, axis=1)
        self.done = self.done | (distance < SUCCESS)
        late = np.full(self.num_envs, self.steps >= self.max_steps) & ~self.done
        return self.observe(), -distance, self.done.copy(), late, {"position": self.position}

    def observe(self) -> UInt8[np.ndarray, "n h w 3"]:
        """What is seen."""
        return render(self.position, self.wall, self.door)

    def close(self) -> None:
        """Nothing is open."""


def layouts(count: int, walls: str, random: Generator) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Column of the wall and row of the door of each episode."""
    if walls == "fixed":
        return np.full(count, float(FIXED[0])), np.full(count, float(FIXED[1]))
    wall = random.integers(WALL_RANGE[0], WALL_RANGE[1] + 1, count)
    return wall.astype(float), random.integers(DOOR_RANGE[0], DOOR_RANGE[1] + 1, count).astype(float)


def places(wall: Float[np.ndarray, " n"], left: Bool[np.ndarray, " n"], random: Generator) -> Points:
    """Uniform places in the left or the right room."""
    margin = SKIN
    low = np.where(left, LOW, wall + HALF_WALL) + margin
    high = np.where(left, wall - HALF_WALL, HIGH) - margin
    return np.stack([random.uniform(low, high), random.uniform(LOW + margin, HIGH - margin, len(wall))], axis=1)


def limited(actions: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
    """The same directions, no longer than the longest action."""
    norm = np.linalg.norm(actions, axis=-1, keepdims=True)
    return actions * np.minimum(1.0, MAX_NORM / np.maximum(norm, 1e-12))


def move(
    position: Float[np.ndarray, "*n 2"],
    action: Float[np.ndarray, "*n 2"],
    wall: Float[np.ndarray, "*#n"],
    door: Float[np.ndarray, "*#n"],
) -> Float[np.ndarray, "*n 2"]:
    """Where a dot is after an action: it stops where its way meets a wall.

    Args:
        position: (..., 2).
        action: (..., 2).
        wall: Column of the inner wall.
        door: Row of its door.
    """
    x, y = position[..., 0], position[..., 1]
    dx, dy = action[..., 0], action[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.ones(np.broadcast_shapes(x.shape, dx.shape, wall.shape))
        for start, step, low, high in ((x, dx, LOW + SKIN, HIGH - SKIN), (y, dy, LOW + SKIN, HIGH - SKIN)):
            limit = np.where(step > 0, high, low)
            share = np.minimum(share, np.where(step != 0, np.maximum((limit - start) / step, 0.0), 1.0))
        left, right = wall - HALF_WALL - SKIN, wall + HALF_WALL + SKIN
        face = np.where(x <= left + 1e-9, left, right)  # the side of the wall that the dot is on
        outside = (x <= left + 1e-9) | (x >= right - 1e-9)
        towards = np.where(x <= left + 1e-9, dx > 0, dx < 0)
        meets = np.where(towards & outside, np.maximum((face - x) / dx, 0.0), np.inf)
        row = y + dy * np.where(np.isfinite(meets), meets, 0.0)
        blocked = (meets <= share) & (np.abs(row - door) > HALF_DOOR - SKIN)
        share = np.where(blocked, np.minimum(share, meets), share)
        # In the door or coming into it: its sides are walls too.
        enters = ~outside | ((meets <= share) & ~blocked)
        side = np.where(dy > 0, door + HALF_DOOR - SKIN, door - HALF_DOOR + SKIN)
        jamb = np.where(enters & (dy != 0), np.maximum((side - y) / dy, 0.0), np.inf)
        column = x + dx * np.where(np.isfinite(jamb), jamb, 0.0)
        hit = (jamb <= share) & (column > left) & (column < right)
        share = np.where(hit, jamb, share)
    return np.stack([x + share * dx, y + share * dy], axis=-1)


_AXIS = np.arange(CANVAS, dtype=np.float32)


def render(
    position: Points, wall: Float[np.ndarray, " episodes"], door: Float[np.ndarray, " episodes"]
) -> UInt8[np.ndarray, "episodes h w 3"]:
    """What is seen: a Gaussian dot of standard deviation 1.3 in channel 0, walls in channel 1."""
    x, y = (np.exp(-0.5 * ((_AXIS - position[:, axis, None]) / DOT_STD) ** 2) for axis in (0, 1))
    frames = np.zeros((len(position), CANVAS, CANVAS, 3), dtype=np.uint8)
    np.multiply(
        (255 * y).astype(np.float32)[:, :, None], x.astype(np.float32)[:, None, :], out=frames[..., 0], casting="unsafe"
    )
    inner = np.abs(_AXIS - wall[:, None]) <= HALF_WALL  # (N, W)
    closed = np.abs(_AXIS - door[:, None]) > HALF_DOOR  # (N, H)
    border = (_AXIS <= LOW) | (_AXIS >= HIGH)
    walls = (inner[:, None, :] & closed[:, :, None]) | border[:, None] | border
    frames[..., 1] = walls * np.uint8(255)
    return frames


def walk(steps: int, count: int, random: Generator) -> Float[np.ndarray, "steps episodes 2"]:
    """The actions of training: a direction that drifts (von Mises), lengths around 1 (normal, cut to 0.2 and 1.8)."""
    start = random.uniform(-np.pi, np.pi, count)
    turns = random.vonmises(0.0, 1 / 0.2**2, (steps, count))  # of standard deviation 0.2
    angle = start + np.cumsum(turns, axis=0)
    length = random.normal(1.0, 0.4, (steps, count))
    while (wrong := (length < 0.2) | (length > 1.8)).any():
        length[wrong] = random.normal(1.0, 0.4, int(wrong.sum()))
    return np.stack([length * np.cos(angle), length * np.sin(angle)], axis=-1)
