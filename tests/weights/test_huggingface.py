"""Live parity with transformers at random weights, from their modules to ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_lightning import weights
from jepa_lightning.export.huggingface import HuggingFace
from jepa_lightning.masking import gather_tokens
from jepa_lightning.weights import Networks

transformers.utils.logging.disable_progress_bar()

Saver = Callable[..., tuple[Path, Any]]
IJEPA = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 79, "image_size": 16,
    "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
VJEPA2 = {
    "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 3.3, "crop_size": 16,
    "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2, "pred_num_mask_tokens": 3, "num_pooler_layers": 2, "num_labels": 5,
}  # fmt: skip
PREFIX = "vjepa2."


def load_huggingface(folder: Path) -> Networks:
    """All networks of a folder."""
    return weights.open(folder).networks(predictor=True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture
def saved(tmp_path: Path, random_weights: Callable[[nn.Module], nn.Module]) -> Saver:
    """A model of transformers with random weights and the folder that it was saved to."""

    def save(kind: str, **changes: Any) -> tuple[Path, Any]:
        config, sizes = ("IJepaConfig", IJEPA) if kind.startswith("IJepa") else ("VJEPA2Config", VJEPA2)
        model = getattr(transformers, kind)(getattr(transformers, config)(**{**sizes, **changes}))
        random_weights(model).save_pretrained(tmp_path / "model")
        return tmp_path / "model", model

    return save


@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 1e-12}, {"qkv_bias": False}, {"image_size": [16, 24]}])
def test_an_ijepa_of_transformers_gives_the_same_tokens_here(saved: Saver, changes: dict[str, Any]) -> None:
    path, theirs = saved("IJepaModel", **changes)
    networks = load_huggingface(path)
    images = torch.randn(2, 3, *networks.encoder.img_size)
    close(networks.encoder(images), theirs(images).last_hidden_state)
    assert networks.predictor is None
    assert networks.classifier is None


def test_another_size_is_resampled_as_transformers_does(saved: Saver) -> None:
    path, theirs = saved("IJepaModel")
    images = torch.randn(1, 3, 24, 40)
    close(load_huggingface(path).encoder(images), theirs(images, interpolate_pos_encoding=True).last_hidden_state)


def test_names_of_the_modules_are_read_as_those_of_the_files(saved: Saver) -> None:
    path, theirs = saved("IJepaModel")
    on_disk = load_huggingface(path).encoder.state_dict()
    save_file(theirs.state_dict(), path / "model.safetensors", {"format": "pt"})
    in_memory = load_huggingface(path).encoder.state_dict()
    assert all(torch.equal(in_memory[name], tensor) for name, tensor in on_disk.items())


def test_it_is_said_that_ijepa_folders_hold_the_context_encoder(saved: Saver, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = saved("IJepaModel")
    with caplog.at_level("INFO", "jepa_lightning"):
        assert load_huggingface(path).branch == "context"
    assert "holds the context encoder" in caplog.text


@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 1e-5}, {"qkv_bias": False}])
def test_a_vjepa2_of_transformers_gives_the_same_tokens_and_predictions_here(
    saved: Saver, changes: dict[str, Any]
) -> None:
    path, theirs = saved("VJEPA2Model", **changes)
    networks = load_huggingface(path)
    clips = torch.randn(2, 3, 4, 16, 16)
    context, targets = torch.tensor([[0, 2, 7], [1, 4, 5]]), torch.tensor([[6, 3], [0, 7]])
    output = theirs(clips.transpose(1, 2), context_mask=[context], target_mask=[targets])
    tokens = networks.encoder(clips)
    close(tokens, output.last_hidden_state)
    assert networks.predictor is not None
    arguments = gather_tokens(tokens, context), context, targets.unsqueeze(1)
    close(networks.predictor(*arguments, networks.mask_index)[:, 0], output.predictor_output.last_hidden_state)
    other = networks.predictor(*arguments, networks.mask_index + 1)[:, 0]
    assert (other - output.predictor_output.last_hidden_state).abs().max() > 1e-3
    assert networks.branch == "target"


def test_clips_of_another_length_too(saved: Saver) -> None:
    path, theirs = saved("VJEPA2Model")
    clips = torch.randn(1, 3, 8, 16, 16)
    close(load_huggingface(path).encoder(clips), theirs(clips.transpose(1, 2), skip_predictor=True).last_hidden_state)


@pytest.mark.parametrize("changes", [{}, {"layer_norm_eps": 1e-5}, {"num_pooler_layers": 0}])
def test_a_classifier_of_transformers_gives_the_same_logits_here(saved: Saver, changes: dict[str, Any]) -> None:
    labels = {number: f"class {number}" for number in range(5)}
    path, theirs = saved("VJEPA2ForVideoClassification", id2label=labels, **changes)
    networks = load_huggingface(path)
    clips = torch.randn(2, 3, 4, 16, 16)
    assert networks.classifier is not None
    close(networks.classifier(networks.encoder(clips)), theirs(clips.transpose(1, 2)).logits)
    assert networks.labels == tuple(labels.values())
    assert networks.predictor is not None


def test_what_was_loaded_is_frozen_in_float32_and_in_eval_mode(saved: Saver) -> None:
    path, theirs = saved("VJEPA2Model")
    theirs.half().save_pretrained(path)
    networks = load_huggingface(path)
    for network in (networks.encoder, networks.predictor):
        assert network is not None
        assert not network.training
        assert all(not p.requires_grad and p.dtype == torch.float32 for p in network.parameters())


def test_several_files_and_an_index_are_one_model(saved: Saver) -> None:
    path, theirs = saved("VJEPA2Model")
    whole = load_huggingface(path).encoder.state_dict()
    (path / "model.safetensors").unlink()
    theirs.save_pretrained(path, max_shard_size="20kB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    assert not (path / "model.safetensors").exists()
    parts = load_huggingface(path).encoder.state_dict()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


# ---------------------------------------------------------------------- what is wrong


@pytest.fixture
def ours(image_source: Any, clip_source: Any, tmp_path: Path) -> Callable[[bool], Path]:
    """A folder that is in order, for tests that spoil it."""

    def write(clips: bool = False) -> Path:
        folder = tmp_path / "ours"
        folder.mkdir()
        HuggingFace().write(clip_source(predictor=True) if clips else image_source(), folder)
        return folder

    return write


def retouch(folder: Path, drop: str = "", **tensors: Tensor) -> None:
    file = folder / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(file).items() if not drop or drop not in name}
    save_file({**state, **{name.replace("__", "."): t for name, t in tensors.items()}}, file, {"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoder__layer__9__output__dense__bias": torch.ones(24)}, "unexpected blocks.9.mlp.fc2.bias"),
        ({"gamma": torch.ones(1)}, "unexpected tensor gamma"),
        ({"layernorm__bias": torch.ones(25)}, r"norm.bias is \[25\], expected \[24\]"),
        ({"classifier__weight": torch.ones(5, 24)}, "a classifier on I-JEPA"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    ours: Callable[..., Path], tensors: dict[str, Tensor], message: str
) -> None:
    folder = ours()
    retouch(folder, **tensors)
    with pytest.raises(ValueError, match=message):
        load_huggingface(folder)


@pytest.mark.parametrize(
    ("clips", "drop", "message"),
    [
        (False, "layernorm.bias", "encoder does not fit: missing norm.bias"),
        (False, "layer.0.attention.attention.key.bias", "blocks.0.attn.qkv.bias only 2 of 3 parts"),
        (True, "predictor.embeddings.mask_tokens", "predictor does not fit: missing mask_tokens.0"),
        (True, "predictor.", "predictor does not fit"),
    ],
)
def test_a_tensor_that_is_missing_is_named(ours: Callable[..., Path], clips: bool, drop: str, message: str) -> None:
    folder = ours(clips)
    retouch(folder, drop=drop)
    with pytest.raises(ValueError, match=message):
        load_huggingface(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vit"}, "model_type 'vit' is no JEPA"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"patch_size": [8, 16]}, "patches of 8x16 pixels"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0"),
        ({"num_hidden_layers": 3}, "missing blocks.2"),
        ({"num_hidden_layers": 10**6}, "a network of 1,000,000 blocks, which none has"),
        ({"hidden_size": None}, "ours describes a network that cannot be built"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(
    ours: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    folder = ours()
    reconfigure(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_huggingface(folder)


def test_a_folder_of_ours_says_which_encoder_it_holds(ours: Callable[..., Path]) -> None:
    folder = ours()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata()["jepa_lightning_branch"] == "target"
    assert load_huggingface(folder).branch == "target"
    shutil.rmtree(folder)
