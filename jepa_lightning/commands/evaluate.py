"""`jepa evaluate`: all readouts of frozen features, of any checkpoint, beside its untrained encoder and raw pixels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.commands.configs import find_config
from jepa_lightning.commands.find import find_checkpoint, has_encoder, option_values
from jepa_lightning.commands.messages import JepaParser
from jepa_lightning.commands.options import NON_FINITE, TRUST
from jepa_lightning.commands.stored import data_section
from jepa_lightning.data import JEPADataModule
from jepa_lightning.evaluation.features import Features, features_of
from jepa_lightning.evaluation.protocols import HELD_BACK, Protocols, Splits, split_features
from jepa_lightning.evaluation.provenance import commit, hardware, software
from jepa_lightning.evaluation.report import Report, written_now
from jepa_lightning.evaluation.results import merged
from jepa_lightning.evaluation.table import SPLITS
from jepa_lightning.models import Encoder
from jepa_lightning.models.average_pool import AveragePool, pooled, raw_pixels
from jepa_lightning.weights import Branch, Hints, Weights, trusting

Encode = Callable[[Tensor], Tensor]


@dataclass
class Evaluation:
    """Options of the evaluation.

    Args:
        ckpt_path: A checkpoint of any format, or several, one for each seed; last.ckpt finds the newest.
        split: Which split is reported: ``val``, or ``test``, on which nothing was chosen.
        branch: Which of the encoders: ``target`` (EMA, as the papers) or ``context``.
        overrides: Sizes of the encoder that the checkpoint does not say: num_heads, img_size, num_frames.
        blocks: Number of last blocks whose average-pooled tokens are concatenated (I-JEPA: 1 or 4).
        baselines: Also evaluate the encoder as it was before training, and raw pixels.
        max_train: At most that many training samples; null for all.
        device: Where to compute; null for the accelerator if there is one.
        precision: Of the encoder; null for bf16 where the accelerator has it, else 32.
        out: Folder of the report; null for one in the folder of the run.
    """

    ckpt_path: list[str]
    split: Literal["val", "test"] = "val"
    branch: Branch = "target"
    overrides: Hints | None = None
    blocks: int = 1
    baselines: bool = True
    max_train: int | None = None
    device: str | None = None
    precision: Literal["32", "bf16"] | None = None
    out: str | None = None


def main(arguments: Sequence[str]) -> None:
    """Evaluate, print the table, write the report.

    Args:
        arguments: Those after `jepa evaluate`.

    Raises:
        FileNotFoundError: No such checkpoint, configuration or data.
        ValueError: If there is nothing to evaluate on, or no label.
    """
    if {"-h", "--help"} & set(arguments):  # there need not be a checkpoint yet
        _parser(None).parse_args(list(arguments))
    names = option_values(arguments, "--ckpt_path") or ["last.ckpt"]
    paths = [find_checkpoint(name, wanted=has_encoder) for name in names]
    with trusting(*option_values(arguments, "--trust"), allow_non_finite="--allow_non_finite" in arguments):
        opened = [weights.open(path) for path in paths]
        parser = _parser(data_section(_named(arguments), opened[0], arguments))
        parsed = parser.parse_args(list(arguments))
        parsed.ckpt_path = paths
        made = parser.instantiate_classes(parsed)
        chosen = Evaluation(**{name: made[name] for name in Evaluation.__dataclass_fields__})
        protocols = Protocols(**{name: made[name] for name in Protocols.__dataclass_fields__})
        text = yaml.safe_dump(yaml.safe_load(parser.dump(parsed, skip_none=False)), sort_keys=False)
        report = evaluate(chosen, opened, made.data, protocols)._replace(config=text)
    report.publish(Path(chosen.out).expanduser() if chosen.out else _folder(Path(paths[0]), chosen.split))


def evaluate(chosen: Evaluation, opened: Sequence[Weights], data: JEPADataModule, protocols: Protocols) -> Report:
    """All protocols on the features of one or several encoders.

    Args:
        chosen: What is evaluated.
        opened: The checkpoints.
        data: The data.
        protocols: The readouts.

    Raises:
        FileNotFoundError: If the data lack the split that is to be reported.
        ValueError: If the data have no labels of two classes.
    """
    begun, results = time.monotonic(), []
    reader = Reader(chosen, data)
    for number, (path, found) in enumerate(zip(chosen.ckpt_path, opened, strict=True)):
        encoder = found.networks(chosen.branch, hints=chosen.overrides).encoder
        reader.attach(encoder)
        kinds: dict[str, Encoder | None] = {"trained": encoder}
        if chosen.baselines:
            kinds = {"random initialisation": found.untrained(encoder), **kinds}
            if number == 0:
                kinds = {"raw pixels": None, **kinds}
        for name, network in kinds.items():
            title = name if len(chosen.ckpt_path) == 1 else f"{name} ({Path(path).name}, {number + 1})"
            splits = reader.splits(_encoding(network, chosen.blocks), title)
            results += protocols.results(splits, name, data.label_names)
    seconds = f"{time.monotonic() - begun:.0f} s, of which {reader.seconds:.0f} s for the features"
    about = {"time": seconds, "hardware": hardware(reader.device), **_origin(opened)}
    sentences = _sentences(chosen, protocols, reader.chosen_on_val)
    return Report(f"Evaluation of {', '.join(chosen.ckpt_path)}", merged(results), sentences, about)


class Reader:
    """Makes features of the splits.

    Args:
        chosen: What is evaluated.
        data: The data.
    """

    def __init__(self, chosen: Evaluation, data: JEPADataModule) -> None:
        self.chosen, self.data, self.seconds = chosen, data, 0.0
        self.device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.chosen_on_val = chosen.split == "test"
        self._ready = False

    def attach(self, encoder: Encoder) -> None:
        """Set up the data for the input size and preprocessing of an encoder."""
        self.data.attach(encoder)
        if not self._ready:
            self.data.prepare_data()
            self.data.setup("validate")
            self._check_labels()
            self._ready = True

    def _check_labels(self) -> None:
        classes: Any = self.data.classes if self.data.label_names else [self.data.classes]
        if min(len(of_one) for of_one in classes) < 2:
            raise ValueError(
                "an evaluation needs labels of two classes or more: sort the files into a folder for each class, or "
                "give a list of paths and labels"
            )

    def splits(self, encode: Encode, title: str) -> Splits:
        """Features of one encoder on the training split, on held-out samples and on the reported split.

        Raises:
            FileNotFoundError: If there is no such split.
        """
        begun = time.monotonic()
        train = self._features(encode, "train", title)
        report = self._features(encode, self.chosen.split, title)
        compared = self._features(encode, "val", title) if self.chosen.split == "test" else None
        if train is None or report is None:
            self.data.dataset(self.chosen.split, augment=False)  # says better what is missing
            raise FileNotFoundError(f"the data have no sample of the {self.chosen.split} split to report on: give some")
        self.chosen_on_val = compared is not None
        self.seconds += time.monotonic() - begun
        splits = split_features(train, report, compared)
        return splits._replace(data=self.data.title, name=self.chosen.split)

    def _features(self, encode: Encode, split: str, title: str) -> Features | None:
        most = self.chosen.max_train if split == "train" else None
        with self._precision():
            found = features_of(encode, self.data, split, self.device, title, most)
        return None if found is None else Features(found.x.to(self.device), found.y.to(self.device))

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        good = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if self.chosen.precision == "bf16" or (self.chosen.precision is None and good):
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()


def _encoding(encoder: Encoder | None, blocks: int) -> Encode:
    """(B, ...) -> (B, 1, features): of an encoder, of raw pixels if there is none."""
    if encoder is None:
        return lambda inputs: raw_pixels(inputs).unsqueeze(1)
    kind = [AveragePool(blocks)]
    return lambda inputs: pooled(encoder.to(inputs.device), inputs, kind)[0].unsqueeze(1)


# ---------------------------------------------------------------------- options and report


def _named(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The configuration of ``--config``."""
    given = option_values(arguments, "--config")
    return dict(yaml.safe_load(Path(find_config(given[-1])).read_text(encoding="utf-8"))) if given else None


