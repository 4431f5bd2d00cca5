"""Pieces of episodes, frames with the actions between them: the data module of world models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jepa_lightning.data.base import Collator, JEPADataModule
from jepa_lightning.data.decode import Decoder, PyAVDecoder
from jepa_lightning.data.episodes import Episode, held_out, list_episodes, split_of
from jepa_lightning.data.sampler import Draw
from jepa_lightning.masking import seeded
from jepa_lightning.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from jepa_lightning.trajectory import Trajectory

Combine = Literal["sum", "concat"]


class TrajectorySource(ABC):
    """Where episodes come from."""

    def prepare(self) -> None:  # noqa: B027  # most have nothing to do
        """Write or download what is needed, once."""

    @abstractmethod
    def episodes(self, split: str) -> list[Episode]:
        """The episodes of a split; raises FileNotFoundError if there is no such split."""


class EpisodeFolder(TrajectorySource):
    """A folder with NAME.mp4 and NAME.npz for each episode, or with such folders ``train``, ``val`` and ``test``.

    Args:
        root: The folder.
        holdout: Fraction of the episodes held out for validation, where there are no folders of splits.
    """

    def __init__(self, root: str, holdout: float = 0.1) -> None:
        if not 0.0 <= holdout < 1.0:
            raise ValueError(f"holdout is a fraction of the episodes: use 0 to below 1, not {holdout}")
        self.root, self.holdout = Path(root).expanduser(), holdout

    def episodes(self, split: str) -> list[Episode]:
        """The episodes of a split."""
        folder, cut = split_of(self.root, split, self.holdout)
        found = list_episodes(folder)
        if not cut:
            return found
        kept = [
            episode
            for episode, out in zip(found, held_out(found, self.holdout), strict=True)
            if out == (split == "val")
        ]
        if not kept:
            raise FileNotFoundError(f"{self.root} has no episodes for {split} (holdout {self.holdout})")
        return kept


class TrajectoryDataset(Dataset[Trajectory]):
    """Pieces of equal length of episodes, cut at random in training, always the same in evaluation.

    An episode counts as often as such pieces fit into it, one after the other.

    Args:
        episodes: The episodes.
        num_frames: Frames of a piece.
        every: Distance of its frames in frames of the video.
        combine: What becomes of the actions between two kept frames: their sum, or all of them in a row.
        size: Height and width of a frame; of videos of another size the middle is cut out
            and resized.
        seed: Part of the key of every draw.
        random: Draw where a piece begins.
        decoder: Opens the videos; None for PyAV.

    Raises:
        ValueError: If no episode is long enough.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        num_frames: int,
        every: int,
        combine: Combine,
        size: tuple[int, int] | None,
        seed: int,
        random: bool,
        decoder: Decoder | None = None,
    ) -> None:
        self.num_frames, self.every, self.combine, self.size = num_frames, every, combine, size
        self.seed, self.random, self.decoder = seed, random, decoder or PyAVDecoder()
        self.span = (num_frames - 1) * every + 1
        self.episodes = [episode for episode in episodes if episode.frames >= self.span]
        if not self.episodes:
            longest = max(episode.frames for episode in episodes)
            raise ValueError(
                f"no episode has the {self.span} frames of a piece of {num_frames}, every {every}: the longest has "
                f"{longest}; set --data.num_frames to at most {(longest - 1) // every + 1}"
            )
        self.pieces = [
            (number, piece * self.span)
            for number, episode in enumerate(self.episodes)
            for piece in range(episode.frames // self.span)
        ]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, draw: int | Draw) -> Trajectory:
        """A piece without batch axis: frames uint8 (C, T, H, W), actions (T - 1, A), states (T, S)."""
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        number, start = self.pieces[draw.index]
        episode = self.episodes[number]
        if self.random:
            generator = seeded("piece", self.seed, draw.epoch, draw.index)
            start = int(torch.randint(episode.frames - self.span + 1, (), generator=generator))
        index = np.arange(start, start + self.span, self.every)
        with self.decoder.open(episode.path) as video:
            frames = video.frames(index.tolist()).permute(0, 3, 1, 2)  # (T, 3, H, W)
        if self.size is not None:
            frames = fitted(frames, self.size)
        actions = torch.from_numpy(episode.actions[start : start + self.span - 1]).unflatten(0, (-1, self.every))
        actions = actions.sum(dim=1) if self.combine == "sum" else actions.flatten(1)
        known = (None if x is None else torch.from_numpy(x[index]) for x in (episode.states, episode.extrinsics))
        return Trajectory(frames.transpose(0, 1).contiguous(), actions, *known)


