"""A training is stopped, written as Meta's code writes it, and goes on: the same numbers as without the stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning import weights
from jepa_lightning.callbacks import OptimizerState
from jepa_lightning.checkpoint_io import WeightsIO
from jepa_lightning.loading import load_meta, start_from
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.methods import IJEPA, VJEPA
from jepa_lightning.models import Predictor, SinCos3D, VisionTransformer
from jepa_lightning.schedules import Cosine, Linear, WarmupCosine
from jepa_lightning.weights import CheckpointError
from jepa_lightning.weights.meta_training import check_resumable

BATCHES, EPOCHS = 3, 4


class Batches(LightningDataModule):
    """The same batches in every epoch, each with two families of masks."""

    def __init__(self, shape: tuple[int, ...], tokens: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.batches = []
        for _ in range(BATCHES):
            order = torch.rand(2, tokens, generator=generator).argsort(dim=1)
            masks = tuple(TokenMasks(order[:, :k], order[:, None, k : k + 2]) for k in (tokens // 2, tokens // 4))
            self.batches.append(MaskedBatch(torch.randn(2, *shape, generator=generator), masks))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def make(video: bool, share_mask_token: bool = False) -> tuple[IJEPA | VJEPA, Batches]:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    if video:
        sizes |= {"num_frames": 4, "tubelet_size": 2, "positions": SinCos3D()}
    encoder = VisionTransformer(**sizes)
    schedules: dict[str, Any] = {
        "lr": WarmupCosine(start=1e-4, peak=1e-3, final=1e-5, warmup_epochs=1),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.9, final=1.0),
    }

    def predictor(of: Any) -> Predictor:
        return Predictor(of, 12, 1, num_mask_tokens=2 if video else None)

    data = Batches((3, 4, 16, 16) if video else (3, 16, 16), 32 if video else 16)
    if video:
        return VJEPA(encoder, predictor, **schedules, share_mask_token=share_mask_token), data
    return IJEPA(encoder, predictor, **schedules), data


Trained = Callable[..., dict[str, Tensor]]
MetaWriter = Callable[[Any, torch.optim.Optimizer, Path, int], Path]


@pytest.fixture
def train(quiet_trainer: Callable[..., Trainer], as_meta_writes_it: MetaWriter) -> Trained:
    """Weights and moments after a training."""

    def run(
        module: Any, data: Batches, epochs: int, path: Path | None = None, stop: Path | None = None, **options: Any
    ) -> dict[str, Tensor]:
        plugins = [WeightsIO(module, weights.open(path))] if path else []
        trainer = quiet_trainer(max_epochs=EPOCHS, plugins=plugins, deterministic=True, **options)
        trainer.fit_loop.max_epochs = EPOCHS
        if stop is not None:  # the schedules are those of the whole training
            trainer.callbacks.append(Stop(epochs, stop, as_meta_writes_it))
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
        assert trainer.current_epoch == (epochs if stop else EPOCHS)
        moments = {f"{i}.{k}": v for i, s in enumerate(trainer.optimizers[0].state.values()) for k, v in s.items()}
        return {**{k: v.clone() for k, v in module.state_dict().items()}, **moments}

    return run


class Stop(OptimizerState):
    """Writes Meta's file after some epochs, and ends."""

    def __init__(self, epochs: int, path: Path, write: MetaWriter) -> None:
        self.state, self.epochs, self.path, self.write = None, epochs, path, write

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            pl_module.update_target_encoder()
            self.write(pl_module, trainer.optimizers[0], self.path, self.epochs)
            trainer.should_stop = True


