"""The embedded clips: scikit-learn's handwritten digits moving over its photographs, written once as MP4 files.

A clip shows one digit that goes right, left, up or down and starts again at the opposite border when it reaches one, or
that goes round a square, clockwise or anticlockwise. In every frame of every motion each position is equally likely,
and nothing else is drawn differently: a single frame says nothing about the motion. (Without the new starts it would:
what goes right is more to the left at first.) The background stands still, so that the codec leaves few traces of the
frames before. Digits and pieces of photographs are never shared by splits.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageEnhance
from tqdm import tqdm

from jepa_lightning.data.embedded import default_cache, parts, piece, stroke, write_once
from jepa_lightning.data.sources import Split
from jepa_lightning.data.video_sources import FileVideos, VideoSource

VERSION = 1
"""Part of the folder's name: a change of the rendering makes a new folder."""
COUNTS: dict[str, int] = {"train": 2000, "val": 400, "test": 400}
FRAMES, FPS, GOP = 24, 8, 8
"""Length of a clip, frames a second, frames from one that is coded by itself to the next."""


class Style(NamedTuple):
    """How clips look.

    Attributes:
        side: Of the digit, over that of the frame.
        contrast: Of a photograph behind a digit, over its own.
        brightness: The same of its brightness.
        speed: Sides of the frame that the digit goes from one frame to the next.
        clutter: Pieces of other photographs lie about.
    """

    side: tuple[float, float]
    contrast: tuple[float, float]
    brightness: float
    speed: tuple[float, float]
    clutter: bool


CLUTTERED = Style((0.34, 0.46), (0.2, 0.6), 1.0, (0.025, 0.04), clutter=True)
PLAIN = Style((0.4, 0.5), (0.05, 0.2), 0.5, (0.04, 0.06), clutter=False)
"""What a small model learns motion from in minutes: docs/small-data.md, section Clips."""

Path2D = Float[np.ndarray, "frames 2"]


