from __future__ import annotations

import time

import numpy as np
import pytest

from jepa_lightning.environments import TwoRooms
from jepa_lightning.environments import two_rooms as rooms

ONE = np.array([32.0]), np.array([18.0])


def moved(start: tuple[float, float], action: tuple[float, float]) -> np.ndarray:
    return rooms.move(np.array([start], float), np.array([action], float), *ONE)[0]


def test_geometry_is_the_published_one() -> None:
    frame = rooms.render(np.array([[10.0, 40.0]]), *ONE)[0]
    assert frame.shape == (65, 65, 3)
    walls = frame[..., 1] > 0
    assert walls[40, 31:34].all()
    assert not walls[40, [30, 34]].any()
    assert not walls[14:23, 31:34].any()
    assert walls[13, 32]
    assert walls[23, 32]
    assert walls[:, 4].all()
    assert walls[:, 60].all()
    assert not walls[30, 5:31].any()
    assert np.unravel_index(frame[..., 0].argmax(), (65, 65)) == (40, 10)
    dot = frame[40, :, 0] / 255.0
    assert dot[11] == pytest.approx(np.exp(-0.5 / 1.3**2), abs=0.01)
    assert not frame[..., 2].any()


def test_start_and_goal_are_in_different_rooms_and_inside() -> None:
    env = TwoRooms(500)
    env.reset(seed=3)
    assert ((env.position[:, 0] < env.wall) != (env.target[:, 0] < env.wall)).all()
    for points in (env.position, env.target):
        assert ((points > rooms.LOW) & (points < rooms.HIGH)).all()
        assert (np.abs(points[:, 0] - env.wall) > rooms.HALF_WALL).all()
    assert set(env.wall) == set(range(20, 46))
    assert set(env.door) == set(range(10, 56))
    assert (TwoRooms(3, "fixed").wall == 32).all()


@pytest.mark.parametrize(
    ("start", "action", "expected"),
    [
        ((10, 40), (1.5, -2.0), (11.5, 38.0)),  # free
        ((30, 40), (2.0, 1.0), (30.49, 40.245)),  # stops at the wall
        ((34, 40), (-2.0, 0.0), (33.51, 40)),
        ((30, 18), (2.0, 0.0), (32, 18)),  # through the door
        ((32, 18), (0.0, 2.4), (32, 20.4)),
        ((32, 21), (0.0, 2.4), (32, 21.99)),  # stops at the side of the door
        ((32, 15), (1.0, -2.0), (32.495, 14.01)),
        ((5, 30), (-2.0, 0.0), (4.01, 30)),  # the border
        ((10, 59), (2.0, 2.0), (10.99, 59.99)),
    ],
)  # fmt: skip
def test_a_dot_stops_where_its_way_meets_a_wall(
    start: tuple[float, float], action: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert moved(start, action) == pytest.approx(expected, abs=1e-6)


def test_no_dot_ever_crosses_a_wall_but_through_the_door() -> None:
    random = np.random.default_rng(0)
    wall, door = rooms.layouts(400, "random", random)
    position = rooms.places(wall, random.random(400) < 0.5, random)
    crossed = 0
    for action in rooms.limited(random.normal(0, 2, (300, 400, 2))):
        following = rooms.move(position, action, wall, door)
        assert ((following >= rooms.LOW) & (following <= rooms.HIGH)).all()
        inside = np.abs(following[:, 0] - wall) < rooms.HALF_WALL
        assert (np.abs(following[inside, 1] - door[inside]) < rooms.HALF_DOOR).all()
        cross = (position[:, 0] - wall) * (following[:, 0] - wall) < 0
        steps = np.linspace(0, 1, 30)[:, None]
        way = position[cross] + steps[..., None] * (following - position)[cross]
        within = np.abs(way[..., 0] - wall[cross]) < rooms.HALF_WALL
        assert (np.abs(way[..., 1] - door[cross])[within] < rooms.HALF_DOOR).all()
        crossed += int(cross.sum())
        position = following
    assert crossed > 20


def test_an_episode_ends_near_the_goal_and_stays_there() -> None:
    env = TwoRooms(2, "fixed", max_steps=3)
    env.reset(seed=0)
    env.position, env.target = np.array([[10.0, 30.0], [10.0, 30.0]]), np.array([[16.0, 30.0], [50.0, 30.0]])
    _, reward, done, late, _ = env.step(np.array([[9.0, 0.0], [1.0, 0.0]]))
    assert reward == pytest.approx([-3.55, -39.0])  # the longest action is 2.45
    assert done.tolist() == [True, False]
    _, _, done, late, info = env.step(np.array([[-2.0, 0.0], [1.0, 0.0]]))
    assert info["position"][:, 0] == pytest.approx([12.45, 12.0])
    assert not late.any()
    assert env.step(np.zeros((2, 2)))[3].tolist() == [False, True]


def test_everything_follows_from_the_seed() -> None:
    frames = [TwoRooms(5).reset(seed=seed)[0] for seed in (1, 1, 2)]
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[2])


def test_the_walk_has_the_published_steps() -> None:
    actions = rooms.walk(200, 300, np.random.default_rng(0))
    length = np.linalg.norm(actions, axis=-1)
    assert (length.min() >= 0.2, length.max() <= 1.8) == (True, True)
    assert length.mean() == pytest.approx(1.0, abs=0.01)
    angle = np.arctan2(actions[..., 1], actions[..., 0])
    turn = (np.diff(angle, axis=0) + np.pi) % (2 * np.pi) - np.pi
    assert turn.std() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("actions", [np.zeros((2, 3)), np.zeros(2), np.array([[np.nan, 0.0], [0.0, 0.0]])])
def test_actions_that_are_none_are_refused(actions: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"actions must be finite and \(2, 2\)"):
        TwoRooms(2).step(actions)


def test_a_frame_takes_less_than_100_microseconds_in_a_batch() -> None:
    env, actions = TwoRooms(256), np.ones((256, 2))
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        env.step(actions)
        best = min(best, (time.perf_counter() - start) / 256)
    assert best < 100e-6
