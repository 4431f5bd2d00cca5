from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from jepa_lightning.losses import VarianceCovariance
from jepa_lightning.masking import MaskedBatch, MultiBlock3D, TokenMasks
from jepa_lightning.methods import VJEPA
from jepa_lightning.models import Predictor, RoPE, SinCos3D, TargetNoise, VisionTransformer
from jepa_lightning.schedules import Constant, Linear, WarmupCosine

EncoderFactory = Callable[..., VisionTransformer]
VJEPAFactory = Callable[..., VJEPA]
BatchFactory = Callable[..., MaskedBatch]
TrainerFactory = Callable[..., Trainer]

POSITIONS = [SinCos3D(), RoPE(layout="interleaved"), RoPE(layout="tiled")]


def loader(batches: list[MaskedBatch]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def clips(batch_size: int = 3, size: tuple[int, int, int] = (4, 32, 32)) -> MaskedBatch:
    """Two families: a few scattered targets with a long context, many with a short one."""
    tokens, masks = (size[0] // 2) * (size[1] // 8) * (size[2] // 8), []
    for shown, asked in ((tokens // 2, tokens // 4), (tokens // 4, tokens // 2)):
        order = torch.stack([torch.randperm(tokens) for _ in range(batch_size)])
        masks.append(TokenMasks(order[:, :shown], order[:, None, shown : shown + asked]))
    return MaskedBatch(torch.randn(batch_size, 3, *size), tuple(masks))


@pytest.fixture
def tiny_vjepa(tiny_encoder: EncoderFactory) -> VJEPAFactory:
    def build(positions: Any = None, predictor: dict[str, Any] | None = None, **overrides: Any) -> VJEPA:
        encoder = tiny_encoder(num_frames=4, tubelet_size=2, positions=positions or RoPE())
        sizes = {"embed_dim": 24, "depth": 1, "num_heads": 3, "init_std": None, "num_mask_tokens": 2}
        settings = {
            "predictor": partial(Predictor, **{**sizes, "mask_token_std": 0.5, **(predictor or {})}),
            "lr": Constant(1e-3),
            "weight_decay": Constant(0.05),
            "momentum": Constant(0.9),
        }
        module = VJEPA(encoder, **{**settings, **overrides})
        for parameter in module.encoder.parameters():  # so that encoder and target encoder differ
            parameter.data.add_(0.02 * torch.randn_like(parameter))
        return module

    return build


# ---------------------------------------------------------------------- the loss


def naive_loss(module: VJEPA, batch: MaskedBatch, power: float, tokens: tuple[int, ...]) -> Tensor:
    families = []
    for token, masks in zip(tokens, batch.masks, strict=True):
        errors = []
        for b in range(len(batch.inputs)):
            clip, context = batch.inputs[b : b + 1], masks.context[b : b + 1]
            features = module.target_encoder(clip).detach()[0]
            centred = features - features.mean(dim=1, keepdim=True)
            features = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
            shown = module.encoder(clip, context)
            grid = module.encoder.grid_of(clip)
            for block in masks.targets[b]:
                predicted = module.predictor(shown, context, block[None, None], token, grid)[0, 0]
                for place, prediction in zip(block.tolist(), predicted, strict=True):
                    errors.append((prediction - features[place]).abs() ** power / power)
        families.append(torch.stack(errors).mean())
    return torch.stack(families).mean()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("loss_exp", [1.0, 2.0])
def test_the_loss_equals_a_loop_over_families_samples_and_tokens_also_in_gradient(
    tiny_vjepa: VJEPAFactory, positions: Any, loss_exp: float
) -> None:
    module, batch = tiny_vjepa(positions, loss_exp=loss_exp), clips()
    parameters = [p for p in module.parameters() if p.requires_grad]
    fast, slow = module.losses(batch)["loss"], naive_loss(module, batch, loss_exp, (0, 1))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
    for a, b in zip(torch.autograd.grad(fast, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_two_mask_families_is_their_mean(tiny_vjepa: VJEPAFactory) -> None:
    module, batch = tiny_vjepa(share_mask_token=True), clips()
    alone = [module.losses(MaskedBatch(batch.inputs, (masks,)))["loss"] for masks in batch.masks]
    assert alone[0].item() != pytest.approx(alone[1].item(), abs=1e-5)
    torch.testing.assert_close(module.losses(batch)["loss"], torch.stack(alone).mean(), rtol=0, atol=1e-6)


def test_the_loss_is_an_absolute_error_unless_said_otherwise(tiny_vjepa: VJEPAFactory) -> None:
    module, batch = tiny_vjepa(), clips()
    assert module.loss_exp == 1.0
    torch.testing.assert_close(module.losses(batch)["loss"], naive_loss(module, batch, 1.0, (0, 1)), rtol=0, atol=1e-6)
    assert (module.losses(batch)["loss"] - naive_loss(module, batch, 2.0, (0, 1))).abs() > 1e-2


def test_families_have_their_own_mask_token_unless_they_share_the_first(tiny_vjepa: VJEPAFactory) -> None:
    module, batch = tiny_vjepa(), clips()
    own = module.losses(batch)["loss"]
    module.share_mask_token = True
    shared = module.losses(batch)["loss"]
    torch.testing.assert_close(own, naive_loss(module, batch, 1.0, (0, 1)), rtol=0, atol=1e-6)
    torch.testing.assert_close(shared, naive_loss(module, batch, 1.0, (0, 0)), rtol=0, atol=1e-6)
    assert (own - shared).abs() > 1e-4


@pytest.mark.parametrize("positions", POSITIONS)
def test_targets_get_no_gradient(tiny_vjepa: VJEPAFactory, positions: Any) -> None:
    module = tiny_vjepa(positions)
    assert not any(p.requires_grad for p in module.target_encoder.parameters())
    module.target_encoder.requires_grad_(True)  # not even if they could
    module.losses(clips())["loss"].backward()
    assert all(p.grad is None for p in module.target_encoder.parameters())
    assert all(p.grad is not None for p in (*module.encoder.parameters(), *module.predictor.parameters()))


def test_everything_else_that_is_logged_carries_no_gradient(tiny_vjepa: VJEPAFactory) -> None:
    losses = tiny_vjepa().losses(clips())
    assert losses.pop("loss").requires_grad
    assert {"variance", "explained_variance", "target_std"} <= set(losses)
    assert not any(value.requires_grad for value in losses.values())
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())


def test_the_variance_term_is_a_hinge_on_the_spread_over_tokens_averaged_over_families(
    tiny_vjepa: VJEPAFactory,
) -> None:
    module, batch, spread = tiny_vjepa(), clips(), torch.zeros(3, 32)
    for family, masks in enumerate(batch.masks):
        with torch.no_grad():
            predicted = module.predictor(module.encoder(batch.inputs, masks.context), *masks, family)[:, 0]
        for b in range(3):
            for channel in range(32):
                values = predicted[b, :, channel].tolist()
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                spread[b, channel] += (variance + 1e-4) ** 0.5 / 2
    expected = sum(max(0.0, 1.0 - value) for value in spread.flatten().tolist()) / 96
    assert module.losses(batch)["variance"].item() == pytest.approx(expected, abs=1e-5)


def test_with_noised_targets_the_predictor_is_given_the_normalised_targets(tiny_vjepa: VJEPAFactory) -> None:
    module, batch = tiny_vjepa(predictor={"target_noise": TargetNoise()}), clips()
    given: list[Tensor] = []
    module.predictor.register_forward_pre_hook(lambda _, arguments: given.append(arguments[5]))
    module.losses(batch)["loss"].backward()
    assert [tuple(targets.shape) for targets in given] == [(3, 1, 8, 32), (3, 1, 16, 32)]
    for targets in given:
        assert not targets.requires_grad
        torch.testing.assert_close(targets.mean(dim=-1), torch.zeros(targets.shape[:-1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(targets.std(dim=-1), torch.ones(targets.shape[:-1]), rtol=0, atol=0.05)
    assert all(p.grad is not None for p in module.predictor.parameters())


# ---------------------------------------------------------------------- inputs


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("size", [(2, 32, 32), (8, 16, 16), (4, 24, 40)])
def test_clips_of_other_sizes_and_lengths_train(
    tiny_vjepa: VJEPAFactory, positions: Any, size: tuple[int, int, int]
) -> None:
    module, batch = tiny_vjepa(positions), clips(2, size)
    loss = module.losses(batch)["loss"]
    torch.testing.assert_close(loss, naive_loss(module, batch, 1.0, (0, 1)), rtol=0, atol=1e-6)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.encoder.parameters())
    assert module.encode(batch.inputs).shape == (2, (size[0] // 2) * (size[1] // 8) * (size[2] // 8), 32)


@pytest.mark.parametrize("positions", POSITIONS)
def test_images_with_one_family_of_four_blocks_train_too(
    tiny_vjepa: VJEPAFactory, tiny_batch: BatchFactory, positions: Any
) -> None:
    module, images = tiny_vjepa(positions), tiny_batch(num_targets=4)
    assert images.inputs.ndim == 4
    assert images.masks[0].targets.shape[1] == 4
    repeated = images._replace(inputs=images.inputs.unsqueeze(2).repeat(1, 1, 2, 1, 1))
    loss = module.losses(images)["loss"]
    torch.testing.assert_close(loss, naive_loss(module, images, 1.0, (0,)), rtol=0, atol=1e-6)
    torch.testing.assert_close(loss, module.losses(repeated)["loss"], rtol=0, atol=1e-6)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.encoder.parameters())


def test_labels_and_index_play_no_part(tiny_vjepa: VJEPAFactory) -> None:
    module, batch = tiny_vjepa(), clips()
    labelled = batch._replace(labels=torch.tensor([2, 0, 1]), index=torch.tensor([9, 8, 7]))
    assert torch.equal(module.losses(labelled)["loss"], module.losses(batch)["loss"])


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_one_batch_is_overfitted(tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory, positions: Any) -> None:
    module, batch = tiny_vjepa(positions, lr=Constant(3e-3), momentum=Constant(0.99)), clips(2)
    before = module.losses(batch)
    quiet_trainer(max_epochs=1).fit(module, loader([batch] * 150))
    after = module.losses(batch)
    assert after["loss"].item() < 0.4 * before["loss"].item()
    assert after["explained_variance"].item() > 0.3 > before["explained_variance"].item()
    assert after["target_std"].item() > 0.1  # and not by collapsing


def test_after_setup_only_the_first_mask_token_is_trained_where_it_is_shared(tiny_vjepa: VJEPAFactory) -> None:
    module = tiny_vjepa(predictor={"num_mask_tokens": 10}, share_mask_token=True)
    module.setup("validate")
    assert all(token.requires_grad for token in module.predictor.mask_tokens)
    module.setup("fit")
    assert [token.requires_grad for token in module.predictor.mask_tokens] == [True] + [False] * 9
    grouped = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert [id(token) in grouped for token in module.predictor.mask_tokens] == [True] + [False] * 9
    module.losses(clips())["loss"].backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)  # as DDP demands


def test_without_sharing_every_mask_token_is_trained(tiny_vjepa: VJEPAFactory) -> None:
    module = tiny_vjepa()
    module.setup("fit")
    module.losses(clips())["loss"].backward()
    assert all(token.requires_grad and token.grad.any() for token in module.predictor.mask_tokens)


def test_sharing_also_works_with_the_single_mask_token_of_images(tiny_vjepa: VJEPAFactory) -> None:
    module = tiny_vjepa(predictor={"num_mask_tokens": None}, share_mask_token=True)
    module.setup("fit")
    assert module.predictor.mask_token.requires_grad
    assert torch.isfinite(module.losses(clips())["loss"])


@pytest.fixture
def alone() -> Iterator[None]:
    """No test after this one is to find the process group that Lightning leaves behind."""
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_mask_tokens_that_no_family_uses_are_refused_where_ddp_would_wait_for_them(
    tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory
) -> None:
    many = {"num_mask_tokens": 5}
    with pytest.raises(ValueError, match=r"5 mask tokens, the batch 2 families .*: set --model.predictor.num_mask_tok"):
        quiet_trainer(max_steps=2, strategy="ddp").fit(tiny_vjepa(predictor=many), loader([clips(2)] * 2))
    for strategy, share in (("ddp", True), ("ddp_find_unused_parameters_true", False), ("auto", False)):
        module = tiny_vjepa(predictor=many, share_mask_token=share)
        trainer = quiet_trainer(max_steps=2, strategy=strategy)
        trainer.fit(module, loader([clips(2)] * 2))
        assert trainer.global_step == 2


@pytest.mark.parametrize(("share", "moved"), [(True, [True, False]), (False, [True, True])])
def test_training_moves_the_mask_tokens_that_are_used_and_no_others(
    tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory, share: bool, moved: list[bool]
) -> None:
    module = tiny_vjepa(share_mask_token=share)
    before = [token.detach().clone() for token in module.predictor.mask_tokens]
    quiet_trainer(max_steps=2).fit(module, loader([clips(2)] * 2))
    after = module.predictor.mask_tokens
    assert [not torch.equal(a, b) for a, b in zip(after, before, strict=True)] == moved


class Norms(Callback):
    """Gradient norm of each network, before and after clipping, by epoch."""

    def __init__(self, order: float = 2.0) -> None:
        self.order = order
        self.before: list[tuple[float, float]] = []
        self.after: list[tuple[float, float]] = []

    def norms(self, module: LightningModule) -> tuple[float, float]:
        gradients = (
            torch.cat([p.grad.flatten() for p in module.get_submodule(network).parameters()])
            for network in ("encoder", "predictor")
        )
        first, second = (float(gradient.norm(self.order)) for gradient in gradients)
        return first, second

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.before.append(self.norms(pl_module))  # Lightning clips after this hook

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        self.after.append(self.norms(pl_module))


@pytest.mark.parametrize(
    ("lr", "first"), [(WarmupCosine(1e-4, 1e-3, 1e-5, warmup_epochs=1), 2), (Linear(1e-3, 1e-4), 1)]
)
def test_each_network_is_clipped_by_itself_and_only_after_the_warm_up(
    tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory, lr: Any, first: int
) -> None:
    norms, limit = Norms(), 1e-3
    trainer = quiet_trainer(max_epochs=4, gradient_clip_val=limit, callbacks=[norms])
    trainer.fit(tiny_vjepa(lr=lr), loader([clips(2)]))
    assert len(norms.before) == len(norms.after) == 4
    assert all(norm > 10 * limit for pair in norms.before for norm in pair)
    assert norms.after[:first] == norms.before[:first]
    for pair in norms.after[first:]:
        assert pair == pytest.approx((limit, limit), rel=1e-3)


def test_gradients_below_the_limit_are_not_clipped(tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory) -> None:
    norms = Norms()
    quiet_trainer(max_epochs=2, gradient_clip_val=1e3, callbacks=[norms]).fit(tiny_vjepa(), loader([clips(2)]))
    assert norms.after == norms.before


def test_without_a_limit_nothing_is_clipped(tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory) -> None:
    norms = Norms()
    quiet_trainer(max_epochs=2, callbacks=[norms]).fit(tiny_vjepa(), loader([clips(2)]))
    assert norms.after == norms.before


def test_clipping_by_value_is_clipping_by_value(tiny_vjepa: VJEPAFactory, quiet_trainer: TrainerFactory) -> None:
    norms, limit = Norms(order=float("inf")), 1e-4
    trainer = quiet_trainer(max_epochs=2, gradient_clip_val=limit, gradient_clip_algorithm="value", callbacks=[norms])
    trainer.fit(tiny_vjepa(), loader([clips(2)]))
    assert norms.after[0] == norms.before[0]
    assert min(norms.before[1]) > 10 * limit
    assert norms.after[1] == pytest.approx((limit, limit))


# ---------------------------------------------------------------------- terms against collapse, and without EMA


def test_a_regularizer_sees_the_mean_context_features_of_each_family_alone(tiny_vjepa: VJEPAFactory) -> None:
    term, batch = VarianceCovariance(0.5, 0.25), clips(batch_size=5)
    module = tiny_vjepa(regularizer=term)
    losses = module.losses(batch)
    prediction = naive_loss(module, batch, 1.0, (0, 1))
    values = [term(module.encoder(batch.inputs, masks.context).mean(dim=1)) for masks in batch.masks]
    torch.testing.assert_close(losses["prediction"], prediction.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss"], prediction + sum(values) / 2, rtol=1e-4, atol=1e-5)
    assert {"variance_hinge", "covariance", "variance"} <= set(losses)  # the last is V-JEPA's own, of the predictions


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_without_ema_the_encoder_predicts_its_own_features(tiny_vjepa: VJEPAFactory, stop_gradient: bool) -> None:
    module, batch = tiny_vjepa(momentum=None, stop_gradient=stop_gradient), clips()
    assert module.target_encoder is module.encoder
    torch.testing.assert_close(module.losses(batch)["loss"], naive_loss(module, batch, 1.0, (0, 1)), rtol=0, atol=1e-5)
    changed = torch.zeros_like(batch.inputs, requires_grad=True)
    nothing = batch._replace(masks=tuple(TokenMasks(m.context[:, :1], m.targets) for m in batch.masks))
    loss = module.losses(nothing._replace(inputs=batch.inputs + changed))["loss"]
    (gradient,) = torch.autograd.grad(loss, changed)
    reached = (gradient.abs() > 0).float().mean().item()  # targets reach every pixel, one context token a tubelet
    assert (reached > 0.9) != stop_gradient


# ---------------------------------------------------------------------- samples with different numbers of tokens


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_a_batch_of_clips_with_different_numbers_of_tokens_is_the_mean_of_each_alone_also_in_gradient(
    tiny_vjepa: VJEPAFactory, positions: Any
) -> None:
    module, sampler = tiny_vjepa(positions, loss_exp=2.0), MultiBlock3D((2, 4, 4), per_sample=True)
    batch = MaskedBatch(torch.randn(5, 3, 4, 32, 32), sampler.sample(5))
    assert any(bool((part < 0).any()) for family in batch.masks for part in family)
    parts = []
    for b in range(5):
        pairs = [[index[b][index[b] >= 0] for index in family] for family in batch.masks]
        masks = tuple(TokenMasks(context[None], targets[None, None]) for context, targets in pairs)
        parts.append(module.losses(MaskedBatch(batch.inputs[b : b + 1], masks)))
    together = module.losses(batch)
    for name in ("loss", "variance"):
        expected = torch.stack([part[name] for part in parts]).mean()
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-6)
    parameters = [p for p in module.parameters() if p.requires_grad]
    mean = torch.stack([part["loss"] for part in parts]).mean()
    gradients = [torch.autograd.grad(loss, parameters) for loss in (together["loss"], mean)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
