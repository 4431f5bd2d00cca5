"""Where samples come from, and where images do: a folder, a torchvision data set, or embedded scenes (embedded.py)."""

from __future__ import annotations

import hashlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from PIL import Image, ImageOps
from torch.utils.data import ConcatDataset
from tqdm import tqdm

Split = Literal["train", "val", "test", "all"]
"""``all`` is every sample there is, for `jepa predict`."""
Label = int | tuple[int, ...]
"""A class index, -1 if unknown, or one for each of several labels."""
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


class Listing(ABC):
    """A list of samples with labels, nothing of them decoded.

    Attributes:
        labels: Class index of each sample, -1 if unknown; with several labels a tuple of them.
        classes: Names of the classes; with several labels one list for each.
        label_names: What the labels are, if there are several; empty for the usual single label.
    """

    labels: Sequence[Label]
    classes: Sequence[str] | Sequence[Sequence[str]]
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """A name for messages and result files."""

    def key(self, index: int) -> str:
        """What tells it from the samples of every other listing."""
        return self.name(index)


class Source(ABC):
    """Samples in up to three splits."""

    @property
    def title(self) -> str:
        """Name of the data set, for tables and reports."""
        return type(self).__name__

    def prepare(self) -> None:  # noqa: B027  # most sources have nothing to do
        """Download or render what is missing; called by one process of each machine, before ``split``."""

    @abstractmethod
    def split(self, split: Split) -> Listing:
        """The samples of a split.

        Raises:
            FileNotFoundError: If the source has no such split, or is not there.
        """


class Images(Listing):
    """A list of images."""

    labels: Sequence[int]
    classes: Sequence[str]

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The decoded image in RGB; raises whatever the decoder raises."""


class ImageSource(Source):
    """Images with labels in up to three splits."""

    @abstractmethod
    def split(self, split: Split) -> Images:
        """The images of a split.

        Raises:
            FileNotFoundError: If the source has no such split, or is not there.
        """


class Files(Listing):
    """Files below a folder."""

    labels: Sequence[Any]
    classes: Sequence[Any]

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Sequence[Any],
        classes: Sequence[Any],
        label_names: tuple[str, ...] = (),
    ) -> None:
        self.root, self.files, self.labels, self.classes = root, files, labels, classes
        self.label_names = label_names

    def name(self, index: int) -> str:
        """Path below the root."""
        return self.files[index]

    def key(self, index: int) -> str:
        """The whole path."""
        return str(self.root / self.files[index])


class FileImages(Files, Images):
    """Image files, decoded by Pillow and turned upright as their EXIF data asks."""

    def image(self, index: int) -> Image.Image:
        """Decode the whole file, so that a truncated one fails here."""
        return read_image(self.root / self.files[index])


def read_image(path: Path) -> Image.Image:
    """The image in RGB, upright."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


F = TypeVar("F", bound=Files)