def fitted(
    frames: UInt8[Tensor, "time channels height width"], size: tuple[int, int]
) -> UInt8[Tensor, "time channels h w"]:
    """The largest centred piece of frames with the proportions of ``size``, resized to it."""
    height, width = frames.shape[2:]
    if (height, width) == size:
        return frames
    scale = min(height / size[0], width / size[1])
    rows, columns = round(size[0] * scale), round(size[1] * scale)
    top, left = (height - rows) // 2, (width - columns) // 2
    piece = frames[:, :, top : top + rows, left : left + columns].float()
    return F.interpolate(piece, size, mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)


def collate(samples: Sequence[Trajectory]) -> Trajectory:
    """A batch of pieces; what an episode does not have is None in all of them."""
    columns = zip(*samples, strict=True)
    stacked: Any = (None if column[0] is None else torch.stack(column) for column in columns)
    return Trajectory(*stacked)


class TrajectoryDataModule(JEPADataModule):
    """Emits Trajectories for training and validation.

    Args:
        source: Where episodes come from: EpisodeFolder or TwoRooms.
        root: Short for an EpisodeFolder source.
        num_frames: Frames of a piece of an episode.
        fps: Frames in a second; null for those of the videos. A divisor of it leaves frames out.
        combine: What becomes of the actions between two kept frames: ``sum``, as for movements, or ``concat``.
        batch_size: Pieces in a batch of one process.
        num_workers: Loader processes; null for one less than this process has cores, at most 8.
        seed: Key of shuffles and pieces; null for the seed of the run (``seed_everything``).
        img_size: Side of a frame in pixels, or (height, width); null for what the model was built for.
        normalization: Mean and standard deviation of each channel, for values from 0 to 1.
    """

    def __init__(
        self,
        source: TrajectorySource | None = None,
        root: str | None = None,
        num_frames: int = 8,
        fps: float | None = None,
        combine: Combine = "sum",
        batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        normalization: tuple[tuple[float, float, float], tuple[float, float, float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        super().__init__(None, batch_size, num_workers, seed, img_size, None, *normalization)
        if (source is None) == (root is None):
            raise ValueError("give either --data.root FOLDER, a folder of episodes, or --data.source")
        if num_frames < 2:
            raise ValueError(f"num_frames must be at least 2, so that there is an action, not {num_frames}")
        self.source: TrajectorySource = EpisodeFolder(root) if root is not None else source  # type: ignore[assignment]
        self.num_frames, self.fps, self.combine = num_frames, fps, combine
        self._episodes: dict[str, list[Episode]] = {}

    def prepare_data(self) -> None:
        """Write the episodes of an embedded source, once."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Say what becomes of actions between frames that are left out."""
        if (every := self.every(self.episodes("train"))) > 1:
            done = "summed" if self.combine == "sum" else "concatenated"
            rank_zero_info(f"every {every}th frame is kept, and the {every} actions between two of them are {done}")

    def episodes(self, split: str) -> list[Episode]:
        """The episodes of a split, listed once."""
        if split not in self._episodes:
            self._episodes[split] = self.source.episodes(split)
        return self._episodes[split]

    def every(self, episodes: Sequence[Episode]) -> int:
        """Frames from one that is kept to the next.

        Raises:
            ValueError: If ``fps`` is no divisor of the frame rate of the videos, or these have several.
        """
        if self.fps is None:
            return 1
        rates = {round(episode.fps, 2) for episode in episodes}
        steps = {round(rate / self.fps) for rate in rates}
        if (
            len(steps) > 1
            or min(steps) < 1
            or any(abs(rate / self.fps - round(rate / self.fps)) > 0.02 for rate in rates)
        ):
            raise ValueError(
                f"videos of {', '.join(f'{rate:g}' for rate in sorted(rates)[:5])} frames a second cannot give "
                f"{self.fps:g} with actions between them: set --data.fps to a divisor of all"
            )
        return steps.pop()

    def dataset(self, split: str, augment: bool) -> TrajectoryDataset:
        """Pieces of a split: at random places in training, always the same in evaluation."""
        episodes = self.episodes(split)
        every = self.every(episodes)
        return TrajectoryDataset(episodes, self.num_frames, every, self.combine, self.size(), self.seed, augment)

    @property
    def classes(self) -> list[str]:
        """None: trajectories have no labels."""
        return []

    def collator(self, masks: Any) -> Collator:
        """Makes batches of pieces."""
        return collate  # type: ignore[return-value]

    def probe_dataloader(self, split: str, most: int | None = None) -> DataLoader[Any] | None:
        """None: there are no labels to probe for."""
        return None

    def random_views(self, samples: int, count: int) -> Tensor:
        """No views: a piece of an episode is not augmented.

        Raises:
            FileNotFoundError: Always.
        """
        raise FileNotFoundError("trajectories have no random views")

    def on_after_batch_transfer(self, batch: Trajectory, dataloader_idx: int) -> Trajectory:  # type: ignore[override]
        """Lightning's hook: pixels travel as uint8 and become floats on the device."""
        return batch._replace(frames=self.normalize(batch.frames))
