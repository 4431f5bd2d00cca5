"""`jepa explore`: opens a checkpoint and serves the page on this machine."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning import weights
from jepa_lightning.commands.configs import find_config
from jepa_lightning.commands.find import find_checkpoint, has_encoder
from jepa_lightning.commands.options import add_hints, add_permissions, allowed, hints_given
from jepa_lightning.commands.stored_folders import check_folders
from jepa_lightning.data import ImageDataModule, JEPADataModule, VideoDataModule
from jepa_lightning.explore.items import of_data
from jepa_lightning.explore.subject import Subject
from jepa_lightning.masking import MaskSampler
from jepa_lightning.models import Encoder
from jepa_lightning.weights import Hints, Weights

INSTALL = "jepa explore needs Dash: pip install 'jepa-lightning[explore]'"
LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


def main(arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        FileNotFoundError: No such checkpoint or data.
        ValueError: If the checkpoint cannot be read, or Dash is not installed.
    """
    given = _parser().parse_args(arguments)
    try:
        from jepa_lightning.explore.answers import Answers
        from jepa_lightning.explore.page import page
    except ImportError as error:
        raise ValueError(INSTALL) from error
    path = find_checkpoint(given.ckpt_path, wanted=has_encoder)
    with allowed(given):
        opened = weights.open(path)
        subject = subject_of(opened, hints_given(given))
        data = data_for(subject.encoder, opened.config, given.config, given.root)
    items = of_data(data, given.samples)
    title = f"{path}: {type(subject.encoder).__name__}, {subject.depth} layers, {len(items)} samples"
    answers = Answers(subject, items, sampler(data))
    app = page(answers, title, LOOPBACK if given.host in ("127.0.0.1", "localhost", "::1") else None)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    rank_zero_info(f"open http://{given.host}:{given.port} (Ctrl-C ends it)")
    app.run(host=given.host, port=given.port, debug=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("jepa explore", description="A page to look inside a network, in your browser.")
    parser.add_argument(
        "--ckpt_path", default="last.ckpt",
        help="any checkpoint: of `jepa fit`, in the format of Meta, Hugging Face or timm; last.ckpt finds the newest",
    )  # fmt: skip
    parser.add_argument("--root", help="folder of images or videos to look at, in place of the data of the training")
    parser.add_argument("--config", help="take the data section of this configuration (name or file)")
    parser.add_argument("--samples", type=int, default=200, help="at most that many samples (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, which only this machine can reach")
    parser.add_argument("--port", type=int, default=8050, help="default: %(default)s")
    add_hints(parser)
    add_permissions(parser)
    return parser


def subject_of(opened: Weights, hints: Hints | None = None) -> Subject:
    """The networks of a checkpoint of any format, to look at."""
    networks = opened.networks("target", predictor=True, hints=hints)
    alone = not opened.two_encoders or networks.predictor is None
    context = networks.encoder if alone else opened.networks("context", hints=hints).encoder
    layers = (opened.config.get("model", {}).get("init_args") or {}).get("target_layers", 1)
    wanted = networks.preprocessing
    return Subject(networks.encoder, context, networks.predictor, wanted.mean, wanted.std, layers)


def data_for(encoder: Encoder, config: dict[str, Any], name: str | None, root: str | None) -> JEPADataModule:
    """The data of the training, or what was asked for with the masks of the training, for the sizes of this encoder.

    Raises:
        FileNotFoundError: No such configuration.
    """
    if name is not None:
        config = yaml.safe_load(Path(find_config(name)).read_text(encoding="utf-8"))
    elif root is None:
        check_folders("the checkpoint", config.get("data"))
    section = config.get("data")
    kind = VideoDataModule if encoder.num_frames > 1 else ImageDataModule
    data = _build(section) if section else kind()
    if root is not None:
        data = kind(root=root, masks=data.masks) if section and type(data) is kind else kind(root=root)
    data.num_workers = 0  # a few samples: processes would cost more than they save
    data.attach(encoder)
    return data


def _build(section: dict[str, Any]) -> JEPADataModule:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(JEPADataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": section})).data


def sampler(data: JEPADataModule) -> MaskSampler | None:
    """The mask sampler of the data, if it has one for this grid."""
    try:
        return data.sampler()
    except ValueError:
        return None
