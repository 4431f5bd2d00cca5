"""Signs of collapse, found on runs that were made to collapse: what is measured, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_lightning import metrics
from jepa_lightning.masking import TokenMasks

Vitals = dict[str, float]
"""Measured values by name; measures that a method does not have are missing."""


class Sign(NamedTuple):
    """A measure that has fallen below a limit.

    Attributes:
        measure: Name of the measure.
        limit: Below it something is wrong.
        relative: Whether the limit is a fraction of the highest value since the start of training.
        short: What is wrong, for the progress bar.
        meaning: The same in a sentence, with ``{now}`` and ``{best}`` in place of the numbers.
        first: What to change first.
        pace: It counts only while biases and norms of the encoder move at least this much in a step (RMS).
    """

    measure: str
    limit: float
    relative: bool
    short: str
    meaning: str
    first: str
    pace: float = 0.0


MOMENTUM = "--model.momentum: near 1 from the start, 0.996 in the papers"
RATE = "--model.lr: a peak ten times lower, or a longer warm-up"
PREDICTOR = "--model.predictor: it must compute, from the context and for a place, more than it is given; see its depth"

SIGNS = (
    Sign(
        "finite", 0.5, False, "not finite",
        "the loss or a feature is no finite number",
        f"{RATE}; then --trainer.precision",
    ),
    Sign(
        "lag", 0.05, False, "target encoder does not lag",
        "the target encoder follows the context encoder at once, and the two can agree on saying nothing",
        MOMENTUM,
    ),
    Sign(
        "copy", 0.01, False, "predictions are copies",
        "predictions are copies of context tokens ({now:.1g} of their variance away)",
        PREDICTOR,
    ),
    Sign(
        "place", 1e-6, False, "predictions ignore the place",
        "the prediction is the same for all targets of an input (it varies {now:.1g} times as much as they do)",
        PREDICTOR,
    ),
    Sign(
        "content", 1e-3, False, "predictions ignore the input",
        "the prediction is the same for all inputs (it varies {now:.1g} times as much as the targets do)",
        f"{RATE}; then {PREDICTOR}",
    ),
    Sign(
        "target_std", 0.5, True, "targets become constant",
        "target features become constant (standard deviation {now:.2g}, it has been {best:.2g})",
        f"{MOMENTUM}; then {RATE}",
    ),
    Sign(
        "context_rank", 0.8, True, "the encoder moves too fast",
        "the context encoder moves in leaps and features lose dimensions (RankMe {now:.1f}, it has been {best:.1f})",
        RATE, 4e-4,
    ),
    # Not at half: tokens of a run that learns can share a direction for a while (ijepa_fashion_mnist.yaml, seed 1).
    Sign(
        "context_std", 0.25, True, "context features become constant",
        "features of the context encoder become constant (standard deviation {now:.2g}, it has been {best:.2g})",
        f"{RATE}; then {MOMENTUM}",
    ),
    Sign(
        "context_rank", 0.4, True, "context features lose rank",
        "features of the context encoder keep few dimensions (RankMe {now:.1f}, it has been {best:.1f})",
        f"{RATE}; then {MOMENTUM}",
    ),
    Sign(
        "target_rank", 0.4, True, "target features lose rank",
        "target features keep few dimensions (RankMe {now:.1f}, it has been {best:.1f})",
        f"{RATE}; then {MOMENTUM}",
    ),
)  # fmt: skip
"""Those that point at a cause come first: the advice is that of the first sign which is seen.

- ``finite``: nothing can be learned from then on.
- ``lag``: distance of context and target encoder over the way that the context encoder went since the last look, of
  biases and norms. An EMA with momentum 0.9 or above lags by at least about one such way, a copy not at all.
- ``copy``, ``place``, ``content``: what a predictor must not be. Distance of a prediction to the nearest context token,
  spread of predictions between the places of an input, and between inputs at one place, over those of the targets.
  Healthy runs of ijepa.yaml and vjepa2.yaml stayed above 0.3, 2e-4 (before rotary positions are used) and 0.01.