@pytest.mark.parametrize(("video", "share"), [(False, False), (True, False), (True, True)])
def test_a_training_goes_on_as_if_it_had_not_been_stopped(
    video: bool, share: bool, train: Trained, tmp_path: Path
) -> None:
    module, data = make(video, share)
    whole = train(module, data, EPOCHS)
    module, data = make(video, share)
    train(module, data, 2, stop=tmp_path / "meta.pth.tar")
    torch.manual_seed(3)
    module, data = make(video, share)
    resumed = train(module, data, EPOCHS, path=tmp_path / "meta.pth.tar")
    assert list(whole) == list(resumed)
    assert len(whole) > 100
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_epoch_and_step_are_read_off_the_file(train: Trained, tmp_path: Path) -> None:
    module, data = make(video=False)
    train(module, data, 2, stop=tmp_path / "meta.pth.tar")
    io = WeightsIO(module, weights.open(tmp_path / "meta.pth.tar"))
    assert io.weights.progress == (2 * BATCHES, 2, True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=EPOCHS)
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.training = True
    found = io.load_checkpoint(tmp_path / "meta.pth.tar")
    assert (found["epoch"], found["global_step"]) == (2, 6)
    assert set(found["state_dict"]) == set(module.state_dict())


def test_a_new_training_can_start_with_the_moments_of_the_old_one(train: Trained, tmp_path: Path) -> None:
    module, data = make(video=True, share_mask_token=True)
    train(module, data, 2, stop=tmp_path / "meta.pth.tar")
    fresh, data = make(video=True, share_mask_token=True)
    moments = start_from(fresh, weights.open(tmp_path / "meta.pth.tar"))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    callback = OptimizerState(moments)
    fresh.setup("fit")  # takes the unused mask token out of training
    optimizer = fresh.configure_optimizers()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.optimizers = [optimizer]
    callback.on_train_start(trainer, fresh)
    names = {id(parameter): name for name, parameter in fresh.named_parameters()}
    state = {names[id(p)]: values for p, values in optimizer.state.items()}
    assert "predictor.mask_tokens.0" in state
    assert "predictor.mask_tokens.1" not in state
    assert {float(values["step"]) for values in state.values()} == {2.0 * BATCHES}
    assert state["encoder.blocks.1.attn.qkv.weight"]["exp_avg"].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["opt"]["state"].pop(0), "its optimizer has no state of encoder.patch_embed.proj.w"),
        (lambda content: content["opt"]["param_groups"].pop(), r"its optimizer has \d+ parameters, its encoder and"),
        (
            lambda content: content["opt"].update(state={}),
            "has no training to resume .finished epochs: 2, opt.* steps: None",
        ),
        (lambda content: content.update(epoch=0), "has no training to resume .finished epochs: 0.*--init_from"),
        (lambda content: content.pop("epoch"), "has no training to resume .finished epochs: None"),
        (lambda content: content.pop("predictor"), "has no predictor"),
        (lambda content: content["encoder"].pop("module.norm.bias"), r"encoder does not fit: missing norm.bias.*Give"),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_reason(
    change: Callable[[dict[str, Any]], Any], message: str, train: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "meta.pth.tar"
    module, data = make(video=False)
    train(module, data, 2, stop=path)
    content = torch.load(path, weights_only=True)
    if 0 in content["opt"]["state"]:
        change(content)
    else:  # number 0 is the position table, which is not trained
        content["opt"]["state"][0] = content["opt"]["state"].pop(1)
        change(content)
    torch.save(content, path)
    module, data = make(video=False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        train(module, data, EPOCHS, path=path)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_file_without_an_optimizer_has_no_moments(golden_checkpoint: Path) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    found = weights.open(golden_checkpoint)
    assert found.optimizer_state(module) is None
    assert not found.progress.resumable
    with pytest.raises(CheckpointError, match="has no training to resume"):
        check_resumable(found)


@pytest.mark.parametrize("name", ["ijepa_tiny", "vjepa1_tiny", "vjepa2_tiny"])
def test_the_groups_of_the_official_files_are_those_of_our_optimizer(name: str) -> None:
    """Sizes of the four groups: position tables are parameters there, unused mask tokens too."""
    path = Path(__file__).parent.parent / "golden" / name / "checkpoint.pt"
    file = weights.open(path).file
    heads = {"ijepa_tiny": 4, "vjepa1_tiny": 4, "vjepa2_tiny": 3}[name]
    module = load_meta(path, num_heads=heads, predictor_num_heads=heads)
    theirs = [len(group["params"]) for group in file.content["opt"]["param_groups"]]
    ours = [len(group["params"]) for group in module.configure_optimizers().param_groups]
    tables = 0 if name == "vjepa2_tiny" else 1
    assert theirs == [ours[0] + tables, ours[1] + tables, *ours[2:]]
