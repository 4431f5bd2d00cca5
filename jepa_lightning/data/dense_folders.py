"""Folders of images with a label file for each: classes (ADE20K, VOC or plain), depths, and the sequences of DAVIS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning.data.dense import UNKNOWN, DenseSource, LabelError, Labelled
from jepa_lightning.data.files import find_files, printable
from jepa_lightning.data.image_files import EXTENSIONS, read_image

SPLITS = {
    "train": ("train", "training", "Train"),
    "val": ("val", "validation", "Val", "valid"),
    "test": ("test", "testing", "Test"),
}
"""Names of the folders of a split."""
DEPTHS = (".png", ".npy", ".tif", ".tiff")


class Pair(NamedTuple):
    """An image and its label.

    Attributes:
        image: The image file.
        label: Its label file, without the suffix where there are several.
    """

    image: Path
    label: Path


def voc_colours() -> Int[np.ndarray, "256 3"]:
    """The palette of VOC and DAVIS: the bits of a class, dealt in turn to red, green and blue, the lowest bit first."""
    numbers, colours = np.arange(256), np.zeros((256, 3), dtype=np.int64)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours


def read_classes(path: Path) -> Int[Tensor, "height width"]:
    """The number in each pixel of a label file: 8 or 16 bit grey, a palette, or the colours of VOC's palette.

    Raises:
        LabelError: If there is no such file, or its colours are no palette's.
    """
    name = printable(path.name)
    if not path.is_file():
        raise LabelError(f"{name} is missing")
    try:
        with Image.open(path) as image:
            image.load()
            values = np.asarray(image)
            mode = image.mode
    except (OSError, ValueError) as error:
        raise LabelError(f"{name} cannot be read ({error})") from error
    if mode in ("P", "L", "1") or mode.startswith("I"):
        return torch.from_numpy(values.astype(np.int64))
    if mode not in ("RGB", "RGBA"):
        raise LabelError(f"{name} has mode {mode}, not numbers of classes or colours of a palette")
    code = values[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    palette = voc_colours() @ np.array([1 << 16, 1 << 8, 1])
    order = np.argsort(palette)
    found = order[np.searchsorted(palette[order], code).clip(max=255)]
    if (palette[found] != code).any():
        wrong = values[..., :3][palette[found] != code][0].tolist()
        raise LabelError(f"{name} has the colour {wrong}, which is not in the palette of VOC")
    return torch.from_numpy(found)


def read_depth(path: Path, scale: float) -> Tensor:
    """The depth in each pixel: of an .npy file as it is, of an image its values over ``scale``.

    Raises:
        LabelError: If there is no such file, or it is no map of finite numbers.
    """
    found = next((path.with_suffix(suffix) for suffix in DEPTHS if path.with_suffix(suffix).is_file()), None)
    if found is None:
        raise LabelError(f"{printable(path.stem)} has no depth file ({', '.join(DEPTHS)})")
    name = printable(found.name)
    try:
        if found.suffix == ".npy":
            values = np.load(found, allow_pickle=False)
        else:
            with Image.open(found) as image:
                values = np.asarray(image)
    except (OSError, ValueError) as error:
        raise LabelError(f"{name} cannot be read ({error})") from error
    if values.ndim != 2:
        raise LabelError(f"{name} has the shape {list(values.shape)}, not (height, width)")
    depth = torch.from_numpy(values.astype(np.float32)) / (1.0 if found.suffix == ".npy" else scale)
    if not depth.isfinite().all() or (depth < 0).any():
        raise LabelError(f"{name} has depths that are negative or not finite: write 0 where depth is not known")
    return depth


def same_size(frames: Tensor, labels: Tensor, name: str) -> None:
    """Check that labels have the size of their image.

    Raises:
        LabelError: If not.
    """
    if frames.shape[-2:] != labels.shape[-2:]:
        (height, width), (rows, columns) = frames.shape[-2:], labels.shape[-2:]
        raise LabelError(f"{name} is {height}x{width}, its label {rows}x{columns} pixels")


class PairFolder(DenseSource):
    """Images with label files beside them.

    Args:
        root: ADE20K (``images/training``, ``annotations/training``), VOC (``JPEGImages``, ``SegmentationClass``,
            ``ImageSets/Segmentation/train.txt``) or, for labels or depths of your own, ``images/train`` with
            ``labels/train``; without folders of splits a fifth of the images is for validation.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(f"{root} is no folder: give one with images/ and labels/ in it")
        names = [("images", "annotations"), ("JPEGImages", "SegmentationClass"), ("images", "labels")]
        names += [("images", "depth")]
        found = [pair for pair in names if all((self.root / name).is_dir() for name in pair)]
        if not found:
            wanted = ", ".join(f"{images}/ with {labels}/" for images, labels in names)
            raise FileNotFoundError(f"{root} has none of these pairs of folders: {wanted}")
        self.images, self.labels = found[0]
        self._pairs: dict[str, list[Pair]] = {}

    @property
    def title(self) -> str:
        """``NAME (LabelFolder)``."""
        return f"{printable(self.root.name)} ({type(self).__name__})"

    def count(self, split: str) -> int:
        """Number of images, with a label or without."""
        return len(self.pairs(split))

    def pairs(self, split: str) -> list[Pair]:
        """The files of a split, listed once."""
        if split not in self._pairs:
            files = self._files(split)
            self._pairs[split] = [
                Pair(self.root / self.images / file, (self.root / self.labels / file).with_suffix(".png"))
                for file in files
            ]
        return self._pairs[split]

    def _files(self, split: str) -> Sequence[str]:
        """Paths of images below the folder of images."""
        listed = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if listed.is_file():
            return [f"{name}.jpg" for name in listed.read_text().split()]
        folder = self.root / self.images
        here = next((name for name in SPLITS[split] if (folder / name).is_dir()), None)
        if here is not None:
            return [f"{here}/{name}" for name in find_files(folder / here, EXTENSIONS)]
        if any((folder / name).is_dir() for names in SPLITS.values() for name in names) or split == "test":
            raise FileNotFoundError(f"{folder} has no folder {' or '.join(SPLITS[split])}")
        return [f for i, f in enumerate(find_files(folder, EXTENSIONS)) if (i % 5 == 0) == (split == "val")]


