"""Evaluates the frozen target encoder at validation, beside the randomly initialised encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.evaluation import Protocols, Report, Result, logged
from jepa_lightning.evaluation.features import features_of
from jepa_lightning.evaluation.protocols import split_features
from jepa_lightning.evaluation.results import LOGGED
from jepa_lightning.metrics import NotFinite
from jepa_lightning.ranges import at_least

UNTRAINED = "random initialisation"


class Probe(Callback):
    """Linear probe, k-NN and RankMe of the frozen target encoder: `val/linear_top1`, `val/knn_top1`, `val/rankme`.

    Logistic regression and nearest neighbours are fitted on the clean training split and scored on the held-out split,
    with mean-pooled tokens and fixed settings: the numbers of `jepa evaluate` with one value of each. The same numbers
    of the encoder as it was initialised are logged once as `init/...`: an encoder that learned nothing has these. With
    several labels a sample, `val/linear_top1` is the mean and `val/linear_top1_NAME` the score of each. An encoder that
    is not trained (an AttentiveProbe's) has no baseline, is scored once, and is called by its module's ``title``. The
    callback Report prints and writes the results.

    Args:
        every_n_epochs: Evaluate at the validations of every n-th epoch and at the last; 0 for never.
        max_train: Most training samples to fit on.
        max_held_out: Most held-out samples to score.
        k: Neighbours that vote.
    """

    def __init__(
        self, every_n_epochs: int = 1, max_train: int = 10_000, max_held_out: int = 10_000, k: int = 20
    ) -> None:
        at_least(0, every_n_epochs=every_n_epochs)
        at_least(1, max_train=max_train, max_held_out=max_held_out)
        self.every_n_epochs, self.max_train, self.max_held_out = every_n_epochs, max_train, max_held_out
        self.protocols = Protocols(k=(k,), temperature=(0.07,), weight_decay=(1e-3,), shots=(), fractions=())
        self.start = UNTRAINED
        """What the encoder is before training; the command line changes it where training starts from a checkpoint."""
        self.initial: list[Result] = []
        self.found: list[Result] = []
        """Results of the latest evaluation, the baseline's first."""
        self._untrained: nn.Module | None = None
        self._frozen: str | None = None
        """What an encoder that is not trained is called; None for one that is."""

    # ------------------------------------------------------------------ the baseline

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Keep the encoder as it was initialised, before a checkpoint is loaded into it."""
        self.found = []
        trained = any(parameter.requires_grad for parameter in pl_module.encoder.parameters())
        self._frozen = None if trained else getattr(pl_module, "title", "frozen encoder")
        if self.every_n_epochs and stage in ("validate", "test") and not self._frozen:
            self._untrained = pl_module.frozen_encoder()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Score the initial encoder; a resumed run has these numbers in its checkpoint."""
        untrained = self._frozen is not None or trainer.global_step == 0
        if self.every_n_epochs and not self.initial and untrained and not dry_run(trainer):
            self.initial = self._results(trainer, pl_module, pl_module.encode, "val", self._frozen or self.start)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Log the baseline once more in every log, so that curves can be compared with it."""
        for logger in () if self._frozen else trainer.loggers:
            values = {f"init/{name}": value for name, value in logged(self.initial).items()}
            logger.log_metrics(values, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The baseline, for a run that goes on."""
        return {"initial": [result._asdict() for result in self.initial]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the baseline from the checkpoint; older ones have nothing but values by their log names."""
        initial = state_dict["initial"]
        self.initial = _of_log(initial) if isinstance(initial, dict) else [Result(**fields) for fields in initial]

    # ------------------------------------------------------------------ evaluation

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Score the target encoder as it is now."""
        if not self.every_n_epochs or trainer.sanity_checking or dry_run(trainer):
            return
        if trainer.state.fn != "fit":
            self._evaluate(trainer, pl_module, "val")
            return
        last = trainer.max_epochs == trainer.current_epoch + 1
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 or last:
            results = self.initial  # for good, if it is not trained
            if not self._frozen:
                try:
                    results = self._results(trainer, pl_module, pl_module.encode, "val", "trained")
                except NotFinite as error:  # in all processes; whether training goes on is for the Alarm to say
                    rank_zero_warn(f"step {trainer.global_step}: no probe, {error}")
                    return
            self._log(pl_module, "val", results)
            if last:
                before = [] if self._frozen else _completed(self.initial, results)
                self.found = [*before, *results]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The same on the test split."""
        if self.every_n_epochs and not dry_run(trainer):
            self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: Any, split: str) -> None:
        before: list[Result] = []
        if self._untrained is not None and trainer.ckpt_path is not None:
            before = self._results(trainer, pl_module, self._untrained.to(pl_module.device), split, UNTRAINED)
            self._log(pl_module, "init", before)
        name = self._frozen or ("trained" if before else UNTRAINED)
        results = self._results(trainer, pl_module, pl_module.encode, split, name)
        self._log(pl_module, split, results)
        self.found = [*before, *results]

    def _results(
        self, trainer: Trainer, pl_module: Any, encode: Callable[[Tensor], Tensor], split: str, title: str
    ) -> list[Result]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            held_out = features_of(encode, data, split, pl_module.device, title, self.max_held_out)
            if held_out is None:
                return []
            train = features_of(encode, data, "train", pl_module.device, title, self.max_train)
        splits = split_features(train, held_out)._replace(data=data.title, name=split)  # type: ignore[arg-type]
        return self.protocols.results(splits, title, data.label_names)

    def _log(self, pl_module: Any, prefix: str, results: list[Result]) -> None:
        pl_module.log_dict({f"{prefix}/{name}": value for name, value in logged(results).items()}, sync_dist=True)

    # ------------------------------------------------------------------ the report

    def findings(self) -> Report | None:
        """What the latest evaluation found; None if there was none."""
        if not self.found:
            return None
        sentences = ["Features: tokens of the target encoder, averaged, without augmentation.", "Nothing was chosen."]
        title = f"Probes on {self.found[-1].data}"
        return Report(title, self.found, [*sentences, *self.protocols.sentences()], {}, intervals=False)


def _of_log(values: dict[str, float]) -> list[Result]:
    """Results of which nothing is known but the values by log name; a mean over labels is left out."""
    found = []
    for protocol, name in LOGGED.items():
        mine = {key.removeprefix(name).removeprefix("_"): v for key, v in values.items() if key.startswith(name)}
        labels = [label for label in mine if label] or list(mine)
        found += [Result(protocol, label, UNTRAINED, (mine[label],), 0, {}) for label in labels]
    return found


def _completed(initial: list[Result], results: list[Result]) -> list[Result]:
    """The baseline of an older checkpoint with the data set and n of today's results."""
    known = {(result.protocol, result.label): result for result in results}
    return [
        known[r[:2]]._replace(encoder=r.encoder, values=r.values) if not r.data and r[:2] in known else r
        for r in initial
    ]
