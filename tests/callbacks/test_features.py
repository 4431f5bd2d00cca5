from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from jepa_lightning.callbacks import FeatureWriter
from jepa_lightning.data import ImageDataModule
from jepa_lightning.masking import MaskedBatch


class Features(LightningModule):
    """Two numbers of each image; dies, as a machine does, after some batches."""

    def __init__(self, dies_after: int = 10**9) -> None:
        super().__init__()
        self.scale, self.dies_after = torch.nn.Parameter(torch.ones(1)), dies_after
        self.seen: list[int] = []
        self.encoder = type("Encoder", (), {"img_size": 32, "patch_size": 8})

    def predict_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:
        if batch_idx == self.dies_after:
            raise RuntimeError("the machine died")
        self.seen += batch.index.tolist()  # type: ignore[union-attr]
        flat = batch.inputs.flatten(1)
        return self.scale * torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1)


Predict = Callable[..., dict[str, Tensor]]


@pytest.fixture
def predict(image_folder: Path, quiet_trainer: Callable[..., Trainer], tmp_path: Path) -> Predict:
    """The features that a run writes."""

    def run(module: Features, output: Path | None = None, batch_size: int = 4, **options: Any) -> dict[str, Tensor]:
        data = ImageDataModule(root=str(image_folder), masks=None, batch_size=batch_size, num_workers=0)
        writer = FeatureWriter(str(output) if output else None, **{"keep_every_s": 0.0, **options})
        trainer = quiet_trainer(callbacks=[writer])
        trainer.predict(module, datamodule=data, return_predictions=False)
        return load_file(output or tmp_path / "features.safetensors")

    return run


def stopped(predict: Predict, batches: int, **options: Any) -> Features:
    module = Features(dies_after=batches)
    with pytest.raises(RuntimeError, match="the machine died"):
        predict(module, **options)
    return module


def test_features_labels_and_names_are_in_the_order_of_the_listing(
    predict: Predict, tmp_path: Path, image_folder: Path
) -> None:
    found = predict(Features(), tmp_path / "f.safetensors")
    assert found["index"].tolist() == list(range(38))
    with safe_open(tmp_path / "f.safetensors", "pt") as file:
        names = json.loads(file.metadata()["names"])
    assert names == sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.jpg"))
    assert {path.name for path in tmp_path.iterdir()} == {"f.safetensors"}


@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_was_killed_goes_on_and_gives_the_same(named: bool, predict: Predict, tmp_path: Path) -> None:
    whole = predict(Features(), tmp_path / "whole.safetensors")
    output = tmp_path / "f.safetensors" if named else None
    first = stopped(predict, 3, output=output)
    assert not (tmp_path / "f.safetensors").exists()
    second = Features()
    found = predict(second, output, batch_size=5)
    assert first.seen == list(range(12))
    assert second.seen == list(range(12, 38))
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert not [path for path in tmp_path.iterdir() if "parts" in path.name or path.name.startswith(".features")]


def test_it_may_be_killed_again_and_again(predict: Predict, tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(3):
        seen += stopped(predict, 2, output=tmp_path / "f.safetensors").seen
    last = Features()
    predict(last, tmp_path / "f.safetensors")
    assert seen + last.seen == list(range(38))


def test_a_run_that_was_killed_at_the_very_end_goes_on(predict: Predict, tmp_path: Path) -> None:
    whole = predict(Features(), tmp_path / "whole.safetensors", batch_size=38)
    stopped(predict, 9, output=tmp_path / "f.safetensors", batch_size=4)  # of ten batches
    found = predict(Features(), tmp_path / "f.safetensors")
    assert torch.equal(found["features"], whole["features"])


def test_with_all_samples_done_there_is_still_a_result(predict: Predict, tmp_path: Path) -> None:
    class DiesAtTheEnd(Features):
        def on_predict_epoch_end(self) -> None:
            raise RuntimeError("the machine died")

    module = DiesAtTheEnd()
    with pytest.raises(RuntimeError, match="the machine died"):
        predict(module, tmp_path / "f.safetensors")
    last = Features()
    found = predict(last, tmp_path / "f.safetensors")
    assert len(last.seen) == 1
    assert found["index"].tolist() == list(range(38))


def test_with_other_weights_it_begins_anew(predict: Predict, tmp_path: Path) -> None:
    stopped(predict, 3, output=tmp_path / "f.safetensors")
    module = Features()
    module.scale.data.fill_(2.0)
    found = predict(module, tmp_path / "f.safetensors")
    assert module.seen == list(range(38))
    assert torch.equal(found["features"], 2 * predict(Features(), tmp_path / "g.safetensors")["features"])


def test_nothing_is_kept_on_disk_before_it_is_time(predict: Predict, tmp_path: Path) -> None:
    stopped(predict, 3, output=tmp_path / "f.safetensors", keep_every_s=3600.0)
    assert not list(tmp_path.iterdir())
