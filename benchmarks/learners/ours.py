"""`jepa fit` with a shipped recipe, as a user runs it, without probes and pictures on the way."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import WARMUP, arguments, by_blocks, marks, now, parameters, write_features
from lightning import Callback

from jepa_lightning.cli import main
from jepa_lightning.commands.configs import find_config

QUIET = [
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--probe.every_n_epochs=0",
    "--pictures.every_n_epochs=0", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0",
    "--trainer.devices=1",
]  # fmt: skip


class Features(Callback):
    """Writes features and counts the time of everything else."""

    def __init__(self, images: str, out: str, steps: int, points: int, timing: bool, device: str) -> None:
        self.images, self.out, self.steps, self.timing, self.device = Path(images), Path(out), steps, timing, device
        self.marks = marks(steps, points)
        self.seconds, self.points, self.about = 0.0, [], {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The start, and the clock."""
        self.about = {"parameters": parameters(pl_module.encoder)}
        self._write(pl_module, 0, 0)
        self.begun = now(self.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock, write, go on."""
        step = trainer.global_step
        if self.timing:
            if step == self.steps // 3:
                self.begun = now(self.device)
            elif step == self.steps:
                self.seconds = (now(self.device) - self.begun) / (step - self.steps // 3)
        elif step in self.marks:
            self.seconds += now(self.device) - self.begun
            pl_module.update_target_encoder()  # the module's own turn comes after the callbacks'
            self._write(pl_module, step, step * len(batch.inputs))
            self.begun = now(self.device)

    def _write(self, module: Any, step: int, images: int) -> None:
        if not self.timing:
            encode = by_blocks(module.evaluated, module.encode)
            write_features(encode, self.images, self.out / f"{step}.npz", module.device)
            self.points.append({"step": step, "seconds": self.seconds, "images": images})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last line, which `learning.py` reads."""
        print(json.dumps({"seconds_per_step": self.seconds, "about": self.about, "points": self.points}))


def warm_up(given: argparse.Namespace) -> list[str]:
    """The share of the training that all learners have, in epochs of our loader, whatever the recipe's length was."""
    recipe = yaml.safe_load(Path(find_config(given.config)).read_text())
    if "warmup_epochs" not in recipe["model"]["init_args"]["lr"].get("init_args", {}):
        return []
    per_epoch = len(np.load(given.images)["train_y"]) // given.shape["batch_size"]
    return [f"--model.lr.init_args.warmup_epochs={WARMUP * given.steps / per_epoch}"]


def fit(*more: str) -> None:
    """`jepa fit` as `learning.py` tells, with some options more."""
    given = arguments()
    writer = ["--trainer.callbacks+=ours.Features", f"--trainer.callbacks.images={given.images}"]
    writer += [f"--trainer.callbacks.out={given.out}", f"--trainer.callbacks.steps={given.steps}"]
    writer += [f"--trainer.callbacks.points={given.points}"]
    writer += [f"--trainer.callbacks.timing={str(given.timing).lower()}", f"--trainer.callbacks.device={given.device}"]
    where = [f"--trainer.logger.init_args.save_dir={given.out}/run"]
    options = [*more, *warm_up(given), *given.option, *QUIET, *writer, *where]
    main(["fit", f"--config={given.config}", *options,
          f"--trainer.max_steps={given.steps}", f"--seed_everything={given.seed}",
          f"--trainer.accelerator={given.device}"])  # fmt: skip


if __name__ == "__main__":
    fit()
