"""Where a training is, for schedules: also after it was resumed with other batches, processes or epochs."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info

PROGRESS_KEY = "jepa_progress"
"""Of a checkpoint: how far the training was, and with which settings."""

SETTINGS = {
    "batch_size": "batch size",
    "accumulate_grad_batches": "accumulated batches",
    "processes": "processes",
    "max_epochs": "epochs",
}


class Progress(LightningModule):
    """Counts optimizer steps for schedules.

    A resumed training goes on at the same fraction of its epochs: where an epoch has another number of steps than
    before, the steps that are behind are converted. Without such a change the count is that of Lightning.
    """

    _shift = 0
    """By how much the count of schedules is ahead of the optimizer steps that were made."""
    _stored: dict[str, Any] | None = None

    def progress(self) -> tuple[int, int, int]:
        """Where the training is: number of the next optimizer step from 1, all steps, steps in an epoch.

        Raises:
            ValueError: If the length of the training is not known.
        """
        trainer = self.trainer
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError(
                "the schedules need the length of the training: set --trainer.max_epochs or --trainer.max_steps"
            )
        batches = trainer.num_training_batches
        per_epoch = steps if batches == float("inf") else -(-int(batches) // trainer.accumulate_grad_batches)
        if self._shift:
            ends = [trainer.max_steps + self._shift] if trainer.max_steps >= 0 else []
            epochs = trainer.max_epochs or -1
            steps = min([*ends, epochs * per_epoch] if epochs > 0 else ends)
        return self.global_step + 1 + self._shift, int(steps), int(per_epoch)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how far the training is."""
        if self.trainer.state.fn == "fit":
            checkpoint[PROGRESS_KEY] = {"step": self.progress()[0] - 1, **self._settings()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how far it was; what that means is known once the data are there."""
        self._stored = checkpoint.get(PROGRESS_KEY)

    def _settings(self) -> dict[str, Any]:
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        batches = trainer.num_training_batches
        return {
            "steps_per_epoch": self.progress()[2],
            "batches_per_epoch": 0 if batches == float("inf") else int(batches),
            "batch_size": getattr(data, "batch_size", None),
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "processes": trainer.world_size,
            "max_epochs": trainer.max_epochs,
        }

    def on_train_start(self) -> None:
        """Go on at the same fraction; say what changed, and if the learning rate will never reach its peak.

        Raises:
            ValueError: If the optimizer state that was loaded is of other parameters.
        """
        self._check_moments()
        stored, self._stored, self._shift = self._stored, None, 0
        if stored is not None:
            self._resume(stored, self._settings())
        elif self.global_step:
            self._tell_if_steps_do_not_fit()
        name = "lr_schedule" if hasattr(self, "lr_schedule") else "lr"
        _, steps, per_epoch = self.progress()
        warmup = int(getattr(getattr(self, name, None), "warmup_epochs", 0) * per_epoch)
        if warmup > steps:
            rank_zero_info(
                f"the warm-up of the learning rate, {warmup} steps, is longer than the training, {steps} steps: its "
                f"peak is never reached; set --model.{name}.warmup_epochs to less than {steps / per_epoch:g}"
            )

    def _check_moments(self) -> None:
        """PyTorch takes moments of any shape, and its fused steps then read memory that is not theirs."""
        for optimizer in self.trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name, moment in state.items():
                    if moment is None or not name.startswith(("exp_avg", "momentum")):
                        continue
                    if getattr(moment, "shape", None) != parameter.shape:
                        found = tuple(getattr(moment, "shape", ())) or type(moment).__name__
                        which = next(key for key, each in self.named_parameters() if each is parameter)
                        raise ValueError(
                            f"the optimizer state of the checkpoint does not fit the model: {name} of {which} is "
                            f"{found}, the parameter is {tuple(parameter.shape)}; start a new training from its "
                            "networks with --init_from"
                        )

    def _resume(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """Convert what is behind to steps of today."""
        done = before["step"]
        if before["batches_per_epoch"] and now["batches_per_epoch"]:
            done = round(done * now["steps_per_epoch"] / before["steps_per_epoch"])
            if before["batches_per_epoch"] != now["batches_per_epoch"]:
                self._convert_batches(now["batches_per_epoch"] / before["batches_per_epoch"])
        self._shift = done - self.global_step
        changed = [f"{text} {now[name]} (was {before[name]})" for name, text in SETTINGS.items()
                   if now[name] != before[name]]  # fmt: skip
        if changed or now["steps_per_epoch"] != before["steps_per_epoch"]:
            step, steps, per_epoch = self.progress()
            changed = changed or [f"{per_epoch} steps in an epoch (was {before['steps_per_epoch']})"]
            rank_zero_info(
                f"resumed with {', '.join(changed)}: the schedules go on at {(step - 1) / max(1, steps):.0%} of the "
                f"training, step {step} of {steps}"
            )

    def _convert_batches(self, ratio: float) -> None:
        """Go on at the same place of an epoch that was interrupted."""
        trainer = self.trainer
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        seen = round(progress.ready * ratio)
        if not 0 < seen < trainer.num_training_batches:  # an epoch begins
            return
        late = progress.processed - progress.completed  # 1 for a checkpoint that was written when a batch ended
        progress.ready = progress.started = progress.processed = seen
        progress.completed = seen - late
        sampler: Any = getattr(trainer.train_dataloader, "sampler", None)
        if getattr(sampler, "resume_epoch", -1) == trainer.current_epoch:
            sampler.resume(trainer.current_epoch, seen)

    def _tell_if_steps_do_not_fit(self) -> None:
        """One line about a checkpoint that does not say how far it was, if the epochs were others."""
        _, _, per_epoch = self.progress()
        least, most = self.current_epoch * per_epoch, (self.current_epoch + 1) * per_epoch
        if self.trainer.max_steps < 0 and not least <= self.global_step <= most:
            rank_zero_info(
                f"the checkpoint says {self.global_step} optimizer steps in {self.current_epoch} epochs, which have "
                f"{per_epoch} steps each in this run, and not what its batch size was: schedules go on at step "
                f"{self.global_step + 1}"
            )
