"""Images and masks: the data module of I-JEPA."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from PIL import Image
from torch import Generator, Tensor

from jepa_lightning.data.base import MaskFactory
from jepa_lightning.data.embedded import DigitScenes
from jepa_lightning.data.reading import ReadingDataModule, ReadingDataset, Unreadable
from jepa_lightning.data.sources import Folder, Images, ImageSource, Listing, Split
from jepa_lightning.data.transforms import (
    Beside,
    CleanTransform,
    PretrainTransform,
    TrainTransform,
    Transform,
    Views,
)
from jepa_lightning.masking import MultiBlock
from jepa_lightning.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Size = tuple[int, int]


class ImageDataset(ReadingDataset):
    """Decodes and transforms; a file that cannot be decoded costs one warning, not the run.

    Args:
        images: The images.
        transform: Makes a uint8 tensor of an image; draws from PyTorch's generator.
        seed: Part of the key of every draw.
        replace: Give the next readable image in place of an unreadable one (training); otherwise a black image with
            label and index -1, which evaluation leaves out.
        report: Where unreadable images are noted; null for one of its own.
    """

    def __init__(
        self, images: Images, transform: Transform, seed: int, replace: bool, report: Unreadable | None = None
    ) -> None:
        super().__init__(images, seed, replace, report)
        self.images, self.transform = images, transform

    def read(self, index: int, generator: Generator) -> Image.Image:
        """Decode an image; nothing of it is drawn."""
        return self.images.image(index)

    def view(self, content: Image.Image) -> Tensor | Views:
        """Transform it, (C, H, W) or several views."""
        return self.transform(content)

    def blank(self) -> Image.Image:
        """A small black image."""
        return Image.new("RGB", (64, 64))


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
        normalization: Mean and standard deviation of each channel, for values from 0 to 1.
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
        normalization: tuple[tuple[float, float, float], tuple[float, float, float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        mean, std = normalization
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
        self.transform = transform

    def images(self, split: Split) -> Images:
        """The images of a split, listed once."""
        return cast(Images, self.listing(split))

    def check(self, listing: Listing, index: int) -> None:
        """Decode an image."""
        cast(Images, listing).image(index)

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
        return ImageDataset(self.images(cast(Split, split)), transform, self.seed, replace, self.report)