- ``context_rank`` with a ``pace``: a learning rate that is too high. Norms and biases move by some tenth of the
  learning rate in a step: at most 1e-4 in the healthy runs, from 4e-4 to 4e-3 with 30 times the learning rate.
- ``target_std``, ``context_std``: complete collapse, to one feature. Features are layer-normalised before, so that they
  stay within 15 % of their best when healthy.
- ``context_rank``, ``target_rank``: dimensional collapse, RankMe after centring. The context encoder, which the target
  encoder follows after hundreds of steps, shows it first. When healthy they stay above three quarters of their best.
"""


def seen(vitals: Vitals, best: Mapping[str, float]) -> tuple[Sign, ...]:
    """The signs in what was measured.

    Args:
        vitals: What was measured now.
        best: The highest value of each measure since the start.
    """
    return tuple(
        sign
        for sign in SIGNS
        if sign.measure in vitals
        and vitals.get("pace", 0.0) >= sign.pace
        and not vitals[sign.measure] >= sign.limit * (best[sign.measure] if sign.relative else 1.0)  # not finite, too
    )


def spread_of_rows(name: str, rows: Float[Tensor, "rows dim"]) -> Vitals:
    """Standard deviation and centred RankMe of features."""
    rank = metrics.rankme(rows - rows.mean(dim=0))
    return {f"{name}_std": float(metrics.feature_std(rows)), f"{name}_rank": float(rank)}


def of_predictions(
    context: Float[Tensor, "batch nc dim"],
    predicted: Float[Tensor, "batch m nt dim"],
    target: Float[Tensor, "batch m nt dim"],
    masks: TokenMasks,
    places: int,
    few: int = 8,
) -> Float[Tensor, "3"]:
    """``copy``, ``place`` and ``content``, on the device: see SIGNS.

    Args:
        context: Context tokens.
        predicted: Predictions of the target tokens.
        target: The target tokens.
        masks: Which of these are tokens.
        places: Tokens of a whole input.
        few: Samples whose predictions are compared with each context token.
    """
    index = masks.targets.flatten(1)
    kept = (index >= 0).float()  # (B, M * Nt)
    near = context[:few].float()
    distance = torch.cdist(predicted[:few].float().flatten(1, 2), near)
    distance = distance.masked_fill((masks.context[:few] < 0).unsqueeze(1), torch.inf).min(dim=2).values
    copied = (distance.square() * kept[:few]).sum() / kept[:few].sum()
    row = torch.arange(len(index), device=index.device).unsqueeze(1).expand_as(index)
    place, content = (
        torch.stack(
            [_variance(tokens.flatten(0, 2), group.flatten(), kept.flatten(), size) for tokens in (predicted, target)]
        )
        for group, size in ((row, len(index)), (index.clamp_min(0), places))
    )
    shares = torch.stack([torch.stack([copied, near.flatten(0, 1).var(dim=0, correction=0).sum()]), place, content])
    # What has nothing to vary with, as a single target, says nothing; and of constant targets another sign tells.
    return torch.where(shares[:, 1] > 1e-8, shares[:, 0] / shares[:, 1].clamp_min(1e-8), torch.ones_like(shares[:, 0]))


def _variance(
    tokens: Float[Tensor, "n dim"], group: Int[Tensor, "n"], kept: Float[Tensor, "n"], groups: int
) -> Float[Tensor, ""]:
    """Variance, summed over dimensions, of the tokens of a group, averaged: of one sample, or of one place."""
    tokens = tokens.float()
    count = kept.new_zeros(groups).index_add(0, group, kept)
    mean = tokens.new_zeros(groups, tokens.shape[1]).index_add(0, group, tokens * kept.unsqueeze(1))
    mean = mean / count.clamp_min(1).unsqueeze(1)
    squares = ((tokens - mean[group]).square().sum(dim=1) * kept).sum()
    return squares / (count - 1).clamp_min(0).sum().clamp_min(1)
