from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from jepa_lightning.data import (
    ClipFormat,
    ClipSampler,
    Decoder,
    DigitScenes,
    ImageDataModule,
    JEPADataModule,
    Mixture,
    MovingDigits,
    PyAVDecoder,
    StillImages,
    VideoDataModule,
    VideoFolder,
    VideoReader,
)
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.data.video import Video
from jepa_lightning.data.video_sources import FileVideos, VideoSource
from jepa_lightning.masking import MaskedBatch, MultiBlock3D

FRAMES = 12
CLIP = ClipFormat(num_frames=4, img_size=32, patch_size=8, tubelet_size=2)


def write_clip(path: Path, shade: int = 0, frames: int = FRAMES, size: tuple[int, int] = (40, 48)) -> Path:
    """A grey video: frame t has brightness 60 + shade + 10 t."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (60 + shade + 10 * np.arange(frames)).astype(np.uint8)
    write_video(path, np.broadcast_to(levels[:, None, None, None], (frames, *size, 3)).copy(), fps=8)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for number in range(20):
        split = "train" if number < 16 else "val"
        write_clip(root / split / f"class{number % 2}" / f"{number:02d}.mp4", shade=3 * number)
    return root


def data_module(source: Path | VideoSource, **overrides: Any) -> VideoDataModule:
    settings: dict[str, Any] = {
        "clips": partial(ClipSampler, frame_step=2), "batch_size": 4, "num_workers": 0, "seed": 0, "inputs": CLIP,
    }  # fmt: skip
    source = VideoFolder(str(source)) if isinstance(source, Path) else source
    data = VideoDataModule(source, **{**settings, **overrides})
    data.setup("fit")
    return data


def epoch(data: VideoDataModule, number: int = 0) -> list[MaskedBatch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list[MaskedBatch], other: list[MaskedBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.inputs, b.inputs)
        and all(torch.equal(p, q) for m, n in zip(a.masks, b.masks, strict=True) for p, q in zip(m, n, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def levels(clip: torch.Tensor) -> list[float]:
    """Brightness of each frame of a clip (C, T, H, W)."""
    return clip.float().mean(dim=(0, 2, 3)).tolist()


# ---------------------------------------------------------------------- batches


def test_a_batch_has_clips_and_masks_of_their_grid(folder: Path) -> None:
    batches = epoch(data_module(folder))
    assert len(batches) == 4
    for batch in batches:
        assert batch.inputs.shape == (4, 3, 4, 32, 32)
        assert batch.inputs.dtype == torch.uint8
        assert batch.labels is not None
        assert batch.index is not None
        assert batch.labels.tolist() == [index // 8 for index in batch.index.tolist()]  # sorted by class
        assert len(batch.masks) == 2
        assert max(int(mask.max()) for family in batch.masks for mask in family) < 2 * 4 * 4


def test_frames_come_in_order_at_the_distance_that_was_asked_for(folder: Path) -> None:
    for batch in epoch(data_module(folder)):
        for clip in batch.inputs:
            steps = np.diff(levels(clip))
            assert steps == pytest.approx([20] * 3, abs=3)  # every second frame


def test_training_clips_start_anywhere_and_those_of_evaluation_in_the_middle(folder: Path) -> None:
    data = data_module(folder)
    starts = set()
    for batch in [batch for number in range(6) for batch in epoch(data, number)]:
        for clip, index in zip(batch.inputs, batch.index.tolist(), strict=True):  # type: ignore[union-attr]
            shade = 3 * int(Path(data.listing("train").name(index)).stem)
            starts.add(round((levels(clip)[0] - 60 - shade) / 10))
    assert starts == {0, 1, 2, 3, 4, 5}
    first, again = (data.dataset("val", augment=False)[0].inputs for _ in range(2))
    assert torch.equal(first, again)
    assert levels(first)[0] == pytest.approx(60 + 48 + 30, abs=4)  # 7 of 12 frames: from frame 3


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(folder: Path, workers: int) -> None:
    assert same(epoch(data_module(folder), 2), epoch(data_module(folder, num_workers=workers), 2))


def test_epochs_and_seeds_differ_and_the_global_generator_is_left_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    first = epoch(data_module(folder), 0)
    assert same(first, epoch(data_module(folder), 0))
    assert not same(first, epoch(data_module(folder), 1))
    assert not same(first, epoch(data_module(folder, seed=1), 0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_weighted_mixture_resumes_in_the_middle_of_an_epoch(folder: Path) -> None:
    def module() -> VideoDataModule:
        parts = [VideoFolder(str(folder / "train" / name)) for name in ("class0", "class1")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no classes
            return data_module(Mixture(list(parts), [0.8, 0.2]))

    whole = epoch(module(), 1)
    loader = module().train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    next(batches)
    resumed = module().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)
    assert len(whole) > 1
    assert same(whole[1:], list(resumed))


def test_a_video_that_is_drawn_twice_is_seen_twice(folder: Path) -> None:
    with pytest.warns(UserWarning, match="no labels"):
        data = data_module(Mixture([VideoFolder(str(folder / "val" / "class0"))], [1.0]), batch_size=1)
    data.listing("train").shares = [(1, 1.0)] * len(data.listing("train"))  # type: ignore[attr-defined]
    dataset, draws = data.dataset("train", augment=True), data.train_dataloader().sampler
    first = next(iter(draws))
    samples = [dataset[first._replace(turn=turn)] for turn in range(8)]
    assert len({sample.inputs.numpy().tobytes() for sample in samples}) > 2
    collate = data.collator(data.sampler())
    targets = [collate([sample]).masks[0].targets.tolist() for sample in samples]
    assert all(a != b for i, a in enumerate(targets) for b in targets[:i])  # and masked in another way each time


def test_pixels_of_one_or_several_clips_are_normalised_by_channel(folder: Path) -> None:
    data = data_module(folder)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    for shape in [(2, 3, 4, 8, 8), (2, 5, 3, 4, 8, 8), (2, 3, 8, 8)]:
        inputs = torch.randint(256, shape, dtype=torch.uint8)
        channels_last = data.normalize(inputs).movedim(-4 if len(shape) > 4 else -3, -1)
        expected = (inputs.movedim(-4 if len(shape) > 4 else -3, -1).float() / 255 - mean) / std
        torch.testing.assert_close(channels_last, expected)
        torch.testing.assert_close(data.denormalize(data.normalize(inputs)), inputs.float() / 255)


# ---------------------------------------------------------------------- several clips and views


def test_several_clips_in_training_are_rows_of_the_batch_with_masks_of_their_own(folder: Path) -> None:
    data = data_module(folder, clips=partial(ClipSampler, frame_step=1, num_clips=3))
    batch = epoch(data)[0]
    assert batch.inputs.shape == (12, 3, 4, 32, 32)
    assert batch.labels is not None
    assert batch.index is not None
    assert batch.index.tolist() == [i for i in batch.index[::3].tolist() for _ in range(3)]
    assert batch.labels.tolist() == [label for label in batch.labels[::3].tolist() for _ in range(3)]
    assert batch.masks[0].context.shape[0] == 12
    targets = batch.masks[0].targets.flatten(1).sort(dim=1).values.view(4, 3, -1)
    assert any(not torch.equal(*pair) for clips in targets for pair in (clips[:2], clips[1:]))
    starts = [levels(clip)[0] for clip in batch.inputs[:3]]
    assert starts == sorted(starts)
    assert starts[-1] - starts[0] > 20  # each in its third of the video


def test_without_masks_the_clips_of_a_video_stay_together(folder: Path) -> None:
    inputs = ClipFormat(num_frames=4, img_size=32, patch_size=8, tubelet_size=2, views=3)
    data = data_module(folder, masks=None, clips=partial(ClipSampler, frame_step=1, num_clips=2), inputs=inputs)
    assert (data.num_clips, data.views) == (2, 3)
    batch = epoch(data)[0]
    assert batch.inputs.shape == (4, 2, 3, 4, 32, 32)
    assert batch.masks == ()
    (val,) = data.val_dataloader()
    assert val.inputs.shape == (4, 6, 3, 4, 32, 32)
    one = data_module(folder, masks=None)
    assert epoch(one)[0].inputs.shape == (4, 3, 4, 32, 32)


def test_views_of_a_clip_stand_together_and_clips_are_in_order(folder: Path) -> None:
    sample = data_module(folder).clip_dataset("val", num_clips=2, views=3)[0]
    means = [levels(clip) for clip in sample.inputs]
    assert means[0] == pytest.approx(means[2], abs=1)  # views: the frames are of one grey
    assert means[3][0] - means[0][0] > 30
    assert sample.inputs.shape == (6, 3, 4, 32, 32)


def test_probes_get_one_clip_unless_they_ask_for_more(folder: Path) -> None:
    data = data_module(folder, clips=partial(ClipSampler, frame_step=1, num_clips=2))
    shapes = []
    for options in ({}, {"num_clips": 2}, {"num_clips": 2, "views": 3}):
        loader = data.probe_dataloader("val", 3, **options)
        assert loader is not None
        batch = next(iter(loader))
        assert batch.masks == ()
        shapes.append(batch.inputs.shape)
    assert shapes == [(3, 3, 4, 32, 32), (3, 2, 3, 4, 32, 32), (3, 6, 3, 4, 32, 32)]
    assert data.probe_dataloader("test") is None
    with pytest.raises(ValueError, match="num_clips and views must be at least 1, got 0 and 1"):
        data.clip_dataset("val", num_clips=0)


# ---------------------------------------------------------------------- files that cannot be read


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for block in range(4):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, 1024 * block
            container.mux(stream.encode(sound))
        container.mux(stream.encode())


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Twelve videos, five of which are none."""
    for number in range(12):
        write_clip(tmp_path / "train" / f"class{number % 2}" / f"{number:02d}.mp4")
    one, two = (tmp_path / "train" / f"class{number}" for number in range(2))
    (one / "00.mp4").write_bytes((one / "00.mp4").read_bytes()[:900])
    (one / "04.mp4").write_bytes(b"")
    (two / "05.mp4").write_text("this is text")
    write_sound(two / "07.mp4")
    Image.new("RGB", (40, 40)).save(two / "picture.png")
    (two / "picture.png").write_bytes((two / "picture.png").read_bytes()[:60])
    return tmp_path


