"""When the frames of an MP4 or QuickTime file are shown, from the one place that says it (ISO/IEC 14496-12).

FFmpeg reads the same boxes but tells decoding times only; without these few lines, every packet of a file would have
to be read to learn when its frames are shown.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

MAX_MOVIE = 1 << 28
"""Bytes of a movie box above which it is not read in one piece."""
UNITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
"""The display matrix that turns nothing."""

Box = memoryview
Ticks = Int64[np.ndarray, " samples"]


class SampleTable(NamedTuple):
    """The frames of a track in decoding order, in units of its time scale.

    Attributes:
        decoded: Decoding times from 0.
        shown: Presentation times, all different.
        keys: Positions of the keyframes.
        upright: No rotation is asked for.
        reordered: Some frame is shown before one that is stored before it.
    """

    decoded: Ticks
    shown: Ticks
    keys: Int64[np.ndarray, " keys"]
    upright: bool
    reordered: bool


def read_sample_table(path: str, track: int, count: int) -> SampleTable | None:
    """The frames of a track; None if more than this table is needed, or the file is damaged or no MP4.

    More is needed if it is fragmented, cut by its edit list, or has several sample descriptions.

    Args:
        path: The file.
        track: Its number there, ``stream.id``.
        count: The number of its frames, as FFmpeg has found; where the file says otherwise, it is not believed.
    """
    try:
        movie = _read_movie(path)
        box = next((box for box in _every(movie, b"trak") if _track_id(box) == track), None)
        if box is None or _one(movie, b"mvex"):
            return None
        tables = _one(box, b"mdia", b"minf", b"stbl")
        if struct.unpack_from(">I", _one(tables, b"stsd"), 4)[0] != 1:
            return None  # the decoder is set up anew on the way
        decoded, shown, keys = _read_samples(tables, count)
        if len(np.unique(shown)) < len(shown) or not _edits_keep_all(movie, box, shown):
            return None
        matrices = {_matrix(_one(movie, b"mvhd"), 36), _matrix(_one(box, b"tkhd"), 40)}
        reordered = bool((np.diff(shown) < 0).any())
        return SampleTable(decoded, shown, keys, matrices == {UNITY}, reordered)
    except (OSError, ValueError, IndexError, struct.error):
        return None


def _read_movie(path: str) -> Box:
    """The content of the ``moov`` box; empty if there is none."""
    with open(path, "rb") as file:  # noqa: PTH123  # as FFmpeg, which takes names that pathlib would change
        position = 0
        while len(head := file.read(16)) >= 8:
            size, kind = struct.unpack_from(">I4s", head)
            if size == 1:
                size = struct.unpack_from(">Q", head, 8)[0]
            if kind == b"moov":
                file.seek(position)
                return _one(memoryview(file.read(size) if size < MAX_MOVIE else b""), b"moov")
            if size < 8:
                break
            position += size
            file.seek(position)
    return memoryview(b"")


def _boxes(inside: Box) -> Iterator[tuple[bytes, Box]]:
    position = 0
    while position + 8 <= len(inside):
        size, kind = struct.unpack_from(">I4s", inside, position)
        start = 8
        if size == 1:
            size, start = struct.unpack_from(">Q", inside, position + 8)[0], 16
        if 0 < size < start:
            return
        end = position + size if size else len(inside)
        yield kind, inside[position + start : end]
        position = end


def _every(inside: Box, kind: bytes) -> Iterator[Box]:
    return (box for name, box in _boxes(inside) if name == kind)


def _one(inside: Box, *path: bytes) -> Box:
    """The first box at the end of a path of names; empty if there is none."""
    for kind in path:
        inside = next(_every(inside, kind), memoryview(b""))
    return inside


def _track_id(track: Box) -> int:
    header = _one(track, b"tkhd")
    return struct.unpack_from(">I", header, 20 if header[0] else 12)[0]


def _time_scale(header: Box) -> int:
    return struct.unpack_from(">I", header, 20 if header[0] else 12)[0]


def _matrix(header: Box, position: int) -> bytes:
    """The display matrix of a movie or track header, whose version 1 has longer times before it."""
    position += 12 if header[0] else 0
    return bytes(header[position : position + 36])


def _rows(box: Box, columns: int) -> Int64[np.ndarray, "rows columns"]:
    """The rows of a table, which follow its version, its flags and their number."""
    if not box:
        return np.zeros((0, columns), np.int64)
    count = struct.unpack_from(">I", box, 4)[0]
    return np.frombuffer(box, ">i4", count * columns, 8).astype(np.int64).reshape(count, columns)


def _read_samples(tables: Box, count: int) -> tuple[Ticks, Ticks, Int64[np.ndarray, " keys"]]:
    """Decoding times, presentation times and positions of keyframes.

    Raises:
        ValueError: If the tables contradict each other, or hold what FFmpeg would mend.
    """
    steps, shifts = _rows(_one(tables, b"stts"), 2), _rows(_one(tables, b"ctts"), 2)
    shifts = shifts if len(shifts) else np.array([[count, 0]])
    if not count or steps[:, 0].sum() != count or shifts[:, 0].sum() != count or (steps < 0).any():
        raise ValueError(f"{steps[:, 0].sum()} durations and {shifts[:, 0].sum()} offsets for {count} frames")
    durations, offsets = np.repeat(steps[:, 1], steps[:, 0]), np.repeat(shifts[:, 1], shifts[:, 0])
    decoded = np.cumsum(durations) - durations
    sync = _one(tables, b"stss")  # without it, every frame is a keyframe
    keys = _rows(sync, 1)[:, 0] - 1 if sync else np.arange(count)
    if ((keys < 0) | (keys >= count)).any():
        raise ValueError(f"keyframes {keys.min()} to {keys.max()} of {count} frames")
    return decoded, decoded + offsets, keys


def _edits_keep_all(movie: Box, track: Box, shown: Ticks) -> bool:
    """Whether the edit list is one piece, at normal speed, that no frame lies outside of."""
    table = _one(track, b"edts", b"elst")
    if not table:
        return True
    row = ">QqI" if table[0] else ">IiI"
    count, size = struct.unpack_from(">I", table, 4)[0], struct.calcsize(row)
    rows = [struct.unpack_from(row, table, 8 + size * i) for i in range(count)]
    pieces = [edit for edit in rows if edit[1] != -1]  # -1: an empty edit, which only delays
    if len(pieces) != 1 or pieces[0][2] != 1 << 16:
        return False
    duration, start, _ = pieces[0]
    scale = _time_scale(_one(track, b"mdia", b"mdhd")) / _time_scale(_one(movie, b"mvhd"))
    return bool(start <= shown.min() and (not duration or start + duration * scale > shown.max()))
