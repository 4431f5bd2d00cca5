from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from jepa_lightning.models import VisionTransformer, ema_copy, ema_update, frozen_copy

EncoderFactory = Callable[..., VisionTransformer]


@pytest.fixture
def pair(tiny_encoder: EncoderFactory) -> tuple[VisionTransformer, VisionTransformer]:
    return frozen_copy(tiny_encoder()), tiny_encoder()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_momentum_one_keeps_the_average(pair: tuple[VisionTransformer, VisionTransformer]) -> None:
    average, source = pair
    before = state(average)
    ema_update(average, source, 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.state_dict().items())


def test_momentum_zero_copies_the_source(pair: tuple[VisionTransformer, VisionTransformer]) -> None:
    average, source = pair
    assert not torch.equal(average.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    ema_update(average, source, 0.0)
    for a, b in zip(average.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.996, 0.99999])
def test_it_equals_the_naive_formula_for_each_parameter(
    pair: tuple[VisionTransformer, VisionTransformer], momentum: float
) -> None:
    average, source = pair
    before = {name: p.detach().clone() for name, p in average.named_parameters()}
    ema_update(average, source, momentum)
    for name, parameter in source.named_parameters():
        expected = (momentum * before[name].double() + (1 - momentum) * parameter.double()).float()
        torch.testing.assert_close(average.get_parameter(name), expected, rtol=0, atol=1e-7, check_stride=False)


def test_the_source_is_left_alone_and_nothing_is_recorded_for_autograd(
    pair: tuple[VisionTransformer, VisionTransformer],
) -> None:
    average, source = pair
    before = state(source)
    ema_update(average, source, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
    assert all(p.grad_fn is None and not p.requires_grad for p in average.parameters())


def test_it_works_in_place(pair: tuple[VisionTransformer, VisionTransformer]) -> None:
    average, source = pair
    addresses = [p.data_ptr() for p in average.parameters()]
    ema_update(average, source, 0.5)
    assert [p.data_ptr() for p in average.parameters()] == addresses


def test_a_frozen_copy_is_an_equal_but_separate_frozen_module_in_eval_mode(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    copied = frozen_copy(encoder)
    assert all(torch.equal(tensor, copied.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in encoder.parameters()}
    assert not any(p.requires_grad for p in copied.parameters())
    assert not any(module.training for module in copied.modules())


def test_the_original_of_a_frozen_copy_still_trains(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    frozen_copy(encoder)
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(module.training for module in encoder.modules())


# ---------------------------------------------------------------------- BatchNorm


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


def test_batch_norms_of_an_average_that_is_run_keep_statistics_of_their_own_features() -> None:
    source = normed()
    average = ema_copy(source)
    assert [part.training for part in average] == [False, True, False, False]
    nn.init.constant_(average[0].bias, 5.0)  # the average lags behind: its features are elsewhere
    images = 3.0 * torch.randn(16, 3, 8, 8)
    for _ in range(60):
        source(images)
        average(images)
        ema_update(average, source, 1.0)
    features = average[0](images)
    torch.testing.assert_close(average[1].running_mean, features.mean(dim=(0, 2, 3)), rtol=0, atol=0.02)
    assert (average[1].running_mean - source[1].running_mean).abs().min() > 3.0
    torch.testing.assert_close(average.eval()(images).mean(), average[:3](images).mean(), rtol=0, atol=1e-6)


def test_batch_norms_of_an_average_that_is_never_run_average_those_of_the_source() -> None:
    source = normed()
    average, expected = ema_copy(source), torch.zeros(4)
    for _ in range(5):
        source(torch.randn(16, 3, 8, 8) + 2.0)
        expected = 0.7 * expected + 0.3 * source[1].running_mean
        ema_update(average, source, 0.7)
    torch.testing.assert_close(average[1].running_mean, expected, rtol=0, atol=1e-6)
    assert average[1].running_mean.abs().max() > 0.1
    assert (average[1].running_var != 1.0).all()


def test_without_batch_norm_an_average_starts_as_a_frozen_copy(tiny_encoder: EncoderFactory) -> None:
    average = ema_copy(tiny_encoder())
    assert not any(module.training for module in average.modules())
    assert not any(p.requires_grad for p in average.parameters())
