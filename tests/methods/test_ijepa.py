from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

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
