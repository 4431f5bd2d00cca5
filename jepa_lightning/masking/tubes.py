"""Simple masks of clips: random tubes (an ablation of the V-JEPA paper) and the future."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from jepa_lightning.masking.blocks import thw
from jepa_lightning.masking.sampler import Grid, MaskSampler
from jepa_lightning.masking.tokens import TokenMasks


class RandomTubes(MaskSampler):
    """The same random places are hidden in all frames: random-tube[ratio] in the paper's ablation of masks.

    Args:
        grid: Tokens along time, height and width; or height and width, or the side, of an image. A configuration
            leaves it out: the data module takes it from the model.
        ratio: Fraction of the places to predict.
        compat: Shuffle with NumPy as the official sampler does; without a generator with NumPy's global one.

    Raises:
        ValueError: If the ratio leaves no place as context or none as target.
    """

    def __init__(self, grid: Grid | tuple[int, int] | int, ratio: float = 0.9, compat: bool = False) -> None:
        self.steps, height, width = thw(grid)
        self.places, self.ratio, self.compat = height * width, ratio, compat
        self.keep = int(self.places * (1.0 - ratio))
        if not 0 < self.keep < self.places:
            raise ValueError(
                f"ratio {ratio} of the {self.places} places of a {height}x{width} frame leaves no context or no "
                f"target: choose a ratio that hides 1 to {self.places - 1} of them"
            )

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch, one family with one target block."""
        if self.compat:
            order = self._official_order(batch_size, generator)
        else:
            order = torch.rand(batch_size, self.places, generator=generator).argsort(dim=1)
        context, targets = order[:, : self.keep], order[:, self.keep :]
        return (TokenMasks(self._tubes(context), self._tubes(targets).unsqueeze(1)),)

    def _tubes(self, places: Tensor) -> Tensor:
        """The tokens (batch, T' x k) at these places (batch, k) in every time step, in raster order."""
        first = self.places * torch.arange(self.steps)
        return (places.sort(dim=1).values[:, None] + first[:, None]).flatten(1)

    def _official_order(self, batch_size: int, generator: Generator | None) -> Tensor:
        """Places (batch, H' x W'), those to keep first."""
        shuffle = np.random.shuffle
        if generator is not None:
            seed = int(torch.randint(2**32, (1,), generator=generator))
            shuffle = np.random.RandomState(seed).shuffle
        kept = np.arange(self.places) >= self.places - self.keep
        rows = []
        for _ in range(batch_size):
            row = kept.copy()
            shuffle(row)
            rows.append(np.argsort(~row, kind="stable"))
        return torch.from_numpy(np.stack(rows))


class Causal(MaskSampler):
    """The first time steps are context, all later ones are targets: predict the future. Nothing is random.

    Not the causal[p] of the V-JEPA paper, whose context is what multi-block masks leave of the first p of 16 frames:
    that is ``MultiBlock3D`` with ``Blocks(max_temporal_keep=p / 16)``.

    Args:
        grid: Tokens along time, height and width. A configuration leaves it out: the data module takes it from the
            model.
        keep: Fraction of the time steps that is context, rounded to the nearest number of them.

    Raises:
        ValueError: If that leaves no time step as context or none as target.
    """

    def __init__(self, grid: Grid | tuple[int, int] | int, keep: float = 0.5) -> None:
        steps, height, width = thw(grid)
        self.tokens, self.keep = steps * height * width, round(steps * keep) * height * width
        if not 0 < self.keep < self.tokens:
            raise ValueError(
                f"keep {keep} of {steps} time steps leaves no context or no target: choose from {1 / steps:.3g} to "
                f"{1 - 1 / steps:.3g}, of clips with at least two time steps"
            )

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch, one family with one target block."""
        order = torch.arange(self.tokens).repeat(batch_size, 1)
        return (TokenMasks(order[:, : self.keep].contiguous(), order[:, None, self.keep :].contiguous()),)
