from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from jepa_lightning.models import BatchNorm, Projector, VisionTransformer

EncoderFactory = Callable[..., VisionTransformer]


def test_it_is_the_mlp_of_its_sizes(tiny_encoder: EncoderFactory) -> None:
    layers = Projector(tiny_encoder(), hidden_dim=24, out_dim=6).layers
    assert [type(layer) for layer in layers] == [nn.Linear, BatchNorm, nn.ReLU] * 2 + [nn.Linear]
    assert [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)] == [
        (32, 24), (24, 24), (24, 6),
    ]  # fmt: skip


def test_without_hidden_layers_it_is_linear(tiny_encoder: EncoderFactory) -> None:
    projector = Projector(tiny_encoder(), hidden_layers=0, out_dim=6)
    x, y = torch.randn(2, 5, 32).unbind(0)
    torch.testing.assert_close(projector(x + y) + projector(torch.zeros_like(x)), projector(x) + projector(y))


def test_all_sets_together_are_the_batch_that_is_normalised(tiny_encoder: EncoderFactory) -> None:
    projector = Projector(tiny_encoder(), hidden_dim=8, out_dim=3)
    x = torch.randn(4, 5, 32)
    together = projector(x)
    assert together.shape == (4, 5, 3)
    torch.testing.assert_close(together.flatten(0, 1), projector(x.flatten(0, 1)))
    assert not torch.allclose(together[0], projector(x[0]), atol=1e-3)


def test_in_eval_mode_samples_do_not_see_each_other(tiny_encoder: EncoderFactory) -> None:
    projector = Projector(tiny_encoder(), hidden_dim=8, out_dim=3)
    for _ in range(3):
        projector(torch.randn(16, 32))
    projector.eval()
    x = torch.randn(6, 32)
    torch.testing.assert_close(projector(x)[:2], projector(x[:2]))


def test_in_one_process_the_norm_is_that_of_pytorch() -> None:
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        x = 3 * torch.randn(7, 5) + 2
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize("scale", [1.0, 1e-2])
def test_the_statistics_of_all_processes_are_those_of_pytorch_where_one_process_has_everything(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    monkeypatch.setattr("jepa_lightning.models.projector.world_size", lambda: 2)  # the sums still have one part
    for _ in range(3):
        x = (scale * torch.randn(7, 5) + 2).requires_grad_()
        same = x.detach().clone().requires_grad_()
        torch.testing.assert_close(ours(x), theirs(same), rtol=1e-4, atol=1e-4)
        weight = torch.randn(7, 5)
        (a,) = torch.autograd.grad((weight * ours(x)).sum(), x)
        (b,) = torch.autograd.grad((weight * theirs(same)).sum(), same)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
