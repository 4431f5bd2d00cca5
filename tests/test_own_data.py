"""README's lines on somebody's own folder: what a checkpoint was trained on is used, or a line says otherwise."""

from __future__ import annotations

import builtins
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dash import Dash
from safetensors import safe_open

from jepa_lightning.cli import main
from jepa_lightning.data import ImageDataModule
from jepa_lightning.weights import torch_file

TINY = [
    "--model.encoder.img_size=32", "--model.encoder.embed_dim=32", "--model.encoder.depth=4",
    "--model.encoder.num_heads=2", "--model.predictor.embed_dim=16", "--model.predictor.depth=1",
    "--data.masks.min_keep=1", "--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=1",
    "--model.lr.warmup_epochs=0.5", "--health.every_n_steps=0", "--trainer.enable_progress_bar=false",
]  # fmt: skip
QUIET = ["--trainer.enable_progress_bar=false", "--data.num_workers=0", "--data.batch_size=4"]
Seen = Callable[[], set[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """The folder of a run on own images: ``runs/`` and ``photos/``."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(image_folder, folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config=ijepa.yaml", *TINY, "--data.root=photos"])
    return folder


@pytest.fixture(autouse=True)
def _here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the data modules of a command read, by the title of their source."""
    found: list[str] = []
    before = ImageDataModule.listing

    def listing(self: Any, split: Any) -> Any:
        found.append(str(getattr(self.source, "root", type(self.source).__name__)))
        return before(self, split)

    monkeypatch.setattr(ImageDataModule, "listing", listing)
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often our code opened each checkpoint."""
    found: Counter[str] = Counter()
    before = torch_file.read_torch

    def counted(path: Path) -> Any:
        found[Path(path).name] += 1
        return before(path)

    monkeypatch.setattr("jepa_lightning.weights.file.read_torch", counted)
    return found


LINES = {
    "validate": ["validate", "--ckpt_path", "last.ckpt", *QUIET],
    "validate_with_config": ["validate", "--config", "ijepa.yaml", "--ckpt_path", "last.ckpt", *QUIET],
    "predict": ["predict", "--config", "ijepa.yaml", "--ckpt_path", "last.ckpt", "--maps.count=0", *QUIET],
    "fit": ["fit", "--ckpt_path", "last.ckpt", "--trainer.max_epochs", "2", *QUIET],
    "fit_with_config": ["fit", "--config", "ijepa.yaml", "--ckpt_path", "last.ckpt", "--trainer.max_epochs=2", *QUIET],
    "linear_probe": [
        "fit", "--config=linear_probe.yaml", "--model.checkpoint=last.ckpt", "--trainer.max_epochs=1", *QUIET,
    ],
    "finetune": ["fit", "--config=finetune.yaml", "--model.checkpoint=last.ckpt", "--trainer.max_epochs=1", *QUIET],
    "attentive_probe": [
        "fit", "--config=attentive_probe.yaml", "--model.checkpoint=last.ckpt", "--trainer.max_epochs=1",
        "--model.num_heads=4", *QUIET,
    ],
    "evaluate": ["evaluate", "--ckpt_path", "last.ckpt", "--data.num_workers=0"],
    "export": ["export", "--ckpt_path", "last.ckpt", "--to", "safetensors", "--out", "exported"],
    "explore": ["explore", "--ckpt_path", "last.ckpt", "--samples", "3"],
    "inspect": ["inspect", "runs/ijepa/version_0/checkpoints/last.ckpt"],
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_the_readme_uses_the_folder_of_the_training_and_reads_its_checkpoint_once(
    name: str, roots: list[str], reads: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dash, "run", lambda app, **options: None)
    main(LINES[name])
    assert set(roots) <= {"photos"}
    assert roots or name in ("export", "inspect")
    assert reads == {"last.ckpt": 1}


def test_data_that_is_named_on_the_command_line_is_used(roots: list[str], image_folder: Path) -> None:
    main([*LINES["validate_with_config"], f"--data.root={image_folder}"])
    assert set(roots) == {str(image_folder)}


def test_features_of_own_images_have_their_names(roots: list[str]) -> None:
    main(LINES["predict"])
    (path,) = Path("runs").rglob("features.safetensors")
    with safe_open(path, "pt") as file:
        about, labels = file.metadata(), file.get_tensor("labels")
    names, classes = (json.loads(about[key]) for key in ("names", "classes"))
    assert len(names) == 38
    assert classes == ["class0", "class1"]
    assert all(f"/{classes[label]}/" in name for name, label in zip(names, labels.tolist(), strict=True))
    assert "photos" in about["data"]


@pytest.mark.filterwarnings("ignore:cannot decode", "ignore:.*could not be decoded")
def test_a_folder_without_a_readable_file_gives_no_empty_result() -> None:
    for number in range(3):
        Path("broken/a").mkdir(parents=True, exist_ok=True)
        Path(f"broken/a/{number}.jpg").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="decoded"):
        main([*LINES["predict"], "--data.root=broken"])
    assert not [*Path("runs").rglob("features.safetensors")]


def test_a_fine_tuned_encoder_is_read_without_the_file_that_it_began_with(reads: Counter[str]) -> None:
    import jepa_lightning as jl

    main(LINES["finetune"])
    shutil.rmtree("runs/ijepa")
    (path,) = Path("runs").rglob("finetune*/**/last.ckpt")
    encoder = jl.load_encoder(path)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 32)


def test_nothing_else_opens_a_checkpoint_before_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Python's open nor torch.load, beside the one reading and that of Lightning."""
    loads: list[str] = []
    load = torch.load

    def loading(place: Any, *args: Any, **options: Any) -> Any:
        loads.append("ours" if options.get("mmap") else "lightning")
        return load(place, *args, **options)

    monkeypatch.setattr(torch, "load", loading)
    assert builtins.open is open
    main(LINES["validate"])
    assert loads == ["ours", "lightning"]
