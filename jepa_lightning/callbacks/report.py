"""Prints and writes what probes and classifiers found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from jepa_lightning.callbacks.config import SaveConfig
from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.evaluation import Report as Document
from jepa_lightning.evaluation.provenance import commit, hardware, software
from jepa_lightning.evaluation.report import written_now

STAGES = {"fit": "validation", "validate": "validation", "test": "test"}


class Report(Callback):
    """Prints and writes the results of `jepa fit`, `validate` and `test`, once all is done.

    They come from whatever has a method ``findings()``: the callback Probe (`validation.json`, `test.json`) and probes
    and fine-tuning (`heads_validation.json`, `heads_test.json`). Beside each JSON stands a page `.md` with 95 %
    intervals, protocol, commit, configuration, hardware and time. `jepa report` combines those of several seeds.

    Args:
        write: Whether to write the files.
    """

    def __init__(self, write: bool = True) -> None:
        self.write = write
        self._begun = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell, after everything else was printed."""
        folder = trainer.log_dir  # every process asks, because Lightning broadcasts the answer
        if stage not in STAGES or dry_run(trainer) or not trainer.is_global_zero:
            return
        sources: list[tuple[str, Any]] = [("", callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        for prefix, source in [*sources, ("heads_", pl_module)]:
            found: Document | None = getattr(source, "findings", lambda: None)()
            if found is not None:
                about = {**found.about, **self._about(trainer, pl_module, stage)}
                whole = found._replace(about=about, config=_config(trainer))
                whole.publish(Path(folder) if self.write and folder else None, f"{prefix}{STAGES[stage]}")

    def _about(self, trainer: Trainer, module: Any, stage: str) -> dict[str, Any]:
        fitted = stage == TrainerFn.FITTING
        encoder = {"encoder": module.checkpoint} if hasattr(module, "checkpoint") else {}
        return {
            "module": type(module).__name__,
            **encoder,
            "checkpoint": "as trained" if fitted else str(trainer.ckpt_path or "none"),
            "steps": trainer.global_step if fitted else "see the checkpoint",
            "time": f"{time.monotonic() - self._begun:.0f} s for this command ({TrainerFn(stage).value})",
            "hardware": hardware(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "commit": commit(),
            "software": software(),
            "written": written_now(),
        }


def _config(trainer: Trainer) -> str:
    """The resolved configuration, where the command line made the trainer."""
    return next((c.text for c in trainer.callbacks if isinstance(c, SaveConfig)), "")  # type: ignore[attr-defined]
