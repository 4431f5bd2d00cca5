"""Where samples come from, and where images do: a folder, a torchvision data set, or embedded scenes (embedded.py)."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from PIL import Image
from torch.utils.data import ConcatDataset

from jepa_lightning.data.channels import PICTURE_EXTENSIONS, Picture, as_channels, read_picture
from jepa_lightning.data.files import find_files, held_out, is_hidden, printable
from jepa_lightning.data.image_files import read_image, to_rgb
from jepa_lightning.data.scaled import Draw, read_part, resized_part
from jepa_lightning.preprocessing import WHITE
from jepa_lightning.ranges import within

Split = Literal["train", "val", "test", "all"]
"""``all`` is every sample there is, for `jepa predict`."""
Label = int | tuple[int, ...]
"""A class index, -1 if unknown, or one for each of several labels."""
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of the folders of splits, in any case."""


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


Listed = TypeVar("Listed", bound=Listing, covariant=True)


class Source(ABC, Generic[Listed]):
    """Samples in up to three splits.

    Attributes:
        background: Colour behind transparent pixels of images, from 0 to 255.
    """

    background: tuple[int, int, int] = WHITE

    @property
    def title(self) -> str:
        """Name of the data set, for tables and reports."""
        return type(self).__name__

    def prepare(self) -> None:  # most sources have nothing to do
        """Download or render what is missing; called by one process of each machine, before ``split``."""

    @abstractmethod
    def split(self, split: Split) -> Listed:
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

    def picture(self, index: int, channels: int = 3) -> Picture:
        """The decoded image with that number of channels."""
        image = self.image(index)
        return image if channels == 3 else as_channels(image, channels)

    def part(self, index: int, draw: Draw, size: tuple[int, int], channels: int = 3) -> Picture:
        """The part of an image that ``draw`` chooses for its height and width, resized."""
        return resized_part(self.picture(index, channels), draw, size)


class ImageSource(Source[Images]):
    """Images with labels in up to three splits."""


class Files(Listing):
    """Files below a folder.

    Attributes:
        background: Colour behind the transparent pixels of images among them.
    """

    labels: Sequence[Any]
    classes: Sequence[Any]
    background: tuple[int, int, int] = WHITE

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
        """Path below the root; what no line of text can hold is escaped."""
        return printable(self.files[index])

    def key(self, index: int) -> str:
        """The whole path."""
        return os.path.join(self.root, self.files[index])  # noqa: PTH118  # pathlib takes ten times as long


class FileImages(Files, Images):
    """Image files, decoded by Pillow and turned upright as their EXIF data asks."""

    def image(self, index: int) -> Image.Image:
        """Decode the whole file, so that a truncated one fails here."""
        return read_image(self.key(index), self.background)

    def picture(self, index: int, channels: int = 3) -> Picture:
        """Decode the whole file."""
        return read_picture(self.key(index), channels, self.background)

    def part(self, index: int, draw: Draw, size: tuple[int, int], channels: int = 3) -> Picture:
        """Decode as much as the part takes."""
        return read_part(self.key(index), draw, size, channels, self.background)


F = TypeVar("F", bound=Files)


