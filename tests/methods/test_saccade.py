from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from jepa_lightning.data import Folder, ImageDataModule
from jepa_lightning.losses import SIGReg, VarianceCovariance
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import SaccadeJEPA
from jepa_lightning.methods.base import Observed
from jepa_lightning.models import (
    Affine,
    AffineMLP,
    AffineViews,
    ConvNeXt,
    TorchvisionBackbone,
    VisionTransformer,
    affine_code,
)
from jepa_lightning.schedules import Constant

TrainerFactory = Callable[..., Trainer]
SCHEDULES = (Constant(1e-3), Constant(0.05), Constant(0.9))


def small() -> ConvNeXt:
    return ConvNeXt(img_size=24, widths=(8, 16), depths=(1, 1), init_std=None, layer_scale=None, num_heads=2)


def built(encoder: Any = None, predictor: Any = AffineMLP, schedules: Any = SCHEDULES, **options: Any) -> SaccadeJEPA:
    settings = {"views": AffineViews(seed=0), **options}
    module = SaccadeJEPA(encoder or small(), predictor, *schedules, **settings)
    for parameter in module.encoder.parameters():  # so that encoder and target encoder differ
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return module


def images(count: int = 6, side: int = 32) -> MaskedBatch:
    return MaskedBatch(torch.randn(count, 3, side, side), (), index=torch.arange(count) + 10)


# ---------------------------------------------------------------------- the loss


def test_the_loss_equals_the_formula_written_out_sample_by_sample() -> None:
    module, batch = built(), images()
    first, second, movement = module.views(batch.inputs, (24, 24), batch.index, 0)
    back = movement.inverse()
    huber, cycle, contexts = [], [], []
    for b in range(6):
        there = affine_code(type(movement)(movement.angle[b : b + 1], movement.shift[b : b + 1]))
        again = affine_code(type(movement)(back.angle[b : b + 1], back.shift[b : b + 1]))
        c = module.encoder(first[b : b + 1]).mean(dim=1)
        y = module.target_encoder(second[b : b + 1]).detach().mean(dim=1)
        p = module.predictor(c, there)
        error = (p - y).abs()
        huber.append(torch.where(error < 1, 0.5 * error**2, error - 0.5).mean())
        cycle.append((module.predictor(p, again) - c).square().mean())
        contexts.append(c[0])
    c = torch.stack(contexts)
    variance = F.relu(4.0 - (c.var(dim=0) + 1e-4).sqrt()).mean()
    covariance = sum(torch.cov(c.T)[i, j] ** 2 for i in range(16) for j in range(16) if i != j) / 16
    expected = torch.stack(huber).mean() + 0.25 * torch.stack(cycle).mean() + 25.0 * variance + covariance
    losses = module.losses(batch)
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["cycle"], torch.stack(cycle).mean().detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["covariance"], covariance.detach(), rtol=1e-4, atol=1e-7)
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(loss, parameters) for loss in (losses["loss"], expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def decoded(code: Tensor) -> Affine:
    """The movement of a code: of each number, the sine and the cosine of its lowest frequency say what it is."""
    angle, right, down = (torch.atan2(code[:, i], code[:, i + n]) / math.pi for i, n in ((0, 10), (20, 4), (28, 4)))
    return Affine(angle, torch.stack([right, down], dim=1))


class Mover(nn.Module):
    """Takes the mean token for points of the plane, and moves them as the code says: never wrong, if they are."""

    def __init__(self, encoder: Any, faulty: bool = False) -> None:
        super().__init__()
        self.faulty = faulty
        self.calls = 0

    def forward(self, features: Tensor, code: Tensor) -> Tensor:
        self.calls += 1
        if self.faulty and self.calls % 2 == 0:  # what the original tells it on the way back
            code = -affine_code(decoded(code).inverse())
        return decoded(code)(features.unflatten(1, (-1, 2))).flatten(1)


def test_the_cycle_is_zero_for_a_predictor_that_is_never_wrong() -> None:
    losses = built(predictor=Mover).losses(images())
    assert losses["cycle"].item() < 1e-11
    assert losses["prediction"].item() > 1e-3  # though the encoder does not make points
    assert built(predictor=partial(Mover, faulty=True)).losses(images())["cycle"].item() > 1e-3


def test_the_weights_weigh_and_a_weight_of_zero_leaves_a_term_out() -> None:
    batch = images()
    off = VarianceCovariance(variance_weight=0.0, covariance_weight=0.0)
    parts: list[dict[str, Tensor]] = []
    for cycle_weight, regularizer in [(0.0, off), (3.0, off), (0.0, VarianceCovariance(2.0, 5.0, std=0.5))]:
        torch.manual_seed(0)
        parts.append(built(cycle_weight=cycle_weight, regularizer=regularizer).losses(batch))
    plain, cycle, spread = parts
    torch.testing.assert_close(plain["loss"], plain["prediction"], rtol=0, atol=1e-7)
    torch.testing.assert_close(cycle["loss"], plain["loss"] + 3.0 * plain["cycle"], rtol=1e-6, atol=0)
    terms = 2.0 * spread["variance_hinge"] + 5.0 * spread["covariance"]
    torch.testing.assert_close(spread["loss"], plain["loss"] + terms, rtol=1e-6, atol=0)


def test_the_defaults_are_the_weights_of_the_original() -> None:
    module = SaccadeJEPA(small(), AffineMLP, *SCHEDULES)
    terms = module.regularizer.terms(torch.zeros(4, 16))
    assert module.cycle_weight == 0.25
    assert {name: weight for name, (weight, _) in terms.items()} == {"variance_hinge": 25.0, "covariance": 1.0}
    assert terms["variance_hinge"][1].item() == pytest.approx(4.0, abs=0.02)
    assert module.views == AffineViews(max_rotation=2.0, max_translation=0.9)


def test_the_gradient_does_not_reach_the_target_and_reaches_everything_else() -> None:
    module = built()
    module.losses(images())["loss"].backward()
    assert all(p.grad is None for p in module.target_encoder.parameters())
    for network in (module.encoder, module.predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_everything_else_that_is_logged_carries_no_gradient() -> None:
    losses = built().losses(images())
    assert losses.pop("loss").requires_grad
    assert {"prediction", "cycle", "variance_hinge", "covariance", "context_std", "target_std"} <= set(losses)
    assert not any(value.requires_grad for value in losses.values())
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())


def test_views_change_with_the_step_in_training_and_never_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = built(), images()
    for training in (True, False):
        module.train(training)
        first = module.losses(batch)["prediction"]
        with monkeypatch.context() as patch:
            patch.setattr(SaccadeJEPA, "global_step", 7)
            assert torch.equal(module.losses(batch)["prediction"], first) != training
    order = torch.randperm(6)
    shuffled = module.losses(MaskedBatch(batch.inputs[order], (), index=batch.index[order]))
    torch.testing.assert_close(shuffled["loss"], module.losses(batch)["loss"], rtol=1e-5, atol=0)


def test_a_batch_without_an_index_works() -> None:
    batch = images()
    counted = batch._replace(index=torch.arange(6))
    module = built()
    assert torch.equal(module.losses(batch._replace(index=None))["loss"], module.losses(counted)["loss"])


def test_images_as_small_as_the_views_are_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"leave no room to move a view of 24x24: set --data.img_size"):
        built().losses(images(side=24))


