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


@torch.no_grad()
def logistic_path(
    train: Features, weight_decays: Sequence[float], iterations: int = 100, tolerance: float = 1e-7
) -> dict[float, LinearClassifier]:
    """A classifier for each weight decay, each at its optimum in float64: the predictions of scikit-learn's.

    Minimises the mean cross-entropy plus ``weight_decay / 2`` times the squared weights (not the biases); C of
    scikit-learn is ``1 / (N weight_decay)``, for two classes twice that. Features are standardised with the statistics
    of ``train`` and turned to their principal components, in which the Hessian is nearly diagonal. By Newton's method:
    L-BFGS compares losses, which near the optimum are equal to the last digit, and takes 15 times as long. Each problem
    starts where the one with the next larger weight decay ended.

    Args:
        train: Features with labels.
        weight_decays: Above 0, or the optimum may be infinitely far.
        iterations: Most Newton steps for each.
        tolerance: It ends when no element of the gradient is larger.

    Raises:
        ValueError: If a weight decay is not above 0.
    """
    if min(weight_decays) <= 0:
        raise ValueError(f"weight_decay must be above 0 for logistic regression, got {min(weight_decays)}")
    x = exact(train.x)
    labels, y = train.y.to(x.device).unique(return_inverse=True)
    mean, std = x.mean(dim=0), x.std(dim=0, correction=int(len(x) > 1)).clamp_min(1e-6)
    components = _components((x - mean) / std)
    z = ((x - mean) / std) @ components
    z = torch.cat([z, z.new_ones(len(z), 1)], dim=1)  # the last weight is the bias, and is not decayed
    weight, found = z.new_zeros(len(labels), z.shape[1]), {}
    for value in sorted(set(weight_decays), reverse=True):
        decay = z.new_full((z.shape[1],), value)
        decay[-1] = 0
        weight, slope = _solve(z, y, weight, decay, iterations, tolerance)
        if slope > 1000 * tolerance:
            rank_zero_warn(
                f"logistic regression with weight decay {value:g} stopped before its optimum (largest gradient "
                f"{slope:.1e}): its accuracy is a little uncertain; leave out the smallest weight decays"
            )
        bias = weight[:, -1] - weight[:, -1].mean()  # only differences matter
        found[value] = LinearClassifier(weight[:, :-1] @ components.T, bias, labels, mean, std)
    return found


def _components(x: Float[Tensor, "samples dim"]) -> Float[Tensor, "dim rank"]:
    """Principal directions; weights in any other direction stay zero."""
    wide = x.shape[1] > x.shape[0]
    squares, vectors = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / len(x))
    kept = squares > 1e-12 * squares.max()
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        vectors = x.T @ vectors / (len(x) * squares).sqrt()
    return vectors


def _solve(
    z: Float[Tensor, "samples numbers"],
    y: Int[Tensor, " samples"],
    start: Float[Tensor, "classes numbers"],
    decay: Float[Tensor, " numbers"],
    iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "classes numbers"], float]:
    """Newton's method; each step in float32, up to a fifth of its length, which later ones make good.

    Returns:
        The weights, and the largest element of the gradient there.
    """
    single, weight, slope = z.float(), start, float("inf")
    squares = single.square()
    loss, p = _loss(z, y, weight, decay)
    for _ in range(iterations):
        gradient = _residual(p, y).T @ z / len(z) + decay * weight
        slope = float(gradient.abs().max())
        if slope <= tolerance:
            break
        step = slope * _step(single, squares, p.float(), (gradient / slope).float(), decay.float()).double()
        along, length = float((step * gradient).sum()), 1.0
        while True:
            trial = weight + length * step
            new, q = _loss(z, y, trial, decay)
            if new <= loss + 1e-4 * length * along + 1e-13 * abs(loss) or length < 1e-6:  # or it is rounding
                break
            length /= 2
        weight, loss, p = trial, new, q
    return weight, slope


def _loss(z: Tensor, y: Tensor, weight: Tensor, decay: Tensor) -> tuple[float, Float[Tensor, "samples classes"]]:
    """The loss, and the probability of each class."""
    logits = F.log_softmax(z @ weight.T, dim=1)
    return float(F.nll_loss(logits, y) + 0.5 * (decay * weight.square()).sum()), logits.exp_()


def _residual(p: Float[Tensor, "samples classes"], y: Int[Tensor, " samples"]) -> Float[Tensor, "samples classes"]:
    """The gradient of the cross-entropy by the logits."""
    return p.scatter_add(1, y.unsqueeze(1), p.new_full((len(y), 1), -1.0))


def _step(
    z: Tensor, squares: Tensor, p: Tensor, gradient: Tensor, decay: Tensor, most: int = 500
) -> Float[Tensor, "classes numbers"]:
    """Where the gradient vanishes if the Hessian stays as it is, by conjugate gradients scaled by its diagonal."""
    curvature = ((p * (1 - p)).T @ squares / len(z) + decay).clamp_min(1e-12)
    step, left = torch.zeros_like(gradient), -gradient
    direction = left / curvature
    product = first = (left * direction).sum()
    for _ in range(most):
        moved = z @ direction.T
        moved = p * (moved - (p * moved).sum(dim=1, keepdim=True))
        curved = moved.T @ z / len(z) + decay * direction
        along = (direction * curved).sum()
        if along <= 0 or product <= 0.05 * first:
            break
        length = product / along
        step, left = step + length * direction, left - length * curved
        scaled = left / curvature
        before, product = product, (left * scaled).sum()
        direction = scaled + product / before * direction
    return step
