"""Images, folders and videos of kinds that are met in the wild: the right value, or an error in one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from jepa_lightning.data import Folder
from jepa_lightning.data.channels import read_picture
from jepa_lightning.data.decode import PyAVDecoder, VideoError
from jepa_lightning.data.image_files import read_image
from jepa_lightning.data.scaled import read_part
from jepa_lightning.data.timeout import with_timeout

Y, X = np.mgrid[0:48, 0:64]
RGB = np.dstack([X * 4, Y * 5, (X + Y) * 2]).astype(np.uint8)
DEEP = RGB.astype(np.uint16) * 257
IMAGE = Image.fromarray(RGB)
TURNED = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 8: Image.Transpose.ROTATE_90}


def values(path: Path) -> list[np.ndarray]:
    """As evaluation reads it, and as training does."""
    read: list[Callable[[], Any]] = [
        lambda: read_picture(path, 3),
        lambda: read_part(path, lambda h, w: (0, 0, h, w), _size(path)),
    ]
    found = []
    for picture in (with_timeout(one, 20) for one in read):
        pixels = picture.permute(1, 2, 0).numpy() if isinstance(picture, torch.Tensor) else np.asarray(picture)
        found.append(pixels * 255 if pixels.dtype == np.float32 else pixels.astype(int))
    return found


def _size(path: Path) -> tuple[int, int]:
    picture = read_picture(path, 3)
    return picture.shape[-2:] if isinstance(picture, torch.Tensor) else picture.size[::-1]  # type: ignore[return-value]


def png16(pixels: np.ndarray, colour: int, key: bytes = b"") -> bytes:
    """A PNG file of 16 bits, which Pillow does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    extra = chunk(b"tRNS", key) if key else b""
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(name: str, image: Image.Image = IMAGE, format: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format or Image.registered_extensions()[Path(name).suffix], **options)
    return buffer.getvalue()


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.new("RGB", (64, 48), (120, 130, 140)), *profiles, outputMode="LAB")  # type: ignore[return-value]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


