"""What exports are compared on: random numbers, and images or clips of the embedded data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_lightning.export.source import Source
from jepa_lightning.preprocessing import Preprocessing

SEED = 0


def samples(source: Source, batch: int = 2) -> dict[str, Tensor]:
    """Batches for an encoder, by name; without RGB there are random numbers only."""
    shape = source.shape(batch)
    found = {"random": torch.randn(shape, generator=torch.Generator().manual_seed(SEED))}
    if shape[1] == 3:
        found["clips" if len(shape) == 5 else "images"] = _real(shape, source.networks.preprocessing)
    return found


def _real(shape: tuple[int, ...], preprocessing: Preprocessing) -> Tensor:
    """Scenes with digits, drawn in the size that is asked for: no file is read or written."""
    from jepa_lightning.data import embedded, moving_digits

    digits, _, photographs = embedded.parts("val")
    random, side = np.random.default_rng(SEED), max(shape[-2:])
    pictures = []
    for number in range(shape[0]):
        if len(shape) == 5:
            motion = list(moving_digits.MOTIONS)[number % len(moving_digits.MOTIONS)]
            frames = moving_digits.render(digits[number], photographs, motion, side, random)
            frames = frames[np.arange(shape[2]) % len(frames)]  # (T, H, W, 3)
        else:
            frames = np.asarray(embedded.render(digits[number], photographs, side, random))[None]
        pixels = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[..., : shape[-2], : shape[-1]].float() / 255
        pictures.append(preprocessing.normalize(pixels))
    return torch.stack(pictures).reshape(shape)
