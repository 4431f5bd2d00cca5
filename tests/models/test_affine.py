from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jepa_lightning.models import Affine, AffineViews, affine_code
from jepa_lightning.models.affine import CODE_DIM, centre, seen_through, uniform


def drawn(count: int = 50, angle: float = math.radians(2.0), shift: float = 0.32) -> Affine:
    return Affine((2 * torch.rand(count) - 1) * angle, (2 * torch.rand(count, 2) - 1) * shift)


def still(count: int = 1) -> Affine:
    return Affine(torch.zeros(count), torch.zeros(count, 2))


def smooth(count: int, height: int, width: int) -> Tensor:
    """Waves of twenty pixels and more, another image each time."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(a * x + b * y + c).sin() for a, b, c in (0.3 * torch.rand(3 * count, 3)).tolist()]
    return torch.stack(waves).unflatten(0, (count, 3))


# ---------------------------------------------------------------------- movements


def test_the_inverse_takes_points_back_and_its_inverse_is_the_movement() -> None:
    affine, points = drawn(angle=3.0, shift=0.9), torch.randn(50, 7, 2)
    torch.testing.assert_close(affine.inverse()(affine(points)), points, rtol=0, atol=1e-5)
    for a, b in zip(affine.inverse().inverse(), affine, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_the_inverse_of_a_turned_shift_is_not_the_negated_one() -> None:
    affine = Affine(torch.tensor([math.pi / 2]), torch.tensor([[0.3, 0.0]]))
    torch.testing.assert_close(affine.inverse().shift, torch.tensor([[0.0, 0.3]]), rtol=0, atol=1e-6)


def test_a_movement_turns_clockwise_on_the_screen_and_then_shifts() -> None:
    affine = Affine(torch.tensor([math.pi / 2]), torch.tensor([[0.1, 0.2]]))
    moved = affine(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))  # to the right, and down
    torch.testing.assert_close(moved, torch.tensor([[[0.1, 1.2], [-0.9, 0.2]]]), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- the code


def test_the_code_equals_the_formula_written_out() -> None:
    affine = drawn(1)
    values = [(float(affine.angle[0]), 10), (float(affine.shift[0, 0]), 4), (float(affine.shift[0, 1]), 4)]
    expected = [f(2**k * math.pi * p) for p, count in values for f in (math.sin, math.cos) for k in range(count)]
    assert len(expected) == CODE_DIM
    torch.testing.assert_close(affine_code(affine)[0], torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_code_of_the_inverse_is_not_the_negated_code() -> None:
    affine = drawn(5)
    code, back = affine_code(affine), affine_code(affine.inverse())
    assert (back + code).abs().max() > 1.0  # the original's mistake


# ---------------------------------------------------------------------- views


@pytest.mark.parametrize(("sides", "size"), [((20, 20), (12, 12)), ((21, 30), (12, 9)), ((16, 25), (15, 24))])
def test_through_no_movement_the_centre_is_seen(sides: tuple[int, int], size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *sides)
    seen = seen_through(images, still(2), size)
    torch.testing.assert_close(seen, centre(images, size), rtol=0, atol=1e-5)
    top, left = (sides[0] - size[0]) // 2, (sides[1] - size[1]) // 2
    assert torch.equal(centre(images, size), images[:, :, top : top + size[0], left : left + size[1]])


def test_a_shift_by_whole_pixels_is_a_crop_elsewhere() -> None:
    images = torch.randn(1, 3, 20, 30)
    shift = torch.tensor([[3.0, -2.0]]) / 20  # to the right and up, in shorter sides
    seen = seen_through(images, Affine(torch.zeros(1), shift), (12, 12))
    torch.testing.assert_close(seen, images[:, :, 4 - 2 : 16 - 2, 9 + 3 : 21 + 3], rtol=0, atol=1e-4)


def test_a_quarter_turn_is_exact() -> None:
    images = torch.randn(1, 3, 15, 15)
    seen = seen_through(images, Affine(torch.tensor([math.pi / 2]), torch.zeros(1, 2)), (9, 9))
    torch.testing.assert_close(seen, images.rot90(1, (2, 3))[:, :, 3:12, 3:12], rtol=0, atol=1e-5)


def test_beyond_the_border_is_zero() -> None:
    images = torch.ones(1, 3, 16, 16)
    seen = seen_through(images, Affine(torch.zeros(1), torch.tensor([[0.5, 0.0]])), (8, 8))
    torch.testing.assert_close(seen[0, 0, 0], torch.tensor([1.0] * 4 + [0.0] * 4), rtol=0, atol=1e-5)


def test_looking_through_a_movement_and_then_back_shows_the_image() -> None:
    images, affine = smooth(4, 60, 48), drawn(4, math.radians(20.0), 0.1)
    there = seen_through(images, affine, (60, 48))
    back = seen_through(there, affine.inverse(), (20, 16))
    torch.testing.assert_close(back, centre(images, (20, 16)), rtol=0, atol=0.03)
    negated = Affine(-affine.angle, -affine.shift)
    assert (seen_through(there, negated, (20, 16)) - centre(images, (20, 16))).abs().max() > 0.2


def test_what_is_at_a_place_of_the_first_view_is_at_the_moved_place_of_the_second() -> None:
    count, size = 40, (24, 24)
    images = smooth(count, 40, 40)
    views = AffineViews(max_rotation=10.0, max_translation=0.4, seed=3)(images, size, torch.arange(count), 0)
    points = 0.1 * (2 * torch.rand(count, 5, 2) - 1)  # near the middle, in shorter sides
    for b in range(count):
        at_first = sampled(views.first[b], points[b] * 40)
        at_second = sampled(views.second[b], views.movement(points)[b] * 40)
        torch.testing.assert_close(at_first, at_second, rtol=0, atol=0.05)


def sampled(view: Tensor, points: Tensor) -> Tensor:
    """Bilinear, at pixels counted from the centre; naive."""
    values = []
    for x, y in (points + (view.shape[-1] - 1) / 2).tolist():
        left, top = math.floor(x), math.floor(y)
        a, b = x - left, y - top
        upper = (1 - a) * view[:, top, left] + a * view[:, top, left + 1]
        lower = (1 - a) * view[:, top + 1, left] + a * view[:, top + 1, left + 1]
        values.append((1 - b) * upper + b * lower)
    return torch.stack(values)


def test_one_view_is_the_centre_and_both_directions_occur() -> None:
    images, index = torch.randn(64, 3, 20, 20), torch.arange(64)
    views = AffineViews(seed=0)(images, (12, 12), index, 0)
    middle = centre(images, (12, 12))
    first, second = ((part == middle).flatten(1).all(dim=1) for part in (views.first, views.second))
    assert torch.equal(first, ~second)
    assert 15 < first.sum() < 49


def test_movements_fill_the_stated_range_and_no_more() -> None:
    images = torch.zeros(4000, 1, 25, 25)
    movement = AffineViews(seed=0)(images, (16, 16), torch.arange(4000), 7).movement
    assert math.radians(1.95) < movement.angle.abs().max() <= math.radians(2.0)
    pixels = 25 * movement.shift
    assert 0.9 * 9 * 0.97 < pixels.abs().max() <= 0.9 * 9 * 1.04  # the way back is turned by up to 2 degrees
    assert pixels.mean(dim=0).abs().max() < 0.4
    torch.testing.assert_close(pixels.std(dim=0), torch.full((2,), 8.1 / 3**0.5), rtol=0.05, atol=0)


def test_the_original_sizes_give_the_original_range() -> None:
    images = torch.zeros(1, 1, 200, 200).expand(200, -1, -1, -1)
    movement = AffineViews(max_rotation=0.0, seed=0)(images, (128, 128), torch.arange(200), 0).movement
    assert 63 < 200 * movement.shift.abs().max() <= 64.8


def test_views_follow_from_seed_step_and_index_alone() -> None:
    images, index = torch.randn(6, 3, 20, 20), torch.tensor([5, 3, 8, 1, 90000, 2])

    def movement(order: list[int], step: int = 4, seed: int = 0) -> Tensor:
        return AffineViews(seed=seed)(images[order], (12, 12), index[order], step).movement.shift

    whole = movement(list(range(6)))
    assert torch.equal(movement([4, 2]), whole[[4, 2]])
    assert not (movement(list(range(6)), step=5) == whole).any()
    assert not (movement(list(range(6)), seed=1) == whole).any()


def test_the_seed_of_the_run_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    images, index = torch.randn(3, 3, 20, 20), torch.arange(3)
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    expected = AffineViews(seed=12)(images, (12, 12), index, 0)
    assert torch.equal(AffineViews()(images, (12, 12), index, 0).movement.shift, expected.movement.shift)


def test_images_no_larger_than_views_are_refused_with_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"images of 20x12 pixels.*view of 12x12: set --data.img_size to more than"):
        AffineViews()(torch.randn(1, 3, 20, 12), (12, 12), torch.arange(1), 0)


# ---------------------------------------------------------------------- random numbers


def test_numbers_are_uniform_and_independent() -> None:
    numbers = torch.stack([uniform(torch.arange(5000), step, 0, 4) for step in range(4)])  # (steps, index, place)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts = torch.histc(numbers, bins=20, min=0, max=1)
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    columns = numbers.permute(1, 0, 2).flatten(1)  # of 16 (step, place), over the index
    correlation = torch.corrcoef(columns.T) - torch.eye(16)
    assert correlation.abs().max() < 0.07
    after = torch.corrcoef(torch.stack([numbers[0, :-1, 0], numbers[0, 1:, 0]]))[0, 1]
    assert after.abs() < 0.05


def test_numbers_equal_splitmix_in_plain_python() -> None:
    def mixed(key: int) -> int:
        mask = 2**64 - 1
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & mask
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & mask
        return key ^ (key >> 31)

    for seed, step, index in [(0, 0, 0), (7, 12345, 998877), (2**62, 3, 5)]:
        for place, number in enumerate(uniform(torch.tensor([index]), step, seed, 3)[0].tolist()):
            key = seed
            for part in (step, index, place):
                key = mixed((key + 0x9E3779B97F4A7C15 + part) % 2**64)
            assert number == (key >> 40) / 2**24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_numbers_are_the_same_on_a_gpu() -> None:
    index = torch.arange(1000)
    assert torch.equal(uniform(index, 3, 4, 4), uniform(index.cuda(), 3, 4, 4).cpu())
