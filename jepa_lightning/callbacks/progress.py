"""The progress bar: loss, images or clips per second, and the time left in the whole run."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from jepa_lightning.callbacks.alarm import Alarm


class ProgressBar(TQDMProgressBar):
    """Lightning's bar for each epoch, with loss, images/s (or clips/s) and the time left until the end of training.

    Args:
        refresh_rate: Batches between two updates.
    """

    def __init__(self, refresh_rate: int = 5) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._begun: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the time left."""
        super().on_train_start(trainer, pl_module)
        self._begun = (time.monotonic(), trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bars, so that the error message starts on a new line."""
        for bar in (
            self._val_progress_bar,
            self._train_progress_bar,
            self._test_progress_bar,
            self._predict_progress_bar,
        ):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The values after the bar."""
        known = trainer.callback_metrics
        shown: dict[str, Any] = {}
        if "train/loss" in known:
            shown["loss"] = f"{float(known['train/loss']):.4f}"
        for kind in ("images", "clips"):
            if f"train/{kind}_per_s" in known:
                shown[f"{kind}/s"] = f"{float(known[f'train/{kind}_per_s']):.0f}"
        for name in ("val/loss", "val/linear_top1", "val/knn_top1", "val/top1"):
            if name in known:
                shown[name] = f"{float(known[name]):.3f}"
        if self._begun is not None and trainer.global_step > self._begun[1]:
            pace = (time.monotonic() - self._begun[0]) / (trainer.global_step - self._begun[1])
            left = trainer.estimated_stepping_batches - trainer.global_step
            if hasattr(pl_module, "progress"):  # after a change of the batch size Lightning's steps are not all alike
                step, steps, _ = cast(Any, pl_module).progress()
                left = steps - step + 1
            if 0 <= left < float("inf"):
                shown["left"] = str(timedelta(seconds=round(pace * left)))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Alarm) and callback.reason:
                shown["COLLAPSE ALARM"] = callback.reason
        return shown
