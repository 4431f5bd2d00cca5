from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from jepa_lightning.models.positions import fit_positions, sincos_1d, sincos_2d

Golden = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("case", range(4))
def test_the_tables_are_the_official_ones(golden: Golden, case: int) -> None:
    expected = golden("posembed.json")["ijepa_2d"]["cases"][case]
    table = sincos_2d(expected["grid"], expected["grid"], expected["embed_dim"])[0].double()
    assert list(table.shape) == expected["shape"]
    for row, values in expected.get("rows", {}).items():
        torch.testing.assert_close(table[int(row)], torch.tensor(values).double(), rtol=0, atol=1e-6)
    for row, values in expected.get("first8_and_last8_of_row", {}).items():
        ends = torch.cat([table[int(row), :8], table[int(row), -8:]])
        wanted = torch.tensor(values).double().flatten()
        torch.testing.assert_close(ends, wanted, rtol=0, atol=1e-6)
    flat = table.flatten()
    weights = (torch.arange(len(flat), dtype=torch.float64) + 1).sin()
    sums = torch.stack([flat.sum(), flat.abs().sum(), (flat * weights).sum()])
    wanted = torch.tensor([expected["sum"], expected["sum_abs"], expected["projection"]], dtype=torch.float64)
    torch.testing.assert_close(sums, wanted, rtol=1e-8, atol=1e-4)


def test_the_column_fills_the_first_half_and_the_row_the_second() -> None:
    table = sincos_2d(3, 4, 8).reshape(3, 4, 8)
    assert (table[:, :, :4] == table[:1, :, :4]).all()
    assert (table[:, :, 4:] == table[:, :1, 4:]).all()
    assert len({tuple(row) for row in table[0, :, :4].tolist()}) == 4
    assert len({tuple(row) for row in table[:, 0, 4:].tolist()}) == 3


def test_a_table_equals_a_naive_loop_on_a_non_square_grid() -> None:
    table, height, width, dim = sincos_2d(2, 5, 12)[0], 2, 5, 12
    for r in range(height):
        for c in range(width):
            for half, position in enumerate((c, r)):
                for k in range(dim // 4):
                    angle = torch.tensor(position / 10000 ** (k / (dim / 4)), dtype=torch.float64)
                    row = table[r * width + c, half * dim // 2 :]
                    assert row[k].item() == pytest.approx(angle.sin().item(), abs=1e-6)
                    assert row[dim // 4 + k].item() == pytest.approx(angle.cos().item(), abs=1e-6)


def test_every_place_has_a_code_of_its_own_and_all_have_one_norm() -> None:
    table = sincos_2d(14, 14, 32)[0]
    assert torch.cdist(table, table).fill_diagonal_(1.0).min() > 0.05
    torch.testing.assert_close(table.norm(dim=1), torch.full((196,), 4.0))


def test_one_dimension_is_computed_in_double_precision() -> None:
    code = sincos_1d(torch.tensor([0, 1000]), 6)
    assert code.dtype == torch.float64
    assert code[0].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert code[1, 0].item() == pytest.approx(0.8268795405320025, abs=1e-14)


@pytest.mark.parametrize("dim", [2, 6, 30])
def test_a_dimension_that_is_no_multiple_of_four_is_refused_by_name(dim: int) -> None:
    with pytest.raises(ValueError, match=rf"divisible by 4, got {dim}"):
        sincos_2d(3, 3, dim)


def test_fitting_to_the_same_grid_gives_the_table_itself() -> None:
    table = sincos_2d(4, 6, 8)
    assert fit_positions(table, (1, 4, 6), (1, 4, 6)) is table


@pytest.mark.parametrize("wanted", [(1, 2, 2), (1, 8, 12), (1, 3, 9), (1, 6, 4)])
def test_fitting_keeps_order_range_and_channels(wanted: tuple[int, int, int]) -> None:
    fitted = fit_positions(sincos_2d(4, 6, 8), (1, 4, 6), wanted)
    assert fitted.shape == (1, wanted[1] * wanted[2], 8)
    assert fitted.dtype == torch.float32
    assert fitted.abs().max() < 1.3  # bicubic overshoots a little; new coordinates would not be near the old ones
    picture = fitted.reshape(wanted[1], wanted[2], 8)
    torch.testing.assert_close(picture[:, :, :4], picture[:1, :, :4].expand_as(picture[:, :, :4]), rtol=0, atol=1e-5)
    torch.testing.assert_close(picture[:, :, 4:], picture[:, :1, 4:].expand_as(picture[:, :, 4:]), rtol=0, atol=1e-5)


def test_a_place_in_the_middle_keeps_its_code_when_the_grid_triples() -> None:
    table = sincos_2d(6, 6, 16)
    fitted = fit_positions(table, (1, 6, 6), (1, 18, 18)).reshape(18, 18, 16)
    torch.testing.assert_close(fitted[1::3, 1::3], table.reshape(6, 6, 16), rtol=0, atol=1e-5)
