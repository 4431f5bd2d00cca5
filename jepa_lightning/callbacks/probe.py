"""Evaluates the frozen target encoder at validation, beside the randomly initialised encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from torch import Tensor, nn

from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.evaluation import extract, score, table
from jepa_lightning.evaluation.report import Scores


class Probe(Callback):
    """Linear probe, k-NN and RankMe of the frozen target encoder: `val/linear_top1`, `val/knn_top1`, `val/rankme`.

    The classifiers are fitted on the clean training split and scored on the held-out split, with mean-pooled tokens.
    The same numbers of the encoder as it was initialised are logged once as `init/...`: an encoder that learned
    nothing has these. With several labels a sample, `val/linear_top1` is the mean and `val/linear_top1_NAME` the score
    of each. `jepa validate` and `jepa test` also print a table and write it as JSON. An encoder that is not trained (an
    AttentiveProbe's) has no baseline, is scored once, and called what its module's ``title`` says.

    Args:
        every_n_epochs: Evaluate at the validations of every n-th epoch and at the last; 0 for never.
        max_train: Most training samples to fit on.
        max_held_out: Most held-out samples to score.
        k: Neighbours that vote.
    """

    def __init__(
        self, every_n_epochs: int = 1, max_train: int = 10_000, max_held_out: int = 10_000, k: int = 20
    ) -> None:
        self.every_n_epochs, self.max_train, self.max_held_out, self.k = every_n_epochs, max_train, max_held_out, k
        self.start = "random initialisation"
        """What the encoder is before training; the command line changes it where training starts from a checkpoint."""
        self.initial: Scores = {}
        self._untrained: nn.Module | None = None
        self._frozen: str | None = None
        """What an encoder that is not trained is called; None for one that is."""

    # ------------------------------------------------------------------ the baseline

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Keep the encoder as it was initialised, before a checkpoint is loaded into it."""
        trained = any(parameter.requires_grad for parameter in pl_module.encoder.parameters())
        self._frozen = None if trained else getattr(pl_module, "title", "frozen encoder")
        if self.every_n_epochs and stage in ("validate", "test") and not self._frozen:
            self._untrained = pl_module.frozen_encoder()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Score the initial encoder; a resumed run has these numbers in its checkpoint."""
        untrained = self._frozen is not None or trainer.global_step == 0
        if self.every_n_epochs and not self.initial and untrained and not dry_run(trainer):
            self.initial = self._scores(trainer, pl_module, pl_module.encode, "val", self._frozen or self.start)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Log the baseline once more in every log, so that curves can be compared with it."""
        if not self._frozen:
            self._log(trainer, "init", self.initial)

    def state_dict(self) -> dict[str, Any]:
        """The baseline travels in the checkpoint."""
        return {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the baseline from the checkpoint."""
        self.initial = state_dict["initial"]

    # ------------------------------------------------------------------ evaluation

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Score the target encoder as it is now."""
        if not self.every_n_epochs or trainer.sanity_checking or dry_run(trainer):
            return
        last = trainer.max_epochs == trainer.current_epoch + 1
        if trainer.state.fn == "fit":
            if (trainer.current_epoch + 1) % self.every_n_epochs == 0 or last:
                scores = self.initial  # for good, if it is not trained
                if not self._frozen:
                    scores = self._scores(trainer, pl_module, pl_module.encode, "val", "probing")
                pl_module.log_dict({f"val/{name}": value for name, value in scores.items()}, sync_dist=True)
                if last:
                    title = self._frozen or "trained"
                    before = {} if self._frozen else {self.start: self.initial}
                    self._show(trainer, {**before, title: scores}, "validation")
        else:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The same on the test split."""
        if self.every_n_epochs and not dry_run(trainer):
            self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        columns = {}
        if self._untrained is not None and trainer.ckpt_path is not None:
            untrained = self._untrained.to(pl_module.device)
            columns["random initialisation"] = self._scores(
                trainer, pl_module, untrained, split, "random initialisation"
            )
        name = self._frozen or ("trained" if columns else "random initialisation")
        columns[name] = self._scores(trainer, pl_module, pl_module.encode, split, name)
        pl_module.log_dict({f"{split}/{name}": value for name, value in columns[name].items()}, sync_dist=True)
        if len(columns) == 2:
            scores = columns["random initialisation"]
            pl_module.log_dict({f"init/{name}": value for name, value in scores.items()}, sync_dist=True)
        self._show(trainer, columns, "validation" if split == "val" else "test")

    def _scores(
        self,
        trainer: Trainer,
        pl_module: Any,
        encode: Callable[[Tensor], Tensor],
        split: str,
        title: str,
    ) -> Scores:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loaders = [data.probe_dataloader("train", self.max_train), data.probe_dataloader(split, self.max_held_out)]
        if loaders[1] is None:
            return {}
        with trainer.precision_plugin.forward_context():
            train, held_out = (
                extract(encode, data.normalize, loader, pl_module.device, f"{title}: {part} features")
                for loader, part in zip(loaders, ("training", "held-out"), strict=True)
            )
        return score(train, held_out, self.k, data.label_names)

    # ------------------------------------------------------------------ telling

    def _log(self, trainer: Trainer, prefix: str, scores: Scores) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({f"{prefix}/{name}": value for name, value in scores.items()}, step=trainer.global_step)

    def _show(self, trainer: Trainer, columns: dict[str, Scores], stage: str) -> None:
        folder = trainer.log_dir  # every process asks, because Lightning broadcasts the answer
        if not any(columns.values()) or not trainer.is_global_zero:
            return
        print(f"\n\n{table(columns)}\n")  # noqa: T201  # the result that was asked for
        if folder is not None:
            path = Path(folder) / f"{stage}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"checkpoint": str(trainer.ckpt_path or ""), "step": trainer.global_step, "scores": columns}
            path.write_text(json.dumps(content, indent=2) + "\n")
            print(f"written to {path}")  # noqa: T201
