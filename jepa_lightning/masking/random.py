"""Random masking: each token is context or target, without structure (the "random" row of I-JEPA table 6)."""

from __future__ import annotations

import torch
from torch import Generator

from jepa_lightning.masking.sampler import Counter, Grid, MaskSampler, Range, hw
from jepa_lightning.masking.tokens import TokenMasks


class RandomTokens(MaskSampler):
    """A random part of the tokens is context, all others are the one target block.

    Args:
        grid: Tokens along height and width, or (time, height, width). A configuration leaves it out: the data module
            takes it from the model.
        ratio: Smallest and largest fraction of the tokens to predict, drawn once for a batch.
        compat: Reproduce the official sampler bit for bit: unsorted indices, the ratio from a counter.
    """

    def __init__(self, grid: Grid | tuple[int, int] | int, ratio: Range = (0.4, 0.6), compat: bool = False) -> None:
        height, width = hw(grid)
        self.tokens, self.ratio, self.counter = height * width, ratio, Counter() if compat else None
        for fraction in ratio:
            if not 0 < int(self.tokens * (1.0 - fraction)) < self.tokens:
                raise ValueError(
                    f"ratio {fraction} of {self.tokens} tokens leaves no context or no target: "
                    "choose a ratio between 0 and 1"
                )

    def sample(
        self, batch_size: int, generator: Generator | None = None, step: int | None = None
    ) -> tuple[TokenMasks, ...]:
        """Masks for a batch, one family with one target block."""
        own = generator if self.counter is None else self.counter.generator(step)
        u = float(torch.rand(1, generator=own))
        keep = int(self.tokens * (1.0 - (self.ratio[0] + u * (self.ratio[1] - self.ratio[0]))))
        if self.counter is not None:
            order = torch.stack([torch.randperm(self.tokens, generator=generator) for _ in range(batch_size)])
            context, targets = order[:, :keep], order[:, keep:]
        else:
            order = torch.rand(batch_size, self.tokens, generator=generator).argsort(dim=1)
            context, targets = order[:, :keep].sort(dim=1).values, order[:, keep:].sort(dim=1).values
        return (TokenMasks(context, targets.unsqueeze(1)),)
