"""Numbers that say whether features are healthy: pure functions of feature matrices, differentiable or not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rankme(features: Float[Tensor, "samples dim"], eps: float = 1e-7) -> Float[Tensor, ""]:
    """Effective rank of a feature matrix: exp of the entropy of its normalised singular values.

    From 1 (total collapse) to min(samples, dim). RankMe, Garrido et al. 2023 (arXiv 2210.02885), equation 1: the
    singular values of the features as they are, not centred.
    """
    # In float64: the entropy weighs small singular values, which float32 rounds up to noise.
    singular = torch.linalg.svdvals(features.double())
    share = singular / singular.sum().clamp_min(eps) + eps
    return torch.exp(-(share * share.log()).sum()).to(features.dtype)


def explained_variance(
    predicted: Float[Tensor, "*batch dim"], target: Float[Tensor, "*batch dim"]
) -> Float[Tensor, ""]:
    """``1 - MSE / variance of the targets``: 1 is perfect, 0 is what predicting the mean target gives."""
    target = target.flatten(0, -2).float()
    error = (predicted.flatten(0, -2).float() - target).square().mean()
    return 1.0 - error / target.var(dim=0, correction=0).mean().clamp_min(1e-12)


def feature_std(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, ""]:
    """Standard deviation of each dimension over all tokens, averaged; it goes to 0 in a collapse."""
    return features.flatten(0, -2).float().std(dim=0, correction=0).mean()
