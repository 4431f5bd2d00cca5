from __future__ import annotations

import cmath
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning.models import RoPE, SinCos2D, SinCos3D
from jepa_lightning.models.positions import (
    Grid,
    Rotation,
    fit_positions,
    rotate,
    rotate_back,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)

GOLDEN = Path(__file__).parent.parent / "golden"
TABLES: dict[str, Any] = json.loads((GOLDEN / "posembed.json").read_text())
ROPE: dict[str, Any] = json.loads((GOLDEN / "rope.json").read_text())
CASES = [
    (kind, number) for kind in ("ijepa_2d", "vjepa_2d", "vjepa_3d") for number in range(len(TABLES[kind]["cases"]))
]


def table_of(kind: str, case: dict[str, Any]) -> Tensor:
    side = case["grid"]
    if kind == "vjepa_3d":
        return SinCos3D(case["uniform_power"]).table((case["depth"], side, side), case["embed_dim"])[0]
    return SinCos2D(column_first=kind == "ijepa_2d").table((1, side, side), case["embed_dim"])[0]


@pytest.mark.parametrize(("kind", "number"), CASES)
def test_the_tables_are_the_official_ones(kind: str, number: int) -> None:
    expected = TABLES[kind]["cases"][number]
    table = table_of(kind, expected).double()
    assert list(table.shape) == expected["shape"]
    assert expected.get("rows") or expected.get("first8_and_last8_of_row")
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


def test_the_golden_file_has_all_kinds_of_tables() -> None:
    assert [len(TABLES[kind]["cases"]) for kind in ("ijepa_2d", "vjepa_2d", "vjepa_3d")] == [4, 3, 12]
    assert {case["uniform_power"] for case in TABLES["vjepa_3d"]["cases"]} == {True, False}


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


# ---------------------------------------------------------------------- time


