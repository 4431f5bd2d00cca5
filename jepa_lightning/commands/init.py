"""`jepa init FOLDER`: look at your images, videos or episodes and write a configuration that fits."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import yaml

from jepa_lightning.commands.configs import shipped_configs
from jepa_lightning.commands.messages import JepaParser
from jepa_lightning.commands.survey import Kind, Machine, Survey, look, this_machine
from jepa_lightning.data import JEPADataModule
from jepa_lightning.loading import build
from jepa_lightning.weights.description import instantiate

FEW = 300
"""Below so many samples released weights are the better start."""
STEPS = {"images": 2000, "clips": 1200, "episodes": 2500}
"""Optimizer steps after which small networks have learned, by what they learn from (docs/small-data.md)."""
STEPS_ON_GPU = 20_000
RECIPES = {"images": "ijepa.yaml", "clips": "vjepa2.yaml", "episodes": "two_rooms.yaml"}
"""Shipped configurations whose values are taken where the folder or the machine asks for no others."""


class Sizes(NamedTuple):
    """What depends on the pictures and on the machine.

    Attributes:
        img_size: Side of the inputs in pixels.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the encoder.
        depth: Its blocks.
        num_heads: Its attention heads.
        batch_size: Samples in a batch.
    """

    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    batch_size: int


def main(args: Sequence[str]) -> None:
    """Look, measure, write.

    Args:
        args: The arguments after `jepa init`.

    Raises:
        FileNotFoundError: No such folder, or nothing to learn from in it.
        FileExistsError: If the configuration is there already.
    """
    parser = JepaParser(prog="jepa init", description=__doc__)
    parser.add_argument("folder", help="Images, videos or episodes; folders in it are classes, or train and val.")
    parser.add_argument("--out", type=Path, help="The file to write; the name of the folder with .yaml if not given.")
    parser.add_argument("--kind", choices=get_args(Kind), help="What is in it; seen by the endings if not given.")
    parser.add_argument("--steps", type=int, help="Optimizer steps; as many as such networks need if not given.")
    options = parser.parse_args(list(args))
    root = Path(options.folder).expanduser().resolve()
    out = options.out or Path(f"{root.name or 'data'}.yaml")
    if out.exists():
        raise FileExistsError(f"--out {out} exists: remove it, or give another name with --out")
    survey, machine = look(root, options.kind), this_machine()
    config = configuration(survey, machine, options.steps)
    cost = measured(config)
    total = cost.seconds * steps_of(config, survey)
    head = [*survey.lines(), f"written for {machine.line()}", *advice(survey)]
    head.append(
        f"{steps_of(config, survey):,} steps in {config['trainer']['max_epochs']} epochs, about {duration(total)} here "
        f"({cost.seconds:.2g} s a step, measured now), {cost.memory:.1f} GB"
    )
    out.write_text(text(config, survey, out, head), encoding="utf-8")
    print("\n".join(head))  # noqa: T201  # what was asked for
    print(f"\nwritten to {out}; train with\n  jepa fit --config {shlex.quote(str(out))}")  # noqa: T201


def sizes(survey: Survey, machine: Machine) -> Sizes:
    """Inputs no larger than the pictures; networks that train in minutes on a CPU, in hours on a GPU."""
    side = survey.side or 64
    if survey.kind == "clips":
        return Sizes(224, 16, 384, 12, 6, 16) if machine.gpu and side >= 160 else Sizes(64, 16, 96, 4, 3, 16)
    if machine.gpu and side >= 160:
        return Sizes(224, 16, 384, 12, 6, 256 if machine.gpu_memory > 30 else 64)
    patch = 4 if side < 40 else 8
    img_size = max(6, min(side // patch, 8)) * patch
    return Sizes(img_size, patch, 192 if machine.gpu else 96, 4, 3, 64)


def configuration(survey: Survey, machine: Machine, steps: int | None = None) -> dict[str, Any]:
    """The shipped recipe for such data with the sizes, length and data of this folder.

    Args:
        survey: What is in the folder.
        machine: What it is for.
        steps: Optimizer steps; None for as many as such networks need.

    Raises:
        ValueError: If there are fewer than 8 samples to train on.
    """
    if survey.training < 8:
        raise ValueError(f"{survey.root} has {survey.training} training {survey.kind}: at least 8 are needed")
    config: dict[str, Any] = yaml.safe_load(shipped_configs()[RECIPES[survey.kind]].read_text())
    data, model, chosen = config["data"]["init_args"], config["model"]["init_args"], sizes(survey, machine)
    if survey.kind == "episodes":
        data["source"] = {"class_path": "EpisodeFolder", "init_args": {"root": str(survey.root)}}
        batch = data["batch_size"] = min(data["batch_size"], survey.training)
    else:
        folder = "Folder" if survey.kind == "images" else "VideoFolder"
        data["source"] = {"class_path": folder, "init_args": {"root": str(survey.root), "holdout": survey.holdout}}
        batch = data["batch_size"] = min(chosen.batch_size, max(4, survey.training // 4))
        model["encoder"]["init_args"] |= chosen._asdict()
        model["encoder"]["init_args"].pop("batch_size")
        model["predictor"]["init_args"] |= {"embed_dim": chosen.embed_dim // 2, "depth": chosen.depth // 2}
    steps = steps or (STEPS_ON_GPU if machine.gpu and chosen.img_size == 224 else STEPS[survey.kind])
    epochs = max(1, math.ceil(steps / (survey.training // batch)))
    trainer = config["trainer"]
    trainer["max_epochs"] = epochs
    trainer["logger"]["init_args"]["name"] = survey.root.name or "data"
    model["lr"]["init_args"]["warmup_epochs"] = round(epochs / 10, 2)
    config["probe"] = {**config.get("probe", {}), "every_n_epochs": max(1, epochs // 4)}
    config["pictures"] = {"every_n_epochs": max(1, epochs // 4)}
    return config


def steps_of(config: dict[str, Any], survey: Survey) -> int:
    """Optimizer steps of a configuration."""
    return int(config["trainer"]["max_epochs"]) * (survey.training // int(config["data"]["init_args"]["batch_size"]))


def advice(survey: Survey) -> list[str]:
    """What else somebody with these data should know."""
    if survey.kind == "episodes" or survey.training >= FEW:
        return []
    name = "facebook/ijepa_vith14_1k" if survey.kind == "images" else "facebook/vjepa2-vitl-fpc64-256"
    folder = shlex.quote(str(survey.root))
    return [
        f"so few {survey.kind} teach a new network little; released weights are the better start: "
        f"jepa evaluate --ckpt_path {name} --data.root {folder}"
    ]


class Cost(NamedTuple):
    """What one training step takes.

    Attributes:
        seconds: Time with reading and the update.
        memory: Memory in GB, of the GPU where there is one.
    """

    seconds: float
    memory: float


def measured(config: dict[str, Any], steps: int = 3) -> Cost:
    """Train for a few steps, on the first batches of the folder, and throw the result away."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = build(config["model"]).to(device)
    description = {**config["data"], "init_args": {**config["data"]["init_args"], "num_workers": 0}}
    data: JEPADataModule = instantiate("the configuration", JEPADataModule, description)
    data.attach(module.encoder)
    data.prepare_data()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.0)
    batches, times = iter(data.train_dataloader()), []
    for _ in range(steps):
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        batch = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
        module.losses(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return Cost(min(times), torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else _resident())


def _resident() -> float:
    """The most memory in GB that this process has used."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def duration(seconds: float) -> str:
    """``12 min``, ``3.5 h``."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


class ListsInLine(yaml.SafeDumper):
    """Writes ``[0.4, 0.6]`` in one line."""


ListsInLine.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))

