"""Where clips come from: folders, lists of paths, and images shown as clips (mixtures: video_mixture.py)."""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from jepa_lightning.data.files import held_out
from jepa_lightning.data.image_files import EXTENSIONS, read_image, to_rgb
from jepa_lightning.data.sampler import Shares
from jepa_lightning.data.sources import ClassFolders, Files, Images, ImageSource, Listing, Source, Split
from jepa_lightning.data.video import Decoder, Video, VideoInfo
from jepa_lightning.ranges import within

VIDEO_EXTENSIONS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts", ".wmv", ".flv", ".3gp",
    ".ogv", ".gif",
}  # fmt: skip
STILL_EXTENSIONS = EXTENSIONS - VIDEO_EXTENSIONS
LIST_EXTENSIONS = {".csv", ".txt", ".npy"}


class Videos(Listing):
    """A list of videos, perhaps with images among them.

    Attributes:
        shares: Sizes and weights of the parts that training draws from; None to see every video once an epoch.
    """

    labels: Sequence[Any]
    classes: Sequence[Any]
    shares: Shares | None = None

    @abstractmethod
    def open(self, index: int, decoder: Decoder) -> Video:
        """The video, to be closed by the caller; raises whatever the decoder raises."""


class VideoSource(Source[Videos]):
    """Videos with labels in up to three splits."""


class Still(Video):
    """An image as a video: whichever frame is asked for, it is the image."""

    def __init__(self, image: Image.Image) -> None:
        self.pixels = torch.from_numpy(np.array(to_rgb(image)))
        self.info = VideoInfo(frames=1, fps=1.0, duration=1.0, height=image.height, width=image.width)

    def times(self) -> Float[np.ndarray, " frames"]:
        """The only frame is shown at once."""
        return np.zeros(1)

    def frames(self, index: Sequence[int]) -> UInt8[Tensor, "n height width 3"]:
        """As many views of the same memory."""
        return self.pixels.expand(len(index), -1, -1, -1)


class FileVideos(Files, Videos):
    """Video files; image files among them are decoded by Pillow and stand still."""

    def open(self, index: int, decoder: Decoder) -> Video:
        """Open the file."""
        path = self.root / self.files[index]
        if path.suffix.lower() in STILL_EXTENSIONS:
            return Still(read_image(path, self.background))
        return decoder.open(path)


class ListedVideos(FileVideos):
    """Video files that somebody has written down."""

    def open(self, index: int, decoder: Decoder) -> Video:
        """Open the file."""
        try:
            return super().open(index, decoder)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; correct the list, whose paths start from the folder it is in") from error


class VideoFolder(ClassFolders[FileVideos], VideoSource):
    """Video files, and image files, in folders.

    Three layouts: ``train/CLASS/x.mp4`` with ``val/`` (and perhaps ``test/``) beside it; ``CLASS/x.mp4``; or files
    without class folders, which train but cannot be probed.

    Args:
        root: The folder.
        holdout: Fraction kept for validation where there is no ``val`` folder; chosen by a hash of the file name, so
            that it stays the same when files are added.
        background: Colour behind transparent pixels of images, from 0 to 255; white unless set.
    """

    kind = "video"
    extensions = VIDEO_EXTENSIONS | STILL_EXTENSIONS
    listing = FileVideos


