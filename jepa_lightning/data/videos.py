"""Clips and masks: the data module of V-JEPA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader

from jepa_lightning.data.base import MaskFactory
from jepa_lightning.data.clips import ClipSampler
from jepa_lightning.data.decode import Decoder, PyAVDecoder
from jepa_lightning.data.moving_digits import MovingDigits
from jepa_lightning.data.reading import ReadingDataModule, ReadingDataset, Unreadable
from jepa_lightning.data.sampler import Shares
from jepa_lightning.data.sources import Listing, Split
from jepa_lightning.data.timeout import Reader, with_timeout
from jepa_lightning.data.transforms import Beside, Views
from jepa_lightning.data.video_sources import Still, Videos, VideoSource, source_of
from jepa_lightning.data.video_transforms import (
    CleanClipTransform,
    ClipTransform,
    PretrainClipTransform,
    TrainClipTransform,
)
from jepa_lightning.masking import Grid, MaskCollator, MaskedBatch, MaskSampler, MultiBlock3D, Sample
from jepa_lightning.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Size = tuple[int, int]
ClipFactory = Callable[[int], ClipSampler]
DEFAULT_CLIPS: ClipFactory = partial(ClipSampler, fps=8.0)


@dataclass
class ClipFormat:
    """What a clip is when it reaches the model.

    Attributes:
        num_frames: Frames of a clip; null for what the model was built for, as below.
        img_size: Side of a frame in pixels, or (height, width).
        patch_size: Side of a patch in pixels.
        tubelet_size: Frames that one token covers.
        mean: Mean of each channel, for values from 0 to 1.
        std: Standard deviation of each channel.
        views: Crops of each clip along the longer side of its frames, in evaluation without masks.
    """

    num_frames: int | None = None
    img_size: int | tuple[int, int] | None = None
    patch_size: int | None = None
    tubelet_size: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    views: int = 1


class VideoReader(Reader):
    """Reads clips from files, and gives up those that take too long.

    Args:
        decoder: Opens the files; null for PyAV.
        timeout: Seconds after which a file is given up.
    """

    def __init__(self, decoder: Decoder | None = None, timeout: float = 60.0) -> None:
        super().__init__(timeout)
        self.decoder = decoder or PyAVDecoder()

    def read(self, videos: Videos, index: int, clips: ClipSampler, generator: Generator | None) -> list[Tensor]:
        """The frames (T, H, W, 3), uint8, of each clip of a video.

        Args:
            videos: Where it is listed.
            index: Its position there.
            clips: Chooses the frames; an image is repeated.
            generator: Source of the choice; None for the clips of evaluation.

        Raises:
            TimeoutError: If it takes too long.
            ValueError: If the file is no video, or too short.
        """

        def work() -> list[Tensor]:
            with videos.open(index, self.decoder) as video:
                if isinstance(video, Still):
                    return [video.frames([0] * clips.num_frames)] * clips.num_clips
                return [video.frames(frames) for frames in clips.sample(video, generator)]

        return with_timeout(work, self.timeout)


class VideoDataset(ReadingDataset):
    """Decodes clips of videos and transforms them; a file that cannot be read costs one warning, not the run.

    Args:
        videos: The videos.
        clips: Chooses the frames: at random in training, always the same in evaluation.
        transforms: Make a uint8 clip of frames, one for each view.
        seed: Part of the key of every draw.
        replace: Give the next readable video in place of an unreadable one (training); otherwise black clips with
            label and index -1, which evaluation leaves out.
        reader: Reads the files; null for PyAV.
        report: Where unreadable videos are noted; null for one of its own.
    """

    def __init__(
        self,
        videos: Videos,
        clips: ClipSampler,
        transforms: Sequence[ClipTransform],
        seed: int,
        replace: bool,
        reader: VideoReader | None = None,
        report: Unreadable | None = None,
    ) -> None:
        super().__init__(videos, seed, replace, report)
        self.videos, self.clips, self.transforms = videos, clips, list(transforms)
        self.reader = reader or VideoReader()

    def read(self, index: int, generator: Generator) -> list[Tensor]:
        """Frames of each clip."""
        return self.reader.read(self.videos, index, self.clips, generator if self.replace else None)

    def view(self, content: list[Tensor]) -> Tensor | Views:
        """One clip (C, T, H, W), or (K, C, T, H, W): all views of the first clip, then of the next.

        Raises:
            ValueError: If several clips of a video should each be seen in views that are compared.
        """
        made = [transform(frames) for frames in content for transform in self.transforms]
        if len(made) == 1:
            return made[0]
        clips = [clip for clip in made if isinstance(clip, Tensor)]
        if len(clips) < len(made):
            raise ValueError(f"MultiCropClip makes views of one clip, not of {len(made)}: set clips.num_clips to 1")
        return torch.stack(clips)

    def blank(self) -> list[Tensor]:
        """Small black frames."""
        return [torch.zeros(self.clips.num_frames, 64, 64, 3, dtype=torch.uint8)] * self.clips.num_clips


class ClipCollator(MaskCollator):
    """Gives every clip masks of its own: several clips of a video become as many rows of the batch.

    Without masks they stay together, (B, K, C, T, H, W), for probes.
    """

    def __call__(self, samples: Sequence[Sample] | Sequence[tuple[Tensor, int]]) -> MaskedBatch:
        """Collate; label and index of a video are repeated for each of its clips."""
        if self.masks is None or samples[0][0].ndim < 5:
            return super().__call__(samples)
        rows = [cast(Sample, sample)._replace(inputs=clip) for sample in samples for clip in sample[0]]
        return super().__call__(rows)


class VideoDataModule(ReadingDataModule):
    """Clips of video files, or of images, with masks.

    Args:
        source: Where videos come from: MovingDigits (embedded, the default), VideoFolder, VideoList, StillImages or a
            Mixture.
        root: Short for a VideoFolder source, a folder of videos; or for a VideoList, its file.
        masks: Builds the mask sampler for a token grid; null for batches without masks, as probes want them: several
            clips and views of a video then stay together, (B, K, C, T, H, W), in training and in evaluation.
        transform: Builds the training transform for a frame size; MultiCropClip for methods of several views.
        clips: Builds the sampler of frames for a number of frames; null for 8 frames a second. Several clips of a video
            each become a sample of the batch.
        reader: How files are decoded, and when they are given up; null for PyAV and a minute.
        batch_size: Videos in a batch of one process.
        num_workers: Loader processes; null for one less than this process has cores.
        seed: Key of shuffles, clips, crops and masks; null for the seed of the run (``seed_everything``).
        inputs: Frames, size and normalisation of the clips; null for what the model was built for.
    """

    kind = "video"
    group = "inputs."

    def __init__(
        self,
        source: VideoSource | None = None,
        root: str | None = None,
        masks: MaskFactory | None = MultiBlock3D,
        transform: Callable[[Size], TrainClipTransform] = PretrainClipTransform,
        clips: ClipFactory | None = None,
        reader: VideoReader | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        seed: int | None = None,
        inputs: ClipFormat | None = None,
    ) -> None:
        self.format = inputs or ClipFormat()
        super().__init__(
            source_of(root) if root else source or MovingDigits(),
            mask_factory=masks,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            img_size=self.format.img_size,
            patch_size=self.format.patch_size,
            mean=self.format.mean,
            std=self.format.std,
        )
        self.transform, self.clips, self.reader = transform, clips or DEFAULT_CLIPS, reader or VideoReader()

    def setup(self, stage: str) -> None:
        """Fail now rather than in a worker: settings that make no clip, or no file that makes one."""
        self._clips(1)
        super().setup(stage)

    def num_frames(self) -> int:
        """Frames of a clip.

        Raises:
            ValueError: If it was not given and there is no model to ask.
        """
        given = self.format.num_frames
        return self._of_the_model("num_frames") if given is None else given

    @property
    def num_clips(self) -> int:
        """Clips of each video."""
        return self.clips(self.num_frames()).num_clips

    @property
    def views(self) -> int:
        """Crops of each clip in evaluation without masks; in training there is one."""
        return self.format.views

    def grid(self) -> Grid:
        """Tokens of these clips along time, height and width.

        Raises:
            ValueError: If the tubelet size does not divide the frames, or the patch size their sides.
        """
        given = self.format.tubelet_size
        tubelet = self._of_the_model("tubelet_size") if given is None else given
        if self.num_frames() % tubelet:
            raise ValueError(
                f"data.inputs.num_frames {self.num_frames()} is not divisible by the model's tubelet_size {tubelet}"
            )
        _, height, width = super().grid()
        return (self.num_frames() // tubelet, height, width)

    def shares(self) -> Shares | None:
        """Weights of the sources, if the source is a mixture with weights."""
        return self.videos("train").shares

    def videos(self, split: Split) -> Videos:
        """The videos of a split, listed once."""
        return cast(Videos, self.listing(split))

    def check(self, listing: Listing, index: int) -> None:
        """Read the clip that evaluation sees."""
        self.reader.read(cast(Videos, listing), index, self._clips(1), None)

    def dataset(self, split: str, augment: bool) -> VideoDataset:
        """The samples of a split: clips of training; or the one of evaluation, without masks ``num_clips * views``."""
        if not augment:
            return self.clip_dataset(split) if self.masks else self.clip_dataset(split, self.num_clips, self.views)
        return self._dataset(split, self.clips(self.num_frames()), [self.transform(self.size())], replace=True)

    def evaluation_dataset(self, split: str) -> VideoDataset:
        """As ``dataset``; with views beside each clip, the same every time, if training has views."""
        views = self.transform(self.size())
        if not views.several:
            return self.dataset(split, augment=False)
        return self._dataset(split, self._clips(1), [Beside(self._clean(), views)], replace=False)

    def clip_dataset(self, split: str, num_clips: int = 1, views: int = 1) -> VideoDataset:
        """A split as evaluation sees it.

        Args:
            split: ``train``, ``val``, ``test`` or ``all``.
            num_clips: Clips of each video, spread over its length.
            views: Crops of each clip, spread over the longer side of its frames; the centre if one. With K clips and
                views in all, inputs of a sample are (K, C, T, H, W), or (C, T, H, W) if K is 1.
        """
        if num_clips < 1 or views < 1:
            raise ValueError(f"num_clips and views must be at least 1, got {num_clips} and {views}")
        transforms = [self._clean(view, views) for view in range(views)]
        return self._dataset(split, self._clips(num_clips), transforms, replace=False)

    def _clean(self, view: int = 0, views: int = 1) -> CleanClipTransform:
        size, crop_pct, *_ = self.preprocessing
        return CleanClipTransform(size, view, views, crop_pct)

    def _clips(self, num_clips: int) -> ClipSampler:
        clips = copy.copy(self.clips(self.num_frames()))
        clips.num_clips = num_clips
        return clips

    def _dataset(
        self, split: str, clips: ClipSampler, transforms: Sequence[ClipTransform], replace: bool
    ) -> VideoDataset:
        videos = self.videos(cast(Split, split))
        return VideoDataset(videos, clips, transforms, self.seed, replace, self.reader, self.report)

    def probe_dataloader(
        self, split: str, most: int | None = None, num_clips: int = 1, views: int = 1
    ) -> DataLoader[Any] | None:
        """This process's share of a split, clean and without masks, for evaluation; None if there is no such split.

        Args:
            split: ``train``, ``val`` or ``test``.
            most: At most that many videos, chosen once for all runs with the same seed.
            num_clips: Clips of each video, see clip_dataset.
            views: Crops of each clip.
        """
        return self._probe_loader(partial(self.clip_dataset, split, num_clips, views), split, most)

    def collator(self, masks: MaskSampler | None) -> ClipCollator:
        """Makes batches of samples."""
        return ClipCollator(masks, self.seed)
