"""Finds the first loss or gradient norm that is not finite, without waiting for the device in every step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from torch import Tensor

from jepa_lightning.distributed import largest, local_part, norms_of

EVERY = 10
"""Optimizer steps between two looks on an accelerator; on a CPU, where nothing waits, every step is looked at."""


class Row(NamedTuple):
    """What is kept of a batch until the next look; numbers stay on the device.

    Attributes:
        step: Number of the optimizer step, from 1.
        rate: Learning rate.
        loss: The loss of this process.
        norm: Gradient norm before clipping; zero if the batch did not end an optimizer step.
    """

    step: int
    rate: float
    loss: Tensor
    norm: Tensor


class FiniteNumbers:
    """Losses and gradient norms since the last look."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._norm: Tensor | None = None

    def take_gradients(self, trainer: Trainer, optimizer: Any) -> None:
        """Keep the norm of all gradients; in float16 the scaler finds infinite ones and skips their step."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._norm = norms_of(gradients).norm()

    def take_loss(self, trainer: Trainer, outputs: Any, step: int) -> None:
        """Keep the loss of a batch.

        Args:
            trainer: The trainer.
            outputs: What Lightning hands to ``on_train_batch_end``.
            step: Optimizer steps that were finished before this batch.
        """
        norm, self._norm = self._norm, None
        if isinstance(outputs, dict):
            loss = outputs["loss"].detach().float()
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._rows.append(Row(step + 1, float(rate), loss, loss.new_zeros(()) if norm is None else norm))

    def due(self, trainer: Trainer) -> bool:
        """Whether to look after this batch."""
        return trainer.strategy.root_device.type == "cpu" or trainer.global_step % EVERY == 0

    def look(self, trainer: Trainer) -> str:
        """What was not finite first, with step and learning rate; empty if all was. All processes ask together."""
        rows, self._rows = self._rows, []
        numbers = torch.stack([torch.stack([row.loss, row.norm.to(row.loss)]) for row in rows]).tolist() if rows else []
        wrong = [(row, *pair) for row, pair in zip(rows, numbers, strict=True) if not all(map(math.isfinite, pair))]
        first = -largest(-wrong[0][0].step if wrong else -(2**62), trainer.strategy.root_device)
        if first == 2**62:
            return ""
        if not wrong or wrong[0][0].step > first:
            return f"step {first}: the loss of another process is not finite"
        row, loss, norm = wrong[0]
        what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        return f"step {first}: {what} at learning rate {row.rate:.3g}"


def all_finite(trainer: Trainer, module: Any) -> bool:
    """Whether all weights and all moments of the optimizers are finite, in all processes, which ask together."""
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    parts = [local_part(tensor) for tensor in (*module.parameters(), *module.buffers(), *moments)]
    finite = [part.isfinite().all().to(module.device) for part in parts if part.is_floating_point() and part.numel()]
    wrong = bool(finite) and not bool(torch.stack(finite).all())
    return not largest(int(wrong), trainer.strategy.root_device)
