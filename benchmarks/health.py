"""What the always-on observers of health and collapse cost: their share of the time of a training step.

Trains a shipped configuration as `jepa fit` does, with TensorBoard, and adds up the time inside every hook of Health
and of Alarm (on CUDA the device is waited for before and after) and the time of the same steps without it. So both are
of one run and other work on the machine hits both alike. The time of a step does not hold the wait for data, which only
makes the shares larger. The very first measurement, which also reads the samples for LiDAR, stands in a
column of its own.

    python benchmarks/health.py [--configs ijepa.yaml vjepa.yaml] [--steps 200]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from jepa_lightning.callbacks import Alarm, Health
from jepa_lightning.commands.configs import find_config
from jepa_lightning.data import JEPADataModule
from jepa_lightning.loading import build

HOOKS = ("on_train_batch_start", "see", "on_train_batch_end", "on_train_epoch_end")


class Clock(Callback):
    """Times the steps and the hooks of other callbacks; it must stand before them in the list of callbacks."""

    def __init__(self, watched: Sequence[Callback], steps: int) -> None:
        self.steps, self.alone = steps, 0.0
        self.spent: dict[str, float] = {type(callback).__name__: 0.0 for callback in watched}
        self.first = 0.0
        for callback in watched:
            for hook in HOOKS:
                if hasattr(callback, hook):
                    setattr(callback, hook, self._timed(type(callback).__name__, getattr(callback, hook)))

    def _timed(self, name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            wait()
            start = time.perf_counter()
            result = hook(*args, **kwargs)
            wait()
            self.spent[name] += time.perf_counter() - start
            return result

        return run

    def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Start of a step. What was spent in the very first one is put aside."""
        if trainer.global_step == 1:
            self.first, self.alone = sum(self.spent.values()), 0.0
            self.spent = dict.fromkeys(self.spent, 0.0)
        wait()
        self.before, self.start = sum(self.spent.values()), time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """End of a step, of which the hooks in its middle are taken off; those at its end come after this one."""
        wait()
        self.alone += time.perf_counter() - self.start - (sum(self.spent.values()) - self.before)
        if trainer.global_step > self.steps:
            trainer.should_stop = True


def wait() -> None:
    """Kernels on a GPU run on after the call has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def data_of(config: dict[str, Any]) -> JEPADataModule:
    """The data module of a configuration, read in this process."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(JEPADataModule, "data")
    config["init_args"]["num_workers"] = 0
    return parser.instantiate_classes(parser.parse_object({"data": config})).data


def measure(name: str, steps: int, folder: str) -> list[str]:
    """A row of the table."""
    config = yaml.safe_load(Path(find_config(name)).read_text())
    seed_everything(0, verbose=False)
    observers = [Health(), Alarm()]
    clock = Clock(observers, steps)
    trainer = Trainer(
        logger=TensorBoardLogger(folder, name=name),
        callbacks=[clock, *observers],
        max_epochs=config["trainer"]["max_epochs"],
        log_every_n_steps=config["trainer"]["log_every_n_steps"],
        limit_val_batches=0,
        enable_progress_bar=sys.stderr.isatty(),
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(build(config["model"]), datamodule=data_of(config["data"]))
    alone, health, alarm = (seconds / steps for seconds in (clock.alone, *clock.spent.values()))
    shares = [f"{1e3 * cost:.2f} ({100 * cost / alone:.2f} %)" for cost in (health, alarm, health + alarm)]
    return [name, str(steps), f"{1e3 * alone:.0f}", *shares, f"{1e3 * clock.first:.0f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["ijepa.yaml", "vjepa.yaml"], help="(ijepa.yaml vjepa.yaml)")
    parser.add_argument("--steps", type=int, default=200, help="measured steps of each (200)")
    options = parser.parse_args(arguments)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    print(f"{device}; torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| configuration | steps | ms per step alone | Health, ms per step | Alarm, ms per step | both | first, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {' | '.join(measure(name, options.steps, folder))} |", flush=True)


if __name__ == "__main__":
    main()
