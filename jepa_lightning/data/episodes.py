"""Folders of episodes: a video NAME.mp4 and an archive NAME.npz with the actions between its frames."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float32, UInt8
from lightning.pytorch.utilities import rank_zero_warn

from jepa_lightning.data.decode import Decoder, PyAVDecoder, VideoError

SPLITS = ("train", "val", "test")
OPTIONAL = ("states", "extrinsics")


class Episode(NamedTuple):
    """One episode, without its frames.

    Attributes:
        path: The video.
        frames: Number of its frames.
        fps: Frames in a second.
        actions: What is done between two frames, (T - 1, A).
        states: State at each frame, (T, S); None where it is not known.
        extrinsics: Where the camera is at each frame, (T, E); None where it is not known.
    """

    path: Path
    frames: int
    fps: float
    actions: Float32[np.ndarray, "steps action"]
    states: Float32[np.ndarray, "frames state"] | None = None
    extrinsics: Float32[np.ndarray, "frames extrinsics"] | None = None


def list_episodes(folder: Path, decoder: Decoder | None = None) -> list[Episode]:
    """The episodes of a folder that can be used; those that cannot are named in one warning.

    Args:
        folder: Has a video and an archive for each episode. An archive has ``actions`` (T - 1, A), one for each pair of
            frames (a last one more is left out), and may have ``states`` (T, S) and ``extrinsics`` (T, E).
        decoder: Opens the videos; None for PyAV.

    Raises:
        FileNotFoundError: If there is no such folder, or no video in it.
        ValueError: If there is no episode that can be used.
    """
    names = sorted(folder.glob("*.mp4")) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{folder} has no episodes: put NAME.mp4 and NAME.npz with the actions there")
    found: list[Episode] = []
    wrong: list[str] = []
    for path in names:
        try:
            found.append(read_episode(path, decoder or PyAVDecoder()))
        except (ValueError, VideoError, OSError) as error:
            wrong.append(f"{path.name} ({str(error).splitlines()[0].removeprefix(f'{path} ')})")
    usual = Counter(map(_sizes, found)).most_common(1)[0][0] if found else ()
    wrong += [f"{each.path.name} ({_otherwise(each, usual)})" for each in found if _sizes(each) != usual]
    found = [episode for episode in found if _sizes(episode) == usual]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        if not found:
            raise ValueError(f"{folder}: none of {len(names)} episodes can be used: {shown}")
        rank_zero_warn(f"{folder}: {len(wrong)} of {len(names)} episodes are left out: {shown}")
    return found


def read_episode(path: Path, decoder: Decoder) -> Episode:
    """The actions and states of a video, checked against its length.

    Raises:
        ValueError: If they are missing, not finite, of a wrong shape or of another length than the video.
        VideoError: If the video cannot be opened.
    """
    arrays = _arrays(path.with_suffix(".npz"))
    with decoder.open(path) as video:
        frames, fps = video.info.frames, video.info.fps
    count = len(arrays["actions"])
    if count > frames:
        raise ValueError(f"the video has {frames} frames, and there are {count} actions: is it whole?")
    if count < frames - 1:
        raise ValueError(f"{count} actions for {frames} frames, which need {frames - 1}")
    for name in OPTIONAL:
        if name in arrays and len(arrays[name]) != frames:
            raise ValueError(f"{len(arrays[name])} {name} for {frames} frames")
    return Episode(path, frames, fps, arrays["actions"][: frames - 1], *(arrays.get(name) for name in OPTIONAL))


def _arrays(path: Path) -> dict[str, Any]:
    """What an archive has, as float32 tables."""
    if not path.is_file():
        raise ValueError(f"no {path.name}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = list(archive)
            found = {name: np.asarray(archive[name]) for name in ("actions", *OPTIONAL) if name in archive}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name} cannot be read ({type(error).__name__})") from error
    if "actions" not in found:
        raise ValueError(f"{path.name} has no actions, but {', '.join(there) or 'nothing'}")
    for name, values in found.items():
        if values.ndim != 2 or values.dtype.kind not in "fiub" or 0 in values.shape:
            raise ValueError(f"{name} are {values.dtype} {list(values.shape)}, not a table of numbers (steps, size)")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} are not finite in step {int(np.argwhere(~np.isfinite(values))[0][0])}")
    return {name: values.astype(np.float32) for name, values in found.items()}


def _sizes(episode: Episode) -> tuple[int, ...]:
    """Numbers in an action, a state and the extrinsics; 0 for what it does not have."""
    return tuple(0 if x is None else x.shape[1] for x in (episode.actions, episode.states, episode.extrinsics))


def _otherwise(episode: Episode, usual: tuple[int, ...]) -> str:
    """How an episode differs from most."""
    names = zip(("actions", *OPTIONAL), _sizes(episode), usual, strict=True)
    return ", ".join(f"{name} of {mine} numbers, most have {most}" for name, mine, most in names if mine != most)


def write_episode(
    folder: Path,
    name: str,
    frames: UInt8[np.ndarray, "time height width 3"],
    fps: int = 10,
    **arrays: np.ndarray,
) -> None:
    """Write an episode so that every pixel is read as it was.

    Args:
        folder: Where.
        name: Of both files.
        frames: The video.
        fps: Frames in a second.
        **arrays: ``actions``, and perhaps ``states`` and ``extrinsics``.
    """
    write_frames(folder / f"{name}.mp4", frames, fps)
    np.savez(folder / f"{name}.npz", **cast(Any, arrays))


def write_frames(path: Path, frames: UInt8[np.ndarray, "time height width 3"], fps: int = 10) -> None:
    """Write an MP4 file without loss.

    Args:
        path: The file.
        frames: The video.
        fps: Frames in a second.
    """
    codec = "libx264rgb" if "libx264rgb" in av.codecs_available else "png"
    with av.open(str(path), "w") as container:
        options = {"qp": "0", "preset": "ultrafast"} if codec == "libx264rgb" else {}
        stream = cast(VideoStream, container.add_stream(codec, rate=fps, options=options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "rgb24"
        stream.codec_context.thread_count, stream.codec_context.time_base = 1, Fraction(1, fps)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def split_of(root: Path, split: str, holdout: float) -> tuple[Path, bool]:
    """The folder of a split, and whether it must be cut out of the whole by ``held_out``.

    Raises:
        FileNotFoundError: If there is no such split.
    """
    if (root / "train").is_dir():
        return root / split, False
    if split == "test" or (split == "val" and not holdout):
        raise FileNotFoundError(f"{root} has no {split} split: put its episodes into {root / split}")
    return root, True


def held_out(episodes: Sequence[Episode], holdout: float) -> list[bool]:
    """Which episodes are held out, by their names alone: the same for any order and after more are added."""
    return [zlib.crc32(episode.path.stem.encode()) / 2**32 < holdout for episode in episodes]
