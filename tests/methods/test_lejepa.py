from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

import jepa_lightning as jl
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.loading import build
from jepa_lightning.losses import SIGReg
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import LeJEPA
from jepa_lightning.models import Projector, RoPE, VisionTransformer
from jepa_lightning.models.backbones import TorchvisionBackbone
from jepa_lightning.schedules import Constant
from jepa_lightning.weights.ours import CONFIG_KEY

EncoderFactory = Callable[..., VisionTransformer]
TrainerFactory = Callable[..., Trainer]
LeJEPAFactory = Callable[..., LeJEPA]


@pytest.fixture
def tiny_lejepa(tiny_encoder: EncoderFactory) -> LeJEPAFactory:
    def build(encoder: VisionTransformer | None = None, **overrides: Any) -> LeJEPA:
        settings = {
            "projector": partial(Projector, hidden_dim=16, out_dim=8),
            "lr": Constant(1e-3),
            "weight_decay": Constant(0.05),
            "sigreg": SIGReg(num_slices=16),
        }
        return LeJEPA(tiny_encoder() if encoder is None else encoder, **{**settings, **overrides})

    return build


def batch_of(batch: int = 4, counts: tuple[int, ...] = (2, 3), sides: tuple[int, ...] = (32, 16)) -> MaskedBatch:
    views = tuple(torch.randn(batch, n, 3, side, side) for n, side in zip(counts, sides, strict=True))
    return MaskedBatch(views[0][:, 0], (), views=views)


def embeddings(module: LeJEPA, batch: MaskedBatch) -> Tensor:
    """(V, B, P), view by view, with the projector's statistics over all of them."""
    features = [module.encoder(views[:, v]).mean(dim=1) for views in batch.views for v in range(views.shape[1])]
    projected = module.projector(torch.cat(features))
    return torch.stack(projected.chunk(len(features)))


def naive_loss(module: LeJEPA, batch: MaskedBatch, weight: float) -> Tensor:
    z = embeddings(module, batch)
    distances = []
    for b in range(z.shape[1]):
        centre = sum(z[v, b] for v in range(batch.views[0].shape[1])) / batch.views[0].shape[1]
        distances += [((centre - z[v, b]) ** 2).mean() for v in range(len(z))]
    statistic = torch.stack([module.sigreg(z[v], 0) for v in range(len(z))]).mean()
    return (1 - weight) * torch.stack(distances).mean() + weight * statistic


