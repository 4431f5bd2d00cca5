"""`last.ckpt` and `best.ckpt`, which signals that end a training write too."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.callbacks.finite import all_finite
from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.callbacks.signals import Signals
from jepa_lightning.distributed import largest


class Checkpoints(Checkpoint):
    """Keeps two checkpoints in the folder of the run: the last state and the one with the best probe.

    Neither is ever replaced by weights that are not finite. The first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 (unless
    Lightning requeues a SLURM job with it) ends the step in progress, saves and exits with 128 + the number of the
    signal; a second Ctrl-C stops at once.

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
        self._signals = Signals()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder of the run; every process asks, because Lightning broadcasts the answer."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    # ------------------------------------------------------------------ signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals (Lightning has just noted the handlers that it restores)."""
        self._signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals; leave if one came before the first step."""
        self._saved_step = trainer.global_step
        self._signals.install()
        self._leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Leave after a signal also in the middle of a long validation, from which a resumed run starts again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._asked(trainer):
            self.save_last(trainer)
            self._leave(trainer)

    def _asked(self, trainer: Trainer) -> int:
        """The signal that any process received; all processes ask together."""
        return largest(self._signals.received, trainer.strategy.root_device)

    def _leave_if_asked(self, trainer: Trainer) -> None:
        if self._asked(trainer):
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        number = self._asked(trainer)
        rank_zero_info(f"stopped after step {trainer.global_step}; {self.resumable(trainer)}")
        raise SystemExit(128 + number)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers of signals."""
        self._signals.restore()

    # ------------------------------------------------------------------ when to save

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many optimizer steps, not once for each accumulated batch; leave after a signal."""
        if trainer.global_step == self._saved_step:
            return
        asked = self._asked(trainer)
        stopping = asked or trainer.should_stop or trainer.global_step == trainer.max_steps
        if (stopping or trainer.global_step % self.every_n_steps == 0) and not dry_run(trainer):
            self.save_last(trainer)
        if asked:
            self._leave(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.state.fn != "fit" or trainer.sanity_checking or dry_run(trainer) or value is None:
            return
        better = operator.gt if self.mode == "max" else operator.lt
        if math.isfinite(value) and (self.best is None or better(float(value), self.best)):
            before, self.best = self.best, float(value)  # the checkpoint holds the value
            if not self._save(trainer, self.folder / "best.ckpt"):
                self.best = before

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after validation.

        An epoch that ``max_steps`` cut short was saved in its last step: a checkpoint from here would count as a whole
        epoch, and a resumed run would never see the rest of it.
        """
        if not dry_run(trainer) and (trainer.is_last_batch or self._saved_step != trainer.global_step):
            self.save_last(trainer)
        self._leave_if_asked(trainer)

    # ------------------------------------------------------------------ saving

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / "last.ckpt"

    def resumable(self, trainer: Trainer) -> str:
        """How to go on, for messages; every process may ask."""
        path = self.last if self.last.exists() else trainer.ckpt_path
        return f"resume with --ckpt_path {path}" if path else "no checkpoint was written yet"

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, all processes together."""
        if self._save(trainer, self.last):
            self._saved_step = trainer.global_step

    def _save(self, trainer: Trainer, path: Path) -> bool:
        """Write a checkpoint, unless a weight or a moment of the optimizer is not finite."""
        if not all_finite(trainer, trainer.lightning_module):
            kept = "the one that is there is kept" if path.exists() else "it would be the first"
            rank_zero_info(f"step {trainer.global_step}: weights are not finite: {path} is not written, {kept}")
            return False
        trainer.save_checkpoint(path, weights_only=False)
        return True

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the best value of the resumed run."""
        self.best = state_dict["best"]
