"""Which stored pictures are bidirectional (B), read from the first bits of the picture without decoding it."""

from __future__ import annotations

from collections.abc import Iterator

H264_SLICES = {1, 2, 5}
"""nal_unit_type of coded slices that begin with a slice header (Rec. ITU-T H.264, table 7-1)."""
READABLE = {"h264", "mpeg1video", "mpeg2video", "mpeg4"}
"""Codecs that ``is_bidirectional`` knows."""


def is_bidirectional(codec: str, data: bytes, extradata: bytes) -> bool:
    """Whether a packet holds a B picture, so that pictures are shown in another order than they are stored in.

    Args:
        codec: One of READABLE.
        data: The packet.
        extradata: What the container stores for the decoder; says how H.264 is stored.
    """
    if codec == "h264":
        return any(_is_b_slice(unit) for unit in _h264_units(data, extradata))
    if codec == "mpeg4":  # ISO/IEC 14496-2, 6.2.5: vop_coding_type
        return any(found[0] >> 6 == 2 for found in _after(data, b"\0\0\1\xb6"))
    return any(len(found) > 1 and found[1] >> 3 & 7 == 3 for found in _after(data, b"\0\0\1\0"))  # H.262, 6.2.3


def _after(data: bytes, code: bytes) -> Iterator[bytes]:
    """The bytes after each start code."""
    position = data.find(code)
    while position >= 0:
        position += len(code)
        if position < len(data):
            yield data[position : position + 16]
        position = data.find(code, position)


def _h264_units(data: bytes, extradata: bytes) -> Iterator[bytes]:
    """The first bytes of each NAL unit, whether lengths or start codes are before them."""
    if extradata[:1] != b"\1" or len(extradata) < 5:
        yield from _after(data, b"\0\0\1")
        return
    position, prefix = 0, (extradata[4] & 3) + 1  # ISO/IEC 14496-15, 5.3.3.1: lengthSizeMinusOne
    while position + prefix < len(data):
        size = int.from_bytes(data[position : position + prefix], "big")
        yield data[position + prefix : position + prefix + 16]
        position += prefix + size


def _is_b_slice(unit: bytes) -> bool:
    if unit[0] & 31 not in H264_SLICES:
        return False
    bits = "".join(f"{byte:08b}" for byte in unit[1:])
    first, bits = _exp_golomb(bits)  # first_mb_in_slice
    kind, _ = _exp_golomb(bits)  # slice_type: 1 and 6 are B
    return first >= 0 and kind in (1, 6)


def _exp_golomb(bits: str) -> tuple[int, str]:
    """An unsigned Exp-Golomb number (Rec. ITU-T H.264, 9.1) and the bits after it; -1 if there is none."""
    zeros = bits.find("1")
    end = 2 * zeros + 1
    if zeros < 0 or end > len(bits):
        return -1, ""
    return int(bits[zeros:end], 2) - 1, bits[end:]