@pytest.mark.parametrize(("counts", "weight"), [((2, 3), 0.05), ((1, 4), 0.3), ((3,), 0.0)])
def test_the_loss_equals_a_loop_over_samples_and_views_also_in_gradient(
    tiny_lejepa: LeJEPAFactory, counts: tuple[int, ...], weight: float
) -> None:
    module = tiny_lejepa(sigreg=SIGReg(num_slices=16, weight=weight))
    batch = batch_of(counts=counts, sides=(32, 16)[: len(counts)])
    fast, slow = module.losses(batch)["loss"], naive_loss(module, batch, weight)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    parameters = list(module.parameters())
    for a, b in zip(torch.autograd.grad(fast, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_gradient_reaches_every_parameter_and_goes_through_the_centre(tiny_lejepa: LeJEPAFactory) -> None:
    module, batch = tiny_lejepa(), batch_of()
    views = tuple(views.requires_grad_() for views in batch.views)
    module.losses(batch._replace(views=views))["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert all(v.grad.flatten(2).abs().sum(dim=2).min() > 0 for v in views)


def test_views_that_are_equal_have_no_invariance_left_but_sigreg(tiny_lejepa: LeJEPAFactory) -> None:
    image = torch.randn(4, 1, 3, 32, 32)
    batch = MaskedBatch(image[:, 0], (), views=(image.expand(-1, 3, -1, -1, -1),))
    losses = tiny_lejepa().losses(batch)
    assert losses["invariance"].item() == pytest.approx(0.0, abs=1e-10)
    assert losses["loss"].item() == pytest.approx(0.05 * losses["sigreg"].item(), rel=1e-5)


def test_there_is_no_predictor_no_copy_and_nothing_twice(tiny_lejepa: LeJEPAFactory) -> None:
    module = tiny_lejepa()
    assert module.target_encoder is module.encoder
    assert {name.split(".")[0] for name in module.state_dict()} == {"encoder", "projector"}
    assert len(module.configure_optimizers().param_groups) == 4


def test_what_is_logged_carries_no_gradient(tiny_lejepa: LeJEPAFactory) -> None:
    losses = tiny_lejepa().losses(batch_of())
    assert losses.pop("loss").requires_grad
    assert set(losses) == {"invariance", "sigreg", "embedding_std"}
    assert not any(value.requires_grad or value.ndim for value in losses.values())


def test_training_lowers_the_loss_and_the_embeddings_do_not_collapse(
    tiny_lejepa: LeJEPAFactory, quiet_trainer: TrainerFactory
) -> None:
    module, batch = tiny_lejepa(lr=Constant(3e-3)), batch_of(batch=12)
    before = module.losses(batch)
    loader: Any = DataLoader([batch] * 40, batch_size=None)  # type: ignore[arg-type]
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, loader)
    after = module.train().losses(batch)
    assert after["loss"].item() < 0.5 * before["loss"].item()
    assert after["sigreg"].item() < 3.0  # the floor is 1.06
    assert 0.7 < after["embedding_std"].item() < 1.2
    assert {"train/invariance", "train/sigreg", "schedule/lr"} <= set(trainer.callback_metrics)
    assert "schedule/momentum" not in trainer.callback_metrics


def test_each_step_has_slices_of_its_own_and_validation_always_the_same(
    tiny_lejepa: LeJEPAFactory, quiet_trainer: TrainerFactory
) -> None:
    module, steps = tiny_lejepa(), []
    forward = module.sigreg.forward

    def spy(z: Tensor, step: int = 0) -> Tensor:
        steps.append((module.training, step))
        return forward(z, step)

    module.sigreg.forward = spy  # type: ignore[method-assign]
    loader: Any = DataLoader([batch_of()] * 2, batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=2, num_sanity_val_steps=0).fit(module, loader, loader)
    assert [step for training, step in steps if training] == [0, 1, 2, 3]
    assert [step for training, step in steps if not training] == [0] * 4


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tiny_lejepa: LeJEPAFactory, quiet_trainer: TrainerFactory, tmp_path: Path
) -> None:
    class SaveInTheMiddle(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    loader: Any = DataLoader([batch_of() for _ in range(2)], batch_size=None)  # type: ignore[arg-type]
    whole, resumed = (tiny_lejepa(drop_tokens=0.5) for _ in range(2))
    quiet_trainer(max_epochs=2, callbacks=[SaveInTheMiddle()]).fit(whole, loader)
    torch.rand(7)
    quiet_trainer(max_epochs=2).fit(resumed, loader, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


# ---------------------------------------------------------------------- tokens that are left out


def test_in_training_that_share_of_the_tokens_is_left_out_and_in_evaluation_none(tiny_lejepa: LeJEPAFactory) -> None:
    module, seen = tiny_lejepa(drop_tokens=0.75), []
    module.encoder.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[1]))
    module.losses(batch_of())
    assert seen == [4, 1]  # of 16 and of 4
    module.eval().losses(batch_of())
    assert seen[2:] == [16, 4]


def test_every_token_is_kept_equally_often_and_views_keep_different_ones(tiny_lejepa: LeJEPAFactory) -> None:
    module = tiny_lejepa(drop_tokens=0.75)
    kept = module._kept(torch.zeros(2000, 3, 32, 32), 0)
    assert kept is not None
    assert kept.shape == (2000, 4)
    assert (kept.diff(dim=1) > 0).all()
    frequency = torch.bincount(kept.flatten(), minlength=16) / 2000
    torch.testing.assert_close(frequency, torch.full((16,), 0.25), rtol=0, atol=0.05)
    assert not torch.equal(kept, module._kept(torch.zeros(2000, 3, 32, 32), 1))
    assert torch.equal(kept, module._kept(torch.zeros(2000, 3, 32, 32), 0))


def test_a_token_that_was_left_out_is_never_read(tiny_lejepa: LeJEPAFactory) -> None:
    module, image = tiny_lejepa(drop_tokens=0.9), torch.randn(1, 1, 3, 32, 32)
    kept = module._kept(image.flatten(0, 1), 0)
    assert kept is not None
    patches = torch.ones(16).index_fill_(0, kept[0], 0.0).reshape(1, 1, 1, 4, 4)
    changed = image + patches.repeat_interleave(8, 3).repeat_interleave(8, 4)
    assert not torch.equal(changed, image)
    torch.testing.assert_close(module.features((changed,)), module.features((image,)))


def test_clips_of_several_sizes_are_views_too(tiny_encoder: EncoderFactory, tiny_lejepa: LeJEPAFactory) -> None:
    encoder = tiny_encoder(num_frames=4, tubelet_size=1, positions=RoPE())
    module = tiny_lejepa(encoder, drop_tokens=0.5)
    views = (torch.randn(4, 1, 3, 4, 32, 32), torch.randn(4, 2, 3, 4, 16, 16))
    losses = module.losses(MaskedBatch(views[0][:, 0], (), views=views))
    losses["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())
    assert module.encode(views[0][:, 0]).shape == (4, 64, 32)


def test_any_backbone_learns_from_views_of_several_sizes(tiny_lejepa: LeJEPAFactory) -> None:
    module = tiny_lejepa(TorchvisionBackbone("resnet18", img_size=64))
    batch = batch_of(batch=2, counts=(2, 1), sides=(64, 32))
    module.losses(batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.encode(batch.inputs).shape == (2, 4, 512)
    with pytest.raises(ValueError, match="needs a VisionTransformer"):
        tiny_lejepa(module.encoder, drop_tokens=0.5).losses(batch)


# ---------------------------------------------------------------------- errors


def test_a_batch_without_views_says_what_to_set(tiny_lejepa: LeJEPAFactory) -> None:
    with pytest.raises(ValueError, match=r"set data\.transform to MultiCrop"):
        tiny_lejepa().losses(MaskedBatch(torch.zeros(2, 3, 32, 32), ()))


@pytest.mark.parametrize("options", [{"sigreg": SIGReg(weight=1.0)}, {"drop_tokens": 1.0}, {"drop_tokens": -0.1}])
def test_a_share_of_everything_is_refused(tiny_lejepa: LeJEPAFactory, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="are shares: use 0 to below 1"):
        tiny_lejepa(**options)


# ---------------------------------------------------------------------- checkpoints

CONFIG: dict[str, Any] = {
    "class_path": "jepa_lightning.LeJEPA",
    "init_args": {
        "encoder": {
            "class_path": "jepa_lightning.VisionTransformer",
            "init_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "projector": {"class_path": "jepa_lightning.models.Projector", "init_args": {"hidden_dim": 8, "out_dim": 4}},
        "momentum": None,
        "sigreg": {"num_slices": 8, "weight": 0.1},
        "lr": {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 1e-3}},
        "weight_decay": {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.0}},
    },
}


@pytest.mark.parametrize("branch", ["target", "context"])
def test_whichever_branch_is_asked_of_a_checkpoint_it_is_the_one_encoder(branch: Any, tmp_path: Path) -> None:
    built = build(CONFIG)
    content = {"state_dict": built.state_dict(), CONFIG_KEY: yaml.safe_dump({"model": CONFIG})}
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    module = jl.load(tmp_path / "last.ckpt")
    assert isinstance(module, jl.LeJEPA)
    assert module.sigreg.weight == 0.1
    inputs = torch.randn(2, 3, 32, 32)
    tokens = module.encode(inputs)
    assert torch.equal(jl.load_encoder(tmp_path / "last.ckpt", branch)(inputs), tokens)
    assert torch.equal(module.frozen_encoder()(inputs), tokens)
