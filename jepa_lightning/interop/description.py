"""What a network is as ``{"class_path": ..., "init_args": {...}}``, and back: what a file says in place of code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from jepa_lightning.checkpoint import _refuse_unknown_packages
from jepa_lightning.interop.networks import check_depth, mlp_ratio
from jepa_lightning.messages import condense
from jepa_lightning.models import Encoder, Predictor, VisionTransformer

Description = dict[str, Any]


def describe_encoder(encoder: VisionTransformer) -> Description:
    """Of an encoder with any weights; how they were initialised is not said."""
    weight = encoder.patch_embed.get_submodule("proj").weight
    return _of(
        encoder,
        img_size=list(encoder.img_size),
        patch_size=encoder.patch_size,
        in_chans=weight.shape[1],  # type: ignore[index]
        embed_dim=encoder.embed_dim,
        depth=encoder.depth,
        num_heads=encoder.num_heads,
        num_frames=encoder.num_frames,
        tubelet_size=encoder.tubelet_size,
        positions=_option(encoder.positions),
        blocks=_option(encoder.options),
        **_ratio(encoder.blocks, encoder.embed_dim),
    )


def describe_predictor(predictor: Predictor) -> Description:
    """Of a predictor with any weights, without the encoder that it is built for."""
    width = predictor.predictor_embed.out_features
    return _of(
        predictor,
        embed_dim=width,
        depth=predictor.depth,
        num_heads=predictor.num_heads,
        num_mask_tokens=len(predictor.mask_tokens) if hasattr(predictor, "mask_tokens") else None,
        blocks=_option(predictor.options),
        target_noise=None if predictor.target_noise is None else asdict(predictor.target_noise),
        **_ratio(predictor.predictor_blocks, width),
    )


def build_encoder(path: Path, description: Description) -> Encoder:
    """The encoder that is described, with its initial weights.

    Args:
        path: The file that says so, for messages.
        description: As describe_encoder makes it, or the ``encoder`` section of a configuration.

    Raises:
        ValueError: If it is no encoder, or of a package that is not imported.
    """
    return _build(path, Encoder, description)


def build_predictor(path: Path, description: Description, encoder: Encoder) -> Predictor:
    """The predictor that is described, for an encoder; see build_encoder."""
    return _build(path, Callable[[Encoder], Predictor], description)(encoder)


def device_for(description: Description) -> str:
    """Where to build a network: our own keep nothing outside of their state, others might."""
    known = ("VisionTransformer", "Predictor")
    return "meta" if str(description.get("class_path")).split(".")[-1] in known else "cpu"


def _build(path: Path, kind: Any, description: Description) -> Any:
    _refuse_unknown_packages(path, description)
    check_depth(path, (description.get("init_args") or {}).get("depth"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({"part": description})).part
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"cannot build what {path} describes: {condense(str(error))}") from error


def _of(network: object, **arguments: Any) -> Description:
    return {"class_path": _path(network), "init_args": arguments}


def _path(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _option(option: object) -> Any:
    """An option that is itself a small class."""
    if not is_dataclass(option) or isinstance(option, type):
        raise ValueError(f"{type(option).__name__} cannot be described in a file: make it a dataclass")
    return {"class_path": _path(option), "init_args": asdict(option)}


def _ratio(blocks: nn.ModuleList, dim: int) -> dict[str, float]:
    """``mlp_ratio``, by the hidden layers of the first block: an MLP's, or the memories of an energy."""
    layers = {name.split(".")[-1]: layer for name, layer in blocks[:1].named_modules() if isinstance(layer, nn.Linear)}
    hidden = layers["fc1"] if "fc1" in layers else layers.get("xi")
    if hidden is None:
        return {}
    count = hidden.out_features * 3 // 2 if "fc3" in layers else hidden.out_features  # SwiGLU has two thirds of it
    return {"mlp_ratio": mlp_ratio(count, dim)}
