"""Images and masks: the data module of I-JEPA."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from jepa_lightning.data.base import JEPADataModule, MaskFactory
from jepa_lightning.data.embedded import DigitScenes
from jepa_lightning.data.sampler import Draw
from jepa_lightning.data.sources import Folder, Images, ImageSource, Split
from jepa_lightning.data.transforms import IMAGENET_MEAN, IMAGENET_STD, CleanTransform, PretrainTransform, Transform
from jepa_lightning.masking import MaskedBatch, MultiBlock, Sample, seeded

Size = tuple[int, int]


class ImageDataset(Dataset[Sample]):
    """Decodes and transforms; a file that cannot be decoded costs one warning, not the run.

    Args:
        images: The images.
        transform: Makes a uint8 tensor of an image; draws from PyTorch's generator.
        seed: Part of the key of every draw.
        replace: Give the next readable image in place of an unreadable one (training); otherwise a black image with
            label and index -1, which evaluation leaves out.
    """

    def __init__(self, images: Images, transform: Transform, seed: int, replace: bool) -> None:
        self.images, self.transform, self.seed, self.replace = images, transform, seed, replace
        # Workers are other processes: what they could not read is told through a file.
        self.report = Path(tempfile.gettempdir()) / f"jepa-unreadable-{uuid.uuid4().hex}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw | int) -> Sample:
        """The sample, transformed with randomness that follows from (seed, epoch, index)."""
        index, epoch, step = draw if isinstance(draw, Draw) else Draw(draw)
        for position in range(len(self)):
            chosen = (index + position) % len(self)
            try:
                image = self.images.image(chosen)
            except Exception as error:  # decoders raise whatever they like
                self._note(chosen, error)
                if self.replace:
                    continue
                return Sample(self.transform(Image.new("RGB", (64, 64))), -1, -1, epoch, step)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seeded("crop", self.seed, epoch, index).initial_seed())
                return Sample(self.transform(image), self.images.labels[chosen], chosen, epoch, step)
        raise ValueError(f"none of the {len(self)} images could be decoded, the last: {self.images.name(chosen)}")

    def _note(self, index: int, error: Exception) -> None:
        with self.report.open("a") as report:
            report.write(f"{self.images.name(index)}\t{type(error).__name__}: {error}\n".replace("\n", " ") + "\n")

    def unreadable(self) -> list[str]:
        """Names of the files that could not be decoded so far, in any process."""
        if not self.report.exists():
            return []
        return sorted({line.split("\t")[0] for line in self.report.read_text().splitlines()})


class ImageDataModule(JEPADataModule):
    """Images from a folder, a torchvision data set or the embedded scenes, with masks.

    Args:
        source: Where images come from: DigitScenes (embedded, the default), Folder or Torchvision.
        root: Short for a Folder source: a folder of images.
        masks: Builds the mask sampler for a token grid.
        transform: Builds the training transform for an image size.
        batch_size: Images in a batch of one process.
        num_workers: Loader processes; null for one less than this process has cores, at most 8.
        seed: Key of shuffles, crops and masks; null for the seed of the run (``seed_everything``).
        img_size: Side of the inputs in pixels, or (height, width); null for what the model was built for.
        patch_size: Side of a patch in pixels; null for the model's.
        normalization: Mean and standard deviation of each channel, for values from 0 to 1.
    """

    def __init__(
        self,
        source: ImageSource | None = None,
        root: str | None = None,
        masks: MaskFactory = MultiBlock,
        transform: Callable[[Size], PretrainTransform] = PretrainTransform,
        batch_size: int = 64,
        num_workers: int | None = None,
        seed: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | None = None,
        normalization: tuple[tuple[float, float, float], tuple[float, float, float]] = (IMAGENET_MEAN, IMAGENET_STD),
    ) -> None:
        super().__init__(masks, batch_size, num_workers, seed, img_size, patch_size, *normalization)
        self.source = Folder(root) if root is not None else source or DigitScenes()
        self.transform = transform
        self._images: dict[str, Images] = {}
        self._datasets: list[ImageDataset] = []
        self._told = 0

    def prepare_data(self) -> None:
        """Download or render, in one process of each machine."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Fail now rather than in a worker if nothing can be read, and say what cannot be probed."""
        if stage == "predict":
            return
        images = self.images("train")
        if not any(_readable(images, index) for index in range(len(images))):
            raise ValueError(f"none of the {len(images)} images can be decoded, for example {images.name(0)}")
        labelled = {label for label in images.labels if label >= 0}
        if not labelled:
            rank_zero_warn(
                "the images have no labels (no class folders): training works, linear and k-NN probes do not"
            )
        elif len(labelled) == 1:
            only = images.classes[labelled.pop()]
            rank_zero_warn(f"all images are of one class, {only!r}: training works, linear and k-NN probes do not")

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.images("train").classes)

    def images(self, split: Split) -> Images:
        """The images of a split, listed once."""
        if split not in self._images:
            self._images[split] = self.source.split(split)
        return self._images[split]

    def dataset(self, split: str, augment: bool) -> ImageDataset:
        """The samples of a split."""
        transform: Transform = self.transform(self.size()) if augment else CleanTransform(self.size())
        dataset = ImageDataset(self.images(split), transform, self.seed, replace=augment)  # type: ignore[arg-type]
        self._datasets.append(dataset)
        return dataset

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every image of the source, clean, in order, without masks."""
        return DataLoader(self.dataset("all", augment=False), shuffle=False, **self._loader_options(None))

    def on_after_batch_transfer(self, batch: MaskedBatch, dataloader_idx: int) -> MaskedBatch:
        """Normalise on the device, and say when the first file could not be decoded."""
        if not self._told and (names := self.unreadable()):
            self._told = len(names)
            rank_zero_warn(f"cannot decode {names[0]}: skipped, as every such file; their number is told at the end")
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def teardown(self, stage: str) -> None:
        """Count and name the files that were skipped."""
        if len(names := self.unreadable()) > 1:
            rank_zero_warn(
                f"{len(names)} files could not be decoded and were skipped: {', '.join(names[:10])}"
                + (" ..." if len(names) > 10 else "")
            )
        for dataset in self._datasets:
            dataset.report.unlink(missing_ok=True)

    def unreadable(self) -> list[str]:
        """Names of all files that could not be decoded so far."""
        return sorted({name for dataset in self._datasets for name in dataset.unreadable()})


def _readable(images: Images, index: int) -> bool:
    try:
        images.image(index)
    except Exception:  # decoders raise whatever they like
        return False
    return True