class ClassFolders(Source, Generic[F]):
    """Files in folders, by class or not; subclasses say which files.

    Args:
        root: The folder.
        holdout: Fraction kept for validation where there is no ``val`` folder; chosen by a hash of the file name, so
            that it stays the same when files are added.
    """

    kind: ClassVar[str]
    extensions: ClassVar[set[str]]
    listing: type[F]

    def __init__(self, root: str, holdout: float = 0.1) -> None:
        self.root, self.holdout = Path(root).expanduser(), holdout

    @property
    def title(self) -> str:
        """``photos (Folder)``."""
        return f"{self.root.resolve().name} ({type(self).__name__})"

    def split(self, split: Split) -> F:
        """The files of a split.

        Raises:
            FileNotFoundError: No such folder, no files of this kind in it, or no such split.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"no such folder: {self.root} (set --data.root to a folder of {self.kind}s)")
        if split == "all":
            return self._scan(self.root)
        if (self.root / "train").is_dir():
            return self._named_split(split)
        if split == "test":
            raise FileNotFoundError(f"{self.root} has no test split: add a folder {self.root / 'test'}")
        found = self._scan(self.root)
        chosen = [i for i, out in enumerate(held_out(found.files, self.holdout)) if out == (split == "val")]
        return self.listing(
            found.root, [found.files[i] for i in chosen], [found.labels[i] for i in chosen], found.classes
        )

    def _named_split(self, split: Split) -> F:
        if not (self.root / split).is_dir():
            raise FileNotFoundError(f"{self.root} has no {split} split: add a folder {self.root / split}")
        found = self._scan(self.root / split)
        if split != "train":  # a class that only training has must not shift the labels
            classes = list(self._scan(self.root / "train").classes)
            unknown = sorted(set(found.classes) - set(classes))
            if unknown:
                raise FileNotFoundError(f"{self.root / split} has classes that {self.root / 'train'} lacks: {unknown}")
            labels = [classes.index(found.classes[k]) if k >= 0 else -1 for k in found.labels]
            return self.listing(found.root, found.files, labels, classes)
        return found

    def _scan(self, folder: Path) -> F:
        files = []
        for path, _, names in tqdm(os.walk(folder), desc=f"Listing {folder}", unit=" folders", delay=2, disable=None):
            below = Path(path).relative_to(folder)
            files += [(below / name).as_posix() for name in names if Path(name).suffix.lower() in self.extensions]
        files.sort()
        if not files:
            looked_for = ", ".join(sorted(self.extensions))
            raise FileNotFoundError(f"no {self.kind} files in {folder} (looked for {looked_for})")
        tops = [name.split("/")[0] if "/" in name else "" for name in files]
        classes = sorted(set(tops) - {""})
        number = {name: index for index, name in enumerate(classes)}
        return self.listing(folder, files, [number.get(top, -1) for top in tops], classes)


class Folder(ClassFolders[FileImages], ImageSource):
    """Image files in folders.

    Three layouts: ``train/CLASS/x.jpg`` with ``val/`` (and perhaps ``test/``) beside it, as ImageNet;
    ``CLASS/x.jpg``; or files without class folders, which train but cannot be probed.

    Args:
        root: The folder.
        holdout: Fraction kept for validation where there is no ``val`` folder; chosen by a hash of the file name, so
            that it stays the same when files are added.
    """

    kind = "image"
    extensions = EXTENSIONS
    listing = FileImages


class TorchvisionImages(Images):
    """A torchvision data set, or part of it."""

    def __init__(
        self, kind: str, dataset: Any, indices: Sequence[int], labels: Sequence[int], classes: Sequence[str]
    ) -> None:
        self.kind, self.dataset, self.indices = kind, dataset, indices
        self.labels, self.classes = labels, classes

    def image(self, index: int) -> Image.Image:
        """The image in RGB."""
        return self.dataset[self.indices[index]][0].convert("RGB")

    def name(self, index: int) -> str:
        """``CIFAR10/test/123``."""
        return f"{self.kind}/{self.indices[index]}"


class Torchvision(ImageSource):
    """A data set of ``torchvision.datasets`` by its class name.

    Its training part is used for pretraining (STL10: with the unlabelled images); one tenth of that is held out for
    validation; its test part (Imagenette: its validation part) is for ``jepa test``.

    Args:
        name: Class name: FashionMNIST, CIFAR10, CIFAR100, STL10, Imagenette, Flowers102, ...
        root: Where it is stored.
        download: Download it if it is not there.
    """

    ALIASES: dict[tuple[str, str], str] = {("STL10", "train"): "train+unlabeled", ("Imagenette", "test"): "val"}  # noqa: RUF012

    def __init__(self, name: str, root: str = "~/data", download: bool = False) -> None:
        import torchvision.datasets

        self.name, self.root, self.download = name, Path(root).expanduser(), download
        self.factory = getattr(torchvision.datasets, name, None)
        parameters = inspect.signature(self.factory).parameters if inspect.isclass(self.factory) else {}
        if not {"train", "split"} & set(parameters):
            raise ValueError(f"torchvision.datasets has no image set with splits called {name!r}; try CIFAR10 or STL10")
        self.parameters = set(parameters)

    @property
    def title(self) -> str:
        """``CIFAR10``."""
        return self.name

    def prepare(self) -> None:
        """Download, if that was asked for."""
        if self.download:
            for part in ("train", "test"):
                self._open(part, download=True)

    def split(self, split: Split) -> Images:
        """The images of a split; ``val`` is a tenth of the training part, chosen by position."""
        dataset = self._open("test" if split == "test" else "train")
        labels = _labels(dataset)
        chosen = list(range(len(labels)))
        if split in ("train", "val"):
            held_out = [_fraction(str(i)) < 0.1 and labels[i] >= 0 for i in chosen]
            chosen = [i for i in chosen if held_out[i] == (split == "val")]
        names = getattr(dataset, "classes", None) or range(max(labels) + 1)
        if split == "all":
            test = self._open("test")
            dataset, labels = ConcatDataset([dataset, test]), labels + _labels(test)
            chosen = list(range(len(labels)))
        kind = f"{self.name}/{split if split in ('test', 'all') else 'train'}"
        return TorchvisionImages(kind, dataset, chosen, [labels[i] for i in chosen], [str(name) for name in names])

    def _open(self, part: str, download: bool = False) -> Any:
        arguments: dict[str, Any] = {"root": str(self.root)}
        if "train" in self.parameters:
            arguments["train"] = part == "train"
        else:
            arguments["split"] = self.ALIASES.get((self.name, part), part)
        if "download" in self.parameters:
            arguments["download"] = download
        try:
            return self.factory(**arguments)  # type: ignore[misc]  # checked in the constructor
        except (RuntimeError, OSError) as error:
            if download:
                said = " ".join(str(error).split()).rstrip(":")
                raise FileNotFoundError(
                    f"{self.name} is not in {self.root} and could not be downloaded ({said}): put its files there as "
                    "torchvision lays them out, or set --data.source.root to where they are"
                ) from error
            raise FileNotFoundError(
                f"{self.name} is not in {self.root}: set --data.source.root, or --data.source.download true"
            ) from error


def _labels(dataset: Any) -> list[int]:
    """Labels without decoding an image, wherever this data set keeps them."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return [int(label) for label in getattr(dataset, attribute)]
    if hasattr(dataset, "_samples"):
        return [int(label) for _, label in dataset._samples]
    return [int(dataset[i][1]) for i in range(len(dataset))]


def held_out(names: Sequence[str], fraction: float) -> list[bool]:
    """Which of the names are kept for validation: as many as ``fraction`` says, but of two or more at least one."""
    chosen = [_fraction(name) < fraction for name in names]
    if all(chosen) or not any(chosen):  # so few names that none or all were chosen
        chosen = [len(names) > 1 and position == 0 for position in range(len(names))]
    return chosen


def _fraction(name: str) -> float:
    """A number in [0, 1) that follows from the name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little") / 2.0**48
