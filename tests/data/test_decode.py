from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from jepa_lightning.data.decode import PyAVDecoder, TorchCodecDecoder, VideoError, bounded
from jepa_lightning.data.pyav_video import PyAVVideo
from jepa_lightning.data.timeout import with_timeout

Make = Callable[..., Path]
Numbers = Callable[[Tensor], list[int]]

SECONDS = 5.0
"""Nothing bad may take longer."""


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


# ---------------------------------------------------------------------- files that are no videos


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no video\n" * 1000)


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def folder(path: Path) -> None:
    path.mkdir()


def sound_alone(path: Path, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        if cover:
            picture = container.add_stream("png")
            picture.width = picture.height = 32
            picture.pix_fmt = "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux([*picture.encode(frame), *picture.encode()])
        for block in range(8):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, 1024 * block
            container.mux(stream.encode(sound))
        container.mux(stream.encode())


def sound_with_a_cover(path: Path) -> None:
    sound_alone(path, cover=True)


@pytest.mark.parametrize(("write", "complaint"), [
    (zero_bytes, r"bad\.mp4 is empty \(0 bytes\): remove or replace it"),
    (text, r"bad\.mp4 is not a video, or cut off: .*; replace it"),
    (noise, r"bad\.mp4 is not a video, or cut off: .*; replace it"),
    (folder, r"bad\.mp4 is a folder: give a file"),
    (sound_alone, r"bad\.mp4 has no video stream, it holds audio: remove it"),
    (sound_with_a_cover, r"bad\.mp4 has no video stream, it holds audio, video: remove it"),
])  # fmt: skip
def test_what_is_no_video_is_named_with_what_is_wrong(
    write: Callable[[Path], None], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.mp4"
    write(path)
    before = open_files()
    with pytest.raises(VideoError, match=complaint):
        PyAVDecoder().open(path)
    assert open_files() == before


def test_a_file_cut_before_its_header_is_no_video(make_video: Make) -> None:
    path = make_video()
    path.write_bytes(path.read_bytes()[:-600])  # the header is at the end
    with pytest.raises(VideoError, match=r"video\.mp4 is not a video, or cut off"):
        PyAVDecoder().open(path)


def test_a_file_cut_before_its_first_frame_has_none(make_video: Make) -> None:
    path = make_video(format={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 100])
    with pytest.raises(VideoError, match=r"video\.mp4 has a video stream without a single frame: replace it"):
        PyAVDecoder().open(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.mp4"):
        PyAVDecoder().open(tmp_path / "nowhere.mp4")


@pytest.mark.parametrize("name", ["12:30.mp4", "100%d.mp4", "a b [c] \u00e9.mp4", "http:.mp4", "pipe:0.mp4"])
def test_names_mean_nothing_but_the_file(name: str, make_video: Make, read_numbers: Numbers) -> None:
    with PyAVDecoder().open(make_video("plain.mp4").rename(make_video("other.mp4").with_name(name))) as video:
        assert read_numbers(video.frames([7])) == [7]


def test_a_title_in_another_encoding_is_no_matter(make_video: Make, read_numbers: Numbers, tmp_path: Path) -> None:
    path = tmp_path / "titled.mkv"
    with av.open(str(make_video())) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "a tttle"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = path.read_bytes()
    assert b"a tttle" in content
    path.write_bytes(content.replace(b"a tttle", "a t\u00eftle".encode("latin-1")))
    with PyAVDecoder().open(path) as video:
        assert read_numbers(video.frames([5])) == [5]


# ---------------------------------------------------------------------- decoders


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0


def test_a_closed_video_holds_no_file(make_video: Make) -> None:
    path, before = make_video(), open_files()
    for _ in range(3):
        with PyAVDecoder().open(path) as video:
            video.frames([0, 30])
    assert open_files() == before


def test_a_decoder_can_be_sent_to_a_worker(make_video: Make, read_numbers: Numbers) -> None:
    decoder = pickle.loads(pickle.dumps(PyAVDecoder(threads=2)))
    assert decoder.threads == 2
    with decoder.open(str(make_video())) as video:
        assert read_numbers(video.frames([5])) == [5]


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="threads must be at least 0, got -1"):
        PyAVDecoder(threads=-1)


def test_without_torchcodec_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match=r"pip install 'jepa-lightning\[torchcodec\]'.*or use PyAVDecoder"):
        TorchCodecDecoder()


@pytest.fixture
def torchcodec() -> TorchCodecDecoder:
    try:
        return TorchCodecDecoder()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_torchcodec_gives_the_same_frames(
    name: str, torchcodec: TorchCodecDecoder, make_video: Make, turn_video: Callable[..., Path]
) -> None:
    path = make_video(name, g="12", bf="3")
    if name == "video.mp4":
        turn_video(path, 0, 1, -1, 0)
    with torchcodec.open(path) as theirs, PyAVDecoder().open(path) as ours:
        assert tuple(theirs.info) == pytest.approx(tuple(ours.info), rel=1e-3)
        assert np.array_equal(theirs.times(), ours.times())
        assert torch.equal(theirs.frames([30, 2, 2]), ours.frames([30, 2, 2]))
        assert theirs.frames([]).shape == ours.frames([]).shape
        with pytest.raises(IndexError, match="frames 0 to 39, not 40"):
            theirs.frames([40])


def test_torchcodec_complains_in_the_same_way(torchcodec: TorchCodecDecoder, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    for write in (zero_bytes, text, sound_alone):
        write(path)
        with pytest.raises(VideoError, match=r"bad\.mp4"):
            torchcodec.open(path)
    with pytest.raises(FileNotFoundError):
        torchcodec.open(tmp_path / "nowhere.mp4")


# ---------------------------------------------------------------------- time-out


def test_a_result_or_an_error_in_time_is_passed_on() -> None:
    assert with_timeout(lambda: 3, SECONDS) == 3
    assert with_timeout(lambda: None, SECONDS) is None
    with pytest.raises(VideoError, match="broken"):
        with_timeout(lambda: (_ for _ in ()).throw(VideoError("broken")), SECONDS)
    with pytest.raises(KeyboardInterrupt):
        with_timeout(lambda: (_ for _ in ()).throw(KeyboardInterrupt), SECONDS)


def test_what_is_late_is_left_behind() -> None:
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 seconds"):
        with_timeout(release.wait, 0.2)
    assert 0.2 <= time.monotonic() - start < 1.0
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "with_timeout")
    release.set()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe.mp4 is a named pipe or a device"):
        with_timeout(lambda: PyAVDecoder().open(tmp_path / "pipe.mp4"), SECONDS)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not show threads")
@pytest.mark.parametrize(("name", "settings"), [
    ("a.mp4", {"g": "12", "bf": "2"}), ("a.avi", {"g": "12", "bf": "2"}), ("a.webm", {"codec": "libvpx-vp9"}),
    ("a.mpg", {"codec": "mpeg1video"}),
])  # fmt: skip
def test_decoding_starts_no_threads_beside_the_one_that_may_be_late(
    name: str, settings: dict[str, Any], make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = make_video(name, **settings), []
    before = PyAVVideo._rgb

    def rgb(self: PyAVVideo, frame: Any) -> Any:
        seen.append(len(list(Path("/proc/self/task").iterdir())))
        self.coded = (1, 1)  # as if the size changed on the way: the first frame is then looked at again
        self.size = None
        return before(self, frame)

    def read(threads: int) -> int:
        seen.clear()
        with PyAVDecoder(threads).open(path) as video:
            video.frames([0, 20])
        return max(seen)

    with_timeout(lambda: None, SECONDS)
    already = len(list(Path("/proc/self/task").iterdir()))
    monkeypatch.setattr(PyAVVideo, "_rgb", rgb)
    assert with_timeout(lambda: read(1), SECONDS) <= already
    monkeypatch.setattr("jepa_lightning.data.decode.available_cores", lambda: 3)
    assert with_timeout(lambda: read(0), SECONDS) <= already + 2 * 3  # two decoders
    assert bounded(0) == 3
