"""Folders in Hugging Face's format: ``config.json`` and safetensors of an IJepaModel or a VJEPA2Model.

Needs no transformers. ``facebook/ijepa_*`` hold the *context* encoder of Meta's checkpoints, ``facebook/vjepa2-*`` the
target encoder and the predictor. Transformers has one epsilon for all norms of a model. Ours is 1e-6 in encoders and
predictors; another one is reached by multiplying all that is added to the residual stream, because
LN(c x; c^2 epsilon) = LN(x; epsilon).
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from jepa_lightning.models import Predictor, RoPE, VisionTransformer
from jepa_lightning.models.layers import NORM_EPS
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.weights.base import Hints, OneEncoder
from jepa_lightning.weights.description import check_sizes
from jepa_lightning.weights.file import File
from jepa_lightning.weights.huggingface_files import preprocessing_of, size_of, tensors_of
from jepa_lightning.weights.huggingface_names import (
    IJEPA,
    IJEPA_IN_MEMORY,
    PREDICTED,
    VJEPA2,
    VJEPA2_PREDICTOR,
    VJEPA2_PROBE,
    rescaled,
)
from jepa_lightning.weights.names import to_ours
from jepa_lightning.weights.networks import Branch, Networks, check_depth, describing, filled, mlp_ratio
from jepa_lightning.weights.policy import DoesNotFit, UnknownFormat
from jepa_lightning.weights.safetensors_file import BRANCH


class HuggingFace(OneEncoder):
    """A folder as transformers writes and reads it: IJepaModel, VJEPA2Model, VJEPA2ForVideoClassification."""

    format = "folder in Hugging Face's format"

    def __init__(self, file: File) -> None:
        folder = file.path if file.path.is_dir() else file.path.parent
        super().__init__(File(folder, {}, file.metadata, False))

    @classmethod
    def claims(cls, file: File) -> bool:
        """Whether the folder has the configuration of transformers."""
        return not file.by_torch and "model_type" in file.config

    def _networks(self, branch: Branch, predictor: bool, hints: Hints) -> Networks:
        config, state, metadata = self.file.config, *tensors_of(self.path)
        kind = config.get("model_type")
        check_depth(
            self.path, *(config.get(f"{part}_layers") for part in ("num_hidden", "pred_num_hidden", "num_pooler"))
        )
        check_sizes(self.path, config, state)
        with describing(self.path):
            if kind == "ijepa":
                return _ijepa(self.file, config, state, cast(Branch, metadata.get(BRANCH, "context")))
            if kind == "vjepa2":
                return _vjepa2(self.file, config, state, cast(Branch, metadata.get(BRANCH, "target")))
        raise UnknownFormat(
            f"{self.path / 'config.json'}: model_type {kind!r} is no JEPA that is supported: give ijepa or vjepa2"
        )


def _ijepa(file: File, config: dict[str, Any], state: dict[str, Tensor], branch: Branch) -> Networks:
    """IJepaModel."""
    path = file.path
    head = sorted(name for name in state if name.startswith(("ijepa.", "classifier.")))
    if head:
        raise DoesNotFit(f"{path} has {head[0]}: a classifier on I-JEPA; give an IJepaModel")
    table = IJEPA_IN_MEMORY if any(name.startswith("layers.") for name in state) else IJEPA
    ours = _with_biases(to_ours(path, state, table), config)
    dim = config.get("hidden_size", 768)
    encoder = filled(
        file,
        "encoder",
        lambda: VisionTransformer(
            size_of(config.get("image_size", 224)),
            _patch(path, config),
            config.get("num_channels", 3),
            dim,
            config.get("num_hidden_layers", 12),
            config.get("num_attention_heads", 12),
            mlp_ratio(config.get("intermediate_size", 3072), dim),
        ),
        rescaled(ours, _epsilon(path, config, 1e-12), NORM_EPS),
    )
    if branch == "context":
        logging.getLogger(__name__).info(
            "%s holds the context encoder, as Hugging Face's I-JEPA do; the papers evaluate the target", path
        )
    return Networks(encoder, branch, preprocessing_of(path, encoder.img_size))


def _vjepa2(file: File, config: dict[str, Any], state: dict[str, Tensor], branch: Branch) -> Networks:
    """VJEPA2Model or VJEPA2ForVideoClassification."""
    path = file.path
    probe = any(name.startswith("vjepa2.") for name in state)
    state = {name.removeprefix("vjepa2."): tensor for name, tensor in state.items()}
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "predictor": {}, "probe": {}}
    for name, tensor in state.items():
        parts[name.split(".")[0] if name.startswith(("encoder.", "predictor.")) else "probe"][name] = tensor
    epsilon = _epsilon(path, config, 1e-6)
    encoder = filled(
        file,
        "encoder",
        partial(_vjepa2_encoder, path, config),
        rescaled(_with_biases(to_ours(path, parts["encoder"], VJEPA2), config), epsilon, NORM_EPS),
    )
    predictor = None
    if config.get("pred_num_hidden_layers", 12):  # without a layer it only fills a place
        ours = _with_biases(to_ours(path, parts["predictor"], VJEPA2_PREDICTOR), config)
        for number, token in enumerate(ours.pop("mask_tokens", ())):  # (number, 1, 1, D)
            ours[f"mask_tokens.{number}"] = token
        build = partial(_vjepa2_predictor, config, encoder)
        predictor = filled(file, "predictor", build, rescaled(ours, epsilon, NORM_EPS))
    classifier, labels = _probe(file, config, parts["probe"]) if probe or parts["probe"] else (None, ())
    return Networks(
        encoder, branch, preprocessing_of(path, encoder.img_size), predictor, classifier, labels, mask_index=PREDICTED
    )


def _vjepa2_encoder(path: Path, config: dict[str, Any]) -> VisionTransformer:
    return VisionTransformer(
        config.get("crop_size", 256),
        _patch(path, config),
        config.get("in_chans", 3),
        config.get("hidden_size", 1024),
        config.get("num_hidden_layers", 24),
        config.get("num_attention_heads", 16),
        config.get("mlp_ratio", 4.0),
        num_frames=config.get("frames_per_clip", 64),
        tubelet_size=config.get("tubelet_size", 2),
        positions=RoPE(layout="tiled"),
    )


def _vjepa2_predictor(config: dict[str, Any], encoder: VisionTransformer) -> Predictor:
    return Predictor(
        encoder,
        config.get("pred_hidden_size", 384),
        config.get("pred_num_hidden_layers", 12),
        config.get("pred_num_attention_heads", 12),
        config.get("pred_mlp_ratio", 4.0),
        num_mask_tokens=config.get("pred_num_mask_tokens", 10),
    )


def _probe(file: File, config: dict[str, Any], state: dict[str, Tensor]) -> tuple[AttentiveClassifier, tuple[str, ...]]:
    path, ours = file.path, to_ours(file.path, state, VJEPA2_PROBE)
    dim, heads = config.get("hidden_size", 1024), config.get("num_attention_heads", 16)
    names = {int(number): str(name) for number, name in config.get("id2label", {"0": "0", "1": "1"}).items()}
    depth = config.get("num_pooler_layers", 3) + 1
    classifier = filled(file, "probe", lambda: AttentiveClassifier(dim, len(names), heads, depth), ours)
    for module in classifier.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = _epsilon(path, config, 1e-6)  # Meta's own probes have 1e-5
    return classifier, tuple(names[number] for number in sorted(names))


def _patch(path: Path, config: dict[str, Any]) -> int:
    """Side of a patch; what no option of ours can express is refused here too."""
    height, width = size_of(config.get("patch_size", 16))
    if height != width:
        raise DoesNotFit(f"{path}: patches of {height}x{width} pixels: give a model with square ones")
    if config.get("hidden_act", "gelu") != "gelu":
        raise DoesNotFit(f"{path}: hidden_act {config['hidden_act']!r}: give a model with gelu")
    return height


def _epsilon(path: Path, config: dict[str, Any], default: float) -> float:
    epsilon = float(config.get("layer_norm_eps", default))
    if not 0 < epsilon < 1:
        raise DoesNotFit(f"{path}: layer_norm_eps must be above 0 and below 1, got {epsilon}")
    return epsilon


def _with_biases(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """With zeros where a model without ``qkv_bias`` has none."""
    if config.get("qkv_bias", True):
        return state
    weights = [name for name in state if name.endswith("attn.qkv.weight")]
    return state | {name.replace("weight", "bias"): torch.zeros(len(state[name])) for name in weights}
