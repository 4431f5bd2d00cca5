"""The variance and covariance terms of VICReg (Bardes et al. 2022, arXiv 2105.04906, equations 1 to 4).

With the covariance matrix C of the batch (B, D), unbiased,

    variance = mean over d of max(0, std - sqrt(C_dd + eps)),    covariance = sum over i != j of C_ij^2 / D.

Both are 0 for features of standard deviation ``std`` that are not correlated. At exact collapse the gradient of both
is exactly zero, because every sample is its mean; eps keeps it finite there, and near there the variance term pushes.

C is that of all processes' samples together. VICReg's official code gathers them too; others take each process's own,
whose expectation is another loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepa_lightning.distributed import sum_over_processes
from jepa_lightning.losses.regularizer import Regularizer

EPS = 1e-4
"""VICReg's."""


class VarianceCovariance(Regularizer):
    """VICReg's terms without the invariance, which is the prediction in a JEPA.

    Args:
        variance_weight: Weight of the variance term (VICReg: 25).
        covariance_weight: Weight of the covariance term (VICReg: 1).
        std: Standard deviation that every dimension should have at least.
        eps: Added to the variances under the root.
    """

    def __init__(
        self, variance_weight: float = 25.0, covariance_weight: float = 1.0, std: float = 1.0, eps: float = EPS
    ) -> None:
        super().__init__()
        self.variance_weight, self.covariance_weight, self.std, self.eps = variance_weight, covariance_weight, std, eps

    def forward(self, z: Float[Tensor, "*sets samples dim"]) -> Float[Tensor, ""]:
        """Weighted sum of the two terms."""
        return torch.stack([weight * value for weight, value in self.terms(z).values()]).sum()

    def terms(self, z: Float[Tensor, "*sets samples dim"], step: int = 0) -> dict[str, tuple[float, Tensor]]:
        """``variance_hinge`` and ``covariance``."""
        return {
            "variance_hinge": (self.variance_weight, variance(z, self.std, self.eps)),
            "covariance": (self.covariance_weight, covariance(z)),
        }


def variance(z: Float[Tensor, "*sets samples dim"], std: float = 1.0, eps: float = EPS) -> Float[Tensor, ""]:
    """How much the standard deviation of each dimension falls short of ``std``, averaged."""
    with torch.autocast(z.device.type, enabled=False):
        centred, degrees = _centred(z)
        found = sum_over_processes(centred.square().sum(dim=-2)) / degrees
        return F.relu(std - (found + eps).sqrt()).mean()


def covariance(z: Float[Tensor, "*sets samples dim"]) -> Float[Tensor, ""]:
    """Squares of the covariances of different dimensions, summed and divided by D, averaged over sets."""
    with torch.autocast(z.device.type, enabled=False):
        centred, degrees = _centred(z)
        found = sum_over_processes(centred.mT @ centred) / degrees  # (..., D, D)
        others = ~torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
        return (found.square() * others).sum(dim=(-2, -1)).mean() / z.shape[-1]


def _centred(z: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of this process minus the mean of all, in float32 or better, and their number less one."""
    z = z.float() if z.dtype.itemsize < 4 else z
    count = sum_over_processes(z.new_tensor(z.shape[-2]))
    mean = sum_over_processes(z.sum(dim=-2, keepdim=True)) / count
    return z - mean, (count - 1).clamp_min(1)
