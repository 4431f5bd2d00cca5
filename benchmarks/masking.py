"""How long it takes to draw the masks of one batch: ours, ours in compat mode, and lightly's collator.

The work is the published ViT-H/14 recipe: 224x224 pixels in patches of 14, one context (85 to 100 % of the picture)
and four targets (15 to 20 %, aspect ratio 0.75 to 1.5), batch 128. Each row is a whole collate function, called on a
list of samples as a DataLoader would. A number stands in place of each image, so that stacking images, which every row
would do alike, is left out. One thread, as in a DataLoader's worker. The rows take turns in every round, ten batches
each, so that whatever else the machine does hits all of them alike.

    python benchmarks/masking.py [--rounds 30] [--batch-size 128]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from tqdm import trange

from jepa_lightning.masking import MaskCollator, MultiBlock, Sample

IMAGE_SIZE, PATCH_SIZE = 224, 14
TURN = 10
"""Batches that a row collates in its turn."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        collate: What is measured.
        samples: Makes the samples of a batch from its number; not measured.
    """

    collate: Callable[[list[Any]], Any]
    samples: Callable[[int], list[Any]]


def ours(batch_size: int, compat: bool = False) -> Row:
    """Our collator, whose masks follow from the position of the first sample."""
    return Row(
        MaskCollator(MultiBlock(IMAGE_SIZE // PATCH_SIZE, min_keep=10, compat=compat)),
        lambda step: [Sample(0, 0, batch_size * step + i, 0, step) for i in range(batch_size)],
    )


def peer(batch_size: int) -> Row | None:
    """The collator of lightly with the same settings, None if lightly is not installed."""
    try:
        from lightly.data import IJEPAMaskCollator
    except ImportError:
        return None
    collator = IJEPAMaskCollator(
        input_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        enc_mask_scale=(0.85, 1.0),
        pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5),
        nenc=1,
        npred=4,
        min_keep=10,
    )
    return Row(collator, lambda step: [(0, 0)] * batch_size)


def context_tokens(batch: Any) -> int:
    """Tokens that each context has after it was cut to the smallest of the batch."""
    return batch.masks[0].context.shape[1] if hasattr(batch, "masks") else batch[1][0].shape[1]


def measure(rows: dict[str, Row], rounds: int, warm_up: int = 2) -> dict[str, list[tuple[float, int]]]:
    """Seconds and context tokens of each round after the first ones, which are slower."""
    measured: dict[str, list[tuple[float, int]]] = {name: [] for name in rows}
    for step in trange(warm_up + rounds, desc="rounds", file=sys.stderr, leave=False, delay=2):
        for name, row in rows.items():
            batches = [row.samples(TURN * step + i) for i in range(TURN)]
            start = time.perf_counter()
            for samples in batches:
                batch = row.collate(samples)
            measured[name].append(((time.perf_counter() - start) / TURN, context_tokens(batch)))
    return {name: results[warm_up:] for name, results in measured.items()}


def report(measured: dict[str, list[tuple[float, int]]], batch_size: int) -> str:
    """A Markdown table; the last row is what the others are compared with."""
    slowness = {name: statistics.median(seconds for seconds, _ in results) for name, results in measured.items()}
    base = list(measured)[-1]
    lines = [
        "| collate function | ms per batch | 10-90 % | us per image | speed-up | context tokens |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, results in measured.items():
        low, *_, high = statistics.quantiles((seconds for seconds, _ in results), n=10)
        kept = statistics.median(tokens for _, tokens in results)
        cells = [f"{1e3 * slowness[name]:.2f}", f"{1e3 * low:.2f}-{1e3 * high:.2f}"]
        cells += [f"{1e6 * slowness[name] / batch_size:.1f}", f"{slowness[base] / slowness[name]:.1f}x", f"{kept:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each row, ten batches each (30)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a batch (128)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {"MultiBlock": ours(options.batch_size), "MultiBlock(compat=True)": ours(options.batch_size, compat=True)}
    if (row := peer(options.batch_size)) is None:
        print("lightly is not installed and left out; to compare with it: pip install lightly", file=sys.stderr)
    else:
        rows[f"lightly {version('lightly')} IJEPAMaskCollator"] = row
    measured = measure(rows, options.rounds)
    print(f"batch {options.batch_size}, medians of {options.rounds} rounds, 1 thread, torch {torch.__version__}\n")
    print(report(measured, options.batch_size))


if __name__ == "__main__":
    main()
