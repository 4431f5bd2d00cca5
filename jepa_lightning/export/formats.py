"""The formats of `jepa export` by name, and what of a checkpoint each of them takes."""

from __future__ import annotations

from jepa_lightning.export.base import Format
from jepa_lightning.export.graphs import ONNX, TorchExport
from jepa_lightning.export.huggingface import HuggingFace
from jepa_lightning.export.meta import Meta
from jepa_lightning.export.safetensors_file import Safetensors
from jepa_lightning.export.source import Source
from jepa_lightning.export.timm import Timm

FORMATS: dict[str, Format] = {
    "huggingface": HuggingFace(),
    "timm": Timm(),
    "onnx": ONNX(),
    "torch_export": TorchExport(),
    "safetensors": Safetensors(),
    "meta": Meta(),
}
"""By the name that `--to` takes."""
FIXED_SIZE: dict[str, Format] = {"onnx": ONNX(fixed_size=True), "torch_export": TorchExport(fixed_size=True)}
"""Graphs of operations that take inputs of one size and length only."""


def prepared(name: str, source: Source, with_predictor: bool | None = None) -> Source:
    """The part of a source that is exported to a format.

    Args:
        name: A key of FORMATS.
        source: All networks of the checkpoint.
        with_predictor: Whether the predictor is exported; None for where the format always has one.

    Raises:
        ValueError: If there is no predictor, or the format cannot hold the model; the message says why, and which
            formats can.
    """
    if with_predictor and source.networks.predictor is None:
        has = f"no predictor of tokens at positions, but {source.predictor}" if source.predictor else "no predictor"
        raise ValueError(f"{source.path} has {has}: leave out --with_predictor")
    wanted = FORMATS[name].prepared(source, with_predictor)
    if reason := FORMATS[name].unsupported(wanted):
        others = [key for key, form in FORMATS.items() if not form.unsupported(form.prepared(source, with_predictor))]
        raise ValueError(
            f"{source.path} ({source.kind}) cannot be exported to {name}: {reason}. Use --to {' or '.join(others)}"
        )
    return wanted


def check_packages(name: str) -> None:
    """Check that everything that a format needs is installed.

    Raises:
        ImportError: If something is missing; the message names the line that installs it.
    """
    if missing := FORMATS[name].missing_packages():
        raise ImportError(f"--to {name} needs {' and '.join(missing)}: pip install 'jepa-lightning[export]'")
