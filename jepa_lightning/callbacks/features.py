"""`jepa predict`: features of every image or video, with their names, in one safetensors file."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file

from jepa_lightning.callbacks.config import SaveConfig
from jepa_lightning.callbacks.parts import Parts, Rows, digest_of
from jepa_lightning.distributed import gather_rows, rank, world_size
from jepa_lightning.ranges import at_least


class FeatureWriter(BasePredictionWriter):
    """Writes `features` (N, D), `index` (N,) and `labels` (N,) or (N, L) in the order of the samples.

    The metadata of the file hold JSON lists: `names` of the samples and `classes`, the names of the labels (with
    several labels a list for each); and `data`, the data set. Files that cannot be decoded are left out. What is done
    is kept beside the file until all is done: the same command goes on where one was stopped.

    Args:
        output: The file; null for `features.safetensors` in the folder of the run.
        keep_every_s: Seconds after which what was made is kept on disk; all that a run that is killed can lose.
    """

    def __init__(self, output: str | None = None, keep_every_s: float = 10.0) -> None:
        super().__init__("batch")
        at_least(0, keep_every_s=keep_every_s)
        self.output, self.keep_every_s = output, keep_every_s
        self._rows: list[Rows] = []
        self._seen = self._kept = 0
        self._since = 0.0
        self._parts: Parts | None = None
        self._earlier: Rows | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the data module leave out what an earlier run has done; it asks once the weights are loaded."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "predict" and hasattr(data, "finished"):
            data.finished = partial(self._finished, trainer, pl_module)

    def _finished(self, trainer: Trainer, pl_module: LightningModule) -> set[int]:
        """Samples whose features an earlier run left."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        configs = [callback.text for callback in trainer.callbacks if isinstance(callback, SaveConfig)]  # type: ignore[attr-defined]
        names = data.names(range(len(data.listing("all"))))
        about = digest_of(pl_module, names, configs[0] if configs else "")
        folder = Path(f"{self.output}.parts") if self.output else Path(trainer.default_root_dir) / f".features-{about}"
        self._parts, self._since = Parts(folder, about), time.monotonic()
        self._earlier = self._parts.read() if trainer.is_global_zero else None
        done: set[int] = trainer.strategy.broadcast(
            set() if self._earlier is None else set(self._earlier.index.tolist())
        )
        if done:
            rank_zero_info(
                f"features of {len(done)} of {len(names)} samples are there from a run that was stopped: going on"
            )
        return done

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
        """Keep the features of one batch in main memory, and now and then on disk."""
        index = batch.index
        if index is None:  # samples of a user's own, which Lightning deals out to the processes in turn
            index = self._seen + torch.arange(len(prediction), device=prediction.device) * world_size() + rank()
            self._seen += len(prediction) * world_size()
        kept = index >= 0
        self._rows.append(Rows(prediction[kept].float().cpu(), index[kept].cpu(), batch.labels[kept].cpu()))
        if self._parts is not None and time.monotonic() - self._since >= self.keep_every_s:
            self._parts.write(Rows.joined(self._rows[self._kept :]))
            self._kept, self._since = len(self._rows), time.monotonic()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes, sort, write."""
        mine = Rows.joined(self._rows)
        rows = Rows(*(gather_rows(column.to(pl_module.device)).cpu() for column in mine))
        earlier, parts = self._earlier, self._parts
        self._rows.clear()
        self._seen = self._kept = 0
        self._earlier = self._parts = None
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        rows = (rows if earlier is None else Rows.joined([earlier, rows])).in_order()
        if not len(rows.index):
            raise ValueError("no sample could be decoded, so there are no features: look at the files of --data.root")
        path = Path(self.output) if self.output else folder / "features.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = _about(trainer.datamodule, rows.index.tolist())  # type: ignore[attr-defined]
        temporary = path.with_name(f".{path.name}.part")
        save_file(rows._asdict(), temporary, about)
        temporary.replace(path)
        if parts is not None:
            parts.clear()
        rank_zero_info(f"features {tuple(rows.features.shape)} with names written to {path}")


def _about(data: Any, index: list[int]) -> dict[str, str]:
    """What the rows and the labels are."""
    found = {"names": data.names(index), "data": getattr(data, "title", type(data).__name__)}
    if hasattr(data, "listing"):
        found["classes"] = [list(n) if isinstance(n, list | tuple) else str(n) for n in data.listing("all").classes]
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
