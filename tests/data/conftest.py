from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec import codecs_available
from torch import Tensor

ROWS, COLUMNS = 2, 5
"""Black and white blocks in every frame, which spell its number: large enough to survive any codec."""

VideoFactory = Callable[..., Path]


def picture(number: int, width: int, height: int) -> np.ndarray:
    """A frame with its number in it, over a texture that moves."""
    texture = (np.add.outer(np.arange(height) * 5, np.arange(width) * 3) + 7 * number) % 40
    image = np.zeros((height, width), int)
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        rows = slice(row * height // ROWS, (row + 1) * height // ROWS)
        columns = slice(column * width // COLUMNS, (column + 1) * width // COLUMNS)
        image[rows, columns] = 200 if number >> bit & 1 else 16
    return np.repeat((image + texture)[..., None], 3, axis=2).astype(np.uint8)


def numbers(frames: Tensor) -> list[int]:
    """The numbers that frames (N, H, W, 3) show."""
    height, width = frames.shape[1:3]
    rows = [(2 * row + 1) * height // (2 * ROWS) for row in range(ROWS)]
    columns = [(2 * column + 1) * width // (2 * COLUMNS) for column in range(COLUMNS)]
    blocks = frames.numpy().mean(axis=3)[:, rows][:, :, columns].reshape(len(frames), -1) > 128
    return (blocks << np.arange(ROWS * COLUMNS)).sum(axis=1).tolist()


def write_video(
    path: Path,
    count: int = 40,
    codec: str = "libx264",
    size: tuple[int, int] = (80, 48),
    fps: int = 30,
    times: Sequence[int] | None = None,
    sound: bool = False,
    format: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """A video whose frames show their numbers; ``times`` in milliseconds, ``size`` as width and height."""
    if codec not in codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=format or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        tone: Any = container.add_stream("aac", rate=16000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone is not None:
            write_tone(container, tone)
    return path


def write_tone(container: Any, stream: Any) -> None:
    """Half a second of silence."""
    for block in range(8):
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 16000, 1024 * block
        container.mux(stream.encode(sound))
    container.mux(stream.encode())


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write the first two columns of a display matrix into the track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", data, matrix, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.fixture
def make_video(tmp_path: Path) -> VideoFactory:
    """Writes a video into a temporary folder: ``make_video("name.mp4", codec=..., ...)``."""

    def make(name: str = "video.mp4", **options: Any) -> Path:
        return write_video(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def read_numbers() -> Callable[[Tensor], list[int]]:
    """Reads the numbers in frames (N, H, W, 3)."""
    return numbers


@pytest.fixture(scope="session")
def turn_video() -> Callable[..., Path]:
    """Turns an MP4 file by its display matrix."""
    return turn
