"""Lets `jepa fit|validate|test|predict --ckpt_path` take checkpoints that Lightning did not write."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.loading import check_method
from jepa_lightning.probing import AttentiveProbe, PretrainedEncoder
from jepa_lightning.weights import CheckpointError, HintNeeded, Weights
from jepa_lightning.weights.meta import Meta
from jepa_lightning.weights.meta_probes import MetaProbe
from jepa_lightning.weights.meta_training import check_resumable
from jepa_lightning.weights.ours import Own


def adopt(config: Any, opened: Weights, fitting: bool) -> None:
    """Check that a checkpoint fits the command, and adapt the configuration to one of another format.

    To resume a training, the model of the configuration is kept. Otherwise the model becomes the encoder of a file of
    another format, and only data and callbacks are taken from the configuration.

    Args:
        config: The section of the subcommand; changed in place.
        opened: The checkpoint.
        fitting: Whether a training is resumed.

    Raises:
        CheckpointError: If the checkpoint is damaged, has no training to resume, or does not fit the model.
    """
    if isinstance(opened, Own):
        check_method(opened, opened.config["model"])
        opened.check_whole(fitting)
        return
    probing = config.model.class_path.split(".")[-1] == AttentiveProbe.__name__
    if probing != isinstance(opened, MetaProbe):
        _refuse(opened, probing)
    if probing:
        return
    if fitting:
        if not isinstance(opened, Meta):
            raise CheckpointError(
                f"--ckpt_path {opened.path} ({opened.format}) has no training to resume: start a new one from it "
                "with --init_from"
            )
        check_resumable(opened)
        return
    try:
        opened.outline()
    except HintNeeded as error:
        raise HintNeeded(
            f"--ckpt_path {opened.path} does not say how many attention heads it has, and its width is no published "
            f"one: give --model PretrainedEncoder --model.checkpoint {opened.path} --model.overrides.num_heads N in "
            "place of --ckpt_path"
        ) from error
    given = {"checkpoint": str(opened.path), "branch": "target", "overrides": None}
    kind = f"{PretrainedEncoder.__module__}.{PretrainedEncoder.__name__}"
    rank_zero_info(
        f"--ckpt_path {opened.path} ({opened.format}): its encoder takes the place of {config.model.class_path}"
    )
    config.model, config.ckpt_path = Namespace(class_path=kind, init_args=Namespace(given)), None


def _refuse(opened: Weights, probing: bool) -> None:
    if probing:
        raise CheckpointError(
            f"--ckpt_path {opened.path} ({opened.format}) holds no heads of a probe: give the encoder as "
            "--model.checkpoint"
        )
    raise CheckpointError(
        f"--ckpt_path {opened.path} holds attentive probes: give --config attentive_probe.yaml and --model.checkpoint "
        "ENCODER"
    )
