from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from jepa_lightning.masking import MaskedBatch, Padded, TokenMasks, gather_tokens, padded
from jepa_lightning.masking.tokens import places_of


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


# ---------------------------------------------------------------------- samples with different numbers of tokens


def uneven() -> TokenMasks:
    return TokenMasks(torch.tensor([[5, 0, 3], [1, -1, -1]]), torch.tensor([[[2, -1], [4, 7]], [[0, 8], [6, -1]]]))


def test_gathered_padding_is_zero_and_the_rest_equals_a_loop_also_in_gradient() -> None:
    tokens, index = torch.randn(2, 9, 4, requires_grad=True), padded(uneven().targets)
    fast = gather_tokens(tokens, index)
    rows = [[tokens[b][k] if k >= 0 else torch.zeros(4) for m in uneven().targets[b] for k in m] for b in range(2)]
    naive = torch.stack([torch.stack(row) for row in rows]).reshape(2, 2, 2, 4)
    assert torch.equal(fast, naive)
    weights = torch.randn(fast.shape)
    (a,), (b,) = (torch.autograd.grad((gathered * weights).sum(), tokens) for gathered in (fast, naive))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_batch_that_knows_its_places_does_not_look_at_the_data() -> None:
    even = TokenMasks(torch.tensor([[5], [1]]), torch.tensor([[[2]], [[0]]]))
    masks = (uneven(), even)
    batch = MaskedBatch(torch.zeros(2, 1), masks, places=tuple(places_of(family) for family in masks))
    assert [len(places) for places in batch.places] == [3, 0]
    first, second = batch._replace(masks=(TokenMasks(*(part.to("meta") for part in uneven())), even)).families()
    assert isinstance(first.context, Padded)
    assert isinstance(first.targets, Padded)
    assert first.context.indices.is_meta  # without data, nobody can have looked
    assert first.context.places.tolist() == [0, 1, 2, 3]
    assert first.targets.places.tolist() == [0, 2, 3, 4, 5, 6]
    assert first.targets.longest == 3 + 2  # the context of the first sample and its second block
    assert second.context is even.context
    assert second.targets is even.targets


def test_a_batch_that_does_not_know_its_places_looks() -> None:
    (family,) = MaskedBatch(torch.zeros(2, 1), (uneven(),)).families()
    assert isinstance(family.context, Padded)
    assert torch.equal(family.context.places, places_of(uneven())[0])  # type: ignore[misc]


def test_one_padded_part_makes_both_padded() -> None:
    masks = uneven()._replace(context=torch.tensor([[5, 0], [1, 2]]))
    batch = MaskedBatch(torch.zeros(2, 1), (masks,), places=(places_of(masks),))
    (family,) = batch.families()
    assert isinstance(family.context, Padded)
    assert family.context.places.tolist() == [0, 1, 2, 3]


def test_places_travel_with_the_batch() -> None:
    batch = MaskedBatch(torch.zeros(2, 1), (uneven(), uneven()), places=(places_of(uneven()), ()))
    moved = move_data_to_device(batch, "meta")
    assert [len(places) for places in moved.places] == [3, 0]
    assert all(part.is_meta for part in (*moved.places[0][:2], *moved.masks[1]))
    assert moved.places[0][2] == 5  # a plain number, which needs no device
