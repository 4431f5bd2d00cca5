"""What a network is as ``{"class_path": ..., "init_args": {...}}``, and back: what a file says in place of code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from jepa_lightning.models import (
    ActionPredictor,
    DensePredictor,
    DenseVisionTransformer,
    Encoder,
    Predictor,
    VisionTransformer,
)
from jepa_lightning.models.vision_transformer import pair
from jepa_lightning.weights import stored_config
from jepa_lightning.weights.limits import as_number, sections
from jepa_lightning.weights.networks import LARGEST_DEPTH, mlp_ratio
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit

Description = dict[str, Any]
Kind = TypeVar("Kind", bound=Predictor | ActionPredictor)
SMALL = 2**16
"""Numbers up to here are no danger, whatever the tensors are."""
SMALL_DEPTH = 100
"""Blocks, likewise; each takes milliseconds to build."""
SIZES = {
    *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "num_frames", "tubelet_size"),
    "num_mask_tokens",
}
"""Arguments of networks that count something of which there is one at least."""
SMALL_TABLE = 2**24
"""Numbers in a table of positions, likewise."""


def describe_encoder(encoder: VisionTransformer) -> Description:
    """The description of an encoder with any weights; how they were initialised is not in it."""
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
        positions=option(encoder.positions),
        blocks=option(encoder.options),
        **({"levels": list(encoder.levels)} if isinstance(encoder, DenseVisionTransformer) else {}),
        **_ratio(encoder.blocks, encoder.embed_dim),
    )


def describe_predictor(predictor: Predictor) -> Description:
    """The description of a predictor with any weights, without the encoder that it is built for."""
    dense = isinstance(predictor, DensePredictor)
    return _of(
        predictor,
        embed_dim=predictor.embed_dim,
        depth=predictor.depth,
        num_heads=predictor.num_heads,
        num_mask_tokens=len(predictor.mask_tokens) if hasattr(predictor, "mask_tokens") else None,
        blocks=option(predictor.options),
        **({"levels": predictor.levels, "target_dim": predictor.target_dim} if dense else _noise(predictor)),
        **_ratio(predictor.predictor_blocks, predictor.embed_dim),
    )


def _noise(predictor: Predictor) -> Description:
    return {"target_noise": None if predictor.target_noise is None else asdict(predictor.target_noise)}


def encoder_builder(path: Path, description: Description, state: Mapping[str, Tensor]) -> Callable[[], Encoder]:
    """What makes the encoder that a file describes, with its initial weights.

    Args:
        path: The file, for messages.
        description: As describe_encoder makes it, or the ``encoder`` section of a configuration.
        state: The tensors that the encoder is built for, with which its sizes must agree.

    Raises:
        NotTrusted: If it is of a package that the user did not name.
        DoesNotFit: If it is no encoder, or larger than its tensors.
    """
    return partial(instantiate, path, Encoder, _checked(path, description, Encoder, state))


def predictor_builder(
    path: Path, description: Description, encoder: Encoder, state: Mapping[str, Tensor], kind: type[Kind]
) -> Callable[[], Kind]:
    """What makes the predictor that a file describes, of one kind, for an encoder; see encoder_builder."""
    hint: Any = Callable[[Encoder], kind]
    return partial(instantiate(path, hint, _checked(path, description, hint, state)), encoder)


def _checked(path: Path, description: Description, hint: Any, state: Mapping[str, Tensor]) -> Description:
    stored_config.check(path, description, "network", hint)
    check_sizes(path, description, state)
    found: Description = stored_config.without_side_effects(description, stored_config.LOADS)
    return found


def check_sizes(path: Path, description: Any, state: Mapping[str, Any]) -> None:
    """Check that no number in a description is larger than the tensors it is for, before anything is built.

    Raises:
        DoesNotFit: If one is.
    """
    most = max(SMALL, sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor)))
    for name, number in _numbers(description, ""):
        counted = name in ("depth", "num_mask_tokens")
        limit = min(LARGEST_DEPTH, max(SMALL_DEPTH, len(state))) if counted else most
        if not -limit <= number <= limit:
            raise DoesNotFit(f"{path} describes a network with {name} {number:.4g}, and has no tensors of that size")
        if name in SIZES and number < 1:
            raise DoesNotFit(f"{path} describes a network with {name} {number:,}: it must be at least 1")
    for arguments in sections(description):
        tokens, channels = _table(arguments)
        if tokens * channels > max(SMALL_TABLE, 4 * most):
            raise DoesNotFit(f"{path} describes a network with {tokens:,} tokens, and has no positions for that many")


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _numbers(entry, str(key))
    elif isinstance(value, list | tuple):
        if len(value) > LARGEST_DEPTH:
            yield f"{place} (entries)", math.inf
        for entry in value:
            yield from _numbers(entry, place)
    elif (number := as_number(value)) is not None:
        yield place, number


def _table(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """How many tokens an input has, and their channels, if a VisionTransformer has these arguments; else zeros."""
    try:
        height, width = pair(arguments.get("img_size") or 224)
        if not {"img_size", "patch_size", "embed_dim"} & set(arguments):
            return 0, 0
        side = int(arguments.get("patch_size") or 16)
        frames = int(arguments.get("num_frames") or 1) // int(arguments.get("tubelet_size") or 1)
        tokens = frames * (height // side) * (width // side)
        return tokens, int(arguments.get("embed_dim") or 1)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return 0, 0


def instantiate(path: str | Path, kind: Any, description: Description) -> Any:
    """An object of what is described.

    Args:
        path: The file that describes it, for messages.
        kind: A class, or a factory of objects of a class, as an annotation.
        description: ``class_path`` and ``init_args``, which nobody checks here.

    Raises:
        DoesNotFit: If it makes no such object.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=kind)
    try:
        return parser.instantiate_classes(parser.parse_object({"part": description})).part
    except CheckpointError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:
        raise DoesNotFit(f"cannot build what {path} describes: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line of what jsonargparse says in many, made for a command line: what the error came from."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:300]


def _of(network: object, **arguments: Any) -> Description:
    return {"class_path": _path(network), "init_args": arguments}


def _path(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def option(option: object) -> Any:
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
