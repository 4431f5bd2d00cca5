"""`jepa predict`: features of every image or video, with their names, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch import Tensor

from jepa_lightning.distributed import gather_rows


class FeatureWriter(BasePredictionWriter):
    """Writes `features` (N, D), `index` (N,) and `labels` (N,) or (N, L) in the order of the samples.

    Their names are in the file's metadata under `names`, a JSON list. Files that cannot be decoded are
    left out.

    Args:
        output: The file; null for `features.safetensors` in the folder of the run.
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__("batch")
        self.output = output
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the features of one batch in main memory."""
        kept = batch.index >= 0
        self._parts.append((prediction[kept].float().cpu(), batch.index[kept].cpu(), batch.labels[kept].cpu()))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes, sort, write."""
        columns = [torch.cat(column).to(pl_module.device) for column in zip(*self._parts, strict=True)]
        self._parts.clear()
        features, index, labels = (gather_rows(column).cpu() for column in columns)
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        order = index.argsort()
        path = Path(self.output) if self.output else folder / "features.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        names = trainer.datamodule.names(index[order].tolist())  # type: ignore[attr-defined]
        tensors = {"features": features[order], "index": index[order], "labels": labels[order]}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"names": json.dumps(names)})
        rank_zero_info(f"features {tuple(features.shape)} with names written to {path}")