def naive_sincos_3d(grid: Grid, dim: int, widths: list[int]) -> list[list[float]]:
    rows = []
    for t in range(grid[0]):
        for h in range(grid[1]):
            for w in range(grid[2]):
                row: list[float] = []
                for place, width in zip((t, h, w), widths, strict=True):
                    angles = [place / 10000 ** (k / (width / 2)) for k in range(width // 2)]
                    row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
                rows.append(row[:dim])
    return rows


@pytest.mark.parametrize(
    ("dim", "uniform_power", "widths"),
    [(12, True, [4, 4, 4]), (14, True, [6, 6, 6]), (16, True, [6, 6, 6]), (16, False, [8, 4, 4])],
)
def test_a_table_of_clips_equals_a_naive_loop_on_a_non_square_grid(
    dim: int, uniform_power: bool, widths: list[int]
) -> None:
    expected = torch.tensor(naive_sincos_3d((3, 2, 4), dim, widths)).unsqueeze(0)
    torch.testing.assert_close(sincos_3d((3, 2, 4), dim, uniform_power), expected, rtol=0, atol=1e-6)


def test_v_jepa_on_images_has_the_row_in_the_first_half_and_the_column_in_the_second() -> None:
    table = SinCos2D(column_first=False).table((1, 3, 4), 8).reshape(3, 4, 8)
    assert (table[:, :, :4] == table[:, :1, :4]).all()
    assert (table[:, :, 4:] == table[:1, :, 4:]).all()


def test_clips_of_one_step_keep_the_channels_of_time() -> None:
    one, two = SinCos3D().table((1, 3, 4), 12), SinCos3D().table((2, 3, 4), 12)
    assert torch.equal(one, two[:, :12])


@pytest.mark.parametrize(("dim", "uniform_power"), [(13, True), (12, False), (20, False)])
def test_channels_that_three_coordinates_cannot_share_are_refused_by_name(dim: int, uniform_power: bool) -> None:
    with pytest.raises(ValueError, match=rf"divisible by 8 \(uniform_power: 2\), got {dim}"):
        SinCos3D(uniform_power).table((2, 3, 3), dim)


def test_image_positions_refuse_a_clip_and_name_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"the grid is \(2, 3, 3\): use positions SinCos3D or RoPE for video"):
        SinCos2D().table((2, 3, 3), 8)


def naive_line(old: int, new: int) -> Tensor:
    """Linear resampling of one axis: new x old weights, samples in the middle of their cells."""
    weights = torch.zeros(new, old)
    for i in range(new):
        place = max(0.0, (i + 0.5) * old / new - 0.5)
        first = int(place)
        weights[i, first] += 1.0 - (place - first)
        weights[i, min(first + 1, old - 1)] += place - first
    return weights


@pytest.mark.parametrize("wanted", [(2, 6, 10), (8, 3, 5), (3, 4, 4), (1, 3, 5), (4, 7, 2)])
def test_fitting_clips_is_linear_along_each_of_the_three_axes(wanted: Grid) -> None:
    grid = (4, 3, 5)
    table = torch.randn(1, 60, 6)
    axes = [naive_line(old, new) for old, new in zip(grid, wanted, strict=True)]
    slow = torch.einsum("at,bh,cw,thwd->abcd", *axes, table.reshape(*grid, 6)).flatten(0, 2)
    torch.testing.assert_close(SinCos3D().fit(table, grid, wanted)[0], slow, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(32, 224, 224), (16, 384, 384), (16, 240, 320), (8, 224, 224), (16, 208, 208), (10, 176, 176), (2, 224, 224)],
)
def test_positions_of_16_frames_of_224_pixels_fit_clips_of_any_size_and_length(
    frames: int, height: int, width: int
) -> None:
    table, wanted = SinCos3D().table((8, 14, 14), 12), (frames // 2, height // 16, width // 16)
    fitted = SinCos3D().fit(table, (8, 14, 14), wanted)
    assert fitted.shape == (1, wanted[0] * wanted[1] * wanted[2], 12)
    assert fitted.abs().max() <= 1.0  # linear: never outside of what was trained


def test_fitting_finds_every_number_of_tokens_also_where_a_scale_factor_rounds_down() -> None:
    assert int(49 * (1 / 49)) == 0
    assert int(11 * (15 / 11)) == 14
    for old, new in [(49, 1), (11, 15), (7, 61), (13, 15)]:
        assert SinCos3D().fit(torch.randn(1, 2 * old, 6), (old, 2, 1), (new, 2, 1)).shape == (1, 2 * new, 6)


def test_fitting_clips_keeps_the_dtype_and_an_equal_grid_keeps_the_table() -> None:
    table = SinCos3D().table((4, 2, 2), 12).bfloat16()
    assert SinCos3D().fit(table, (4, 2, 2), (2, 3, 3)).dtype == torch.bfloat16
    assert SinCos3D().fit(table, (4, 2, 2), (4, 2, 2)) is table


def test_a_shorter_clip_of_the_same_size_has_the_first_positions_if_that_is_asked_for() -> None:
    grid, table = (4, 3, 5), SinCos3D().table((4, 3, 5), 12)
    sliced, resampled = SinCos3D(slice_shorter=True), SinCos3D()
    assert torch.equal(sliced.fit(table, grid, (2, 3, 5)), SinCos3D().table((2, 3, 5), 12))
    assert (resampled.fit(table, grid, (2, 3, 5)) - sliced.fit(table, grid, (2, 3, 5))).abs().max() > 0.1
    for wanted in [(6, 3, 5), (2, 3, 4), (4, 6, 10)]:  # longer, or of another size
        assert torch.equal(sliced.fit(table, grid, wanted), resampled.fit(table, grid, wanted))


def test_between_image_grids_positions_of_clips_are_fitted_like_those_of_images() -> None:
    table = SinCos3D().table((1, 4, 6), 8)
    assert torch.equal(SinCos3D().fit(table, (1, 4, 6), (1, 3, 9)), fit_positions(table, (1, 4, 6), (1, 3, 9)))


# ---------------------------------------------------------------------- rotary positions


def rotation_of(layout: Any, tokens: list[int], grid: Grid, head_dim: int) -> Rotation:
    return RoPE(layout=layout).rotation(torch.tensor([tokens]), grid, head_dim)


def turned(layout: Any, x: Tensor, tokens: list[int], grid: Grid) -> Tensor:
    """Rows of ``x`` as the queries of one head."""
    return rotate(x[None, None], rotation_of(layout, tokens, grid, x.shape[-1]))[0, 0]


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
def test_every_vector_is_rotated_as_officially(layout: Any) -> None:
    vectors = ROPE[layout]["vectors"]
    assert {vector["width"] for vector in vectors} == {4, 6, 20, 26}
    for vector in vectors:
        positions = RoPE(layout=layout, theta=ROPE[layout]["theta"])
        angle = positions.angles(torch.tensor(float(vector["position"])), vector["width"])[None, None, None]
        rotated = rotate(torch.tensor(vector["x"])[None, None, None], Rotation(angle.cos(), angle.sin())).flatten()
        torch.testing.assert_close(rotated, torch.tensor(vector["rotated"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
def test_every_head_is_rotated_as_officially(layout: Any) -> None:
    cases = ROPE[layout]["attention"]
    assert len(cases) == (8 if layout == "interleaved" else 4)
    for case in cases:
        x = torch.tensor(case["x"]).unflatten(1, (case["heads"], case["head_dim"])).transpose(0, 1).unsqueeze(0)
        stretched = RoPE(layout, stretch_to=16 if case["interpolate"] else None)  # of patches of 16 pixels
        rotation = stretched.rotation(torch.tensor([case["token_ids"]]), tuple(case["grid_thw"]), case["head_dim"])
        torch.testing.assert_close(rotate(x, rotation)[0], torch.tensor(case["rotated_by_head"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("head_dim", [6, 16, 20, 32])
def test_interleaved_equals_a_naive_loop_that_turns_complex_numbers(head_dim: int) -> None:
    grid, tokens = (3, 4, 5), [0, 7, 23, 59, 38]
    x = torch.randn(5, head_dim)
    width, slow = 2 * (head_dim // 3 // 2), x.clone()
    for row, token in enumerate(tokens):
        for axis, place in enumerate((token // 20, token // 5 % 4, token % 5)):
            for pair in range(width // 2):
                at = axis * width + 2 * pair
                turn = cmath.exp(1j * place * 10000 ** (-pair / (width / 2)))
                number = complex(x[row, at].item(), x[row, at + 1].item()) * turn
                slow[row, at], slow[row, at + 1] = number.real, number.imag
    torch.testing.assert_close(turned("interleaved", x, tokens, grid), slow, rtol=0, atol=1e-5)


def test_interleaved_keeps_norms_but_tiled_does_not() -> None:
    x, tokens, grid = torch.randn(60, 24), list(range(60)), (3, 4, 5)
    for layout, kept in (("interleaved", True), ("tiled", False)):
        change = (turned(layout, x, tokens, grid).norm(dim=1) - x.norm(dim=1)).abs().max().item()
        assert (change < 1e-5) if kept else (change > 0.1)


def test_interleaved_sees_distances_only_but_tiled_does_not() -> None:
    grid = (6, 7, 8)
    q, k = torch.randn(2, 1, 24)

    def product(layout: str, at: tuple[int, int, int], shift: tuple[int, int, int]) -> float:
        places = [at, tuple(a + b for a, b in zip(at, shift, strict=True))]
        first, second = ([(t * 7 + h) * 8 + w] for t, h, w in places)
        return float(turned(layout, q, first, grid)[0] @ turned(layout, k, second, grid)[0])

    for shift in [(1, 2, 3), (0, 0, 0), (2, 0, 1)]:
        products = [product("interleaved", at, shift) for at in [(0, 0, 0), (3, 4, 4), (1, 2, 0)]]
        assert products == pytest.approx([products[0]] * 3, abs=1e-4)
    tiled = [product("tiled", at, (1, 2, 3)) for at in [(0, 0, 0), (3, 4, 4), (1, 2, 0)]]
    assert max(tiled) - min(tiled) > 0.1
    distances = [product("interleaved", (0, 0, 0), shift) for shift in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert min(abs(distances[i] - distances[i - 1]) for i in range(3)) > 1e-3  # and tells directions apart


@pytest.mark.parametrize("layout", ["tiled", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotated"), [(64, 60), (80, 78), (32, 30), (24, 24), (16, 12), (6, 6)])
def test_channels_at_the_end_of_a_head_are_left_alone(layout: Any, head_dim: int, rotated: int) -> None:
    x = torch.randn(1, head_dim)
    result = turned(layout, x, [5 * 100 + 5 * 10 + 5], (10, 10, 10))
    assert torch.equal(result[:, rotated:], x[:, rotated:])
    assert (result[:, :rotated] != x[:, :rotated]).all()


def test_the_token_at_the_origin_is_left_alone() -> None:
    x = torch.randn(1, 16)
    assert torch.equal(turned("interleaved", x, [0], (2, 3, 3)), x)


def test_indices_of_each_sample_are_its_own() -> None:
    index = torch.tensor([[0, 5, 7], [11, 2, 5]])
    both = RoPE().rotation(index, (2, 2, 3), 16)
    assert both.cos.shape == both.sin.shape == (2, 1, 3, 16)
    for b in range(2):
        alone = RoPE().rotation(index[b : b + 1], (2, 2, 3), 16)
        assert torch.equal(both.cos[b : b + 1], alone.cos)
        assert torch.equal(both.sin[b : b + 1], alone.sin)


def test_theta_is_the_base_of_the_frequencies() -> None:
    angles = RoPE(theta=16.0).angles(torch.tensor([3.0]), 8)
    torch.testing.assert_close(angles, 3.0 * torch.tensor([[1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]]))


@pytest.mark.parametrize("place", [31, 257, 999])
def test_angles_far_from_the_origin_are_as_exact_as_float32(place: int) -> None:
    angles = RoPE().angles(torch.tensor([place]), 20)[0, ::2]
    expected = [place * 10000 ** (-i / 10) for i in range(10)]
    assert angles.dtype == torch.float32
    assert angles.tolist() == pytest.approx(expected, rel=1e-6)


def test_autocast_keeps_angles_in_float32() -> None:
    index = torch.arange(0, 8192, 37).unsqueeze(0)
    plain = RoPE().rotation(index, (32, 16, 16), 64)
    with torch.autocast("cpu", torch.bfloat16):
        cast = RoPE().rotation(index, (32, 16, 16), 64)
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


def test_bfloat16_queries_stay_bfloat16_and_are_rotated_in_float32() -> None:
    x = torch.randn(1, 2, 5, 16).bfloat16()
    rotation = rotation_of("interleaved", [0, 31, 77, 100, 124], (5, 5, 5), 16)
    assert rotate(x, rotation).dtype == torch.bfloat16
    assert torch.equal(rotate(x, rotation), rotate(x.float(), rotation).bfloat16())


@pytest.mark.parametrize("head_dim", [4, 2, 15])
def test_heads_that_cannot_be_rotated_are_refused_with_the_number(head_dim: int) -> None:
    with pytest.raises(
        ValueError, match=rf"even number of channels for each head, at least 6, got {head_dim}: set num"
    ):
        RoPE().rotation(torch.tensor([[0]]), (1, 2, 2), head_dim)


def test_positions_are_either_added_or_rotated() -> None:
    assert RoPE().table((2, 3, 3), 48) is None
    for added in (SinCos2D(), SinCos3D()):
        assert added.rotation(torch.tensor([[0]]), (1, 3, 3), 16) is None
    with pytest.raises(NotImplementedError, match="RoPE has no table"):
        RoPE().fit(torch.zeros(1, 4, 8), (1, 2, 2), (1, 3, 3))


@pytest.mark.parametrize("layout", ["interleaved", "tiled"])
def test_rotating_back_is_the_transpose_of_rotating(layout: Any) -> None:
    rotation = RoPE(layout=layout).rotation(torch.tensor([[3, 17, 8]]), (2, 3, 4), 14)
    x, weights = torch.randn(2, 3, 3, 14, requires_grad=True), torch.randn(2, 3, 3, 14)
    (gradient,) = torch.autograd.grad((rotate(x, rotation) * weights).sum(), x)
    torch.testing.assert_close(rotate_back(weights, rotation), gradient, rtol=0, atol=1e-6)
    undone = rotate_back(rotate(x, rotation), rotation)
    assert torch.allclose(undone, x, atol=1e-5) is (layout == "interleaved")


def test_a_stretched_grid_ends_where_the_grid_of_training_does() -> None:
    corners = torch.tensor([[0, 4, 30, 34]])  # of (1, 7, 5)
    stretched, trained = RoPE(stretch_to=16), RoPE()
    expected = trained.rotation(torch.tensor([[0, 15, 240, 255]]), (1, 16, 16), 12)
    for part, wanted in zip(stretched.rotation(corners, (1, 7, 5), 12), expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-6)


def test_time_is_not_stretched_and_a_single_row_or_column_stays_at_zero() -> None:
    index = torch.tensor([[0, 1, 2]])
    for grid in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
        cos, sin = RoPE(stretch_to=9).rotation(index, grid, 6)
        axis = grid.index(3)
        places = index * (1 if axis == 0 else 4)  # 9 - 1 over 3 - 1
        assert torch.equal(cos[0, 0, :, 2 * axis], places[0].float().cos())
        assert torch.equal(sin[0, 0, :, [i for i in range(6) if i // 2 != axis]], torch.zeros(3, 4))
