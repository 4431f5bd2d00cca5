from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from av.video.frame import VideoFrame
from torch import Tensor

from jepa_lightning.data.decode import PyAVDecoder, VideoError
from jepa_lightning.data.pyav_video import PyAVVideo

Numbers = Callable[[Tensor], list[int]]
Make = Callable[..., Path]

OPEN_GOP = {"x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"}
X265 = {"codec": "libx265", "x265-params": "keyint=10:bframes=4:log-level=none"}
LAYERS = {"codec": "libx265", "x265-params": "keyint=20:temporal-layers=3:bframes=4:log-level=none"}
B_FRAMES = {"g": "12", "bf": "3"}
HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5", "arnr-strength": "3"}
FILES: dict[str, dict[str, Any]] = {
    "h264.mp4": B_FRAMES,
    "h264_long.mp4": {"g": "250"},
    "h264_open.mp4": OPEN_GOP,
    "h264_open.mkv": OPEN_GOP,
    "h264_open.ts": OPEN_GOP,
    "h264_odd.mp4": {"size": (81, 49), "pix_fmt": "yuv444p"},
    "h264_intra.mp4": {"g": "1"},
    "h264_refresh.mp4": {"x264-params": "intra-refresh=1:keyint=10"},
    "h264_pieces.mp4": {**B_FRAMES, "format": {"movflags": "frag_keyframe+empty_moov"}},
    "h264_sound.mp4": {**B_FRAMES, "sound": True},
    "h264.mov": B_FRAMES,
    "h264.avi": B_FRAMES,
    "h264.flv": B_FRAMES,
    "bare.h264": B_FRAMES,
    "h265.mp4": X265,
    "h265.mkv": X265,
    "h265.ts": X265,
    "h265_layers.mp4": LAYERS,
    "vp9.webm": {"codec": "libvpx-vp9", "g": "12", "size": (81, 49)},
    "vp8.webm": {"codec": "libvpx", **HIDDEN},
    "av1.mp4": {"codec": "libsvtav1", "preset": "12", "size": (96, 64), "count": 24},
    "mpeg4.mp4": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "mpeg4_b.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},
    "mpeg2.ts": {"codec": "mpeg2video", "g": "12", "bf": "2", "size": (96, 64)},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "12", "bf": "2", "size": (96, 64)},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "slow.mp4": {"fps": 3},
    "fast.mp4": {"fps": 60},
    "late.mp4": {"times": [5000 + 33 * i for i in range(40)]},
    "late.ts": {"times": [5000 + 33 * i for i in range(40)]},
    "uneven.mp4": {"times": list(accumulate([20, 50, 33, 100] * 10))},
    "uneven.mkv": {"times": list(accumulate([20, 50, 33, 100] * 10))},
}  # fmt: skip


