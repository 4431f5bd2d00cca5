"""Which frames of a video make the clips."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator

from jepa_lightning.data.video import Video, VideoError

Clips = list[list[int]]
"""Positions of frames in the order in which they are shown, num_clips x num_frames."""
Times = Float[np.ndarray, " frames"]
Draw = Callable[[int, int], int]
"""A random integer, at least the first and less than the second."""


class ClipSampler:
    """Draws clips from a video, given the distance of their frames in exactly one of three ways.

    The video is cut into as many equal parts as there are clips, and each clip lies in a part of its own: anywhere in
    training, in the middle for evaluation.

    The official code, which ``compat`` reproduces index by index, takes steps a little longer than asked for (64/15 in
    place of 4), goes by the mean frame rate rounded to whole steps, so that a video slower than ``fps`` stops the run,
    always repeats the last frame of short videos, and evaluates at the beginning of each part.

    Args:
        num_frames: Frames in a clip.
        num_clips: Clips from a video.
        frame_step: Frames from one to the next, whatever the frame rate.
        fps: Frames in a second, each the one shown nearest to its time: also right for variable frame rates, and for
            slower videos, whose frames are then repeated.
        duration: Seconds that the clip stands for: as fps = num_frames / duration.
        allow_overlap: Where a part is shorter than a clip but the video is not, spread the clips over the whole video,
            overlapping; if false, such a part is treated as a short video.
        short: For a video shorter than a clip: ``loop``, go on from the beginning; ``hold``, repeat the last frame;
            ``reject``, raise VideoError.
        compat: Take the frames that the official code takes.

    Raises:
        ValueError: If not exactly one of frame_step, fps and duration is given, or a value is too small.
    """

    def __init__(
        self,
        num_frames: int = 16,
        num_clips: int = 1,
        frame_step: int | None = None,
        fps: float | None = None,
        duration: float | None = None,
        allow_overlap: bool = True,
        short: Literal["loop", "hold", "reject"] = "loop",
        compat: bool = False,
    ) -> None:
        ways = {"frame_step": frame_step, "fps": fps, "duration": duration}
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give exactly one of frame_step, fps and duration, got {given or 'none'}")
        smallest = min(num_frames, num_clips, math.ceil(next(iter(given.values()))))
        if smallest < 1 or (frame_step is not None and frame_step != int(frame_step)):
            raise ValueError(f"num_frames {num_frames}, num_clips {num_clips} and {given} must be positive")
        self.num_frames, self.num_clips = num_frames, num_clips
        self.frame_step, self.fps, self.duration = frame_step, fps, duration
        self.allow_overlap, self.short, self.compat = allow_overlap, short, compat

    def sample(self, video: Video, generator: Generator | None = None) -> Clips:
        """Clips of a video, in the order of time; every position is one of its frames.

        Args:
            video: The open video; nothing of it is decoded.
            generator: Where the clips' places are drawn from; None for those of evaluation, always the same.

        Raises:
            VideoError: If the video is too short and ``short`` is ``reject``; in compat also if it is slower than fps.
        """
        times = np.asarray(video.times(), dtype=np.float64)
        if self.compat:
            return self._official(video, len(times), generator)
        if self.frame_step is not None:  # time is counted in frames
            return self._sample(np.arange(len(times), dtype=np.float64), 1.0, self.frame_step, video.path, generator)
        spacing = 1 / self.fps if self.fps is not None else (self.duration or 0.0) / self.num_frames
        share = float(times[-1]) / (len(times) - 1) if len(times) > 1 else spacing
        return self._sample(times, share, spacing, video.path, generator)

    def _sample(self, times: Times, share: float, spacing: float, path: str, generator: Generator | None) -> Clips:
        """Clips by time, in whatever unit.

        Args:
            times: When each frame is shown.
            share: Mean time of one frame.
            spacing: Time from one frame of a clip to the next.
            path: Name of the file.
            generator: Source of chance.
        """
        length, needed = float(times[-1]) + share, (self.num_frames - 1) * spacing + share
        low, size = self._windows(length, needed, random=generator is not None)
        offsets, room = np.arange(self.num_frames) * spacing, size - needed
        short = room < -1e-6 * share
        if short.any() and self.short == "reject":
            unit = "seconds" if self.frame_step is None else "frames"
            raise VideoError(_too_short(path, f"{size.min():.4g} {unit}", f"{needed:.4g}"))
        chance = np.full(len(low), 0.5)
        if generator is not None:
            chance = torch.rand(len(low), generator=generator, dtype=torch.float64).numpy()
        start = low + (chance * room if self.frame_step is None else np.floor(chance * (room + 1)))
        # Without the little more, rounding could let a loop end with an instant of what should be its beginning.
        again = (offsets + 1e-6 * share) % np.maximum(size, share)[:, None]
        held = np.minimum(offsets, np.maximum(size - share, 0)[:, None])
        wanted = np.where(
            short[:, None], low[:, None] + (held if self.short == "hold" else again), start[:, None] + offsets
        )
        return np.searchsorted((times[1:] + times[:-1]) / 2, wanted).tolist()  # the nearest, of two the earlier

    def _windows(self, length: float, needed: float, random: bool) -> tuple[Times, Times]:
        """Beginning and size of the part of a video that each clip may lie in."""
        parts, whole = self.num_clips, np.floor if self.frame_step is not None else np.asarray
        if self.allow_overlap and length / parts < needed <= length and parts > 1:
            if not random:
                low = whole(np.arange(parts) * (length - needed) / (parts - 1))
                return low, np.full(parts, needed)
            edges = whole(np.arange(parts + 1) * (length - needed) / parts)
            return edges[:-1], np.diff(edges) + needed
        edges = whole(np.arange(parts + 1) * length / parts)
        return edges[:-1], np.diff(edges)

    def _official(self, video: Video, length: int, generator: Generator | None) -> Clips:
        step = self._official_step(video)
        if self.short == "reject" and length < self.num_frames * step:
            raise VideoError(_too_short(video.path, f"{length} frames", f"{self.num_frames * step}"))

        def draw(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=generator))

        random = None if generator is None else draw
        return official_clips(length, step, self.num_frames, self.num_clips, self.allow_overlap, random)

    def _official_step(self, video: Video) -> int:
        fps = video.fps
        if self.frame_step is not None:
            step = self.frame_step
        elif self.fps is not None:
            step = int(math.ceil(fps) // self.fps)
        else:
            step = int((self.duration or 0.0) * fps / self.num_frames)
        if step < 1:
            raise VideoError(
                f"{video.path} has only {fps:g} frames in a second, which stops the official code: set compat to false"
            )
        return step


def _too_short(path: str, there: str, needed: str) -> str:
    return f"{path} has {there} for a clip of {needed}: remove it, or set short to loop or hold, or num_frames to less"


def official_clips(
    length: int, step: int, num_frames: int, num_clips: int, allow_overlap: bool, draw: Draw | None = None
) -> Clips:
    """The frames that the official V-JEPA and V-JEPA 2 data sets take (facebookresearch/jepa 51c59d5, vjepa2 c2963a4).

    Written from a description of their behaviour.

    Args:
        length: Frames in the video.
        step: Frames from one to the next, about.
        num_frames: Frames in a clip.
        num_clips: Clips from a video.
        allow_overlap: As their ``allow_clip_overlap``.
        draw: Their ``random_clip_sampling``: places the end of a clip in its part; None for the earliest.
    """
    size, part = num_frames * step, length // num_clips
    if part > size:
        ends = [size if draw is None else draw(size, part) for _ in range(num_clips)]
        return [
            [part * clip + i for i in _linspace(end - size, end, num_frames, num_frames, end - 1)]
            for clip, end in enumerate(ends)
        ]
    if not allow_overlap:
        frames = _linspace(0, part, part // step, num_frames, part - 1)
        return [[(part * clip + i) % length for i in frames] for clip in range(num_clips)]
    last = min(size, length) - 1
    frames = _linspace(0, last, last // step, num_frames, last - 1)
    shift = (length - size) // (num_clips - 1) if length > size else 0
    # Of a single frame the last but one is asked for: -1, which their decoder takes as the last.
    return [[(shift * clip + i) % length for i in frames] for clip in range(num_clips)]


def _linspace(first: int, last: int, count: int, length: int, most: int) -> list[int]:
    """That many even steps, rounded down, then the last value until there are ``length``."""
    values: Int[np.ndarray, " count"] = np.linspace(first, last, num=count)
    values = np.concatenate([values, np.full(length - count, last)])
    return np.clip(values, first, most).astype(np.int64).tolist()
