"""What is logged in which steps."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from jepa_lightning.callbacks import Monitor
from jepa_lightning.log_steps import is_log_step
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import IJEPA


class Twin(Callback):
    """Asks Lightning, at the end of a batch, what was said at its start."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, bool, bool]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.said = is_log_step(trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows.append((batch_idx, self.said, trainer._logger_connector.should_update_logs))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("every", [0, 1, 3, 50])
def test_a_step_is_written_if_lightning_writes_it_or_it_begins_an_epoch(
    every: int, accumulate: int, quiet_trainer: Callable[..., Trainer]
) -> None:
    twin = Twin()
    quiet_trainer(
        max_epochs=2, limit_train_batches=8, limit_val_batches=0, log_every_n_steps=every,
        accumulate_grad_batches=accumulate, callbacks=[twin],
    ).fit(BoringModel())  # fmt: skip
    assert len(twin.rows) == 16
    assert all(said == (lightning or batch_idx == 0) for batch_idx, said, lightning in twin.rows)


def test_every_row_that_is_written_has_all_values(
    tiny_ijepa: Callable[..., IJEPA],
    tiny_batch: Callable[..., MaskedBatch],
    quiet_trainer: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    batches: Any = [tiny_batch() for _ in range(8)]
    logger = CSVLogger(tmp_path)
    trainer = quiet_trainer(max_epochs=2, log_every_n_steps=3, logger=logger, callbacks=[Monitor()])
    trainer.fit(tiny_ijepa(), DataLoader(batches, batch_size=None))
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [2, 5, 8, 11, 14]
    names = {"train/explained_variance", "train/context_tokens", "train/images_per_s", "schedule/lr"}
    assert all(row[name] for row in rows for name in names)
