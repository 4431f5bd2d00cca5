"""Attention of short sequences on a CPU: where the plain formula is faster than the fused kernel.

Forward and backward of softmax attention from one `qkv` tensor, as a Transformer block has it; the two take turns in
every round, medians are printed. `jepa_lightning.models.layers.SHORT` is the longest sequence that is computed plainly.

    python benchmarks/short_attention.py [--rounds 40] [--batch-size 64]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import jepa_lightning.models.layers as layers

SHAPES = [
    (16, 3, 16),
    (16, 3, 32),
    (24, 3, 32),
    (36, 3, 32),
    (48, 3, 32),
    (64, 3, 32),
    (36, 6, 64),
    (64, 6, 64),
    (196, 6, 64),
]
"""Tokens, heads, channels of a head."""


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What `attend` does with short sequences, whatever their length."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def seconds(attention: Callable[..., Tensor], qkv: Tensor, gradient: Tensor) -> float:
    """Forward and backward once."""
    start = time.perf_counter()
    attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0)).transpose(1, 2).flatten(2).backward(gradient)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch_size}")
    print(f"plain up to {layers.SHORT} tokens\n")
    print("| tokens | heads | channels of a head | fused (ms) | plain (ms) | fused / plain |")
    print("|---:|---:|---:|---:|---:|---:|")
    for tokens, heads, channels in tqdm(SHAPES, leave=False):
        found: dict[str, list[float]] = {"fused": [], "plain": []}
        for _ in range(options.rounds + 3):
            qkv = torch.randn(options.batch_size, tokens, 3, heads, channels, requires_grad=True)
            gradient = torch.randn(options.batch_size, tokens, heads * channels)
            found["fused"].append(seconds(F.scaled_dot_product_attention, qkv, gradient))
            found["plain"].append(seconds(plain, qkv, gradient))
        fused, short = (1e3 * statistics.median(found[name][3:]) for name in ("fused", "plain"))
        tqdm.write(f"| {tokens} | {heads} | {channels} | {fused:.2f} | {short:.2f} | {fused / short:.2f} |")


if __name__ == "__main__":
    main()
