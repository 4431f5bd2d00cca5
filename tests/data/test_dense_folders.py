from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.data.dense import DenseSource, LabelError, Samples, resized_frames, resized_labels
from jepa_lightning.data.dense_folders import DAVIS, DepthFolder, LabelFolder, read_classes, voc_colours

CLASSES = np.array([[0, 1, 1], [2, 2, 0]], dtype=np.uint8)


def write(path: Path, values: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(voc_colours().astype(np.uint8).flatten().tolist())
    image.save(path)
    return path


def picture(path: Path, height: int = 2, width: int = 3) -> Path:
    return write(path, np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_the_palette_of_voc_is_the_published_one() -> None:
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {number: tuple(voc_colours()[number].tolist()) for number in expected} == expected
    assert tuple(voc_colours()[255].tolist()) == (224, 224, 192)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "palette", "colours"])
def test_labels_are_the_same_however_a_file_holds_them(kind: str, tmp_path: Path) -> None:
    values: Any = {"16 bits": CLASSES.astype(np.uint16), "colours": voc_colours().astype(np.uint8)[CLASSES]}.get(kind)
    path = write(tmp_path / "a.png", CLASSES if values is None else values, "P" if kind == "palette" else None)
    assert read_classes(path).tolist() == CLASSES.tolist()


def ade(root: Path) -> Path:
    for split, count in (("training", 3), ("validation", 2)):
        for number in range(count):
            picture(root / "images" / split / f"{number}.jpg")
            write(root / "annotations" / split / f"{number}.png", CLASSES)
    return root


def test_ade20k_has_150_classes_from_1_on_and_0_does_not_count(tmp_path: Path) -> None:
    source = LabelFolder(str(ade(tmp_path)))
    assert (source.count("train"), source.count("val"), len(source.classes)) == (3, 2, 150)
    sample = source.sample("val", 0, 1)
    assert sample.labels[0].tolist() == [[-1, 0, 0], [1, 1, -1]]
    assert sample.frames.shape == (1, 3, 2, 3)
    with pytest.raises(FileNotFoundError, match="test"):
        source.count("test")


def test_voc_has_21_classes_and_255_does_not_count(tmp_path: Path) -> None:
    border = CLASSES.copy()
    border[0, 0] = 255
    for name in ("a", "b", "c"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path / "SegmentationClass" / f"{name}.png", border, "P")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nc\n")
    (lists / "val.txt").write_text("b\n")
    source = LabelFolder(str(tmp_path))
    assert (source.count("train"), source.count("val"), len(source.classes)) == (2, 1, 21)
    assert source.sample("train", 1, 1).name == "c.jpg"
    assert source.sample("val", 0, 1).labels[0].tolist() == [[-1, 1, 1], [2, 2, 0]]


def test_labels_of_your_own_need_classes_and_a_fifth_is_for_validation(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "images" / f"{number}.png")
        write(tmp_path / "labels" / f"{number}.png", CLASSES)
    source = LabelFolder(str(tmp_path), classes=["sky", "tree", "road"])
    assert (source.count("train"), source.count("val")) == (8, 2)
    assert source.sample("val", 0, 1).labels[0].tolist() == CLASSES.tolist()
    with pytest.raises(ValueError, match=r"give --data\.classes"):
        LabelFolder(str(tmp_path))


