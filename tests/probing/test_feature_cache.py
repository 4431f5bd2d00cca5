from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

import jepa_lightning as jl
from jepa_lightning.data import (
    ClipFormat,
    ClipSampler,
    Folder,
    ImageDataModule,
    Mixture,
    VideoDataModule,
    VideoFolder,
)
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models.average_pool import AveragePool
from jepa_lightning.probing import LinearProbe
from jepa_lightning.schedules import Constant, WarmupCosine

TrainerFactory = Callable[..., Trainer]
DataFactory = Callable[..., ImageDataModule]
CheckpointFactory = Callable[..., str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("images") / "a.ckpt")


def probe(checkpoint: str, **overrides: Any) -> LinearProbe:
    torch.manual_seed(7)
    settings = {"features": [AveragePool(1)], "lr": [0.1], "weight_decay": [0.0], "lr_schedule": Constant(1.0)}
    return LinearProbe(checkpoint, **{**settings, "batch_norm": [True], "baselines": False, **overrides})


def fitted(module: LinearProbe, data: Any, trainer: Trainer) -> LinearProbe:
    trainer.fit(module, datamodule=data)
    return module


# ---------------------------------------------------------------------- what is served


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_features_of_every_clean_sample_are_served_in_its_place(
    cache: Any, checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    module = fitted(probe(checkpoint, cache=cache), coloured(), quiet_trainer(max_epochs=1))
    encoder, plain = jl.load_encoder(checkpoint), coloured(img_size=16, patch_size=8)
    for split, size in {"train": 36, "val": 12}.items():
        samples, served = plain.dataset(split, augment=False), module.cached[split]
        assert len(served) == size
        images = plain.normalize(torch.stack([samples[n].inputs for n in range(size)]))
        found = torch.stack([served[n].inputs for n in range(size)])
        torch.testing.assert_close(found[:, 0], encoder(images).mean(dim=1), rtol=0, atol=1e-5)
        assert [served[n].label for n in range(size)] == [samples[n].label for n in range(size)]
        assert [served[n].index for n in range(size)] == list(range(size))
        path = tmp_path / "features" / f"{split}.npy"
        assert path.exists() == (cache == "disk")
        if cache == "disk":
            assert np.array_equal(np.load(path), found.numpy())


def test_heads_learn_what_they_learn_from_clean_images(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory
) -> None:
    heads = [
        fitted(probe(checkpoint, cache=cache), coloured(), quiet_trainer(max_epochs=3))
        for cache in (None, "memory", "disk")
    ]
    for other in heads[1:]:
        for name, tensor in heads[0].heads.state_dict().items():
            torch.testing.assert_close(other.heads.state_dict()[name], tensor, rtol=0, atol=2e-4, msg=name)
        assert other.found is not None
        assert heads[0].found is not None
        assert torch.equal(other.found.accuracy, heads[0].found.accuracy)


def test_each_sample_is_encoded_once_however_many_epochs_there_are(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory
) -> None:
    module, encoded = probe(checkpoint, cache="memory"), []
    module.encoder.register_forward_hook(lambda _, args, out: encoded.append(len(args[0])))
    trainer = quiet_trainer(max_epochs=5, num_sanity_val_steps=0)
    fitted(module, coloured(), trainer)
    assert sum(encoded) == 36 + 12
    assert trainer.global_step == 5 * 6


def test_augmentation_is_left_out(checkpoint: str, image_folder: Path, quiet_trainer: TrainerFactory) -> None:
    data = ImageDataModule(Folder(str(image_folder)), masks=None, batch_size=8, num_workers=0)
    module = fitted(probe(checkpoint, cache="memory"), data, quiet_trainer(max_epochs=1))
    image = data.normalize(data.dataset("train", augment=False)[4].inputs.unsqueeze(0))
    expected = jl.load_encoder(checkpoint)(image).mean(dim=1)
    torch.testing.assert_close(module.cached["train"][4].inputs, expected, rtol=0, atol=1e-5)


def test_a_file_that_cannot_be_decoded_is_left_out(
    checkpoint: str, coloured_folder: Path, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    shutil.copytree(coloured_folder, tmp_path / "mine")
    damaged = sorted((tmp_path / "mine/train").rglob("*.png"))[7]
    damaged.write_bytes(b"no image")
    data = ImageDataModule(root=str(tmp_path / "mine"), masks=None, batch_size=6, num_workers=0)
    with pytest.warns(UserWarning, match=f"cannot decode .*{damaged.name}"):
        module = fitted(probe(checkpoint, cache="memory"), data, quiet_trainer(max_epochs=1))
    served = module.cached["train"]
    assert served.index == [n for n in range(36) if n != 7]
    assert len(served) == len(served.x) == len(served.labels) == 35


def test_heads_of_a_cached_training_are_validated_on_images(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    module, trainer = probe(checkpoint, cache="memory", lr=[0.3]), quiet_trainer(max_epochs=10)
    fitted(module, coloured(), trainer)
    trainer.save_checkpoint(tmp_path / "p.ckpt")
    again, data = probe(checkpoint, cache="memory", lr=[0.3]), coloured()
    (found,) = quiet_trainer().validate(again, data, tmp_path / "p.ckpt", verbose=False, weights_only=True)
    assert again.cached == {}
    assert found["val/top1"] == trainer.callback_metrics["val/top1"] == 1.0


class Stop(Callback):
    """Saves in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_ends_bit_for_bit_where_it_would_have_ended(
    checkpoint: str, coloured: DataFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    options = {"cache": "memory", "lr_schedule": WarmupCosine(start=0.5, peak=1.0, final=0.0)}
    whole, resumed = probe(checkpoint, **options), probe(checkpoint, **options)
    fitted(whole, coloured(), quiet_trainer(max_epochs=3, callbacks=[Stop(8, tmp_path / "middle.ckpt")]))
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(resumed, datamodule=coloured(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert trainer.global_step == 3 * 6
    for name, tensor in whole.heads.state_dict().items():
        assert torch.equal(resumed.heads.state_dict()[name], tensor), name


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(9):
        path = root / ("train" if number < 6 else "val") / f"class{number % 2}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.full((12, 16, 16, 3), 20 * number + np.arange(12)[:, None, None, None], np.uint8))
    return root


def test_of_videos_all_clips_and_views_are_served(
    videos: Path, save_checkpoint: CheckpointFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "v.ckpt", "VJEPA", num_frames=4, tubelet_size=2)
    data = VideoDataModule(
        VideoFolder(str(videos)), masks=None, clips=partial(ClipSampler, frame_step=1, num_clips=2),
        inputs=ClipFormat(views=3), batch_size=3, num_workers=0,
    )  # fmt: skip
    module = fitted(probe(path, cache="memory"), data, quiet_trainer(max_epochs=1))
    assert module.cached["train"][0].inputs.shape == (2, 16)
    assert module.cached["val"][0].inputs.shape == (6, 16)
    clips = data.normalize(data.clip_dataset("val", 2, 3)[1].inputs.unsqueeze(0))
    expected = torch.cat([module.encode(clips[:, n]).mean(dim=1) for n in range(6)])
    torch.testing.assert_close(module.cached["val"][1].inputs, expected, rtol=0, atol=1e-5)
    assert module.found is not None
    assert module.found.samples == 3


# ---------------------------------------------------------------------- who cannot serve


class Foreign(LightningDataModule):
    classes, label_names = ("a", "b"), ()

    def train_dataloader(self) -> Any:
        batch = MaskedBatch(torch.randn(2, 3, 16, 16), (), torch.tensor([0, 1]))
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]


def test_a_data_module_of_somebody_else_is_refused(checkpoint: str, quiet_trainer: TrainerFactory) -> None:
    with pytest.raises(ValueError, match="cache: Foreign is no JEPADataModule, which a cache cannot do: leave it out"):
        fitted(probe(checkpoint, cache="memory"), Foreign(), quiet_trainer(max_epochs=1))


def test_sources_that_are_drawn_by_weights_are_refused(
    videos: Path, save_checkpoint: CheckpointFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "v.ckpt", "VJEPA", num_frames=4, tubelet_size=2)
    mixture = Mixture([VideoFolder(str(videos)), VideoFolder(str(videos))], [0.8, 0.2])
    data = VideoDataModule(mixture, masks=None, batch_size=3, num_workers=0)
    with pytest.raises(ValueError, match=r"cache: VideoDataModule draws its sources by weights, .*: leave it out"):
        fitted(probe(path, cache="memory"), data, quiet_trainer(max_epochs=1))
