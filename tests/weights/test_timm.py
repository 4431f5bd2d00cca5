"""Live parity with timm at random weights, in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_lightning import weights
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.export.timm import ARCHITECTURES, Timm
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import DoesNotFit, Hints, Networks, UnknownFormat

SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 3.3}


def load_timm(path: Path, **hints: Any) -> Networks:
    return weights.open(path).networks(hints=Hints(**hints))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture
def theirs(random_weights: Callable[[nn.Module], nn.Module]) -> Any:
    model = timm.create_model("vit_huge_patch14_gap_224", img_size=(16, 24), num_classes=0, **SIZES)
    return random_weights(model)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_model_of_timm_gives_the_same_tokens_here(theirs: Any, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"vit.{ending}"
    (save_file if ending == "safetensors" else torch.save)(theirs.state_dict(), file)
    networks = load_timm(file, num_heads=3, img_size=(16, 24))
    images = torch.randn(2, 3, 16, 24)
    close(networks.encoder(images), theirs.forward_features(images))
    assert networks.branch == "context"
    assert not any(p.requires_grad for p in networks.encoder.parameters())


def test_a_folder_that_timm_saved_says_everything_itself(theirs: Any, tmp_path: Path) -> None:
    timm.models.save_for_hf(theirs, tmp_path, safe_serialization=True, model_args={**SIZES, "img_size": [16, 24]})
    networks = load_timm(tmp_path)
    images = torch.randn(2, 3, 16, 24)
    close(networks.encoder(images), theirs.forward_features(images))


@pytest.mark.parametrize("sizes", [{}, {"img_size": (16, 24)}, {"in_chans": 1, "mlp_ratio": 4.0}])
def test_a_model_of_ours_gives_the_same_tokens_in_timm(
    image_source: Any, tmp_path: Path, sizes: dict[str, Any]
) -> None:
    source = image_source(**sizes)
    Timm().write(source, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(source.shape(2))
    tokens = source.networks.encoder(images)
    close(model.forward_features(images), tokens)
    close(model(images), tokens.mean(dim=1))


def test_there_and_back_gives_the_same_state(image_source: Any, tmp_path: Path) -> None:
    source = image_source()
    networks = source.networks
    Timm().write(source, tmp_path)
    back = load_timm(tmp_path)
    state = networks.encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.encoder.state_dict().items())
    assert (back.branch, back.preprocessing) == (networks.branch, networks.preprocessing)
    assert back.encoder.num_heads == 3


@pytest.mark.parametrize("size", [32, 64, 96, 224, 336, 448, (32, 48)])
def test_the_transform_of_timm_does_what_our_evaluation_does(image_source: Any, tmp_path: Path, size: Any) -> None:
    wanted = image_source(img_size=size).networks.preprocessing
    Timm().write(image_source(img_size=size, depth=1), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rows, columns = np.mgrid[:100, :100]  # of others the longer side is rounded in other ways
    pixels = np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8)
    found = transform(Image.fromarray(pixels))
    ours = Preprocess(wanted)
    assert (found - ours(Image.fromarray(pixels))).abs().max() < 1.1 / 255 / 0.22
    assert load_timm(tmp_path).preprocessing == wanted


def test_both_sides_are_resized_where_nothing_is_cut_off(image_source: Any, tmp_path: Path) -> None:
    source = image_source()
    squashed = Preprocessing((16, 16), crop_pct=None)
    Timm().write(source._replace(networks=source.networks._replace(preprocessing=squashed)), tmp_path)
    assert load_timm(tmp_path).preprocessing == squashed


def test_a_published_size_gets_the_name_of_timms_model(image_source: Any, tmp_path: Path) -> None:
    sizes = {"img_size": 14, "embed_dim": 1280, "patch_size": 14, "depth": 1, "num_heads": 16, "mlp_ratio": 0.1}
    Timm().write(image_source(**sizes), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "vit_huge_patch14_gap_224"
    assert set(ARCHITECTURES) <= set(timm.list_models("*_gap_*"))


# ---------------------------------------------------------------------- what is wrong


@pytest.fixture
def file(image_source: Any, tmp_path: Path) -> Path:
    Timm().write(image_source(), tmp_path)
    (tmp_path / "config.json").unlink()
    return tmp_path / "model.safetensors"


def test_heads_that_nothing_says_are_asked_for(file: Path) -> None:
    with pytest.raises(ValueError, match="embed_dim 24 is no published size: give num_heads="):
        load_timm(file)
    assert load_timm(file, num_heads=4).encoder.num_heads == 4


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("cls_token", torch.ones(1, 1, 24), "unexpected cls_token"),
        ("head.weight", torch.ones(5, 24), "unexpected head.weight"),
        ("norm.bias", torch.ones(5), r"norm.bias is \[5\], expected \[24\]"),
        ("norm.bias", None, "missing norm.bias"),
        ("pos_embed", torch.ones(1, 5, 24), "5 positions are no square grid"),
        ("pos_embed", None, "encoder has no tensor pos_embed; is it a JEPA checkpoint"),
        ("patch_embed.proj.weight", torch.ones(24, 3, 2, 8, 8), r"is \[24, 3, 2, 8, 8\], expected 4 dimensions"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(file: Path, name: str, tensor: Tensor | None, message: str) -> None:
    state = {key: value for key, value in load_file(file).items() if key != name}
    save_file(state if tensor is None else {**state, name: tensor}, file)
    with pytest.raises(ValueError, match=message):
        load_timm(file, num_heads=3)


@pytest.mark.parametrize("said", [{"num_heads": "x"}, {"num_heads": 5}, [1], {"img_size": "x"}])
def test_a_damaged_configuration_names_the_file(image_source: Any, tmp_path: Path, said: Any) -> None:
    Timm().write(image_source(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": said}))
    with pytest.raises(ValueError, match=r"model.safetensors describes a network that cannot be built"):
        load_timm(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(UnknownFormat, match="it holds epoch"):
        load_timm(tmp_path / "run.pth")
    torch.save({"patch_embed.proj.weight": torch.zeros(24, 3, 8, 8), "epoch": 3}, tmp_path / "run.pth")
    with pytest.raises(DoesNotFit, match="it holds more than tensors"):
        load_timm(tmp_path / "run.pth")
    (tmp_path / "config.json").write_text('{"architecture": "vit"}')
    with pytest.raises(FileNotFoundError, match=r"with model.safetensors or pytorch_model.bin"):
        load_timm(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_timm(tmp_path / "nothing.pth")
