from __future__ import annotations

import pytest
import torch

from jepa_lightning.masking import MaskedBatch, TokenMasks, gather_tokens


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 5), (3, 1, 2, 2)])
def test_gather_equals_a_loop_over_samples_also_in_gradient(shape: tuple[int, ...]) -> None:
    tokens = torch.randn(3, 9, 4, requires_grad=True)
    index = torch.randint(9, shape)  # some tokens twice, some never
    weights = torch.randn(*shape, 4)
    fast = gather_tokens(tokens, index)
    naive = torch.stack([tokens[b][index[b]] for b in range(3)])
    assert torch.equal(fast, naive)
    (fast_grad,) = torch.autograd.grad((fast * weights).sum(), tokens)
    (naive_grad,) = torch.autograd.grad((naive * weights).sum(), tokens)
    torch.testing.assert_close(fast_grad, naive_grad, rtol=0, atol=1e-6)


def test_the_order_of_the_index_is_kept() -> None:
    tokens = torch.arange(12.0).reshape(2, 6, 1)
    gathered = gather_tokens(tokens, torch.tensor([[5, 0, 3], [1, 1, 2]]))
    assert gathered.squeeze(-1).tolist() == [[5.0, 0.0, 3.0], [7.0, 7.0, 8.0]]


def test_tokens_that_are_not_contiguous_are_gathered_right() -> None:
    tokens = torch.randn(2, 4, 6).transpose(1, 2)
    index = torch.tensor([[1, 5], [0, 2]])
    assert torch.equal(gather_tokens(tokens, index), torch.stack([tokens[b][index[b]] for b in range(2)]))


def test_an_index_beyond_the_last_token_is_refused_rather_than_read_from_elsewhere() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        gather_tokens(torch.randn(1, 4, 2), torch.tensor([[4]]))


def test_labels_and_index_of_a_batch_are_optional() -> None:
    masks = TokenMasks(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 1, 2, dtype=torch.long))
    batch = MaskedBatch(torch.zeros(1, 3, 4, 4), (masks,))
    assert batch.labels is None
    assert batch.index is None
    assert batch.masks[0].context is masks.context
