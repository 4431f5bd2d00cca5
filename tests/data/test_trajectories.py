from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa_lightning.data.episodes import list_episodes, write_episode
from jepa_lightning.data.sampler import Draw
from jepa_lightning.data.trajectories import EpisodeFolder, TrajectoryDataModule
from jepa_lightning.trajectory import Trajectory

Write = Callable[..., Path]


@pytest.fixture
def episodes(tmp_path: Path) -> Write:
    """Videos whose frame t is of colour (10 number, t, 0), with actions (number, t)."""

    def write(count: int = 4, frames: int = 9, states: bool = True, folder: str = "", **more: Any) -> Path:
        root = tmp_path / "episodes"
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.zeros((frames, 15, 17, 3), np.uint8)
            pixels[..., 0], pixels[..., 1] = 10 * number, np.arange(frames)[:, None, None]
            actions = np.stack([np.full(frames - 1, number), np.arange(frames - 1)], axis=1).astype(np.float32)
            known = {"states": np.arange(frames, dtype=np.float32)[:, None] * [1, 2, 3]} if states else {}
            write_episode(root / folder, f"e{number}", pixels, actions=actions, **known, **more)
        return root

    return write


def module(root: Path, **options: Any) -> TrajectoryDataModule:
    return TrajectoryDataModule(root=str(root), **{"num_frames": 3, "batch_size": 2, "num_workers": 0, "seed": 1,
                                                   "img_size": (15, 17), **options})  # fmt: skip


def test_pixels_actions_and_states_of_a_piece_belong_together(episodes: Write) -> None:
    data = module(episodes())
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, Trajectory)
    assert (batch.frames.shape, batch.frames.dtype) == ((2, 3, 3, 15, 17), torch.uint8)
    assert batch.extrinsics is None
    for frames, actions, states in zip(batch.frames, batch.actions, batch.states, strict=True):  # type: ignore[arg-type]
        time = frames[1, :, 7, 7].float()
        assert torch.equal(actions, torch.stack([frames[0, :2, 0, 0].float() / 10, time[:2]], dim=1))
        assert torch.equal(states, time.unsqueeze(1) * torch.tensor([1.0, 2.0, 3.0]))


def test_on_the_device_frames_are_normalised(episodes: Write) -> None:
    data = module(episodes(), normalization=((0.1, 0.2, 0.3), (0.5, 0.5, 0.25)))
    batch = next(iter(data.train_dataloader()))
    found = data.on_after_batch_transfer(batch, 0).frames[0, 2]
    assert torch.allclose(found, torch.tensor((0.0 - 0.3) / 0.25))
    assert found.dtype == torch.float32


def test_pieces_follow_from_seed_epoch_and_index(episodes: Write) -> None:
    dataset = module(episodes(frames=30)).dataset("train", augment=True)
    starts = [[int(dataset[Draw(index, epoch)].frames[1, 0, 0, 0]) for index in range(8)] for epoch in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]
    assert len(set(starts[0])) > 3
    clean = module(episodes(frames=30)).dataset("train", augment=False)
    assert [int(clean[i].frames[1, 0, 0, 0]) for i in range(3)] == [0, 3, 6]