class MovingDigits(VideoSource):
    """Handwritten digits in motion; two labels, ``digit`` (ten) and ``motion`` (six); needs no download.

    Args:
        size: Side of a frame in pixels, even.
        cache: Where the files are written, once; null for ~/.cache/jepa_lightning.
        plain: Larger, faster and always light digits before dark photographs, and no clutter: what a small model
            learns motion from in minutes.
    """

    def __init__(self, size: int = 64, cache: str | None = None, plain: bool = False) -> None:
        if size % 2 or size < 32:
            raise ValueError(f"size must be an even number from 32 on, got {size}")
        self.size, self.style = size, PLAIN if plain else CLUTTERED
        name = f"moving_digits_v{VERSION}_{size}{'_plain' if plain else ''}"
        self.root = (Path(cache).expanduser() if cache else default_cache()) / name

    def prepare(self) -> None:
        """Write the files, if they are not there; an interrupted attempt leaves nothing behind that counts."""
        write_once(self.root, self._write)

    def _write(self, folder: Path) -> None:
        with (
            (folder / "labels.csv").open("w", newline="") as file,
            tqdm(total=sum(COUNTS.values()), desc=f"Writing {self.root}", unit="clip", disable=None) as progress,
            ThreadPoolExecutor() as pool,  # encoders let go of the GIL
        ):
            index = csv.writer(file)
            index.writerow(["file", "digit", "motion"])
            for place, (split, count) in enumerate(COUNTS.items()):
                (folder / split).mkdir()
                for row in pool.map(self._writer(folder, split, place), range(count)):
                    index.writerow(row)
                    progress.update()

    def _writer(self, folder: Path, split: str, place: int) -> Callable[[int], tuple[str, int, str]]:
        """What writes the clip of a number, and returns its row of the index."""
        digits, labels, photographs = parts(split)

        def write(number: int) -> tuple[str, int, str]:
            random = np.random.default_rng([VERSION, place, number])
            digit, motion = int(random.integers(len(digits))), str(random.choice(list(MOTIONS)))
            frames = render(digits[digit], photographs, motion, self.size, random, self.style)
            write_video(folder / split / f"{number:05d}.mp4", frames)
            return f"{split}/{number:05d}.mp4", int(labels[digit]), motion

        return write

    def split(self, split: Split) -> FileVideos:
        """The clips of a split."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not there: call prepare() first, or data.prepare_data()")
        with (self.root / "labels.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if split in ("all", row["file"].split("/")[0])]
        motions = list(MOTIONS)
        labels = [(int(row["digit"]), motions.index(row["motion"])) for row in rows]
        classes = [[str(digit) for digit in range(10)], motions]
        return FileVideos(self.root, [row["file"] for row in rows], labels, classes, ("digit", "motion"))


def render(
    digit: np.ndarray,
    photographs: list[np.ndarray],
    motion: str,
    size: int,
    random: Generator,
    style: Style = CLUTTERED,
) -> UInt8[np.ndarray, "frames size size 3"]:
    """One clip: see render_with_mask."""
    return render_with_mask(digit, photographs, motion, size, random, style)[0]


def render_with_mask(
    digit: np.ndarray,
    photographs: list[np.ndarray],
    motion: str,
    size: int,
    random: Generator,
    style: Style = CLUTTERED,
) -> tuple[UInt8[np.ndarray, "frames size size 3"], Float[np.ndarray, "frames size size"]]:
    """One clip, background, with clutter or without, the digit in motion, and how opaque the digit is (0 to 1).

    All is drawn from ``random``.

    Args:
        digit: 8x8 intensities from 0 to 16.
        photographs: Arrays (H, W, 3), uint8.
        motion: A key of MOTIONS.
        size: Side of the frames in pixels.
        random: Source of every choice.
        style: How it looks.
    """
    scene = piece(photographs, size, style.contrast, random)
    for _ in range(int(random.integers(1, 4)) if style.clutter else 0):
        clutter(scene, piece(photographs, size, style.contrast, random), random)
    scene = ImageEnhance.Brightness(scene).enhance(style.brightness)
    side = int(size * random.uniform(*style.side))
    drawn = stroke(digit, side, 15.0, random)
    # Bright before dark and dark before bright, by the whole scene: by what is behind, colour would follow the path.
    light = not style.clutter or np.asarray(scene).mean() < 115
    low, high = (170, 256) if light else (0, 70)
    colour = random.integers(low, high, size=3)
    path = MOTIONS[motion](float(size - side), size * random.uniform(*style.speed), random)
    alpha = np.pad(np.asarray(drawn, dtype=np.float32) / 255, 1)
    frames = np.repeat(np.asarray(scene, dtype=np.float32)[None], len(path), axis=0)
    masks = np.zeros(frames.shape[:3], dtype=np.float32)
    for frame, mask, (x, y) in zip(frames, masks, path, strict=True):
        shifted = _shift(alpha, x % 1, y % 1)
        where = frame[int(y) : int(y) + side + 1, int(x) : int(x) + side + 1]
        shown = shifted[: where.shape[0], : where.shape[1], None]  # the row and column beyond the border are empty
        where += shown * (colour - where)
        mask[int(y) : int(y) + side + 1, int(x) : int(x) + side + 1] = shown[..., 0]
    return frames.round().astype(np.uint8), masks


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


def _shift(padded: np.ndarray, x: float, y: float) -> np.ndarray:
    """An image with a border of one pixel, moved by part of a pixel: one row and one column less."""
    wide = (1 - x) * padded[:, 1:] + x * padded[:, :-1]
    return (1 - y) * wide[1:] + y * wide[:-1]


def straight(x: float, y: float) -> Callable[[float, float, Generator], Path2D]:
    """Motion in one direction; at the end of the square it starts again at the other side."""

    def path(room: float, speed: float, random: Generator) -> Path2D:
        start = random.uniform(0, room, size=2)
        return (start + speed * np.arange(FRAMES)[:, None] * np.array([x, y])) % room

    return path


def round_about(direction: float) -> Callable[[float, float, Generator], Path2D]:
    """Motion round a square in one quarter of the room: 1 for clockwise, -1 for anticlockwise.

    Squares are drawn in proportion to their circumference, so that together they cover their quarter evenly.
    """

    def path(room: float, speed: float, random: Generator) -> Path2D:
        quarter = random.integers(0, 2, size=2) * room / 2 + room / 4
        radius = room / 4 * np.sqrt(1 - random.uniform())  # above 0, from the middle of the square to its sides
        turns = random.uniform(0, 4) + direction * speed * np.arange(FRAMES) / (2 * radius)
        along = 2 * (turns % 1) - 1
        side = np.floor(turns).astype(int) % 4  # top, right, bottom, left
        x = np.choose(side, [along, np.ones(FRAMES), -along, -np.ones(FRAMES)])
        y = np.choose(side, [-np.ones(FRAMES), along, np.ones(FRAMES), -along])
        return quarter + radius * np.stack([x, y], axis=1)

    return path


MOTIONS: dict[str, Callable[[float, float, Generator], Path2D]] = {
    "right": straight(1, 0),
    "left": straight(-1, 0),
    "up": straight(0, -1),
    "down": straight(0, 1),
    "clockwise": round_about(1),
    "anticlockwise": round_about(-1),
}
"""By name: (room for the top left corner in pixels, pixels a frame, random) -> its places (x, y) in each frame."""


def write_video(path: Path, frames: UInt8[np.ndarray, "frames height width 3"], fps: int = FPS, gop: int = GOP) -> None:
    """Write an MP4 file: H.264, or MPEG-4 where FFmpeg was built without x264.

    Args:
        path: The file.
        frames: Height and width are even.
        fps: Frames a second.
        gop: Frames from one that is coded by itself to the next.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "20", "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=fps, options=options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        stream.codec_context.time_base = Fraction(1, fps)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
