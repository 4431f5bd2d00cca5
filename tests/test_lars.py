from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.lars import LARS


def naive(
    w: Tensor, gradients: list[Tensor], lr: float, momentum: float, decay: float, trust: float
) -> list[list[float]]:
    """Algorithm 1 of the paper, in plain numbers."""
    weights, velocity, path = w.double().flatten().tolist(), [0.0] * w.numel(), []
    for gradient in gradients:
        g = gradient.double().flatten().tolist()
        length, slope = sum(x * x for x in weights) ** 0.5, sum(x * x for x in g) ** 0.5
        rate = lr * trust * length / (slope + decay * length) if w.ndim > 1 and length and slope else lr
        velocity = [momentum * v + rate * (gi + decay * wi) for v, gi, wi in zip(velocity, g, weights, strict=True)]
        weights = [wi - v for wi, v in zip(weights, velocity, strict=True)]
        path.append(weights)
    return path


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 2, 3)])
@pytest.mark.parametrize(("momentum", "decay", "trust"), [(0.0, 0.0, 1e-3), (0.9, 0.1, 1e-2), (0.9, 0.0, 1.0)])
def test_steps_equal_the_algorithm_of_the_paper(
    shape: tuple[int, ...], momentum: float, decay: float, trust: float
) -> None:
    w, gradients = nn.Parameter(torch.randn(shape)), [torch.randn(shape) for _ in range(4)]
    path = naive(w.detach(), gradients, 0.5, momentum, decay, trust)
    optimizer = LARS([w], lr=0.5, momentum=momentum, weight_decay=decay, trust_coefficient=trust)
    for gradient, expected in zip(gradients, path, strict=True):
        w.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(w.detach().flatten().double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
        assert torch.equal(w.grad, gradient)


def test_a_step_is_as_long_as_the_trust_coefficient_says_whatever_the_gradient() -> None:
    w = nn.Parameter(torch.randn(6, 7))
    before = w.detach().clone()
    w.grad = 1e5 * torch.randn(6, 7)
    LARS([w], lr=1.0, momentum=0.0, trust_coefficient=0.01).step()
    torch.testing.assert_close((w.detach() - before).norm(), 0.01 * before.norm())


def test_a_matrix_of_zeros_moves_as_under_sgd() -> None:
    w = nn.Parameter(torch.zeros(3, 3))
    w.grad = torch.ones(3, 3)
    LARS([w], lr=0.25).step()
    assert torch.equal(w.detach(), torch.full((3, 3), -0.25))


def test_tensors_do_not_disturb_each_other() -> None:
    together = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    alone = copy.deepcopy(together)
    groups = [{"params": [w], "lr": 0.1 * (i + 1), "weight_decay": 0.1 * i} for i, w in enumerate(together)]
    optimizers = [LARS(groups), *(LARS([{**g, "params": [w]}]) for g, w in zip(groups, alone, strict=True))]
    for _ in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(4, 4)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_what_has_no_gradient_stays_and_a_closure_gives_the_loss() -> None:
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([a, b])

    def closure() -> Tensor:
        loss = (a * 3).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert torch.equal(b.detach(), torch.ones(2, 2))
    assert (a < 1).all()


def test_a_resumed_optimizer_takes_the_same_steps() -> None:
    first = nn.Parameter(torch.randn(3, 3))
    optimizer = LARS([first], lr=0.3)
    first.grad = torch.randn(3, 3)
    optimizer.step()
    second = nn.Parameter(first.detach().clone())
    resumed = LARS([second], lr=9.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradient = torch.randn(3, 3)
    for w, of_w in ((first, optimizer), (second, resumed)):
        w.grad = gradient.clone()
        of_w.step()
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust_coefficient"])
def test_negative_numbers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} of LARS must .*, got -1.0"):
        LARS([nn.Parameter(torch.ones(1))], **{name: -1.0})
