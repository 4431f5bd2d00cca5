"""The embedded data set: scikit-learn's handwritten digits in front of its photographs, written once as JPEG files.

1,797 real digits (UCI, 8x8 pixels) and two photographs are all that is needed, and they come with scikit-learn: no
download. A scene shows one light digit, at nearly the same place, size and tilt, before a dark piece of a photograph:
what most of its patches show is the digit, so that a small encoder can learn it in minutes (docs/small-data.md has what
came of harder scenes). Digits and pieces of photographs are never shared by splits.
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
from PIL import Image, ImageEnhance
from tqdm import tqdm

from jepa_lightning.data.sources import Folder, Images, ImageSource, Split

VERSION = 2
"""Part of the folder's name: a change of the rendering makes a new folder."""
CONTRAST, BRIGHTNESS = (0.1, 0.4), 0.3
"""Of a photograph behind a digit, over its own: with more of it, a small model sees nothing else in minutes."""
SIDE, SHIFT, TILT = (0.78, 0.88), 0.035, 8.0
"""Of a digit: side and shift over the side of the scene, degrees. The middle 7/8, what an evaluation looks at, shows
nearly all of it."""
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
    """Handwritten digits before photographs, ten classes; needs no download.

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
    """One scene: see render_with_mask."""
    return render_with_mask(digit, photographs, size, random)[0]


def render_with_mask(
    digit: np.ndarray, photographs: list[np.ndarray], size: int, random: Generator
) -> tuple[Image.Image, Image.Image]:
    """One scene, a dark background and the digit before it, and how opaque the digit is, all drawn from ``random``.

    Args:
        digit: 8x8 intensities from 0 to 16.
        photographs: Arrays (H, W, 3), uint8.
        size: Side of the scene in pixels.
        random: Source of every choice.
    """
    scene = background(photographs, size, random)
    side = round(size * random.uniform(*SIDE))
    middle = (size - side) / 2 + size * random.uniform(-SHIFT, SHIFT, size=2)
    x, y = (round(place) for place in middle.clip(0, size - side).tolist())
    paint, mask = Image.new("RGB", (side, side), colour(random)), Image.new("L", (size, size))
    drawn = stroke(digit, side, TILT, random)
    scene.paste(paint, (x, y), drawn)
    mask.paste(drawn, (x, y))
    return scene, mask


def background(photographs: list[np.ndarray], size: int, random: Generator) -> Image.Image:
    """A dark piece of a photograph, of little contrast."""
    return ImageEnhance.Brightness(piece(photographs, size, CONTRAST, random)).enhance(BRIGHTNESS)


def piece(photographs: list[np.ndarray], size: int, contrast: tuple[float, float], random: Generator) -> Image.Image:
    """A random square of a random photograph, at a random scale; least and most of its contrast that is left."""
    photograph = photographs[int(random.integers(len(photographs)))]
    height, width, _ = photograph.shape
    side = int(random.uniform(0.15, 0.5) * min(height, width))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    piece = Image.fromarray(photograph[top : top + side, left : left + side])
    piece = piece.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return ImageEnhance.Contrast(piece).enhance(random.uniform(*contrast))


def stroke(digit: np.ndarray, side: int, tilt: float, random: Generator) -> Image.Image:
    """A digit of 8x8 intensities from 0 to 16 as an opacity of ``side`` pixels, turned by up to ``tilt`` degrees."""
    drawn = Image.fromarray((digit * (255 / 16)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return drawn.rotate(random.uniform(-tilt, tilt), Image.Resampling.BILINEAR)


def colour(random: Generator) -> tuple[int, ...]:
    """Of a digit: a light one."""
    return tuple(random.integers(190, 256, size=3).tolist())