def broken(root: Path, kind: str) -> None:
    label = root / "annotations" / "validation" / "1.png"
    if kind == "missing":
        label.unlink()
    elif kind == "size":
        write(label, CLASSES[:, :2])
    elif kind == "classes":
        write(label, np.full((2, 3), 4000, dtype=np.uint16))
    elif kind == "colour":
        write(label, np.full((2, 3, 3), 7, dtype=np.uint8))
    else:
        label.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "1.png is missing"),
        ("size", "1.jpg is 2x3, its label 2x2 pixels"),
        ("classes", "1.png has the value 4000, beyond 150 classes from 1 on"),
        ("colour", r"1.png has the colour \[7, 7, 7\], which is not in the palette"),
        ("no image", "1.png cannot be read"),
    ],
)
def test_a_label_that_cannot_be_used_is_left_out_and_counted_in_one_line(kind: str, said: str, tmp_path: Path) -> None:
    broken(ade(tmp_path), kind)
    samples = Samples(LabelFolder(str(tmp_path)), "val", 1)
    assert [samples.read(position) is None for position in range(2)] == [False, True]
    samples.read(1)
    with pytest.raises(LabelError, match=said):
        samples.source.sample("val", 1, 1)
    assert samples.note().startswith("1 of 2 val samples left out: ")
    assert "\n" not in samples.note()
    generator = torch.Generator().manual_seed(0)
    assert {samples.draw(generator).name for _ in range(8)} == {"0.jpg"}  # training goes on with the next one


def test_a_split_without_a_usable_label_is_an_error_that_says_why(tmp_path: Path) -> None:
    source = LabelFolder(str(ade(tmp_path)))
    for number in range(3):
        (tmp_path / "annotations" / "training" / f"{number}.png").unlink()
    with pytest.raises(ValueError, match=r"no train sample with a usable label: .*0.png is missing"):
        Samples(source, "train", 1).draw(torch.Generator())


def test_depths_are_scaled_and_those_that_make_no_sense_left_out(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            picture(tmp_path / "images" / split / f"{number}.jpg")
    depth = np.array([[0, 1500, 3000], [10, 20, 30]], dtype=np.uint16)
    write(tmp_path / "depth" / "train" / "0.png", depth)
    np.save(tmp_path / "depth" / "train" / "1.npy", depth / 2.0)
    (tmp_path / "depth" / "val").mkdir()
    np.save(tmp_path / "depth" / "val" / "0.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "depth" / "val" / "1.npy", np.ones((2, 3, 1)))
    source = DepthFolder(str(tmp_path), scale=1000.0)
    assert source.sample("train", 0, 1).labels[0, 0].tolist() == [0.0, 1.5, 3.0]
    assert source.sample("train", 1, 1).labels[0, 0].tolist() == [0.0, 750.0, 1500.0]
    samples = Samples(source, "val", 1)
    assert [samples.read(position) for position in range(3)] == [None, None, None]
    for said in ("0.npy has depths that are negative or not finite", "shape [2, 3, 1]", "2 has no depth file"):
        assert said in samples.note()
    with pytest.raises(ValueError, match="nearest < farthest"):
        DepthFolder(str(tmp_path), nearest=2.0, farthest=1.0)


def test_davis_gives_whole_sequences_with_their_objects(tmp_path: Path) -> None:
    for name, frames in (("bear", 4), ("cat", 3)):
        for frame in range(frames):
            picture(tmp_path / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg")
            write(tmp_path / "Annotations" / "480p" / name / f"{frame:05d}.png", CLASSES, "P")
    source: DenseSource = DAVIS(str(tmp_path))
    assert (source.count("val"), source.clips) == (2, True)
    sample = source.sample("val", 0, 8)
    assert (sample.frames.shape, sample.labels.shape) == ((4, 3, 2, 3), (4, 2, 3))
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("cat\n")
    assert DAVIS(str(tmp_path)).count("val") == 1
    (tmp_path / "Annotations" / "480p" / "cat" / "00001.png").unlink()
    samples = Samples(DAVIS(str(tmp_path)), "val", 8)
    assert samples.read(0) is None
    assert "00001.png is missing" in samples.note()


def test_sizes_change_without_cutting_and_labels_stay_labels() -> None:
    labels = torch.tensor([[[0, 3], [5, -1]]])
    assert resized_labels(labels, (4, 4))[0, ::2, ::2].tolist() == [[0, 3], [5, -1]]
    assert resized_frames(torch.full((1, 3, 4, 6), 7, dtype=torch.uint8), (8, 8)).unique().tolist() == [7]
