"""What a training that goes on from trained weights costs on the data that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from jepa_lightning.callbacks.observer import dry_run
from jepa_lightning.evaluation import Protocols, Report, Result, logged
from jepa_lightning.evaluation.features import Features, features_of
from jepa_lightning.evaluation.protocols import split_features

BEFORE = "before training"


class Forgetting(Callback):
    """Probes the encoder on old data before and during training: `forgetting/linear_top1`, `knn_top1`, `similarity`.

    `forgetting/similarity` is the mean cosine between the centred features of old held-out samples before training and
    as they are: 1 where nothing changed. `forgetting/distance` is the distance of the weights from their start, over
    the norm of the start. At the end of training a table is printed, and written as ``forgetting.md`` and ``.json``.

    Args:
        data: The old data, or a sample of them; null to measure the distance of the weights alone.
        every_n_epochs: Measure at the validations of every n-th epoch and at the last.
        max_train: Most old training samples to fit the probes on.
        max_held_out: Most old held-out samples to score.
    """

    def __init__(
        self,
        data: LightningDataModule | None = None,
        every_n_epochs: int = 1,
        max_train: int = 2000,
        max_held_out: int = 1000,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.data: Any = data
        self.every_n_epochs, self.max_train, self.max_held_out = every_n_epochs, max_train, max_held_out
        self.protocols = Protocols(k=(20,), temperature=(0.07,), weight_decay=(1e-3,), shots=(), fractions=())
        self.results: list[Result] = []
        """Those before training, then the latest."""
        self._weights: Float[Tensor, " parameters"] | None = None
        self._features: Float[Tensor, "samples dim"] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure the start; a resumed run has it in its checkpoint."""
        if dry_run(trainer) or trainer.global_step > 0 or self._weights is not None:
            return
        self._weights = _flat(pl_module.encoder)
        held_out, self.results = self._probe(trainer, pl_module, BEFORE)
        self._features = None if held_out is None else held_out.x.cpu()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure the encoder as it is now."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or dry_run(trainer) or self._weights is None:
            return
        last = trainer.max_epochs == trainer.current_epoch + 1
        if (trainer.current_epoch + 1) % self.every_n_epochs and not last:
            return
        moved = (_flat(pl_module.encoder) - self._weights).norm() / self._weights.norm()
        values = {"distance": float(moved)}
        held_out, results = self._probe(trainer, pl_module, "trained")
        if held_out is not None and self._features is not None:
            now, start = (x.cpu() - x.cpu().mean(dim=0) for x in (held_out.x, self._features))
            values["similarity"] = float(F.cosine_similarity(now, start, dim=1).mean())
            values |= logged(results)
            self.results = [result for result in self.results if result.encoder == BEFORE] + results
        pl_module.log_dict({f"forgetting/{name}": value for name, value in values.items()}, sync_dist=True)
        if last:
            self._publish(trainer, values)

    @rank_zero_only
    def _publish(self, trainer: Trainer, values: dict[str, float]) -> None:
        moved = f"The weights of the encoder moved by {100 * values['distance']:.1f} % of their norm."
        if "similarity" in values:
            moved += f" Cosine of the features of old samples before and after: {values['similarity']:.3f}."
        if not self.results:
            print(f"\n{moved}\n")  # noqa: T201  # what was asked for
            return
        sentences = ["Features: tokens of the evaluated encoder, averaged.", *self.protocols.sentences()]
        report = Report("Old data before and after", self.results, sentences, {}, notes=[moved], intervals=False)
        report.publish(Path(trainer.log_dir) if trainer.log_dir else None, "forgetting")

    def _probe(self, trainer: Trainer, pl_module: Any, title: str) -> tuple[Features | None, list[Result]]:
        """Features of old held-out samples, and the results of the probes."""
        if self.data is None:
            return None, []
        self.data.attach(pl_module.encoder)
        self.data.prepare_data()
        self.data.setup("validate")
        with trainer.precision_plugin.forward_context():
            device, encode = pl_module.device, pl_module.encode
            held_out = features_of(encode, self.data, "val", device, f"old data, {title}", self.max_held_out)
            train = features_of(encode, self.data, "train", device, f"old data, {title}", self.max_train)
        if held_out is None or train is None:
            return None, []
        splits = split_features(train, held_out)._replace(data=self.data.title, name="val")
        return held_out, self.protocols.results(splits, title, self.data.label_names)

    def state_dict(self) -> dict[str, Any]:
        """The start, for a run that goes on."""
        before = [result._asdict() for result in self.results if result.encoder == BEFORE]
        return {"before": before, "weights": self._weights, "features": self._features}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the start from a checkpoint."""
        self.results = [Result(**fields) for fields in state_dict["before"]]
        self._weights, self._features = state_dict["weights"], state_dict["features"]


@torch.no_grad()
def _flat(encoder: torch.nn.Module) -> Float[Tensor, " parameters"]:
    return torch.cat([parameter.detach().float().flatten().cpu() for parameter in encoder.parameters()])
