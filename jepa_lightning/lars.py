"""LARS: momentum SGD whose steps are proportional to the norm of what they change; for probes of large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888, equation 6 and algorithm 1).

    With gradient g, weight decay b, momentum m and trust coefficient c, each tensor w of two or more dimensions moves
    by

        rate = lr c |w| / (|g| + b |w|),   v <- m v + rate (g + b w),   w <- w - v.

    Vectors (biases, norms) and tensors that are zero or have no gradient move with ``rate = lr``.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        momentum: Share of the last step that is taken again.
        weight_decay: Weight decay.
        trust_coefficient: Length of a step over that of the tensor, at lr 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} of LARS must not be negative, got {value}")
        if trust_coefficient <= 0:
            raise ValueError(f"trust_coefficient of LARS must be above 0, got {trust_coefficient}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the result of ``closure``, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, w: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        update = g.add(w, alpha=decay) if decay else g.clone()
        update.mul_(group["lr"])
        if w.ndim > 1:  # on the device throughout: nothing waits for a number
            length, slope = w.norm(), g.norm()
            rate = group["trust_coefficient"] * length / (slope + decay * length)
            update.mul_(torch.where((length > 0) & (slope > 0), rate, 1.0))
        state = self.state[w]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(w)
        w.sub_(state["momentum_buffer"].mul_(group["momentum"]).add_(update))