class LabelFolder(PairFolder):
    """Images with the class of each pixel in a PNG file: numbers in 8 or 16 bits, a palette, or VOC's colours.

    Args:
        root: ADE20K (``images/training``, ``annotations/training``), VOC (``JPEGImages``, ``SegmentationClass``,
            ``ImageSets/Segmentation/train.txt``) or ``images/train`` with ``labels/train``.
        classes: Number of classes, or their names; null for the 150 of ADE20K and the 21 of VOC.
        ignored: Value of pixels that do not count; null for 0 in ADE20K, whose classes then begin with 1, else 255.
    """

    def __init__(self, root: str, classes: int | list[str] | None = None, ignored: int | None = None) -> None:
        super().__init__(root)
        known = {"annotations": 150, "SegmentationClass": 21}
        classes = known.get(self.labels) if classes is None else classes
        if not classes:
            raise ValueError("labels of your own need the number of classes, or their names: give --data.classes")
        self.classes = [str(number) for number in range(classes)] if isinstance(classes, int) else classes
        self.first = int(ignored == 0 or (ignored is None and self.labels == "annotations"))
        self.ignored = (0 if self.first else 255) if ignored is None else ignored

    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """An image."""
        pair = self.pairs(split)[index]
        name = printable(pair.image.name)
        values = read_classes(pair.label)
        classes = torch.where(values == self.ignored, UNKNOWN, values - self.first)
        if int(classes.max()) >= len(self.classes) or int(classes.min()) < UNKNOWN:
            raise LabelError(
                f"{printable(pair.label.name)} has the value {int(values[classes == classes.max()][0])}, "
                f"beyond {len(self.classes)} classes from {self.first} on"
            )
        frames = pil_to_tensor(read_image(pair.image))[None]
        same_size(frames, classes, name)
        return Labelled(frames, classes[None], name)


class DepthFolder(PairFolder):
    """Images with the depth of each pixel in a PNG or NPY file, 0 where it is not known.

    Args:
        root: ``images/train`` with ``depth/train``, ``images/val`` with ``depth/val``.
        scale: Values of a PNG file for a unit of depth (1000 for millimetres to metres); NPY files are taken as is.
        nearest: Least depth that can be predicted.
        farthest: Largest depth that can be predicted.
    """

    depth = True

    def __init__(self, root: str, scale: float = 1000.0, nearest: float = 0.001, farthest: float = 10.0) -> None:
        super().__init__(root)
        if scale <= 0 or not 0 < nearest < farthest:
            raise ValueError(
                f"scale {scale}, nearest {nearest} and farthest {farthest}: give 0 < scale, nearest < farthest"
            )
        self.scale, self.classes, self.depth_range = scale, [], (nearest, farthest)

    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """An image."""
        pair = self.pairs(split)[index]
        depth = read_depth(pair.label, self.scale)
        frames = pil_to_tensor(read_image(pair.image))[None]
        same_size(frames, depth, printable(pair.image.name))
        return Labelled(frames, depth[None], printable(pair.image.name))


class DAVIS(DenseSource):
    """Sequences of frames with the objects of each, in the layout of DAVIS 2017.

    Args:
        root: Has ``JPEGImages/480p/SEQUENCE/00000.jpg`` and ``Annotations/480p/SEQUENCE/00000.png``.
        resolution: Name of the folder between, ``480p`` or ``Full-Resolution``.
        year: Of the lists ``ImageSets/2017/val.txt``; without them every sequence is in every split.
    """

    clips = True

    def __init__(self, root: str, resolution: str = "480p", year: str = "2017") -> None:
        self.root, self.resolution, self.year = Path(root).expanduser(), resolution, year
        self.classes = []
        if not (self.root / "JPEGImages" / resolution).is_dir():
            raise FileNotFoundError(f"{root} has no folder JPEGImages/{resolution}: see --data.resolution")

    def sequences(self, split: str) -> list[str]:
        """Names of the sequences of a split."""
        listed = self.root / "ImageSets" / self.year / f"{split}.txt"
        if listed.is_file():
            return listed.read_text().split()
        return sorted(path.name for path in (self.root / "JPEGImages" / self.resolution).iterdir() if path.is_dir())

    def count(self, split: str) -> int:
        """Number of sequences."""
        return len(self.sequences(split))

    def sample(self, split: str, index: int, num_frames: int) -> Labelled:
        """A whole sequence."""
        name = self.sequences(split)[index]
        folder = self.root / "JPEGImages" / self.resolution / name
        files = [folder / file for file in find_files(folder, EXTENSIONS)]
        masks = self.root / "Annotations" / self.resolution / name
        labels = [read_classes(masks / f"{file.stem}.png") for file in files]
        if not labels or len({mask.shape for mask in labels}) > 1:
            raise LabelError(f"sequence {printable(name)} has no frames, or labels of several sizes")
        frames = torch.stack([pil_to_tensor(read_image(file)) for file in files])
        objects = torch.stack(labels)
        same_size(frames, objects, f"sequence {printable(name)}")
        return Labelled(frames, torch.where(objects == 255, UNKNOWN, objects), printable(name))
