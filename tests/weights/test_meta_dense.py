"""V-JEPA 2.1's files: read, gone on with, exported, described; also those of the distilled models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning import weights
from jepa_lightning.callbacks import OptimizerState
from jepa_lightning.checkpoint_io import WeightsIO
from jepa_lightning.commands.inspect import main as inspect
from jepa_lightning.export.opening import open_source
from jepa_lightning.export.writing import export
from jepa_lightning.loading import load_encoder, load_meta
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.methods import VJEPA21
from jepa_lightning.models import DensePredictor, DenseVisionTransformer, RoPE
from jepa_lightning.schedules import Constant, Ramp, WarmupCosine
from jepa_lightning.weights import CheckpointError, Hints

FILE = Path(__file__).parent.parent / "golden" / "vjepa21_tiny" / "checkpoint.pt"
HINTS = Hints(num_heads=2, predictor_num_heads=2, img_size=64, num_frames=8)
SIZES: dict[str, Any] = {"num_heads": 2, "predictor_num_heads": 2, "img_size": 32, "num_frames": 4}
BATCHES, EPOCHS = 2, 4
CLIPS, IMAGES = torch.Size((2, 3, 4, 32, 32)), torch.Size((2, 3, 32, 32))


class Turns(LightningDataModule):
    """The same two batches in every epoch, one of clips and one of images."""

    def train_dataloader(self) -> DataLoader[Any]:
        batches, generator = [], torch.Generator().manual_seed(7)
        for shape, count in ((CLIPS, 8), (IMAGES, 4)):
            order = torch.rand(2, count, generator=generator).argsort(dim=1)
            masks = TokenMasks(order[:, : count // 2], order[:, None, count // 2 :])
            batches.append(MaskedBatch(torch.randn(shape, generator=generator), (masks,)))
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def make(seed: int = 1, **predictor: Any) -> VJEPA21:
    torch.manual_seed(seed)
    encoder = DenseVisionTransformer(32, 16, 3, 24, 4, 2, num_frames=4)
    narrow = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_mask_tokens": 3, **predictor}
    lr = WarmupCosine(start=1e-4, peak=1e-3, final=1e-5, warmup_epochs=1)
    return VJEPA21(encoder, partial(DensePredictor, **narrow), lr, Constant(0.04), Constant(0.9))


def distilled(path: Path) -> tuple[Path, VJEPA21]:
    """A file as those of the distilled models: one encoder, under its own name, and a predictor of another width."""
    module = make(levels=1, target_dim=40)
    networks: dict[str, nn.Module] = {"ema_encoder": module.encoder, "predictor": module.predictor}
    content = {k: {f"module.backbone.{n}": t for n, t in net.state_dict().items()} for k, net in networks.items()}
    torch.save(content, path)
    return path, module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert one.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())


# ---------------------------------------------------------------------- reading


def test_the_schedules_default_to_the_published_ones_and_a_number_is_a_constant_weight() -> None:
    module = load_meta(FILE, **{**SIZES, "img_size": 64})
    assert isinstance(module, VJEPA21)
    assert isinstance(module.context_weight, Ramp)
    assert module.context_weight(22_501, 375_000, 300) == 0.25
    assert module.lr(12_000, 375_000, 300) == pytest.approx(6e-4)
    constant = load_meta(FILE, **SIZES, context_weight=0.3)
    assert isinstance(constant, VJEPA21)
    assert constant.context_weight(1, 10, 2) == 0.3


def test_without_a_size_it_is_that_of_the_released_models() -> None:
    encoder = load_encoder(FILE, num_heads=2)
    assert (encoder.img_size, encoder.num_frames, encoder.positions) == ((384, 384), 16, RoPE(stretch_to=16))


def test_patches_that_were_never_released_are_refused(tmp_path: Path) -> None:
    content = torch.load(FILE, weights_only=True)
    for network in ("encoder", "target_encoder"):
        for name, side in (("patch_embed", 8), ("patch_embed_img", 8)):
            key = f"module.backbone.{name}.proj.weight"
            content[network][key] = content[network][key][..., :side, :side].clone()
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="patches of 16 or 14 pixels, these are 8"):
        load_encoder(tmp_path / "a.pt", num_heads=2)


def test_a_distilled_file_is_read_and_only_its_losses_need_the_teacher(tmp_path: Path) -> None:
    path, module = distilled(tmp_path / "dist.pt")
    clip = torch.randn(CLIPS)
    encoder = load_encoder(path, num_heads=2, img_size=32, num_frames=4)
    assert torch.equal(encoder(clip), module.encoder(clip))
    loaded = load_meta(path, **SIZES)
    assert_same(loaded.encoder, module.encoder)
    assert_same(loaded.target_encoder, module.encoder)
    assert_same(loaded.predictor, module.predictor)
    tokens, context, targets = torch.randn(2, 4, 24), torch.arange(4).expand(2, -1), torch.arange(4, 8).expand(2, 1, -1)
    assert loaded.predictor(tokens, context, targets).shape == (2, 1, 4, 40)
    with pytest.raises(ValueError, match="40 channels of a teacher"):
        loaded.losses(MaskedBatch(clip, (TokenMasks(context, targets),)))


@pytest.mark.parametrize("which", ["golden", "distilled"])
def test_inspect_says_what_it_is(which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = FILE if which == "golden" else distilled(tmp_path / "dist.pt")[0]
    inspect([str(path)])
    text = " ".join(capsys.readouterr().out.split())
    assert "family V-JEPA 2.1" in text
    assert "images and clips, levels after blocks " + ("2, 5, 8, 11" if which == "golden" else "0, 1, 2, 3") in text
    assert "positions RoPE (interleaved)" in text
    assert "licence Meta's weights of V-JEPA 2 are MIT" in text
    assert "--to onnx" in text
    assert "not supported" not in text


# ---------------------------------------------------------------------- going on


@pytest.fixture
def train(
    quiet_trainer: Callable[..., Trainer], as_meta_writes_it: Callable[..., Path]
) -> Callable[..., dict[str, Tensor]]:
    """Weights and moments after a training, which may stop after two epochs and write Meta's file."""

    def run(module: VJEPA21, path: Path | None = None, stop: Path | None = None) -> dict[str, Tensor]:
        class Stop(OptimizerState):
            def __init__(self) -> None:
                self.state = None

            def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
                if stop is not None and trainer.current_epoch == 1:
                    pl_module.update_target_encoder()
                    as_meta_writes_it(pl_module, trainer.optimizers[0], stop, 2)
                    trainer.should_stop = True

        plugins = [WeightsIO(module, weights.open(path))] if path else []
        trainer = quiet_trainer(max_epochs=EPOCHS, plugins=plugins, callbacks=[Stop()])
        trainer.fit(module, datamodule=Turns(), ckpt_path=path, weights_only=True)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        state = {names[id(p)]: values for p, values in trainer.optimizers[0].state.items()}
        moments = {f"{name}.{key}": t for name, values in state.items() for key, t in values.items()}
        return {**{name: t.clone() for name, t in module.state_dict().items()}, **moments}

    return run


