"""Numbers that say whether features are healthy: pure functions of tensors, the same for the same input.

Rows are samples: tokens (patch-wise) or inputs (tokens averaged). The spectra are computed in float64, because small
singular values count and float32 rounds them up to noise. Where a NaN would end in an eigenvalue routine, or vanish in
a comparison, ``finite`` refuses it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# ---------------------------------------------------------------------- spectra


def rankme(features: Float[Tensor, "samples dim"], eps: float = 1e-7) -> Float[Tensor, ""]:
    """Effective rank of a feature matrix: exp of the entropy of its normalised singular values.

    From 1 (total collapse) to min(samples, dim). RankMe, Garrido et al. 2023 (arXiv 2210.02885), equation 1: the
    singular values of the features as they are, not centred.
    """
    return _effective_rank(_squared_singular_values(finite(features).double()).sqrt(), eps).to(features.dtype)


def lidar(features: Float[Tensor, "samples views dim"], delta: float = 1e-4, eps: float = 1e-7) -> Float[Tensor, ""]:
    """Effective rank of what differs between inputs, measured in units of what differs between views of one input.

    With the scatter ``S_b`` of the means of the inputs and the scatter ``S_w`` of the views about them, exp of the
    entropy of the normalised eigenvalues of ``S_w^-1/2 S_b S_w^-1/2``: from 1 to min(samples - 1, dim). Unlike RankMe,
    it gives nothing for directions in which two views of the same image differ as much as two images. Thilak et al.
    2024 (arXiv 2312.04000), section 4; each image with its views is a class of its own.

    Args:
        features: Several views of each of several inputs.
        delta: Added to the diagonal of ``S_w``, absolute, as in the paper.
        eps: Added to the normalised eigenvalues.

    Raises:
        ValueError: With fewer than two inputs or two views there is no scatter.
    """
    samples, views, dim = features.shape
    if samples < 2 or views < 2:
        raise ValueError(f"LiDAR needs at least 2 inputs and 2 views of each, got {samples} and {views}")
    means = finite(features).double().mean(dim=1)  # (samples, D)
    within = (features.double() - means.unsqueeze(1)).flatten(0, 1)
    scatter = within.T @ within / (samples * views) + delta * torch.eye(dim, device=features.device).double()
    # With S_w = L L', the eigenvalues are those of L^-1 S_b L^-T: squared singular values of L^-1 (means - mean)'.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), (means - means.mean(dim=0)).T, upper=False)
    eigenvalues = _squared_singular_values(whitened)
    return _effective_rank(F.pad(eigenvalues, (0, dim - len(eigenvalues))), eps).to(features.dtype)


def alpha_req(features: Float[Tensor, "samples dim"]) -> Float[Tensor, ""]:
    """Decay coefficient alpha of the eigenvalues of the covariance, ``lambda_j ~ j^-alpha``.

    Near 1 where features generalise best; towards 0 all directions carry the same (noise), far above 1 only a few
    carry anything; infinite if at most one does. Alpha-ReQ, Agrawal et al. 2022 (NeurIPS), section 3. The line through
    (ln j, ln lambda_j) weighs a point by 1 / j, as Stringer et al. 2019 do: equal parts of the logarithmic axis count
    equally, and not only the many small eigenvalues at its end.
    """
    centred = finite(features).double() - features.double().mean(dim=0)
    eigenvalues = _squared_singular_values(centred)
    # Centring takes one direction where samples are fewer than dimensions; what is left of it is rounding.
    eigenvalues = eigenvalues[eigenvalues > 1e-10 * eigenvalues.max().clamp_min(1e-300)]
    if len(eigenvalues) < 2:
        return features.new_tensor(math.inf)
    number = torch.arange(1, len(eigenvalues) + 1, device=features.device, dtype=torch.float64)
    return -_slope(number.log(), eigenvalues.log(), 1.0 / number).to(features.dtype)


def finite(features: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The features as they are.

    Raises:
        NotFinite: If one of them is NaN or infinite.
    """
    if not bool((wrong := ~features.isfinite()).any()):
        return features
    raise NotFinite(f"features are not finite: {int(wrong.sum())} of {wrong.numel()} values are NaN or infinite")


class NotFinite(ValueError):
    """Features that are NaN or infinite."""


def _squared_singular_values(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "n"]:
    """In descending order. Of the smaller Gram matrix, several times faster than a singular value decomposition."""
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)


def _effective_rank(weights: Float[Tensor, "n"], eps: float) -> Float[Tensor, ""]:
    share = weights / weights.sum().clamp_min(eps) + eps
    return torch.exp(-(share * share.log()).sum())


