"""Clips and images in one training, in batches that take turns: the data module of V-JEPA 2.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jepa_lightning import distributed
from jepa_lightning.data.base import MaskFactory
from jepa_lightning.data.images import ImageDataModule
from jepa_lightning.data.sampler import EpochSampler, ResumableLoader
from jepa_lightning.data.video_sources import VideoSource
from jepa_lightning.data.video_transforms import PretrainClipTransform, TrainClipTransform
from jepa_lightning.data.videos import ClipFactory, ClipFormat, Size, VideoDataModule, VideoReader
from jepa_lightning.masking import MaskedBatch, MultiBlock3D


@dataclass
class ImageTurns:
    """Which images train beside the clips, and how often it is their turn.

    Args:
        data: The images, with masks and a batch size of their own.
        share: Fraction of the batches that are images, above 0 and below 1.
        own_ranks: Give this fraction of the processes images alone and the others clips alone, as the official code
            does; otherwise the batches of each process take turns. Needs DDP; rounded down to whole processes.

    Raises:
        ValueError: If the share is no such fraction.
    """

    data: ImageDataModule
    share: float = 0.5
    own_ranks: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share is the fraction of batches that are images: give 0 < share < 1, not {self.share}")

    def ranks(self) -> int:
        """Processes that train on images alone, the first ones.

        Raises:
            ValueError: If that would be none of the processes.
        """
        count, world = int(distributed.world_size() * self.share), distributed.world_size()
        if count == 0:
            raise ValueError(
                f"own_ranks: {self.share:g} of {world} processes is less than one, so no image would be trained on: "
                "use own_ranks: false, or more processes"
            )
        return count


class TurnSampler:
    """Tells the samplers of both loaders which epoch it is; Lightning looks for it."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch."""
        self.epoch = epoch


class TurnLoader:
    """Batches of clips, and in between batches of images; resumes where it stopped.

    An epoch has every batch of clips once. Images are one stream over all epochs, which begins with another shuffle
    whenever it ends: how many there are changes nothing. The position of every batch follows from (epoch, number of
    the batch), so a resumed run has the batches of an uninterrupted one.

    Args:
        clips: Loader of the clips.
        images: Loader of the images.
        share: Fraction of the batches that are images; 0 and 1 for processes with one kind alone.
        length: Batches in an epoch.
    """

    def __init__(self, clips: ResumableLoader, images: ResumableLoader, share: float, length: int) -> None:
        self.clips, self.images, self.share, self.length = clips, images, share, length
        self.sampler = TurnSampler()
        self._resume = self._position = (0, 0)

    def __len__(self) -> int:
        return self.length

    @property
    def waited(self) -> float:
        """Seconds for which batches of both were waited for."""
        return self.clips.waited + self.images.waited

    def images_before(self, batch: int) -> int:
        """How many of the first batches of an epoch are images."""
        return int(batch * self.share + 1e-9)

    def __iter__(self) -> Iterator[MaskedBatch]:
        """Batches in turn, starting after those that an interrupted run has seen."""
        epoch = self.sampler.epoch
        seen = self._resume[1] if self._resume[0] == epoch else 0
        self._position = (epoch, seen)
        shown = self.images_before(seen)
        clips = self._clips(epoch, seen - shown)
        images = self._images(epoch * self.images_before(self.length) + shown)
        for batch in range(seen, self.length):
            turn = images if self.images_before(batch + 1) > self.images_before(batch) else clips
            self._position = (epoch, batch + 1)
            yield next(turn)

    def _clips(self, epoch: int, seen: int) -> Iterator[MaskedBatch]:
        """The clips of an epoch after the first batches."""
        self.clips.sampler.set_epoch(epoch)
        self.clips.sampler.resume(epoch, seen)
        yield from self.clips

    def _images(self, seen: int) -> Iterator[MaskedBatch]:
        """The endless stream of images after the first batches."""
        epoch, within = divmod(seen, len(self.images))
        while True:
            self.images.sampler.set_epoch(epoch)
            self.images.sampler.resume(epoch, within)
            yield from self.images
            epoch, within = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that ``state`` counts."""
        self._resume = (state["epoch"], state["batches"])


class VideoImageDataModule(VideoDataModule):
    """Clips of video files and, in batches of their own, images; evaluation and probes see the clips.

    Args:
        images: The images and their turns.
        source: Where videos come from: MovingDigits (embedded, the default), VideoFolder, VideoList or a Mixture.
        root: Short for a VideoFolder source, a folder of videos; or for a VideoList, its file.
        masks: Builds the mask sampler of clips for a token grid; null for batches without masks, as probes want them.
        transform: Builds the training transform of clips for a frame size.
        clips: Builds the sampler of frames for a number of frames; null for 8 frames a second.
        reader: How files are decoded, and when they are given up; null for PyAV and a minute.
        batch_size: Videos in a batch of one process; with ``own_ranks`` of a process that has clips.
        num_workers: Loader processes; null for one less than this process has cores.
        seed: Key of shuffles, clips, crops and masks; null for the seed of the run (``seed_everything``).
        inputs: Frames, size and normalisation of the clips; null for what the model was built for.
    """

    def __init__(
        self,
        images: ImageTurns | None = None,
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
        super().__init__(source, root, masks, transform, clips, reader, batch_size, num_workers, seed, inputs)
        self.turns = images or ImageTurns(ImageDataModule(masks=MultiBlock3D))

    def prepare_data(self) -> None:
        """Download or render both, in one process of each machine."""
        super().prepare_data()
        self.turns.data.prepare_data()

    def setup(self, stage: str) -> None:
        """Fail now rather than in a worker if nothing can be read; images matter to training alone."""
        super().setup(stage)
        if stage == "fit":
            self.turns.data.trainer = self.trainer  # whose model says the sizes
            self.turns.data.setup(stage)

    def train_dataloader(self) -> Any:
        """A TurnLoader of both, shuffled, augmented, masked; of clips alone without masks, as probes want them.

        Raises:
            ValueError: If there are fewer samples of one kind than a batch has.
        """
        if self.masks is None:
            return super().train_dataloader()
        turns, share = self.turns, self.turns.share
        loaders = clips, images = super().train_dataloader(), turns.data.train_dataloader()
        if turns.own_ranks:
            first = turns.ranks()
            for loader, rank, count in (
                (clips, distributed.rank() - first, distributed.world_size() - first),
                (images, distributed.rank(), first),
            ):
                _divide(loader.sampler, max(0, rank) % count, count)
            share = float(distributed.rank() < first)
        if empty := [kind for kind, loader in zip(("clips", "images"), loaders, strict=True) if len(loader) == 0]:
            raise ValueError(f"a process has fewer {empty[0]} than one batch: set a smaller batch_size")
        length = len(clips) if turns.own_ranks else int(len(clips) / (1 - share) + 1e-9)
        return TurnLoader(clips, images, share, length)

    def on_after_batch_transfer(self, batch: MaskedBatch, dataloader_idx: int) -> MaskedBatch:
        """Normalise on the device, images with their own mean and standard deviation."""
        if batch.inputs.ndim == 4:
            return self.turns.data.on_after_batch_transfer(batch, dataloader_idx)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Count and name the files that were skipped."""
        super().teardown(stage)
        self.turns.data.teardown(stage)


def _divide(sampler: EpochSampler, rank: int, count: int) -> None:
    """Divide the samples among some of the processes."""
    sampler.rank, sampler.num_replicas = rank, count
    sampler.num_samples = sampler.size // count
