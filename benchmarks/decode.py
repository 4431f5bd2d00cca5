"""How long it takes to read a clip: ours, decoding the file from its first frame, and torchcodec.

The work is 16 frames, four apart, from a random place in a 10-second H.264 video (320x240, 30 frames a second, x264's
defaults), once with a keyframe every 250 frames and once every 12. Each row opens the file, decodes the frames that all
rows are given, and makes one uint8 tensor (16, 240, 320, 3) of them; that all tensors are equal is checked. One thread,
as in a DataLoader's worker. What is measured is processor time, so that others on the machine do not count; files are
in memory after the first rounds. The rows take turns in every round. The rows of torchcodec are its own VideoDecoder,
not our class around it.

    python benchmarks/decode.py [--rounds 100]
    python benchmarks/decode.py --memory [--clips 10000]

The second form reads clips of 40 small files in many formats, some of them damaged, each under a time-out as the data
module does, and reports the resident memory on the way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from tqdm import tqdm, trange

from jepa_lightning.data.clips import ClipSampler
from jepa_lightning.data.decode import PyAVDecoder, VideoError
from jepa_lightning.data.timeout import with_timeout

FRAMES, FPS, SIZE = 300, 30, (320, 240)
Reader = Callable[[str, list[int]], Tensor]


def write_video(
    path: Path, frames: int = FRAMES, size: tuple[int, int] = SIZE, codec: str = "libx264", **options: str
) -> str:
    """A camera that sways over a photograph, a bright box before it, a little noise."""
    picture, random = load_sample_image("china.jpg"), np.random.default_rng(0)
    width, height = size
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            left, top = int(150 + 140 * np.sin(number / 40)), int(80 + 70 * np.cos(number / 27))
            image = picture[top : top + height, left : left + width].astype(int)
            middle = int(width / 2 + width / 3 * np.sin(number / 9))
            image[height // 4 : height // 2, middle - width // 16 : middle + width // 16] = (5 * number % 256, 80, 200)
            image += random.integers(-3, 4, (height, width, 1))
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


# ---------------------------------------------------------------------- time


def ours(path: str, index: list[int]) -> Tensor:
    """Our decoder."""
    with PyAVDecoder().open(path) as video:
        return video.frames(index)


def from_the_start(path: str, index: list[int]) -> Tensor:
    """Plain PyAV, from the first frame to the last that is wanted."""
    wanted, found = set(index), []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number == index[-1]:
                break
    return torch.from_numpy(np.stack(found))


def torchcodec_rows() -> dict[str, Reader]:
    """Both modes of torchcodec, nothing if it cannot be imported."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError):
        print("torchcodec is left out: it is not installed, or finds no FFmpeg libraries", file=sys.stderr)
        return {}

    def reader(mode: str) -> Reader:
        def read(path: str, index: list[int]) -> Tensor:
            decoder = VideoDecoder(path, seek_mode=mode, dimension_order="NHWC", num_ffmpeg_threads=1)
            return decoder.get_frames_at(index).data

        return read

    return {f"torchcodec {version('torchcodec')}, {mode}": reader(mode) for mode in ("exact", "approximate")}


def measure(rows: dict[str, Reader], path: str, rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Processor seconds of each round after the first ones, which are slower."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    random = np.random.default_rng(0)
    for step in trange(warm_up + rounds, desc=Path(path).stem, file=sys.stderr, leave=False, delay=2):
        first = int(random.integers(FRAMES - 60))
        clips = []
        for name, read in rows.items():
            start = time.process_time()
            clips.append(read(path, list(range(first, first + 61, 4))))
            if step >= warm_up:
                seconds[name].append(time.process_time() - start)
        if not all(torch.equal(clip, clips[0]) for clip in clips):
            raise RuntimeError(f"{Path(path).stem}: the rows decoded different frames from {first}")
    return seconds


def report(measured: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table; the second row of each file is what the others are compared with."""
    lines = ["| keyframe every | decoder | ms per clip | 10-90 % | clips/s per core | speed-up |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for file, rows in measured.items():
        base = statistics.median(list(rows.values())[1])
        for name, seconds in rows.items():
            low, *_, high = statistics.quantiles(seconds, n=10)
            middle = statistics.median(seconds)
            cells = [file, name, f"{1e3 * middle:.1f}", f"{1e3 * low:.1f}-{1e3 * high:.1f}", f"{1 / middle:.1f}"]
            lines.append(f"| {' | '.join(cells)} | {base / middle:.2f}x |")
    return "\n".join(lines)


def compare(folder: Path, rounds: int) -> None:
    """Print the table of times."""
    rows: dict[str, Reader] = {"PyAVDecoder": ours, "PyAV from the first frame": from_the_start, **torchcodec_rows()}
    measured = {
        f"{group} frames": measure(rows, write_video(folder / f"{group}.mp4", g=str(group)), rounds)
        for group in (250, 12)
    }
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    print(f"medians of {rounds} rounds, 1 thread, PyAV {av.__version__} (libavcodec {ffmpeg})\n")
    print(report(measured))


# ---------------------------------------------------------------------- memory


def write_small_videos(folder: Path) -> list[str]:
    """Twenty good files, and the same cut off or spoilt."""
    kinds = {"a.mp4": "libx264", "b.mkv": "libx265", "c.webm": "libvpx-vp9", "d.mp4": "mpeg4", "e.ts": "libx264"}
    paths = []
    for copy in range(4):
        for name, codec in kinds.items():
            quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
            path = Path(write_video(folder / f"{copy}{name}", 60, (96 + 16 * copy, 64), codec, g="20", **quiet))
            content = bytearray(path.read_bytes())
            content[len(content) // 2 :: 97] = b"\x55" * len(content[len(content) // 2 :: 97])
            damaged = path.with_name(f"damaged{path.name}")
            damaged.write_bytes(content[: len(content) * (copy + 2) // 6])
            paths += [str(path), str(damaged)]
    return paths


def resident() -> float:
    """Memory of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def watch_memory(folder: Path, clips: int) -> None:
    """Print the resident memory ten times on the way."""
    paths, sampler = write_small_videos(folder), ClipSampler(16, fps=10.0)
    generator, read = torch.Generator().manual_seed(0), 0
    print(
        f"{len(paths)} files, 16 frames a clip\n\n| clips asked for | read | resident memory (MiB) |\n|---:|---:|---:|"
    )
    for number in tqdm(range(clips + 1), desc="clips", file=sys.stderr, leave=False, delay=2):
        if number % (clips // 10) == 0 or number == clips // 50:
            print(f"| {number} | {read} | {resident():.1f} |", flush=True)
        path = paths[number % len(paths)]

        def work(path: str = path) -> Tensor:
            with PyAVDecoder().open(path) as video:
                return video.frames(sampler.sample(video, generator)[0])

        try:
            read += len(with_timeout(work, 10.0)) // 16
        except VideoError:
            continue


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="clips that each row reads of each file (100)")
    parser.add_argument("--memory", action="store_true", help="watch the memory instead")
    parser.add_argument("--clips", type=int, default=10_000, help="clips of the memory run (10000)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.memory:
            watch_memory(Path(folder), options.clips)
        else:
            compare(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
