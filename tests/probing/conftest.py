from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepa_lightning.data import CleanTransform, ImageDataModule, TrainTransform

DataFactory = Callable[..., ImageDataModule]


@pytest.fixture(scope="session")
def coloured_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy images whose class is their colour: 36 for training, 12 for validation, 9 for the test."""
    root, random = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    for split, count in {"train": 36, "val": 12, "test": 9}.items():
        for number in range(count):
            pixels = random.integers(0, 120, (16, 16, 3))
            pixels[..., number % 3] += 100
            path = root / split / ("red", "green", "blue")[number % 3] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture
def coloured(coloured_folder: Path) -> DataFactory:
    """Data modules of these images, without augmentation."""

    def build(**overrides: object) -> ImageDataModule:
        settings = {"masks": None, "batch_size": 6, "num_workers": 0, "transform": Clean, "seed": 3}
        return ImageDataModule(root=str(coloured_folder), **{**settings, **overrides})  # type: ignore[arg-type]

    return build


class Clean(CleanTransform, TrainTransform):
    """Nothing is augmented."""
