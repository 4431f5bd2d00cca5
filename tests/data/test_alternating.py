from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning import distributed
from jepa_lightning.data import (
    ClipFormat,
    ClipSampler,
    Folder,
    ImageDataModule,
    ImageTurns,
    VideoFolder,
    VideoImageDataModule,
)
from jepa_lightning.data.alternating import TurnLoader
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.masking import MaskedBatch, MultiBlock3D

CLIP = ClipFormat(num_frames=4, img_size=32, patch_size=8, tubelet_size=2)
CLIPS, IMAGES = 12, 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Videos and images, each of a shade of its own."""
    videos, images = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("images")
    for number in range(CLIPS):
        (videos / "train" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        frames = np.full((8, 40, 40, 3), 40 + 10 * number, np.uint8)
        write_video(videos / "train" / f"class{number % 2}" / f"{number:02d}.mp4", frames, fps=8)
    for number in range(IMAGES):
        (images / "train" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (0, 0, 20 * number)).save(
            images / "train" / f"class{number % 2}" / f"{number:02d}.png"
        )
    return videos, images


@pytest.fixture
def make(folders: tuple[Path, Path]) -> Callable[..., VideoImageDataModule]:
    def build(num_workers: int = 0, images: int = 2, clips: int = 3, **turns: Any) -> VideoImageDataModule:
        still = ImageDataModule(
            Folder(str(folders[1])), masks=partial(MultiBlock3D, min_keep=2), batch_size=images,
            num_workers=num_workers, seed=0, img_size=32, patch_size=8,
            normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        )  # fmt: skip
        data = VideoImageDataModule(
            ImageTurns(still, **turns), VideoFolder(str(folders[0])), clips=partial(ClipSampler, frame_step=1),
            masks=partial(MultiBlock3D, min_keep=2), batch_size=clips, num_workers=num_workers, seed=0, inputs=CLIP,
        )  # fmt: skip
        data.setup("fit")
        return data

    return build


def loader_of(data: VideoImageDataModule) -> TurnLoader:
    return cast(TurnLoader, data.train_dataloader())


def epoch(loader: TurnLoader, number: int) -> list[MaskedBatch]:
    loader.sampler.set_epoch(number)
    return list(loader)


def kinds(batches: list[MaskedBatch]) -> str:
    return "".join("c" if batch.inputs.ndim == 5 else "i" for batch in batches)


def seen(batches: list[MaskedBatch], kind: str) -> list[int]:
    return [int(i) for b in batches if kinds([b]) == kind for i in cast(torch.Tensor, b.index)]


def same(one: list[MaskedBatch], other: list[MaskedBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.inputs, b.inputs)
        and all(torch.equal(p, q) for m, n in zip(a.masks, b.masks, strict=True) for p, q in zip(m, n, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def test_batches_take_turns_and_an_epoch_has_every_clip_once(make: Callable[..., VideoImageDataModule]) -> None:
    batches = epoch(loader_of(make()), 0)
    assert kinds(batches) == "cicicici"
    assert sorted(seen(batches, "c")) == list(range(CLIPS))
    assert {tuple(b.inputs.shape) for b in batches} == {(3, 3, 4, 32, 32), (2, 3, 32, 32)}
    assert max(int(masks.context.max()) for b in batches if b.inputs.ndim == 4 for masks in b.masks) < 16


@pytest.mark.parametrize(
    ("share", "order"), [(0.25, "cccic"), (1 / 3, "ccicci"), (0.75, "c" * 4 + "i" * 12), (0.01, "cccc")]
)
def test_the_share_of_images_is_kept_and_no_clip_is_left_out(
    share: float, order: str, make: Callable[..., VideoImageDataModule]
) -> None:
    loader = loader_of(make(share=share))
    batches = epoch(loader, 0)
    assert len(batches) == len(loader)
    assert kinds(batches).count("c") == 4
    assert sorted(kinds(batches)) == sorted(order)


def test_images_are_one_stream_over_all_epochs_shuffled_anew_when_it_ends(
    make: Callable[..., VideoImageDataModule],
) -> None:
    loader = loader_of(make())
    stream = [index for number in range(4) for index in seen(epoch(loader, number), "i")]
    assert len(stream) == 32
    rounds = [stream[8 * i : 8 * (i + 1)] for i in range(4)]  # 9 images make 4 batches of 2
    assert all(len(set(part)) == 8 for part in rounds)
    assert len({tuple(part) for part in rounds}) == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [1, 4, 7])
def test_it_resumes_in_the_middle_of_an_epoch(
    workers: int, batches: int, make: Callable[..., VideoImageDataModule]
) -> None:
    options: dict[str, Any] = {"share": 0.6, "images": 4}  # the stream of images ends within an epoch
    whole = loader_of(make(**options))
    first, second, third = (epoch(whole, number) for number in range(3))
    stopped = loader_of(make(num_workers=workers, **options))
    epoch(stopped, 0)
    stopped.sampler.set_epoch(1)
    iterator = iter(stopped)
    start = [next(iterator) for _ in range(batches)]
    resumed = loader_of(make(num_workers=workers, **options))
    resumed.load_state_dict(stopped.state_dict())
    assert same(second, start + epoch(resumed, 1))
    assert same(third, epoch(resumed, 2))
    assert not same(first, second)


def test_processes_see_other_samples_and_masks(
    make: Callable[..., VideoImageDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append(epoch(loader_of(make()), 0))
    assert [kinds(batches) for batches in found] == ["cici"] * 2
    for kind in "ci":
        assert not set(seen(found[0], kind)) & set(seen(found[1], kind))


def test_images_can_have_processes_of_their_own(
    make: Callable[..., VideoImageDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    found = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append(epoch(loader_of(make(own_ranks=True)), 0))
    assert [kinds(batches) for batches in found] == ["ii", "ii", "cc", "cc"]
    assert sorted(seen(found[2], "c") + seen(found[3], "c")) == list(range(CLIPS))
    assert not set(seen(found[0], "i")) & set(seen(found[1], "i"))


def test_processes_of_their_own_need_a_whole_process(make: Callable[..., VideoImageDataModule]) -> None:
    with pytest.raises(ValueError, match=r"0.5 of 1 processes is less than one.*own_ranks: false"):
        make(own_ranks=True).train_dataloader()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_one_kind_out_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"not {share}"):
        ImageTurns(ImageDataModule(), share)


def test_both_are_normalised_as_they_ask(make: Callable[..., VideoImageDataModule]) -> None:
    data = make()
    clip, image = epoch(loader_of(data), 0)[:2]
    assert clip.inputs.dtype == image.inputs.dtype == torch.uint8
    moved = data.on_after_batch_transfer(image, 0).inputs
    torch.testing.assert_close(moved, image.inputs.float() / 127.5 - 1)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (CLIP.mean, CLIP.std))
    expected = (clip.inputs.float() / 255 - mean) / std
    torch.testing.assert_close(data.on_after_batch_transfer(clip, 0).inputs, expected)


def test_too_few_samples_for_a_batch_are_told(make: Callable[..., VideoImageDataModule]) -> None:
    with pytest.raises(ValueError, match="fewer than one batch of 10"):
        make(images=10).train_dataloader()


def test_without_masks_as_probes_want_it_there_are_clips_alone(make: Callable[..., VideoImageDataModule]) -> None:
    data = make()
    data.masks = None
    assert kinds(list(data.train_dataloader())) == "cccc"
