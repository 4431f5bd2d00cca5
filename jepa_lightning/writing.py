"""What a run writes: which steps' values reach a logger, and where a checkpoint keeps the configuration."""

from __future__ import annotations

from typing import Any

CONFIG_KEY = "jepa_config"
"""Where a checkpoint keeps the resolved configuration, as YAML text."""


def is_written(trainer: Any, batch_idx: int) -> bool:
    """Whether what the coming step logs is written (each ``log_every_n_steps``), or is the first of its epoch.

    A value that nobody writes costs a millisecond of Python all the same, and with several processes a reduction; the
    first of an epoch is for callbacks, which find in ``trainer.callback_metrics`` what was logged last.

    Args:
        trainer: The Trainer, before the optimizer step.
        batch_idx: The batch of this epoch, from 0.
    """
    every = trainer.log_every_n_steps
    return batch_idx == 0 or (bool(every) and (trainer.global_step + 1) % every == 0)
