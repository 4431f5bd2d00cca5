from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from jepa_lightning.data import (
    ClipFormat,
    ClipSampler,
    Folder,
    ImageDataModule,
    MultiCrop,
    MultiCropClip,
    Photometric,
    PretrainClipTransform,
    PretrainTransform,
    VideoDataModule,
    VideoFolder,
)
from jepa_lightning.data.sampler import Draw

STILL = Photometric(flip=0, jitter=0, gray=0, blur=0, solarize=0)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(torch.randint(256, (48, 64, 3), dtype=torch.uint8).numpy())


def images(folder: Path, **options: Any) -> ImageDataModule:
    transform = partial(MultiCrop, num_local=3, local_size=16)
    settings = {"masks": None, "transform": transform, "batch_size": 4, "num_workers": 0, "seed": 0, "img_size": 32}
    return ImageDataModule(Folder(str(folder)), **{**settings, **options})


def test_there_are_as_many_views_of_each_size_as_asked_for(image: Image.Image) -> None:
    made = MultiCrop((32, 40), num_global=2, num_local=5, local_size=16)(image)
    assert [views.shape for views in made.views] == [(2, 3, 32, 40), (5, 3, 16, 16)]
    assert torch.equal(made.inputs, made.views[0][0])
    assert {views.dtype for views in made.views} == {torch.uint8}


def test_without_local_views_there_is_one_size(image: Image.Image) -> None:
    assert [v.shape for v in MultiCrop((32, 32), num_global=4, num_local=0)(image).views] == [(4, 3, 32, 32)]


def test_all_views_differ(image: Image.Image) -> None:
    made = MultiCrop((32, 32), num_local=4, local_size=16, photometric=STILL)(image)
    for views in made.views:
        assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_local_views_are_of_smaller_pieces_than_global_ones() -> None:
    # Every pixel holds its column, so that the range of a view says how wide its crop was.
    columns = torch.arange(256, dtype=torch.uint8).expand(256, 256)
    image = Image.fromarray(torch.stack([columns] * 3, dim=-1).contiguous().numpy())
    made = MultiCrop((64, 64), num_global=10, num_local=10, local_size=32, photometric=STILL)(image)
    widths = [(v[:, 0].flatten(1).int().amax(1) - v[:, 0].flatten(1).int().amin(1)).float() / 255 for v in made.views]
    assert widths[0].min() > (0.3 * 0.75) ** 0.5 - 0.05
    assert widths[1].max() < (0.3 * 4 / 3) ** 0.5 + 0.05
    assert widths[1].mean() < 0.6 * widths[0].mean()


@pytest.mark.parametrize("name", ["flip", "jitter", "gray", "blur", "solarize"])
def test_every_photometric_change_changes_the_views_and_0_leaves_it_out(name: str, image: Image.Image) -> None:
    def views(photometric: Photometric) -> torch.Tensor:
        torch.manual_seed(3)
        crops = MultiCrop((64, 64), 8, 0, global_scale=(1.0, 1.0), photometric=photometric)
        return crops(image).views[0]

    off = dict.fromkeys(("flip", "jitter", "gray", "blur", "solarize"), 0.0)
    assert len(Photometric(**off).steps()) == 0
    assert len(Photometric(**{**off, name: 1.0}).steps()) == 1
    assert not torch.equal(views(Photometric(**{**off, name: 1.0})), views(STILL))


def test_the_views_follow_from_seed_epoch_and_index(image_folder: Path) -> None:
    dataset = images(image_folder).dataset("train", augment=True)
    first = dataset[Draw(3, epoch=1)]
    torch.rand(5)
    again, later = dataset[Draw(3, epoch=1)], dataset[Draw(3, epoch=2)]
    assert all(torch.equal(a, b) for a, b in zip(first.views, again.views, strict=True))
    assert not torch.equal(first.views[1], later.views[1])


def test_a_batch_has_all_views_and_one_of_them_as_inputs(image_folder: Path) -> None:
    data = images(image_folder, num_workers=1)
    batch = next(iter(data.train_dataloader()))
    assert [views.shape for views in batch.views] == [(4, 2, 3, 32, 32), (4, 3, 3, 16, 16)]
    assert torch.equal(batch.inputs, batch.views[0][:, 0])
    assert batch.inputs.dtype == torch.uint8
    assert batch.masks == ()


