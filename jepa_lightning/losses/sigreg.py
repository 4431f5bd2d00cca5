"""SIGReg: how far the features of a batch are from a standard Gaussian.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025, arXiv
2511.08544. Every direction a of the unit sphere makes numbers u = z a of the features. If z is N(0, I) they are N(0, 1)
for every a, and only then (Cramer and Wold). The Epps-Pulley statistic compares their characteristic function with that
of N(0, 1), and SIGReg is its mean over random directions, the slices:

    T(u) = N * integral over t of |mean_n exp(i t u_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2).

What it is for N samples z, in any number of dimensions:

| z | SIGReg |
|---|---|
| N(0, I) | about 1.06 = sqrt(2 pi) - sqrt(2 pi / 3) for every N: the noise of a sample, a floor that is not 0 |
| all in one point | 0.402 N; the gradient is exactly zero there, so nothing leaves it |
| N(0, 0.5^2 I), N = 128 | about 20 |
| N(0, 2^2 I), N = 128 | about 32 |

Near a collapse the gradient is small too (thirty times smaller at a standard deviation of 1e-3 than at 1), so features
should start spread out; BatchNorm in a projector sees to that.

| | paper | official code | others | here |
|---|---|---|---|---|
| integral | 17 knots on [-5, 5] (listing) | 17 on [0, 3], doubled | 5 or 10 on [-3, 3] | official |
| slices | 256 (listing), 1024 advised | 256 (minimal example), 1024 | 256 to 4096 | 1024 |
| factor N | samples of all processes | the same | own samples, or left out | samples of all processes |
| mean of exp(i t u) | of all processes | the same | of each alone, or without gradient | of all, with gradient |
| slices of a step | - | by a counter in the loss | the same | by the number of the step |

A counter in the loss starts again when a run resumes, and counts validations. Here the method gives the number of the
step: all processes draw the same slices without telling each other, and a resumed run draws those of the run that it
continues.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from jepa_lightning.distributed import sum_over_processes
from jepa_lightning.losses.regularizer import Regularizer


class SIGReg(Regularizer):
    """Sketched isotropic Gaussian regularisation: the Epps-Pulley statistic of random slices.

    Args:
        num_slices: Random directions in each step.
        knots: Points of the integral from 0 to ``t_max``, which is doubled: the integrand is symmetric.
        t_max: Where the integral ends.
        weight: Share of this term in the loss of a method.

    Raises:
        ValueError: If there is no slice, or fewer than two knots.
    """

    def __init__(self, num_slices: int = 1024, knots: int = 17, t_max: float = 3.0, weight: float = 0.05) -> None:
        super().__init__()
        if num_slices < 1 or knots < 2 or t_max <= 0:
            raise ValueError(
                f"SIGReg needs num_slices of at least 1, knots of at least 2 and a positive t_max, got {num_slices}, "
                f"{knots} and {t_max}"
            )
        self.num_slices, self.knots, self.t_max, self.weight = num_slices, knots, t_max, weight

    def forward(self, z: Float[Tensor, "*sets samples dim"], step: int = 0) -> Float[Tensor, ""]:
        """The statistic, averaged over the slices of this step and over sets."""
        return self.statistic(z, self.slices(z.shape[-1], step).to(z.device)).mean()

    def terms(self, z: Float[Tensor, "*sets samples dim"], step: int = 0) -> dict[str, tuple[float, Tensor]]:
        """``sigreg``."""
        return {"sigreg": (self.weight, self(z, step))}

    def slices(self, dim: int, step: int = 0) -> Float[Tensor, "dim slices"]:
        """The directions of a step, unit vectors; on the CPU, whose generator is the same on every machine."""
        drawn = torch.randn(dim, self.num_slices, generator=torch.Generator().manual_seed(step))
        return drawn / drawn.norm(dim=0)

    def statistic(
        self, z: Float[Tensor, "*sets samples dim"], slices: Float[Tensor, "dim slices"]
    ) -> Float[Tensor, "*sets slices"]:
        """The Epps-Pulley statistic of each slice."""
        with torch.autocast(z.device.type, enabled=False):  # cos(t u) has no digits to lose
            z = z.float() if z.dtype.itemsize < 4 else z
            t = torch.linspace(0.0, self.t_max, self.knots, dtype=torch.float64)
            width = torch.full_like(t, 2.0 * self.t_max / (self.knots - 1))  # of the trapezoids, doubled
            width[0] = width[-1] = 0.5 * width[0]
            gaussian = torch.exp(-0.5 * t.square())
            weight, expected = (values.to(z) for values in (width * gaussian, gaussian))
            count = sum_over_processes(z.new_tensor(z.shape[-2]))
            sums = cast(Tensor, _Characteristic.apply(z @ slices.to(z), t.tolist()))
            cos, sin = (sum_over_processes(sums) / count).unbind(0)  # (..., slices, knots)
            return count * (((cos - expected).square() + sin.square()) * weight).sum(dim=-1)


class _Characteristic(Function):
    """Sums over samples of cos(t u) and sin(t u), (2, ..., slices, knots), of u (..., samples, slices).

    Knot by knot, forwards and backwards, so that nothing as large as samples x slices x knots is ever there: a
    seventeenth of the memory, and on a CPU a quarter of the time.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, t: list[float]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.t = t
        return torch.stack([torch.stack([(u * k).cos().sum(-2), (u * k).sin().sum(-2)]) for k in t], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        out = torch.zeros_like(u)
        for number, k in enumerate(ctx.t):
            cos, sin = (k * part.unsqueeze(-2) for part in gradient[..., number].unbind(0))
            out += sin * (u * k).cos() - cos * (u * k).sin()
        return out, None
