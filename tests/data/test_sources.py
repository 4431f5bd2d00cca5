from __future__ import annotations

import os
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from jepa_lightning.data import Folder, ImageDataModule, Torchvision


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), "red").save(path)


def test_missing_and_empty_folders_have_their_own_messages(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        Folder(str(tmp_path / "nowhere")).split("train")
    with pytest.raises(FileNotFoundError, match="no image files in"):
        Folder(str(tmp_path)).split("train")


def test_named_splits_are_read_like_imagenet(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "train/dog/deep/2.JPEG", "val/dog/3.png", "train/notes.txt"):
        write_image(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    train, val = Folder(str(tmp_path)).split("train"), Folder(str(tmp_path)).split("val")
    assert [train.name(i) for i in range(len(train))] == ["cat/1.jpg", "dog/deep/2.JPEG"]
    assert list(train.labels) == [0, 1]
    assert list(val.labels) == [1]  # the label of dog, although val has no cat
    assert train.classes == val.classes == ["cat", "dog"]
    with pytest.raises(FileNotFoundError, match="no test split"):
        Folder(str(tmp_path)).split("test")
    assert len(Folder(str(tmp_path)).split("all")) == 3


@pytest.mark.parametrize(
    "names", [("Train", "Val", "TEST"), ("train", "validation", "test"), ("TRAIN", "valid", "Test")]
)
def test_folders_of_splits_may_be_written_in_other_ways(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for folder in names:
        write_image(tmp_path / folder / "cat" / "1.jpg")
        write_image(tmp_path / folder / "dog" / "2.jpg")
    for split in ("train", "val", "test"):
        images = Folder(str(tmp_path)).split(split)  # type: ignore[arg-type]
        assert (images.classes, images.labels) == (["cat", "dog"], [0, 1])
    everything = Folder(str(tmp_path)).split("all")
    assert (everything.classes, everything.labels) == (["cat", "dog"], [0, 1] * 3)
    assert everything.name(0) == f"{min(names)}/cat/1.jpg"


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "val", "validation"):
        write_image(tmp_path / folder / "cat" / "1.jpg")
    with pytest.raises(ValueError, match=r"val and .*validation could both be the val split"):
        Folder(str(tmp_path)).split("train")


def test_all_samples_have_the_classes_within_the_splits_in_the_order_of_training(tmp_path: Path) -> None:
    for name in ("train/b/1.jpg", "train/c/2.jpg", "val/c/3.jpg", "test/a/4.jpg", "test/5.jpg", "more/d/6.jpg"):
        write_image(tmp_path / name)
    images = Folder(str(tmp_path)).split("all")
    found = {images.name(i): label for i, label in enumerate(images.labels)}
    assert images.classes == ["b", "c", "a"]
    assert found == {
        "train/b/1.jpg": 0, "train/c/2.jpg": 1, "val/c/3.jpg": 1,
        "test/a/4.jpg": 2, "test/5.jpg": -1, "more/d/6.jpg": -1,
    }  # fmt: skip


def test_a_class_may_be_called_like_a_split_other_than_training(tmp_path: Path) -> None:
    for name in ("test/1.jpg", "cat/2.jpg", "cat/3.jpg", "test/4.jpg"):
        write_image(tmp_path / name)
    assert Folder(str(tmp_path)).split("train").classes == ["cat", "test"]


def test_names_that_are_no_text_are_listed_read_and_escaped(tmp_path: Path) -> None:
    for name in (b"a\rb.jpg", b"caf\xe9.jpg"):
        write_image(tmp_path / "cat" / os.fsdecode(name))
    images = Folder(str(tmp_path)).split("all")
    assert [images.name(i) for i in range(2)] == ["cat/a\\rb.jpg", "cat/caf\\udce9.jpg"]
    assert images.image(1).size == (20, 10)
    assert len(Folder(str(tmp_path)).split("val")) == 1


def test_the_background_of_transparent_pixels_may_be_set(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "1.png")
    assert Folder(str(tmp_path)).split("all").image(0).getpixel((0, 0)) == (255, 255, 255)
    data = ImageDataModule(Folder(str(tmp_path), background=(1, 2, 3)), img_size=32)
    assert data.images("all").image(0).getpixel((0, 0)) == (1, 2, 3)
    assert data.preprocessing.background == (1, 2, 3)


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "train/cat/1.jpg")
    write_image(tmp_path / "val/dog/1.jpg")
    with pytest.raises(FileNotFoundError, match=r"classes that .*train lacks: \['dog'\]"):
        Folder(str(tmp_path)).split("val")


def test_the_held_out_part_stays_when_files_are_added(tmp_path: Path) -> None:
    for number in range(100):
        write_image(tmp_path / "cat" / f"{number}.jpg")
    before = {
        name(i) for part in [Folder(str(tmp_path)).split("val")] for name in [part.name] for i in range(len(part))
    }
    for number in range(100, 150):
        write_image(tmp_path / "cat" / f"{number}.jpg")
    train, val = Folder(str(tmp_path)).split("train"), Folder(str(tmp_path)).split("val")
    after = {val.name(i) for i in range(len(val))}
    assert before <= after
    assert 2 <= len(before) <= 25
    assert not after & {train.name(i) for i in range(len(train))}
    assert len(train) + len(val) == 150


def test_one_image_is_for_training(tmp_path: Path) -> None:
    write_image(tmp_path / "0.jpg")
    assert len(Folder(str(tmp_path)).split("train")) == 1
    assert len(Folder(str(tmp_path)).split("val")) == 0


def test_unknown_torchvision_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'CIFAR99'"):
        Torchvision("CIFAR99")
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in .*--data.source.download true"):
        Torchvision("CIFAR10", root=str(tmp_path)).split("train")


def test_what_cannot_be_downloaded_ends_in_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object) -> None:
        raise RuntimeError("Error downloading train.gz:\nTried a mirror, got:\n<urlopen error>\n")

    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "download", offline)
    with pytest.raises(FileNotFoundError, match=r"not in .* \(Error .* got: <urlopen error>\): .*--data.source.root"):
        Torchvision("FashionMNIST", str(tmp_path), download=True).prepare()


def fashion_mnist(root: Path) -> None:
    """The files of FashionMNIST with 50 training and 20 test images."""
    import gzip
    import struct

    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 50), ("t10k", 20)):
        images = struct.pack(">IIII", 2051, count, 28, 28) + bytes(i % 256 for i in range(count * 784))
        labels = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / name).write_bytes(content)
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))


def test_a_torchvision_set_has_three_splits_that_share_nothing(tmp_path: Path) -> None:
    fashion_mnist(tmp_path)
    source = Torchvision("FashionMNIST", root=str(tmp_path))
    train, val, test, everything = (source.split(s) for s in ("train", "val", "test", "all"))  # type: ignore[arg-type]
    assert len(train) + len(val) == 50
    assert len(test) == 20
    assert len(everything) == 70
    assert not {train.name(i) for i in range(len(train))} & {val.name(i) for i in range(len(val))}
    assert train.classes[9] == "Ankle boot"
    assert test.labels[13] == 3
    assert train.image(0).mode == "RGB"
    assert everything.name(69) == "FashionMNIST/all/69"
