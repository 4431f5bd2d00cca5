"""Muon: momentum whose steps change a matrix by the same amount in all directions; AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW

from jepa_lightning.distributed import as_placed, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial that brings singular values near 1 in a few rounds (Jordan 2024)."""


class Muon(AdamW):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the groups that say ``matrices``, else AdamW.

    With gradient g, momentum m, weight decay b and rate l, a matrix w of R rows and C columns moves by

        v <- m v + (1 - m) g,   u = m v + (1 - m) g,   w <- (1 - l b) w - 0.2 l sqrt(max(R, C)) U V',

    U S V' being the singular value decomposition of u, to which five rounds of a Newton-Schulz iteration come near
    enough. With the factor of Liu et al. 2025 (arXiv 2502.16982, section 2.2) a step is as long as one of AdamW, so
    both take the same rate and decay. In float32 on a CPU, in bfloat16 elsewhere, as the original. Sharded matrices
    are put together for it, in every process.

    Args:
        params: Groups of parameters; those whose ``matrices`` is true hold matrices.
        lr: Learning rate.
        betas: The two decay rates of AdamW.
        weight_decay: Weight decay.
        momentum: Share of v that is kept.
        rounds: Of the iteration.

    Raises:
        ValueError: If no group holds matrices, or momentum is not from 0 to below 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        rounds: int = 5,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum of Muon is a share: use 0 to below 1, not {momentum}")
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        if not any(group.get("matrices") and group["params"] for group in self.param_groups):
            raise ValueError(
                "Muon is for the matrices of Transformer blocks, and there are none: set optimizer to null"
            )
        self.beta, self.rounds = momentum, rounds
        self._step_supports_amp_scaling = False  # AdamW's fused step unscales float16 gradients, Muon's does not

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the result of ``closure``, if there is one."""
        loss = None
        if closure is not None:  # with all groups in place: it sets their gradients to zero first
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("matrices")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("matrices"):
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape go through at once
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike.setdefault(tuple(matrix.shape), []).append((matrix, whole(self._direction(matrix, matrix.grad))))
        for (rows, columns), pairs in alike.items():
            length = 0.2 * group["lr"] * max(rows, columns) ** 0.5
            turned = orthogonalized(torch.stack([direction for _, direction in pairs]), self.rounds)
            for (matrix, _), direction in zip(pairs, turned.unbind(), strict=True):
                matrix.mul_(1.0 - group["lr"] * group["weight_decay"])
                matrix.sub_(as_placed(direction, matrix), alpha=length)

    def _direction(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["step"] += 1
        average = cast(Tensor, state["momentum_buffer"]).mul_(self.beta).add_(gradient, alpha=1.0 - self.beta)
        return gradient * (1.0 - self.beta) + average * self.beta


def orthogonalized(matrices: Float[Tensor, "n rows columns"], rounds: int = 5) -> Float[Tensor, "n rows columns"]:
    """Each matrix with its singular values moved to about 1 (0.7 to 1.2), by Newton-Schulz rounds; zero stays zero."""
    x = matrices.float() if matrices.device.type == "cpu" else matrices.bfloat16()
    upright = x.shape[1] > x.shape[2]
    x = x.mT if upright else x
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7).view(-1, 1, 1)  # no singular value above 1
    x = _on_the_small_side(x, rounds) if x.dtype == torch.float32 else _on_the_whole(x, rounds)
    return (x.mT if upright else x).to(matrices.dtype)


def _on_the_whole(x: Float[Tensor, "n rows columns"], rounds: int) -> Float[Tensor, "n rows columns"]:
    """Rounds of x <- (a + b G + c G G) x with G = x x', which half precision bears."""
    a, b, c = COEFFICIENTS
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _on_the_small_side(x: Float[Tensor, "n rows columns"], rounds: int) -> Float[Tensor, "n rows columns"]:
    """The same in exact arithmetic: p = a + b G + c G G moves G to p G p, and all p together are applied once.

    With four times as many columns as rows it takes half the operations; in half precision the powers of G drift.
    """
    a, b, c = COEFFICIENTS
    gram, turn = x @ x.mT, None
    for number in range(rounds):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        turn = polynomial if turn is None else polynomial @ turn
        if number + 1 < rounds:
            gram = polynomial @ gram @ polynomial
    return x if turn is None else turn @ x
