"""Samples with different numbers of tokens in one batch: what it costs not to cut them to the shortest.

The first table compares training steps (forward and backward) with masks that are cut (`MultiBlock`, `MultiBlock3D`)
and masks that are each sample's own (`per_sample: true`). A step with longer contexts takes longer, so the column to
compare is the time for each token processed: all tokens that the three networks compute, padding not counted.

The second table compares ways to run two Transformer blocks on such contexts, as wide as ViT-S/16 and as
configs/ijepa.yaml:

- packed: what this package does on a CPU, a list of tokens sorted by length, attention for all sequences of one length
- padded in attention: what it does elsewhere, a list of tokens that is padded inside attention only
- padded: padding everywhere, attention does not attend to it
- one sequence: the list as one sequence, in which attention stays within samples
- one by one: a loop over samples
- nested: jagged tensors of PyTorch
- cut: every context cut to the shortest

Inputs are random numbers, on the device already. Rows take turns in every round. On a CPU times are processor times of
one thread, which other work on the machine hardly touches. Memory is measured with `--memory`, each row in a process
of its own: the largest resident size, Python and PyTorch included; on CUDA what PyTorch allocated at most.

    python benchmarks/packed.py [--rounds 7] [--cases "configs/ijepa.yaml"] [--memory]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from tqdm import tqdm

import jepa_lightning as jl
from jepa_lightning.masking import MaskedBatch, MultiBlock, MultiBlock3D, padded
from jepa_lightning.masking.padded import mean_length
from jepa_lightning.masking.tokens import places_of
from jepa_lightning.models import BlockOptions
from jepa_lightning.models.packing import Packing
from jepa_lightning.schedules import Constant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        step: What is measured, of a round's number.
        tokens: How many tokens that processes.
    """

    step: Callable[[int], Any]
    tokens: Callable[[int], float]


# ---------------------------------------------------------------------- training steps


class Case(NamedTuple):
    """Networks and masks of a training step."""

    encoder: dict[str, Any]
    predictor: dict[str, Any]
    batch_size: int
    size: tuple[int, ...]


