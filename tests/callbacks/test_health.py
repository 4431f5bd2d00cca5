from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jepa_lightning import metrics
from jepa_lightning.callbacks import Alarm, Health
from jepa_lightning.data import Folder, ImageDataModule
from jepa_lightning.masking import MultiBlock
from jepa_lightning.methods import IJEPA
from jepa_lightning.methods.base import Observed
from jepa_lightning.models import BlockOptions, VisionTransformer

IJEPAFactory = Callable[..., IJEPA]
TrainerFactory = Callable[..., Trainer]
EncoderFactory = Callable[..., VisionTransformer]


@pytest.fixture
def images(image_folder: Path) -> ImageDataModule:
    masks = partial(MultiBlock, min_keep=1, num_targets=2)
    return ImageDataModule(
        Folder(str(image_folder)), masks=masks, batch_size=8, num_workers=0, img_size=32, patch_size=8
    )


def logged(trainer: Trainer) -> dict[str, list[float]]:
    events = EventAccumulator(trainer.logger.log_dir).Reload()  # type: ignore[union-attr, arg-type]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_everything_is_measured_at_its_interval(
    tiny_ijepa: IJEPAFactory, images: ImageDataModule, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    module = tiny_ijepa()
    trainer = quiet_trainer(
        max_steps=8, max_epochs=-1, callbacks=[Health(4, samples=4, views=3)], logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=2, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=images)
    found = {tag.removeprefix("health/"): values for tag, values in logged(trainer).items() if tag[:6] == "health"}
    parts = [f"{part}{pooled}" for part in ("context", "predicted", "target") for pooled in ("", "_pooled")]
    complete = {f"{part}_{name}" for part in parts for name in ("std", "std_min", "rankme", "alpha_req", "uniformity")}
    complete |= {"lidar", "view_alignment", "prediction_alignment", "encoder_distance", "feature_distance"}
    complete |= {"attention_entropy", "attention_entropy_min"}
    assert {tag for tag, values in found.items() if len(values) == 2} >= complete
    assert {tag for tag, values in found.items() if len(values) == 4} == {"explained_variance_nearest", "content_share"}
    assert all(math.isfinite(value) for values in found.values() for value in values)
    assert found["encoder_distance"][0] < found["encoder_distance"][1]
    assert 0 < found["attention_entropy_min"][0] <= found["attention_entropy"][0] <= 1
    events = EventAccumulator(trainer.logger.log_dir).Reload()  # type: ignore[union-attr, arg-type]
    assert set(events.Tags()["histograms"]) == {f"health/{part}_std" for part in ("context", "predicted", "target")}
    assert events.Tags()["images"] == ["mask coverage"]
    assert (Path(trainer.logger.log_dir) / "pictures" / "mask_coverage.png").stat().st_size > 0  # type: ignore[union-attr, arg-type]
    assert module.observers == []


def test_the_numbers_are_those_of_the_tensors_of_the_step(
    tiny_ijepa: IJEPAFactory, images: ImageDataModule, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    class Peek(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.steps: list[Observed] = []
            pl_module.observers.append(self.steps.append)

    peek, module = Peek(), tiny_ijepa()
    trainer = quiet_trainer(
        max_steps=1, callbacks=[peek, Health(1, samples=4, views=2)], logger=TensorBoardLogger(tmp_path),
        log_every_n_steps=1, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=images)
    (step,), found = peek.steps, logged(trainer)
    assert not step.context.requires_grad
    context = step.context.flatten(0, 1)
    assert found["health/context_rankme"][0] == pytest.approx(metrics.rankme(context).item(), rel=1e-4)
    assert found["health/context_std"][0] == pytest.approx(metrics.feature_std(context).item(), rel=1e-4)
    mean = step.predicted.mean(dim=(1, 2))
    assert found["health/predicted_pooled_rankme"][0] == pytest.approx(metrics.rankme(mean).item(), rel=1e-4)
    assert found["health/content_share"][0] == pytest.approx(metrics.content_share(step.features).item(), rel=1e-4)


def test_lidar_is_that_of_random_views_of_the_same_images(images: ImageDataModule, tiny_ijepa: IJEPAFactory) -> None:
    views = images.random_views(5, 3)
    assert views.shape == (5, 3, 3, 32, 32)
    assert views.dtype == torch.uint8
    assert torch.equal(views, images.random_views(5, 3))
    assert not torch.equal(views[:, 0], views[:, 1])
    dataset = images.dataset("train", augment=True)
    assert len(images.random_views(99, 1)) == len(dataset)


def weights_after(module: IJEPA, trainer: Trainer, data: ImageDataModule) -> dict[str, torch.Tensor]:
    trainer.fit(module, datamodule=data)
    return module.state_dict()


def test_removing_the_observers_never_changes_training(
    tiny_encoder: EncoderFactory,
    tiny_ijepa: IJEPAFactory,
    images: ImageDataModule,
    quiet_trainer: TrainerFactory,
    tmp_path: Path,
) -> None:
    states = []
    for callbacks in ([], [Health(1, samples=4, views=2), Alarm(1)]):
        torch.manual_seed(0)  # drop path draws from the global generator
        module = tiny_ijepa(tiny_encoder(blocks=BlockOptions(drop_path=0.5)))
        trainer = quiet_trainer(max_steps=4, callbacks=callbacks, logger=TensorBoardLogger(tmp_path))
        states.append(weights_after(module, trainer, images))
        assert module.encoder.training
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_under_gradient_accumulation_each_optimizer_step_is_measured_once(
    tiny_ijepa: IJEPAFactory, images: ImageDataModule, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    trainer = quiet_trainer(
        max_steps=2, callbacks=[Health(1, samples=4, views=2)], logger=TensorBoardLogger(tmp_path),
        accumulate_grad_batches=2, log_every_n_steps=1, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(tiny_ijepa(), datamodule=images)
    assert len(logged(trainer)["health/lidar"]) == 2


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {}])
def test_nobody_looks_without_a_logger_or_when_it_is_turned_off(
    options: dict[str, int], tiny_ijepa: IJEPAFactory, images: ImageDataModule, quiet_trainer: TrainerFactory
) -> None:
    seen: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
            seen.append(len(pl_module.observers))

    quiet_trainer(max_steps=2, callbacks=[Health(**options), Count()]).fit(tiny_ijepa(), datamodule=images)
    assert seen == [0, 0]


def test_lidar_without_two_views_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples and 2 views of each, got 32 and 1"):
        Health(views=1)
