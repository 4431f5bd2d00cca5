"""The dense tasks as a user calls them, on the embedded data and on folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jepa_lightning.cli import main
from jepa_lightning.data import embedded, moving_digits

CheckpointFactory = Callable[..., str]
FEW = ["--steps=4", "--batch_size=2", "--max_samples=6"]
ENCODERS = ["raw pixels", "random initialisation", "trained"]
IMAGES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, save_checkpoint: CheckpointFactory) -> str:
    return save_checkpoint(tmp_path_factory.mktemp("images") / "i.ckpt", **IMAGES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Few embedded samples."""
    few, root = {"train": 60, "val": 4, "test": 2}, tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "COUNTS", few)
        patch.setattr(moving_digits, "COUNTS", {**few, "train": 6})
        embedded.DigitScenes(64, str(root)).prepare()
        moving_digits.MovingDigits(64, str(root), plain=True).prepare()
    return str(root)


def report(folder: Path, task: str) -> dict[str, Any]:
    found = json.loads((folder / f"{task}.json").read_text())
    with Image.open(folder / f"{task}.png") as picture:
        assert picture.width > 300
    assert f"![{task}]({task}.png)" in (folder / f"{task}.md").read_text()
    return found


def protocols(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry["protocol"] for entry in found["results"]))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("segmentation", ["mIoU, linear head", "mIoU, nearest neighbours"]),
        ("depth", ["RMSE of depth", "delta 1"]),
        ("correspondence", ["PCK@0.1"]),
    ],
)
def test_a_task_on_embedded_scenes_has_baselines_intervals_and_a_picture(
    task: str, names: list[str], images: str, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["dense", task, f"--ckpt_path={images}", "--data=EmbeddedScenes", f"--data.cache={cache}", f"--out={tmp_path}",
          *FEW])  # fmt: skip
    found = report(tmp_path, task)
    assert protocols(found) == names
    assert [entry["encoder"] for entry in found["results"]] == ENCODERS * len(names)
    for entry in found["results"]:
        (value,), (low, high) = entry["values"], entry["bounds"]
        assert low <= value <= high
        assert entry["samples"] == 4
    assert "DigitScenes, validation split, n = 4" in capsys.readouterr().out
    assert task != "segmentation" or {entry["label"] for entry in found["details"]} >= {"background", "9"}
    assert any("Labels are compared at" in line for line in found["protocol"]) == (task != "correspondence")


@pytest.mark.parametrize("task", ["propagation", "correspondence"])
def test_a_task_on_clips_takes_encoders_of_images_and_of_clips(
    task: str, images: str, cache: str, tmp_path: Path, save_checkpoint: CheckpointFactory
) -> None:
    clips = save_checkpoint(tmp_path / "c.ckpt", method="VJEPA", **IMAGES, num_frames=4, tubelet_size=2)
    for name, path in (("images", images), ("clips", clips)):
        main(["dense", task, f"--ckpt_path={path}", "--data=EmbeddedClips", f"--data.cache={cache}", "--num_frames=4",
              f"--out={tmp_path / name}", *FEW])  # fmt: skip
        found = report(tmp_path / name, task)
        assert protocols(found) == (["J&F", "J", "F"] if task == "propagation" else ["PCK@0.1"])
        assert all(0 <= value <= 1 for entry in found["results"] for value in entry["values"])
    if task == "propagation":
        by_name = {(entry["protocol"], entry["encoder"]): entry["values"][0] for entry in found["results"]}
        for encoder in ENCODERS:
            mean = (by_name["J", encoder] + by_name["F", encoder]) / 2
            assert math.isclose(by_name["J&F", encoder], mean, rel_tol=1e-5)


def folder_of(root: Path, labels: str) -> Path:
    """Pictures whose left half is bright and of class 1 (or near), and whose right half is neither."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            left = int(random.integers(8, 24))
            picture = random.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            picture[:, :left] += 150
            label = np.zeros((32, 32), dtype=np.uint8)
            label[:, :left] = 1
            for folder, values in (("images", picture), (labels, label + (labels == "depth"))):
                path = root / folder / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return root


def test_raw_pixels_read_what_is_bright_and_labels_that_cannot_be_used_are_counted(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path, "labels")
    (root / "labels" / "val" / "3.png").unlink()
    main(["dense", "segmentation", f"--ckpt_path={images}", "--data=LabelFolder", f"--data.root={root}",
          "--data.classes=2", f"--out={root / 'out'}", "--steps=60", "--batch_size=4", "--label_size=16"])  # fmt: skip
    found, said = report(root / "out", "segmentation"), capsys.readouterr().out
    values = {(entry["protocol"], entry["encoder"]): entry["values"][0] for entry in found["results"]}
    assert values["mIoU, linear head", "raw pixels"] > 0.75
    assert values["mIoU, nearest neighbours", "raw pixels"] > 0.75
    assert {entry["samples"] for entry in found["results"]} == {3}
    assert "1 of 4 val samples left out: 3.png is missing" in said
    assert any("compared at 16x16 pixels" in line for line in found["protocol"])


def test_depth_is_read_from_folders(images: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path, "depth")
    main(["dense", "depth", f"--ckpt_path={images}", "--data=DepthFolder", f"--data.root={root}", "--data.scale=1",
          "--data.farthest=4", f"--out={root / 'out'}", "--steps=150", "--batch_size=4", "--lr=0.02"])  # fmt: skip
    found = report(root / "out", "depth")
    values = {(entry["protocol"], entry["encoder"]): entry["values"][0] for entry in found["results"]}
    assert values["RMSE of depth", "raw pixels"] < 0.4  # the halves are 1 and 2 away
    assert values["delta 1", "raw pixels"] > 0.7


def test_a_task_says_what_its_data_lack(images: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path, "depth")
    data = ["--data=DepthFolder", f"--data.root={root}"]
    for task, words in (
        ("segmentation", "has no classes of pixels: use --data LabelFolder"),
        ("propagation", "has images: use --data DAVIS"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["dense", task, f"--ckpt_path={images}", *data])
        assert words in str(end.value.code)
    with pytest.raises(SystemExit) as end:
        main(["dense", "depth", f"--ckpt_path={images}", "--steps=0"])
    assert "--steps must be at least 1, got 0" in str(end.value.code)


def test_help_needs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["dense", "--help"], ["dense", "depth", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert "--label_size" in capsys.readouterr().out
