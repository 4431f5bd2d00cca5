"""`jepa explore`: opens a checkpoint and serves the page on this machine."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info

from jepa_lightning.data import ImageDataModule, JEPADataModule, VideoDataModule
from jepa_lightning.explore.items import of_data
from jepa_lightning.explore.subject import Subject
from jepa_lightning.finding import find_checkpoint, with_shipped_configs
from jepa_lightning.masking import MaskSampler
from jepa_lightning.models import Encoder

INSTALL = "jepa explore needs Dash: pip install 'jepa-lightning[explore]'"
SIZES = ("num_heads", "predictor_num_heads", "img_size", "num_frames")
"""What no tensor shows; a checkpoint of a published size, and one of ours, does not need it."""
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
    path = find_checkpoint(
        given.ckpt_path, "runs", "--ckpt_path", lambda model: "checkpoint" not in _init(model), False
    )
    subject, config = open_subject(path, **{name: getattr(given, name) for name in SIZES if getattr(given, name)})
    data = data_for(subject.encoder, config, given.config, given.root)
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
        help="any checkpoint: of `jepa fit`, in the layout of Meta, Hugging Face or timm; last.ckpt finds the newest",
    )  # fmt: skip
    parser.add_argument("--root", help="folder of images or videos to look at, in place of the data of the training")
    parser.add_argument("--config", help="take the data section of this configuration (name or file)")
    parser.add_argument("--samples", type=int, default=200, help="at most that many samples (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, which only this machine can reach")
    parser.add_argument("--port", type=int, default=8050, help="default: %(default)s")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=int, help="for weights in a foreign layout that do not say it themselves")
    return parser


def _init(model: dict[str, Any]) -> dict[str, Any]:
    return model.get("init_args") or {}


def open_subject(path: str | Path, **given: Any) -> tuple[Subject, dict[str, Any] | None]:
    """The networks of a checkpoint of any layout, and the configuration that made them, if it is inside."""
    from jepa_lightning.interop.layouts import OneEncoder, Own, open_layout

    layout = open_layout(path)
    networks = layout.networks("target", predictor=True, **given)
    alone = isinstance(layout, OneEncoder) or networks.predictor is None
    context = networks.encoder if alone else layout.networks("context", **given).encoder
    wanted = networks.preprocessing
    from jepa_lightning.checkpoint import CONFIG_KEY

    config = yaml.safe_load(layout.content[CONFIG_KEY]) if isinstance(layout, Own) else None
    layers = _init(config["model"]).get("target_layers", 1) if config else 1
    return Subject(networks.encoder, context, networks.predictor, wanted.mean, wanted.std, layers), config


def data_for(encoder: Encoder, config: dict[str, Any] | None, name: str | None, root: str | None) -> JEPADataModule:
    """The data of the training, or what was asked for with the masks of the training, for the sizes of this encoder.

    Raises:
        FileNotFoundError: No such configuration.
    """
    if name is not None:
        (file,) = [Path(part) for part in with_shipped_configs(["--config", name])[1:]]
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    section = None if config is None else config.get("data")
    kind = VideoDataModule if encoder.num_frames > 1 else ImageDataModule
    data = _build(section) if section else kind()
    if root is not None:
        data = kind(root=root, masks=data.masks) if section and type(data) is kind else kind(root=root)
    data.num_workers = 0  # a few samples: processes would cost more than they save
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(encoder=encoder))  # type: ignore[assignment]
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
