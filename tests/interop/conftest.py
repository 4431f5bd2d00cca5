from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import nn

from jepa_lightning.interop.networks import Networks, papers_preprocessing
from jepa_lightning.interop.source import Source
from jepa_lightning.models import Predictor, RoPE, VisionTransformer
from jepa_lightning.models.pooling import AttentiveClassifier

SourceFactory = Callable[..., Source]


def _random(module: Any) -> Any:
    """With weights and biases that all matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.requires_grad_(False).eval()


def _as_meta_writes_it(module: Any, optimizer: torch.optim.Optimizer, path: Path, epoch: int) -> Path:
    """Groups in the official order, position tables among the parameters, everything under its number."""
    networks = ("encoder", "predictor", "target_encoder")
    content: dict[str, Any] = {
        name: {f"module.{key}": tensor.clone() for key, tensor in module.get_submodule(name).state_dict().items()}
        for name in networks
    }
    trained = dict(optimizer.state)
    by_name = {name: trained[p] for name, p in module.named_parameters() if p in trained}
    groups: list[dict[str, Any]] = []
    states: dict[int, Any] = {}
    number = 0
    for decayed in (True, False):
        for network in networks[:2]:
            names = []
            for key, tensor in content[network].items():
                if decayed == (tensor.ndim > 1 and "bias" not in key):
                    state = by_name.get(f"{network}.{key.removeprefix('module.')}")
                    if state is not None:
                        states[number] = {name: value.clone() for name, value in state.items()}
                    names.append(number)
                    number += 1
            groups.append({"params": names, "lr": 1e-3, "WD_exclude": not decayed})
    content |= {"opt": {"state": states, "param_groups": groups}, "scaler": None, "epoch": epoch, "lr": 1e-3}
    torch.save(content, path)
    return path


@pytest.fixture
def as_meta_writes_it() -> Callable[[Any, torch.optim.Optimizer, Path, int], Path]:
    return _as_meta_writes_it


@pytest.fixture
def random_weights() -> Callable[[nn.Module], nn.Module]:
    return _random


@pytest.fixture
def image_source() -> SourceFactory:
    """An I-JEPA of random weights, as a source of exports."""

    def build(predictor: bool = False, img_size: Any = 16, **sizes: Any) -> Source:
        settings = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 3.3, **sizes}
        encoder = _random(VisionTransformer(img_size, **settings))
        predicting = _random(Predictor(encoder, 12, 1)) if predictor else None
        networks = Networks(encoder, "target", papers_preprocessing(encoder.img_size), predicting)
        return Source(Path("some.ckpt"), networks, "All rights reserved.")

    return build


@pytest.fixture
def clip_source() -> SourceFactory:
    """A V-JEPA 2 of random weights, as a source of exports; ``classes`` for one with a probe."""

    def build(predictor: bool = False, classes: int = 0, probe_heads: int = 3, depth: int = 3, **sizes: Any) -> Source:
        settings = {"patch_size": 8, "embed_dim": 36, "depth": 2, "num_heads": 3, "num_frames": 4, "tubelet_size": 2}
        settings = {"img_size": 16, **settings, "positions": RoPE(layout="tiled"), **sizes}
        encoder = _random(VisionTransformer(**settings))
        predicting = _random(Predictor(encoder, 24, 1, 2, num_mask_tokens=3)) if predictor else None
        classifier = _random(AttentiveClassifier(encoder.embed_dim, classes, probe_heads, depth)) if classes else None
        processing = papers_preprocessing(encoder.img_size)
        networks = Networks(encoder, "target", processing, predicting, classifier)
        return Source(Path("some.ckpt"), networks, "All rights reserved.")

    return build


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Sizes are symbols while a graph is traced, and symbols are no integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
