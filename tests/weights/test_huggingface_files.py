from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights.file import read
from jepa_lightning.weights.huggingface_files import preprocessing_of, size_of, tensors_of


def index(folder: Path, where: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_tensors_of_several_files_are_put_together(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors", {"key": "value"})
    save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    state, metadata = tensors_of(tmp_path)
    assert {name: tensor.tolist() for name, tensor in state.items()} == {"a": [1, 1], "b": [0, 0, 0]}
    assert metadata["key"] == "value"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, "do not agree on b"),
        ({"a": "../1.safetensors"}, "names ../1.safetensors, which is not in this folder"),
        ({"a": "2.safetensors"}, "no such file"),
    ],
)
def test_an_index_that_does_not_agree_with_its_files_is_an_error(
    tmp_path: Path, where: dict[str, str], message: str
) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    index(tmp_path, where)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tensors_of(tmp_path)


def test_a_damaged_index_or_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="is no valid index"):
        tensors_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no valid JSON"):
        _ = read(tmp_path).config


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save it with safe_serialization=True"):
        tensors_of(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*nowhere"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(("size", "pair"), [(8, (8, 8)), ([8, 16], (8, 16)), ({"height": 8, "width": 16}, (8, 16))])
def test_sizes_are_read_however_they_are_put(size: Any, pair: tuple[int, int]) -> None:
    assert size_of(size) == pair


def test_a_folder_without_a_processor_is_fed_as_the_papers_do(tmp_path: Path) -> None:
    found = preprocessing_of(tmp_path, (224, 224))
    assert (found.shorter_side, found.mean) == (256, (0.485, 0.456, 0.406))


def test_the_processor_of_the_released_ijepa_is_read_as_it_is(tmp_path: Path) -> None:
    about = {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    found = preprocessing_of(tmp_path, (224, 224))
    assert found == Preprocessing((224, 224), None, (0.5,) * 3, (0.5,) * 3)