CASES = {
    "I-JEPA ViT-S/16, 224 pixels": Case(
        {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
        {"embed_dim": 384, "depth": 6}, 8, (3, 224, 224),
    ),
    "configs/ijepa.yaml": Case(
        {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
        {"embed_dim": 48, "depth": 2}, 64, (3, 64, 64),
    ),
    "V-JEPA ViT-S/16, 16 frames": Case(
        {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 2, "num_heads": 6, "num_frames": 16,
         "tubelet_size": 2},
        {"embed_dim": 192, "depth": 1, "num_mask_tokens": 2}, 2, (3, 16, 224, 224),
    ),
}  # fmt: skip
"""The last has a sixth of the blocks of ViT-S, and of its predictor one in place of 12: ratios hardly depend on it."""


def training(case: Case, rounds: int) -> dict[str, Row]:
    """Steps of one case; each round has its own masks."""
    torch.manual_seed(0)
    encoder = jl.VisionTransformer(**case.encoder)
    video = len(case.size) == 4
    method = jl.VJEPA if video else jl.IJEPA
    module = method(encoder, partial(jl.Predictor, **case.predictor), Constant(1e-4), Constant(0.05), Constant(0.99))
    module.to(DEVICE)
    inputs, rows = torch.randn(case.batch_size, *case.size, device=DEVICE), {}
    least = {} if video else {"min_keep": 4 if encoder.grid[1] < 10 else 10}
    for name, own in (("cut", False), ("per_sample", True)):
        sampler = (MultiBlock3D if video else MultiBlock)(encoder.grid, per_sample=own, **least)
        generator = torch.Generator().manual_seed(0)
        drawn = [sampler.sample(case.batch_size, generator) for _ in range(rounds)]
        batches = []
        for masks in drawn:
            batch = MaskedBatch(inputs, masks, places=tuple(places_of(family) for family in masks))
            batches.append(move_data_to_device(batch, DEVICE))
        rows[name] = Row(partial(_train, module, batches), partial(_count, batches, encoder))
    return rows


def _train(module: Any, batches: list[MaskedBatch], number: int) -> None:
    module.losses(batches[number])["loss"].backward()
    module.zero_grad()


def _count(batches: list[MaskedBatch], encoder: jl.VisionTransformer, number: int) -> float:
    """Tokens of target encoder, encoder and predictor."""
    count = float(encoder.grid[0] * encoder.grid[1] * encoder.grid[2])
    for family in batches[number].families():
        shown, asked = mean_length(family.context), mean_length(family.targets)
        count += shown + batches[number].masks[0].targets.shape[1] * (shown + asked)
    return count * len(batches[number].inputs)


# ---------------------------------------------------------------------- ways to run blocks


class Everywhere(NamedTuple):
    """In place of Packing: what is given is the table already."""

    keep: Tensor
    runs: tuple[tuple[int, int], ...] = ()

    def pad(self, x: Tensor) -> Tensor:
        """Nothing to do."""
        return x

    def pack(self, x: Tensor) -> Tensor:
        """Nothing to do."""
        return x


def ways(dim: int, num_heads: int, batch_size: int, rounds: int) -> dict[str, Row]:
    """The rows of the second table."""
    torch.manual_seed(0)
    options, generator = BlockOptions(), torch.Generator().manual_seed(0)
    blocks = options.build(2, dim, num_heads, 4.0).to(DEVICE)
    sampler = MultiBlock(14, per_sample=True)
    index = [padded(sampler.sample(batch_size, generator)[0].context.to(DEVICE)) for _ in range(rounds)]
    lengths = [[int(n) for n in (i.indices >= 0).sum(dim=1)] for i in index]
    tables = [torch.randn(*i.indices.shape, dim, device=DEVICE) for i in index]
    lists = [i.pack(table) for i, table in zip(index, tables, strict=True)]

    def run(x: Tensor, packing: Any = None) -> Tensor:
        x = x.detach().requires_grad_()
        for block in blocks:
            x = block(x, None, packing)
        return x

    def packed(n: int) -> None:
        packing, x = Packing.of(index[n].places, *index[n].indices.shape), lists[n][None].detach().requires_grad_()
        options.run(blocks, x, packing=packing)[0].sum().backward()

    def in_attention(n: int) -> None:
        run(lists[n][None], Packing.of(index[n].places, *index[n].indices.shape)).sum().backward()

    def everywhere(n: int) -> None:
        keep = (index[n].indices >= 0)[:, None, None]
        (run(tables[n], Everywhere(keep)) * keep[:, 0, 0, :, None]).sum().backward()

    def one_sequence(n: int) -> None:
        sample = torch.repeat_interleave(torch.arange(batch_size), torch.tensor(lengths[n])).to(DEVICE)
        run(lists[n][None], Everywhere((sample[:, None] == sample)[None, None])).sum().backward()

    def one_by_one(n: int) -> None:
        torch.cat([run(part[None]) for part in lists[n].split(lengths[n])], dim=1).sum().backward()

    def nested(n: int) -> None:
        offsets = torch.tensor([0, *lengths[n]], device=DEVICE).cumsum(0)
        options = {"min_seqlen": min(lengths[n]), "max_seqlen": max(lengths[n])}
        x = torch.nested.nested_tensor_from_jagged(lists[n].detach().requires_grad_(), offsets, **options)
        for block in blocks:
            q, k, v = (
                part.unflatten(-1, (num_heads, -1)).transpose(1, 2)
                for part in block.attn.qkv(block.norm1(x)).chunk(3, -1)
            )
            x = x + block.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
            x = x + block.mlp(block.norm2(x))
        x.values().sum().backward()

    def cut(n: int) -> None:
        run(tables[n][:, : min(lengths[n])]).sum().backward()

    whole = {
        "packed": packed, "padded in attention": in_attention, "padded": everywhere, "one sequence": one_sequence,
        "one by one": one_by_one, "nested": nested,
    }  # fmt: skip
    rows = {name: Row(step, lambda n: sum(lengths[n])) for name, step in whole.items()}
    return {"cut": Row(cut, lambda n: batch_size * min(lengths[n])), **rows}


# ---------------------------------------------------------------------- measuring


def measure(rows: dict[str, Row], rounds: int, title: str) -> dict[str, list[tuple[float, float]]]:
    """Seconds and tokens of each row in each round after the first."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in tqdm(range(rounds), desc=title, leave=False, file=sys.stderr):
        for name, row in rows.items():
            start = _clock()
            try:
                row.step(number)
            except (RuntimeError, NotImplementedError):  # nested, where PyTorch has no kernel
                continue
            measured[name].append((_clock() - start, row.tokens(number)))
    return {name: results[1:] for name, results in measured.items()}


def _clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def report(title: str, measured: dict[str, list[tuple[float, float]]], memory: dict[str, float]) -> None:
    """Lines of a Markdown table."""
    base = 0.0
    for name, results in measured.items():
        if not results:
            print(f"| {title} | {name} | - | - | - | does not run here | - |")
            continue
        seconds, tokens = statistics.median(s for s, _ in results), statistics.median(n for _, n in results)
        each = statistics.median(s / n for s, n in results)
        base = base or each
        gib = f"{memory[name]:.2f}" if name in memory else "-"
        cells = [f"{1e3 * seconds:.0f}", f"{tokens:.0f}", f"{1e6 * each:.1f}", f"{each / base:.2f}", gib]
        print(f"| {title} | {name} | {' | '.join(cells)} |", flush=True)


def peak(case: str, name: str) -> float:
    """GiB at most, of three steps in a process of their own."""
    command = [sys.executable, __file__, "--only", case, name]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def only(case: str, name: str) -> float:
    """The process that ``peak`` starts."""
    row = training(CASES[case], 3)[name]
    for number in range(3):
        row.step(number)
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each row after the first (7)")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="training steps (all)")
    parser.add_argument("--memory", action="store_true", help="measure memory too, in a process for each row")
    parser.add_argument("--only", nargs=2, metavar=("CASE", "ROW"), help="print the memory of this row")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(only(*options.only)))
        return
    print(f"{DEVICE.type}, torch {torch.__version__}, medians of {options.rounds} rounds\n")
    print("| what | row | ms | tokens | us per token | of cut | peak GiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for title in options.cases:
        rows = training(CASES[title], options.rounds + 1)
        memory = {name: peak(title, name) for name in rows} if options.memory else {}
        report(title, measure(rows, options.rounds + 1, title), memory)
    for dim, num_heads in ((384, 6), (96, 3)):
        title = f"two blocks, {dim} wide, 16 samples"
        report(title, measure(ways(dim, num_heads, 16, options.rounds + 1), options.rounds + 1, title), {})


if __name__ == "__main__":
    main()
