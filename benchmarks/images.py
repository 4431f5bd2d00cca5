"""How many images a second one core reads, crops and collates: ours, the official pipeline, and torchvision's decoder.

The work is a folder of photographs as JPEG files, a random crop of 30 to 100 % of the area resized to 224 pixels, and
batches of 32. Each row is a DataLoader without workers on one thread, as a worker is. What is measured is processor
time, so that others on the machine count less; the rows take turns, batch by batch.

- ours: the training loader of ImageDataModule, with multi-block masks, seeded draws and the time-out of files.
- official: what the I-JEPA paper describes, from torchvision's parts: ImageFolder (Pillow), RandomResizedCrop,
  ToTensor, Normalize; and multi-block masks drawn as the official code draws them (our compat mode).
- torchvision: its JPEG decoder and RandomResizedCrop on uint8 tensors; no masks, nothing normalised.

    python benchmarks/images.py [--rounds 30] [--size 500 400]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2
from tqdm import trange

from jepa_lightning.data import Folder, ImageDataModule
from jepa_lightning.masking import MaskCollator, MultiBlock
from jepa_lightning.preprocessing import IMAGENET_MEAN, IMAGENET_STD

SIDE, PATCH, BATCH, SCALE, FILES = 224, 16, 32, (0.3, 1.0), 256


def write_images(folder: Path, size: tuple[int, int], quality: int = 90) -> None:
    """Pieces of two photographs, in two classes."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(FILES):
        path = folder / "train" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph = photographs[number % 2]
        left, top = number % 16 * 6, number // 16 * 4
        piece = photograph.crop((left, top, left + 500, top + 360))
        piece.resize(size, Image.Resampling.BICUBIC).save(path, quality=quality)


class Decoded(Dataset[Any]):
    """Torchvision's decoder and crop, on bytes."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))
        self.crop = v2.RandomResizedCrop((SIDE, SIDE), scale=SCALE, antialias=True)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.crop(decode_jpeg(read_file(self.paths[index]), ImageReadMode.RGB)), 0


def rows(folder: Path) -> dict[str, DataLoader[Any]]:
    """What is compared."""
    data = ImageDataModule(
        Folder(str(folder)), masks=partial(MultiBlock, min_keep=10), batch_size=BATCH, num_workers=0, img_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    official = transforms.Compose([
        transforms.RandomResizedCrop(SIDE, scale=SCALE), transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])  # fmt: skip
    masks = MaskCollator(MultiBlock(SIDE // PATCH, min_keep=10, compat=True))
    options: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    return {
        "ours": data.train_dataloader(),
        "official pipeline": DataLoader(ImageFolder(folder / "train", official), collate_fn=masks, **options),
        "torchvision, no masks": DataLoader(Decoded(folder), **options),
    }


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def measure(loaders: dict[str, DataLoader[Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Processor seconds for each image, in each round after the first ones."""
    batches = {name: endless(loader) for name, loader in loaders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for step in trange(warm_up + rounds, desc="rounds", file=sys.stderr, leave=False, delay=2):
        for name, loader in batches.items():
            start = time.process_time()
            next(loader)
            if step >= warm_up:
                seconds[name].append((time.process_time() - start) / BATCH)
    return seconds


def report(measured: dict[str, list[float]]) -> str:
    """A Markdown table; ours is compared with each row, round by round."""
    lines = ["| pipeline | ms per image | 10-90 % | images/s per core | ours is faster by | 10-90 % |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, seconds in measured.items():
        low, *_, high = statistics.quantiles(seconds, n=10)
        ratios = [theirs / own for theirs, own in zip(seconds, measured["ours"], strict=True)]
        least, *_, most = statistics.quantiles(ratios, n=10)
        middle = statistics.median(seconds)
        cells = [f"{1e3 * middle:.2f}", f"{1e3 * low:.2f}-{1e3 * high:.2f}", f"{1 / middle:.0f}"]
        cells += [f"{statistics.median(ratios):.2f}x", f"{least:.2f}-{most:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="batches of each row (30)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 400), help="width and height of the files (500 400)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The image decoding and encoding")
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (options.size[0], options.size[1])
        write_images(folder, size)
        mean = statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg")) / 1000
        measured = measure(rows(folder), options.rounds)
        print(f"{size[0]}x{size[1]} JPEG, {mean:.0f} kB on average, batch {BATCH}, medians of {options.rounds} rounds,")
        print(f"1 thread, Pillow {PIL.__version__}, torchvision {torchvision.__version__}\n")
        print(report(measured))


if __name__ == "__main__":
    main()
