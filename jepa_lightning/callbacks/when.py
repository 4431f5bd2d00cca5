"""When an observer has nothing to do."""

from __future__ import annotations

from lightning import Trainer


def dry_run(trainer: Trainer) -> bool:
    """Whether Lightning only tries the code (``--trainer.fast_dev_run``): nothing is measured, drawn or saved."""
    return bool(getattr(trainer, "fast_dev_run", False))
