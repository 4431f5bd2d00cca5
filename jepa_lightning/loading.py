"""load, load_meta and load_encoder: the one file that knows checkpoints and methods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa_lightning import weights
from jepa_lightning.methods import IJEPA, VJEPA, VJEPA2AC, VJEPA21, Method
from jepa_lightning.models import Encoder
from jepa_lightning.schedules import Constant, Cosine, Linear, Ramp, WarmupCosine, WarmupStableDecay
from jepa_lightning.weights import Branch, CheckpointError, DoesNotFit, Hints, UnknownFormat, Weights
from jepa_lightning.weights.base import OneEncoder
from jepa_lightning.weights.description import instantiate
from jepa_lightning.weights.meta import CONDITIONED, DENSE, Meta
from jepa_lightning.weights.networks import check, outlined
from jepa_lightning.weights.ours import Own, found_beside

TABLES = ("pos_embed", "predictor_pos_embed")
METHODS: dict[str, type[Any]] = {
    "I-JEPA": IJEPA, "V-JEPA": VJEPA, "V-JEPA 2": VJEPA, DENSE: VJEPA21, CONDITIONED: VJEPA2AC,
}  # fmt: skip
"""By the kind of Meta's file."""
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
    DENSE: {
        "lr": WarmupCosine(start=1e-4, peak=6e-4, final=6e-4, warmup_epochs=40),
        "weight_decay": Constant(0.04),
        "momentum": Constant(0.99925),
        "context_weight": Ramp(0.5, first_epoch=50, last_epoch=100),
    },
    CONDITIONED: {
        "lr": WarmupStableDecay(start=7.5e-5, peak=4.25e-4, final=0.0, warmup_epochs=15, decay_epochs=15),
        "weight_decay": Constant(0.04),
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
        check_method(found, config)
        module = build(config, found.path)
        taken = {name: found.file.take(name, tensor) for name, tensor in found.tensors().items()}
        try:
            module.load_state_dict({**found.state, **taken})
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:  # of an extra state
            raise DoesNotFit(f"the tensors of {found.path} do not fit its configuration: {error}") from error
    return module.eval()


def check_method(found: Own, config: dict[str, Any]) -> None:
    """Check that the tensors of a checkpoint are those of its method, before memory is allocated for the method.

    A probe is not checked: it reads another file when it is built.

    Raises:
        DoesNotFit: If a tensor is missing, unexpected, or of another shape or kind.
    """
    if "checkpoint" not in (config.get("init_args") or {}):
        expected = outlined(found.path, partial(build, config, found.path)).state_dict()
        tensors = {name: value for name, value in expected.items() if isinstance(value, torch.Tensor)}
        check(found.path, "state_dict", tensors, found.tensors())


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
    return instantiate(path, Method, config)


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
) -> IJEPA | VJEPA | VJEPA2AC:
    """The method with all networks of a checkpoint in Meta's format; every tensor is used, or it is an error.

    A file with a 2-D patch projection is I-JEPA, with a 3-D one V-JEPA, and among those one without position tables,
    or with the ten mask tokens of the released files, is V-JEPA 2; with a predictor that reads actions it is V-JEPA
    2-AC, whose one encoder is the target encoder; with a patch projection of images beside that of clips V-JEPA 2.1.
    Training goes on from such a file with `jepa fit --ckpt_path FILE`, which also reads its optimizer and its epoch:
    see weights/meta_training.py.

    Args:
        path: The file, for example ``IN1K-vit.h.14-300e.pth.tar``, ``vitl16.pth.tar`` or ``vitl.pt``.
        num_heads: Attention heads; needed where the width is none of the published sizes, because no tensor shows it.
        img_size: Size in pixels of the training inputs; read off the (square) position table if None, 256 or what
            patches cover of it for V-JEPA 2, 384 for V-JEPA 2.1, which have none (any size works).
        predictor_num_heads: Attention heads of the predictor, if not those of the encoder (V-JEPA 2: 12, V-JEPA 2-AC:
            16).
        num_frames: Frames of the training clips; read off the position table if None, 16 for V-JEPA 2 and 2.1.
        rotary: Whether the networks have rotary positions; None to read it off the tensors.
        **overrides: Other constructor arguments of the method (lr, weight_decay, momentum, betas, ipe_scale, compile,
            loss_exp, share_mask_token, context_weight; for V-JEPA 2-AC also auto_steps, and use_extrinsics of its
            predictor). The schedules default to the published ones.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: A ValueError: not in this format, or a tensor is missing, unexpected or of the wrong shape.
    """
    found = weights.open(path)
    if not isinstance(found, Meta):
        raise UnknownFormat(f"{path} is no JEPA checkpoint in Meta's format, but a {found.format}: use load_encoder")
    hints = Hints(num_heads, img_size, num_frames, predictor_num_heads, rotary)
    states, kind = found.states(hints), found.kind(hints)
    sources = found.sources(frozen=kind == CONDITIONED)
    missing = [name for name in sources.values() if name not in states]
    if missing:
        raise DoesNotFit(f"{path} is no JEPA checkpoint in Meta's format: it has no {', '.join(missing)}")
    arguments = {**SCHEDULES[kind], **overrides}
    encoder, predictor = found.encoder_builder(sources["encoder"], hints), found.predictor_builder(hints)
    if kind == CONDITIONED:
        predictor = partial(predictor, use_extrinsics=arguments.pop("use_extrinsics", False))
    with torch.device("meta"):  # no memory and no time for weights that are read anyway
        module: IJEPA | VJEPA | VJEPA2AC = METHODS[kind](encoder(), predictor, **arguments)
    for name, state in states.items():
        check(found.path, name, getattr(module, name).state_dict(), state)
    for name, source in sources.items():
        taken = {key: found.file.take(f"{source}.{key}", tensor) for key, tensor in states[source].items()}
        module.get_submodule(name).load_state_dict(taken, assign=True)
    read = ", ".join(source.replace("_", " ") for source in dict.fromkeys(sources.values()))
    logging.getLogger(__name__).info("%s is %s: %s were read", path, kind, read)
    return module.to("cpu")  # where everything is; Lightning noted where it was built


