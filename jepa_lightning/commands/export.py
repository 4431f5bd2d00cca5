"""`jepa export`: a checkpoint of any format, written for another library and compared there with ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jepa_lightning import weights
from jepa_lightning.commands.find import find_checkpoint
from jepa_lightning.commands.options import add_hints, add_permissions, allowed, hints_given
from jepa_lightning.export.formats import FIXED_SIZE, FORMATS, check_packages
from jepa_lightning.export.opening import open_source
from jepa_lightning.export.parity import TOLERANCE
from jepa_lightning.export.writing import check_free, export, say


def main(args: Sequence[str]) -> None:
    """Run `jepa export`.

    Args:
        args: The arguments after `export`.
    """
    parser = _parser()
    options = parser.parse_args(args)
    if options.fixed_size and options.to not in FIXED_SIZE:
        parser.error(
            f"--fixed_size is for --to {' and '.join(FIXED_SIZE)}: weights take any size that the library does"
        )
    path = find_checkpoint(options.ckpt_path)
    check_free(Path(options.out).expanduser(), options.overwrite)  # before what takes long
    check_packages(options.to)
    say(f"Reading {path}")
    with allowed(options):
        source = open_source(
            weights.open(path), options.branch, options.to == "meta", options.task, hints_given(options)
        )
    export(source, options.to, options.out, options.with_predictor, options.fixed_size, options.overwrite)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jepa export",
        description="Write the encoder of a checkpoint for another library, with a model card and an exact "
        "description of the preprocessing. The result is reloaded in that library and compared with ours on random "
        f"and real inputs; if they differ by more than {TOLERANCE:g}, nothing is left behind.",
        epilog="V-JEPA (1) and rotary positions other than `layout: tiled` have no class in transformers, and no other "
        "library has the blocks of energy models: onnx, torch_export and safetensors take them.",
    )
    _add_options(parser)
    add_hints(parser)
    add_permissions(parser)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="FILE",
        help="what `jepa fit` wrote (also an attentive probe), a file in Meta's or timm's format, a folder of Hugging "
        "Face; a name such as last.ckpt is looked for among the runs below runs/",
    )
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--branch",
        choices=["target", "context"],
        default="target",
        help="which encoder: the EMA, which the papers evaluate (target, the default), or the one that was trained",
    )
    parser.add_argument(
        "--with_predictor",
        action=argparse.BooleanOptionalAction,
        help="write the predictor too; by default where the format always has one (VJEPA2Model, meta)",
    )
    parser.add_argument(
        "--fixed_size",
        action="store_true",
        help="onnx, torch_export: take inputs of the training's size only, for runtimes that want that; the batch is "
        "dynamic in any case",
    )
    parser.add_argument("--task", metavar="NAME", help="which label, for a probe that has several")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
