"""load, load_meta and load_encoder: the one file that knows checkpoints and methods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa_lightning import weights
from jepa_lightning.methods import IJEPA, VJEPA, VJEPA21, Method
from jepa_lightning.models import Encoder, Predictor, VisionTransformer
from jepa_lightning.schedules import Constant, Cosine, Linear, Ramp, WarmupCosine
from jepa_lightning.weights import Branch, CheckpointError, DoesNotFit, Hints, UnknownFormat, Weights, meta_dense
from jepa_lightning.weights.base import OneEncoder
from jepa_lightning.weights.meta import NETWORKS, Meta
from jepa_lightning.weights.meta_sizes import encoder_arguments, predictor_arguments
from jepa_lightning.weights.networks import check, outlined
from jepa_lightning.weights.ours import Own, found_beside

TABLES = ("pos_embed", "predictor_pos_embed")
SCHEDULES: dict[str, dict[str, Any]] = {
    "I-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=1e-3, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.996, final=1.0),
    },
    "V-JEPA": {
        "lr": WarmupCosine(start=2e-4, peak=6.25e-4, final=1e-6, warmup_epochs=40),
        "weight_decay": Cosine(start=0.04, final=0.4),
        "momentum": Linear(start=0.998, final=1.0),
        "ipe_scale": 1.25,
    },
    "V-JEPA 2": {
        "lr": WarmupCosine(start=1e-4, peak=5.25e-4, final=5.25e-4, warmup_epochs=40),
        "weight_decay": Constant(0.04),
        "momentum": Constant(0.99925),
        "share_mask_token": True,
    },
    "V-JEPA 2.1": {
        "lr": WarmupCosine(start=1e-4, peak=6e-4, final=6e-4, warmup_epochs=40),
        "weight_decay": Constant(0.04),
        "momentum": Constant(0.99925),
        "context_weight": Ramp(0.5, first_epoch=50, last_epoch=100),
    },
}
"""The published ones."""


def load(
    path: str | Path | Weights,
    checkpoint: str | Path | None = None,
    trust: str | Sequence[str] = (),
    allow_non_finite: bool = False,
) -> Any:
    """The module (a JEPA, or a probe of one) that a checkpoint was saved from, on the CPU and in eval mode.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote, or what ``weights.open`` made of it.
        checkpoint: For a probe: where the checkpoint of its encoder is now, if that has moved.
        trust: Packages whose classes the checkpoint may name, beside this one.
        allow_non_finite: Accept weights that are infinite or not a number.

    Raises:
        FileNotFoundError: No such file, or the encoder of a probe is not where it was.
        CheckpointError: A ValueError: not a checkpoint of ours, damaged, or one whose tensors do not fit.
    """
    with weights.trusting(*_names(trust), allow_non_finite=allow_non_finite):
        found = path if isinstance(path, Weights) else weights.open(path)
        if not isinstance(found, Own):
            raise UnknownFormat(
                f"{found.path} is a {found.format}, which no method of jepa_lightning wrote: use "
                "jepa_lightning.load_meta for Meta's files, jepa_lightning.load_encoder for the encoder of any"
            )
        config = model_config(found, checkpoint)
        if "checkpoint" not in (config.get("init_args") or {}):  # a probe reads another file when it is built
            expected = outlined(found.path, partial(build, config, found.path)).state_dict()
            tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
            check(found.path, "state_dict", tensors, found.tensors())
        module = build(config, found.path)
        taken = {name: found.file.take(name, tensor) for name, tensor in found.tensors().items()}
        try:
            module.load_state_dict({**found.state, **taken})
        except RuntimeError as error:
            raise DoesNotFit(f"the tensors of {found.path} do not fit its configuration: {error}") from error
    return module.eval()


def model_config(found: Own, checkpoint: str | Path | None = None) -> dict[str, Any]:
    """The ``model`` section of a checkpoint; a probe's names a file with its encoder that exists.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If an encoder was given to a checkpoint that has its own.
    """
    config = found.config["model"]
    named = found.arguments.get("checkpoint")
    if named is None:
        if checkpoint is not None:
            raise CheckpointError(f"{found.path} holds its encoder itself: leave out checkpoint={checkpoint}")
        return config
    place = Path(checkpoint) if checkpoint is not None else found_beside(found.path, str(named))
    return {**config, "init_args": {**found.arguments, "checkpoint": str(place)}}


def build(config: dict[str, Any], path: str | Path = "the configuration") -> Any:
    """A module from the ``model`` section of a configuration.

    Args:
        config: The section.
        path: The file that it comes from, for messages.

    Raises:
        DoesNotFit: If it makes no method.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    try:
        return parser.instantiate_classes(parser.parse_object({"model": config})).model
    except CheckpointError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:  # many lines, made for a command line
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DoesNotFit(f"cannot build what {path} holds: {lines[-1][:300]}") from error


