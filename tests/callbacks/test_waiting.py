from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from jepa_lightning.callbacks import Waiting
from jepa_lightning.data import JEPADataModule
from jepa_lightning.masking import MaskedBatch, Sample


class Slow(JEPADataModule):
    """Sixteen samples, each of which takes a while."""

    classes = ("a",)  # type: ignore[assignment]

    def __init__(self, seconds: float, workers: int = 0) -> None:
        super().__init__(None, 2, workers, 0, 8, 8, None, None)
        self.seconds = seconds

    def dataset(self, split: str, augment: bool) -> Any:
        seconds = self.seconds

        class Samples(torch.utils.data.Dataset[Sample]):
            def __len__(self) -> int:
                return 16

            def __getitem__(self, draw: Any) -> Sample:
                time.sleep(seconds)
                return Sample(torch.zeros(3, 8, 8), 0, 0)

        return Samples()


class Model(LightningModule):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(1, 1), seconds

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        time.sleep(self.seconds)
        return self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(data: Slow, step: float, **options: Any) -> list[str]:
    """What was warned of."""
    callback = Waiting(**{"after": 0.05, **options})
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback],
        enable_model_summary=False, limit_val_batches=0, log_every_n_steps=2, accelerator="cpu",
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Model(step), datamodule=data)
    return [str(one.message) for one in said if "waits for data" in str(one.message)]


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "cores", 4)


def test_waiting_is_said_once_with_its_share_and_what_to_set() -> None:
    (line,) = fit(Slow(0.02), 0.01)
    share = int(line.split("data in ")[1].split("%")[0])
    assert 60 <= share <= 95  # 40 of 50 ms
    assert "raise --data.num_workers from 0 (this process may use 4 cores)" in line


def test_where_all_cores_are_at_work_more_workers_are_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "cores", 1)
    (line,) = fit(Slow(0.02), 0.01)
    assert "raise" not in line
    assert "0 loader processes share 1 core with it; give it more cores" in line


def test_nothing_is_said_where_the_step_takes_the_time_or_too_early_or_never() -> None:
    assert fit(Slow(0.001), 0.05) == []
    assert fit(Slow(0.02), 0.01, after=30.0) == []
    assert fit(Slow(0.02), 0.01, share=1.0) == []


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": -0.1}, {"after": -1.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Waiting(**options)
