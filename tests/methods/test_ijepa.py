from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from jepa_lightning.losses import Regularizer, SIGReg, VarianceCovariance
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import VisionTransformer
from jepa_lightning.schedules import Constant

EncoderFactory = Callable[..., VisionTransformer]
IJEPAFactory = Callable[..., IJEPA]
BatchFactory = Callable[..., MaskedBatch]
TrainerFactory = Callable[..., Trainer]


def naive_loss(module: IJEPA, images: Tensor, masks: TokenMasks) -> Tensor:
    losses = []
    for b in range(len(images)):
        tokens = module.target_encoder(images[b : b + 1]).detach()[0]
        centred = tokens - tokens.mean(dim=1, keepdim=True)
        features = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        context = module.encoder(images[b : b + 1], masks.context[b : b + 1])
        for block in masks.targets[b]:
            predicted = module.predictor(context, masks.context[b : b + 1], block[None, None])[0, 0]
            error = (predicted - features[block]).abs()
            losses.append(torch.where(error < 1, 0.5 * error**2, error - 0.5).mean())
    return torch.stack(losses).mean()


@pytest.fixture
def module(tiny_ijepa: IJEPAFactory) -> IJEPA:
    built = tiny_ijepa()
    for parameter in built.encoder.parameters():  # so that encoder and target encoder differ
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return built