class VideoList(VideoSource):
    """Text files with a path and a label in each line, as the official code reads them.

    A line is ``path label`` or ``path::label`` without a header; a missing label is -1. Paths may be relative to the
    folder of the list. A ``.npy`` file holds an array of paths and no labels.

    Args:
        train: The list for training, or several.
        val: The list for validation; null to hold out a part of ``train``.
        test: The list for ``jepa test``.
        holdout: Fraction of ``train`` kept for validation where there is no ``val``; chosen by a hash of the path.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        holdout: float = 0.1,
    ) -> None:
        self.lists = {name: _paths(given) for name, given in (("train", train), ("val", val), ("test", test))}
        within(0.0, 1.0, holdout=holdout)
        self.holdout = holdout
        self._read: dict[str, list[Entry]] = {}

    @property
    def title(self) -> str:
        """``kinetics.csv (VideoList)``."""
        return f"{', '.join(path.name for path in self.lists['train'])} (VideoList)"

    def split(self, split: Split) -> ListedVideos:
        """The videos of a split.

        Raises:
            FileNotFoundError: No such list, no entry in it, or no such split.
            ValueError: A line without a path or with a label that is no integer.
        """
        if split == "all":
            return self._videos([entry for name in self.lists for entry in self._entries(name)])
        if self.lists[split] and (split != "train" or self.lists["val"]):
            return self._videos(self._entries(split))
        if split == "test":
            raise FileNotFoundError("there is no list of test videos: set --data.source.test")
        entries = self._entries("train")
        held = held_out([entry.name for entry in entries], [entry.label for entry in entries], self.holdout)
        return self._videos([entry for entry, out in zip(entries, held, strict=True) if out == (split == "val")])

    def _entries(self, split: str) -> list[Entry]:
        if split not in self._read:
            self._read[split] = [entry for path in self.lists[split] for entry in read_list(path)]
            if self.lists[split] and not self._read[split]:
                raise FileNotFoundError(f"no videos in {', '.join(str(path) for path in self.lists[split])}")
        return self._read[split]

    def _videos(self, entries: Sequence[Entry]) -> ListedVideos:
        # Classes are counted over all lists, so that every split has the same.
        largest = max(entry.label for name in self.lists for entry in [*self._entries(name), NO_ENTRY])
        files, labels = [str(entry.folder / entry.name) for entry in entries], [entry.label for entry in entries]
        return ListedVideos(Path(), files, labels, [str(label) for label in range(largest + 1)])


def source_of(root: str) -> VideoSource:
    """A folder of videos, or a list of them."""
    path = Path(root).expanduser()
    named_like_a_list = path.suffix.lower() in LIST_EXTENSIONS and not path.is_dir()
    return VideoList(root) if path.is_file() or named_like_a_list else VideoFolder(root)


class Entry(NamedTuple):
    """A line of a list.

    Attributes:
        folder: Of the list, which a relative path starts from.
        name: The path as it was written.
        label: Class index, -1 if unknown.
    """

    folder: Path
    name: str
    label: int = -1


NO_ENTRY = Entry(Path(), "")


def _paths(given: str | list[str] | None) -> list[Path]:
    names = [given] if isinstance(given, str) else given or []
    return [Path(name).expanduser() for name in names]


def read_list(path: Path) -> list[Entry]:
    """The entries of a list.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it, or a line of it, cannot be understood.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no such list of videos: {path} (set --data.root to a file with a path and a label in each line)"
        )
    if path.suffix == ".npy":
        try:
            names = np.load(path, allow_pickle=False).astype(str).reshape(-1).tolist()
        except ValueError as error:
            raise ValueError(f"{path} is no array of strings: save np.array(paths, dtype=str)") from error
        return [Entry(path.parent, name) for name in names]
    # Lines end with a line feed: other line breaks may be in names, and bytes that are no UTF-8.
    lines = path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
    return [
        Entry(path.parent, *_parse(line.strip(), f"{path}, line {number}"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _parse(line: str, where: str) -> tuple[str, int]:
    """Path and label of one line."""
    if line.startswith('"'):  # as pandas writes a path with spaces
        name, *rest = next(csv.reader([line], delimiter=" "))
        label = "".join(rest)
    elif "::" in line:
        name, _, label = line.rpartition("::")
    else:
        name, label = line.rsplit(maxsplit=1) if len(line.split()) > 1 else (line, "")
        if Path(label).suffix.lower() in VIDEO_EXTENSIONS | STILL_EXTENSIONS:
            name, label = line, ""  # a path with spaces, without a label
    if not label and re.search(r",\s*-?\d+$", name):
        raise ValueError(f"{where}: {line!r} is separated by a comma; write `path label`, separated by a space")
    try:
        return name.strip(), int(label) if label else -1
    except ValueError:
        raise ValueError(f"{where}: label {label!r} is no integer; write `path label`, separated by a space") from None


class StillVideos(Videos):
    """A list of images, each a clip in which nothing moves."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.labels, self.classes = images.labels, images.classes

    def open(self, index: int, decoder: Decoder) -> Video:
        """Decode the image; the decoder is not asked."""
        return Still(self.images.image(index))

    def name(self, index: int) -> str:
        """Name of the image."""
        return self.images.name(index)

    def key(self, index: int) -> str:
        """What tells it from all others."""
        return self.images.key(index)


class StillImages(VideoSource):
    """Images repeated as clips, for joint training on images and videos or for a video model on images.

    Args:
        source: Where the images come from.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    @property
    def title(self) -> str:
        """``photos (Folder), as clips``."""
        return f"{self.source.title}, as clips"

    def prepare(self) -> None:
        """Whatever the images need."""
        self.source.prepare()

    def split(self, split: Split) -> StillVideos:
        """The images of a split."""
        return StillVideos(self.source.split(split))
