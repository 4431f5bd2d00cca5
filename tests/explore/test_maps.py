from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from PIL import Image

from jepa_lightning.data import ImageDataModule
from jepa_lightning.explore.maps import Maps, draw, rows_of
from jepa_lightning.explore.subject import Subject
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, VisionTransformer

pytest.importorskip("matplotlib")
EncoderFactory = Callable[..., VisionTransformer]


@pytest.fixture
def subject(tiny_encoder: EncoderFactory) -> Callable[..., Subject]:
    def build(**sizes: int) -> Subject:
        encoder = tiny_encoder(**sizes).eval()
        predictor = Predictor(encoder, embed_dim=16, depth=1, init_std=None).eval()
        return Subject(encoder, encoder, predictor, (0.5,) * 3, (0.25,) * 3)

    return build


def test_every_patch_is_hidden_once_for_the_surprise(subject: Callable[..., Subject]) -> None:
    network = subject()
    pixels = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
    found = network.surprise(pixels)
    for rows in (slice(0, 2), slice(2, 4)):
        for columns in (slice(0, 2), slice(2, 4)):
            hidden = torch.zeros(4, 4, dtype=torch.bool)
            hidden[rows, columns] = True
            expected = network.expect(pixels, hidden.flatten())
            torch.testing.assert_close(found.view(4, 4)[rows, columns].flatten(), expected.surprise)


def test_rows_are_what_the_networks_have(subject: Callable[..., Subject]) -> None:
    network = subject(num_frames=4, tubelet_size=2)
    rows = dict(rows_of(network, torch.randint(256, (3, 4, 32, 32), dtype=torch.uint8)))
    heads = [f"head {n} attends to" for n in range(4)]
    assert list(rows) == ["input", *heads, "principal components", "surprise"]
    assert rows["input"].shape == (2, 32, 32, 3)
    assert rows["head 3 attends to"].shape == rows["surprise"].shape == (2, 4, 4)
    assert rows["head 0 attends to"].sum() == pytest.approx(1.0)
    network.predictor = None
    assert "surprise" not in dict(rows_of(network, torch.zeros(3, 4, 32, 32, dtype=torch.uint8)))


@pytest.mark.parametrize("frames", [1, 4])
def test_a_picture_is_drawn_of_images_and_of_clips(
    subject: Callable[..., Subject], tmp_path: Path, frames: int
) -> None:
    network = subject(num_frames=frames, tubelet_size=2 if frames > 1 else 1)
    draw(network, torch.randint(256, (3, frames, 32, 32), dtype=torch.uint8), "name", tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    assert image.height > image.width if frames > 1 else image.width > image.height
    assert len(set(image.convert("L").tobytes())) > 50


def test_predict_writes_a_picture_of_the_first_samples_and_a_map_of_all(
    tiny_ijepa: Callable[..., IJEPA],
    quiet_trainer: Callable[..., Trainer],
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plane = pytest.importorskip("jepa_lightning.explore.plane")
    monkeypatch.setattr(plane, "UMAP", partial(First))
    data = ImageDataModule(root=str(image_folder), img_size=32, patch_size=8, num_workers=0)
    quiet_trainer(callbacks=[Maps(count=2)]).predict(tiny_ijepa(), data, return_predictions=False)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["000000.png", "000001.png", "umap.png"]


def test_no_map_is_drawn_if_none_is_wanted(
    tiny_ijepa: Callable[..., IJEPA], quiet_trainer: Callable[..., Trainer], image_folder: Path, tmp_path: Path
) -> None:
    data = ImageDataModule(root=str(image_folder), img_size=32, patch_size=8, num_workers=0)
    quiet_trainer(callbacks=[Maps(count=0)]).predict(tiny_ijepa(), data, return_predictions=False)
    assert not (tmp_path / "maps").exists()


class First:
    """In place of UMAP, which compiles for half a minute: the first two columns."""

    def __init__(self, **options: int) -> None:
        assert options["random_state"] == 0

    def fit_transform(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, :2]