def test_an_epoch_goes_on_where_a_checkpoint_left_off(episodes: Write) -> None:
    root = episodes(frames=20)
    whole = [batch.frames for batch in module(root).train_dataloader()]
    loader = module(root).train_dataloader()
    taken = iter(loader)
    for _ in range(3):
        next(taken)
    state = copy.deepcopy(loader.state_dict())
    again = module(root).train_dataloader()
    again.load_state_dict(state)
    rest = [batch.frames for batch in again]
    assert len(whole) == 3 + len(rest)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.parametrize(
    ("combine", "expected"), [("sum", [[4.0, 1.0], [4.0, 5.0]]), ("concat", [[2, 0, 2, 1], [2, 2, 2, 3]])]
)
def test_actions_between_kept_frames_are_summed_or_concatenated(
    episodes: Write, combine: Any, expected: list[list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    data = module(episodes(), fps=5, combine=combine)
    dataset = data.dataset("train", augment=False)
    first = next(
        dataset[i] for i, (number, _) in enumerate(dataset.pieces) if dataset.episodes[number].path.stem == "e2"
    )
    assert torch.equal(first.actions, torch.tensor(expected, dtype=torch.float32))
    assert first.frames[1, :, 0, 0].tolist() == [0, 2, 4]
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        data.setup("fit")
    assert f"the 2 actions between two of them are {'summed' if combine == 'sum' else 'concatenated'}" in caplog.text


def test_a_frame_rate_that_divides_no_video_is_refused(episodes: Write) -> None:
    with pytest.raises(ValueError, match=r"videos of 10 frames a second cannot give 4 .* divisor"):
        module(episodes(), fps=4).dataset("train", augment=True)


def test_frames_are_resized_where_the_model_wants_another_size(episodes: Write) -> None:
    piece = module(episodes(), img_size=8).dataset("train", augment=False)[0]
    assert piece.frames.shape == (3, 3, 8, 8)


def test_splits_are_folders_or_held_out_by_name(episodes: Write, tmp_path: Path) -> None:
    source = EpisodeFolder(str(episodes(count=20)), holdout=0.3)
    train, val = ({episode.path.stem for episode in source.episodes(split)} for split in ("train", "val"))
    assert train | val == {f"e{number}" for number in range(20)}
    assert not train & val
    assert 2 <= len(val) <= 10
    with pytest.raises(FileNotFoundError, match="has no test split"):
        source.episodes("test")
    for split in ("train", "val"):
        episodes(count=2, folder=f"s/{split}")
    assert len(EpisodeFolder(str(tmp_path / "episodes" / "s")).episodes("val")) == 2
    with pytest.raises(FileNotFoundError):
        EpisodeFolder(str(tmp_path / "nothing")).episodes("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: None, r"e1.mp4 \(no e1.npz\)"),
        (lambda a: {"states": a["states"]}, "has no actions, but states"),
        (lambda a: {"actions": a["actions"][:5]}, "5 actions for 9 frames, which need 8"),
        (lambda a: {"actions": np.zeros((12, 2))}, "the video has 9 frames, and there are 12 actions"),
        (lambda a: {"actions": np.where(a["actions"] == 3, np.nan, a["actions"])}, "actions are not finite in step 3"),
        (lambda a: {**a, "actions": a["actions"][:, :1]}, "actions of 1 numbers, most have 2"),
        (lambda a: {"actions": a["actions"]}, "states of 0 numbers, most have 3"),
        (lambda a: {**a, "states": a["states"][1:]}, "8 states for 9 frames"),
        (lambda a: {"actions": a["actions"][:, 0]}, r"actions are float32 \[8\], not a table"),
        (lambda a: {"actions": np.array([["a"]])}, "not a table of numbers"),
        (lambda a: {"actions": np.array([{}])}, "not a table|cannot be read|Object arrays"),
    ],
)
def test_episodes_that_cannot_be_used_are_named_and_left_out(episodes: Write, change: Any, message: str) -> None:
    root = episodes()
    with np.load(root / "e1.npz") as archive:
        arrays = change(dict(archive))
    (root / "e1.npz").unlink()
    if arrays is not None:
        np.savez(root / "e1.npz", **arrays)
    with pytest.warns(UserWarning, match=rf"1 of 4 episodes are left out: .*{message}"):
        found = list_episodes(root)
    assert [episode.path.stem for episode in found] == ["e0", "e2", "e3"]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"no video" * 99)])
def test_videos_and_archives_that_are_damaged_are_left_out(episodes: Write, damage: Any) -> None:
    root = episodes()
    damage(root / "e1.mp4")
    damage(root / "e3.npz")
    with pytest.warns(UserWarning, match=r"2 of 4 episodes are left out: e1.mp4 .*, e3.mp4 .e3.npz cannot be read"):
        assert len(list_episodes(root)) == 2


def test_without_any_good_episode_it_is_an_error_in_one_line(episodes: Write) -> None:
    root = episodes(count=1)
    (root / "e0.npz").unlink()
    with pytest.raises(ValueError, match=r"none of 1 episodes can be used: e0.mp4 \(no e0.npz\)$"):
        list_episodes(root)
    with pytest.raises(
        ValueError, match=r"no episode has the 40 frames .* longest has 9; set --data.num_frames to at most 9"
    ):
        module(episodes(), num_frames=40).dataset("train", augment=True)


@pytest.mark.parametrize("options", [{"root": "a", "source": EpisodeFolder("a")}, {}, {"root": "a", "num_frames": 1}])
def test_settings_that_make_no_trajectory_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"give either|at least 2"):
        TrajectoryDataModule(**options)
