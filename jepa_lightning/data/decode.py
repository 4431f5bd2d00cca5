"""Decoders of video files: PyAV, or torchcodec where it is installed, behind one small interface (video.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from jepa_lightning.data.files import check_file
from jepa_lightning.data.frame_table import read_frame_table
from jepa_lightning.data.pyav_video import PyAVVideo
from jepa_lightning.data.video import Decoder, Video, VideoError, VideoInfo
from jepa_lightning.data.workers import available_cores

__all__ = ["Decoder", "PyAVDecoder", "TorchCodecDecoder", "Video", "VideoError", "VideoInfo"]


def bounded(threads: int) -> int:
    """That number of threads; in place of 0 this process's cores, divided among the workers of its loader."""
    worker = get_worker_info()
    return threads or max(1, available_cores() // (1 if worker is None else worker.num_workers))


class PyAVDecoder(Decoder):
    """Decodes with PyAV, that is with the FFmpeg libraries inside its wheel.

    Args:
        threads: Threads that decode one file; 0 for this process's cores, divided among loader workers. One is best in
            these, which are many already.
    """

    def __init__(self, threads: int = 1) -> None:
        if threads < 0:
            raise ValueError(f"threads must be at least 0, got {threads}")
        self.threads = threads

    def open(self, path: str | Path) -> Video:
        """Open a file and find out where its frames are, without decoding any."""
        return PyAVVideo(check_file(path, VideoError), bounded(self.threads))


class TorchCodecDecoder(Decoder):
    """Decodes with torchcodec, which uses the FFmpeg libraries of the machine.

    Args:
        threads: Threads that decode one file; 0 for this process's cores, divided among loader workers.

    Raises:
        ImportError: If torchcodec is not installed, or does not find FFmpeg.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        _torchcodec()

    def open(self, path: str | Path) -> Video:
        """Open a file; torchcodec reads all of it once to know its frames."""
        return TorchCodecVideo(check_file(path, VideoError), bounded(self.threads))


class TorchCodecVideo(Video):
    """A file opened by torchcodec.

    Args:
        path: The file.
        threads: Threads of its decoder.

    Raises:
        VideoError: If it cannot be opened, or its pixels are not square.
    """

    def __init__(self, path: str, threads: int) -> None:
        if not Path(path).exists():
            raise FileNotFoundError(f"no such file: {path}")
        self.path = path
        try:
            self.decoder = _torchcodec()(path, num_ffmpeg_threads=threads, dimension_order="NHWC", seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise VideoError(f"{path} cannot be opened by torchcodec ({reason}): replace it") from error
        data = self.decoder.metadata
        if getattr(data, "pixel_aspect_ratio", None) not in (None, 1):
            raise VideoError(f"{path} has pixels that are not square, which torchcodec ignores: use PyAVDecoder")
        fps, frames = float(data.average_fps), int(data.num_frames)
        self.info = VideoInfo(frames, fps, float(data.duration_seconds), int(data.height), int(data.width))

    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame is shown, from the container: torchcodec tells it only with the pixels."""
        with av.open(f"file:{self.path}") as container:
            stream = container.streams.video[0]
            table, tick = read_frame_table(container, stream, self.path), float(stream.time_base or 1)
        if table is None or len(table.shown) != self.info.frames:
            raise VideoError(f"{self.path} does not say when its {self.info.frames} frames are shown: use PyAVDecoder")
        return (table.shown - table.shown[0]) * tick

    def frames(self, index: Sequence[int]) -> UInt8[Tensor, "n height width 3"]:
        """Frames by their position."""
        if bad := [position for position in index if not 0 <= position < self.info.frames]:
            raise IndexError(f"{self.path} has frames 0 to {self.info.frames - 1}, not {bad[0]}")
        if not len(index):
            return torch.empty((0, self.info.height, self.info.width, 3), dtype=torch.uint8)
        try:
            return self.decoder.get_frames_at(list(index)).data
        except RuntimeError as error:
            raise VideoError(f"{self.path} cannot be decoded ({str(error).splitlines()[0]}): replace it") from error


def _torchcodec() -> Any:
    """Its VideoDecoder; imported when used, because it loads FFmpeg a second time."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ImportError(
            f"torchcodec cannot be imported ({reason}): pip install 'jepa-lightning[torchcodec]' and FFmpeg's "
            "libraries (apt install ffmpeg), or use PyAVDecoder"
        ) from error
    return VideoDecoder
