"""Measures of the features while they are trained: spread, rank, dimension, distances, attention, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from torch import Tensor
from torchvision.utils import save_image

from jepa_lightning import metrics
from jepa_lightning.callbacks.measures import (
    count_tokens,
    coverage,
    describe,
    nearest_context,
    pooled,
    some_rows,
    targets_of,
)
from jepa_lightning.callbacks.observer import Observer, tensorboards
from jepa_lightning.distributed import gather_rows, relative_distance, world_size

FEW = 8
"""Inputs of a batch that are encoded again, to compare the encoders and to measure their attention."""

MEMORY = 2**28
"""Most bytes of views that a process keeps for LiDAR; fewer samples mean fewer dimensions."""


class Health(Observer):
    """Logs under `health/` whether a training is healthy; the Alarm callback watches for collapse.

    Of the training batch, every `trainer.log_every_n_steps`: `explained_variance_nearest`, how much better a prediction
    is than the target feature of the nearest context patch (`train/explained_variance` compares with the mean target),
    and `content_share`, the fraction of the variance of target features that depends on the input, not on the place.

    Of the training batch, every `every_n_steps`, for `context`, `predicted` and `target` features, by patch and
    `_pooled` (the mean of a sample): `std` (of each dimension: mean, `std_min`, and a histogram of the patches'),
    `rankme`, `alpha_req`, `uniformity`, `correlation_dimension`; `prediction_alignment` of predictions and targets.
    Rows of all processes are gathered and the first one computes.

    Of a few inputs, then too: `lidar` and `view_alignment`, of random views of the same training samples; relative
    distances of context and target encoder, `encoder_distance` of their parameters and `feature_distance` of their
    features; `attention_entropy` of the last block, mean of all heads and `_min`, as a fraction of ln(tokens).

    After every epoch a picture of how often each patch was context and target, and `least_target`, the frequency of the
    rarest target over the mean: 0 if some patch was never predicted.

    Args:
        every_n_steps: Optimizer steps between two complete measurements; 0 for no measurement at all.
        rows: Patches, and pooled samples, that are measured at most.
        samples: Training samples for LiDAR, in all processes together; it finds at most one dimension less.
        views: Random views of each of them.
    """

    def __init__(self, every_n_steps: int = 100, rows: int = 512, samples: int = 32, views: int = 4) -> None:
        if samples < 2 or views < 2:
            raise ValueError(f"LiDAR needs at least 2 samples and 2 views of each, got {samples} and {views}")
        super().__init__(every_n_steps)
        self.rows, self.samples, self.views = rows, samples, views
        self._cheap = self._complete = False
        self._taken: dict[str, Tensor] = {}
        self._logged: dict[str, Tensor] = {}
        self._views: Tensor | None = None
        self._counts: Tensor | None = None
        self._folder: Path | None = None

    # ------------------------------------------------------------------ when

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder of the run; every process asks, because Lightning broadcasts the answer."""
        folder = trainer.log_dir if stage == "fit" else None
        self._folder = Path(folder) if folder is not None and trainer.loggers else None

    def wanted(self, trainer: Trainer) -> bool:
        """Whether to look at all; without a logger there is nothing to measure for."""
        return super().wanted(trainer) and bool(trainer.loggers)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look no more."""
        super().teardown(trainer, pl_module, stage)
        self._views = self._counts = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Decide what is measured of this step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._cheap = self.due(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self._complete = self.due(self.every_n_steps)

    # ------------------------------------------------------------------ of the training batch

    @torch.no_grad()
    def see(self, step: Any) -> None:
        """Measure or copy what will be measured of an Observed, in the middle of the training step."""
        if not (self._cheap or self._complete):
            return
        masks, targets = step.masks, targets_of(step.features, step.masks)
        kept = (masks.targets >= 0).flatten()
        predicted, true, nearest = (
            tokens.flatten(0, -2)[kept] if not bool(kept.all()) else tokens.flatten(0, -2)
            for tokens in (step.predicted, targets, nearest_context(step.features, masks, step.grid))
        )
        self._logged["explained_variance_nearest"] = metrics.explained_variance(predicted, true, nearest)
        self._logged["content_share"] = metrics.content_share(step.features)
        if not self._complete:
            return
        self._logged["prediction_alignment"] = metrics.alignment(predicted, true)
        most = -(-self.rows // world_size())
        parts = {
            "context": (step.context, masks.context),
            "predicted": (step.predicted, masks.targets),
            "target": (targets, masks.targets),
        }
        for name, (tokens, index) in parts.items():
            self._taken[name] = some_rows(tokens, index, most, self._step)
            self._taken[f"{name}_pooled"] = pooled(tokens, index)[:most]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Compute and log."""
        if self._cheap or self._complete:
            if batch.masks:
                self._count(pl_module, batch)
            if self._complete:
                if not self._taken:  # a method without predictions: what it evaluates
                    tokens = self.encode(trainer, pl_module, batch.inputs[: 8 * FEW])
                    most = -(-self.rows // world_size())
                    self._taken = {"target": some_rows(tokens, None, most, self._step), "target_pooled": tokens.mean(1)}
                self._more(trainer, pl_module, batch.inputs[:FEW])
            rows = {name: gather_rows(rows) for name, rows in self._taken.items()}
            if trainer.is_global_zero:
                self._write(trainer, rows)
        self._taken, self._logged = {}, {}
        self._cheap = self._complete = False

    def _write(self, trainer: Trainer, rows: dict[str, Tensor]) -> None:
        values = {name: float(value) for name, value in self._logged.items()}
        rows = {name: features for name, features in rows.items() if bool(features.isfinite().all())}  # the Alarm tells
        for name, features in rows.items():
            values |= describe(name, features.cpu())
        self.log_health(trainer, values, self._step)
        for name in rows.keys() & {"context", "predicted", "target"}:
            deviation = rows[name].std(dim=0, correction=0).cpu()
            for writer in tensorboards(trainer):
                writer.add_histogram(f"health/{name}_std", deviation, self._step)

    # ------------------------------------------------------------------ of a few inputs

    def _more(self, trainer: Trainer, pl_module: Any, inputs: Float[Tensor, "batch channels *size"]) -> None:
        """Measure what needs more passes of the encoders; all processes take part, because networks may be sharded."""
        logged, twins = self._logged, pl_module.encoder is pl_module.evaluated
        with self.looking(trainer):
            if not twins:
                parameters = pl_module.encoder.parameters(), pl_module.evaluated.parameters()
                logged["encoder_distance"] = relative_distance(*parameters)
                own, other = pl_module.encode_context(inputs), pl_module.encode(inputs)
                logged["feature_distance"] = metrics.relative_distance(own, other)
            if (maps := pl_module.attention(inputs)) is not None:
                share = metrics.attention_entropy(maps) / torch.tensor(float(maps.shape[-1])).log()
                logged["attention_entropy"], logged["attention_entropy_min"] = share.mean(), share.min()
        views = self._of_views(trainer, pl_module)
        if views is not None and len(views) > 1 and bool(views.isfinite().all()):
            logged["lidar"] = metrics.lidar(views)
            logged["view_alignment"] = metrics.alignment(views[:, 0], views[:, 1])

    def _of_views(self, trainer: Trainer, pl_module: Any) -> Float[Tensor, "samples views dim"] | None:
        """Pooled features of the views, those of all processes."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "random_views"):
            return None
        if self._views is None:
            size = data.random_views(1, self.views).numel()  # bytes, long clips have many
            most = min(-(-self.samples // world_size()), MEMORY // size)
            self._views = data.random_views(max(2, most), self.views)
        found = []
        for views in self._views.split(FEW):
            inputs = data.normalize(views.flatten(0, 1).to(pl_module.device))
            tokens = self.encode(trainer, pl_module, inputs)
            found.append(tokens.float().mean(dim=1).unflatten(0, views.shape[:2]))
        return gather_rows(torch.cat(found)).cpu()

    # ------------------------------------------------------------------ masks

    def _count(self, pl_module: Any, batch: Any) -> None:
        """Of this process alone: masks are drawn alike everywhere."""
        grid = pl_module.encoder.grid_of(batch.inputs)
        shape = (2 * len(batch.masks), grid[0] * grid[1] * grid[2])
        if self._counts is None or self._counts.shape != shape:
            self._counts, self._grid = torch.zeros(shape, device=batch.inputs.device), grid
        count_tokens(self._counts, batch.masks)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw which patches were context and which were targets in this epoch."""
        counts, self._counts = self._counts, None
        if counts is None or not trainer.is_global_zero:
            return
        counts = counts.cpu()
        picture, targets = coverage(counts, self._grid), counts[1::2].sum(dim=0)
        least = float(targets.min() / targets.mean().clamp_min(1e-12))
        self.log_health(trainer, {"least_target": least}, trainer.global_step)
        for writer in tensorboards(trainer):
            writer.add_image("mask coverage", picture, trainer.global_step)
        if self._folder is not None:
            path = self._folder / "pictures" / "mask_coverage.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(picture, path)
