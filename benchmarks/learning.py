"""What recipes learn in equal time: probes of frozen features against seconds of training, for several seeds.

Each learner is a script of `learners/`, run alone, one after the other, by a Python that has what it needs,
on the same images: the training split of a data set, at one size, as uint8. It is first timed for a few steps and then
trains for as many steps as fit the seconds that all have; schedules (warm-up, cosine, EMA) end with them. On the way it
writes average-pooled features of clean images of the training and of the reported split, which takes no time off the
budget: of the last block, and of the last four side by side (I-JEPA, appendix A.2). All classifiers are ours, the same
for all, and are fitted here: exact k-NN and logistic regression of `jepa evaluate`, whose k, temperature and weight
decay are chosen on a tenth of the training split.

    python benchmarks/learning.py --data scenes --seconds 240 --seeds 0 1 2 --peers PYTHON

`--variants` names a YAML file, `name: [options of jepa fit]`: each is one more learner, our recipe with these options
(`ablation.yaml` takes back its departures from the paper, one at a time). `--steps` gives all as many steps in place of
as many seconds: variants of one recipe see as many images then, whatever else the machine does.

All are on one GPU where there is one, else on the CPU (`--device`); the classifiers are on the CPU.

`--peers` is the Python of an environment that has lightly and stable-pretraining (and lightning, torchvision) beside
torch; without it only what needs this package alone is run. Draws learning.png, writes learning.json and learning.md.
Nothing may be chosen by `--split test`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from tqdm import tqdm

from jepa_lightning.commands.configs import find_config
from jepa_lightning.data import DigitScenes, Folder, Torchvision
from jepa_lightning.data.sources import Images, ImageSource
from jepa_lightning.data.transforms import CleanTransform
from jepa_lightning.evaluation import logged
from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.intervals import student
from jepa_lightning.evaluation.protocols import Protocols, Splits, split_features
from jepa_lightning.evaluation.provenance import commit, hardware

LEARNERS = Path(__file__).parent / "learners"
PEERS = ("lightly_ijepa", "lightly_simclr", "stable_pretraining_ijepa")
OURS = ("ours", "masked_pixels", "supervised")
TITLES = {
    "masked_pixels": "pixels in place of features",
    "lightly_ijepa": "I-JEPA (lightly)",
    "lightly_simclr": "SimCLR (lightly)",
    "stable_pretraining_ijepa": "I-JEPA (stable-pretraining)",
}
PROTOCOLS = Protocols(
    k=(5, 20, 100), temperature=(0.07, float("inf")), weight_decay=(1e-4, 1e-3, 1e-2, 1e-1), shots=(), fractions=()
)


@dataclass
class Data:
    """Images that learners see.

    Attributes:
        source: Where they come from.
        size: Side in pixels.
        config: Our recipe for them.
        options: How `jepa fit` is told of them.
    """

    source: ImageSource
    size: int
    config: str
    options: list[str]


class Learner(NamedTuple):
    """Something that learns.

    Attributes:
        name: What it is called in table and plot.
        script: Its script in `learners/`.
        python: The Python that runs it.
        options: Of `jepa fit`, for `ours`.
    """

    name: str
    script: str
    python: str
    options: tuple[str, ...]


def data_of(name: str, root: str, config: str | None, size: int | None) -> Data:
    """The embedded scenes, Fashion-MNIST, or a folder of images."""
    if name == "scenes":
        return Data(DigitScenes(), size or 48, config or "ijepa.yaml", [])
    if name == "fashion":
        options = [f"--data.source.init_args.root={root}"]
        return Data(Torchvision("FashionMNIST", root), size or 28, config or "ijepa_fashion_mnist.yaml", options)
    if config is None or size is None:
        raise SystemExit(
            f"--data {name} is a folder: say also --config and --size (the img_size of the config's encoder)"
        )
    return Data(Folder(name), size, config, [f"--data.root={name}"])


def write_images(data: Data, split: str, path: Path) -> None:
    """All that learners are told: images (N, H, W, 3) and labels of the training and the reported split."""
    arrays: dict[str, Any] = {}
    data.source.prepare()
    clean = CleanTransform((data.size, data.size))
    for name, part in (("train", "train"), ("report", split)):
        images: Images = data.source.split(part)  # type: ignore[assignment,arg-type]
        rows = [clean_pixels(images, i, data.size, clean) for i in tqdm(range(len(images)), desc=f"reading {part}")]
        arrays[f"{name}_x"], arrays[f"{name}_y"] = np.stack(rows), np.array(images.labels)
    np.savez(path, **arrays)


def clean_pixels(images: Images, index: int, size: int, clean: CleanTransform) -> np.ndarray:
    """One image (H, W, 3); as it is, if it has the size."""
    image = images.image(index)
    return np.asarray(image) if image.size == (size, size) else clean(image).permute(1, 2, 0).numpy()


def shape(config: str) -> dict[str, int]:
    """Sizes of the networks of our recipe, which peers' have too."""
    model = yaml.safe_load(Path(find_config(config)).read_text())
    encoder, predictor = (model["model"]["init_args"][name]["init_args"] for name in ("encoder", "predictor"))
    sizes = {name: encoder[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    sizes |= {f"predictor_{name}": predictor[name] for name in ("embed_dim", "depth")}
    return {**sizes, "batch_size": model["data"]["init_args"]["batch_size"]}


def run(learner: Learner, arguments: list[str], threads: int, title: str, seconds: float | None) -> dict[str, Any]:
    """Run a learner, with a bar of the seconds that it takes, if they are known; what it prints in its last line.

    Raises:
        SystemExit: If it fails; with what it said.
    """
    command = [learner.python, str(LEARNERS / f"{learner.script}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "JEPA_TRACEBACK": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        bar = tqdm(total=seconds and round(seconds), desc=title, unit="s", leave=False, disable=None)
        with bar, subprocess.Popen(command, env=environment, stdout=out, stderr=err) as process:
            while process.poll() is None:
                time.sleep(1)
                bar.update(bar.total is None or bar.n < bar.total)
        out.seek(0)
        err.seek(0)
        said, complained = out.read(), err.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}\n{complained[-4000:]}")
    return json.loads(said.strip().splitlines()[-1])


def learners_of(options: argparse.Namespace) -> list[Learner]:
    """Those that are trained."""
    variants = yaml.safe_load(options.variants.read_text()) if options.variants else {}
    scripts = [name for name in options.learners if name != "pixels"]
    found = [Learner(name, name, options.peers if name in PEERS else sys.executable, ()) for name in scripts]
    return found + [Learner(name, "ours", sys.executable, tuple(given)) for name, given in variants.items()]


def curve(learner: Learner, data: Data, seed: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train for the seconds that all have, and score what was written on the way."""
    folder = options.out / options.data.replace("/", "_") / learner.name.replace(" ", "_") / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    common = [f"--images={options.images}", f"--out={folder}", f"--seed={seed}", f"--config={data.config}"]
    common += [f"--shape={json.dumps(shape(data.config))}", f"--points={options.points}"]
    common += [f"--device={options.device}"]
    common += [f"--option={option}" for option in (*data.options, *learner.options)]
    who = f"{learner.name}, seed {seed}"
    steps = options.steps
    if steps is None:
        given = [*common, f"--steps={options.timed_steps}", "--timing"]
        timed = run(learner, given, options.threads, f"{who}: timed for {options.timed_steps} steps", 10)
        steps = max(options.timed_steps, int(options.seconds / timed["seconds_per_step"]))
    title = f"{who}: {steps:,} steps and {options.points + 1} times features"
    expected = options.seconds if options.steps is None else None
    told = run(learner, [*common, f"--steps={steps}"], options.threads, title, expected)
    for point in told["points"]:
        scores = score(np.load(folder / f"{point['step']}.npz"), options.images, shape(data.config)["embed_dim"])
        yield {"learner": learner.name, "seed": seed, **told["about"], **point, **scores}


def score(features: Any, images: Path, width: int | None = None) -> dict[str, float]:
    """Top-1 of both classifiers, in per cent, and RankMe; `width` numbers are of the last block, the rest of others."""
    labels = np.load(images)
    train, report = (
        Features(torch.from_numpy(features[name]), torch.from_numpy(labels[f"{name}_y"]).long())
        for name in ("train", "report")
    )
    every = split_features(train, report)
    splits = every if width is None else Splits(*(Features(part.x[:, -width:], part.y) for part in every[:4]))
    found = logged(PROTOCOLS.results(splits, "features"))
    scores = {"knn": 100 * found["knn_top1"], "linear": 100 * found["linear_top1"], "rankme": found["rankme"]}
    if width is not None:
        blocks = logged(replace(PROTOCOLS, k=()).results(every, "features of the last blocks"))
        scores["linear_blocks"] = 100 * blocks["linear_top1"]
    return scores


def pixels(data: Data, images: Path) -> dict[str, Any]:
    """The classifiers on the pixels themselves, of images of 32 x 32 where they are larger."""
    arrays, flat = np.load(images), {}
    for name in ("train", "report"):
        x = torch.from_numpy(arrays[f"{name}_x"]).permute(0, 3, 1, 2).float() / 255
        x = x[:, :1] if bool((x == x[:, :1]).all()) else x  # grey images say everything three times
        small = x if data.size <= 32 else F.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
        flat[name] = small.flatten(1).numpy()
    return {"learner": "raw pixels", "seed": 0, "step": 0, "seconds": 0.0, "images": 0, **score(flat, images)}


def by_seed(points: list[dict[str, Any]], learner: str) -> list[list[dict[str, Any]]]:
    """The points of a learner in the order of training, for each seed; in equal time steps differ between seeds."""
    own = [point for point in points if point["learner"] == learner]
    seeds = dict.fromkeys(point["seed"] for point in own)
    return [sorted((p for p in own if p["seed"] == seed), key=lambda p: p["step"]) for seed in seeds]


def table(points: list[dict[str, Any]]) -> str:
    """The last point of each learner and the first of ours, mean and 95 % interval over seeds."""
    lines = [
        "| learner | parameters | images | seconds | k-NN % | linear % | linear, 4 blocks % | RankMe |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for learner in dict.fromkeys(point["learner"] for point in points):
        seeds = by_seed(points, learner)
        furthest = max(len(line) for line in seeds)
        rows = {"": [line[-1] for line in seeds if len(line) == furthest]}  # not those still on the way
        if learner == "ours":
            rows = {", random initialisation": [line[0] for line in seeds], **rows}
        for what, row in rows.items():
            mean = {name: np.mean([p[name] for p in row]) for name in ("images", "seconds", "rankme")}
            values = [spread([p[name] for p in row if name in p]) for name in ("knn", "linear", "linear_blocks")]
            numbers = [f"{mean['images']:,.0f}", f"{mean['seconds']:.0f}", *values, f"{mean['rankme']:.1f}"]
            parameters = f"{row[0]['parameters']:,}" if "parameters" in row[0] else ""
            lines.append(f"| {TITLES.get(learner, learner)}{what} | {parameters} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean, and half of Student's 95 % interval if there are several."""
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    found = student(values)
    return f"{found.mean:.1f} ± {found.high - found.mean:.1f}"


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Probes against seconds of training: mean over seeds, and Student's 95 % interval if there are several."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    learners = list(dict.fromkeys(point["learner"] for point in points))
    titles = {"knn": "k-NN", "linear": "logistic regression", "linear_blocks": "logistic regression, four blocks"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for number, learner in enumerate(learners):
            seeds = by_seed(points, learner)
            if learner == "raw pixels":
                axis.axhline(seeds[0][0][name.removesuffix("_blocks")], color="0.5", linestyle=":", label=learner)
                continue
            moments = list(zip(*seeds, strict=False))  # a run that is still going on has fewer points
            seconds = [np.mean([p["seconds"] for p in moment]) for moment in moments]
            values = [[p[name] for p in moment] for moment in moments]
            label, color = TITLES.get(learner, learner), f"C{number}"
            axis.plot(seconds, [np.mean(v) for v in values], color=color, marker="o", markersize=3, label=label)
            if len(seeds) > 1:
                spans = [(max(0.0, found.low), min(100.0, found.high)) for found in map(student, values)]
                axis.fill_between(seconds, *zip(*spans, strict=True), color=color, alpha=0.15)
        axis.set(xlabel="seconds of training", title=f"{title}, top-1 (%)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(learners)))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Run, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes", help="scenes, fashion, or a folder of images")
    parser.add_argument("--config", help="our recipe; a shipped name or a file")
    parser.add_argument("--size", type=int, help="side of the images in pixels")
    parser.add_argument("--root", default="~/data", help="where torchvision's data sets are")
    parser.add_argument(
        "--split", default="val", choices=("val", "test"), help="what is reported; choose nothing by test"
    )
    known = ("pixels", *OURS, *PEERS)
    parser.add_argument(
        "--learners", nargs="+", choices=known, metavar="NAME", help=f"of {', '.join(known)}; all that can run"
    )
    parser.add_argument("--variants", type=Path, help="YAML: names and options of `jepa fit` of variants of our recipe")
    parser.add_argument("--peers", help="a Python with lightly and stable-pretraining")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, for each learner and seed")
    parser.add_argument(
        "--steps", type=int, help="in place of --seconds: of all alike, for variants of one recipe on a busy machine"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="of all"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--points", type=int, default=4, help="times that is probed on the way, beside the start")
    parser.add_argument("--timed_steps", type=int, default=30, help="steps by which a learner is timed")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    options = parser.parse_args()
    if find_spec("matplotlib") is None:
        parser.error("the plot needs matplotlib: install it, or this package with its extra `test`")
    options.learners = options.learners or ["pixels", *OURS, *(PEERS if options.peers else ())]
    if (peers := [name for name in options.learners if name in PEERS]) and not options.peers:
        parser.error(f"{', '.join(peers)}: say with --peers which Python has their libraries")
    data = data_of(options.data, options.root, options.config, options.size)
    options.out.mkdir(parents=True, exist_ok=True)
    options.images = (options.out / f"{options.data.replace('/', '_')}_{data.size}_{options.split}.npz").resolve()
    if not options.images.exists():
        write_images(data, options.split, options.images)
    points = [pixels(data, options.images)] if "pixels" in options.learners else []
    for seed in options.seeds:
        for learner in learners_of(options):
            for point in curve(learner, data, seed, options):
                points.append(point)
                print({k: round(v, 1) if isinstance(v, float) else v for k, v in point.items()}, flush=True)
                keep(points, options)
    print(f"\n{table(points)}\n\nwritten to {options.out}")


def keep(points: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write numbers, table and plot of what is known by now: hours of training are not lost with the last of them."""
    about = {
        "command": " ".join(sys.argv),
        "commit": commit(),
        "hardware": hardware(torch.device(options.device)),
        "split": options.split,
    }
    (options.out / "learning.json").write_text(json.dumps({"about": about, "points": points}, indent=1) + "\n")
    (options.out / "learning.md").write_text(table(points) + "\n")
    plot(points, options.out / "learning.png")


if __name__ == "__main__":
    main()