def test_held_out_images_are_clean_with_the_same_views_beside_them_every_time(image_folder: Path) -> None:
    data = images(image_folder)
    first, again = (next(iter(data.val_dataloader())) for _ in range(2))
    plain = next(iter(images(image_folder, transform=PretrainTransform).val_dataloader()))
    assert torch.equal(first.inputs, plain.inputs)
    assert all(torch.equal(a, b) for a, b in zip(first.views, again.views, strict=True))
    assert [views.shape[1:] for views in first.views] == [(2, 3, 32, 32), (3, 3, 16, 16)]


def test_probes_see_no_views(image_folder: Path) -> None:
    loader = images(image_folder).probe_dataloader("train")
    assert loader is not None
    assert next(iter(loader)).views == ()


def test_views_are_normalised_as_the_inputs_are(image_folder: Path) -> None:
    data = images(image_folder)
    batch = next(iter(data.train_dataloader()))
    ready = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(ready.inputs, ready.views[0][:, 0])
    assert [v.shape for v in ready.views] == [v.shape for v in batch.views]
    expected = batch.views[1][1, 2].float() / 255 - torch.tensor(data.mean)[:, None, None]
    torch.testing.assert_close(ready.views[1][1, 2], expected / torch.tensor(data.std)[:, None, None])


def test_local_views_larger_than_global_ones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"local_size 96 .* 64x64: set transform\.local_size to less"):
        MultiCrop((64, 64))


@pytest.mark.parametrize("counts", [(0, 4), (1, 0), (2, -1)])
def test_a_single_view_is_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="views are compared with each other"):
        MultiCrop((64, 64), *counts, local_size=32)


# ---------------------------------------------------------------------- clips


def test_views_of_a_clip_are_the_same_in_all_frames() -> None:
    frame = torch.randint(256, (48, 48, 3), dtype=torch.uint8)
    made = MultiCropClip((32, 32), num_local=3, local_size=16)(frame.expand(4, -1, -1, -1))
    assert [views.shape for views in made.views] == [(1, 3, 4, 32, 32), (3, 3, 4, 16, 16)]
    for views in made.views:
        assert torch.equal(views, views[:, :, :1].expand_as(views))
    assert torch.equal(made.inputs, made.views[0][0])


def test_views_of_a_clip_show_the_same_frames() -> None:
    frames = torch.stack([torch.full((48, 48, 3), 40 * t, dtype=torch.uint8) for t in range(4)])
    for views in MultiCropClip((32, 32), num_local=2, local_size=16, photometric=STILL)(frames).views:
        assert torch.equal(views[:, 0, :, 0, 0], 40 * torch.arange(4, dtype=torch.uint8).expand(len(views), -1))


@pytest.fixture
def clips(make_video: Callable[..., Path], tmp_path: Path) -> Callable[..., VideoDataModule]:
    for number in range(6):
        (tmp_path / ("train" if number < 4 else "val")).mkdir(exist_ok=True)
        make_video(f"{'train' if number < 4 else 'val'}/{number}.mp4", count=8)

    def build(**options: Any) -> VideoDataModule:
        settings = {
            "masks": None, "transform": partial(MultiCropClip, num_local=2, local_size=16), "batch_size": 2,
            "clips": partial(ClipSampler, frame_step=1), "num_workers": 0, "seed": 0,
            "inputs": ClipFormat(num_frames=4, img_size=32, patch_size=8, tubelet_size=1),
        }  # fmt: skip
        return VideoDataModule(VideoFolder(str(tmp_path)), **{**settings, **options})

    return build


def test_batches_of_clips_have_views_in_training_and_beside_the_clean_clip_in_validation(
    clips: Callable[..., VideoDataModule],
) -> None:
    data = clips()
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert [views.shape for views in batch.views] == [(2, 1, 3, 4, 32, 32), (2, 2, 3, 4, 16, 16)]
    assert torch.equal(batch.inputs, batch.views[0][:, 0])
    held_out = next(iter(data.val_dataloader()))
    plain = next(iter(clips(transform=PretrainClipTransform).val_dataloader()))
    assert torch.equal(held_out.inputs, plain.inputs)
    assert [views.shape for views in held_out.views] == [(2, 1, 3, 4, 32, 32), (2, 2, 3, 4, 16, 16)]
    probe = data.probe_dataloader("train")
    assert probe is not None
    assert next(iter(probe)).views == ()


def test_several_clips_of_a_video_cannot_have_views(clips: Callable[..., VideoDataModule]) -> None:
    dataset = clips(clips=partial(ClipSampler, frame_step=1, num_clips=2)).dataset("train", augment=True)
    with pytest.raises(ValueError, match=r"set clips\.num_clips to 1"):
        dataset[0]
