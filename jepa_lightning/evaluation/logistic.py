"""Multinomial logistic regression on frozen features, to its optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa_lightning.evaluation.features import Features, exact


class LinearClassifier(NamedTuple):
    """A linear layer on features that are standardised with the statistics of training.

    Attributes:
        weight: One row for each class that training has, (C, D).
        bias: One number for each of them.
        labels: Which classes these are, ascending.
        mean: Of each feature.
        std: Of each feature.
    """

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"]
    labels: Int[Tensor, " classes"]
    mean: Float[Tensor, " dim"]
    std: Float[Tensor, " dim"]

    def predict(self, x: Float[Tensor, "samples dim"]) -> Int[Tensor, " samples"]:
        """The class with the largest logit."""
        x = (x.to(self.mean) - self.mean) / self.std
        return self.labels[(x @ self.weight.T + self.bias).argmax(dim=1)]


def logistic_path(
    train: Features, weight_decays: Sequence[float], iterations: int = 1000, tolerance: float = 1e-7
) -> dict[float, LinearClassifier]:
    """A classifier for each weight decay, each at its optimum in float64: the predictions of scikit-learn's.

    Minimises the mean cross-entropy plus ``weight_decay / 2`` times the squared weights (not the biases); C of
    scikit-learn is ``1 / (N weight_decay)``, for two classes twice that. Features are standardised with the statistics
    of ``train``. L-BFGS works in the principal components of the features, each scaled by its curvature to expect: that
    takes tens of steps where the plain problem takes thousands. Each problem starts where the one with the next larger
    weight decay ended.

    Args:
        train: Features with labels.
        weight_decays: Above 0, or the optimum may be infinitely far.
        iterations: Most steps of L-BFGS for each.
        tolerance: It ends when no element of the gradient is larger.

    Raises:
        ValueError: If a weight decay is not above 0.
    """
    if min(weight_decays) <= 0:
        raise ValueError(f"weight_decay must be above 0 for logistic regression, got {min(weight_decays)}")
    with torch.inference_mode(False), torch.enable_grad():  # Lightning evaluates in inference mode
        x = exact(train.x).clone()
        labels, y = train.y.clone().to(x.device).unique(return_inverse=True)
        mean, std = x.mean(dim=0), x.std(dim=0, correction=int(len(x) > 1)).clamp_min(1e-6)
        components, variance = _components((x - mean) / std)
        z = ((x - mean) / std) @ components
        weight, bias, found = z.new_zeros(len(labels), z.shape[1]), z.new_zeros(len(labels)), {}
        for decay in sorted(set(weight_decays), reverse=True):
            scale = (variance / len(labels) + decay).rsqrt()
            weight, bias = _solve(z, y, (weight, bias), scale, decay, iterations, tolerance)
            found[decay] = LinearClassifier(weight @ components.T, bias, labels, mean, std)
    return found


def _components(x: Float[Tensor, "samples dim"]) -> tuple[Float[Tensor, "dim rank"], Float[Tensor, " rank"]]:
    """Principal directions and the mean square along them; weights in any other direction stay zero."""
    wide = x.shape[1] > x.shape[0]
    squares, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / len(x))
    kept = squares > 1e-12 * squares.max()
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        vectors = x.T @ vectors / (len(x) * squares).sqrt()
    return vectors, squares


def _solve(
    z: Float[Tensor, "samples rank"],
    y: Int[Tensor, " samples"],
    start: tuple[Tensor, Tensor],
    scale: Float[Tensor, " rank"],
    decay: float,
    iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "classes rank"], Float[Tensor, " classes"]]:
    """L-BFGS on ``weight / scale``."""
    scaled, bias = (start[0] / scale).requires_grad_(), start[1].clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, bias],
        max_iter=iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-16,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight = scaled * scale
        loss = F.cross_entropy(z @ weight.T + bias, y) + 0.5 * decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    slope = max(float(p.grad.abs().max()) for p in (scaled, bias) if p.grad is not None)
    if slope > 1000 * tolerance:
        rank_zero_warn(
            f"logistic regression with weight decay {decay:g} stopped before its optimum (largest gradient "
            f"{slope:.1e}): its accuracy is a little uncertain; leave out the smallest weight decays"
        )
    return (scaled * scale).detach(), bias.detach()
