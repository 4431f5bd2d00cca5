"""The formats of `jepa export`: what each can hold, who writes it, who reloads it, how a person uses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from jepa_lightning.export import graphs, support, usage
from jepa_lightning.export.huggingface import reload_huggingface, write_huggingface
from jepa_lightning.export.meta import reload_meta, write_meta
from jepa_lightning.export.safetensors_file import reload_safetensors, write_safetensors
from jepa_lightning.export.source import Functions, Source
from jepa_lightning.export.timm import reload_timm, write_timm
from jepa_lightning.weights.huggingface_names import PREDICTED


class Format(NamedTuple):
    """One format.

    Attributes:
        title: What people call it.
        library: The package that reloads it.
        unsupported: Why it cannot hold a model; None if it can.
        write: Writes the files into a folder.
        reload: What the library computes from these files.
        usage: For the model card: lines of Python, and what to know about sizes.
        takes_predictor: Whether a predictor goes out unless told otherwise.
        needs: Packages beside the library.
        mask_index: Which mask token the library's predictor uses; None for that of the networks.
    """

    title: str
    library: str
    unsupported: Callable[[Source], str | None]
    write: Callable[[Source, Path], None]
    reload: Callable[[Path, Source], Functions]
    usage: Callable[[Source], str]
    takes_predictor: Callable[[Source], bool] = lambda source: False
    needs: tuple[str, ...] = ()
    mask_index: int | None = None


FORMATS: dict[str, Format] = {
    "huggingface": Format(
        "a Hugging Face model",
        "transformers",
        support.not_in_huggingface,
        write_huggingface,
        reload_huggingface,
        usage.huggingface,
        takes_predictor=lambda source: source.networks.encoder.num_frames > 1 and source.networks.actions is None,
        mask_index=PREDICTED,
    ),
    "timm": Format(
        "a timm model",
        "timm",
        support.not_in_timm,
        write_timm,
        reload_timm,
        usage.timm,
    ),
    "onnx": Format(
        "an ONNX graph",
        "onnxruntime",
        support.never_refused,
        graphs.write_onnx,
        graphs.reload_onnx,
        usage.onnx,
        needs=("onnx", "onnxscript"),
    ),
    "torch_export": Format(
        "a torch.export graph",
        "torch",
        support.never_refused,
        graphs.write_torch_export,
        graphs.reload_torch_export,
        usage.torch_export,
    ),
    "safetensors": Format(
        "a safetensors file",
        "jepa_lightning",
        support.not_in_safetensors,
        write_safetensors,
        reload_safetensors,
        usage.safetensors,
    ),
    "meta": Format(
        "a checkpoint in Meta's format",
        "jepa_lightning",
        support.not_in_meta,
        write_meta,
        reload_meta,
        usage.meta,
        takes_predictor=lambda source: True,
    ),
}
"""By the name that `--to` takes."""
GRAPHS = ("onnx", "torch_export")
"""Graphs of operations, in which sizes can be fixed."""


def formats(fixed_size: bool = False) -> dict[str, Format]:
    """All of them.

    Args:
        fixed_size: Write graphs that take inputs of one size and length only.
    """
    if not fixed_size:
        return dict(FORMATS)
    return {
        **FORMATS,
        "onnx": FORMATS["onnx"]._replace(
            write=partial(graphs.write_onnx, fixed_size=True), usage=partial(usage.onnx, fixed_size=True)
        ),
        "torch_export": FORMATS["torch_export"]._replace(
            write=partial(graphs.write_torch_export, fixed_size=True),
            usage=partial(usage.torch_export, fixed_size=True),
        ),
    }


def prepared(name: str, source: Source, with_predictor: bool | None = None) -> Source:
    """What of a source goes to a format.

    Args:
        name: A key of formats().
        source: All that there is.
        with_predictor: Whether the predictor goes too; None for where the format always has one.

    Raises:
        ValueError: If there is no predictor, or the format has no place for the model; the message says why, and which
            formats have one.
    """
    known = formats()
    if with_predictor and source.networks.predictor is None:
        has = f"no predictor of tokens at positions, but {source.predictor}" if source.predictor else "no predictor"
        raise ValueError(f"{source.path} has {has}: leave out --with_predictor")
    wanted = _with(known[name], source, with_predictor)
    reason = known[name].unsupported(wanted)
    if reason:
        takers = [
            other for other, each in known.items() if each.unsupported(_with(each, source, with_predictor)) is None
        ]
        raise ValueError(
            f"{source.path} ({source.kind}) cannot be exported to {name}: {reason}. Use --to {' or '.join(takers)}"
        )
    return wanted


def _with(form: Format, source: Source, with_predictor: bool | None) -> Source:
    networks = source.networks
    if not (form.takes_predictor(source) if with_predictor is None else with_predictor):
        networks = networks._replace(predictor=None, actions=None)
    if form.mask_index is not None:
        networks = networks._replace(mask_index=form.mask_index)
    return source._replace(networks=networks)


def check_packages(name: str) -> None:
    """That everything is installed.

    Raises:
        ImportError: If something is missing; the message names the line that installs it.
    """
    each = formats()[name]
    missing = [package for package in (each.library, *each.needs) if find_spec(package) is None]
    if missing:
        raise ImportError(f"--to {name} needs {' and '.join(missing)}: pip install 'jepa-lightning[export]'")
