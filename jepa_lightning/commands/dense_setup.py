"""What the tasks of `jepa dense` share: encoders, samples, and what a task gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.data.dense import DenseSource, Labelled, Samples, resized_frames, resized_labels
from jepa_lightning.evaluation.ratios import Ratios
from jepa_lightning.evaluation.results import Result
from jepa_lightning.evaluation.segmentation import Recipe
from jepa_lightning.masking import seeded

FEW_STEPS = 10_000
"""Below, heads learn at ten times DINOv3's rate."""


class Reader(NamedTuple):
    """Makes tokens of frames.

    Attributes:
        name: Name of the encoder.
        grid: Rows and columns of tokens.
        tokens: uint8 (B, T, 3, H, W) to (B, T', h, w, D); T' may be T over the frames of a tubelet.
    """

    name: str
    grid: tuple[int, int]
    tokens: Callable[[Tensor], Tensor]

    def of_frames(self, frames: UInt8[Tensor, "batch t 3 height width"]) -> Float[Tensor, "frames h w dim"]:
        """Tokens of every frame, those of a tubelet for each of its frames, (B T, h, w, D)."""
        tokens = self.tokens(frames)
        times = -(-frames.shape[1] // tokens.shape[1])
        return tokens.repeat_interleave(times, dim=1)[:, : frames.shape[1]].flatten(0, 1)


class Setup(NamedTuple):
    """What a task works with: see the options of the command."""

    source: DenseSource
    train: Samples | None
    report: Samples
    readers: Sequence[Reader]
    size: tuple[int, int]
    label_size: tuple[int, int] | None
    steps: int
    batch_size: int
    lr: float | None
    k: int | None
    alpha: float
    seed: int
    device: torch.device

    def labels(self, sample: Labelled) -> Tensor:
        """Labels at the size at which they are compared."""
        return sample.labels if self.label_size is None else resized_labels(sample.labels, self.label_size)

    def frames(self, samples: Sequence[Labelled]) -> UInt8[Tensor, "batch t 3 height width"]:
        """Inputs of the encoders."""
        return torch.stack([resized_frames(sample.frames, self.size) for sample in samples]).to(self.device)

    def training(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Random batches of the training split: frames, and labels (B T, H, W) at the size of the inputs."""
        assert self.train is not None
        generator = seeded("dense", self.seed)
        for _ in tqdm(range(self.steps), desc="training heads", delay=2, disable=None):
            drawn = [self.train.draw(generator) for _ in range(self.batch_size)]
            labels = torch.cat([resized_labels(sample.labels, self.size) for sample in drawn])
            yield self.frames(drawn), labels.to(self.device)

    def reported(self) -> Iterator[Labelled]:
        """Samples of the reported split with a usable label.

        Raises:
            ValueError: If there is none.
        """
        found = 0
        for position in tqdm(range(len(self.report)), desc=f"scoring on {self.report.split}", delay=2, disable=None):
            if (sample := self.report.read(position)) is not None:
                found += 1
                yield sample
        if not found:
            raise ValueError(self.report.nothing())

    def is_shown(self, number: int, count: int) -> bool:
        """Whether a sample of the reported split is one of so many that are spread over it: its files are sorted."""
        return number % max(1, len(self.report) // count) == 0

    def recipe(self, usual: Recipe) -> Recipe:
        """How heads learn."""
        lr = self.lr or usual.lr * (10 if self.steps < FEW_STEPS else 1)
        return usual._replace(steps=self.steps, lr=lr, seed=self.seed, batch_size=self.batch_size)

    def result(self, protocol: str, reader: Reader, score: Ratios, fitted: int | None = None, **chosen: Any) -> Result:
        """The score of an encoder."""
        place = self.source.title, self.report.split
        return Result(
            protocol, "", reader.name, (score.mean(),), len(score), chosen, *place, fitted, score.interval()
        )  # fmt: skip


class Outcome(NamedTuple):
    """What a task gives.

    Attributes:
        results: The scores.
        sentences: How they were made.
        measure: What the numbers are.
        picture: Images with truth and predictions.
        details: Scores of each class.
    """

    results: list[Result]
    sentences: list[str]
    measure: str
    picture: Image.Image
    details: list[Result] = []  # noqa: RUF012  # never changed
