"""`jepa export`: a checkpoint of any layout, written for another library and compared there with ours."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jepa_lightning.finding import find_checkpoint
from jepa_lightning.interop.card import write_card
from jepa_lightning.interop.formats import GRAPHS, check_packages, formats, prepared
from jepa_lightning.interop.opening import open_source
from jepa_lightning.interop.parity import TOLERANCE, Parity, compare
from jepa_lightning.interop.samples import samples
from jepa_lightning.interop.source import Source, functions

GIVEN = ("num_heads", "img_size", "num_frames", "predictor_num_heads")


def export(
    source: Source,
    to: str,
    out: str | Path,
    with_predictor: bool | None = None,
    fixed_size: bool = False,
    overwrite: bool = False,
) -> Parity:
    """Write a checkpoint in another format, reload it there and compare; only what agrees is left behind.

    Args:
        source: What to write, from open_source.
        to: A key of formats().
        out: The folder, which is there in the end or as it was before.
        with_predictor: Whether the predictor goes out too; None for where the format always has one.
        fixed_size: Write a graph for inputs of one size and length only.
        overwrite: Replace an export that is there.

    Returns:
        What the comparison found.

    Raises:
        FileExistsError: If there is something, and it may not be replaced.
        ImportError: If the other library is not installed; the message says how to install it.
        ValueError: If the format has no place for this model, or the other library computes something else.
    """
    out = Path(out).expanduser()
    _check_free(out, overwrite)
    check_packages(to)
    form, source = formats(fixed_size)[to], prepared(to, source, with_predictor)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _say(f"Writing {source.kind} as {form.title}")
        form.write(source, temporary)
        _say(f"Reloading it in {form.library} and comparing")
        parity = compare(functions(source), form.reload(temporary, source), samples(source), form.library)
        _say(parity.table())
        if not parity.passed:
            raise ValueError(
                f"{form.library} computes something else than jepa_lightning (differences above {TOLERANCE:g} in the "
                f"table): {out} was not written. Please report this with the table"
            )
        (temporary / "parity.json").write_text(json.dumps(parity.content(), indent=2) + "\n")
        write_card(source, form, parity, temporary)
        _put(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _say(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return parity


def main(args: Sequence[str]) -> None:
    """Run `jepa export`.

    Args:
        args: The arguments after `export`.
    """
    parser = _parser()
    options = parser.parse_args(args)
    if options.fixed_size and options.to not in GRAPHS:
        parser.error(f"--fixed_size is for --to {' and '.join(GRAPHS)}: weights take any size that the library does")
    given = {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
    if "img_size" in given:
        given["img_size"] = (given["img_size"][0], given["img_size"][-1])
    path = find_checkpoint(options.ckpt_path, None, "--ckpt_path", ours=False)
    _check_free(Path(options.out).expanduser(), options.overwrite)  # before what takes long
    check_packages(options.to)
    _say(f"Reading {path}")
    source = open_source(path, options.branch, options.to == "meta", options.task, **given)
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
    given = parser.add_argument_group("what no tensor of a foreign file shows, where the width is no published one")
    given.add_argument("--num_heads", type=int, metavar="N", help="attention heads of the encoder")
    given.add_argument("--predictor_num_heads", type=int, metavar="N", help="attention heads of the predictor")
    given.add_argument("--img_size", type=int, nargs="+", metavar="PIXELS", help="side of the inputs, or both sides")
    given.add_argument("--num_frames", type=int, metavar="N", help="frames of the clips")
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt_path",
        required=True,
        metavar="FILE",
        help="what `jepa fit` wrote (also an attentive probe), a file in Meta's or timm's layout, a folder of Hugging "
        "Face; a name such as last.ckpt is looked for among the runs below runs/",
    )
    parser.add_argument("--to", required=True, choices=list(formats()), help="the format")
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


def _check_free(out: Path, overwrite: bool) -> None:
    """That nothing of value is lost."""
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} is there already: give another --out, or --overwrite if it is an earlier export")
    if not (out / "parity.json").is_file():
        raise FileExistsError(
            f"{out} has no parity.json, so it is no earlier export and is not replaced: give another --out"
        )


def _put(temporary: Path, out: Path) -> None:
    """Give the finished folder its name; an earlier one is there until that moment."""
    temporary.chmod(0o777 & ~_umask())  # tempfile makes it readable to nobody else
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    temporary.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what a person at the terminal waits for