def test_the_loss_equals_a_loop_over_samples_and_blocks_also_in_gradient(
    module: IJEPA, tiny_batch: BatchFactory
) -> None:
    batch = tiny_batch(num_targets=3)
    parameters = [p for p in module.parameters() if p.requires_grad]
    fast, slow = module.losses(batch)["loss"], naive_loss(module, batch.inputs, batch.masks[0])
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
    for a, b in zip(torch.autograd.grad(fast, parameters), torch.autograd.grad(slow, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_of_two_mask_families_is_their_mean(module: IJEPA, tiny_batch: BatchFactory) -> None:
    first, second = tiny_batch(), tiny_batch(num_targets=3)
    both = MaskedBatch(first.inputs, (*first.masks, *second.masks))
    alone = [module.losses(MaskedBatch(first.inputs, (masks,)))["loss"] for masks in both.masks]
    assert alone[0].item() != pytest.approx(alone[1].item(), abs=1e-4)
    torch.testing.assert_close(module.losses(both)["loss"], torch.stack(alone).mean(), rtol=0, atol=1e-6)


def test_everything_else_that_is_logged_carries_no_gradient(module: IJEPA, tiny_batch: BatchFactory) -> None:
    losses = module.losses(tiny_batch())
    assert losses.pop("loss").requires_grad
    assert losses
    assert not any(value.requires_grad for value in losses.values())
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())


def test_the_targets_are_normalised_so_their_std_is_about_one(module: IJEPA, tiny_batch: BatchFactory) -> None:
    torch.nn.init.constant_(module.target_encoder.norm.weight, 7.0)
    assert 0.3 < module.losses(tiny_batch())["target_std"].item() < 1.1


def test_a_collapsed_context_encoder_shows_in_what_is_logged(module: IJEPA, tiny_batch: BatchFactory) -> None:
    torch.nn.init.zeros_(module.encoder.norm.weight)
    losses = module.losses(tiny_batch())
    assert losses["context_std"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["target_std"].item() > 0.1


def test_labels_and_index_play_no_part(module: IJEPA, tiny_batch: BatchFactory) -> None:
    batch = tiny_batch()
    labelled = batch._replace(labels=torch.tensor([2, 0, 1]), index=torch.tensor([9, 8, 7]))
    assert torch.equal(module.losses(labelled)["loss"], module.losses(batch)["loss"])


@pytest.mark.parametrize("size", [(48, 48), (24, 48), (40, 24)])
def test_other_input_sizes_train(module: IJEPA, tiny_batch: BatchFactory, size: tuple[int, int]) -> None:
    batch = tiny_batch(size=size)
    assert int(batch.masks[0].targets.max()) < (size[0] // 8) * (size[1] // 8)
    loss = module.losses(batch)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.encoder.parameters())
    assert module.encode(batch.inputs).shape == (3, (size[0] // 8) * (size[1] // 8), 32)


def test_one_batch_is_overfitted(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    module, batch = tiny_ijepa(lr=Constant(3e-3), momentum=Constant(0.99)), tiny_batch()
    before = module.losses(batch)
    loader: Any = DataLoader([batch] * 200, batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=1).fit(module, loader)
    after = module.losses(batch)
    assert after["loss"].item() < 0.1 * before["loss"].item()
    assert before["explained_variance"].item() < 0.1
    assert after["explained_variance"].item() > 0.3  # 0.41 to 0.6, depending on the release of torch
    assert after["target_std"].item() > 0.1  # and not by collapsing


def test_training_changes_encoder_and_predictor_but_positions_of_neither(
    module: IJEPA, tiny_batch: BatchFactory, quiet_trainer: TrainerFactory
) -> None:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    loader: Any = DataLoader([tiny_batch()] * 2, batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(max_epochs=1).fit(module, loader)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.endswith("pos_embed"), name


def test_targets_are_layer_normalised_with_the_epsilon_of_pytorch(module: IJEPA, tiny_batch: BatchFactory) -> None:
    batch = tiny_batch()
    module.target_encoder.norm.weight.data.mul_(1e-3)  # so small that the epsilon shows
    masks = batch.masks[0]
    with torch.no_grad():
        features = F.layer_norm(module.target_encoder(batch.inputs), (32,), eps=1e-5)
        target = torch.stack([features[b][masks.targets[b]] for b in range(3)])
        predicted = module.predictor(module.encoder(batch.inputs, masks.context), *masks)
        expected = F.smooth_l1_loss(predicted, target)
        other_eps = F.layer_norm(module.target_encoder(batch.inputs), (32,), eps=1e-6)
    torch.testing.assert_close(module.losses(batch)["loss"].detach(), expected, rtol=0, atol=1e-6)
    assert (other_eps - features).abs().max() > 1e-2


# ---------------------------------------------------------------------- terms against collapse, and without EMA


def pooled_context(module: IJEPA, batch: MaskedBatch) -> Tensor:
    """The mean of the context tokens of each sample."""
    rows = [
        module.encoder(batch.inputs[b : b + 1], batch.masks[0].context[b : b + 1])[0].mean(dim=0)
        for b in range(len(batch.inputs))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("term", [SIGReg(num_slices=8, weight=0.1), VarianceCovariance(0.5, 0.25)])
@pytest.mark.parametrize("ema", [True, False])
def test_a_regularizer_is_added_on_the_mean_context_features(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory, term: Regularizer, ema: bool
) -> None:
    batch = tiny_batch(batch_size=5)
    module = tiny_ijepa(regularizer=term, **({} if ema else {"momentum": None}))
    prediction = naive_loss(module, batch.inputs, batch.masks[0])
    terms = term.terms(pooled_context(module, batch))
    expected = prediction + sum(weight * value for weight, value in terms.values())
    losses = module.losses(batch)
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["prediction"], prediction.detach(), rtol=1e-5, atol=1e-6)
    for name, (_, value) in terms.items():
        torch.testing.assert_close(losses[name], value.detach(), rtol=1e-4, atol=1e-5)
        assert not losses[name].requires_grad
    parameters = list(module.encoder.parameters())
    for a, b in zip(*[torch.autograd.grad(loss, parameters) for loss in (losses["loss"], expected)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_without_ema_and_stop_gradient_the_gradient_is_that_of_both_branches(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory
) -> None:
    module, batch = tiny_ijepa(momentum=None, stop_gradient=False), tiny_batch()
    parameters = list(module.encoder.parameters())
    both = torch.autograd.grad(module.losses(batch)["loss"], parameters)
    module.stop_gradient = True
    one = torch.autograd.grad(module.losses(batch)["loss"], parameters)
    masks = batch.masks[0]
    features = F.layer_norm(module.encoder(batch.inputs), (32,))
    target = torch.stack([features[b][masks.targets[b]] for b in range(3)])
    with torch.no_grad():
        predicted = module.predictor(module.encoder(batch.inputs, masks.context), *masks)
    other = torch.autograd.grad(F.smooth_l1_loss(predicted, target), parameters, allow_unused=True)
    for together, first, second in zip(both, one, other, strict=True):
        torch.testing.assert_close(together, first + second, rtol=1e-4, atol=1e-6)
    assert max((a - b).abs().max().item() for a, b in zip(both, one, strict=True)) > 1e-3


def test_padding_plays_no_part_in_the_mean_context_features(tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory) -> None:
    context, index = torch.randn(2, 4, 8), torch.tensor([[0, 3, 5, 7], [2, 6, -1, -1]])
    module = tiny_ijepa(regularizer=VarianceCovariance(1.0, 0.0))
    masks = TokenMasks(index, torch.zeros(2, 1, 1, dtype=torch.long))
    rows = torch.stack([context[0].mean(dim=0), context[1, :2].mean(dim=0)])
    losses = module.regularized(torch.zeros(()), [context], [masks])
    torch.testing.assert_close(losses["loss"], VarianceCovariance(1.0, 0.0)(rows))


def test_the_context_does_not_collapse_without_ema_and_stop_gradient_if_there_is_a_regularizer(
    tiny_ijepa: IJEPAFactory, tiny_batch: BatchFactory
) -> None:
    def spread(**options: Any) -> float:
        torch.manual_seed(0)
        module, batch = tiny_ijepa(momentum=None, stop_gradient=False, **options), tiny_batch(batch_size=8)
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            module.losses(batch)["loss"].backward()
            optimizer.step()
        return module.encode(batch.inputs).mean(dim=1).std(dim=0).mean().item()

    assert spread(regularizer=SIGReg(num_slices=32, weight=0.1)) > 3 * spread()


# ---------------------------------------------------------------------- samples with different numbers of tokens


def alone(batch: MaskedBatch) -> list[MaskedBatch]:
    """Each sample as a batch of its own, without padding; targets of a sample are equally long."""
    found = []
    for b in range(len(batch.inputs)):
        masks = []
        for family in batch.masks:
            context, targets = family.context[b], family.targets[b]
            kept = targets[:, targets[0] >= 0]
            assert not (kept < 0).any()
            masks.append(TokenMasks(context[context >= 0].unsqueeze(0), kept.unsqueeze(0)))
        found.append(MaskedBatch(batch.inputs[b : b + 1], tuple(masks)))
    return found


def test_a_batch_of_samples_with_different_numbers_of_tokens_is_the_mean_of_each_alone_also_in_gradient(
    module: IJEPA, tiny_batch: BatchFactory
) -> None:
    batch = tiny_batch(5, (48, 48), per_sample=True, num_targets=3, num_contexts=2, context_scale=(0.5, 1.0))
    assert all(bool((part < 0).any()) for family in batch.masks for part in family)
    parameters = [p for p in module.parameters() if p.requires_grad]
    together = module.losses(batch)["loss"]
    expected = torch.stack([module.losses(sample)["loss"] for sample in alone(batch)]).mean()
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(loss, parameters) for loss in (together, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_two_processes_with_half_of_such_a_batch_each_average_to_the_whole(
    module: IJEPA, tiny_batch: BatchFactory
) -> None:
    batch = tiny_batch(4, (64, 64), per_sample=True, target_scale=(0.1, 0.4))
    halves = [
        MaskedBatch(batch.inputs[part], tuple(TokenMasks(*(index[part] for index in m)) for m in batch.masks))
        for part in (slice(2), slice(2, 4))
    ]
    assert len({int((half.masks[0].targets >= 0).sum()) for half in halves}) == 2  # their lengths differ
    mean = torch.stack([module.losses(half)["loss"] for half in halves]).mean()
    torch.testing.assert_close(module.losses(batch)["loss"], mean, rtol=0, atol=1e-6)


def test_padding_is_in_nothing_that_is_logged(module: IJEPA, tiny_batch: BatchFactory) -> None:
    batch = tiny_batch(4, (48, 48), per_sample=True)
    longer = tuple(TokenMasks(*(F.pad(index, (0, 3), value=-1) for index in masks)) for masks in batch.masks)
    losses, same = module.losses(batch), module.losses(batch._replace(masks=longer))
    assert losses.keys() == same.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, same[name], rtol=1e-5, atol=1e-6)
    tokens = [module.encoder(sample.inputs, sample.masks[0].context)[0] for sample in alone(batch)]
    spread = torch.cat(tokens).std(dim=0, correction=0).mean()
    torch.testing.assert_close(losses["context_std"], spread.detach(), rtol=1e-5, atol=1e-6)
