"""What health and alarm share: when they look at a training step, how they encode, and where their values go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from jepa_lightning.ranges import at_least


class Observer(Callback, ABC):
    """Looks at tensors of every n-th optimizer step of a JEPA, once under gradient accumulation.

    Args:
        every_n_steps: Optimizer steps between two looks; 0 for none.
    """

    def __init__(self, every_n_steps: int) -> None:
        at_least(0, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._watching = self._first = False
        self._step = -1

    @abstractmethod
    def see(self, step: Any) -> None:
        """Take what is needed of an Observed, in the middle of the training step."""

    def wanted(self, trainer: Trainer) -> bool:
        """Whether to look at all."""
        return bool(self.every_n_steps) and not dry_run(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Ask to see what each step computes; a probe trains no features and is left alone."""
        self._watching = self.wanted(trainer) and hasattr(pl_module, "observers")
        if self._watching:
            pl_module.observers.append(self.see)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look no more."""
        if self.see in getattr(pl_module, "observers", ()):
            pl_module.observers.remove(self.see)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count optimizer steps; only the first of accumulated batches is looked at."""
        self._first, self._step = self._watching and trainer.global_step != self._step, trainer.global_step

    def due(self, every: int) -> bool:
        """Whether the batch in progress is the first of every n-th optimizer step."""
        return self._first and every > 0 and self._step % every == 0

    @contextmanager
    def looking(self, trainer: Trainer) -> Iterator[None]:
        """As in training, but not compiled: it would be compiled anew for another batch size, for minutes."""
        with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context(), torch.no_grad():
            yield

    def encode(self, trainer: Trainer, pl_module: Any, inputs: Tensor) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the network that is evaluated; every process must ask, because networks may be sharded."""
        with self.looking(trainer):
            return pl_module.encode(inputs)

    def log_health(self, trainer: Trainer, values: Mapping[str, float], step: int) -> None:
        """Give values to all loggers under `health/`."""
        for logger in trainer.loggers:
            logger.log_metrics({f"health/{name}": value for name, value in values.items()}, step=step)


def tensorboards(trainer: Trainer) -> list[Any]:
    """Writers of pictures, histograms and texts: those of the TensorBoard loggers."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def dry_run(trainer: Trainer) -> bool:
    """Whether Lightning only tries the code (``--trainer.fast_dev_run``): nothing is measured, drawn or saved."""
    return bool(getattr(trainer, "fast_dev_run", False))
