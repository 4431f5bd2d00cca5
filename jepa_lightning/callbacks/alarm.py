"""Report that a training collapses, why, and what to change first; stop one whose numbers are not finite."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from jepa_lightning.callbacks.checkpoints import Checkpoints
from jepa_lightning.callbacks.collapse import SIGNS, Vitals, of_predictions, seen, spread_of_rows
from jepa_lightning.callbacks.finite import FiniteNumbers
from jepa_lightning.callbacks.measures import some_rows, targets_of
from jepa_lightning.callbacks.observer import Observer, tensorboards
from jepa_lightning.distributed import local_part

LOOKS = 4
"""Over how many looks spread and rank are averaged."""

CALM = 3
"""Looks without a sign that end the alarm, over ``patience``: it is raised early and ended late."""

SAMPLES = 16
"""Inputs that are encoded for a method whose steps have no predictions to look at."""


class Alarm(Observer):
    """Watches for signs of collapse, and reports them in the progress bar, the log and TensorBoard.

    The signs are in `callbacks/collapse.py`. Relative ones compare with the best value so far, which checkpoints hold.
    A sign in ``patience`` looks in a row raises the alarm; three times as many looks without a sign end it. In
    TensorBoard `health/alarm` is 1 while it lasts, and the text is under `alarm`. Only the first process looks, at its
    own part of the batch: a collapse is the same in all processes.

    The first loss or gradient norm that is not finite ends the training, within 10 optimizer steps on an accelerator
    and at once on a CPU; checkpoints keep the last finite weights.

    Args:
        every_n_steps: Optimizer steps between two looks; 0 for no alarm.
        patience: Looks in a row that must agree.
        stop: Stop the training when the alarm is raised; the last checkpoint is written as at any other end.
        rows: Number of latest features that spread and rank are measured on.
        stop_on_nan: End the training, with an error, when a loss or gradient norm is not finite.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        patience: int = 3,
        stop: bool = False,
        rows: int = 256,
        stop_on_nan: bool = True,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience is a number of looks, at least 1, got {patience}")
        super().__init__(every_n_steps)
        self.patience, self.stop, self.rows, self.stop_on_nan = patience, stop, rows, stop_on_nan
        self.reason = ""
        """Why the alarm is on, in a few words; empty while it is off."""
        self._best: Vitals = {}
        self._in_a_row: dict[str, int] = {}
        self._calm = 0
        self._due = False
        self._latest: dict[str, Tensor] = {}
        self._recent: dict[str, list[float]] = {}
        self._predictions: Tensor | None = None
        self._vectors: Tensor | None = None
        self._numbers = FiniteNumbers()

    # ------------------------------------------------------------------ looking

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look no more."""
        super().teardown(trainer, pl_module, stage)
        self._latest, self._recent, self._vectors = {}, {}, None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at the first batch of every n-th optimizer step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._due = self.due(self.every_n_steps)
        self._looks = self._due and trainer.is_global_zero
        self._moves = self._moves_of(pl_module) if self._looks else {}
        self._seen = False

    @torch.no_grad()
    def see(self, step: Any) -> None:
        """Copy a few features of an Observed, in the middle of the training step."""
        self._seen = self._due
        if self._looks:
            targets = targets_of(step.features, step.masks)
            self._keep("target", targets, step.masks.targets)
            self._keep("context", step.context, step.masks.context)
            self._predictions = of_predictions(
                step.context, step.predicted, targets, step.masks, step.features.shape[1]
            )

    def _keep(self, name: str, tokens: Tensor, index: Tensor | None) -> None:
        """Keep rows of this look, and of earlier ones if a batch has too few: fewer rows have a lower rank."""
        rows = normalised(some_rows(tokens, index, self.rows, self._step)).cpu()
        self._latest[name] = torch.cat([self._latest.get(name, rows[:0]), rows])[-self.rows :]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Judge what was seen, and say so.

        Raises:
            FloatingPointError: If a loss or gradient norm was not finite and ``stop_on_nan`` is true.
        """
        self._numbers.take_loss(trainer, outputs, self._step)
        if self._numbers.due(trainer):
            self._stop_on_nan(trainer)
        if not self._due:
            return
        if not self._seen:  # a method without predictions; every process takes part in encoding
            name = "context" if pl_module.evaluated is pl_module.encoder else "target"
            self._keep(name, self.encode(trainer, pl_module, batch.inputs[:SAMPLES]), None)
        if self._looks:
            self.judge(trainer, self._vitals(outputs))
        if self.stop and trainer.strategy.broadcast(bool(self.reason)):
            trainer.should_stop = True
        self._due = self._looks = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        """Keep the gradient norm, before gradients are clipped."""
        self._numbers.take_gradients(trainer, optimizer)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Look at the numbers before anything is measured."""
        self._stop_on_nan(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Look at the numbers before the epoch's checkpoint is written."""
        self._stop_on_nan(trainer)

    def _stop_on_nan(self, trainer: Trainer) -> None:
        found = self._numbers.look(trainer)
        if found and self.stop_on_nan:
            files = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
            raise FloatingPointError(
                f"{found}. Lower the learning rate, warm up longer, or clip with --trainer.gradient_clip_val 1 "
                f"({files[0].resumable(trainer) if files else 'no checkpoints'}; --alarm.stop_on_nan false goes on)"
            )

    def _vitals(self, outputs: Any) -> Vitals:
        loss = outputs["loss"].detach() if isinstance(outputs, dict) else torch.zeros(())
        finite = bool(loss.isfinite()) and all(bool(rows.isfinite().all()) for rows in self._latest.values())
        vitals = {"finite": float(finite)}
        if not finite:
            return vitals
        for name, rows in self._latest.items():
            if len(rows) == self.rows:
                for measure, value in spread_of_rows(name, rows).items():
                    vitals[measure] = self._averaged(measure, value)
        if self._predictions is not None:
            vitals |= dict(zip(("copy", "place", "content"), self._predictions.tolist(), strict=True))
        vitals |= {name: float(value) for name, value in self._moves.items()}
        return vitals

    def _averaged(self, measure: str, value: float) -> float:
        """The mean over the last looks: single batches differ much."""
        self._recent[measure] = [*self._recent.get(measure, []), value][-LOOKS:]
        return sum(self._recent[measure]) / len(self._recent[measure])

    @torch.no_grad()
    def _moves_of(self, pl_module: Any) -> dict[str, Tensor]:
        """Speed of the biases and norms of the context encoder, and how far those of the target encoder lag behind."""
        now, behind = (_vectors(network) for network in (pl_module.encoder, pl_module.evaluated))
        before, self._vectors = self._vectors, now.clone()
        if before is None or now.numel() == 0:
            return {}
        way = (now - before).square().mean().sqrt()
        pace = way / self.every_n_steps
        if pl_module.evaluated is pl_module.encoder or bool(way == 0):
            return {"pace": pace}
        return {"pace": pace, "lag": (now - behind).square().mean().sqrt() / way}

    # ------------------------------------------------------------------ judging

    def judge(self, trainer: Trainer, vitals: Vitals) -> None:
        """Raise, keep or end the alarm."""
        for name, value in vitals.items():
            self._best[name] = max(self._best.get(name, value), value)
        signs = seen(vitals, self._best)
        self._in_a_row = {sign.short: self._in_a_row.get(sign.short, 0) + 1 for sign in signs}
        self._calm = 0 if signs else self._calm + 1
        lasting = {name for name, times in self._in_a_row.items() if times >= self.patience}
        told = [sign for sign in SIGNS if sign.short in lasting]
        if told and not self.reason:
            values = {sign.measure: (vitals[sign.measure], self._best[sign.measure]) for sign in told}
            meanings = [sign.meaning.format(now=values[sign.measure][0], best=values[sign.measure][1]) for sign in told]
            self.reason = ", ".join(sign.short for sign in told)
            self._say(trainer, f"COLLAPSE ALARM: {'; '.join(meanings)}. Change first: {told[0].first}")
        elif self.reason and self._calm >= CALM * self.patience:
            self.reason = ""
            self._say(trainer, "the collapse alarm is over: its signs are gone")
        self.log_health(trainer, {"alarm": float(bool(self.reason))}, self._step)

    def _say(self, trainer: Trainer, message: str) -> None:
        message = f"step {self._step}: {message}"
        rank_zero_info(f"\n{message}" + (" (training stops)" if self.stop and self.reason else ""))
        for writer in tensorboards(trainer):
            writer.add_text("alarm", message, self._step)

    def state_dict(self) -> dict[str, Any]:
        """The best values; not the alarm itself, because the resumed run may have other settings."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the best values of the resumed run."""
        self._best = state_dict["best"]


def normalised(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Layer-normalised, as targets are: the scale of an encoder's last norm is free and means nothing."""
    return F.layer_norm(rows, rows.shape[-1:])


def _vectors(network: nn.Module) -> Float[Tensor, "n"]:
    """A copy of the biases and norms that this process holds, as one vector."""
    vectors = [local_part(p).flatten().float() for p in network.parameters() if p.ndim == 1]
    return torch.cat(vectors) if vectors else torch.zeros(0)