def _parser(section: dict[str, Any] | None) -> JepaParser:
    parser = JepaParser(prog="jepa evaluate", description=__doc__)
    parser.add_argument("--config", type=str | None, default=None, help="Take the data section of this configuration.")
    parser.add_argument("--ckpt_path", type=str, nargs="+", default=["last.ckpt"], help=_help("ckpt_path"))
    parser.add_class_arguments(Evaluation, skip={"ckpt_path"})
    parser.add_class_arguments(Protocols)
    parser.add_subclass_arguments(JEPADataModule, "data", required=False)
    parser.add_argument("--trust", action="append", default=[], help=f"Name of a {TRUST}.")
    parser.add_argument("--allow_non_finite", action="store_true", help=f"{NON_FINITE.capitalize()}.")
    if section is not None:
        named = JepaParser(prog="jepa evaluate")  # defaults need the full names of classes
        named.add_subclass_arguments(JEPADataModule, "data")
        parser.set_defaults({"data": named.parse_object({"data": section}).data.as_dict()})
    return parser


def _help(name: str) -> str:
    lines = (Evaluation.__doc__ or "").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.strip().startswith(f"{name}:"))


def _folder(path: Path, split: str) -> Path:
    """`evaluation/last_val` in the folder of the run; below `runs` for weights of others."""
    run = path.parent.parent if path.parent.name == "checkpoints" else Path("runs")
    return run / "evaluation" / f"{path.stem}_{split}"


def _sentences(chosen: Evaluation, protocols: Protocols, chosen_on_val: bool) -> list[str]:
    place = "the validation split" if chosen_on_val else f"{100 * HELD_BACK:g} % of the training split, held back"
    again = "" if chosen_on_val else "; what is chosen then learns from all of the training split"
    samples = "all samples" if chosen.max_train is None else f"at most {chosen.max_train:,} samples"
    return [
        f"Features: tokens of the {chosen.branch} encoder, {AveragePool(chosen.blocks)}, averaged; no augmentation; "
        f"{samples} of the training split.",
        f"Reported: the {SPLITS[chosen.split]}, on which nothing was chosen.",
        f"Of several values of a setting one was chosen on: {place}{again}.",
        *protocols.sentences(),
        "Random initialisation: the same encoder before training. Raw pixels: averaged to 16 x 16, of clips to 4 "
        "frames of 8 x 8.",
    ]


def _origin(opened: Sequence[Weights]) -> dict[str, str]:
    done = [found.progress for found in opened]
    steps = [f"{each.step} (epoch {(each.epoch or 0) + 1})" for each in done if each.step is not None]
    found = {"steps": ", ".join(steps)} if steps else {}
    return {**found, "commit": commit(), "software": software(), "written": written_now()}
