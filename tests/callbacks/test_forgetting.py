from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from jepa_lightning.callbacks import Forgetting
from jepa_lightning.data import ImageDataModule
from jepa_lightning.masking import RandomTokens
from jepa_lightning.methods import IJEPA
from jepa_lightning.schedules import Constant

TrainerFactory = Callable[..., Trainer]


def data_of(folder: Path) -> ImageDataModule:
    return ImageDataModule(root=str(folder), masks=RandomTokens, batch_size=4, num_workers=0)


def test_old_data_are_probed_before_and_after_and_the_way_of_the_weights_is_measured(
    tiny_ijepa: Callable[..., IJEPA], image_folder: Path, quiet_trainer: TrainerFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, guard = tiny_ijepa(), Forgetting(data_of(image_folder))
    start = torch.cat([p.detach().clone().flatten() for p in module.encoder.parameters()])
    trainer = quiet_trainer(max_epochs=2, callbacks=[guard])
    trainer.fit(module, datamodule=data_of(image_folder))
    now = torch.cat([p.detach().flatten() for p in module.encoder.parameters()])
    values = {name.removeprefix("forgetting/"): float(v) for name, v in trainer.callback_metrics.items()}
    assert values["distance"] == pytest.approx(float((now - start).norm() / start.norm()), rel=1e-5)
    assert 0 < values["distance"] < 1
    assert 0 < values["similarity"] <= 1
    assert {"linear_top1", "knn_top1", "rankme"} <= set(values)
    assert [result.encoder for result in guard.results][::3] == ["before training", "trained"]
    assert "before training" in (said := capsys.readouterr().out)
    assert "of their norm" in said


def test_without_training_nothing_is_forgotten_and_a_checkpoint_keeps_the_start(
    tiny_ijepa: Callable[..., IJEPA], image_folder: Path, quiet_trainer: TrainerFactory
) -> None:
    module, guard = tiny_ijepa(lr=Constant(0.0), momentum=Constant(1.0)), Forgetting(data_of(image_folder))
    trainer = quiet_trainer(max_epochs=1, callbacks=[guard])
    trainer.fit(module, datamodule=data_of(image_folder))
    assert float(trainer.callback_metrics["forgetting/distance"]) == 0.0
    assert float(trainer.callback_metrics["forgetting/similarity"]) == pytest.approx(1.0)
    before, after = guard.results[: len(guard.results) // 2], guard.results[len(guard.results) // 2 :]
    assert [result.values for result in before] == [result.values for result in after]
    other = Forgetting(data_of(image_folder))
    other.load_state_dict(guard.state_dict())
    assert other.results == before
    assert other._weights is not None


def test_without_old_data_the_distance_alone_is_measured(
    tiny_ijepa: Callable[..., IJEPA], image_folder: Path, quiet_trainer: TrainerFactory
) -> None:
    trainer = quiet_trainer(max_epochs=1, callbacks=[Forgetting()])
    trainer.fit(tiny_ijepa(), datamodule=data_of(image_folder))
    assert {n for n in trainer.callback_metrics if n.startswith("forgetting/")} == {"forgetting/distance"}
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        Forgetting(every_n_epochs=0)