def decoded_in_full(path: Path) -> Tensor:
    """What plain PyAV gives from the first frame to the last."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames)


@pytest.mark.parametrize("name", FILES)
def test_every_frame_alone_and_among_others_is_the_one_that_full_decoding_gives(
    name: str, make_video: Make, read_numbers: Numbers
) -> None:
    path = make_video(name, **FILES[name])
    whole = decoded_in_full(path)
    assert read_numbers(whole) == list(range(len(whole)))
    with PyAVVideo(str(path)) as video:
        assert len(video.times()) == len(whole) == FILES[name].get("count", 40)
        for position in range(len(whole)):
            assert torch.equal(video.frames([position])[0], whole[position]), position
        for step in (1, 4, 7):
            assert torch.equal(video.frames(range(step // 2, len(whole), step)), whole[step // 2 :: step]), step
        assert video.info[0] == len(whole)
        assert video.info[3:] == whole.shape[1:3]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_positions_may_repeat_in_any_order_with_any_number_of_threads(
    threads: int, make_video: Make, read_numbers: Numbers
) -> None:
    with PyAVDecoder(threads).open(make_video(**B_FRAMES)) as video:
        assert read_numbers(video.frames([39, 3, 3, 20, 0, 39])) == [39, 3, 3, 20, 0, 39]
        assert read_numbers(video.frames([11, 12])) == [11, 12]
        assert video.frames([]).shape == (0, 48, 80, 3)
        assert video.frames([1]).dtype == torch.uint8


@pytest.mark.parametrize("position", [-1, 40])
def test_a_frame_that_is_not_there_is_refused(position: int, make_video: Make) -> None:
    with PyAVVideo(str(make_video())) as video, pytest.raises(IndexError, match=rf"frames 0 to 39, not {position}"):
        video.frames([0, position])


class Counting(PyAVVideo):
    """Counts what is decoded."""

    packets = came_out = restarts = 0

    def _decode(self, packet: Any) -> list[VideoFrame]:
        frames = super()._decode(packet)
        self.packets += packet is not None
        self.came_out += len(frames)
        return frames

    def _everything(self) -> Iterator[VideoFrame]:
        self.restarts += 1
        return super()._everything()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_decoding_starts_at_the_keyframe_before_and_ends_with_the_last_frame(ending: str, make_video: Make) -> None:
    video = Counting(str(make_video(f"video.{ending}", count=100, **{"x264-params": "keyint=20:bframes=0:scenecut=0"})))
    assert video.packets == 0  # opening decodes nothing
    video.frames([65])
    assert (video.packets, video.restarts) == (6, 0)  # 60 to 65
    video.frames([65, 99, 61])  # the end of one group of pictures and the beginning of the next are left out
    assert (video.packets, video.restarts) == (6 + 6 + 20, 0)
    video.close()


@pytest.mark.parametrize("settings", [OPEN_GOP, X265, {"codec": "mpeg4", "g": "40", "bf": "3"}])
def test_frames_that_no_other_refers_to_are_left_out(settings: dict[str, Any], make_video: Make) -> None:
    with Counting(str(make_video(**settings))) as video:
        video.frames([39])
        least, video.came_out = video.came_out, 0
        video._can_skip = lambda: False  # type: ignore[method-assign]
        video.frames([39])
        assert 0 < least < video.came_out
        assert video.restarts == 0


def test_nothing_is_left_out_where_other_temporal_layers_may_need_it(make_video: Make) -> None:
    with PyAVVideo(str(make_video("layers.mp4", **LAYERS))) as layers, PyAVVideo(str(make_video(**X265))) as flat:
        assert not layers._can_skip()
        assert flat._can_skip()


@pytest.mark.parametrize("name", ["slow.mp4", "fast.mp4", "h264.mp4", "h264_open.ts", "vp9.webm", "h264.avi"])
def test_information_is_that_of_the_video(name: str, make_video: Make) -> None:
    fps = FILES[name].get("fps", 30)
    with PyAVVideo(str(make_video(name, **FILES[name]))) as video:
        assert video.info.fps == pytest.approx(fps, rel=1e-3)
        assert video.info.duration == pytest.approx(40 / fps, rel=1e-3)
        assert video.times() == pytest.approx([i / fps for i in range(40)], abs=1e-3)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
def test_uneven_times_are_those_of_the_frames(name: str, make_video: Make) -> None:
    times = FILES[name]["times"]
    with PyAVVideo(str(make_video(name, **FILES[name]))) as video:
        assert video.times() == pytest.approx([(time - times[0]) / 1000 for time in times], abs=1e-3)
        assert video.info.fps == pytest.approx(39 / video.times()[-1])


TURNS = {
    (0, 1, -1, 0): lambda image: torch.rot90(image, -1, (0, 1)),  # a quarter clockwise, as telephones are held
    (-1, 0, 0, -1): lambda image: torch.rot90(image, 2, (0, 1)),
    (0, -1, 1, 0): lambda image: torch.rot90(image, 1, (0, 1)),
    (-1, 0, 0, 1): lambda image: image.flip(1),
    (1, 0, 0, -1): lambda image: image.flip(0),
    (0, 1, 1, 0): lambda image: image.transpose(0, 1),
    (0, -1, -1, 0): lambda image: image.transpose(0, 1).flip(0, 1),
}


@pytest.mark.parametrize("matrix", TURNS)
def test_frames_are_turned_upright(
    matrix: tuple[int, int, int, int], make_video: Make, turn_video: Callable[..., Path]
) -> None:
    path = turn_video(make_video(size=(80, 48), **B_FRAMES), *matrix)
    expected = TURNS[matrix](decoded_in_full(path)[21])
    with PyAVVideo(str(path)) as video:
        assert torch.equal(video.frames([21])[0], expected)
        assert video.info[3:] == expected.shape[:2]


def test_a_file_cut_by_its_edit_list_begins_where_it_is_shown(make_video: Make, read_numbers: Numbers) -> None:
    path = make_video(**B_FRAMES)
    data = bytearray(path.read_bytes())
    start = data.index(b"elst") + 16  # its time scale gives 512 to each frame
    data[start : start + 4] = (int.from_bytes(data[start : start + 4], "big") + 15 * 512).to_bytes(4, "big")
    path.write_bytes(data)
    assert read_numbers(decoded_in_full(path)) == list(range(15, 40))
    with PyAVVideo(str(path)) as video:
        assert len(video.times()) == 25
        assert video.times()[0] == 0
        assert [read_numbers(video.frames([i])) for i in range(25)] == [[i] for i in range(15, 40)]


def cut(path: Path, part: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    return path


FASTSTART = {"format": {"movflags": "faststart"}}


@pytest.mark.parametrize("settings", [
    {"name": "cut.mp4", **FASTSTART}, {"name": "cut.mp4", "sound": True, **FASTSTART}, {"name": "cut.mkv"},
    {"name": "cut.webm", "codec": "libvpx-vp9"}, {"name": "cut.ts"},
])  # fmt: skip
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_file_has_the_frames_that_are_left(
    part: float, settings: dict[str, Any], make_video: Make, read_numbers: Numbers
) -> None:
    with PyAVVideo(str(cut(make_video(g="10", bf="0", sc_threshold="0", **settings), part))) as video:
        count = video.info.frames
        assert 40 * (part - 0.4) < count < 40
        whole = count - (settings["name"] == "cut.ts")  # whether its last frame is whole cannot be known
        assert read_numbers(video.frames(range(whole))) == list(range(whole))
        with pytest.raises(IndexError, match=f"frames 0 to {count - 1}, not 39"):
            video.frames([39])


def test_the_partial_last_frame_of_a_truncated_stream_is_no_frame(make_video: Make) -> None:
    video = PyAVVideo(str(cut(make_video("cut.ts", g="10", count=60, size=(320, 240)), 0.6)))
    last = video.info.frames - 1
    with video, pytest.raises(VideoError, match=rf"cut.ts: frame {last} of {last + 1} cannot be decoded"):
        video.frames([0, last])


def test_frames_after_damage_are_refused_up_to_the_next_keyframe(make_video: Make, read_numbers: Numbers) -> None:
    path = make_video(g="10", bf="0", sc_threshold="0", **FASTSTART)
    with av.open(str(path)) as container:
        spoilt = [packet for packet in container.demux(video=0) if packet.size][10]
    data = bytearray(path.read_bytes())
    middle = (spoilt.pos or 0) + spoilt.size // 3
    data[middle : middle + spoilt.size // 2] = b"\x55" * (spoilt.size // 2)
    path.write_bytes(data)
    with PyAVVideo(str(path)) as video:
        assert read_numbers(video.frames([0, 9, 20, 39])) == [0, 9, 20, 39]
        for position in (10, 15, 19):
            with pytest.raises(VideoError, match=rf"video.mp4: frame {position} of 40 cannot be decoded"):
                video.frames([0, position, 39])
        assert read_numbers(video.frames([5])) == [5]