def test_a_training_goes_on_from_metas_state_as_if_it_had_not_been_stopped(
    train: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    whole = train(make())
    train(make(), stop=tmp_path / "meta.pth.tar")
    resumed = train(make(seed=3), path=tmp_path / "meta.pth.tar")
    assert set(whole) == set(resumed)
    assert float(resumed["encoder.img_mod_embed.step"]) == float(whole["encoder.img_mod_embed.step"]) == EPOCHS
    assert "predictor.mask_tokens.1.exp_avg" not in resumed
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


# ---------------------------------------------------------------------- exports


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("to", ["meta", "safetensors", "onnx"])
def test_it_goes_to_what_has_a_place_for_it_and_comes_back(to: str, tmp_path: Path) -> None:
    source = open_source(weights.open(FILE), both=to == "meta", hints=HINTS)
    parity = export(source, to, tmp_path / "out", with_predictor=None if to == "meta" else to == "safetensors")
    found = {each.what for each in parity.comparisons}
    assert found == ({"tokens", "predicted tokens"} if to in ("meta", "safetensors") else {"tokens"})
    if to == "meta":
        there = weights.open(tmp_path / "out" / "checkpoint.pth.tar").states()
        for network, state in weights.open(FILE).states().items():
            assert all(torch.equal(tensor, there[network][name]) for name, tensor in state.items())
    if to == "safetensors":
        encoder = load_encoder(tmp_path / "out")
        assert torch.equal(encoder(torch.ones(1, 3, 64, 64)), source.networks.encoder(torch.ones(1, 3, 64, 64)))


@pytest.mark.parametrize("to", ["huggingface", "timm"])
def test_other_libraries_have_no_place_for_it(to: str, tmp_path: Path) -> None:
    source = open_source(weights.open(FILE), hints=HINTS)
    with pytest.raises(ValueError, match="no other library has a class for V-JEPA 2"):
        export(source, to, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"positions": RoPE()}, "stretch_to 16 for patches of 16"),
        ({"patch_size": 8}, "stretch_to 16 for patches of 16"),
        ({"levels": [1, 3]}, r"reads blocks \[0, 1, 2, 3\], not \[1, 3\]"),
    ],
)
def test_what_metas_files_cannot_say_is_not_written_into_one(
    options: dict[str, Any], pattern: str, tmp_path: Path
) -> None:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_frames": 4}
    encoder = DenseVisionTransformer(**{**sizes, **options})  # type: ignore[arg-type]
    source = open_source(weights.open(FILE), hints=HINTS)
    networks = source.networks._replace(encoder=encoder, predictor=DensePredictor(encoder, 16, 1, 2))
    with pytest.raises(ValueError, match=pattern):
        export(source._replace(networks=networks), "meta", tmp_path / "out")
