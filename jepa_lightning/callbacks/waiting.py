"""One line when training waits for data: for which share of its time, and what to set."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from jepa_lightning.log_steps import is_log_step
from jepa_lightning.ranges import within


class Waiting(Callback):
    """Says once, and only if it is so, that training waits for data.

    The loader knows how long it was waited for; here that is looked at in steps that are logged, nothing in others.
    Validation and the start of an epoch, in which workers begin, do not count.

    Args:
        share: Share of the training time above which it is said; 1 for never.
        after: Seconds of training before it may be said.
    """

    def __init__(self, share: float = 0.2, after: float = 30.0) -> None:
        within(0, 1, share=share)
        within(0, None, after=after)
        self.share, self.after = share, after
        self._since: tuple[float, float] | None = None
        self._paused, self._told = 0.0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._since, self._told = None, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare what was waited with the time that has passed."""
        if self._told or not is_log_step(trainer, batch_idx):
            return
        now, waited = time.perf_counter(), getattr(trainer.train_dataloader, "waited", 0.0)
        if self._since is None:
            self._since = (now, waited)
            return
        passed = now - self._since[0]
        if passed < self.after:
            return
        share = (waited - self._since[1]) / passed
        if share > self.share:
            self._told = True
            rank_zero_warn(f"training waits for data in {share:.0%} of its time: {_remedy(trainer.datamodule)}")  # type: ignore[attr-defined]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if self._since is not None:
            self._since = (self._since[0] + time.perf_counter() - self._paused, self._since[1])


def _remedy(data: Any) -> str:
    """What can be set."""
    workers, cores = data.num_workers, data.cores
    if workers + 1 < cores:
        return f"raise --data.num_workers from {workers} (this process may use {cores} cores)"
    return (
        f"{workers} loader processes share {cores} core{'s' * (cores != 1)} with it; give it more cores, or store "
        "images and videos in the size that they are trained in"
    )
