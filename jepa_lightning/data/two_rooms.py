"""Trajectories of Two Rooms, simulated and written once to the cache as a folder of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from jepa_lightning.data.embedded import default_cache, write_once
from jepa_lightning.data.episodes import SPLITS, Episode, list_episodes, write_episode
from jepa_lightning.data.trajectories import TrajectorySource
from jepa_lightning.environments import two_rooms

VERSION = 1
"""Part of the folder's name: a change of the simulator makes a new folder."""
CROSSING = 0.35
"""Fraction of the episodes that begin near the door, towards it."""
NEAR = 15.0
"""Pixels from the door within which these begin."""
BLOCK = 100
"""Episodes that are simulated side by side."""


class TwoRoomsEpisodes(TrajectorySource):
    """Random walks in Two Rooms: 91 frames each, actions in pixels, the position as the state.

    Args:
        episodes: Number of training episodes; a tenth of it more for validation, and for test.
        walls: ``random`` or ``fixed``.
        steps: Actions in an episode.
        cache: Where the files are written, once; null for ~/.cache/jepa_lightning.
    """

    def __init__(
        self,
        episodes: int = 2000,
        walls: Literal["random", "fixed"] = "random",
        steps: int = 90,
        cache: str | None = None,
    ) -> None:
        if episodes < 10 or steps < 1:
            raise ValueError(f"episodes must be at least 10 and steps at least 1, got {episodes} and {steps}")
        self.counts = {"train": episodes, "val": episodes // 10, "test": episodes // 10}
        self.walls, self.steps = walls, steps
        name = f"two_rooms_v{VERSION}_{walls}_{episodes}x{steps}"
        self.root = (Path(cache).expanduser() if cache else default_cache()) / name

    def prepare(self) -> None:
        """Simulate and write, unless it is done."""
        write_once(self.root, self._write)

    def _write(self, folder: Path) -> None:
        with tqdm(total=sum(self.counts.values()), desc="simulating Two Rooms", leave=False, delay=2) as progress:
            for split, count in self.counts.items():
                (folder / split).mkdir()
                for first in range(0, count, BLOCK):
                    random = np.random.default_rng([VERSION, SPLITS.index(split), first, self.steps])
                    size = min(BLOCK, count - first)
                    for number, (frames, actions, states) in enumerate(simulate(size, self.steps, self.walls, random)):
                        write_episode(folder / split, f"{first + number:06d}", frames, actions=actions, states=states)
                        progress.update()

    def episodes(self, split: str) -> list[Episode]:
        """The episodes of a split.

        Raises:
            FileNotFoundError: If there is no such split.
        """
        self.prepare()
        if split not in self.counts:
            raise FileNotFoundError(f"Two Rooms has the splits {', '.join(self.counts)}, not {split}")
        return list_episodes(self.root / split)


def simulate(
    count: int, steps: int, walls: str, random: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Frames (T, 65, 65, 3), actions (T - 1, 2) and positions (T, 2) of random walks."""
    wall, door = two_rooms.layouts(count, walls, random)
    left = random.random(count) < 0.5
    position = two_rooms.places(wall, left, random)
    actions = two_rooms.walk(steps, count, random)
    crossing = random.random(count) < CROSSING
    gap = random.uniform(two_rooms.HALF_WALL + 1.0, NEAR, count) * np.where(left, -1, 1)
    near = np.stack([wall + gap, door + random.uniform(-NEAR, NEAR, count)], axis=1)
    low, high = two_rooms.LOW + two_rooms.SKIN, two_rooms.HIGH - two_rooms.SKIN
    position = np.where(crossing[:, None], near.clip(low, high), position)
    towards = np.stack([wall, door], axis=1) - position
    turn = np.arctan2(towards[:, 1], towards[:, 0]) - np.arctan2(actions[0, :, 1], actions[0, :, 0])
    turn = np.where(crossing, turn, 0.0)
    cos, sin = np.cos(turn), np.sin(turn)  # all of the walk turns with its first step
    actions = np.stack(
        [cos * actions[..., 0] - sin * actions[..., 1], sin * actions[..., 0] + cos * actions[..., 1]], -1
    )
    positions = [position]
    for action in actions:
        positions.append(two_rooms.move(positions[-1], action, wall, door))
    path = np.stack(positions, axis=1)  # (N, T, 2)
    frames = two_rooms.render(path.reshape(-1, 2), wall.repeat(steps + 1), door.repeat(steps + 1))
    shown = frames.reshape(count, steps + 1, *frames.shape[1:])
    done = actions.transpose(1, 0, 2).astype(np.float32)
    return list(zip(shown, done, path.astype(np.float32), strict=True))