def load_encoder(
    path: str | Path | Weights,
    branch: Branch = "target",
    *,
    trust: str | Sequence[str] = (),
    allow_non_finite: bool = False,
    **hints: Any,
) -> Encoder:
    """The encoder of any checkpoint as a plain module, frozen, on the CPU: `tokens = encoder(inputs)`.

    ``encoder(inputs, layers=5)`` gives the tokens of another block, ``encoder.preprocess`` makes an input of an image,
    a video or the path of one, ``encoder.normalize`` applies the mean and standard deviation that it expects.

    Args:
        path: A ``.ckpt`` that `jepa fit` wrote, a file in Meta's format, a folder in Hugging Face's format (or its name
            on the hub, `facebook/vjepa2-vitl-fpc64-256`), a file of timm's ``vit_*_ijepa``, or one of `jepa export`.
        branch: ``target`` is the EMA encoder, which the papers evaluate; ``context`` the one that was trained. A
            file with one encoder gives that one, and a message says so.
        trust: Packages whose classes the checkpoint may name, beside this one.
        allow_non_finite: Accept weights that are infinite or not a number.
        **hints: Sizes that neither tensors nor format show: num_heads, img_size, num_frames.

    Raises:
        FileNotFoundError: No such file.
        TypeError: If something is given that the file says itself.
        CheckpointError: A ValueError: damaged, of no known format, or without an encoder.
    """
    from jepa_lightning.data.preprocess import Preprocess

    with weights.trusting(*_names(trust), allow_non_finite=allow_non_finite):
        found = path if isinstance(path, Weights) else weights.open(path)
        networks = found.networks(branch, hints=found.hints(hints))
    logging.getLogger(__name__).info("%s (%s): the %s encoder was read", path, found.format, networks.branch)
    encoder, wanted = networks.encoder, networks.preprocessing
    encoder.normalize = wanted.normalize
    encoder.preprocess = Preprocess(wanted, encoder.num_frames)
    return encoder


def load_meta(
    path: str | Path,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    predictor_num_heads: int | None = None,
    num_frames: int | None = None,
    rotary: bool | None = None,
    **overrides: Any,
) -> IJEPA | VJEPA:
    """The method with all three networks of a checkpoint in Meta's format; every tensor is used, or it is an error.

    A file with a 2-D patch projection is I-JEPA, with a 3-D one V-JEPA, and among those one without position tables,
    or with the ten mask tokens of the released files, is V-JEPA 2; one with a patch projection of images beside it is
    V-JEPA 2.1. Training goes on from such a file with `jepa fit
    --ckpt_path FILE`, which also reads its optimizer and its epoch: see weights/meta_training.py.

    Args:
        path: The file, for example ``IN1K-vit.h.14-300e.pth.tar``, ``vitl16.pth.tar`` or ``vitl.pt``.
        num_heads: Attention heads; needed where the width is none of the published sizes, because no tensor shows it.
        img_size: Size in pixels of the training inputs; read off the (square) position table if None, 256 or what
            patches cover of it for V-JEPA 2, 384 for V-JEPA 2.1, which have none (any size works).
        predictor_num_heads: Attention heads of the predictor, if not those of the encoder (V-JEPA 2: 12).
        num_frames: Frames of the training clips; read off the position table if None, 16 for V-JEPA 2 and 2.1.
        rotary: Whether the networks have rotary positions; None to read it off the tensors.
        **overrides: Other constructor arguments of the method (lr, weight_decay, momentum, betas, ipe_scale, compile,
            loss_exp, share_mask_token, context_weight). The schedules default to the published ones.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: A ValueError: not in this format, or a tensor is missing, unexpected or of the wrong shape.
    """
    found = weights.open(path)
    if not isinstance(found, Meta):
        raise UnknownFormat(f"{path} is no JEPA checkpoint in Meta's format, but a {found.format}: use load_encoder")
    hints = Hints(num_heads, img_size, num_frames, predictor_num_heads, rotary)
    rotary = found.is_rotary(hints)
    states, kind = found.states(hints), found.kind(hints)
    if kind == "V-JEPA 2.1" and "encoder" not in states and "target_encoder" in states:  # distilled: one encoder
        states = {**states, "encoder": states["target_encoder"]}
    missing = [name for name in NETWORKS if name not in states]
    if missing:
        raise DoesNotFit(f"{path} is no JEPA checkpoint in Meta's format: it has no {', '.join(missing)}")
    if kind not in SCHEDULES:
        raise CheckpointError(
            f"{path} is of {kind}, which is not supported yet; the methods here are {', '.join(SCHEDULES)}"
            + (" (jepa_lightning.load_encoder reads its encoder)" if kind == "V-JEPA 2-AC" else "")
        )
    build = _builder(found.path, kind, states, replace(hints, rotary=rotary), {**SCHEDULES[kind], **overrides})
    with torch.device("meta"):  # no memory and no time for weights that are read anyway
        module = build()
    networks = {name: module.get_submodule(name) for name in NETWORKS}
    for name, network in networks.items():
        check(found.path, name, network.state_dict(), states[name])
    for name, network in networks.items():
        taken = {key: found.file.take(f"{name}.{key}", tensor) for key, tensor in states[name].items()}
        network.load_state_dict(taken, assign=True)
    logging.getLogger(__name__).info("%s is %s: encoder, target encoder and predictor were read", path, kind)
    return module.to("cpu")  # where everything is; Lightning noted where it was built


