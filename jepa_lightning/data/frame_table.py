"""When every frame of a file is shown and where decoding can start, without decoding anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from jaxtyping import Int64

from jepa_lightning.data.mp4 import read_sample_table
from jepa_lightning.data.picture_types import READABLE, is_bidirectional

WITHOUT_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo", "vc1", "vvc"}
"""Formats that store frames in decoding order without the time at which they are shown."""
WITHOUT_B = {"h263", "h263p"}
"""Codecs that FFmpeg lists as reordering, but decodes in the stored order."""
EXACT_DELAY = {"h264", "hevc", "vvc"}
"""Codecs whose headers say how many frames are reordered."""
MOST_REORDERED = 32
"""Places between the stored and the shown order of a frame: twice the largest picture buffer, for fields."""
FIRST_FEW = 16
"""Packets looked at for B pictures where the header says that there are none."""
MAX_LENGTH = 1 << 52
"""Units of time that fit into a float; more can only be damage."""
NO_TIME = np.iinfo(np.int64).min
BROKEN_OFF = (av.FFmpegError, IndexError)
"""What reading packets raises in a damaged file; the second, from PyAV, where damage looks like another stream."""

Ticks = Int64[np.ndarray, " frames"]
Numbers = Int64[np.ndarray, " packets"]


class PacketList(NamedTuple):
    """Every packet of a stream in the stored order, to be recognised after a seek.

    Attributes:
        marks: A hash of each packet's size and content (see ``mark``).
        times: Its time at a reading from the start: presentation time, else decoding time, else NO_TIME.
        names: Presentation time under which its frame is known in the table.
        unique: No other packet has the same mark.
    """

    marks: Numbers
    times: Numbers
    names: Numbers
    unique: np.ndarray


class FrameTable(NamedTuple):
    """The frames of one video stream, by presentation times in the stream's unit.

    Attributes:
        shown: Presentation time of each frame, strictly ascending.
        keys: Presentation times of the frames that decoding can start from, ascending; some of them may not be shown.
        decoded: Decoding times of the same frames, or again their presentation times where those are all there is.
        upright: The container is known to ask for no rotation.
        packets: All packets; None where the header says when frames are shown, which stays true after a seek.
        starts: Positions of the ``keys`` in ``packets``.
        stateful: Packets bring what the decoder needs for later ones, so that it has to start at the first.
    """

    shown: Ticks
    keys: Int64[np.ndarray, " keys"]
    decoded: Int64[np.ndarray, " keys"]
    upright: bool
    packets: PacketList | None = None
    starts: Sequence[int] = ()
    stateful: bool = False


def mark(packet: Packet[VideoStream]) -> int:
    """A hash of the size and the ends of a packet, the same for the same packet within one process."""
    data = memoryview(packet)
    return hash((len(data), bytes(data[:64]), bytes(data[-64:])))


def read_frame_table(container: InputContainer, stream: VideoStream, path: str) -> FrameTable | None:
    """The table of a stream; None if presentation times are missing, or are not those of the decoder's frames.

    From the header of an MP4 file; of other files, every packet is read once.

    Args:
        container: The open file, at its beginning; afterwards somewhere else.
        stream: One of its streams, the only one that is not discarded.
        path: The file.
    """
    packets: Any = container.demux(stream)
    seen: list[Packet[VideoStream]] = []
    table = None
    if "mp4" in container.format.name.split(","):
        table = _from_header(packets, seen, stream, path)
    untimed = bool(WITHOUT_TIMES & set(container.format.name.split(",")))
    table = table or _from_packets(chain(seen, packets), stream, untimed)
    packets.close()  # or PyAV loses a little memory
    return table


def list_packets(marks: Sequence[int], times: Sequence[int], names: Sequence[int] | Ticks) -> PacketList:
    """A list of packets from its columns, each in the stored order."""
    values = np.array(marks, np.int64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return PacketList(values, np.array(times, np.int64), np.array(names, np.int64), counts[inverse] == 1)


def _table(shown: Ticks, keys: dict[int, int], upright: bool) -> FrameTable | None:
    """Frames before the first keyframe cannot be decoded and do not count; times that repeat are no names.

    Args:
        shown: Presentation times, in the stored order.
        keys: Decoding times of the keyframes by their presentation times.
        upright: See FrameTable.
    """
    order = np.argsort(shown, kind="stable")
    if len(order) and np.abs(order - np.arange(len(order))).max() > MOST_REORDERED:  # times that begin again
        return None
    shown = shown[order]
    if len(shown) and not keys:
        keys = {int(shown[0]): int(shown[0])}
    ascending = np.array(sorted(keys), np.int64)
    shown = shown[np.searchsorted(shown, ascending[0]) :] if keys else shown
    if (np.diff(shown) == 0).any() or (len(shown) and shown[-1] - shown[0] > MAX_LENGTH):
        return None
    return FrameTable(shown, ascending, np.array([keys[key] for key in ascending.tolist()], np.int64), upright)


def _from_header(
    packets: Iterator[Packet[VideoStream]], seen: list[Packet[VideoStream]], stream: VideoStream, path: str
) -> FrameTable | None:
    """The table from the header; ``seen`` gets the packets that were read to trust it."""
    entries = stream.index_entries
    samples = read_sample_table(path, stream.id, len(entries))
    if samples is None or not (samples.reordered or _never_reorders(stream)):
        return None
    if entries[-1].timestamp - entries[0].timestamp != samples.decoded[-1] - samples.decoded[0]:
        return None
    try:
        seen += islice(packets, 1 if samples.reordered else FIRST_FEW)
    except BROKEN_OFF:
        return None
    # FFmpeg moves all times by a constant (edit lists, negative offsets): the first packet tells which.
    first = seen[0].pts if seen else None
    if first is None or _has_state(seen[0]) or (not samples.reordered and any(map(_b_test(stream), seen))):
        return None
    shown = samples.shown + (first - samples.shown[0])
    there = np.ones(len(shown), bool)
    size = Path(path).stat().st_size
    if entries[-1].pos + entries[-1].size > size:  # cut off
        there = np.array([entry.pos + entry.size <= size for entry in entries])
    keys = shown[samples.keys][there[samples.keys]].tolist()  # seeks in MP4 work by them alone
    return _table(shown[there], dict(zip(keys, keys, strict=True)), samples.upright)


def _never_reorders(stream: VideoStream) -> bool:
    """Whether the codec, or the header of the stream, says that frames are shown in the order they are stored in."""
    context = stream.codec_context
    if not context.codec.reorder or context.name in WITHOUT_B:
        return True
    if context.name in EXACT_DELAY and context.extradata:
        context.open(strict=False)  # reads the header
        return not context.has_b_frames
    return False


def _has_state(packet: Packet[VideoStream]) -> bool:
    """Whether side data changes the decoder from this packet on; demuxers give it once, not again after a seek."""
    return packet.has_sidedata("palette") or packet.has_sidedata("new_extradata") or packet.has_sidedata("param_change")


def _b_test(stream: VideoStream) -> Callable[[Packet[VideoStream]], bool]:
    """Whether a packet is known to hold a B picture."""
    codec, extradata = stream.codec_context.name, stream.codec_context.extradata or b""
    if codec not in READABLE:
        return lambda packet: False
    return lambda packet: is_bidirectional(codec, bytes(packet), extradata)


def _from_packets(packets: Iterable[Packet[VideoStream]], stream: VideoStream, guessed: bool) -> FrameTable | None:
    """The table from all packets; ``guessed``: FFmpeg guesses the times, because the format does not store them."""
    codec, is_b = stream.codec_context.name, _b_test(stream)
    marks, times, shown = list[int](), list[int](), list[int]()
    keys: dict[int, tuple[int, int]] = {}
    latest, cut, bidirectional, reordered, stateful = NO_TIME, 0, False, False, False
    try:
        for packet in packets:
            if packet.size == 0:
                continue
            if packet.pts is None and not packet.is_corrupt:
                return None
            if packet.is_keyframe and packet.pts is not None and not packet.is_corrupt:
                keys[packet.pts] = (packet.pts if packet.dts is None else packet.dts), len(marks)
            guessed |= packet.pos is None or packet.pos < 0  # several frames have one time in the file
            marks.append(mark(packet))
            times.append(NO_TIME if packet.pts is None else packet.pts)
            stateful |= _has_state(packet)
            # VP8 also stores frames that are never shown, only referred to (RFC 6386, 9.1: show_frame).
            cut = cut + 1 if packet.is_corrupt else 0
            if packet.pts is None or packet.is_discard or (codec == "vp8" and not memoryview(packet)[0] & 0x10):
                continue
            shown.append(times[-1])
            reordered |= times[-1] < latest
            latest = times[-1]
            bidirectional = bidirectional or (not reordered and is_b(packet))
    except BROKEN_OFF:  # nothing after the damage can be reached
        pass
    bidirectional = bidirectional if codec in READABLE else not _never_reorders(stream)
    if (guessed and reordered) or (bidirectional and not reordered):
        return None  # frames are shown in another order than they are stored in, and the file does not say which
    # Of a file that is cut off, the last frame is not whole. Others that are not keep their place.
    table = _table(
        np.array(shown[: len(shown) - cut], np.int64),
        {key: decoded for key, (decoded, _) in keys.items()},
        upright=False,
    )
    if table is None:
        return None
    starts = [keys[key][1] if keys else 0 for key in table.keys.tolist()]
    return table._replace(packets=list_packets(marks, times, times), starts=starts, stateful=stateful)
