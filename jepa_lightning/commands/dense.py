"""`jepa dense`: what the tokens of a frozen encoder show of each pixel, beside its untrained encoder and raw pixels.

Tasks: segmentation (mIoU), depth (RMSE, delta 1), correspondence (PCK) and propagation (J&F).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.commands import dense_tasks
from jepa_lightning.commands.dense_setup import Outcome, Reader, Setup
from jepa_lightning.commands.find import find_checkpoint, has_encoder, option_values
from jepa_lightning.commands.messages import JepaParser
from jepa_lightning.commands.options import NON_FINITE, TRUST
from jepa_lightning.data.dense import DenseSource, Samples
from jepa_lightning.data.dense_folders import PairFolder as PairFolder  # its subclasses are found by their names
from jepa_lightning.data.dense_labels import EmbeddedClips, EmbeddedScenes
from jepa_lightning.evaluation.provenance import commit, hardware, software
from jepa_lightning.evaluation.report import Report, written_now
from jepa_lightning.evaluation.results import merged
from jepa_lightning.models import Encoder
from jepa_lightning.models.dense_tokens import frame_tokens, pixel_tokens
from jepa_lightning.preprocessing import Preprocessing, normalize
from jepa_lightning.weights import Branch, Hints, Weights, trusting

TASKS: dict[str, Callable[[Setup], Outcome]] = {
    "segmentation": dense_tasks.segmentation,
    "depth": dense_tasks.depth,
    "correspondence": dense_tasks.correspondence,
    "propagation": dense_tasks.propagation,
}
FRAMES = 8
"""Frames of a clip for an encoder of images."""


@dataclass
class Dense:
    """Options of the evaluation of dense features.

    Args:
        ckpt_path: A checkpoint of any format, or several, one for each seed; last.ckpt finds the newest.
        split: Which split is reported: ``val`` or ``test``. Nothing is chosen on either.
        branch: Which of the encoders: ``target`` (EMA, as the papers) or ``context``.
        overrides: Sizes of the encoder that the checkpoint does not say: num_heads, img_size, num_frames.
        layer: The block whose tokens are read, from 0; null for the encoder's output.
        img_size: Side of the inputs in pixels; null for what the encoder was built for.
        label_size: Side of the labels in pixels at which predictions are scored; null for their own.
        num_frames: Frames of a clip; null for what the encoder was built for, 8 for an encoder of images.
        baselines: Also evaluate the encoder as it was before training, and raw pixels.
        steps: Steps in which a linear head learns.
        batch_size: Samples of a step; null for 16 images or 4 clips.
        lr: Learning rate of a linear head; null for DINOv3's, 1e-3 for classes and 3e-4 for depth, and for ten times
            that in less than 10,000 steps (DINOv3 has 40,000).
        k: Neighbours; null for 30 in segmentation and 5 in propagation.
        alpha: Of PCK: a point is found within that fraction of the longer side of the picture.
        max_samples: At most that many samples of each split; null for all.
        seed: Of the heads and their batches.
        device: Where to compute; null for the accelerator if there is one.
        out: Folder of the report; null for one in the folder of the run.
    """

    ckpt_path: list[str]
    split: Literal["val", "test"] = "val"
    branch: Branch = "target"
    overrides: Hints | None = None
    layer: int | None = None
    img_size: int | None = None
    label_size: int | None = None
    num_frames: int | None = None
    baselines: bool = True
    steps: int = 500
    batch_size: int | None = None
    lr: float | None = None
    k: int | None = None
    alpha: float = 0.1
    max_samples: int | None = None
    seed: int = 0
    device: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        for name in ("img_size", "label_size", "num_frames", "steps", "batch_size", "k", "max_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if not self.alpha > 0 or (self.lr is not None and not self.lr > 0):
            raise ValueError(f"--alpha and --lr must be above 0, got {self.alpha:g} and {self.lr}")


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print the table, write the report.

    Args:
        arguments: Those after `jepa dense`: the task, then options.

    Raises:
        FileNotFoundError: No such checkpoint or data.
        ValueError: If there is no such task, or the data have no labels for it.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        _parser().parse_args([*(arguments[:1] or [next(iter(TASKS))]), "--help"])
    names = option_values(arguments, "--ckpt_path") or ["last.ckpt"]
    parsed = _parser().parse_args(list(arguments))
    paths = [find_checkpoint(name, wanted=has_encoder) for name in names]
    with trusting(*parsed.trust, allow_non_finite=parsed.allow_non_finite):
        opened = [weights.open(path) for path in paths]
        parsed.ckpt_path = paths
        made = _parser().instantiate_classes(parsed)
        chosen = Dense(**{name: made[name] for name in Dense.__dataclass_fields__})
        text = yaml.safe_dump(yaml.safe_load(_parser().dump(parsed, skip_none=False)), sort_keys=False)
        report = evaluate(made.task, chosen, opened, made.data)._replace(config=text)
    run = Path(paths[0])
    run = run.parent.parent if run.parent.name == "checkpoints" else Path("runs")
    folder = run / "dense" / f"{Path(paths[0]).stem}_{chosen.split}"
    report.publish(Path(chosen.out).expanduser() if chosen.out else folder, made.task)


def evaluate(task: str, chosen: Dense, opened: Sequence[Weights], source: DenseSource | None = None) -> Report:
    """One task on one or several encoders.

    Args:
        task: A key of TASKS.
        chosen: The options.
        opened: The checkpoints.
        source: The data; None for the embedded scenes or, of propagation and of points that move, the embedded clips.
    """
    begun = time.monotonic()
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    readers, first = _readers(chosen, opened, device)
    moving = task == "propagation" or (task == "correspondence" and first.num_frames > 1)
    source = source or (EmbeddedClips() if moving else EmbeddedScenes())
    source.prepare()
    frames = chosen.num_frames or (first.num_frames if first.num_frames > 1 else FRAMES)
    size = _size(chosen, first)
    train = Samples(source, "train", frames, chosen.max_samples) if task in ("segmentation", "depth") else None
    setup = Setup(
        source, train, Samples(source, chosen.split, frames, chosen.max_samples), readers, size,
        None if chosen.label_size is None else (chosen.label_size, chosen.label_size),
        chosen.steps, chosen.batch_size or (4 if source.clips else 16), chosen.lr, chosen.k, chosen.alpha, chosen.seed,
        device,
    )  # fmt: skip
    found = TASKS[task](setup)
    notes = [line for part in (setup.train, setup.report) if part is not None and (line := part.note())]
    sentences = [
        f"Inputs: whole pictures at {size[0]}x{size[1]} pixels, {_clips(source, frames)}"
        f"tokens of the {chosen.branch} encoder on a grid of {readers[-1].grid[0]}x{readers[-1].grid[1]}, "
        f"{'its output' if chosen.layer is None else f'block {chosen.layer}'}.",
        *found.sentences,
        f"Reported: the {chosen.split} split; nothing is chosen on it.",
        "Random initialisation: the same encoder before training. Raw pixels: those of each patch, averaged to 4 x 4.",
    ]
    about = {
        "time": f"{time.monotonic() - begun:.0f} s", "hardware": hardware(device),
        "commit": commit(), "software": software(), "written": written_now(),
    }  # fmt: skip
    return Report(
        f"Dense evaluation, {task}, of {', '.join(chosen.ckpt_path)}", merged(found.results), sentences, about,
        notes=notes, measure=found.measure, details=merged(found.details), pictures={task: found.picture},
    )  # fmt: skip


def _readers(chosen: Dense, opened: Sequence[Weights], device: torch.device) -> tuple[list[Reader], Encoder]:
    """What makes tokens: raw pixels, then each encoder before and after its training."""
    readers: list[Reader] = []
    first: Encoder | None = None
    for found in opened:
        networks = found.networks(chosen.branch, hints=chosen.overrides)
        encoder, pixels = networks.encoder, networks.preprocessing
        size = _size(chosen, encoder)
        side = encoder.grid_of(torch.empty(1, len(pixels.mean), *size))[1:]
        if first is None:
            first = encoder
            if chosen.baselines:
                readers.append(Reader("raw pixels", side, _pixels(side, device)))
        kinds = {"random initialisation": found.untrained(encoder)} if chosen.baselines else {}
        for name, network in {**kinds, "trained": encoder}.items():
            readers.append(Reader(name, side, _encoding(network.to(device).eval(), pixels, chosen.layer)))
    assert first is not None
    return readers, first


def _encoding(encoder: Encoder, pixels: Preprocessing, layer: int | None) -> Callable[[Tensor], Tensor]:
    return lambda frames: frame_tokens(encoder, normalize(frames, pixels.mean, pixels.std, axis=2), layer)


def _pixels(grid: tuple[int, int], device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda frames: pixel_tokens(frames.to(device).float() / 255 - 0.5, grid)


def _size(chosen: Dense, encoder: Encoder) -> tuple[int, int]:
    return (chosen.img_size, chosen.img_size) if chosen.img_size else encoder.img_size


def _clips(source: DenseSource, frames: int) -> str:
    return f"clips of {frames} frames, " if source.clips else ""


def _parser() -> JepaParser:
    parser = JepaParser(prog="jepa dense", description=__doc__)
    parser.add_argument("task", choices=list(TASKS), help="What is read from the tokens.")
    parser.add_argument("--ckpt_path", type=str, nargs="+", default=["last.ckpt"], help="One or several checkpoints.")
    parser.add_class_arguments(Dense, skip={"ckpt_path"})
    parser.add_subclass_arguments(
        DenseSource, "data", required=False, help="LabelFolder, DepthFolder, DAVIS; EmbeddedScenes or EmbeddedClips."
    )
    parser.add_argument("--trust", action="append", default=[], help=f"Name of a {TRUST}.")
    parser.add_argument("--allow_non_finite", action="store_true", help=f"{NON_FINITE.capitalize()}.")
    return parser
