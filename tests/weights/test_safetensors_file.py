from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jepa_lightning import load_encoder, weights
from jepa_lightning.export.safetensors_file import Safetensors
from jepa_lightning.export.source import Source
from jepa_lightning.models.backbones import TorchvisionBackbone
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import Networks, Unreadable
from jepa_lightning.weights.safetensors_file import KEY


def read_networks(path: Path) -> Networks:
    return weights.open(path).networks(predictor=True)


@pytest.fixture
def folder(clip_source: Any, tmp_path: Path) -> Path:
    Safetensors().write(clip_source(predictor=True), tmp_path)
    return tmp_path


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()[KEY])


def test_everything_comes_back(clip_source: Any, tmp_path: Path) -> None:
    source: Source = clip_source(predictor=True)
    networks = source.networks._replace(branch="context")
    Safetensors().write(source._replace(networks=networks), tmp_path)
    back = read_networks(tmp_path)
    assert (back.branch, back.preprocessing) == (networks.branch, networks.preprocessing)
    for before, after in ((networks.encoder, back.encoder), (networks.predictor, back.predictor)):
        assert before is not None
        assert after is not None
        state = after.state_dict()
        assert set(state) == set(before.state_dict())
        assert all(torch.equal(state[name], tensor) for name, tensor in before.state_dict().items())
        assert not any(p.requires_grad for p in after.parameters())


def test_the_file_alone_is_enough(folder: Path, tmp_path: Path) -> None:
    inputs = torch.randn(1, 3, 4, 16, 16)
    tokens = load_encoder(folder)(inputs)
    moved = (folder / "model.safetensors").rename(tmp_path / "renamed.safetensors")
    assert torch.equal(load_encoder(moved)(inputs), tokens)


def test_the_tensors_of_the_encoder_have_their_own_names(image_source: Any, tmp_path: Path) -> None:
    source: Source = image_source()
    Safetensors().write(source, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(source.networks.encoder.state_dict())
    assert read_networks(tmp_path).predictor is None


def test_people_find_the_header_beside_the_file(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text()) == header(folder / "model.safetensors")


def test_an_encoder_of_another_kind_travels_with_its_section_of_the_configuration(tmp_path: Path) -> None:
    encoder = TorchvisionBackbone("mobilenet_v3_small", img_size=32, out_dim=16).eval()
    source = Source(Path("some.ckpt"), Networks(encoder, "target", Preprocessing((32, 32))), "All rights reserved.")
    section = {
        "class_path": "jepa_lightning.models.backbones.TorchvisionBackbone",
        "init_args": {"name": "mobilenet_v3_small", "img_size": 32, "out_dim": 16},
    }
    assert "nothing says how to build its TorchvisionBackbone" in str(Safetensors().unsupported(source))
    config = {"model": {"init_args": {"encoder": section}}}
    Safetensors().write(source._replace(config=config), tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(tmp_path)(images), encoder(images))


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.bias": None}, "encoder does not fit: missing norm.bias"),
        ({"gamma": torch.ones(1)}, "encoder does not fit: unexpected gamma"),
        ({"norm.bias": torch.ones(3)}, r"norm.bias is \[3\], expected \[36\]"),
        ({"predictor.mask_tokens.0": None}, r"predictor does not fit: missing mask_tokens.0"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in {**load_file(file), **changes}.items() if tensor is not None}
    save_file(state, file, {KEY: json.dumps(header(file))})
    with pytest.raises(ValueError, match=message):
        read_networks(file)


@pytest.mark.parametrize("metadata", [{KEY: "{"}, {KEY: "[]"}, {KEY: "{}"}, {KEY: '{"version": 1}'}])
def test_a_file_without_a_description_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.ones(1)}, file, metadata)
    with pytest.raises(Unreadable, match=r"other.safetensors has no description of a network .* was it written by"):
        read_networks(file)


def test_a_file_of_a_later_version_asks_for_an_update(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file), file, {KEY: json.dumps({**header(file), "version": 2})})
    with pytest.raises(ValueError, match=r"is of version 2 of this format, this is 1: pip install -U"):
        read_networks(file)


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:50], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, damage: Any) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        load_encoder(file)
