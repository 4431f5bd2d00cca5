from __future__ import annotations

import pytest
import torch

from jepa_lightning.masking import Padded, padded
from jepa_lightning.masking.padded import known, mean_length, mean_of, stacked, without_padding

ROWS = [[[4, 0, 7], [1]], [[2, 5, 3, 8], [6, 9]]]
"""Two samples with two blocks each."""


def ragged() -> Padded:
    filled = [[row + [-1] * (4 - len(row)) for row in sample] for sample in ROWS]
    index = padded(torch.tensor(filled))
    assert isinstance(index, Padded)
    return index


def test_padding_is_found_where_it_is() -> None:
    index = ragged()
    assert index.indices.shape == (2, 2, 4)
    assert index.places.tolist() == [0, 1, 2, 4, 8, 9, 10, 11, 12, 13]
    assert index.tokens.tolist() == [token for sample in ROWS for row in sample for token in row]


def test_indices_without_padding_are_left_as_they_are() -> None:
    indices = torch.tensor([[3, 0], [1, 2]])
    assert padded(indices) is indices
    assert known(indices) is indices
    assert without_padding(values := torch.randn(2, 2, 3), indices) is values


def test_pack_and_pad_equal_loops_also_in_gradient() -> None:
    index, values = ragged(), torch.randn(2, 2, 4, 3, requires_grad=True)
    tokens = [values[b, m, i] for b in range(2) for m in range(2) for i in range(len(ROWS[b][m]))]
    packed = index.pack(values)
    assert torch.equal(packed, torch.stack(tokens))
    assert torch.equal(without_padding(values, index), packed)
    back = index.pad(packed)
    kept = (index.indices >= 0).unsqueeze(-1)
    assert torch.equal(back, values * kept)
    weights = torch.randn(back.shape)
    (gradient,) = torch.autograd.grad((back * weights).sum(), values)
    assert torch.equal(gradient, weights * kept)


def test_every_row_weighs_the_same_in_a_mean_whatever_its_length() -> None:
    index, values = ragged(), torch.randn(2, 2, 4, 3, requires_grad=True)
    rows = [values[b, m, : len(ROWS[b][m])].mean() for b in range(2) for m in range(2)]
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(mean_of(values, index), expected, rtol=0, atol=1e-6)
    (fast,), (slow,) = (torch.autograd.grad(value, values) for value in (mean_of(values, index), expected))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-7)


def test_what_padding_holds_is_in_no_mean() -> None:
    index, values = ragged(), torch.randn(2, 2, 4, 3)
    other = values.masked_fill((index.indices < 0).unsqueeze(-1), 1e9)
    assert torch.equal(index.mean(other), index.mean(values))


def test_the_mean_of_plain_indices_is_the_mean() -> None:
    values = torch.randn(2, 3, 4)
    assert torch.equal(mean_of(values, torch.zeros(2, 3, dtype=torch.long)), values.mean())


def test_networks_see_padding_in_plain_indices_on_the_cpu() -> None:
    found = known(torch.tensor([[3, -1], [1, 2]]))
    assert isinstance(found, Padded)
    assert found.places.tolist() == [0, 2, 3]
    assert known(found) is found


def test_the_mean_length_counts_tokens_only() -> None:
    assert mean_length(ragged()) == 10 / 4
    assert mean_length(torch.zeros(5, 2, 7, dtype=torch.long)) == 7


@pytest.mark.parametrize("blocks", [None, 3])
def test_indices_of_single_samples_are_stacked_with_padding_at_the_end(blocks: int | None) -> None:
    shape = (1,) if blocks is None else (1, blocks)
    rows = [torch.randint(50, (*shape, length)) for length in (4, 1, 6)]
    batch = stacked(rows)
    assert batch.shape == (3, *shape[1:], 6)
    for sample, row in zip(batch, rows, strict=True):
        assert torch.equal(sample[..., : row.shape[-1]], row[0])
        assert bool((sample[..., row.shape[-1] :] == -1).all())
    assert torch.equal(stacked([rows[0], rows[0]]), torch.cat([rows[0], rows[0]]))
