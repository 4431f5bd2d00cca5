"""A video file opened by PyAV: exactly the frames asked for, with as little decoding as that takes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import av
import numpy as np
import torch
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from torch import Tensor

from jepa_lightning.data.files import printable
from jepa_lightning.data.frame_table import BROKEN_OFF, NO_TIME, FrameTable, list_packets, mark, read_frame_table
from jepa_lightning.data.orientation import Turn
from jepa_lightning.data.video import Video, VideoError, VideoInfo

log = logging.getLogger(__name__)
TOLD: set[str] = set()
"""What has been said about files that take long."""
MOST_STRETCHED = 8
"""Pixels that are said to be wider or higher than that are taken as square."""
GUESS = 2
"""Seconds by which a demuxer's guess of a time may be wrong after a seek."""
SKIPPABLE = {"h264", "mpeg4", "mpeg2video", "mpeg1video"}
"""Codecs that mark the frames no other frame refers to, and whose decoders can leave these out."""


class PyAVVideo(Video):
    """A file opened by PyAV.

    The frames are those of a decoding from the start, in the order of the decoder's output. A frame is known by its
    presentation time and reached from the last keyframe shown before it; frames on the way that no other refers to are
    left out where the codec allows it. Packets take their times from a reading from the start, since many containers
    only guess them after a seek. What does not come out in this way is looked for once more, from the beginning of the
    file and with everything decoded. Where the file does not say when frames are shown, all of it is decoded at
    opening, once, to number them.

    Args:
        path: The file.
        threads: Threads of its decoder, at least 1.

    Raises:
        FileNotFoundError: If there is no such file.
        VideoError: If it holds no frames that can be decoded.
    """

    def __init__(self, path: str, threads: int = 1) -> None:
        self.path, self.threads = path, threads
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None
        self.turn: Turn | None = None
        self.damaged, self.since = False, 0
        """Since that keyframe a frame could not be decoded: others up to the next may refer to it."""
        self._open(probe=False)
        table = read_frame_table(self.container, self.stream, path)
        if table is None:  # FFmpeg may know more after it has decoded a little
            self._reopen(probe=True)
            table = read_frame_table(self.container, self.stream, path)
        self.clock: Float[np.ndarray, " frames"] | None = None
        """Seconds from the first frame to each, where presentation times do not say it."""
        self.table = table = table or self._number()
        if not len(table.shown):
            self.close()
            raise VideoError(f"{path} has a video stream without a single frame: replace it")

    def _open(self, probe: bool) -> None:
        """Open the file and choose the video stream.

        Args:
            probe: Let FFmpeg decode the first frames to learn more than the headers say, which takes longer than all
                the rest of opening.
        """
        options = {} if probe else {"codec_whitelist": "none"}
        self.probed = probe
        try:
            # Titles and comments are not read; in this encoding none is an error.
            self.container = av.open(self._url(), container_options=options, metadata_encoding="latin-1")
        except av.FileNotFoundError as error:
            raise FileNotFoundError(f"no such file: {self.path}") from error
        except av.FFmpegError as error:
            raise VideoError(f"{self.path} is not a video, or cut off: {error.strerror}; replace it") from error
        try:
            self.stream = self._choose_stream()
        except VideoError:
            self.close()
            raise
        for stream in self.container.streams:
            stream.discard = Discard.default if stream is self.stream else Discard.all
        context = self.stream.codec_context
        self.coded = context.width, context.height
        context.thread_count, context.thread_type = self.threads, "SLICE" if self.threads == 1 else "AUTO"

    def _url(self) -> str:
        # After the protocol, a colon or a percent sign in a name means nothing.
        return self.path if "://" in self.path else f"file:{self.path}"

    def _choose_stream(self) -> VideoStream:
        streams = self.container.streams
        moving = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
        if not moving:  # a picture on the sleeve of a sound file is attached
            kinds = ", ".join(sorted({stream.type for stream in streams})) or "nothing"
            raise VideoError(f"{self.path} has no video stream, it holds {kinds}: remove it")
        best = streams.best("video")
        chosen = next((stream for stream in moving if stream is best), moving[0])
        if chosen.codec_context is None:
            raise VideoError(f"{self.path} is in a codec that this FFmpeg cannot decode: convert it to H.264")
        return chosen

    def _reopen(self, probe: bool) -> None:
        self.close()
        self._open(probe)

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    # ------------------------------------------------------------------ what it is

    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame is shown, in seconds from the first, strictly ascending."""
        if self.clock is not None:
            return self.clock
        return (self.table.shown - self.table.shown[0]) * float(self.stream.time_base or 1)

    @cached_property
    def fps(self) -> float:
        """Mean frame rate in 1/s: the container's unless the frames contradict it."""
        times, fps = self.times(), float(self.stream.average_rate or 0)
        if len(times) > 1:
            measured = float((len(times) - 1) / times[-1])
            fps = fps if abs(fps - measured) < 0.01 * measured else measured
        return fps or 1.0

    @cached_property
    def info(self) -> VideoInfo:  # type: ignore[override]  # read when asked for: it needs a frame
        """What the video is."""
        times = self.times()
        height, width = self.frames([0]).shape[1:3]
        return VideoInfo(len(times), self.fps, float(times[-1]) + 1 / self.fps, height, width)

    def _number(self) -> FrameTable:
        """Decode the whole file and name each frame by its position in the decoder's output.

        The table has packets, so that frames can be reached from keyframes, if each frame comes from a packet of its
        own; otherwise frames are found by counting.
        """
        self._tell("is decoded as a whole at opening, because it does not say when its frames are shown")
        marks: list[int] = []
        stored: list[tuple[int | None, int | None, bool]] = []
        output: list[int | None] = []
        self._reopen(probe=True)
        for packet in self._packets():
            stored.append((packet.pts, packet.dts, packet.is_keyframe and not packet.is_corrupt))
            packet.pts, packet.dts = len(marks), None
            marks.append(mark(packet))
            output += [frame.pts for frame in self._decode(packet)]
        output += [frame.pts for frame in self._decode(None)]
        order = [number for number in output if number is not None]
        positions = np.arange(len(output))
        self.clock = self._clock(sorted(order), [dts for _, dts, _ in stored], len(output))
        if len(set(order)) < len(output) or self.damaged:
            return FrameTable(positions, positions[:0], positions[:0], upright=False)
        names = np.full(len(marks), -1)
        names[order] = positions
        times = [next((time for time in (pts, dts) if time is not None), NO_TIME) for pts, dts, _ in stored]
        starts = sorted((n for n, row in enumerate(stored) if row[2] and names[n] >= 0), key=names.__getitem__)
        seeks = np.array([stored[n][1] if stored[n][1] is not None else times[n] for n in starts], np.int64)
        packets = list_packets(marks, times, names)
        return FrameTable(positions, names[starts], seeks, False, packets, starts)

    def _clock(self, shown: list[int], decoded: list[int | None], count: int) -> Float[np.ndarray, " frames"]:
        """Seconds from the first frame to each: by the decoding times, which only come earlier, or by the rate."""
        ticks = np.array([time for time in map(decoded.__getitem__, shown) if time is not None], np.int64)
        if count > 1 and len(ticks) == count and (np.diff(ticks) > 0).all():
            return (ticks - ticks[0]) * float(self.stream.time_base or 1)
        rates = [float(rate) for rate in (self.stream.guessed_rate, self.stream.average_rate) if rate] or [25.0]
        if self.stream.duration and self.stream.time_base:
            measured = count / float(self.stream.duration * self.stream.time_base)
            nearest = min(rates, key=lambda rate: abs(rate - measured))
            rates = [nearest if abs(nearest - measured) < 0.1 * measured else measured]
        return np.arange(count) / rates[0]

    def _tell(self, what: str) -> None:
        """Say once in each process what costs time."""
        if what not in TOLD:
            TOLD.add(what)
            log.warning("%s %s; H.264 in MP4 is faster (said once for all such files)", printable(self.path), what)

    # ------------------------------------------------------------------ frames

    def frames(self, index: Sequence[int]) -> UInt8[Tensor, "n height width 3"]:
        """Frames by their position in the order in which they are shown.

        Raises:
            IndexError: If the video has no such frame.
            VideoError: If one cannot be decoded.
        """
        if not len(index):
            return torch.empty((0, self.info.height, self.info.width, 3), dtype=torch.uint8)
        waiting: dict[int, list[int]] = {}
        for place, position in enumerate(index):
            if not 0 <= position < len(self.table.shown):
                raise IndexError(f"{self.path} has frames 0 to {len(self.table.shown) - 1}, not {position}")
            waiting.setdefault(int(self.table.shown[position]), []).append(place)
        pixels: np.ndarray | None = None
        for time, frame in chain(self._from_keyframes(sorted(waiting)), self._from_beginning(waiting)):
            if time in waiting and not self.damaged:
                image = self._rgb(frame)
                pixels = np.empty((len(index), *image.shape), np.uint8) if pixels is None else pixels
                for place in waiting.pop(time):
                    pixels[place] = image
        if waiting or pixels is None:
            lost = np.searchsorted(self.table.shown, min(waiting))
            raise VideoError(
                f"{self.path}: frame {lost} of {len(self.table.shown)} cannot be decoded: replace the file"
            )
        return torch.from_numpy(pixels)

    def _from_keyframes(self, times: list[int]) -> Iterator[tuple[int | None, VideoFrame]]:
        """Decode only the groups of pictures that hold frames at these (ascending) times."""
        if self.table.stateful or not len(self.table.keys):
            return
        intra = self.stream.codec_context.codec.intra_only
        groups = np.searchsorted(self.table.keys, times, side="right") - 1
        for group in np.unique(groups).tolist():
            wanted = {time for time, its in zip(times, groups, strict=True) if its == group}
            key = int(self.table.keys[group])
            started = intra
            for frame in self._decode_until(wanted, self._packets_from(group)):
                # Containers may call any frame a keyframe: the decoder knows better.
                started = started or (frame.pts == key and frame.key_frame)
                if started:
                    yield frame.pts, frame

    def _from_beginning(self, waiting: Collection[int]) -> Iterator[tuple[int | None, VideoFrame]]:
        """Decode the whole file, as long as something is still waiting for."""
        if waiting:
            self._tell("is decoded from its beginning for each clip, because decoding cannot start at its keyframes")
            for count, frame in enumerate(self._everything()):
                yield count if self._by_count() else frame.pts, frame
                if not waiting:
                    return

    def _by_count(self) -> bool:
        """Whether frames are found only by counting them."""
        return self.clock is not None and self.table.packets is None

    def _everything(self) -> Iterator[VideoFrame]:
        self._reopen(probe=True)
        for packet in self._named(self._packets(), 0):
            yield from self._decode(packet)
        yield from self._decode(None)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        packets: Any = self.container.demux(self.stream)
        try:
            for packet in packets:
                if packet.size:
                    yield packet
        except BROKEN_OFF:
            return
        finally:
            packets.close()  # or PyAV loses a little memory

    def _named(self, packets: Iterable[Packet[VideoStream]], number: int) -> Iterator[Packet[VideoStream]]:
        """Packets with their times in the table, from that position in its list on, until one is another."""
        known = self.table.packets
        if known is None:
            yield from packets
            return
        rows = zip(known.marks[number:].tolist(), known.names[number:].tolist(), strict=True)
        for (its_mark, name), packet in zip(rows, packets, strict=False):
            if mark(packet) != its_mark:
                return
            packet.pts, packet.dts = name, None
            yield packet

    def _packets_from(self, group: int) -> Iterable[Packet[VideoStream]]:
        """Packets in decoding order from a keyframe; nothing if it cannot be found.

        Some formats are searched by presentation time, others by decoding time, others not at all.
        """
        key, decoded = int(self.table.keys[group]), int(self.table.decoded[group])
        earlier, number, known, late = int(self.table.keys[max(group - 1, 0)]), 0, self.table.packets, 0
        if known is not None:
            number = self.table.starts[group]
            key, earlier = int(known.times[number]), int(known.times[self.table.starts[max(group - 1, 0)]])
            late = int(GUESS / (self.stream.time_base or 1))
        for target in (key, decoded, earlier, None):
            try:
                if target is None:
                    self._reopen(self.probed)
                else:
                    self.container.seek(target, stream=self.stream)
            except (av.FFmpegError, OverflowError):
                continue
            packets = self._packets()
            for packet in packets:
                if self._is_key(packet, key, number):
                    return self._named(chain([packet], packets), number)
                if target is not None and packet.pts is not None and packet.pts > key + late:
                    break
        return ()

    def _is_key(self, packet: Packet[VideoStream], time: int, number: int) -> bool:
        """Whether a packet is the keyframe at that time, and at that position in the list of packets."""
        known = self.table.packets
        if known is None:
            return packet.pts == time
        return mark(packet) == int(known.marks[number]) and (bool(known.unique[number]) or packet.pts == time)

    def _decode_until(self, wanted: Collection[int], packets: Iterable[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Decode until the frames shown at all these times have gone in, then take what the decoder holds back."""
        context, skips, left = self.stream.codec_context, self._can_skip(), set(wanted)
        for packet in packets:
            if skips:
                context.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
            yield from self._decode(packet)
            left -= {packet.pts}
            if not left:
                break
        yield from self._decode(None)

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Frames that come out when a packet goes in, or what is left after the last (None)."""
        if packet is not None and packet.is_keyframe and packet.pts is not None:
            self.damaged, self.since = False, packet.pts
        frames: list[VideoFrame] = []
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.InvalidDataError:
            self.damaged = True
        except av.FFmpegError:  # nothing left
            pass
        # Frames shown before the keyframe may lack what they refer to, which harms nobody.
        self.damaged |= any(frame.is_corrupt and (frame.pts or 0) >= self.since for frame in frames)
        return frames

    def _can_skip(self) -> bool:
        """Whether a frame marked as not referred to is needed by none; in HEVC, other temporal layers may need it."""
        context = self.stream.codec_context
        if context.name != "hevc":
            return context.name in SKIPPABLE
        header = context.extradata or b""  # ISO/IEC 14496-15, 8.3.2.1: numTemporalLayers
        return len(header) > 21 and header[0] == 1 and header[21] >> 3 & 7 == 1

    def _rgb(self, frame: VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
        """The frame in RGB, upright, with square pixels, as large as the first one."""
        if self.size is None:
            self.size = self._display_size(frame)
        width, height = self.size
        picture = self.reformatter.reformat(frame, width, height, "rgb24", threads=1)
        plane: Any = picture.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        if self.turn is None:  # the same for all
            self.turn = self._turn(frame)
        return self.turn.upright(rows[:, : 3 * width].reshape(height, width, 3))

    def _display_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height of the video's first frame, the width in square pixels."""
        width, height = frame.width, frame.height
        if (width, height) != self.coded:  # the size changes on the way, or the container is wrong about it
            with av.open(self._url()) as container:
                stream: Any = container.streams[self.stream.index]
                stream.codec_context.thread_count = self.threads  # or FFmpeg starts as many as there are cores
                first = next(iter(container.decode(stream)), frame)
                width, height = first.width, first.height
        aspect = self.stream.sample_aspect_ratio or self.stream.codec_context.sample_aspect_ratio or 1
        if not 1 / MOST_STRETCHED <= aspect <= MOST_STRETCHED:
            aspect = 1
        return max(1, round(width * aspect)), height

    def _turn(self, frame: VideoFrame) -> Turn:
        # Only MP4 can mirror without turning. PyAV loses a little memory with each look at a matrix.
        if frame.rotation or (not self.table.upright and "mp4" in self.container.format.name):
            return Turn.asked_for_by(frame)
        return Turn()
