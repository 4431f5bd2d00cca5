from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader

from jepa_lightning.callbacks import Report
from jepa_lightning.evaluation.intervals import wilson
from jepa_lightning.evaluation.provenance import commit
from jepa_lightning.evaluation.report import read
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models.average_pool import AveragePool
from jepa_lightning.probing import LinearProbe

TrainerFactory = Callable[..., Trainer]
CheckpointFactory = Callable[..., str]


class Images(LightningDataModule):
    """Twelve images for everything."""

    classes, label_names = ("a", "b"), ()

    def train_dataloader(self) -> Any:
        images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        batch = MaskedBatch(images, (), torch.arange(12) % 2, torch.arange(12))
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


@pytest.fixture
def probe(tmp_path: Path, save_checkpoint: CheckpointFactory) -> LinearProbe:
    path = save_checkpoint(tmp_path / "a.ckpt")
    return LinearProbe(path, features=[AveragePool()], batch_norm=[True], lr=[1e-3, 1e-2], weight_decay=[0.0])


def test_what_a_probe_reaches_is_written_with_its_origin(
    probe: LinearProbe, quiet_trainer: TrainerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = quiet_trainer(max_epochs=3, callbacks=[Report()])
    trainer.fit(probe, datamodule=Images())
    report = read(tmp_path / "heads_validation.json")
    assert f"written to {tmp_path / 'heads_validation.md'}" in capsys.readouterr().out
    assert probe.found is not None
    for result, head in zip(report.results, probe.chosen(), strict=True):
        assert (result.protocol, result.data, result.split, result.samples) == ("linear probe", "Images", "val", 12)
        assert result.values == (pytest.approx(float(probe.found.accuracy[head, 0])),)
        assert result.chosen["lr"] == probe.grid[head][0]
    assert [result.encoder for result in report.results] == ["trained", "random initialisation", "raw pixels"]
    entry = json.loads((tmp_path / "heads_validation.json").read_text())["results"][0]
    assert entry["interval"]["low"] == pytest.approx(wilson(entry["values"][0], 12).low)
    assert report.about["encoder"] == probe.checkpoint
    assert report.about["steps"] == 3
    assert report.about["commit"] == commit()
    assert report.about["time"].endswith("for this command (fit)")
    assert any("Linear probe (I-JEPA, appendix A.2)" in sentence for sentence in report.protocol)
    assert any("chosen on the validation split" in s or "the validation split, on which" in s for s in report.protocol)


def test_on_the_test_split_the_heads_of_validation_are_reported(
    probe: LinearProbe, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    quiet_trainer(callbacks=[Report()]).test(probe, Images(), verbose=False)
    report = read(tmp_path / "heads_test.json")
    assert any("the heads are those that were best on the validation split" in s for s in report.protocol)
    assert report.about["time"].endswith("(test)")


class Nothing(LightningModule):
    """Has no results."""

    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize("kind", ["no results", "turned off", "dry run"])
def test_nothing_is_written_without_results_or_when_it_is_turned_off(
    kind: str, probe: LinearProbe, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    report = Report(write=kind != "turned off")
    module = Nothing() if kind == "no results" else probe
    quiet_trainer(callbacks=[report], fast_dev_run=kind == "dry run").validate(module, Images(), verbose=False)
    assert not list(tmp_path.rglob("*.json"))