def _slope(x: Float[Tensor, "n"], y: Float[Tensor, "n"], weight: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """Of the weighted least-squares line."""
    weight = weight / weight.sum()
    x = x - (weight * x).sum()
    return (weight * x * y).sum() / (weight * x.square()).sum()


# ---------------------------------------------------------------------- distances


def feature_std(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, ""]:
    """Standard deviation of each dimension over all tokens, averaged; it goes to 0 in a collapse."""
    return features.flatten(0, -2).float().std(dim=0, correction=0).mean()


def content_share(tokens: Float[Tensor, "samples tokens dim"]) -> Float[Tensor, ""]:
    """Share of the variance of tokens that lies between inputs at the same place; the rest is position alone.

    From 0 (features say where a token is and nothing about the input; also if they are constant) to 1 (the place says
    nothing). A JEPA can collapse onto the former while the spread and the rank of its tokens stay high.
    """
    tokens = tokens.float()
    place = tokens.mean(dim=0)  # (N, D)
    between = (tokens - place).square().mean()
    return between / (between + (place - place.mean(dim=0)).square().mean()).clamp_min(1e-24)


def uniformity(features: Float[Tensor, "samples dim"], t: float = 2.0) -> Float[Tensor, ""]:
    """Log of the mean Gaussian potential ``exp(-t |x - y|^2)`` of all pairs, on the unit sphere.

    0 if all features point the same way; the more negative, the more evenly they are spread. Wang & Isola 2020 (arXiv
    2005.10242), equation 2.
    """
    squared = torch.pdist(F.normalize(features.float(), dim=-1)).square()
    return (-t * squared).exp().mean().log()


def alignment(
    first: Float[Tensor, "*batch dim"], second: Float[Tensor, "*batch dim"], alpha: float = 2.0
) -> Float[Tensor, ""]:
    """Mean ``|x - y|^alpha`` of pairs that belong together, on the unit sphere: 0 if equal, 4 if opposite (alpha 2).

    Wang & Isola 2020 (arXiv 2005.10242), equation 1.
    """
    difference = F.normalize(first.float(), dim=-1) - F.normalize(second.float(), dim=-1)
    return difference.norm(dim=-1).pow(alpha).mean()


def correlation_dimension(
    features: Float[Tensor, "samples dim"], low: float = 1e-4, high: float = 1e-2, points: int = 10
) -> Float[Tensor, ""]:
    """Slope of ``ln C(eps)`` against ``ln eps``, where C is the share of pairs that are closer than eps.

    The dimension of the set that the features lie on, however many dimensions they have (Grassberger & Procaccia
    1983). Both logarithms are natural, and eps runs, evenly in its logarithm, between two quantiles of the distances:
    further out the edges of the set bend the curve down, further in too few pairs are left to count. Of n samples it
    finds at most about 2 log10(n) dimensions (Eckmann & Ruelle 1992): compare runs, not absolute values, above.

    Args:
        features: Samples; 0 is returned if they are all the same.
        low: Share of pairs at the smallest eps; raised where that would be fewer than 16 pairs.
        high: Share of pairs at the largest eps.
        points: How many eps.
    """
    distances = torch.pdist(finite(features).double())
    distances = distances[distances > 0]
    pairs = len(distances)
    last = max(2, math.ceil(high * pairs))
    if pairs < 2:
        return features.new_zeros(())
    nearest = torch.topk(distances, min(last, pairs), largest=False).values.log()  # ascending
    first = min(max(16, math.ceil(low * pairs)), max(1, len(nearest) // 4))
    eps = torch.linspace(0, 1, points, device=features.device).double() * (nearest[-1] - nearest[first - 1])
    eps = eps + nearest[first - 1]
    count = torch.searchsorted(nearest, eps, right=True).double()
    if nearest[-1] == nearest[first - 1]:  # one distance for all pairs: points on a simplex
        return features.new_tensor(math.inf)
    return _slope(eps, (count / pairs).log(), torch.ones_like(eps)).to(features.dtype)


def relative_distance(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """``|first - second| / |second|``, for example of the features of the context and of the target encoder."""
    return (first.float() - second.float()).norm() / second.float().norm().clamp_min(1e-12)


# ---------------------------------------------------------------------- predictions and attention


def explained_variance(
    predicted: Float[Tensor, "*batch dim"],
    target: Float[Tensor, "*batch dim"],
    trivial: Float[Tensor, "*batch dim"] | None = None,
) -> Float[Tensor, ""]:
    """``1 - MSE / MSE of a trivial prediction``: 1 is perfect, 0 no better than the trivial one, below 0 worse.

    Args:
        predicted: The prediction.
        target: What it should be.
        trivial: What needs no learning; None for the mean target, whose MSE is the variance of the targets.
    """
    target = target.flatten(0, -2).float()
    error = (predicted.flatten(0, -2).float() - target).square().mean()
    if trivial is None:
        return 1.0 - error / target.var(dim=0, correction=0).mean().clamp_min(1e-12)
    return 1.0 - error / (trivial.flatten(0, -2).float() - target).square().mean().clamp_min(1e-12)


def attention_entropy(maps: Float[Tensor, "batch heads queries keys"]) -> Float[Tensor, "heads"]:
    """Mean entropy, in nats, of what the queries of each head attend to: 0 for one token, ln(keys) for all alike.

    Its exponential is the perplexity, the number of tokens that a query attends to.
    """
    return torch.special.entr(maps.float()).sum(dim=-1).mean(dim=(0, 2))
