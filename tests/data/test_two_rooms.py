from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jepa_lightning.data.trajectories import TrajectoryDataModule
from jepa_lightning.data.two_rooms import TwoRoomsEpisodes, simulate
from jepa_lightning.environments import two_rooms


def test_episodes_are_written_once_and_read_as_they_were_simulated(tmp_path: Path) -> None:
    source = TwoRoomsEpisodes(10, steps=12, cache=str(tmp_path))
    data = TrajectoryDataModule(source, num_frames=13, batch_size=1, num_workers=0, seed=0, img_size=65)
    data.prepare_data()
    written = {path: path.stat().st_mtime_ns for path in source.root.rglob("*.mp4")}
    assert len(written) == 12
    source.prepare()
    assert {path: path.stat().st_mtime_ns for path in source.root.rglob("*.mp4")} == written
    piece = data.dataset("train", augment=False)[3]
    frames, actions, states = simulate(10, 12, "random", np.random.default_rng([1, 0, 0, 12]))[3]
    assert np.array_equal(piece.frames.permute(1, 2, 3, 0).numpy(), frames)
    assert np.array_equal(piece.actions.numpy(), actions)
    assert np.array_equal(piece.states.numpy(), states)  # type: ignore[union-attr]
    with pytest.raises(FileNotFoundError, match="has the splits train, val, test"):
        source.episodes("more")


def test_a_third_of_the_walks_begin_towards_the_door_and_some_pass_it() -> None:
    random = np.random.default_rng(0)
    paths = np.stack([states for _, _, states in simulate(400, 90, "fixed", random)])
    start, end = paths[:, 0], paths
    near = np.linalg.norm(start - np.array(two_rooms.FIXED), axis=1) < 15 * 2**0.5
    assert 0.35 < near.mean() < 0.7
    sides = np.sign(end[..., 0] - two_rooms.FIXED[0])
    assert 0.15 < (sides != sides[:, :1]).any(axis=1).mean() < 0.7
