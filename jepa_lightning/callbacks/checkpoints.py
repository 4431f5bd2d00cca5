"""`last.ckpt` and `best.ckpt`, which Ctrl-C writes too."""

from __future__ import annotations

import operator
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.callbacks.observer import dry_run


class Checkpoints(Checkpoint):
    """Keeps two checkpoints in the folder of the run: the last state and the one with the best probe.

    The first Ctrl-C ends the step in progress, saves and stops; the second one stops at once.

    Args:
        every_n_steps: Optimizer steps between two writes of `last.ckpt`, which is also written when an epoch ends.
        monitor: Metric that `best.ckpt` follows; a run without it (no labels) has no `best.ckpt`.
        mode: Whether a larger or a smaller value is better.
    """

    def __init__(
        self, every_n_steps: int = 1000, monitor: str = "val/linear_top1", mode: Literal["max", "min"] = "max"
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps, self.monitor, self.mode = every_n_steps, monitor, mode
        self.best: float | None = None
        self._saved_step = 0
        self._interrupted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder of the run; every process asks, because Lightning broadcasts the answer."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle Ctrl-C while training (Lightning has already noted the handler that it restores)."""
        self._saved_step = trainer.global_step
        try:
            self._handler: Any = signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not the main thread: leave signals alone
            self._handler = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, self._handler)
        rank_zero_info("\nCtrl-C: finishing this step, then saving (once more to stop at once)")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many optimizer steps, not once for each accumulated batch; stop after a Ctrl-C."""
        stepped = trainer.global_step > self._saved_step
        stopping = self._interrupted or trainer.should_stop or trainer.global_step == trainer.max_steps
        due = stopping or trainer.global_step % self.every_n_steps == 0
        if stepped and due and not dry_run(trainer):
            self.save_last(trainer)
        if self._interrupted and stepped:
            rank_zero_info(f"stopped after step {trainer.global_step}; resume with --ckpt_path {self.last}")
            raise KeyboardInterrupt

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or dry_run(trainer) or value is None:
            return
        better = operator.gt if self.mode == "max" else operator.lt
        if self.best is None or better(float(value), self.best):
            self.best = float(value)
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after validation.

        An epoch that ``max_steps`` cut short was saved in its last step: a checkpoint from here would count as a whole
        epoch, and a resumed run would never see the rest of it.
        """
        if not dry_run(trainer) and (trainer.is_last_batch or self._saved_step != trainer.global_step):
            self.save_last(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the SIGINT handler."""
        if stage == "fit" and getattr(self, "_handler", None) is not None:
            signal.signal(signal.SIGINT, self._handler)

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / "last.ckpt"

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, all processes together."""
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(self.last, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the best value of the resumed run."""
        self.best = state_dict["best"]
