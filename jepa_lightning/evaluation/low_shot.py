"""Few labels: balanced draws from a training split."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from jepa_lightning.masking import seeded


def shots(y: Int[Tensor, " samples"], count: int, seed: int) -> Int[Tensor, " chosen"]:
    """Positions of ``count`` samples of each class, ascending; a larger draw of the same seed holds the smaller one.

    Raises:
        ValueError: If a class has fewer.
    """
    least, fewest = min((int((y == label).sum()), int(label)) for label in y.unique())
    if least < count:
        raise ValueError(
            f"class {fewest} has {least} labels in this part of the training split, {count} are needed: give less"
        )
    return _draw(y, {int(label): count for label in y.unique()}, seed)


def fraction(y: Int[Tensor, " samples"], part: float, seed: int) -> Int[Tensor, " chosen"]:
    """Positions of this fraction of the samples of each class, at least one, ascending.

    Raises:
        ValueError: If the fraction is not above 0 and at most 1.
    """
    if not 0 < part <= 1:
        raise ValueError(f"fractions of the labels must be above 0 and at most 1, got {part}")
    return _draw(y, {int(label): max(1, round(part * int((y == label).sum()))) for label in y.unique()}, seed)


def _draw(y: Int[Tensor, " samples"], counts: dict[int, int], seed: int) -> Int[Tensor, " chosen"]:
    y, chosen = y.cpu(), []
    for label, count in counts.items():
        members = (y == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=seeded("low-shot", seed, label))[:count]])
    return torch.cat(chosen).sort().values