# ---------------------------------------------------------------------- other parts


@pytest.mark.parametrize("encoder", [small, lambda: VisionTransformer(24, 8, 3, 32, 1, 4)])
def test_observers_see_one_token_that_is_both_context_and_target(encoder: Any) -> None:
    module, seen = built(encoder()), []
    module.observers.append(seen.append)
    module.losses(images())["loss"].backward()
    assert all(p.grad is not None for p in module.predictor.parameters())
    (step,) = seen
    assert isinstance(step, Observed)
    assert step.grid == (1, 1, 1)
    assert step.context.shape == step.features.shape == (6, 1, module.embed_dim)
    assert step.predicted.shape == (6, 1, 1, module.embed_dim)
    assert torch.equal(step.masks.context, torch.zeros(6, 1, dtype=torch.long))
    assert torch.equal(step.masks.targets, torch.zeros(6, 1, 1, dtype=torch.long))


def test_without_an_ema_and_with_sigreg_it_trains_too() -> None:
    schedules = (Constant(1e-3), Constant(0.0), None)
    module = built(schedules=schedules, regularizer=SIGReg(num_slices=8))
    losses = module.losses(images())
    assert losses["sigreg"].item() > 0
    losses["loss"].backward()
    assert all(p.grad is not None for p in module.encoder.parameters())


def test_batch_norms_of_the_target_of_a_resnet_have_statistics_of_its_own(quiet_trainer: TrainerFactory) -> None:
    module = built(TorchvisionBackbone("resnet18", 32, out_dim=8))
    batches = [images(8, side=48) for _ in range(3)]
    quiet_trainer(max_epochs=1, num_sanity_val_steps=1).fit(module, loader(batches), loader(batches[:1]))
    where = "backbone.layer4.1.bn2"
    norm, other = (network.get_submodule(where) for network in (module.target_encoder, module.encoder))
    assert norm.num_batches_tracked == other.num_batches_tracked == 3  # not in validation
    assert not torch.equal(norm.running_mean, other.running_mean)
    assert (norm.running_mean != 0).all()
    before = norm.running_mean.clone()
    module.encode(batches[0].inputs)
    assert torch.equal(norm.running_mean, before)


# ---------------------------------------------------------------------- training


def loader(batches: list[MaskedBatch]) -> DataLoader[Any]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_spreads_the_features(quiet_trainer: TrainerFactory) -> None:
    module = built(regularizer=VarianceCovariance(std=1.0), schedules=(Constant(3e-3), *SCHEDULES[1:]))
    batch = images(16)
    before = module.eval().losses(batch)
    module.train()
    quiet_trainer(max_epochs=1).fit(module, loader([batch] * 60))
    after = module.eval().losses(batch)
    assert after["loss"].item() < 0.7 * before["loss"].item()
    assert after["variance_hinge"].item() < 0.5 * before["variance_hinge"].item()


class Save(Callback):
    """Saves a checkpoint in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    quiet_trainer: TrainerFactory, image_folder: Path, tmp_path: Path
) -> None:
    def fit(**options: Any) -> SaccadeJEPA:
        torch.manual_seed(1)
        module = built()
        data = ImageDataModule(Folder(str(image_folder)), masks=None, batch_size=8, num_workers=0, img_size=32)
        trainer = quiet_trainer(max_epochs=2, limit_val_batches=0, callbacks=options.pop("callbacks", []))
        torch.manual_seed(options.pop("seed"))  # the global generator must not matter
        trainer.fit(module, datamodule=data, **options)
        assert trainer.global_step == 8
        return module

    path = tmp_path / "middle.ckpt"
    whole = fit(seed=2, callbacks=[Save(5, path)])
    resumed = fit(seed=3, ckpt_path=path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
