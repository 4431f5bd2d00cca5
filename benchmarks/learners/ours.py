"""`jepa fit` with a shipped recipe, as a user runs it, without probes and pictures on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from common import arguments, marks, parameters, write_features
from lightning import Callback

from jepa_lightning.cli import main

QUIET = [
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--probe.every_n_epochs=0",
    "--pictures.every_n_epochs=0", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0",
]  # fmt: skip


class Features(Callback):
    """Writes features and counts the time of everything else."""

    def __init__(self, images: str, out: str, steps: int, timing: bool) -> None:
        self.images, self.out, self.steps, self.timing = Path(images), Path(out), steps, timing
        self.seconds, self.points, self.about = 0.0, [], {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The start, and the clock."""
        self.about = {"parameters": parameters(pl_module.encoder)}
        self._write(pl_module, 0, 0)
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock, write, go on."""
        step = trainer.global_step
        if self.timing:
            if step == self.steps // 3:
                self.begun = time.perf_counter()
            self.seconds = (time.perf_counter() - self.begun) / max(1, step - self.steps // 3)
        elif step in marks(self.steps):
            self.seconds += time.perf_counter() - self.begun
            pl_module.update_target_encoder()  # the module's own turn comes after the callbacks'
            self._write(pl_module, step, step * len(batch.inputs))
            self.begun = time.perf_counter()

    def _write(self, module: Any, step: int, images: int) -> None:
        if not self.timing:
            write_features(
                lambda x: module.encode(x.to(module.device)).mean(dim=1).cpu(), self.images, self.out / f"{step}.npz"
            )
            self.points.append({"step": step, "seconds": self.seconds, "images": images})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last line, which `learning.py` reads."""
        print(json.dumps({"seconds_per_step": self.seconds, "about": self.about, "points": self.points}))


if __name__ == "__main__":
    given = arguments()
    writer = ["--trainer.callbacks+=ours.Features", f"--trainer.callbacks.images={given.images}"]
    writer += [f"--trainer.callbacks.out={given.out}", f"--trainer.callbacks.steps={given.steps}"]
    writer += [f"--trainer.callbacks.timing={str(given.timing).lower()}"]
    where = [f"--trainer.logger.init_args.save_dir={given.out}/run"]
    main(["fit", f"--config={given.config}", *given.option, *QUIET, *writer, *where,
          f"--trainer.max_steps={given.steps}", f"--seed_everything={given.seed}"])  # fmt: skip
