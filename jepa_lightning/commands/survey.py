"""What a folder holds and what this machine can do: the facts that `jepa init` writes a configuration from."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.files import find_files, printable
from jepa_lightning.data.image_files import EXTENSIONS, read_image
from jepa_lightning.data.sources import Folder
from jepa_lightning.data.trajectories import EpisodeFolder
from jepa_lightning.data.video_sources import VIDEO_EXTENSIONS, VideoFolder
from jepa_lightning.data.workers import available_cores

Kind = Literal["images", "clips", "episodes"]
LOOKED_AT = 200
"""Most files that are opened."""
SMALL, LARGE = 0.25, 0.1
"""Fraction that is held out of few and of many samples: an accuracy on few of them says little."""


class Survey(NamedTuple):
    """What a folder of images, videos or episodes holds.

    Attributes:
        root: The folder.
        kind: ``images``, ``clips`` (videos), or ``episodes`` (videos or frames with actions in ``NAME.npz``).
        files: Number of files of this kind.
        training: Number of those that training uses.
        holdout: Fraction of the others where no folders say what is held out.
        classes: Number of files of each class by its name; empty where there are no class folders.
        sides: Shorter side in pixels of the files that were opened.
        modes: Number of opened files by their pixels: ``RGB``, ``L`` ...
        seconds: Length of the videos that were opened.
        fps: Frame rate of the videos that were opened.
        bad: Why files that were opened cannot be read, by name.
        duplicates: Number of files whose content another file has, too.
        opened: Number of files that were opened.
    """

    root: Path
    kind: Kind
    files: int
    training: int
    holdout: float
    classes: dict[str, int]
    sides: tuple[int, ...]
    modes: dict[str, int]
    seconds: tuple[float, ...]
    fps: tuple[float, ...]
    bad: dict[str, str]
    duplicates: int
    opened: int

    @property
    def side(self) -> int:
        """The median of the shorter sides in pixels; 0 if nothing could be read."""
        return int(statistics.median(self.sides)) if self.sides else 0

    def lines(self) -> list[str]:
        """The same in words, a line each."""
        found = [f"{self.files:,} {self.kind} in {printable(str(self.root))}, {self.training:,} of them for training"]
        if self.classes:
            least, most = min(self.classes.values()), max(self.classes.values())
            found.append(f"{len(self.classes)} classes of {least:,} to {most:,}: a probe can tell whether it learns")
        else:
            found.append("no class folders: training works, but no probe can tell what was learned")
        if self.sides:
            shown = ", ".join(f"{count} {mode}" for mode, count in sorted(self.modes.items()))
            found.append(
                f"shorter side {min(self.sides)} to {max(self.sides)} pixels, median {self.side}"
                + (f"; of {self.opened} opened: {shown}" if shown else "")
            )
        if self.seconds:
            length, rate = statistics.median(self.seconds), statistics.median(self.fps)
            found.append(
                f"length {min(self.seconds):.1f} to {max(self.seconds):.1f} s, median {length:.1f} s at {rate:g} fps"
            )
        if self.duplicates:
            found.append(f"copies of other files: {self.duplicates:,}; held-out results may be too good")
        for name, reason in list(self.bad.items())[:3]:
            found.append(f"cannot be read: {name} ({reason})")
        if len(self.bad) > 3:
            found.append(f"and {len(self.bad) - 3} more of the {self.opened} opened; training replaces and counts them")
        return found


class Machine(NamedTuple):
    """What this process may use.

    Attributes:
        cores: Processor cores.
        memory: Memory in GB.
        gpu: Name of the first GPU; empty if there is none.
        gpu_memory: Its memory in GB.
    """

    cores: int
    memory: float
    gpu: str = ""
    gpu_memory: float = 0.0

    def line(self) -> str:
        """The same in words."""
        cores = f"{self.cores} processor core{'s' * (self.cores > 1)}, {self.memory:.0f} GB"
        return f"{self.gpu} with {self.gpu_memory:.0f} GB, {cores}" if self.gpu else f"{cores}, no GPU"


def this_machine() -> Machine:
    """The machine that this runs on."""
    cores = available_cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else 0.0
    if not torch.cuda.is_available():
        return Machine(cores, memory)
    properties = torch.cuda.get_device_properties(0)
    return Machine(cores, memory, properties.name, properties.total_memory / 1e9)


def look(root: Path, kind: Kind | None = None) -> Survey:
    """Look at a folder: list it, and open at most LOOKED_AT files.

    Args:
        root: The folder.
        kind: What it holds; None to see by the endings of its files.

    Raises:
        FileNotFoundError: No such folder, or nothing of this kind in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}: give the folder of your images, videos or episodes")
    kind = kind or _kind(root)
    holdout = LARGE
    if kind == "episodes":
        paths = [episode.path for episode in EpisodeFolder(str(root), holdout=0.0).episodes("train")]
        training, classes = len(EpisodeFolder(str(root)).episodes("train")), {}
    else:
        make = Folder if kind == "images" else VideoFolder
        listing = make(str(root)).split("all")
        holdout = LARGE if len(listing) > 3000 else SMALL
        paths, training = [listing.root / name for name in listing.files], len(make(str(root), holdout).split("train"))
        labels = Counter(int(label) for label in listing.labels)
        classes = {str(name): labels[number] for number, name in enumerate(listing.classes)}
    chosen = paths[:: max(1, len(paths) // LOOKED_AT)][:LOOKED_AT]
    opened = _open(chosen, root)
    return Survey(root, kind, len(paths), training, holdout, classes, *opened, _copies(paths), len(chosen))


class Opened(NamedTuple):
    """What the opened files are: fields of Survey."""

    sides: tuple[int, ...]
    modes: dict[str, int]
    seconds: tuple[float, ...]
    fps: tuple[float, ...]
    bad: dict[str, str]


def _open(paths: Sequence[Path], root: Path) -> Opened:
    sides, seconds, fps = list[int](), list[float](), list[float]()
    modes, bad = Counter[str](), dict[str, str]()
    for path in tqdm(paths, desc="Looking at files", unit=" files", delay=2, disable=None):
        try:
            if path.suffix.lower() in VIDEO_EXTENSIONS - {".gif"}:
                with PyAVDecoder().open(str(path)) as video:
                    sides.append(min(video.info.height, video.info.width))
                    seconds.append(video.info.duration)
                    fps.append(video.info.fps)
            else:
                sides.append(min(read_image(path).size))
                with Image.open(path) as image:
                    modes[image.mode] += 1
        except Exception as error:  # whatever a decoder raises
            bad[printable(path.relative_to(root).as_posix())] = (str(error).splitlines() or [repr(error)])[0][:120]
    return Opened(tuple(sides), dict(modes), tuple(seconds), tuple(fps), bad)


def _kind(root: Path) -> Kind:
    """What most of the files in a folder are."""
    videos = find_files(root, VIDEO_EXTENSIONS - {".gif"})
    if videos and any((root / name).with_suffix(".npz").is_file() for name in videos[:20]):
        return "episodes"
    images = find_files(root, EXTENSIONS)
    if not images and not videos:
        known = ", ".join(sorted(EXTENSIONS | VIDEO_EXTENSIONS))
        raise FileNotFoundError(f"{root} has neither images nor videos (looked for {known})")
    return "clips" if len(videos) > len(images) else "images"


def _copies(paths: Sequence[Path]) -> int:
    """How many files have the content of one before them; only files of one size are read."""
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        try:
            sizes.setdefault(path.stat().st_size, []).append(path)
        except OSError:  # gone, or not ours to look at; reading it says so
            continue
    alike = [path for group in sizes.values() if len(group) > 1 for path in group]
    seen: Counter[tuple[int, bytes]] = Counter()
    for path in tqdm(alike, desc="Looking for copies", unit=" files", delay=2, disable=None):
        try:
            with path.open("rb") as file:
                seen[(path.stat().st_size, hashlib.file_digest(file, "blake2b").digest())] += 1
        except OSError:
            continue
    return sum(count - 1 for count in seen.values())
