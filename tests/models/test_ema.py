from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from jepa_lightning.models import VisionTransformer, ema_update, frozen_copy

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
