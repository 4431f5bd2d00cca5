"""Multinomial logistic regression on frozen features, to its optimum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from jepa_lightning.evaluation.features import Features, accuracy, exact

SAMPLES, SAMPLES_PER_FEATURE = 4096, 8
"""The blocks of the Hessian are estimated on this many samples, or this many for each feature if that is more."""
LARGEST_BLOCKS = 50_000_000
"""Largest number of entries in all blocks (200 MB); above it only the diagonal is used."""


class LinearClassifier(NamedTuple):
    """A linear layer on features that are standardised with the statistics of training.

    Attributes:
        weight: One row for each class of the training split, (C, D).
        bias: One number for each class.
        labels: Indices of these classes, ascending.
        mean: Mean of each feature.
        std: Standard deviation of each feature.
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
        weight_decays: Each above 0; with 0 the optimum may be at infinity.
        iterations: Largest number of Newton steps for each.
        tolerance: Stop when no element of the gradient is larger.

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
                f"{slope:.1e}): its accuracy is not exact: leave out the smallest weight decays"
            )
        bias = weight[:, -1] - weight[:, -1].mean()  # only differences matter
        found[value] = LinearClassifier(weight[:, :-1] @ components.T, bias, labels, mean, std)
    return found


def linear_top1(train: Features, held_out: Features, weight_decay: float = 1e-3) -> float:
    """Accuracy of logistic regression with one weight decay, in [0, 1]; see logistic_path."""
    return accuracy(logistic_path(train, [weight_decay])[weight_decay].predict(held_out.x), held_out.y)


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
    scaled, spent = _scaling(single, squares, p.float(), decay.float(), blocks=False), 0
    for _ in range(iterations):
        gradient = _residual(p, y).T @ z / len(z) + decay * weight
        slope = float(gradient.abs().max())
        if slope <= tolerance:
            break
        if spent >= _price(single):
            scaled, spent = _scaling(single, squares, p.float(), decay.float(), blocks=True), 0
        step, rounds = _step(single, p.float(), (gradient / slope).float(), decay.float(), scaled)
        step, spent = slope * step.double(), spent + rounds
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


def _scaling(z: Tensor, squares: Tensor, p: Tensor, decay: Tensor, blocks: bool) -> Callable[[Tensor], Tensor]:
    """What brings the Hessian near the identity: the inverse of each class's own block of it.

    Blocks are taken of some of the samples, more of those whose class is uncertain, and have the diagonal of all; where
    they would be too large, it is the diagonal alone. What all classes gain alike changes nothing, the Hessian is flat
    there, and it is left out: without that, each step takes ten times as many conjugate gradients.
    """
    spread, numbers = p * (1 - p), z.shape[1]
    size = (spread.T @ squares / len(z) + decay).clamp_min(1e-12).sqrt()
    factors = None
    if blocks and size.numel() * numbers <= LARGEST_BLOCKS:
        factors = torch.linalg.cholesky(_blocks(z, spread, decay))

    def scaled(x: Tensor) -> Tensor:
        x = x / size
        x = (x if factors is None else torch.cholesky_solve(x.unsqueeze(2), factors).squeeze(2)) / size
        return x - x.mean(dim=0)

    return scaled


def _price(z: Float[Tensor, "samples numbers"]) -> float:
    """What new blocks cost, in conjugate gradients: once these have cost as much, blocks are worth it."""
    samples, numbers = z.shape
    return (min(samples, max(SAMPLES, SAMPLES_PER_FEATURE * numbers)) * numbers + numbers**2 / 3) / (4 * samples)


def _blocks(z: Tensor, spread: Tensor, decay: Tensor) -> Float[Tensor, "classes numbers numbers"]:
    """The block of each class, scaled so that its diagonal is about one."""
    if (count := max(SAMPLES, SAMPLES_PER_FEATURE * z.shape[1])) < len(z):
        often = spread.sum(dim=1)
        often = often + 0.05 * often.mean() + 1e-12
        sums = often.double().cumsum(dim=0)
        places = (torch.arange(count, device=z.device) + 0.5) / count * sums[-1]
        rows = torch.searchsorted(sums, places).clamp_max(len(z) - 1)
        z, spread = z[rows], spread[rows] / often[rows].unsqueeze(1) * (sums[-1] / len(z)).to(z)
    blocks = torch.stack([(z * of_class.unsqueeze(1)).T @ z / len(z) for of_class in spread.T])
    own = blocks.diagonal(dim1=1, dim2=2)
    own += decay
    scale = own.clamp_min(1e-12).rsqrt()
    blocks *= scale.unsqueeze(2) * scale.unsqueeze(1)
    own.fill_(1.001)  # some directions may be in none of the samples
    return blocks


def _step(
    z: Tensor, p: Tensor, gradient: Tensor, decay: Tensor, scaled: Callable[[Tensor], Tensor], most: int = 500
) -> tuple[Float[Tensor, "classes numbers"], int]:
    """Where the gradient vanishes if the Hessian stays as it is, by conjugate gradients, and their number."""
    step, left = torch.zeros_like(gradient), -gradient
    direction = scaled(left)
    product = first = (left * direction).sum()
    for rounds in range(most):
        moved = z @ direction.T
        moved = p * (moved - (p * moved).sum(dim=1, keepdim=True))
        curved = moved.T @ z / len(z) + decay * direction
        along = (direction * curved).sum()
        if along <= 0 or product <= 0.05 * first:
            return step, rounds
        length = product / along
        step, left = step + length * direction, left - length * curved
        nearer = scaled(left)
        before, product = product, (left * nearer).sum()
        direction = nearer + product / before * direction
    return step, most
