from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Trainer

from jepa_lightning.callbacks import Probe
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.data import ImageDataModule
from jepa_lightning.loading import build
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.writing import CONFIG_KEY

TrainerFactory = Callable[..., Trainer]
CONSTANT = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}
SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def module_config() -> dict[str, Any]:
    arguments: dict[str, Any] = dict.fromkeys(("lr", "weight_decay", "momentum"), CONSTANT)
    arguments["encoder"] = {"class_path": "jepa_lightning.VisionTransformer", "init_args": SIZES}
    narrow = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    arguments["predictor"] = {"class_path": "jepa_lightning.Predictor", "init_args": narrow}
    return {"class_path": "jepa_lightning.IJEPA", "init_args": arguments}


@pytest.fixture
def attentive(tmp_path: Path) -> AttentiveProbe:
    config = module_config()
    content = {"state_dict": build(config).state_dict(), CONFIG_KEY: yaml.safe_dump({"model": config})}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "a.ckpt")
    return AttentiveProbe(str(tmp_path / "a.ckpt"), num_heads=2)


@pytest.fixture
def data(image_folder: Path) -> ImageDataModule:
    return ImageDataModule(root=str(image_folder), masks=None, batch_size=8, num_workers=0)


def test_a_frozen_encoder_is_scored_once_and_not_called_random_or_trained(
    attentive: AttentiveProbe,
    data: ImageDataModule,
    quiet_trainer: TrainerFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored, original = [], Probe._scores

    def scores(probe: Probe, *arguments: Any) -> dict[str, float]:
        scored.append(arguments[-1])
        return original(probe, *arguments)

    monkeypatch.setattr(Probe, "_scores", scores)
    trainer = quiet_trainer(max_epochs=2, callbacks=[Probe(k=3)])
    trainer.fit(attentive, datamodule=data)
    shown = capsys.readouterr().out
    name = "frozen encoder of a.ckpt"
    assert scored == [name]
    assert not any(word in shown for word in ("random initialisation", "trained  "))
    content = json.loads((tmp_path / "validation.json").read_text())
    assert list(content["scores"]) == [name]
    assert trainer.callback_metrics["val/rankme"].item() == pytest.approx(content["scores"][name]["rankme"])
    quiet_trainer(callbacks=[Probe(k=3)]).validate(attentive, data, verbose=False)
    assert json.loads((tmp_path / "validation.json").read_text())["scores"] == content["scores"]
