"""Images with one, five and other numbers of channels."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from jepa_lightning.data import Folder, ImageDataModule, MultiCrop, PretrainTransform
from jepa_lightning.data.channels import channels_of, read_picture
from jepa_lightning.data.image_files import ChannelError, read_image
from jepa_lightning.data.transforms import CleanTransform
from jepa_lightning.masking import MultiBlock
from jepa_lightning.models import ConvNeXt, VisionTransformer
from jepa_lightning.preprocessing import Preprocessing

BANDS = np.random.default_rng(0).integers(0, 256, (5, 40, 44)).astype(np.uint8)
DEEP = BANDS.astype(np.uint16) * 257


def read(path: Path, values: np.ndarray, channels: int = 5) -> Tensor:
    np.save(path, values)
    picture = read_picture(path, channels)
    assert isinstance(picture, Tensor)
    return picture


def test_arrays_are_read_by_the_range_of_their_type(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path / "a.npy", BANDS), BANDS)
    assert torch.allclose(read(tmp_path / "a.npy", DEEP), torch.from_numpy(BANDS / 255).float(), atol=1e-6)
    assert np.array_equal(
        read(tmp_path / "a.npy", BANDS.astype(np.float64) * 10 - 7), BANDS.astype(np.float32) * 10 - 7
    )
    assert np.array_equal(read(tmp_path / "a.npy", BANDS > 100), (BANDS > 100) * np.uint8(255))


def test_the_layout_of_an_array_in_its_file_changes_nothing(tmp_path: Path) -> None:
    for values in (np.asfortranarray(DEEP), DEEP.astype(">u2"), np.ascontiguousarray(DEEP.T).T):
        assert torch.allclose(read(tmp_path / "a.npy", values), torch.from_numpy(BANDS / 255).float(), atol=1e-6)


def test_an_array_alone_in_an_npz_file_is_read_and_several_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", anything=BANDS)
    assert np.array_equal(read_picture(tmp_path / "a.npz", 5), BANDS)
    np.savez(tmp_path / "a.npz", image=BANDS, label=3)
    with pytest.raises(ValueError, match=r"a\.npz holds 2 arrays \(image, label\): save one"):
        read_picture(tmp_path / "a.npz", 5)


def test_the_content_of_a_file_is_read_as_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BANDS)
    np.savez(tmp_path / "a.npz", BANDS)
    for name in ("a.npy", "a.npz"):
        assert np.array_equal(read_picture(io.BytesIO((tmp_path / name).read_bytes()), 5), BANDS)


def test_colours_and_grey_in_an_array_are_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BANDS[:3])
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.npy", 3)), BANDS[:3].transpose(1, 2, 0))
    for values in (BANDS[0], BANDS[:1]):
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(np.asarray(read_picture(tmp_path / "a.npy", 1)), BANDS[0])


def forged(shape: str, kind: str = "<f4") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(100)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (forged("(5, 40, 44)"), "is cut off"),
        (forged("(5, 1000000, 1000000)"), r"is too large \(5 x 1000000 x 1000000\)"),
        (forged("(900000, 40, 44)"), "is too large"),
        (forged("(5, 2, 2)", "|O"), "is an array of object"),
        (forged("(5, 2, 1)", "<i8"), "type int64: save uint8, uint16 or float32"),
        (forged("(2, 5, 2, 2)", "|u1"), r"shape \(2, 5, 2, 2\): give \(C, H, W\)"),
        (forged("(5, 0, 2)", "|u1"), "give"),
        (forged("(-5, 2, 2)", "|u1"), "a.npy"),
        (b"no array", "is no array of numbers, or damaged"),
    ],
)
def test_a_damaged_or_forged_array_is_refused_with_its_name(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=found) as raised:
        read_picture(tmp_path / "a.npy", 5)
    assert "a.npy" in str(raised.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", content)
    with pytest.raises(ValueError, match=found.replace("a.npy", "a.npz")):
        read_picture(tmp_path / "a.npz", 5)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf):
        values = BANDS.astype(np.float32)
        values[2, 3, 4] = bad
        np.save(tmp_path / "a.npy", values)
        with pytest.raises(ValueError, match=r"a\.npy has values that are not finite"):
            read_picture(tmp_path / "a.npy", 5)


def test_another_number_of_channels_is_named_with_the_remedy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", BANDS)
    with pytest.raises(ChannelError, match=r"a\.npy.* has 5 channels, the model takes 3: set in_chans .* to 5"):
        read_picture(tmp_path / "a.npy", 3)
    np.save(tmp_path / "a.npy", BANDS.transpose(1, 2, 0))
    with pytest.raises(ChannelError, match=r"it may be \(H, W, C\): save it as \(C, H, W\)"):
        read_picture(tmp_path / "a.npy", 5)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ChannelError, match=r"a\.png has 3 channels, the model takes 5"):
        read_picture(tmp_path / "a.png", 5)


@pytest.mark.parametrize("layout", ["planes", "pixels", "pages"])
@pytest.mark.parametrize("values", [BANDS, DEEP], ids=["8", "16"])
def test_bands_and_pages_of_a_tiff_file_are_channels(tmp_path: Path, layout: str, values: np.ndarray) -> None:
    tifffile = pytest.importorskip("tifffile")
    if layout == "pages":
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    elif layout == "planes":
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="separate")
    else:
        tifffile.imwrite(tmp_path / "a.tif", values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    picture = read_picture(tmp_path / "a.tif", 5)
    assert isinstance(picture, Tensor)
    scaled = picture.float() * (255 if picture.is_floating_point() else 1)
    assert torch.allclose(scaled, torch.from_numpy(BANDS).float(), atol=1e-3)


@pytest.mark.parametrize("values", [BANDS, DEEP], ids=["8", "16"])
def test_bands_beyond_the_colours_are_never_left_out_in_silence(tmp_path: Path, values: np.ndarray) -> None:
    tifffile = pytest.importorskip("tifffile")
    for count in (4, 5):
        tifffile.imwrite(
            tmp_path / "a.tif", values[:count].transpose(1, 2, 0), photometric="rgb", extrasamples=[0] * (count - 3)
        )
        with pytest.raises(ValueError, match=r"a\.tif") as raised:
            read_picture(tmp_path / "a.tif", 3)
        assert isinstance(raised.value, ChannelError)
        with pytest.raises(ValueError, match=r"a\.tif"):
            read_image(tmp_path / "a.tif")


def test_four_channels_of_a_picture_are_colours_and_opacity_as_stored(tmp_path: Path) -> None:
    pixels = BANDS[:4].transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", 4), BANDS[:4])
    Image.fromarray(pixels[..., :2]).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", 2), BANDS[:2])


def test_grey_keeps_all_its_bits(tmp_path: Path) -> None:
    deep = np.arange(40 * 44, dtype=np.uint16).reshape(40, 44)  # all below one step of 8 bits
    Image.fromarray(deep).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png", 1)
    assert isinstance(picture, Tensor)
    assert torch.equal((picture[0] * 65535).round().int(), torch.from_numpy(deep.astype(np.int32)))
    Image.fromarray(BANDS[:3].transpose(1, 2, 0)).save(tmp_path / "b.png")
    grey = read_picture(tmp_path / "b.png", 1)
    assert np.array_equal(np.asarray(grey), np.asarray(Image.open(tmp_path / "b.png").convert("L")))
    black = Image.new("LA", (8, 8), (0, 0))
    black.save(tmp_path / "c.png")
    assert np.asarray(read_picture(tmp_path / "c.png", 1)).min() == 255


def test_deep_grey_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.zeros((16, 32), np.uint16)
    grey[:8, :8] = 65535
    for name in ("a.png", "a.tif"):
        Image.fromarray(grey).save(tmp_path / name, exif=exif)
        picture = read_picture(tmp_path / name, 1)
        assert isinstance(picture, Tensor)
        assert np.array_equal(picture[0].numpy() > 0.5, np.rot90(grey, -1) > 0)


# ---------------------------------------------------------------------- transforms


def test_arrays_are_cropped_as_pictures_are() -> None:
    picture = Image.fromarray(BANDS[:3].transpose(1, 2, 0))
    values = torch.from_numpy(BANDS[:3].copy())
    for size, crop in (((16, 16), 0.875), ((24, 8), None), ((40, 44), 1.0)):
        clean = CleanTransform(size, crop)
        assert (clean(picture).int() - clean(values).int()).abs().max() <= 1
        torch.testing.assert_close(clean(values.float()) / 255, clean(values.float() / 255))


def test_the_part_of_a_thin_array_that_is_kept_is_that_of_every_channel() -> None:
    thin = torch.arange(5 * 2 * 4000).reshape(5, 2, 4000).remainder(251).to(torch.uint8)
    whole = Preprocessing((8, 8)).crop(thin)
    assert whole.shape == (5, 8, 8)
    for channel in range(5):
        assert torch.equal(whole[channel], Preprocessing((8, 8)).crop(thin[channel : channel + 1])[0])
    torch.testing.assert_close(Preprocessing((8, 8)).crop(thin.float()), whole.float(), atol=1.0, rtol=0)


def test_colours_of_five_channels_cannot_be_changed_and_blurred_they_can_be() -> None:
    values = torch.from_numpy(BANDS.copy())
    with pytest.raises(ValueError, match=r"5 channels have none: set data\.transform\.init_args\.color_jitter to 0"):
        PretrainTransform((16, 16), color_jitter=0.5)(values)
    assert PretrainTransform((16, 16), horizontal_flip=True, gaussian_blur=True)(values).shape == (5, 16, 16)


# ---------------------------------------------------------------------- data modules


def folder(root: Path, values: np.ndarray, ending: str = "npy", count: int = 16) -> Path:
    for number in range(count):
        path = root / f"class{number % 2}" / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == "npy":
            np.save(path, values)
        else:
            Image.fromarray(values).save(path)
    return root


def module(root: Path, channels: int, **overrides: Any) -> ImageDataModule:
    settings: dict[str, Any] = {
        "masks": partial(MultiBlock, min_keep=1), "batch_size": 4, "num_workers": 0, "seed": 0,
    }  # fmt: skip
    data = ImageDataModule(Folder(str(root)), **{**settings, **overrides})
    encoder = VisionTransformer(img_size=32, patch_size=8, in_chans=channels, embed_dim=16, depth=1, num_heads=2)
    data.attach(encoder)
    return data


@pytest.mark.parametrize(
    ("values", "ending", "channels", "expected"),
    [
        (np.full((5, 40, 40), 51, np.uint8), "npy", 5, (0.2 - 0.5) / 0.25),
        (np.full((5, 40, 40), 13107, np.uint16), "npy", 5, (0.2 - 0.5) / 0.25),
        (np.full((2, 40, 40), 0.2, np.float32), "npy", 2, (0.2 - 0.5) / 0.25),
        (np.full((40, 40), 51, np.uint8), "png", 1, (0.2 - 0.449) / 0.226),
        (np.full((40, 40), 13107, np.uint16), "png", 1, (0.2 - 0.449) / 0.226),
    ],
)
def test_every_loader_gives_the_model_the_channels_it_takes(
    values: np.ndarray, ending: str, channels: int, expected: float, tmp_path: Path
) -> None:
    data = module(folder(tmp_path / "x", values, ending), channels)
    data.setup("fit")
    loaders = [
        data.train_dataloader(),
        data.val_dataloader(),
        data.probe_dataloader("train"),
        data.predict_dataloader(),
    ]
    for loader in loaders:
        for batch in loader or ():
            inputs = data.on_after_batch_transfer(batch, 0).inputs
            assert inputs.dtype == torch.float32
            torch.testing.assert_close(inputs, torch.full((len(inputs), channels, 32, 32), expected), atol=1e-3, rtol=0)
    assert data.random_views(2, 2).shape == (2, 2, channels, 32, 32)


def test_images_of_8_and_16_bits_may_be_in_one_batch(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", np.full((40, 40), 51, np.uint8), "png")
    for number in range(0, 16, 3):
        Image.fromarray(np.full((40, 40), 13107, np.uint16)).save(root / f"class{number % 2}" / f"{number}.png")
    (root / "class0" / "broken.png").write_text("no image")
    data = module(root, 1, transform=partial(PretrainTransform, color_jitter=0.0))
    loader = data.probe_dataloader("train")
    assert loader is not None
    for batch in loader:
        inputs = data.normalize(batch.inputs)[batch.index >= 0]
        torch.testing.assert_close(inputs, torch.full_like(inputs, (0.2 - 0.449) / 0.226), atol=1e-3, rtol=0)


def test_the_numbers_of_channels_are_compared_at_the_start(tmp_path: Path) -> None:
    root = folder(tmp_path / "x", np.zeros((5, 40, 40), np.uint8))
    with pytest.raises(ChannelError, match="has 5 channels, the model takes 3: set in_chans of the encoder to 5"):
        module(root, 3).setup("fit")
    three = ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match=r"mean of data\.normalization has 3 values, the model takes 5 channels"):
        module(root, 5, normalization=three).setup("fit")
    with pytest.raises(ValueError, match=r"color_jitter to 0"):
        module(root, 5, transform=partial(PretrainTransform, color_jitter=1.0)).setup("fit")
    with pytest.raises(ValueError, match=r"MultiCrop.*photometric.*jitter"):
        module(root, 5, transform=partial(MultiCrop, local_size=16)).setup("fit")


def test_floats_outside_of_0_to_1_need_a_mean_and_a_standard_deviation(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(7, 3, (5, 40, 40)).astype(np.float32)
    root = folder(tmp_path / "x", values)
    with pytest.raises(ValueError, match=r"values from .*, not 0 to 1: scale them, or set data\.normalization"):
        module(root, 5).setup("fit")
    data = module(root, 5, normalization=((7.0,) * 5, (3.0,) * 5))
    data.setup("fit")
    inputs = next(iter(data.train_dataloader())).inputs
    assert abs(float(inputs.mean())) < 0.1
    assert torch.equal(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0).inputs, inputs)


def test_encoders_say_how_many_channels_they_take() -> None:
    assert VisionTransformer(32, 8, 4, embed_dim=16, depth=1, num_heads=2).in_chans == 4
    assert ConvNeXt(64, 2, widths=(8, 16), depths=(1, 1)).in_chans == 2
    assert channels_of(torch.zeros(6, 3, 3)) == 6