class ClassFolders(Source[F], Generic[F]):
    """Files in folders, by class or not; subclasses say which files.

    Args:
        root: The folder.
        holdout: Fraction kept for validation where there is no ``val`` folder; chosen by a hash of the file name, so
            that it stays the same when files are added.
        background: Colour behind transparent pixels of images, from 0 to 255; white unless set.
    """

    kind: ClassVar[str]
    extensions: ClassVar[set[str]]
    listing: type[F]

    def __init__(self, root: str, holdout: float = 0.1, background: tuple[int, int, int] = WHITE) -> None:
        within(0.0, 1.0, holdout=holdout)
        self.root, self.holdout, self.background = Path(root).expanduser(), holdout, background

    @property
    def title(self) -> str:
        """``photos (Folder)``."""
        return f"{self.root.resolve().name} ({type(self).__name__})"

    def split(self, split: Split) -> F:
        """The files of a split.

        Raises:
            FileNotFoundError: No such folder, no files of this kind in it, or no such split.
            ValueError: If two folders could be a split.
        """
        if not self.root.is_dir():
            raise FileNotFoundError(f"no such folder: {self.root} (set --data.root to a folder of {self.kind}s)")
        folders = self._split_folders()
        if split == "all":
            return self._everything(folders)
        if folders:
            return self._named_split(split, folders)
        if split == "test":
            raise FileNotFoundError(f"{self.root} has no test split: add a folder {self.root / 'test'}")
        files = self._files(self.root)
        tops = [_top(name) for name in files]
        held = held_out(files, tops, self.holdout)
        chosen = [i for i, out in enumerate(held) if out == (split == "val")]
        classes = sorted(set(tops) - {""})
        return self._list(self.root, [files[i] for i in chosen], [tops[i] for i in chosen], classes)

    def _split_folders(self) -> dict[str, Path]:
        """The folders of the splits, in any case of their names.

        One alone is a split if it is for training, or if nothing is beside it and there are folders in it.
        """
        found: dict[str, Path] = {}
        for folder in sorted(path for path in self.root.iterdir() if path.name.lower() in SPLIT_NAMES):
            split = SPLIT_NAMES[folder.name.lower()]
            if folder.is_dir() and (other := found.setdefault(split, folder)) != folder:
                raise ValueError(f"{other} and {folder} could both be the {split} split: rename one of them")
        return found if "train" in found or len(found) > 1 or self._has_only(found.values()) else {}

    def _has_only(self, folders: Collection[Path]) -> bool:
        """Whether these are all that the root shows, and have folders in them."""
        shown = {path for path in self.root.iterdir() if not is_hidden(path.name)}
        return (
            bool(folders)
            and shown == set(folders)
            and all(any(path.is_dir() and not is_hidden(path.name) for path in folder.iterdir()) for folder in folders)
        )

    def _named_split(self, split: Split, folders: dict[str, Path]) -> F:
        if split not in folders:
            raise FileNotFoundError(f"{self.root} has no {split} split: add a folder {self.root / split}")
        files, train = self._files(folders[split]), folders.get("train", folders[split])
        tops = [_top(name) for name in files]
        # A class that only training has must not shift the labels.
        classes = sorted({_top(name) for name in (files if split == "train" else self._files(train))} - {""})
        if unknown := sorted(set(tops) - {"", *classes}):
            raise FileNotFoundError(f"{folders[split]} has classes that {train} lacks: {unknown}")
        return self._list(folders[split], files, tops, classes)

    def _everything(self, folders: dict[str, Path]) -> F:
        """All files below the root; where splits have folders, classes are those within them, training's first."""
        files, names = self._files(self.root), {folder.name: split for split, folder in folders.items()}
        tops = [_top(name.partition("/")[2] if names.get(_top(name)) else "" if names else name) for name in files]
        trained = {top for name, top in zip(files, tops, strict=True) if names.get(_top(name), "train") == "train"}
        classes = [*sorted(trained - {""}), *sorted({*tops} - trained - {""})]
        return self._list(self.root, files, tops, classes)

    def _files(self, folder: Path) -> list[str]:
        files = find_files(folder, self.extensions)
        if not files:
            looked_for = ", ".join(sorted(self.extensions))
            raise FileNotFoundError(f"no {self.kind} files in {folder} (looked for {looked_for})")
        return files

    def _list(self, folder: Path, files: Sequence[str], tops: Sequence[str], classes: Sequence[str]) -> F:
        number = {name: index for index, name in enumerate(classes)}
        listing = self.listing(folder, files, [number.get(top, -1) for top in tops], [printable(c) for c in classes])
        listing.background = self.background
        return listing


def _top(name: str) -> str:
    """The first folder of a path, which is the class; empty for a file without one."""
    return name.partition("/")[0] if "/" in name else ""


class Folder(ClassFolders[FileImages], ImageSource):
    """Image files in folders.

    Three layouts: ``train/CLASS/x.jpg`` with ``val/`` (and perhaps ``test/``) beside it, as ImageNet;
    ``CLASS/x.jpg``; or files without class folders, which train but cannot be probed.

    Args:
        root: The folder.
        holdout: Fraction kept for validation where there is no ``val`` folder; chosen by a hash of the file name, so
            that it stays the same when files are added.
        background: Colour behind transparent pixels, from 0 to 255; white unless set.
    """

    kind = "image"
    extensions = PICTURE_EXTENSIONS
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
        return to_rgb(self.dataset[self.indices[index]][0])

    def picture(self, index: int, channels: int = 3) -> Picture:
        """The image with that number of channels."""
        return as_channels(self.dataset[self.indices[index]][0], channels)

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
            known = [i for i in chosen if labels[i] >= 0]
            held = held_out([str(i) for i in known], [labels[i] for i in known], 0.1)
            kept = {i for i, out in zip(known, held, strict=True) if out}
            chosen = [i for i in chosen if (i in kept) == (split == "val")]
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