MOVED = [Image.fromarray(np.roll(RGB, 8 * step, 1)) for step in (1, 2)]
BITS = (X // 8 + Y // 8) % 2 == 0
OPAQUE = np.full((48, 64), 65535)
TWELVE = DEEP[..., 0] // 257 * 16
GREY = np.repeat(RGB[..., :1], 3, 2)
KINDS: dict[str, tuple[bytes, np.ndarray, float]] = {
    "print.jpg": (saved("a.jpg", IMAGE.convert("CMYK"), quality=98), RGB, 8),
    "print.tif": (saved("a.tif", IMAGE.convert("CMYK")), RGB, 0),
    "luma.tif": (saved("a.tif", IMAGE.convert("YCbCr")), RGB, 3),
    "lab.tif": (saved("a.tif", lab()), np.full((48, 64, 3), (120, 130, 140)), 2),
    "bit.png": (saved("a.png", Image.fromarray(BITS)), np.repeat(BITS[..., None] * 255, 3, 2), 0),
    "bit.tif": (saved("a.tif", Image.fromarray(BITS)), np.repeat(BITS[..., None] * 255, 3, 2), 0),
    "deep.png": (png16(DEEP, 2), RGB, 0),
    "deep_alpha.png": (png16(np.dstack([DEEP, OPAQUE]), 6), RGB, 0),
    "deep_grey_alpha.png": (png16(np.dstack([DEEP[..., 0], OPAQUE]), 4), GREY, 1),
    "deep.ppm": (b"P6 64 48 65535\n" + DEEP.astype(">u2").tobytes(), RGB, 0),
    "twelve.pgm": (b"P5 64 48 4095\n" + TWELVE.astype(">u2").tobytes(), TWELVE[..., None] / 4095 * np.full(3, 255), 1),
    "moving.webp": (saved("a.webp", save_all=True, append_images=MOVED, lossless=True), RGB, 0),
    "moving.png": (saved("a.png", save_all=True, append_images=MOVED), RGB, 0),
    "pages.tif": (saved("a.tif", save_all=True, append_images=MOVED), RGB, 0),
    "padded.bmp": (saved("a.bmp", IMAGE.convert("RGBA")), RGB, 0),
    "wrong_name.jpg": (saved("a.webp", lossless=True), RGB, 0),
    "jp2.jpg": (saved("a.jp2", IMAGE, "JPEG2000"), RGB, 0),
    **{f"turned{n}.webp": (saved("a.webp", lossless=True, exif=exif(n)), np.asarray(IMAGE.transpose(how)), 0)
       for n, how in TURNED.items()},
    **{f"turned{n}.tif": (saved("a.tif", exif=exif(n)), np.asarray(IMAGE.transpose(how)), 0)
       for n, how in TURNED.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_an_image_of_any_kind_has_its_colours(name: str, tmp_path: Path) -> None:
    content, wanted, bound = KINDS[name]
    (tmp_path / name).write_bytes(content)
    for found in values(tmp_path / name):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= bound


def test_the_transparent_colour_of_a_deep_image_is_transparent(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(DEEP, 2, struct.pack(">HHH", *map(int, DEEP[5, 5]))))
    clear = (RGB[5, 5] == RGB).all(axis=-1)
    for found in values(tmp_path / "a.png"):
        assert (found[clear] == 255).all()
        assert np.array_equal(found[~clear], RGB[~clear])


@pytest.mark.parametrize("values_of", ["half", "double", "planes", "floats", "signed", "large"])
def test_a_tiff_file_of_any_type_is_right_or_refused(values_of: str, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    right: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "half": ((RGB / 255).astype(np.float16), {"photometric": "rgb"}),
        "floats": ((RGB / 255).astype(np.float32), {"photometric": "rgb"}),
        "planes": (np.moveaxis(DEEP, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
    }
    if values_of in right:
        content, options = right[values_of]
        tifffile.imwrite(path, content, **options)
        assert all(np.abs(found - RGB).max() <= 0.5 for found in values(path))
        return
    wrong = {"double": (RGB[..., 0] / 255).astype(float), "signed": RGB[..., 0].astype(np.int8)}
    tifffile.imwrite(path, wrong.get(values_of, DEEP[..., 0].astype(np.uint32) * 65537))
    with pytest.raises(ValueError, match=r"a\.tif") as raised:
        read_picture(path, 3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.ppm", "a.jpg"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_a_file_that_is_cut_off_is_an_error(name: str, share: float, tmp_path: Path) -> None:
    content = saved(name)
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    for read in (read_image, lambda path: read_part(path, lambda h, w: (0, 0, h, w), (24, 24))):
        with pytest.raises((OSError, ValueError)) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_no_other_program_is_run_for_a_file(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    for name in ("a.jpg", "a.png", "a.tif"):
        (tmp_path / name).write_bytes(script)
        with pytest.raises(ValueError, match="no known format"):
            read_image(tmp_path / name)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no sockets with names")
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a name of a socket is short
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind("socket.jpg")
        os.mkfifo("pipe.jpg")
        Path("link.jpg").symlink_to("nowhere")
        Path("loop.jpg").symlink_to("loop.jpg")
        Path("folder.jpg").mkdir()
        for name in ("socket.jpg", "pipe.jpg", "link.jpg", "loop.jpg", "folder.jpg"):
            for read in (read_picture, lambda path: read_part(path, lambda h, w: (0, 0, h, w), (8, 8))):
                with pytest.raises((OSError, ValueError), match=name):
                    with_timeout(lambda read=read, name=name: read(name), 5)


# ---------------------------------------------------------------------- folders


def fill(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            IMAGE.save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize("name", ["val", "Validation", "test"])
def test_a_split_alone_is_no_class(name: str, tmp_path: Path) -> None:
    source = Folder(str(fill(tmp_path, f"{name}/a", f"{name}/b")))
    assert source.split("all").classes == ["a", "b"]
    assert source.split("test" if name == "test" else "val").labels == [0] * 4 + [1] * 4
    with pytest.raises(FileNotFoundError, match="has no train split: add a folder"):
        source.split("train")


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    assert Folder(str(fill(tmp_path / "x", "val", "other"))).split("all").classes == ["other", "val"]
    assert Folder(str(fill(tmp_path / "y", "val"))).split("all").classes == ["val"]


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    root = fill(tmp_path, "a", "b")
    (root / "empty").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "readme.txt").write_text("no image")
    assert Folder(str(root)).split("all").classes == ["a", "b"]


# ---------------------------------------------------------------------- videos

VIDEOS: dict[str, dict[str, Any]] = {
    "a.vob": {"codec": "mpeg2video", "g": "12", "bf": "2"},
    "b.wmv": {"codec": "wmv2", "g": "12"},
    "c.asf": {"codec": "libx264", "g": "10", "bf": "2"},
    "d.flv": {"codec": "flv", "g": "12"},
    "e.webm": {"codec": "libvpx", "g": "12", "pix_fmt": "yuva420p", "auto-alt-ref": "0"},
    "f.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "g.apng": {"codec": "apng", "pix_fmt": "rgb24"},
    "h.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "g": "12", "x265-params": "log-level=none"},
    "i.mkv": {"codec": "libx264", "pix_fmt": "yuv420p10le", "g": "12", "bf": "2"},
    "j.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "k.avi": {"codec": "mjpeg", "size": (81, 49), "pix_fmt": "yuvj420p"},
    "l.mkv": {"codec": "ffv1", "size": (33, 17)},
    "m.m2ts": {"g": "12", "bf": "2"},
    "n.avi": {"codec": "rawvideo"},
    "o.avi": {"codec": "msvideo1", "pix_fmt": "rgb555le"},
    "p.mov": {"codec": "qtrle", "pix_fmt": "rgb24"},
    "q.mp4": {"format": {"movflags": "frag_keyframe+empty_moov"}, "g": "10", "bf": "2"},
    "r.mkv": {"format": {"live": "1"}, "g": "10", "bf": "2"},
    "s.mp4": {"codec": "libsvtav1", "g": "12"},
    "t.ts": {"count": 1},
    "u.mpg": {"codec": "mpeg1video", "count": 2},
    "v.nut": {"codec": "mpeg4", "bf": "2", "g": "9"},
    "w.mxf": {"codec": "mpeg2video", "g": "12", "bf": "2", "fps": 25},
    "x.ivf": {"codec": "libvpx-vp9", "g": "10"},
    "y.rm": {"codec": "rv20", "g": "9", "size": (176, 144)},
    "z.h264": {"g": "10", "bf": "2"},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_any_kind_of_video_are_those_of_a_full_decoding(name: str, make_video: Callable[..., Path]) -> None:
    try:
        path = make_video(name, **VIDEOS[name])
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"cannot be written: {error}")
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    order = np.random.default_rng(0).permutation(len(whole)).tolist()
    with PyAVDecoder().open(path) as video:
        assert video.info.frames == len(whole)
        for group in (order, order[:1], order[-2:]):
            assert np.array_equal(video.frames(group).numpy(), np.stack([whole[n] for n in group]))


@pytest.mark.parametrize("name", ["a.vob", "b.wmv", "d.flv", "f.gif", "m.m2ts", "q.mp4"])
def test_a_video_that_is_cut_off_is_read_up_to_there_or_an_error(name: str, make_video: Callable[..., Path]) -> None:
    path = make_video(name, **VIDEOS[name])
    content = path.read_bytes()
    for end in (0, 1, 10, 200, len(content) // 2):
        path.write_bytes(content[:end])

        def read() -> str:
            try:
                with PyAVDecoder().open(path) as video:
                    return "read" * len(video.frames([0]))
            except VideoError as error:
                return str(error)

        said = with_timeout(read, 20)
        assert said == "read" or ("\n" not in said and path.name in said)
