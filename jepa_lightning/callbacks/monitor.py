"""Throughput, and a CSV file with one row for each step and the columns of the official code."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from jepa_lightning.distributed import norms_of
from jepa_lightning.log_steps import is_log_step
from jepa_lightning.masking.padded import mean_length
from jepa_lightning.ranges import at_least

COLUMNS = (
    "epoch", "itr", "loss", "mask-A", "mask-B", "time (ms)", "lr", "weight decay", "momentum", "memory (MB)",
    "grad first qkv", "grad last qkv", "grad min", "grad max",
)  # fmt: skip


class Monitor(Callback):
    """Logs mask sizes and throughput, and writes `train.csv` (for each process `train_r1.csv`, ...).

    The first six columns are those of the official CSV: epoch and iteration from 1 and 0, loss, context and target
    tokens, milliseconds of the step. The gradients are norms of the encoder's weight matrices.

    Args:
        flush_every_n_steps: Steps between two writes; until then rows stay on the device, so that no step waits.
    """

    def __init__(self, flush_every_n_steps: int = 50) -> None:
        at_least(1, flush_every_n_steps=flush_every_n_steps)
        self.flush_every_n_steps = flush_every_n_steps
        self._rows: list[tuple[list[Any], Tensor]] = []
        self._gradients: Tensor | None = None
        self._file: Path | None = None
        self._earlier: Path | None = None
        self._rate: float | None = None
        self._last: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the file, and that of the run that this one goes on with, which has a folder of its own."""
        folder, self._file, self._earlier = trainer.log_dir, None, None
        if folder is not None and trainer.loggers:
            name = f"train_r{trainer.global_rank}.csv" if trainer.global_rank else "train.csv"
            self._file = Path(folder) / name
            self._earlier = Path(str(trainer.ckpt_path)).parent.parent / name if trainer.ckpt_path else Path()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._start, self._written = time.perf_counter(), is_log_step(trainer, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Norms of the gradients before they are clipped."""
        if trainer.loggers:
            named = [
                (name, parameter.grad)
                for name, parameter in pl_module.named_parameters()
                if name.startswith("encoder.") and parameter.grad is not None and parameter.ndim > 1
            ]
            if not named:  # a probe trains none of it
                return
            norms = norms_of([grad for _, grad in named])
            qkv = [i for i, (name, _) in enumerate(named) if "qkv" in name] or [0]
            self._gradients = torch.stack([norms[qkv[0]], norms[qkv[-1]], norms.min(), norms.max()]).float()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One row, and the numbers of the progress bar."""
        seconds = time.perf_counter() - self._start
        now = time.perf_counter()
        images = len(batch.inputs) * trainer.world_size
        if self._last is not None:  # from end to end, so that waiting for data counts
            rate = images / max(1e-9, now - self._last)
            self._rate = rate if self._rate is None else 0.95 * self._rate + 0.05 * rate
            if self._written:
                pl_module.log(f"train/{'clips' if batch.inputs.ndim > 4 else 'images'}_per_s", self._rate)
        self._last = now
        families = batch.families()
        sizes = [mean_length(masks.context) for masks in families], [mean_length(masks.targets) for masks in families]
        context, target = (sum(size) / max(1, len(size)) for size in sizes)
        if self._written:
            pl_module.log_dict({"train/context_tokens": context, "train/target_tokens": target}, batch_size=1)
        if self._file is None or not isinstance(outputs, dict):
            return
        group = trainer.optimizers[0].param_groups[0]
        memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        row = [trainer.current_epoch + 1, batch_idx, context, target, 1000 * seconds, group["lr"]]
        row += [group["weight_decay"], getattr(pl_module, "next_momentum", 0.0), memory]
        gradients = outputs["loss"].new_zeros(4) if self._gradients is None else self._gradients
        self._rows.append((row, torch.cat([outputs["loss"].detach().float().reshape(1), gradients])))
        if len(self._rows) >= self.flush_every_n_steps:
            self._flush()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count validation as a slow step."""
        self._last = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write all rows: a run that goes on with this checkpoint takes them from the file."""
        self._flush()

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows or self._file is None:
            return
        numbers = torch.stack([row[1] for row in rows]).tolist()
        found = []
        for (row, _), (loss, *gradients) in zip(rows, numbers, strict=True):
            epoch, itr, context, target, milliseconds, *rest = row
            ordered = [epoch, itr, loss, context, target, milliseconds, *rest, *gradients]
            found.append([f"{v:.9g}" if isinstance(v, float) else str(v) for v in ordered])
        try:
            self._write(found)
        except OSError as error:
            raise OSError(
                f"cannot write the losses to {self._file}: {error.strerror}. Make room or the folder writable, and "
                "resume with --ckpt_path last.ckpt"
            ) from error

    def _write(self, rows: list[list[str]]) -> None:
        """Append rows; first the header, and those of the run that this one goes on with, up to its checkpoint."""
        assert self._file is not None
        earlier, self._earlier = self._earlier, None
        if earlier is not None:
            before = tuple(map(int, rows[0][:2]))
            rows = [*(row for row in _rows_of(earlier) if tuple(map(int, row[:2])) < before), *rows]
        self._file.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
        started = earlier is None and self._file.exists()
        target = self._file if started else self._file.with_name(f".{self._file.name}.part")
        with target.open("a" if started else "w", newline="") as file:
            csv.writer(file).writerows(rows if started else [COLUMNS, *rows])
        target.replace(self._file)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the remaining rows."""
        self._flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the remaining rows also when the run fails."""
        self._flush()


def _rows_of(path: Path) -> list[list[str]]:
    """Rows of the log of an earlier run, without the header and what was cut off when the run was killed."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return [row for row in rows[1:] if len(row) == len(COLUMNS) and row[0].isdigit() and row[1].isdigit()]