DAMAGED = ["class0/00.mp4", "class0/04.mp4", "class1/05.mp4", "class1/07.mp4", "class1/picture.png"]


def test_files_of_the_same_name_in_two_splits_are_two_files(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            write_clip(tmp_path / split / "class" / f"{number}.mp4")
        (tmp_path / split / "class" / "1.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match="one class"):
        data = data_module(tmp_path)
    for split in ("train", "val"):
        list(data.probe_dataloader(split) or [])
    assert data.unreadable() == ["class/1.mp4", "class/1.mp4"]
    with pytest.warns(UserWarning, match="2 files could not be decoded"):
        data.teardown("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_no_videos_are_replaced_counted_and_named_once(damaged: Path, workers: int) -> None:
    data = data_module(damaged, num_workers=workers, batch_size=13)
    batches = epoch(data)
    (batch,) = batches
    assert batch.index is not None
    assert int(batch.index.min()) >= 0
    assert not {data.listing("train").name(i) for i in batch.index.tolist()} & set(DAMAGED)
    with pytest.warns(UserWarning, match=r"cannot decode class0/00.mp4 \(VideoError: .*\): skipped"):
        data.on_after_batch_transfer(batch, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.on_after_batch_transfer(batch, 0)  # said once
    assert data.unreadable() == DAMAGED
    with pytest.warns(UserWarning, match=r"5 files could not be decoded and were skipped: class0/00.mp4 \(VideoError"):
        data.teardown("fit")
    assert data.unreadable() == []


def test_evaluation_leaves_out_what_it_cannot_read(damaged: Path) -> None:
    data = data_module(damaged)
    loader = data.probe_dataloader("train", num_clips=2)
    assert loader is not None
    index = torch.cat([batch.index for batch in loader])
    labels = torch.cat([batch.labels for batch in loader])
    assert (index >= 0).sum() == 8
    assert (labels[index < 0] == -1).all()
    with pytest.warns(UserWarning, match="5 files"):
        data.teardown("fit")


def test_a_file_of_several_labels_that_cannot_be_read_has_none_of_them(tmp_path: Path) -> None:
    class Two(VideoSource):
        def split(self, split: str) -> FileVideos:
            files, labels = ["a.mp4", "b.mp4"], [(0, 1), (1, 1)]
            return FileVideos(tmp_path, files, labels, [["x", "y"], ["u", "v"]], ("first", "second"))

    write_clip(tmp_path / "a.mp4")
    data = data_module(Two())
    assert (data.label_names, data.classes) == (("first", "second"), [["x", "y"], ["u", "v"]])
    loader = data.probe_dataloader("train")
    assert loader is not None
    (batch,) = loader
    assert batch.labels is not None
    assert batch.labels.tolist() == [[0, 1], [-1, -1]]
    data.report.clear()


class HangsOn(Decoder):
    """Never opens some of the files."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def open(self, path: str | Path) -> Video:
        if Path(path).name in self.names:
            time.sleep(20)
        return PyAVDecoder().open(path)


def test_a_file_that_hangs_is_given_up_and_not_waited_for_again(folder: Path) -> None:
    reader = VideoReader(HangsOn("02.mp4", "04.mp4"), timeout=1.0)
    start = time.perf_counter()
    data = data_module(folder, reader=reader)
    for number in range(10):
        (batch, *_) = epochs = epoch(data, number)
        assert len(epochs) == 4
        assert batch.inputs.shape == (4, 3, 4, 32, 32)
    assert time.perf_counter() - start < 15  # not 20: the first epoch waited once for each, the others did not
    name, reason = data.report.reasons()[str(folder / "train" / "class0" / "02.mp4")]
    assert name == "class0/02.mp4"
    assert reason.startswith("TimeoutError: ")
    assert "1 seconds" in reason
    assert data.unreadable() == ["class0/02.mp4", "class0/04.mp4"]
    with pytest.warns(UserWarning, match=r"2 files could not be decoded .*TimeoutError: "):
        data.teardown("fit")


def test_short_videos_are_looped_or_rejected_by_choice(folder: Path, tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / f"{number}.mp4", frames=3 if number < 2 else 12)
    with pytest.warns(UserWarning, match="no labels"):
        looped = data_module(tmp_path, batch_size=1)
    assert len(epoch(looped)) == 3
    assert looped.unreadable() == []
    with pytest.warns(UserWarning, match="no labels"):
        strict = data_module(tmp_path, batch_size=3, clips=partial(ClipSampler, frame_step=2, short="reject"))
    (batch,) = epoch(strict)
    assert batch.index is not None
    assert all(int(strict.listing("train").name(i)[0]) >= 2 for i in batch.index.tolist())
    assert set(strict.unreadable()) <= {"0.mp4", "1.mp4"}
    strict.report.clear()


def test_a_folder_without_one_readable_video_says_why(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"none of the 2 videos can be decoded, for example \d.mp4 \(VideoError: "):
        data_module(tmp_path)


def test_a_transform_that_fails_is_an_error_and_not_a_bad_file(folder: Path) -> None:
    def broken(size: tuple[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
        def transform(frames: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("a fault of ours")

        return transform

    with pytest.raises(ZeroDivisionError):
        epoch(data_module(folder, transform=broken))


# ---------------------------------------------------------------------- settings


def test_numbers_that_do_not_divide_are_named(folder: Path) -> None:
    odd = ClipFormat(num_frames=5, img_size=32, patch_size=8, tubelet_size=2)
    with pytest.raises(ValueError, match=r"data.inputs.num_frames 5 is not divisible by the model's tubelet_size 2"):
        data_module(folder, inputs=odd).train_dataloader()
    wide = ClipFormat(num_frames=4, img_size=(32, 36), patch_size=8, tubelet_size=2)
    with pytest.raises(ValueError, match=r"data.inputs.img_size 32x36 is not divisible by the model's patch_size 8"):
        data_module(folder, inputs=wide).train_dataloader()


def test_without_a_model_the_number_of_frames_must_be_given(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no model to take num_frames from: give inputs.num_frames="):
        data_module(folder, inputs=None)


def test_non_square_clips_get_masks_of_their_grid(folder: Path) -> None:
    data = data_module(folder, inputs=ClipFormat(num_frames=4, img_size=(16, 48), patch_size=8, tubelet_size=1))
    assert data.grid() == (4, 2, 6)
    assert epoch(data)[0].inputs.shape == (4, 3, 4, 16, 48)


def test_root_is_a_folder_or_a_list(folder: Path, tmp_path: Path) -> None:
    assert VideoDataModule(root=str(folder)).listing("val").name(0) == "class0/16.mp4"
    (tmp_path / "list.csv").write_text(f"{folder}/train/class0/00.mp4 1\n{folder}/train/class0/02.mp4 0\n")
    listed = VideoDataModule(root=str(tmp_path / "list.csv"))
    assert sorted(listed.listing("all").labels) == [0, 1]
    assert isinstance(VideoDataModule().source, MovingDigits)


def test_names_are_those_of_everything_there_is(folder: Path) -> None:
    data = data_module(folder)
    batches = list(data.predict_dataloader())
    index = torch.cat([batch.index for batch in batches])
    assert data.names(index.tolist()[:2]) == ["train/class0/00.mp4", "train/class0/02.mp4"]
    assert len(index) == 20


def test_images_and_videos_can_be_mixed(folder: Path, image_folder: Path) -> None:
    from jepa_lightning.data import Folder

    videos, images = VideoFolder(str(folder)), StillImages(Folder(str(image_folder)))
    data = data_module(Mixture([videos, images], [1.0, 1.0]), batch_size=10)
    moving = [not torch.equal(clip, clip[:, :1].expand_as(clip)) for batch in epoch(data) for clip in batch.inputs]
    assert 0.25 < np.mean(moving) < 0.75
    assert data.classes == ["class0", "class1"]
    assert epoch(data)[0].inputs.shape[2] == 4


def test_the_embedded_scenes_can_stand_still() -> None:
    data = VideoDataModule(StillImages(DigitScenes()), inputs=CLIP)
    assert isinstance(data.source, StillImages)


@pytest.mark.parametrize("timeout", [0.0, -1.0])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        VideoReader(timeout=timeout)


def parse(*arguments: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(JEPADataModule, "data")
    return parser.instantiate_classes(parser.parse_args(list(arguments))).data


def test_the_command_line_keeps_the_default_masks_and_knows_none() -> None:
    assert parse("--data", "VideoDataModule", "--data.batch_size", "3").masks((2, 4, 4)).grid == (2, 4, 4)
    assert parse("--data", "ImageDataModule", "--data.batch_size", "3").masks is not None
    assert parse("--data", "VideoDataModule", "--data.masks", "null").masks is None


def test_the_command_line_builds_nested_sources_clips_and_readers() -> None:
    mixture = (
        '{"class_path": "Mixture", "init_args": {"sources": [{"class_path": "MovingDigits"}, {"class_path": '
        '"StillImages", "init_args": {"source": {"class_path": "DigitScenes"}}}], "weights": [3.0, 1.0]}}'
    )
    data = parse(
        *("--data", "VideoDataModule", "--data.source", mixture, "--data.clips", "ClipSampler"),
        *("--data.clips.fps", "4", "--data.clips.num_clips", "2", "--data.reader.timeout", "9"),
        *("--data.reader.decoder", "PyAVDecoder", "--data.reader.decoder.threads", "2"),
        *("--data.inputs.num_frames", "16", "--data.inputs.views", "3"),
        *("--data.transform", "PretrainClipTransform", "--data.transform.erasing", "0.25"),
    )
    assert isinstance(data, VideoDataModule)
    assert [type(source) for source in data.source.sources] == [MovingDigits, StillImages]
    assert (data.num_clips, data.views, data.num_frames()) == (2, 3, 16)
    assert data.clips(16).fps == 4
    assert (data.reader.timeout, data.reader.decoder.threads) == (9, 2)
    assert data.transform((32, 32)).erasing == 0.25
    assert isinstance(ImageDataModule(), JEPADataModule)
    assert isinstance(data.masks((8, 4, 4)), MultiBlock3D)
