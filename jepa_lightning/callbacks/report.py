"""`report.json` and `report.md` of what a probe or a fine-tuned encoder reaches."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from jepa_lightning.callbacks.config import SaveConfig
from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.evaluation.document import Report as Document
from jepa_lightning.evaluation.protocols import Result
from jepa_lightning.evaluation.provenance import commit, hardware, software


class Report(Callback):
    """Writes a report when a module that has ``results()`` was fitted, validated or tested.

    Accuracies with 95 % intervals, protocol, commit, configuration, hardware and time. `jepa report` puts those of
    several seeds into one.

    Args:
        write: Whether to write it.
    """

    def __init__(self, write: bool = True) -> None:
        self.write = write
        self._begun = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write, after everything else was printed."""
        folder = trainer.log_dir  # every process asks, because Lightning broadcasts the answer
        results: list[Any] = getattr(pl_module, "results", list)()
        if not (self.write and results and folder) or dry_run(trainer) or not trainer.is_global_zero:
            return
        module: Any = pl_module
        texts = [callback.text for callback in trainer.callbacks if isinstance(callback, SaveConfig)]  # type: ignore[attr-defined]
        about = {
            "encoder": module.checkpoint,
            "checkpoint": str(trainer.ckpt_path or "as trained"),
            "steps": trainer.global_step or "see the checkpoint",
            "time": f"{time.monotonic() - self._begun:.0f} s for this command ({TrainerFn(stage).value})",
            "hardware": hardware(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "commit": commit(),
            "software": software(),
            "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
        title = f"{type(module).__name__} on {module.checkpoint}"
        document = Document(title, [Result(**row) for row in results], module.sentences(), about, "".join(texts[:1]))
        for path in document.write(Path(folder)):
            print(f"written to {path}")  # noqa: T201  # where to look
