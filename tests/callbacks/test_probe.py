from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Trainer
from PIL import Image

from jepa_lightning.callbacks import Probe, Report
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.data import ImageDataModule
from jepa_lightning.evaluation import Result, logged, read
from jepa_lightning.loading import build
from jepa_lightning.masking import RandomTokens
from jepa_lightning.probing import AttentiveProbe
from jepa_lightning.weights.ours import CONFIG_KEY

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


def data_of(folder: Path) -> ImageDataModule:
    return ImageDataModule(root=str(folder), masks=RandomTokens, batch_size=4, num_workers=0)


@pytest.fixture
def data(image_folder: Path) -> ImageDataModule:
    return data_of(image_folder)


def test_a_frozen_encoder_is_scored_once_and_not_called_random_or_trained(
    attentive: AttentiveProbe,
    data: ImageDataModule,
    quiet_trainer: TrainerFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored, original = [], Probe._results

    def results(probe: Probe, *arguments: Any) -> list[Result]:
        scored.append(arguments[-1])
        return original(probe, *arguments)

    monkeypatch.setattr(Probe, "_results", results)
    trainer = quiet_trainer(max_epochs=2, callbacks=[Probe(k=3), Report()])
    trainer.fit(attentive, datamodule=data)
    shown = capsys.readouterr().out
    name = "frozen encoder of a.ckpt"
    assert scored == [name]
    assert not any(word in shown for word in ("random initialisation", "trained  "))
    found = read(tmp_path / "validation.json").results
    assert {result.encoder for result in found} == {name}
    assert trainer.callback_metrics["val/rankme"].item() == pytest.approx(logged(found)["rankme"])
    quiet_trainer(callbacks=[Probe(k=3), Report()]).validate(attentive, data, verbose=False)
    assert read(tmp_path / "validation.json").results == found


def test_the_baseline_of_a_checkpoint_stands_in_the_table_with_its_name_and_data(
    data: ImageDataModule, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    first = Probe(k=3)
    first.start = "other.ckpt"
    trainer = quiet_trainer(max_epochs=1, callbacks=[first])
    trainer.fit(build(module_config()), datamodule=data)
    assert {result.encoder for result in first.found} == {"other.ckpt", "trained"}
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    second = Probe(k=3)
    trainer = quiet_trainer(max_epochs=2, callbacks=[second])
    trainer.fit(build(module_config()), datamodule=data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert second.initial == first.initial
    assert second.found[: len(first.initial)] == first.initial
    assert {(r.data, r.split) for r in second.found} == {(data.title, "val")}


def test_a_checkpoint_from_before_results_had_a_data_set_keeps_its_baseline() -> None:
    probe = Probe()
    values = {"rankme": 3.5, "linear_top1": 0.5, "linear_top1_digit": 0.25, "linear_top1_motion": 0.75, "knn_top1": 0.1}
    probe.load_state_dict({"initial": values})
    assert logged(probe.initial) == values
    assert {result.encoder for result in probe.initial} == {"random initialisation"}


@pytest.mark.parametrize("labels", [["a", "b"], ["a"]])
def test_every_table_and_file_names_data_split_and_numbers_of_samples(
    labels: list[str], quiet_trainer: TrainerFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):
        path = tmp_path / "mine" / ("train" if number < 14 else "val") / labels[number % len(labels)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (12 * number, 0, 0)).save(path)
    data = data_of(tmp_path / "mine")
    trainer = quiet_trainer(callbacks=[Probe(k=3), Report()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class alone
        trainer.validate(build(module_config()), datamodule=data, verbose=False)
    fitted = "; fitted on 14 training samples" * (len(labels) > 1)
    assert f"mine (Folder), validation split, n = 6{fitted}\n" in capsys.readouterr().out
    written = read(tmp_path / "validation.json")
    assert {(r.data, r.split, r.samples) for r in written.results} == {("mine (Folder)", "val", 6)}
    assert written.about["module"] == "IJEPA"
