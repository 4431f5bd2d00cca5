"""The embedded data set: scikit-learn's handwritten digits in front of its photographs, written once as JPEG files.

1,797 real digits (UCI, 8x8 pixels) and two photographs are all that is needed, and they come with scikit-learn: no
download. A scene holds one digit at a random place, size, tilt and colour before a random piece of a photograph with
clutter, so that pixels alone say little about the class. Digits and pieces of photographs are never shared by splits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance
from tqdm import tqdm

from jepa_lightning.data.sources import Folder, Images, ImageSource, Split

VERSION = 1
"""Part of the folder's name: a change of the rendering makes a new folder."""
CONTRAST = (0.2, 0.6)
"""Of a photograph behind a digit, over its own: with more of it, a small model sees nothing else in minutes."""
COUNTS: dict[str, int] = {"train": 6000, "val": 1000, "test": 1000}
DIGITS: dict[str, slice] = {"train": slice(0, 1197), "val": slice(1197, 1497), "test": slice(1497, 1797)}
COLUMNS: dict[str, tuple[float, float]] = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/jepa_lightning`` or ``~/.cache/jepa_lightning``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jepa_lightning"


def write_once(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder by writing a temporary one and renaming it, unless it is there already.

    Args:
        folder: The folder.
        write: Fills the temporary folder; if it fails, nothing stays behind.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        write(temporary)
        if not folder.is_dir():  # another process may have been first
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class DigitScenes(ImageSource):
    """Handwritten digits in cluttered scenes, ten classes; needs no download.

    Args:
        size: Side of a scene in pixels.
        cache: Where the files are written, once; null for ~/.cache/jepa_lightning.
    """

    def __init__(self, size: int = 64, cache: str | None = None) -> None:
        self.size = size
        self.root = (Path(cache).expanduser() if cache else default_cache()) / f"digit_scenes_v{VERSION}_{size}"

    def prepare(self) -> None:
        """Write the files, if they are not there; an interrupted attempt leaves nothing behind that counts."""
        write_once(self.root, self._write)

    def _write(self, folder: Path) -> None:
        with tqdm(total=sum(COUNTS.values()), desc=f"Writing {self.root}", unit="image", disable=None) as progress:
            for split, count in COUNTS.items():
                _write_split(folder / split, split, count, self.size, progress)

    def split(self, split: Split) -> Images:
        """The scenes of a split, read as any folder of images is."""
        return Folder(str(self.root)).split(split)


def _write_split(folder: Path, split: str, count: int, size: int, progress: tqdm[Any]) -> None:
    images, labels, photographs = parts(split)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(count):
        random = np.random.default_rng([VERSION, list(COUNTS).index(split), number])
        digit = int(random.integers(len(images)))
        scene = render(images[digit], photographs, size, random)
        scene.save(folder / str(labels[digit]) / f"{number:05d}.jpg", quality=92)
        progress.update()


def parts(split: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """What only this split may show: digits (N, 8, 8) from 0 to 16, their labels (N,), and pieces of photographs."""
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    first, last = COLUMNS[split]
    photographs = [p[:, int(first * p.shape[1]) : int(last * p.shape[1])] for p in load_sample_images().images]
    return digits.images[DIGITS[split]], digits.target[DIGITS[split]], photographs


def render(digit: np.ndarray, photographs: list[np.ndarray], size: int, random: Generator) -> Image.Image:
    """One scene: background, clutter behind the digit, the digit, all drawn from ``random``.

    Args:
        digit: 8x8 intensities from 0 to 16.
        photographs: Arrays (H, W, 3), uint8.
        size: Side of the scene in pixels.
        random: Source of every choice.
    """
    scene = piece(photographs, size, random)
    for _ in range(int(random.integers(1, 4))):
        clutter(scene, piece(photographs, size, random), random)
    side = int(size * random.uniform(0.5, 0.8))
    stroke = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    stroke = stroke.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    corner = random.integers(0, size - side + 1, size=2).tolist()
    behind = np.asarray(scene.crop((corner[0], corner[1], corner[0] + side, corner[1] + side))).mean()
    low, high = (170, 256) if behind < 115 else (0, 70)  # bright before dark and dark before bright, in any colour
    colour = tuple(random.integers(low, high, size=3).tolist())
    scene.paste(Image.new("RGB", (side, side), colour), tuple(corner), stroke)
    return scene


def piece(photographs: list[np.ndarray], size: int, random: Generator) -> Image.Image:
    """A random square of a random photograph, at a random scale."""
    photograph = photographs[int(random.integers(len(photographs)))]
    height, width, _ = photograph.shape
    side = int(random.uniform(0.15, 0.5) * min(height, width))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    piece = Image.fromarray(photograph[top : top + side, left : left + side])
    piece = piece.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return ImageEnhance.Contrast(piece).enhance(random.uniform(*CONTRAST))


def clutter(scene: Image.Image, other: Image.Image, random: Generator) -> None:
    """Paste an ellipse or a bar of another piece, so that edges alone do not show where the digit is."""
    size = scene.width
    mask = Image.new("L", scene.size)
    width, height = random.uniform(0.05, 0.35, size=2) * size
    x, y = random.uniform(0, size, size=2)
    shape = ImageDraw.Draw(mask)
    draw = shape.ellipse if random.random() < 0.5 else shape.rectangle
    draw((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=int(random.integers(120, 256)))
    scene.paste(other, mask=mask)
