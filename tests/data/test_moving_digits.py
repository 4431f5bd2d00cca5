from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from jepa_lightning.data import MovingDigits, PyAVDecoder, moving_digits
from jepa_lightning.data.embedded import parts
from jepa_lightning.data.moving_digits import CLUTTERED, FPS, FRAMES, GOP, MOTIONS, PLAIN, Style, render, write_video

ROOM, SPEED = 40.0, 2.0


@pytest.fixture(scope="module", params=[False, True], ids=["cluttered", "plain"])
def digits(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MovingDigits]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "COUNTS", {"train": 300, "val": 150, "test": 6})
        source = MovingDigits(plain=request.param, cache=str(tmp_path_factory.mktemp("cache")))
        source.prepare()
        yield source


def clips(source: MovingDigits, split: str, frames: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Grey frames (N, T, 32, 32) of all clips of a split, decoded, and their motions."""
    videos, pixels = source.split(split), []  # type: ignore[arg-type]
    for index in range(len(videos)):
        with videos.open(index, PyAVDecoder()) as video:
            grey = video.frames(frames).float().mean(dim=3)
        pixels.append(torch.nn.functional.avg_pool2d(grey, 2).numpy())
    return np.stack(pixels), np.array([motion for _, motion in videos.labels])


def accuracy(train: np.ndarray, train_y: np.ndarray, val: np.ndarray, val_y: np.ndarray, strength: float) -> float:
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    model = LogisticRegression(C=strength, max_iter=500).fit((train - mean) / std, train_y)
    return float((model.predict((val - mean) / std) == val_y).mean())


def flow(frames: np.ndarray) -> np.ndarray:
    """Mean motion to the right and downwards from the first frame to the second, up to a factor, (N, 2)."""
    middle, change = frames.mean(axis=1), (frames[:, 1] - frames[:, 0])[:, 1:-1, 1:-1]
    right = middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2]
    down = middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1]
    scale = (change**2).sum(axis=(1, 2)) + 1
    return np.stack([(change * slope).sum(axis=(1, 2)) / scale for slope in (right, down)], axis=1)


def first_digit() -> tuple[np.ndarray, list[np.ndarray]]:
    images, _, photographs = parts("val")
    return images[0], photographs


def test_clips_are_written_once_as_h264_with_an_index_of_labels(digits: MovingDigits) -> None:
    files = sorted(digits.root.rglob("*.mp4"))
    assert len(files) == 456
    with av.open(str(files[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", FPS, FRAMES)
        keys = [bool(frame.key_frame) for frame in container.decode(stream)]
        if digits.style is PLAIN:  # x264 may add some where a large digit starts again
            assert keys[0]
            assert FRAMES // GOP <= sum(keys) < FRAMES // 4
        else:
            assert keys == [number % GOP == 0 for number in range(FRAMES)]  # to reach the end one must seek
    with (digits.root / "labels.csv").open() as index:
        rows = list(csv.DictReader(index))
    assert {row["file"] for row in rows} == {file.relative_to(digits.root).as_posix() for file in files}
    times = [file.stat().st_mtime_ns for file in files]
    digits.prepare()
    assert times == [file.stat().st_mtime_ns for file in files]
    assert list(digits.root.parent.iterdir()) == [digits.root]


def test_every_clip_has_two_labels(digits: MovingDigits) -> None:
    train = digits.split("train")
    assert train.label_names == ("digit", "motion")
    assert train.classes == [[str(digit) for digit in range(10)], list(MOTIONS)]
    assert {digit for digit, _ in train.labels} == set(range(10))
    counts = np.bincount([motion for _, motion in train.labels], minlength=6)
    assert counts.min() > 25
    assert [len(digits.split(split)) for split in ("val", "test", "all")] == [150, 6, 456]  # type: ignore[arg-type]
    # Neither order nor name of a file says what is in it.
    numbers = np.arange(len(train))
    assert abs(np.corrcoef(numbers, [motion for _, motion in train.labels])[0, 1]) < 0.15


def test_before_it_is_prepared_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"moving_digits_v\d+_64 is not there"):
        MovingDigits(cache=str(tmp_path)).split("train")


def test_an_interrupted_attempt_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moving_digits, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MovingDigits(cache=str(tmp_path)).prepare()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [63, 16])
def test_sizes_that_no_codec_takes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be an even number from 32 on"):
        MovingDigits(size)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("frame", [0, 11, FRAMES - 1])
def test_in_each_frame_of_each_motion_every_place_is_equally_likely(motion: str, frame: int) -> None:
    random, count, bins = np.random.default_rng(0), 4000, 5
    places = np.stack([MOTIONS[motion](ROOM, SPEED, random)[frame] for _ in range(count)])
    assert places.min() >= 0
    assert places.max() <= ROOM
    cells, _, _ = np.histogram2d(*places.T, bins=bins, range=[(0, ROOM), (0, ROOM)])
    expected = count / bins**2
    chi_square = ((cells - expected) ** 2 / expected).sum()
    assert chi_square < 51.2  # 24 degrees of freedom: one in a thousand is larger


@pytest.mark.parametrize(("motion", "step"), [("right", (1, 0)), ("left", (-1, 0)), ("up", (0, -1)), ("down", (0, 1))])
def test_straight_motions_go_where_they_say_and_start_again(motion: str, step: tuple[int, int]) -> None:
    path = MOTIONS[motion](ROOM, SPEED, np.random.default_rng(0))
    steps = np.diff(path, axis=0)
    along = np.abs(steps - SPEED * np.array(step)).max(axis=1) < 1e-6
    again = np.abs(steps - (SPEED - ROOM) * np.array(step)).max(axis=1) < 1e-6
    assert (along | again).all()
    assert 1 <= again.sum() <= 2


@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_round_motions_go_round_at_the_same_speed(motion: str, sign: int) -> None:
    for seed in range(20):
        path = MOTIONS[motion](ROOM, SPEED, np.random.default_rng(seed))
        steps = np.diff(path, axis=0)
        assert np.abs(steps).sum(axis=1).max() <= SPEED + 1e-6  # round a corner it is as long, but not as far
        centre = (path.max(axis=0) + path.min(axis=0)) / 2
        if np.ptp(path, axis=0).min() > 4:  # at least half of the square was gone round
            arms = path[:-1] - centre
            turning = arms[:, 0] * steps[:, 1] - arms[:, 1] * steps[:, 0]  # rows go down: positive is clockwise
            assert sign * turning.sum() > 0


def test_one_decoded_frame_does_not_tell_the_motion_and_two_do(digits: MovingDigits) -> None:
    chosen = [0, 12, 13, FRAMES - 1]
    (train, train_y), (val, val_y) = clips(digits, "train", chosen), clips(digits, "val", chosen)
    for frame in range(len(chosen)):
        pixels = [frames[:, frame, ::2, ::2].reshape(len(frames), -1) for frames in (train, val)]
        assert accuracy(pixels[0], train_y, pixels[1], val_y, 0.001) < 0.27  # chance 0.17, three deviations of 0.03
    pairs = [flow(frames[:, 1:3]) for frames in (train, val)]
    assert accuracy(pairs[0], train_y, pairs[1], val_y, 10.0) > 0.45


def test_plain_and_cluttered_clips_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    plain, cluttered = (MovingDigits(plain=plain, cache=str(tmp_path)).root for plain in (True, False))
    assert plain != cluttered


def test_plain_clips_show_a_light_digit_before_an_even_dark_background() -> None:
    image, photographs = first_digit()
    blank, seen = [], []
    for seed in range(40):
        frames = render(image, photographs, "up", 64, np.random.default_rng(seed), PLAIN).astype(float)
        blank.append(render(0 * image, photographs, "up", 64, np.random.default_rng(seed), PLAIN)[0].astype(float))
        seen.append((frames[0] - blank[-1]).max())
    assert np.mean(blank) < 80
    assert np.mean([picture.std(axis=(0, 1)).mean() for picture in blank]) < 12
    assert min(seen) > 60


@pytest.mark.parametrize("style", [CLUTTERED, PLAIN], ids=["cluttered", "plain"])
def test_the_background_stands_still_and_the_digit_is_seen(style: Style) -> None:
    image, photographs = first_digit()
    for motion in MOTIONS:
        frames = render(image, photographs, motion, 64, np.random.default_rng(1), style).astype(int)
        blank = render(0 * image, photographs, motion, 64, np.random.default_rng(1), style).astype(int)
        assert (blank == blank[:1]).all()
        changed = np.abs(frames - blank).sum(axis=3) > 20
        shares = changed.mean(axis=(1, 2))
        assert shares.min() > 0.02
        assert shares.max() < 0.2
        assert np.abs(shares - shares.mean()).max() < 0.02  # never cut by the border


def test_a_clip_is_drawn_from_its_random_numbers_alone() -> None:
    one, other = (render(*first_digit(), "up", 64, np.random.default_rng(5)) for _ in range(2))
    assert (one == other).all()


def test_without_x264_the_files_are_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frames = render(*first_digit(), "left", 64, np.random.default_rng(0))
    write_video(tmp_path / "clip.mp4", frames)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    with PyAVDecoder().open(tmp_path / "clip.mp4") as video:
        decoded = video.frames(list(range(FRAMES))).numpy().astype(int)
    assert np.abs(decoded - frames).mean() < 12
