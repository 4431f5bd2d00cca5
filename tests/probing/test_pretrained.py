from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Trainer

import jepa_lightning as jl
from jepa_lightning.data import ImageDataModule
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.probing import PretrainedEncoder
from jepa_lightning.weights import HintNeeded, Hints

HEADS = {"num_heads": 4}


@pytest.fixture
def pretrained(golden_checkpoint: Path) -> PretrainedEncoder:
    return PretrainedEncoder(str(golden_checkpoint), overrides=Hints(**HEADS))


def test_it_gives_the_tokens_of_the_encoder_of_the_file(pretrained: PretrainedEncoder, golden_checkpoint: Path) -> None:
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(pretrained.encode(images), jl.load_encoder(golden_checkpoint, **HEADS)(images))
    assert not any(parameter.requires_grad for parameter in pretrained.parameters())
    assert pretrained.title == "checkpoint.pt"


def test_the_branch_can_be_chosen(tmp_path: Path, golden_checkpoint: Path) -> None:
    content = torch.load(golden_checkpoint, weights_only=True)
    content["encoder"] = {name: tensor.clone() for name, tensor in content["target_encoder"].items()}
    content["encoder"]["module.norm.bias"] += 1
    torch.save(content, tmp_path / "a.pt")
    images = torch.randn(2, 3, 48, 48)
    target, context = (
        PretrainedEncoder(str(tmp_path / "a.pt"), branch, Hints(**HEADS)) for branch in ("target", "context")
    )
    torch.testing.assert_close(context.encode(images), target.encode(images) + 1)


def test_features_are_the_mean_of_the_tokens_also_over_clips(pretrained: PretrainedEncoder) -> None:
    images = torch.randn(2, 3, 48, 48)
    features = pretrained.predict_step(MaskedBatch(images, ()), 0)
    torch.testing.assert_close(features, pretrained.encode(images).mean(dim=1))
    path = Path(__file__).parent.parent / "golden" / "vjepa1_tiny" / "checkpoint.pt"
    video = PretrainedEncoder(str(path), overrides=Hints(**HEADS))
    clips = torch.randn(2, 3, 3, 8, 32, 32)  # three clips of two videos
    expected = torch.stack([video.encode(clips[:, k]).mean(dim=1) for k in range(3)]).mean(dim=0)
    torch.testing.assert_close(video.predict_step(MaskedBatch(clips, ()), 0), expected)


def test_it_is_evaluated_and_not_trained(
    pretrained: PretrainedEncoder, image_folder: Path, quiet_trainer: Callable[..., Trainer]
) -> None:
    data = ImageDataModule(root=str(image_folder), masks=None, batch_size=4, num_workers=0)
    trainer = quiet_trainer()
    trainer.validate(pretrained, datamodule=data, verbose=False)
    assert trainer.num_val_batches == [1]
    with pytest.raises(ValueError, match=r"a PretrainedEncoder is not trained: give a method and --init_from .*checkp"):
        quiet_trainer(max_epochs=1).fit(pretrained, datamodule=data)


@pytest.mark.parametrize("overrides", [None, Hints()])
def test_what_the_file_does_not_say_has_to_be_said(overrides: Hints | None, golden_checkpoint: Path) -> None:
    with pytest.raises(HintNeeded, match="give num_heads="):
        PretrainedEncoder(str(golden_checkpoint), overrides=overrides)


def test_what_the_file_says_itself_cannot_be_said(tmp_path: Path, save_checkpoint: Callable[..., str]) -> None:
    with pytest.raises(TypeError, match="num_heads cannot be given"):
        PretrainedEncoder(save_checkpoint(tmp_path / "a.ckpt"), overrides=Hints(num_heads=4))
