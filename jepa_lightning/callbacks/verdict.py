"""Says whether a training learned anything, and which commands come next; warns of one that is too short."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.callbacks.alarm import Alarm
from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.callbacks.probe import Probe
from jepa_lightning.evaluation.intervals import difference
from jepa_lightning.evaluation.results import KNN, LOGISTIC, RANKME, Result

FEWEST_STEPS = 1000
"""Below about so many optimizer steps small networks on small pictures have learned little (docs/small-data.md)."""


class Verdict(Callback):
    """Warns of a training with too few steps; at its end says whether it learned, where the results are, what is next.

    Whether it learned: the gain of the linear probe, or else of k-NN, over the untrained encoder on held-out samples,
    with its 95 % interval, RankMe, and the alarm. A probe, or a network that starts from another training, is not
    judged by its steps.

    Args:
        fewest_steps: Optimizer steps below which there is a warning; 0 for none.
    """

    def __init__(self, fewest_steps: int = FEWEST_STEPS) -> None:
        if fewest_steps < 0:
            raise ValueError(f"fewest_steps must be at least 0, got {fewest_steps}")
        self.fewest_steps = fewest_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a training that is too short to learn."""
        steps = trainer.estimated_stepping_batches
        learns = hasattr(pl_module, "observers")  # a probe does not
        if not learns or dry_run(trainer) or not 0 < steps < self.fewest_steps:
            return
        epochs = trainer.max_epochs or 1
        remedy = (
            f"--trainer.max_epochs {-(-self.fewest_steps * epochs // max(1, int(steps)))}"
            if trainer.max_steps < 0
            else f"--trainer.max_steps {self.fewest_steps}"
        )
        text = f"this training has {int(steps)} steps, and most learn little before {self.fewest_steps}: {remedy}"
        bar = trainer.progress_bar_callback
        rank_zero_info(text) if bar is None else bar.print(text)  # which keeps it off the line of the bar

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say it, after the tables."""
        if stage != "fit" or dry_run(trainer) or not hasattr(pl_module, "observers"):
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # every process asks: Lightning broadcasts it
        if not trainer.is_global_zero:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        results = [result for c in callbacks if isinstance(c, Probe) for result in c.found]
        alarm = next((c.reason for c in callbacks if isinstance(c, Alarm)), "")
        tensorboard = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        found = [*judged(results, alarm), *following(folder, tensorboard)]
        if found:
            print("\n".join(["", *found]))  # noqa: T201  # what somebody who trained wants to know


def judged(results: list[Result], alarm: str) -> list[str]:
    """Whether the training learned, in one sentence; nothing without results before and after it.

    Args:
        results: Of the encoder before and after training.
        alarm: Why the alarm is on at the end; empty if it is not.
    """
    warning = [f"the collapse alarm is on: {alarm}"] if alarm else []
    for protocol, name in ((LOGISTIC, "the linear probe"), (KNN, "k-NN")):
        pairs = _pairs(results, protocol)
        if not pairs:
            continue
        before, after = max(pairs, key=lambda pair: pair[1].mean - pair[0].mean)  # any label that is learned counts
        gain = difference(before.mean, after.mean, after.samples)
        label = f" of the {after.label}" if after.label else ""
        verdict = "it learned" if gain.low > 0 else "it got worse" if gain.high < 0 else "no certain gain"
        ranks = " to ".join(f"{result.mean:.1f}" for pair in _pairs(results, RANKME) for result in pair)
        return [
            f"{verdict}: {name}{label} went from {before.mean:.1%} to {after.mean:.1%} on {after.samples:,} held-out "
            f"samples, a gain of {100 * gain.mean:.1f} points (95 % interval {100 * gain.low:.1f} to "
            f"{100 * gain.high:.1f}){f'; RankMe {ranks}' if ranks else ''}",
            *warning,
        ]
    return warning


def _pairs(results: list[Result], protocol: str) -> list[tuple[Result, Result]]:
    """The results of a readout before and after training, for each label."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.protocol == protocol and result.values:
            found.setdefault(result.label, []).append(result)
    return [(first, last) for first, *_, last in (group for group in found.values() if len(group) > 1)]


def following(folder: Path, tensorboard: bool) -> list[str]:
    """Where things are, and commands to paste.

    Args:
        folder: The folder of the run.
        tensorboard: Whether it has curves for TensorBoard.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return []
    path = shlex.quote(str(last))
    pictures = sorted(folder.glob("pictures/*.png"))
    lines = [f"checkpoint: {last}" + (f"; latest picture: {pictures[-1]}" if pictures else "")]
    if tensorboard:
        lines.append(f"  tensorboard --logdir {shlex.quote(str(folder))}    # curves, pictures")
    return [
        *lines,
        f"  jepa explore --ckpt_path {path}    # look inside",
        f"  jepa evaluate --ckpt_path {path}    # k-NN, linear, few labels, with intervals",
        f"  jepa export --ckpt_path {path} --to huggingface --out exported    # for other programs",
    ]