COMMENTS = {
    "    encoder:": "The network that is trained and kept: larger learns more and takes longer",
    "        img_size:": "side of the inputs in pixels; the pictures are cropped and scaled to it",
    "        patch_size:": "side of a patch, which is one token; a multiple of it is img_size",
    "    predictor:": "Guesses the features of hidden patches; thrown away after the training",
    "    lr:": "Warm-up to the peak, then down; halve the peak if the alarm says that the encoder moves too fast",
    "    momentum:": "The target encoder follows the encoder this slowly",
    "    masks:": "What is hidden and has to be guessed",
    "    transform:": "Random crops, as fractions of the picture: smaller ones are harder and hide more of an object",
    "    source:": "Your data; holdout is the part that is never trained on",
    "    batch_size:": "less if memory is short",
    "  max_epochs:": "more is better until the probe no longer rises",
    "  precision:": "bf16 where the accelerator has it, else 32 bit",
    "probe:": "How good the features are, beside the untrained network",
    "pictures:": "Masks and features, in the run's folder and in TensorBoard",
}
"""What the lines of a configuration mean to somebody who sees the first one."""


def text(config: dict[str, Any], survey: Survey, out: Path, head: Sequence[str]) -> str:
    """The configuration as YAML, with a head and comments."""
    lines = [f"# {survey.root.name}: from the recipe {RECIPES[survey.kind]}, by `jepa init`.", "#"]
    lines += [f"#   jepa fit --config {shlex.quote(str(out))}", "#", *(f"# {line}" for line in head)]
    for line in yaml.dump(config, Dumper=ListsInLine, sort_keys=False, allow_unicode=True).splitlines():
        key = line[: line.index(":") + 1] if ":" in line else ""
        comment = COMMENTS.get(key)
        if comment and line.strip() == key.strip():  # a section: above it, else behind the value
            lines.append(f"{key[: len(key) - len(key.lstrip())]}# {comment}")
            comment = None
        lines.append(f"{line}  # {comment}" if comment else line)
    return "\n".join(lines) + "\n"
