"""Images and masks: the data module of I-JEPA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Generator, Tensor

from jepa_lightning.data.base import MaskFactory
from jepa_lightning.data.channels import Picture, channels_of
from jepa_lightning.data.embedded import DigitScenes
from jepa_lightning.data.image_files import ChannelError, OutOfRangeError
from jepa_lightning.data.reading import ReadingDataModule, ReadingDataset, Unreadable
from jepa_lightning.data.sources import Folder, Images, ImageSource, Listing, Split
from jepa_lightning.data.timeout import Reader, with_timeout
from jepa_lightning.data.transforms import (
    Beside,
    CleanTransform,
    CropTransform,
    PretrainTransform,
    TrainTransform,
    Transform,
    Views,
)
from jepa_lightning.masking import MaskCollator, MaskedBatch, MaskSampler, MultiBlock, Sample, seeded
from jepa_lightning.preprocessing import Normalization, default_normalization, normalize

Size = tuple[int, int]


class ImageDataset(ReadingDataset):
    """Decodes and transforms; a file that cannot be decoded costs one warning, not the run.

    Inputs are uint8. Where pictures have more than 8 bits they are float32, and normalised already.

    Args:
        images: The images.
        transform: Makes a tensor of an image; draws from PyTorch's generator.
        seed: Part of the key of every draw.
        replace: Give the next readable image in place of an unreadable one (training); otherwise a black image with
            label and index -1, which evaluation leaves out.
        report: Where unreadable images are noted; null for one of its own.
        reader: Gives up files that take too long; null for a minute.
        channels: Of the images.
        normalization: Mean and standard deviation of each channel; null for the usual ones, for which values must be
            from 0 to 1.
    """

    def __init__(
        self,
        images: Images,
        transform: Transform,
        seed: int,
        replace: bool,
        report: Unreadable | None = None,
        reader: Reader | None = None,
        channels: int = 3,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__(images, seed, replace, report)
        self.images, self.transform, self.reader = images, transform, reader or Reader()
        # Whoever overrides the whole of a transform wants whole images.
        own = isinstance(transform, CropTransform) and type(transform).__call__ is CropTransform.__call__
        self.crop = cast(CropTransform, transform) if own else None
        self.channels, self.any_range = channels, normalization is not None
        self.normalize = partial(to_normal, normalization=normalization or default_normalization(channels))

    def generators(self, *key: int) -> tuple[Generator, Generator]:
        """One source: the crop is the first that the transform draws."""
        generator = seeded("crop", *key)
        return generator, generator

    def read(self, index: int, generator: Generator) -> Picture:
        """Decode an image, or of one that is cropped the part that is seen."""
        if (crop := self.crop) is None:
            picture = with_timeout(partial(self.images.picture, index, self.channels), self.reader.timeout)
        else:
            draw = partial(crop.box, generator=generator)
            work = partial(self.images.part, index, draw, crop.size, self.channels)
            picture = with_timeout(work, self.reader.timeout)
        if not self.any_range:
            check_range(picture)
        return picture

    def view(self, content: Picture) -> Tensor | Views:
        """Transform it, (C, H, W) or several views."""
        made = self.transform(content) if self.crop is None else self.crop.finish(content)
        if isinstance(made, Views):
            return Views(self.normalize(made.inputs), tuple(self.normalize(views) for views in made.views))
        return self.normalize(made)

    def blank(self) -> Picture:
        """A black image."""
        side = (64, 64) if self.crop is None else self.crop.size
        return torch.zeros(self.channels, *side, dtype=torch.uint8)


def to_normal(values: Tensor, normalization: Normalization) -> Tensor:
    """Normalise floating-point values (..., C, H, W); uint8 is left as it is, for the device."""
    return normalize(values, *normalization, axis=values.ndim - 3) if values.is_floating_point() else values


def check_range(picture: Picture) -> None:
    """Refuse values outside of 0 to 1 where nobody said how to normalise them.

    Raises:
        OutOfRangeError: With their range.
    """
    if isinstance(picture, Tensor) and picture.is_floating_point():
        least, most = picture.aminmax()
        if least < 0 or most > 1 + 1e-6:
            raise OutOfRangeError(
                f"values from {least:g} to {most:g}, not 0 to 1: scale them, or set data.normalization to their mean "
                "and standard deviation"
            )


class ImageCollator(MaskCollator):
    """Makes one type of the samples of a batch: images of 8 bits beside others are normalised, as these are.

    Args:
        masks: Draws the masks; None for a batch without masks.
        seed: Part of the key of every draw.
        normalization: Mean and standard deviation of each channel.
    """

    def __init__(self, masks: MaskSampler | None, seed: int, normalization: Normalization) -> None:
        super().__init__(masks, seed)
        self.normalization = normalization

    def __call__(self, samples: Sequence[Sample] | Sequence[tuple[Tensor, int]]) -> MaskedBatch:
        """Collate."""
        if len({sample[0].dtype for sample in samples}) > 1:
            samples = [self._normal(cast(Sample, sample)) for sample in samples]
        return super().__call__(samples)

    def _normal(self, sample: Sample) -> Sample:
        inputs, *views = (
            values if values.is_floating_point() else normalize(values, *self.normalization, axis=values.ndim - 3)
            for values in (sample.inputs, *sample.views)
        )
        return sample._replace(inputs=inputs, views=tuple(views))


class ImageDataModule(ReadingDataModule):
    """Images from a folder, a torchvision data set or the embedded scenes, with masks.

    Args:
        source: Where images come from: DigitScenes (embedded, the default), Folder or Torchvision.
        root: Short for a Folder source: a folder of images.
        masks: Builds the mask sampler for a token grid; null for batches without masks.
        transform: Builds the training transform for an image size; MultiCrop for methods of several views.
        batch_size: Images in a batch of one process.
        num_workers: Loader processes; null for one less than this process has cores, at most 8.
        seed: Key of shuffles, crops and masks; null for the seed of the run (``seed_everything``).
        img_size: Side of the inputs in pixels, or (height, width); null for what the model was built for.
        patch_size: Side of a patch in pixels; null for the model's.
        normalization: Mean and standard deviation of each channel, for values from 0 to 1 (floating-point arrays: for
            the values in them); null for what suits the model's number of channels.
        reader: When files are given up; null for a minute.
    """

    kind = "image"

    def __init__(
        self,
        source: ImageSource | None = None,
        root: str | None = None,
        masks: MaskFactory | None = MultiBlock,
        transform: Callable[[Size], TrainTransform] = PretrainTransform,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        reader: Reader | None = None,
    ) -> None:
        mean, std = normalization or (None, None)
        super().__init__(
            Folder(root) if root is not None else source or DigitScenes(),
            mask_factory=masks,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            img_size=img_size,
            patch_size=patch_size,
            mean=mean,
            std=std,
        )
        self.transform, self.reader = transform, reader or Reader()

    def images(self, split: Split) -> Images:
        """The images of a split, listed once."""
        return cast(Images, self.listing(split))

    def setup(self, stage: str) -> None:
        """Fail now rather than in a worker: also if training would do what the channels do not allow."""
        super().setup(stage)
        if stage == "fit":
            self.transform(self.size()).check_channels(self.channels())

    def check(self, listing: Listing, index: int) -> None:
        """Decode an image as training sees it, and as evaluation does."""
        images = cast(Images, listing)
        picture = with_timeout(partial(images.picture, index, self.channels()), self.reader.timeout)
        if self._mean is None:
            check_range(picture)
        if (found := channels_of(picture)) != self.channels():
            raise ChannelError(f"{listing.name(index)} has {found} channels, the model takes {self.channels()}")

    def dataset(self, split: str, augment: bool) -> ImageDataset:
        """The samples of a split."""
        return self._dataset(split, self.transform(self.size()) if augment else self._clean(), augment)

    def evaluation_dataset(self, split: str) -> ImageDataset:
        """Clean images, with views beside them, the same every time, if training has views."""
        train = self.transform(self.size())
        return self._dataset(split, Beside(self._clean(), train) if train.several else self._clean(), False)

    def _clean(self) -> CleanTransform:
        return CleanTransform(*self.preprocessing[:2])

    def _dataset(self, split: str, transform: Transform, replace: bool) -> ImageDataset:
        images, given = self.images(cast(Split, split)), None if self._mean is None else (self.mean, self.std)
        return ImageDataset(images, transform, self.seed, replace, self.report, self.reader, self.channels(), given)

    def collator(self, masks: MaskSampler | None) -> ImageCollator:
        """Makes batches of samples, with masks if there is a sampler for them."""
        return ImageCollator(masks, self.seed, (self.mean, self.std))
