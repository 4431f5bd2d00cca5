"""Videos whose times cannot be relied on: the frames are those of a decoding from the start."""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_lightning.data import pyav_video
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.picture_types import is_bidirectional
from jepa_lightning.data.pyav_video import PyAVVideo

Make = Callable[..., Path]
FILES = Path(__file__).parent / "files"
H265 = {"codec": "libx265", "x265-params": "keyint=10:bframes=4:log-level=none"}
MPEG2 = {"codec": "mpeg2video", "g": "12", "bf": "2", "size": (96, 64)}
MPEG1 = {**MPEG2, "codec": "mpeg1video"}
MPEG4 = {"codec": "mpeg4", "g": "12", "bf": "2"}
H264 = {"g": "12", "bf": "3"}


def decoded_in_full(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def expect_equal(path: Path, alone: int | None = None) -> Tensor:
    """Frames in any order are those of a full decoding, in its order; ``alone``: how many are also asked for alone."""
    whole = decoded_in_full(path)
    random = np.random.default_rng(0)
    with PyAVVideo(str(path)) as video:
        assert len(video.times()) == len(whole)
        assert (np.diff(video.times()) > 0).all()
        for position in random.permutation(len(whole))[:alone].tolist():
            assert torch.equal(video.frames([position])[0], whole[position]), position
        mixed = random.integers(0, len(whole), 12).tolist()
        assert torch.equal(video.frames(mixed), whole[mixed])
    return whole


def remux(source: Path, target: Path, edit: Callable[[int, Any], None]) -> Path:
    """Write the packets of a video again, each changed by ``edit(number, packet)``."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = (packet for packet in old.demux(video=0) if packet.size)
        for number, packet in enumerate(packets):
            edit(number, packet)
            packet.stream = stream
            new.mux(packet)
    return target


def in_stored_order(source: Path) -> Callable[[int, Any], None]:
    """Give packets presentation times in the order that they are stored in."""
    with av.open(str(source)) as container:
        step = round(1 / 30 / (container.streams.video[0].time_base or 1))

    def edit(number: int, packet: Any) -> None:
        packet.pts = packet.dts = number * step

    return edit


# ---------------------------------------------------------------------- files from the wild


def test_the_palette_reaches_the_decoder_for_every_frame() -> None:
    whole = expect_equal(FILES / "palette.avi")
    assert whole.float().std() > 10  # not black


def test_a_program_stream_has_the_frames_of_a_decoding_from_the_start() -> None:
    assert len(expect_equal(FILES / "mpeg1_program_stream.mpg")) == 125


def test_frames_without_presentation_times_come_in_the_order_of_the_decoder() -> None:
    assert len(expect_equal(FILES / "h264_without_pts.mp4")) == 98


def test_a_rate_that_counts_fields_is_halved() -> None:
    expect_equal(FILES / "h264_in_avi.avi", alone=20)
    with PyAVVideo(str(FILES / "h264_in_avi.avi")) as video:
        assert (video.info.fps, video.info.duration) == (25.0, 4.0)


def test_pixels_that_are_not_square_are_made_square() -> None:
    with PyAVVideo(str(FILES / "pixel_aspect_2.mp4")) as video:
        assert video.info[3:] == (64, 256)
        assert video.frames([7, 3]).shape == (2, 64, 256, 3)
        assert video.frames([]).shape == (0, 64, 256, 3)
        stretched = video.frames([7])[0].float()
    whole = decoded_in_full(FILES / "pixel_aspect_2.mp4")[7].float()
    halved = stretched.reshape(64, 128, 2, 3).mean(2)
    assert np.corrcoef(halved.flatten(), whole.flatten())[0, 1] > 0.97


# ---------------------------------------------------------------------- others of their kinds


@pytest.mark.parametrize("name", ["a.mpg", "a.vob"])
@pytest.mark.parametrize("settings", [MPEG1, MPEG2, {**MPEG2, "bf": "0"}, {**MPEG2, "g": "50"}, H264])
def test_program_streams_have_the_frames_of_a_decoding_from_the_start(
    name: str, settings: dict[str, Any], make_video: Make, read_numbers: Callable[[Tensor], list[int]]
) -> None:
    whole = expect_equal(make_video(name, count=60, **settings))
    assert read_numbers(whole) == list(range(60))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts", "flv", "avi", "nut"])
@pytest.mark.parametrize("settings", [H264, H265, MPEG4, MPEG2], ids=["h264", "hevc", "mpeg4", "mpeg2"])
def test_b_frames_with_times_in_the_stored_order_come_in_the_order_of_the_decoder(
    settings: dict[str, Any], ending: str, make_video: Make, tmp_path: Path, read_numbers: Callable[[Tensor], list[int]]
) -> None:
    source = make_video("source.ts" if ending == "avi" else "source.mp4", **settings)
    try:
        path = remux(source, tmp_path / f"stored.{ending}", in_stored_order(source))
        whole = decoded_in_full(path)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"cannot be written: {error}")
    assert read_numbers(whole) == sorted(read_numbers(whole))
    expect_equal(path, alone=15)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("settings", [H264, MPEG4, MPEG2], ids=["h264", "mpeg4", "mpeg2"])
def test_wrong_keyframe_flags_change_no_frame(
    settings: dict[str, Any], ending: str, flag: bool, make_video: Make, tmp_path: Path
) -> None:
    def edit(number: int, packet: Any) -> None:
        packet.is_keyframe = flag

    source = make_video("source.ts" if (ending, settings) == ("avi", H264) else "source.mp4", **settings)
    expect_equal(remux(source, tmp_path / f"flags.{ending}", edit), alone=15)


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize(("codec", "ending"), [
    ("rawvideo", "avi"), ("rawvideo", "mov"), ("msrle", "avi"), ("rawvideo", "nut"), ("smc", "mov"), ("png", "mov"),
    ("gif", "gif"),
])  # fmt: skip
def test_frames_have_their_palette_also_where_it_changes(
    codec: str, ending: str, changes: bool, tmp_path: Path
) -> None:
    path, random = tmp_path / f"palette.{ending}", np.random.default_rng(0)
    palette = random.integers(0, 256, (256, 4)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        stream.codec_context.thread_count = 1
        for number in range(12):
            if changes and number % 5 == 0:
                palette = random.integers(0, 256, (256, 4)).astype(np.uint8)
            palette[:, 0] = 255
            image = (np.add.outer(np.arange(48), np.arange(64)) + 5 * number).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray((image, palette), format="pal8")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert expect_equal(path).float().std() > 10


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [
    ("a.mov", "qtrle", "gray"), ("a.mov", "qtrle", "argb"), ("a.mkv", "ffv1", "bgra"), ("a.mkv", "ffv1", "gray16le"),
    ("a.webm", "libvpx-vp9", "yuva420p"), ("a.avi", "mjpeg", "yuvj422p"), ("a.avi", "cinepak", "rgb24"),
    ("a.avi", "msvideo1", "rgb555le"), ("a.mov", "prores_ks", "yuva444p10le"), ("a.mkv", "libx264rgb", "rgb24"),
])  # fmt: skip
def test_formats_of_pixels_come_out_as_plain_decoding_gives_them(
    name: str, codec: str, pix_fmt: str, make_video: Make
) -> None:
    expect_equal(make_video(name, codec=codec, pix_fmt=pix_fmt, size=(96, 64), count=16))


def test_a_stream_whose_times_begin_again_comes_in_the_stored_order(make_video: Make) -> None:
    late = make_video("late.ts", times=[60_000 + 33 * i for i in range(40)], **H264)
    late.write_bytes(late.read_bytes() + make_video("first.ts", **H264).read_bytes())
    expect_equal(late, alone=20)


@pytest.mark.parametrize("settings", [H264, MPEG2, H265], ids=["h264", "mpeg2", "hevc"])
def test_a_stream_that_begins_in_the_middle_has_the_frames_that_can_be_decoded(
    settings: dict[str, Any], make_video: Make
) -> None:
    path = make_video("middle.ts", count=60, **settings)
    data = path.read_bytes()
    path.write_bytes(data[len(data) * 3 // 10 // 188 * 188 :])
    expect_equal(path, alone=20)


@pytest.mark.parametrize("settings", [{**MPEG2, "flags": "+ildct+ilme"}, {"x264-params": "tff=1:keyint=12:bframes=3"}])
@pytest.mark.parametrize("ending", ["ts", "mpg", "mp4", "avi"])
def test_interlaced_frames_stay_woven(settings: dict[str, Any], ending: str, make_video: Make) -> None:
    expect_equal(make_video(f"interlaced.{ending}", **settings), alone=12)


@pytest.mark.parametrize(("name", "settings"), [
    ("a.mp4", {"x264-params": "sar=2/1"}), ("a.ts", {"x264-params": "sar=2/1"}), ("a.mkv", {"x264-params": "sar=2/1"}),
    ("a.avi", {"codec": "mpeg4", "aspect": "2:1"}), ("a.h264", {"x264-params": "sar=2/1"}),
])  # fmt: skip
def test_square_pixels_in_every_container(name: str, settings: dict[str, Any], make_video: Make) -> None:
    with PyAVDecoder().open(make_video(name, **settings)) as video:
        assert video.frames([5]).shape == (1, 48, 160, 3)
        assert video.info[3:] == (48, 160)


def test_narrow_pixels_make_a_narrow_frame_and_absurd_ones_none(make_video: Make) -> None:
    for aspect, width in (("1/2", 40), ("200/1", 80)):
        with PyAVDecoder().open(make_video(**{"x264-params": f"sar={aspect}"})) as video:
            assert video.info[3:] == (48, width)


def test_a_turned_video_has_its_pixels_made_square_first(make_video: Make, turn_video: Callable[..., Path]) -> None:
    path = turn_video(make_video(**{"x264-params": "sar=2/1"}), 0, 1, -1, 0)
    with PyAVDecoder().open(path) as video:
        assert video.info[3:] == (160, 48)
        assert video.frames([3]).shape == (1, 160, 48, 3)


def test_an_edit_list_that_shows_a_part_twice_is_no_reason_for_other_frames(make_video: Make) -> None:
    path = make_video(g="10", bf="0")
    data = bytearray(path.read_bytes())
    place = data.index(b"elst")
    rows = struct.pack(">IiI", 400, 20 * 512, 1 << 16) + struct.pack(">IiI", 600, 0, 1 << 16)
    edits = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, 2) + rows
    grown = len(edits) - int.from_bytes(data[place - 4 : place], "big")
    for box in (b"moov", b"trak", b"edts"):  # the header is behind the frames, so that none of them moves
        start = data.index(box) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + grown).to_bytes(4, "big")
    data[place - 4 : place - 4 + len(edits) - grown] = edits
    path.write_bytes(data)
    expect_equal(path)


# ---------------------------------------------------------------------- what it costs


def test_the_cost_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_video, "TOLD", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with PyAVVideo(str(FILES / "h264_in_avi.avi")) as video:
                video.frames([3])
    assert len(caplog.records) == 1
    assert "h264_in_avi.avi is decoded as a whole at opening" in caplog.text


def test_a_numbered_video_is_reached_from_its_keyframes(make_video: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with PyAVVideo(str(make_video("a.avi", **H264))) as video:
        monkeypatch.setattr(video, "_everything", lambda: pytest.fail("decoded from the beginning"))
        assert len(video.frames([30, 5, 39])) == 3


@pytest.mark.parametrize("settings", [H264, MPEG4, MPEG2, MPEG1])
@pytest.mark.parametrize("ending", ["mp4", "ts", "avi"])
def test_the_types_of_pictures_are_read_from_their_first_bits(
    settings: dict[str, Any], ending: str, make_video: Make
) -> None:
    try:
        path = make_video(f"types.{ending}", **settings)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"cannot be written: {error}")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        found = [is_bidirectional(context.name, packet, context.extradata or b"") for packet in packets]
    with av.open(str(path)) as container:
        types = [frame.pict_type for frame in container.decode(video=0)]
    assert sum(found) == types.count(av.video.frame.PictureType.B) > 0


def test_noise_is_no_b_picture() -> None:
    random = np.random.default_rng(0)
    for codec, extradata, _ in itertools.product(("h264", "mpeg4", "mpeg2video"), (b"", b"\1\2\3\4\xff"), range(50)):
        is_bidirectional(codec, random.bytes(60), extradata)  # and no error
    assert not is_bidirectional("h264", b"\0\0\1\1", b"")


# ---------------------------------------------------------------------- any frame in any order

CODECS: dict[str, dict[str, str]] = {
    "libx264": {}, "libx265": {"x265-params": "log-level=none"}, "mpeg4": {}, "mpeg2video": {}, "libvpx-vp9": {},
}  # fmt: skip
SPACE = [
    CODECS,
    ("mp4", "mkv", "ts", "avi", "mov", "mpg"),
    (1, 9, 60),
    (0, 2),
    (None, "first", "last"),
    (0, 7),
    (False, True),
]
PRODUCT = list(itertools.product(*SPACE))


def write(path: Path, codec: str, gop: int, b_frames: int, sound: str | None, start: int, uneven: bool) -> None:
    """Thirty frames, perhaps with a tone whose stream comes first or last, from a start in seconds on."""
    options = {**CODECS[codec], "g": str(gop), "bf": str(b_frames)}
    if codec == "libx265":
        options["x265-params"] += f":keyint={gop}:bframes={b_frames}"
    with av.open(str(path), "w") as container:
        tone: Any = container.add_stream("mp2", rate=16000) if sound == "first" else None
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        tone = container.add_stream("mp2", rate=16000) if sound == "last" else tone
        time = 25 * start
        for number in range(30):
            image = np.full((48, 64, 3), 8 * number, np.uint8)
            image[10:20, 2 * number : 2 * number + 4] = 255 - 8 * number
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            time += 1 + (uneven and number % 3 == 0)
            container.mux(stream.encode(frame))
            if tone is not None and number < 20:
                sample = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                sample.sample_rate, sample.pts = 16000, 1152 * number
                sample.time_base = Fraction(1, 16000)
                container.mux(tone.encode(sample))
        container.mux(stream.encode())
        if tone is not None:
            container.mux(tone.encode())


def check_product(number: int, path: Path) -> None:
    codec, ending, *settings = PRODUCT[number]
    path = path / f"{number}.{ending}"
    try:
        write(path, codec, *settings)
        decoded_in_full(path)
    except (ValueError, IndexError, av.FFmpegError) as error:  # many combinations cannot be written
        pytest.skip(f"cannot be written: {error}")
    expect_equal(path, alone=10)


@pytest.mark.parametrize("number", np.random.default_rng(3).permutation(len(PRODUCT))[:40].tolist())
def test_any_frame_in_any_order_is_that_of_a_full_decoding(number: int, tmp_path: Path) -> None:
    check_product(number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PRODUCT)))
def test_any_frame_in_any_order_is_that_of_a_full_decoding_in_the_whole_product(number: int, tmp_path: Path) -> None:
    check_product(number, tmp_path)
