"""Order of the samples, and a loader that resumes where it stopped: both functions of (seed, epoch, position)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from jepa_lightning import distributed
from jepa_lightning.masking import seeded


class Draw(NamedTuple):
    """A request for one sample: a data set seeds its crop with it.

    Attributes:
        index: Position in the data set.
        epoch: Epoch in which it is drawn.
        step: Number of its batch since the start of training.
        turn: Tells the draws of a sample apart where an epoch may have several; 0 where it has one.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    epoch: int = 0
    step: int = 0
    turn: int = 0


Shares = list[tuple[int, float]]
"""Number of samples and weight of each part of a data set, one after the other."""


class EpochSampler(DistributedSampler[Draw]):
    """A shuffle of the data set for each epoch, every rank its own part, all of equal length.

    A DistributedSampler, so that Lightning tells it the epoch and leaves it in place. With ``shares``, an epoch is as
    many draws with replacement: of a part by its weight, then of any of its samples, as V-JEPA 2 does.

    Args:
        size: Length of the data set.
        batch_size: Samples in a batch of one process.
        seed: Part of the key of every shuffle.
        shares: The parts of the data set; None to draw every sample once.
    """

    def __init__(self, size: int, batch_size: int, seed: int, shares: Shares | None = None) -> None:
        super().__init__(range(size), distributed.world_size(), distributed.rank(), drop_last=True)  # type: ignore[arg-type]
        self.size, self.batch_size, self.key, self.shares = size, batch_size, seed, shares
        self.num_samples = size // self.num_replicas
        self.resume_epoch, self.resume_batches = -1, 0

    def resume(self, epoch: int, batches: int) -> None:
        """Leave out the first batches of one epoch, which an interrupted run has seen."""
        self.resume_epoch, self.resume_batches = epoch, batches

    def __iter__(self) -> Iterator[Draw]:
        """Draws of this rank, starting after the batches that were seen."""
        mine = self._order()[self.rank :: self.num_replicas][: self.num_samples].tolist()
        first_step = self.epoch * (self.num_samples // self.batch_size)
        seen = self.resume_batches * self.batch_size if self.epoch == self.resume_epoch else 0
        for position in range(seen, len(mine)):
            turn = 0 if self.shares is None else position * self.num_replicas + self.rank
            yield Draw(mine[position], self.epoch, first_step + position // self.batch_size, turn)

    def _order(self) -> Int[Tensor, " size"]:
        """The draws of all ranks in this epoch."""
        generator = seeded("order", self.key, self.epoch)
        if self.shares is None:
            return torch.randperm(self.size, generator=generator)
        sizes, weights = torch.tensor([n for n, _ in self.shares]), torch.tensor([w for _, w in self.shares])
        part = torch.multinomial(weights.double(), self.size, replacement=True, generator=generator)
        within = (torch.rand(self.size, generator=generator, dtype=torch.float64) * sizes[part]).long()
        return (sizes.cumsum(0) - sizes)[part] + within


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over an EpochSampler whose position travels in the checkpoint.

    Lightning stores ``state_dict()`` with the progress of its loops and gives it back before training goes on.
    """

    sampler: EpochSampler
    waited = 0.0
    """Seconds for which batches were waited for, without the first of each epoch, for which workers start."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is all that is asked of it
        """Batches, counted as they are handed out (workers may be ahead)."""
        epoch = self.sampler.epoch
        self._position = (epoch, self.sampler.resume_batches if epoch == self.sampler.resume_epoch else 0)
        batches = super().__iter__()
        batch = next(batches, None)
        while batch is not None:
            self._position = (epoch, self._position[1] + 1)
            yield batch
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        epoch, batches = getattr(self, "_position", (self.sampler.epoch, 0))
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that ``state`` counts."""
        self.sampler.resume(state["epoch"], state["batches"])
