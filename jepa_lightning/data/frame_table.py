"""When every frame of a file is shown and where decoding can start, without decoding anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Int64

from jepa_lightning.data.mp4 import read_sample_table

WITHOUT_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo", "vc1", "vvc"}
"""Formats that store frames in decoding order without the time at which they are shown."""
MAX_LENGTH = 1 << 52
"""Units of time that fit into a float; more can only be damage."""
BROKEN_OFF = (av.FFmpegError, IndexError)
"""What reading packets raises in a damaged file; the second, from PyAV, where damage looks like another stream."""

Ticks = Int64[np.ndarray, " frames"]


class FrameTable(NamedTuple):
    """The frames of one video stream, by the times that FFmpeg gives to decoded frames, in its unit for the stream.

    Attributes:
        shown: Presentation time of each frame, strictly ascending.
        keys: Presentation times of the frames that decoding can start from, ascending; some of them may not be shown.
        decoded: Decoding times of the same frames, or again their presentation times where those are all there is.
        upright: The container is known to ask for no rotation.
    """

    shown: Ticks
    keys: Int64[np.ndarray, " keys"]
    decoded: Int64[np.ndarray, " keys"]
    upright: bool


def read_frame_table(container: InputContainer, stream: VideoStream, path: str) -> FrameTable | None:
    """The table of a stream; None if presentation times are missing, or are not what the format can know.

    From the header of an MP4 file; of other files, every packet is read once.

    Args:
        container: The open file, at its beginning; afterwards somewhere else.
        stream: One of its streams, the only one that is not discarded.
        path: The file.
    """
    formats = set(container.format.name.split(","))
    if formats & WITHOUT_TIMES and stream.codec_context.has_b_frames:
        return None
    table = _from_header(container, stream, path) if "mp4" in formats else None
    return table or _from_packets(container, stream)


def _table(shown: Ticks, keys: dict[int, int], upright: bool) -> FrameTable | None:
    """Frames before the first keyframe cannot be decoded and do not count; times that repeat are no names.

    Args:
        shown: Presentation times, in any order.
        keys: Decoding times of the keyframes by their presentation times.
        upright: See FrameTable.
    """
    shown = np.sort(shown)
    if len(shown) and not keys:
        keys = {int(shown[0]): int(shown[0])}
    ascending = np.array(sorted(keys), np.int64)
    shown = shown[np.searchsorted(shown, ascending[0]) :] if keys else shown
    if (np.diff(shown) == 0).any() or (len(shown) and shown[-1] - shown[0] > MAX_LENGTH):
        return None
    return FrameTable(shown, ascending, np.array([keys[key] for key in ascending.tolist()], np.int64), upright)


def _from_header(container: InputContainer, stream: VideoStream, path: str) -> FrameTable | None:
    entries = stream.index_entries
    samples = read_sample_table(path, stream.id, len(entries))
    if samples is None:
        return None
    if entries[-1].timestamp - entries[0].timestamp != samples.decoded[-1] - samples.decoded[0]:
        return None
    # FFmpeg moves all times by a constant (edit lists, negative offsets): the first packet tells which.
    packets: Any = container.demux(stream)
    try:
        first = next(packets).pts
    except BROKEN_OFF:
        return None
    packets.close()  # or PyAV loses a little memory
    if first is None:
        return None
    shown = samples.shown + (first - samples.shown[0])
    there = np.ones(len(shown), bool)
    size = Path(path).stat().st_size
    if entries[-1].pos + entries[-1].size > size:  # cut off
        there = np.array([entry.pos + entry.size <= size for entry in entries])
    keys = shown[samples.keys][there[samples.keys]].tolist()  # seeks in MP4 work by them alone
    return _table(shown[there], dict(zip(keys, keys, strict=True)), samples.upright)


def _from_packets(container: InputContainer, stream: VideoStream) -> FrameTable | None:
    shown: list[int] = []
    keys: dict[int, int] = {}
    vp8 = stream.codec_context.name == "vp8"
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_corrupt:
                continue
            if packet.pts is None:
                return None
            if packet.is_keyframe:
                keys[packet.pts] = packet.pts if packet.dts is None else packet.dts
            # VP8 also stores frames that are never shown, only referred to (RFC 6386, 9.1: show_frame).
            if not packet.is_discard and (not vp8 or memoryview(packet)[0] & 0x10):
                shown.append(packet.pts)
    except BROKEN_OFF:  # nothing after the damage can be reached
        pass
    return _table(np.array(shown, np.int64), keys, upright=False)