def _builder(
    path: Path, kind: str, states: dict[str, dict[str, torch.Tensor]], hints: Hints, arguments: dict[str, Any]
) -> Callable[[], IJEPA | VJEPA]:
    """What builds the method of a file in Meta's format, with networks of the sizes that its tensors show."""
    if kind == "V-JEPA 2.1":
        dense = meta_dense.encoder(path, states["encoder"], hints)
        width = dense.keywords["embed_dim"]
        build = meta_dense.predictor(path, states["predictor"], width, hints.predictor_num_heads)
        return lambda: VJEPA21(dense(), build, **arguments)
    sizes = encoder_arguments(path, states["encoder"], hints)
    narrow = predictor_arguments(path, states["predictor"], hints.predictor_num_heads, bool(hints.rotary))
    method = IJEPA if kind == "I-JEPA" else VJEPA
    return lambda: method(VisionTransformer(**sizes), partial(Predictor, **narrow), **arguments)


def start_from(module: nn.Module, found: Weights) -> Callable[[Any], dict[str, Any] | None]:
    """Give a module the networks of a checkpoint, for a new training that starts where another one ended.

    Position tables of another size or length stay those of the module. From a checkpoint that holds one encoder alone
    both encoders start, and a predictor that it does not have stays as it was initialised.

    Args:
        module: A JEPA with the same networks.
        found: Any checkpoint.

    Returns:
        What makes the state of the optimizer for a module that is ready to train; that is None if the checkpoint has
        none that can be used.

    Raises:
        DoesNotFit: If a tensor is missing, unexpected or of the wrong shape.
    """
    mine = module.state_dict()
    source = {name: tensor for name, tensor in found.tensors().items() if name.split(".")[-1] not in TABLES}
    kept = {name: tensor for name, tensor in mine.items() if name.endswith("pos_embed")}
    if isinstance(found, OneEncoder):
        there, wanted = ({name.split(".")[0] for name in names} for names in (source, mine))
        kept |= {name: tensor for name, tensor in mine.items() if name.split(".")[0] not in there}
        source = {name: tensor for name, tensor in source.items() if name.split(".")[0] in wanted}
        logging.getLogger(__name__).info(
            "--init_from %s has one encoder; both encoders start from it; freshly initialised: %s",
            found.path,
            ", ".join(sorted(wanted - there)) or "none",
        )
    try:
        check(found.path, "this model", mine, {**source, **kept})
    except DoesNotFit as error:
        raise DoesNotFit(f"--init_from {error}") from error
    found.file.check_all(source)
    module.load_state_dict({**source, **kept})
    return found.optimizer_state


def _names(trust: str | Sequence[str]) -> Sequence[str]:
    return (trust,) if isinstance(trust, str) else trust
