"""Steps whose values reach a logger."""

from __future__ import annotations

from typing import Any


def is_log_step(trainer: Any, batch_idx: int) -> bool:
    """Whether the next step is written to loggers (each ``log_every_n_steps``) or is the first of its epoch.

    Logging a value that is not written costs a millisecond of Python, and a reduction with several processes. The
    first step of an epoch is for callbacks, which read the latest values in ``trainer.callback_metrics``.

    Args:
        trainer: The Trainer, before the optimizer step.
        batch_idx: The batch of this epoch, from 0.
    """
    every = trainer.log_every_n_steps
    return batch_idx == 0 or (bool(every) and (trainer.global_step + 1) % every == 0)
