from __future__ import annotations

import os
import shutil
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from jepa_lightning.data import Folder, ImageDataModule, PretrainTransform
from jepa_lightning.data.sources import FileImages
from jepa_lightning.data.timeout import Reader
from jepa_lightning.masking import MaskedBatch, MultiBlock
from jepa_lightning.models import VisionTransformer


def data_module(root: Path, **overrides: Any) -> ImageDataModule:
    settings: dict[str, Any] = {
        "masks": partial(MultiBlock, min_keep=1), "batch_size": 4, "num_workers": 0, "img_size": 32, "patch_size": 8,
        "seed": 0,
    }  # fmt: skip
    data = ImageDataModule(Folder(str(root)), **{**settings, **overrides})
    data.setup("fit")
    return data


def epoch(data: ImageDataModule, number: int) -> list[MaskedBatch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(one: list[MaskedBatch], other: list[MaskedBatch]) -> bool:
    return all(
        torch.equal(a.inputs, b.inputs)
        and torch.equal(a.masks[0].context, b.masks[0].context)
        and torch.equal(a.masks[0].targets, b.masks[0].targets)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_batches_do_not_depend_on_the_number_of_workers(image_folder: Path, workers: int) -> None:
    alone = epoch(data_module(image_folder), 2)
    assert len(alone) == 8
    assert same(alone, epoch(data_module(image_folder, num_workers=workers), 2))


def test_epochs_and_seeds_differ(image_folder: Path) -> None:
    first = epoch(data_module(image_folder), 0)
    assert same(first, epoch(data_module(image_folder), 0))
    assert not same(first, epoch(data_module(image_folder), 1))
    assert not same(first, epoch(data_module(image_folder, seed=1), 0))


def test_drawing_a_batch_leaves_the_global_generator_alone(image_folder: Path) -> None:
    before = torch.get_rng_state()
    epoch(data_module(image_folder), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loader_goes_on_after_the_batches_its_state_counts(image_folder: Path) -> None:
    whole = epoch(data_module(image_folder), 1)
    loader = data_module(image_folder).train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    resumed = data_module(image_folder, num_workers=2).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(1)
    assert same(whole[3:], list(resumed))
    resumed.sampler.set_epoch(2)
    assert same(epoch(data_module(image_folder), 2), list(resumed))


def test_pixels_travel_as_bytes_and_are_normalised_on_the_device(image_folder: Path) -> None:
    data = data_module(image_folder)
    batch = epoch(data, 0)[0]
    assert batch.inputs.dtype == torch.uint8
    normal = data.on_after_batch_transfer(batch, 0).inputs
    expected = (batch.inputs[0, 0].float() / 255 - 0.485) / 0.229
    torch.testing.assert_close(normal[0, 0], expected)
    torch.testing.assert_close(data.denormalize(normal), batch.inputs.float() / 255)


def test_a_damaged_file_is_replaced_named_and_counted(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    for number, name in enumerate(sorted((root / "train" / "class0").iterdir())[:3]):
        content = name.read_bytes()
        name.write_bytes([content[:200], b"", b"this is text"][number])
    data = data_module(root)
    batches = epoch(data, 0)
    assert len(batches) == 8
    assert all(int(batch.index.min()) >= 0 for batch in batches if batch.index is not None)
    with pytest.warns(UserWarning, match="cannot decode .*skipped"):
        data.on_after_batch_transfer(batches[0], 0)
    names = data.unreadable()
    assert 1 <= len(names) <= 3
    loader = data.probe_dataloader("train")
    assert loader is not None
    kept = torch.cat([batch.index for batch in loader])
    assert int((kept < 0).sum()) == 3  # evaluation leaves them out in place of counting another image twice
    with pytest.warns(UserWarning, match="3 files could not be decoded and were skipped: class0/"):
        data.teardown("fit")


def test_a_damaged_file_with_a_strange_name_costs_one_line(image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    folder = root / "train" / "class0"
    for name in (b"\xff.jpg", b"a\rb.jpg", "a\u2028b.jpg".encode()):
        (folder / os.fsdecode(name)).write_text("no image")
    os.mkfifo(folder / "pipe.jpg")
    data = data_module(root, num_workers=2)
    assert len(epoch(data, 0)) == 9
    loader = data.probe_dataloader("train")
    assert loader is not None
    assert sum(int((batch.index < 0).sum()) for batch in loader) == 4
    names = ["class0/\\udcff.jpg", "class0/a\\rb.jpg", "class0/a\\u2028b.jpg", "class0/pipe.jpg"]
    assert sorted(data.unreadable()) == names
    with pytest.warns(UserWarning, match=r"4 files could not be decoded") as told:
        data.teardown("fit")
    assert all(name in str(told[0].message).encode().decode() for name in names)


def test_few_held_out_samples_are_warned_of_once(tmp_path: Path) -> None:
    for number in range(40):
        write_image(tmp_path / f"class{number % 8}" / f"{number}.png")
    data = data_module(tmp_path)
    with pytest.warns(UserWarning, match=r"only \d+ held-out images: one of them is \d+% of an accuracy"):
        assert set(data.listing("val").labels) == set(range(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.val_dataloader()


def test_a_folder_without_one_readable_image_is_an_error(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_text("no image")
    with pytest.raises(ValueError, match="none of the 2 images can be decoded"):
        data_module(tmp_path)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40)).save(path)


def test_images_without_labels_train_and_say_so(tmp_path: Path) -> None:
    for number in range(8):
        write_image(tmp_path / f"{number}.png")
    with pytest.warns(UserWarning, match="no labels"):
        data = data_module(tmp_path)
    labels = epoch(data, 0)[0].labels
    assert labels is not None
    assert labels.tolist() == [-1] * 4


def test_one_class_trains_and_says_so(tmp_path: Path) -> None:
    for number in range(8):
        write_image(tmp_path / "cat" / f"{number}.png")
    with pytest.warns(UserWarning, match="one class, 'cat'"):
        data_module(tmp_path)


def test_a_batch_larger_than_the_data_set_names_the_largest_possible(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "0.png")
    with pytest.warns(UserWarning, match="one class"):
        data = data_module(tmp_path)
    with pytest.raises(ValueError, match=r"1 samples.*--data.batch_size to at most 1"):
        data.train_dataloader()


def test_sizes_that_the_patch_does_not_divide_are_refused(image_folder: Path) -> None:
    with pytest.raises(ValueError, match="30x30 is not divisible by the model's patch_size 8"):
        data_module(image_folder, img_size=30).train_dataloader()


def test_without_a_model_the_size_must_be_given(image_folder: Path) -> None:
    with pytest.raises(ValueError, match="give img_size="):
        data_module(image_folder, img_size=None).train_dataloader()


def test_non_square_images_get_masks_of_their_grid(image_folder: Path) -> None:
    batch = epoch(data_module(image_folder, img_size=(16, 48)), 0)[0]
    masks: tuple[Tensor, Tensor] = batch.masks[0]
    assert batch.inputs.shape == (4, 3, 16, 48)
    assert max(int(mask.max()) for mask in masks) < 2 * 6


def test_sizes_come_from_the_encoder_that_is_attached_where_there_is_no_trainer(image_folder: Path) -> None:
    data = ImageDataModule(root=str(image_folder))
    with pytest.raises(ValueError, match="no model to take img_size from: give img_size="):
        data.size()
    data.attach(VisionTransformer(img_size=48, patch_size=16, embed_dim=16, depth=1, num_heads=2))
    assert (data.size(), data.grid()) == ((48, 48), (1, 3, 3))


def test_the_module_describes_what_evaluation_does_to_a_picture(image_folder: Path) -> None:
    data = data_module(image_folder, transform=partial(PretrainTransform, crop_pct=0.75))
    wanted = data.preprocessing
    assert (wanted.size, wanted.crop_pct, wanted.mean) == ((32, 32), 0.75, data.mean)
    seen = data.dataset("val", augment=False)[0].inputs
    assert torch.equal(seen, pil_to_tensor(wanted.crop(data.images("val").image(0))))
    assert torch.equal(data.normalize(seen[None])[0], wanted.normalize(seen))


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9])
def test_normalization_that_makes_no_finite_pixels_is_refused(image_folder: Path, name: str, value: float) -> None:
    usual, wrong = (0.5, 0.5, 0.5), (0.5, value, 0.5)
    with pytest.raises(ValueError, match=f"{name} .*: use"):
        data_module(image_folder, normalization=(wrong, usual) if name == "mean" else (usual, wrong))


def test_a_standard_deviation_of_0_is_refused(image_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"std \(0\.2, 0\.0, 0\.2\): use 1e-06 to"):
        data_module(image_folder, normalization=((0.5, 0.5, 0.5), (0.2, 0.0, 0.2)))


# ---------------------------------------------------------------------- what hangs, and what warns


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_takes_too_long_is_given_up_once(
    workers: int, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = FileImages.part

    def part(self: FileImages, index: int, *rest: Any) -> Any:
        if index == 3:
            time.sleep(60)
        return before(self, index, *rest)

    monkeypatch.setattr(FileImages, "part", part)
    data = data_module(image_folder, num_workers=workers, reader=Reader(timeout=0.5))
    start = time.monotonic()
    for number in range(3):
        assert len(epoch(data, number)) == 8
    assert time.monotonic() - start < 20
    assert list(data.report.reasons().values()) == [
        (data.images("train").name(3), "TimeoutError: no answer within 0.5 seconds")
    ]
    data.report.clear()


def test_the_draws_of_other_images_do_not_depend_on_one_that_was_given_up(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = epoch(data_module(image_folder), 0)
    before = FileImages.part

    def part(self: FileImages, index: int, *rest: Any) -> Any:
        if index == 3:
            time.sleep(1.0)  # draws afterwards, when others are at work
        return before(self, index, *rest)

    monkeypatch.setattr(FileImages, "part", part)
    data = data_module(image_folder, reader=Reader(timeout=0.9))
    found = epoch(data, 0)
    data.report.clear()
    for one, other in zip(whole, found, strict=True):
        kept = one.index == other.index  # type: ignore[operator]
        assert torch.equal(one.inputs[kept], other.inputs[kept])


def test_warnings_of_libraries_are_counted_and_named_once(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = FileImages.part

    def part(self: FileImages, index: int, *rest: Any) -> Any:
        if index in (2, 5, 7):
            warnings.warn("Corrupt EXIF data.\n  Expecting more.", stacklevel=1)
        return before(self, index, *rest)

    monkeypatch.setattr(FileImages, "part", part)
    data = data_module(image_folder, num_workers=2)
    for number in range(2):
        epoch(data, number)
    assert data.unreadable() == []
    with pytest.warns(UserWarning, match="read with warnings") as told:
        data.teardown("fit")
    name = data.images("train").name(2)
    found = f"3 files were read with warnings, for example {name} (Corrupt EXIF data. Expecting more.)"
    assert [str(one.message) for one in told] == [found]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan")])
def test_a_time_out_of_images_must_be_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        Reader(timeout)
