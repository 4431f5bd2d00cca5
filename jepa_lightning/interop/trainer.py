"""Lets `jepa fit|validate|test|predict --ckpt_path` take checkpoints that Lightning did not write."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from jepa_lightning.checkpoint import AtomicCheckpointIO
from jepa_lightning.interop.inspection import HEADS_UNKNOWN, outline
from jepa_lightning.interop.layouts import Layout, Meta, MetaProbe, open_layout
from jepa_lightning.interop.meta_probes import MetaProbeIO
from jepa_lightning.interop.meta_training import MetaCheckpointIO, progress
from jepa_lightning.probing import AttentiveProbe, PretrainedEncoder


def adopt(config: Any, path: str, fitting: bool) -> None:
    """Make the configuration fit a checkpoint in a layout that is not Lightning's.

    To go on with a training, the model of the configuration stays, and its reader is that of ``checkpoint_io``. For
    everything else the model becomes the encoder of the file, so that only data and observers are taken from the
    configuration.

    Args:
        config: The section of the subcommand; changed in place.
        path: The checkpoint.
        fitting: Whether training is to go on.

    Raises:
        ValueError: If the checkpoint has no training to go on with, or does not go with the model.
    """
    layout = open_layout(path)
    probing = config.model.class_path.split(".")[-1] == AttentiveProbe.__name__
    if probing != isinstance(layout, MetaProbe):
        _refuse(layout, path, probing)
    if probing:
        return
    if fitting:
        if not isinstance(layout, Meta):
            raise ValueError(
                f"--ckpt_path {path} ({layout.title}) has no training to go on with: start a new one from it with "
                "--init_from"
            )
        progress(layout.path, layout.content)
        return
    if outline(layout)[1] == HEADS_UNKNOWN:
        raise ValueError(
            f"--ckpt_path {path} does not say how many attention heads it has, and its width is no published one: give "
            f"--model PretrainedEncoder --model.checkpoint {path} --model.overrides.num_heads N in place of --ckpt_path"
        )
    given = {"checkpoint": path, "branch": "target", "overrides": None}
    kind = f"{PretrainedEncoder.__module__}.{PretrainedEncoder.__name__}"
    rank_zero_info(f"--ckpt_path {path} ({layout.title}): its encoder takes the place of {config.model.class_path}")
    config.model, config.ckpt_path = Namespace(class_path=kind, init_args=Namespace(given)), None


def _refuse(layout: Layout, path: str, probing: bool) -> None:
    if probing:
        raise ValueError(
            f"--ckpt_path {path} ({layout.title}) holds no heads of a probe: give the encoder as --model.checkpoint"
        )
    raise ValueError(
        f"--ckpt_path {path} holds attentive probes: give --config attentive_probe.yaml and --model.checkpoint ENCODER"
    )


def checkpoint_io(module: nn.Module, path: str) -> AtomicCheckpointIO:
    """What reads the checkpoint for a trainer: one in Meta's layout as if Lightning had written it."""
    layout = open_layout(path)
    if isinstance(module, AttentiveProbe) and isinstance(layout, MetaProbe):
        return MetaProbeIO(module)
    return MetaCheckpointIO(module) if isinstance(layout, Meta) else AtomicCheckpointIO()  # type: ignore[arg-type]
