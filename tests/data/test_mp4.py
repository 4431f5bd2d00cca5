from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jepa_lightning.data import frame_table
from jepa_lightning.data.frame_table import FrameTable, read_frame_table
from jepa_lightning.data.mp4 import read_sample_table

Make = Callable[..., Path]


def table_of(path: Path) -> FrameTable:
    with av.open(str(path)) as container:
        found = read_frame_table(container, container.streams.video[0], str(path))
    assert found is not None
    return found


@pytest.mark.parametrize("settings", [
    {"bf": "3", "g": "12"}, {"bf": "0", "g": "12"}, {"g": "1"}, {"format": {"movflags": "faststart"}}, {"sound": True},
    {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"}, {"name": "video.mov"},
    {"format": {"movflags": "negative_cts_offsets"}}, {"format": {"use_editlist": "0"}},
    {"times": [5000 + 33 * i for i in range(40)]}, {"times": list(accumulate([20, 50, 33, 100] * 10))},
    {"codec": "libx265", "x265-params": "log-level=none"}, {"codec": "mpeg4", "g": "12", "bf": "2"},
])  # fmt: skip
def test_the_header_gives_the_table_that_all_packets_give(
    settings: dict[str, Any], make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(frame_table, "_from_packets", lambda *_: pytest.fail("every packet was read"))
        header = table_of(path)
    monkeypatch.setattr(frame_table, "_from_header", lambda *_: None)
    packets = table_of(path)
    assert np.array_equal(header.shown, packets.shown)
    assert np.array_equal(header.keys, packets.keys)
    assert header.upright


def test_what_is_less_than_plain_is_left_to_the_packets(make_video: Make, tmp_path: Path) -> None:
    plain = make_video()
    assert read_sample_table(str(plain), 1, 40) is not None
    assert read_sample_table(str(plain), 2, 40) is None  # no such track
    assert read_sample_table(str(plain), 1, 39) is None
    assert read_sample_table(str(tmp_path / "missing.mp4"), 1, 40) is None
    pieces = make_video("pieces.mp4", format={"movflags": "frag_keyframe+empty_moov"})
    assert read_sample_table(str(pieces), 1, 40) is None
    assert len(table_of(pieces).shown) == 40


@pytest.mark.parametrize(("box", "position", "value"), [
    (b"elst", 16, 15 * 512),  # begins with a later frame
    (b"elst", 12, 500),  # ends before the last frame
    (b"elst", 20, 1 << 17),  # at double speed
    (b"stts", 12, 39),  # a frame less than there are offsets
    (b"ctts", 8, 1000),  # more rows than the table holds
    (b"stss", 12, 99),  # a keyframe that is no frame
    (b"moov", 4, 4),  # a box shorter than its head
])  # fmt: skip
def test_tables_that_cut_or_contradict_are_left_to_the_packets(
    box: bytes, position: int, value: int, make_video: Make
) -> None:
    path = make_video(bf="3", b_strategy="0")
    data = bytearray(path.read_bytes())
    assert read_sample_table(str(path), 1, 40) is not None
    place = data.index(box) + position
    data[place : place + 4] = value.to_bytes(4, "big")
    path.write_bytes(data)
    assert read_sample_table(str(path), 1, 40) is None


def test_a_header_that_is_cut_off_or_noise_is_no_table(make_video: Make, tmp_path: Path) -> None:
    content = make_video(format={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "broken.mp4"
    begin = content.index(b"moov")
    for length in range(begin, begin + 700, 23):
        path.write_bytes(content[:length])
        assert read_sample_table(str(path), 1, 40) is None
    random = np.random.default_rng(0)
    for _ in range(100):  # whatever is in there, nothing but a table or None comes out
        data = bytearray(content)
        for place in random.integers(begin, begin + 1200, 5).tolist():
            data[place] = int(random.integers(256))
        path.write_bytes(data)
        table = read_sample_table(str(path), 1, 40)
        assert table is None or len(table.shown) == len(table.decoded) == 40


def test_large_boxes_are_found_behind(tmp_path: Path, make_video: Make) -> None:
    content = make_video(format={"movflags": "faststart"}).read_bytes()
    begin = content.index(b"moov") - 4
    large = (1).to_bytes(4, "big") + b"free" + (16 + 100).to_bytes(8, "big") + bytes(100)
    path = tmp_path / "large.mp4"
    path.write_bytes(content[:begin] + large + content[begin:])
    assert read_sample_table(str(path), 1, 40) is not None
