from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa_lightning.data import CleanClipTransform, PretrainClipTransform

SIZE = (32, 32)


def still(height: int = 60, width: int = 80, frames: int = 6) -> Tensor:
    """A clip in which nothing moves."""
    image = torch.randint(256, (1, height, width, 3), dtype=torch.uint8)
    return image.expand(frames, -1, -1, -1)


def ramp(height: int = 60, width: int = 80, frames: int = 6) -> Tensor:
    """Red grows downwards, green to the right: pixels say where they come from."""
    image = torch.zeros(height, width, 3)
    image[..., 0], image[..., 1] = torch.arange(height).unsqueeze(1) * 3, torch.arange(width) * 3
    return image.to(torch.uint8).expand(frames, -1, -1, -1)


def every_choice() -> list[dict[str, object]]:
    return [{}, {"auto_augment": True}, {"horizontal_flip": False}, {"antialias": False}, {"motion_shift": True}]


@pytest.mark.parametrize("options", [*every_choice(), {"erasing": 1.0}])
def test_pixels_stay_bytes_and_time_comes_after_the_channels(options: dict[str, object]) -> None:
    clip = PretrainClipTransform((32, 48), **options)(still())
    assert clip.shape == (3, 6, 32, 48)
    assert clip.dtype == torch.uint8
    assert clip.is_contiguous()


@pytest.mark.parametrize("options", every_choice()[:-1])
def test_all_frames_are_treated_alike(options: dict[str, object]) -> None:
    for _ in range(8):
        clip = PretrainClipTransform(SIZE, **options)(still())
        assert torch.equal(clip, clip[:, :1].expand_as(clip))


def test_two_calls_choose_differently_and_follow_the_seed() -> None:
    frames, transform = still(), PretrainClipTransform(SIZE)
    torch.manual_seed(1)
    first, second = transform(frames), transform(frames)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, transform(frames))


def test_half_of_the_clips_are_mirrored_and_none_without_the_option() -> None:
    def mirrored(flip: bool) -> int:
        transform = PretrainClipTransform(SIZE, horizontal_flip=flip)
        clips = [transform(ramp()) for _ in range(60)]
        return sum(int(clip[1, 0, 0, 0]) > int(clip[1, 0, 0, -1]) for clip in clips)

    assert 18 <= mirrored(True) <= 42
    assert mirrored(False) == 0


def test_the_crop_has_the_areas_and_shapes_of_the_reference() -> None:
    transform = PretrainClipTransform(SIZE, crop_scale=(0.3, 0.6))
    boxes = [transform._box(torch.zeros(1, 3, 200, 200)) for _ in range(200)]
    areas = torch.tensor([height * width / 200**2 for _, _, height, width in boxes])
    ratios = torch.tensor([width / height for _, _, height, width in boxes])
    assert 0.29 < float(areas.min()) < 0.35
    assert 0.55 < float(areas.max()) < 0.61
    assert 0.73 < float(ratios.min()) < 0.85
    assert 1.2 < float(ratios.max()) < 1.37


def test_a_shifting_crop_moves_evenly() -> None:
    transform = PretrainClipTransform(SIZE, crop_scale=(0.3, 0.4), horizontal_flip=False, motion_shift=True)
    clips = torch.stack([transform(ramp(frames=5)) for _ in range(10)]).float()
    place = clips[:, :2, :, 16, 16]  # where the middle comes from, down and to the right: (10, 2, 5)
    moved = (place[..., -1] - place[..., 0]).abs()
    assert float(moved.amax(dim=1).min()) > 1
    straight = torch.lerp(place[..., :1], place[..., -1:], torch.linspace(0, 1, 5))
    assert float((place - straight).abs().max()) < 6  # two pixels: boxes are whole


def test_erasing_fills_one_box_of_all_frames_with_noise() -> None:
    frames = torch.full((6, 32, 32, 3), 100, dtype=torch.uint8)
    transform = PretrainClipTransform(SIZE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), erasing=1.0)
    clip = transform(frames)
    erased = (clip != 100).any(dim=0).any(dim=0)  # (H, W)
    rows, columns = erased.any(dim=1).nonzero().flatten(), erased.any(dim=0).nonzero().flatten()
    box = erased[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert 0.01 < float(erased.float().mean()) < 0.4
    assert float(box.float().mean()) > 0.99
    inside = clip[:, :, erased].float()
    assert 30 < float(inside.std()) < 80
    assert not torch.equal(inside[:, 0], inside[:, 1])


def test_auto_augment_changes_more_than_the_crop() -> None:
    options = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "horizontal_flip": False}
    plain = PretrainClipTransform((60, 60), **options)(ramp(60, 60))
    clips = [PretrainClipTransform((60, 60), auto_augment=True, **options)(ramp(60, 60)) for _ in range(8)]
    assert sum(not torch.equal(plain, clip) for clip in clips) >= 6


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_a_probability_is_checked(probability: float) -> None:
    with pytest.raises(ValueError, match="erasing is a probability from 0 to 1"):
        PretrainClipTransform(SIZE, erasing=probability)


def test_the_clean_view_is_the_middle() -> None:
    clip = CleanClipTransform(SIZE)(ramp(64, 96))
    place = clip[:2, 0, 15:17, 15:17].float().mean(dim=(1, 2)) / 3
    torch.testing.assert_close(place, torch.tensor([31.5, 47.5]), atol=1.0, rtol=0)
    shown = (clip[0, 0, -1, 0].float() - clip[0, 0, 0, 0].float()) / 3  # rows of the frame
    assert 52 < float(shown) < 58  # 224/256 of 64


@pytest.mark.parametrize(("height", "width", "axis"), [(40, 80, 1), (80, 40, 0)])
def test_three_views_lie_along_the_longer_side(height: int, width: int, axis: int) -> None:
    clips = [CleanClipTransform(SIZE, view, 3)(ramp(height, width)) for view in range(3)]
    starts = [float(clip[axis, 0, 0, 0]) / 3 for clip in clips]
    ends = [float(clip[axis, 0, -1, -1]) / 3 for clip in clips]
    torch.testing.assert_close(torch.tensor(starts), torch.tensor([0.0, 20.0, 40.0]), atol=1.5, rtol=0)
    assert ends[-1] > 77
    other = [float(clip[1 - axis, 0, -1, -1] - clip[1 - axis, 0, 0, 0]) / 3 for clip in clips]
    assert min(other) > 36  # the whole shorter side


@pytest.mark.parametrize("size", [(32, 32), (24, 48), (48, 24)])
@pytest.mark.parametrize("views", [1, 3])
def test_clean_views_of_any_frame_have_the_size(size: tuple[int, int], views: int) -> None:
    for height, width in ((20, 90), (90, 20), (31, 31)):
        assert CleanClipTransform(size, 0, views)(still(height, width, 2)).shape == (3, 2, *size)


def test_a_view_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"view must be from 0 to views - 1 = 2, got 3"):
        CleanClipTransform(SIZE, 3, 3)