def start_from(module: nn.Module, found: Weights) -> Callable[[Any], dict[str, Any] | None]:
    """Give a module the networks of a checkpoint, for a new training that starts where another one ended.

    Position tables of another size or length stay those of the module. From a checkpoint that holds one encoder alone
    both encoders start, and a predictor that it does not have stays as it was initialised. An encoder that is not
    trained is the target encoder of the checkpoint, and a predictor that reads actions starts only from another one.

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
    frozen = isinstance(module, VJEPA2AC)
    if frozen:
        source = _conditioned(source)
    if frozen or isinstance(found, OneEncoder):
        there, wanted = ({name.split(".")[0] for name in names} for names in (source, mine))
        kept |= {name: tensor for name, tensor in mine.items() if name.split(".")[0] not in there}
        source = {name: tensor for name, tensor in source.items() if name.split(".")[0] in wanted}
        logging.getLogger(__name__).info(
            "--init_from %s %s; freshly initialised: %s",
            found.path,
            "gives its target encoder, frozen" if frozen else "has one encoder; both encoders start from it",
            ", ".join(sorted(wanted - there)) or "none",
        )
    try:
        check(found.path, "this model", mine, {**source, **kept})
    except DoesNotFit as error:
        raise DoesNotFit(f"--init_from {error}") from error
    found.file.check_all(source)
    module.load_state_dict({**source, **kept})
    new = frozen and not any(name.startswith("predictor.") for name in source)
    return (lambda ready: None) if new else found.optimizer_state


def _conditioned(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a predictor that reads actions and its frozen encoder take of the tensors of a checkpoint."""
    target = "target_encoder." if any(name.startswith("target_encoder.") for name in source) else "encoder."
    taken = {f"encoder.{name.removeprefix(target)}": t for name, t in source.items() if name.startswith(target)}
    if "predictor.action_encoder.weight" in source:
        taken |= {name: tensor for name, tensor in source.items() if name.startswith("predictor.")}
    return taken


def _names(trust: str | Sequence[str]) -> Sequence[str]:
    return (trust,) if isinstance(trust, str) else trust
