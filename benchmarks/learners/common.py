"""What the learners have in common: images in memory, a loop with warm-up and cosine, features on the way.

On a GPU the images lie in its memory, crops are made there, and steps run in bf16 as `jepa fit` has them; features of
all are written in float32.

Imports nothing of jepa_lightning, so that it runs in the environments of peers.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""
BLOCKS = 4
"""How many of the last blocks are read, as in I-JEPA, appendix A.2."""


def arguments() -> argparse.Namespace:
    """What `learning.py` tells a learner."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--points", type=int, default=4, help="times that features are written, beside the start")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="ijepa.yaml")
    parser.add_argument("--shape", type=json.loads, required=True, help="sizes of the networks of our recipe, as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--timing", action="store_true", help="only say how long a step takes")
    return parser.parse_args()


def pictures(given: argparse.Namespace) -> Tensor:
    """Those of the training split, uint8 (N, H, W, 3), in the memory of the device."""
    return torch.from_numpy(np.load(given.images)["train_x"]).to(given.device)


def mixed(given: argparse.Namespace) -> torch.autocast:
    """bf16 on a GPU, float32 on a CPU: what `precision: null` of our recipes gives."""
    return torch.autocast(given.device, torch.bfloat16, enabled=given.device == "cuda")


def normalized(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) -> (N, 3, H, W) with the mean and deviation that networks are used to."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)


def marks(steps: int, points: int) -> list[int]:
    """The steps after which features are written, beside the start."""
    return sorted({0, *(round(steps * part / points) for part in range(1, points + 1))})


def by_blocks(network: nn.Module, run: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Features (B, 4 D) of `run`: the averaged tokens of each of the last four blocks, normed; the last at the end."""

    def encode(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda _, __, out: kept.append(out)) for block in network.blocks[-BLOCKS:]]
        try:
            run(x)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([network.norm(tokens).mean(dim=1) for tokens in kept], dim=1)

    return encode


@torch.no_grad()
def write_features(encode: Callable[[Tensor], Tensor], images: Path, path: Path, device: str | torch.device) -> None:
    """Features (N, D) of all clean images, of normalised (B, 3, H, W) on the device."""
    arrays = np.load(images)
    found = {}
    for name in ("train", "report"):
        parts = np.array_split(arrays[f"{name}_x"], max(1, len(arrays[f"{name}_x"]) // 250))
        found[name] = torch.cat(
            [encode(normalized(torch.from_numpy(part).to(device))).float().cpu() for part in parts]
        ).numpy()
    np.savez(path, **found)


def now(device: str | torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Training:
    """Counts the time of steps, and nothing else."""

    def __init__(
        self, given: argparse.Namespace, batch_size: int, encode: Callable[[Tensor], Tensor], about: dict[str, Any]
    ) -> None:
        self.given, self.batch_size, self.encode, self.about = given, batch_size, encode, about
        self.seconds, self.points = 0.0, []

    def steps(self, optimizer: torch.optim.Optimizer, lr: float) -> Iterator[float]:
        """One for each step: the share of the training that is over; sets the learning rate, writes features."""
        total = self.given.steps
        written = marks(total, self.given.points)
        self._write(0)
        begun = now(self.given.device)
        for step in range(total):
            if self.given.timing and step == total // 3:  # the first ones are slower
                begun = now(self.given.device)
            done = step / total
            rise = min(1.0, (step + 1) / max(1, WARMUP * total))
            fall = 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARMUP) / (1 - WARMUP)))
            for group in optimizer.param_groups:
                group["lr"] = lr * rise * fall
            yield done
            if step + 1 in written and not self.given.timing:
                self.seconds += now(self.given.device) - begun
                self._write(step + 1)
                begun = now(self.given.device)
        if self.given.timing:
            self.seconds = (now(self.given.device) - begun) / (total - total // 3)

    def _write(self, step: int) -> None:
        if not self.given.timing:
            write_features(self.encode, self.given.images, self.given.out / f"{step}.npz", self.given.device)
            self.points.append({"step": step, "seconds": self.seconds, "images": step * self.batch_size})

    def tell(self) -> None:
        """The last line, which `learning.py` reads."""
        print(json.dumps({"seconds_per_step": self.seconds, "about": self.about, "points": self.points}))


def batches(images: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Places of the images of one batch after the other, each epoch in a new order."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(images))
        yield from order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)


def crops(images: Tensor, scale: tuple[float, float], flip: bool = False) -> Tensor:
    """A random resized crop of each, uint8 (N, H, W, 3) -> normalised (N, 3, H, W), as one operation on the batch."""
    x = normalized(images)
    area = torch.empty(len(x)).uniform_(*scale)
    ratio = torch.exp(torch.empty(len(x)).uniform_(math.log(3 / 4), math.log(4 / 3)))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    place = torch.zeros(len(x), 2, 3)
    mirror = torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0) if flip else torch.ones(len(x))
    place[:, 0, 0], place[:, 0, 2] = width * mirror, (2 * torch.rand(len(x)) - 1) * (1 - width)
    place[:, 1, 1], place[:, 1, 2] = height, (2 * torch.rand(len(x)) - 1) * (1 - height)
    where = nn.functional.affine_grid(place.to(x.device), list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, where, align_corners=False, padding_mode="reflection")


def parameters(*networks: nn.Module) -> int:
    """Trained parameters."""
    return sum(p.numel() for network in networks for p in network.parameters() if p.requires_grad)
