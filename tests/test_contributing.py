"""What CONTRIBUTING.md says is kept true: the files of a method, a method and a format of one's own."""

from __future__ import annotations

import ast
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.commands.configs import find_config
from jepa_lightning.models import VisionTransformer
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import Branch, Hints, Networks
from jepa_lightning.weights.base import OneEncoder
from jepa_lightning.weights.file import File
from jepa_lightning.weights.networks import filled

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLES_OF_FILES = re.findall(r"^\| file \| what \|\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
TOLD = re.findall(r"^\| `([^`]+)` \|", "".join(TABLES_OF_FILES), flags=re.MULTILINE)


def test_the_tables_name_files_that_exist_among_them_the_method_its_test_and_its_config() -> None:
    assert {"jepa_lightning/methods/lejepa.py", "configs/lejepa.yaml", "tests/methods/test_lejepa.py"} <= set(TOLD)
    assert not [path for path in TOLD if not (ROOT / path).is_file()]


def names(path: Path) -> set[str]:
    """Names, attributes, imported names and strings that are a whole name; words of docstrings are none."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.ClassDef | ast.alias):
            found.add(node.id if isinstance(node, ast.Name) else node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_no_other_file_of_the_package_knows_the_method() -> None:
    files = [path for path in (ROOT / "jepa_lightning").rglob("*.py") if "LeJEPA" in names(path)]
    assert len(files) == 3
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(TOLD)


# ---------------------------------------------------------------------- a method beside one's own configuration

METHOD = """
from jepa_lightning import IJEPA


class Halved(IJEPA):
    def losses(self, batch):
        found = super().losses(batch)
        return {**found, "loss": found["loss"] / 2}
"""


def test_a_method_beside_ones_own_configuration_needs_no_change_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    project = tmp_path / "project"
    project.mkdir()
    (project / "halved_jepa.py").write_text(METHOD)
    config = yaml.safe_load(Path(find_config("ijepa.yaml")).read_text())
    config["model"]["class_path"] = "halved_jepa.Halved"
    sizes = config["model"]["init_args"]["encoder"]["init_args"]
    sizes |= {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False}
    config["data"]["init_args"] |= {"batch_size": 4, "num_workers": 0, "root": str(image_folder)}
    (project / "halved.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "project/halved.yaml", "--data.masks.min_keep=1", "--probe.every_n_epochs=0"])
    (path,) = Path("runs").rglob("last.ckpt")
    assert type(jl.load(path, trust="halved_jepa")).__name__ == "Halved"
    with pytest.raises(SystemExit, match=r"halved_jepa.Halved, which is not of jepa_lightning: .*--trust halved_jepa"):
        main(["validate", "--ckpt_path", str(path)])
    main(["validate", "--ckpt_path", str(path), "--trust", "halved_jepa", "--data.num_workers=0"])
    assert "RankMe" in capfd.readouterr().out


# ---------------------------------------------------------------------- a format is one file


class Plain(OneEncoder):
    """A file {"sizes": arguments of a VisionTransformer, "weights": its tensors}."""

    format = "file of the test"

    @classmethod
    def claims(cls, file: File) -> bool:
        return set(file.content) == {"sizes", "weights"}

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        sizes, state = self.file.content["sizes"], self.file.content["weights"]
        encoder = filled(self.file, "encoder", partial(VisionTransformer, **sizes), state)
        return Networks(encoder, "target", Preprocessing(encoder.img_size))


def test_a_format_is_one_class_and_everything_that_takes_a_checkpoint_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "FORMATS", (Plain, *weights.FORMATS))
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    encoder = VisionTransformer(**sizes)
    torch.save({"sizes": sizes, "weights": encoder.state_dict()}, "plain.pt")
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(jl.load_encoder("plain.pt")(images), encoder(images))
    main(["inspect", "plain.pt"])
    assert "file of the test" in capsys.readouterr().out
    main(["export", "--ckpt_path", "plain.pt", "--to", "safetensors", "--out", "out"])
    torch.testing.assert_close(jl.load_encoder("out/model.safetensors")(images), encoder(images))


def test_every_promise_names_a_test_that_exists() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (root / "docs" / "promises.md").read_text())
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}" in (root / path).read_text(), (path, name)
