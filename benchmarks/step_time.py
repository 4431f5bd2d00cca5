"""Time and memory of one I-JEPA training step: forward, backward, AdamW and EMA, with real multi-block masks.

Each row is measured in a process of its own, so that its peak memory is its own. Pictures are random numbers that are
already on the device: what a step costs does not depend on what they show, and loading is not measured. Masks are
drawn in advance, a different batch for each step, so the numbers of tokens vary as in training. The predictor is 384
wide and 6 blocks deep (the paper's for ViT-B).

On a CPU memory is the largest resident size of the process, Python and PyTorch included (about 0.4 GiB); on CUDA what
PyTorch allocated at most. CUDA adds rows for bf16 autocast and for torch.compile with it.

    python benchmarks/step_time.py [--models vits16 vitb16] [--batch-size 16] [--steps 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from tqdm import tqdm

import jepa_lightning as jl
from jepa_lightning.masking import MaskedBatch, MultiBlock
from jepa_lightning.models import SIZES, ema_update
from jepa_lightning.schedules import Constant

MODELS = {"vits16": "small", "vitb16": "base", "vitl16": "large"}
MODES = {"fp32": (False, False), "bf16": (True, False), "bf16 compile": (True, True)}
"""Autocast, compile."""


def build(model: str, compiled: bool, device: torch.device) -> jl.IJEPA:
    """I-JEPA at 224 pixels."""
    encoder = jl.VisionTransformer(img_size=224, patch_size=16, **SIZES[MODELS[model]])
    predictor = partial(jl.Predictor, embed_dim=384, depth=6)
    values = Constant(1e-4), Constant(0.05), Constant(0.996)
    module = jl.IJEPA(encoder, predictor, *values, compile=compiled).to(device)
    module.setup("fit")  # compiles, if asked to
    return module


def batches(module: jl.IJEPA, count: int, batch_size: int, device: torch.device) -> list[MaskedBatch]:
    """The same pictures with other masks for each step."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(batch_size, 3, 224, 224, generator=generator).to(device)
    sampler = MultiBlock(module.encoder.grid)
    drawn = [sampler.sample(batch_size, generator) for _ in range(count)]
    return [MaskedBatch(pictures, tuple(type(m)(*(t.to(device) for t in m)) for m in masks)) for masks in drawn]


def measure(model: str, mode: str, steps: int, warm_up: int, batch_size: int) -> dict[str, float]:
    """Median seconds of a step and peak memory in GiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast, compiled = MODES[mode]
    module = build(model, compiled, device)
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4  # Lightning's hooks set it in a real run; at 0 the weights would never change
    seconds = []
    for batch in tqdm(
        batches(module, warm_up + steps, batch_size, device), desc=f"{model} {mode}", leave=False, file=sys.stderr
    ):
        _wait(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = module.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema_update(module.target_encoder, module.encoder, 0.996)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[warm_up:]),
        "fastest": min(seconds[warm_up:]),
        "slowest": max(seconds[warm_up:]),
        "gib": _peak_memory(device) / 2**30,
        "parameters": sum(p.numel() for p in module.encoder.parameters()),
    }


def _wait(device: torch.device) -> None:
    """Kernels on a GPU run on after the call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # bytes on macOS, KiB elsewhere


def in_a_process_of_its_own(model: str, mode: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one row of the table; its progress goes to stderr as it comes."""
    sizes = ["--steps", str(options.steps), "--warm-up", str(options.warm_up), "--batch-size", str(options.batch_size)]
    command = [sys.executable, __file__, "--models", model, "--only", mode, *sizes]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def machine() -> str:
    """Where this ran."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = f"CPU {platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{name}; torch {torch.__version__}, {torch.get_num_threads()} threads"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vits16", "vitb16"], help="(vits16 vitb16)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures in a batch (16)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each row (5)")
    parser.add_argument("--warm-up", type=int, help="steps before (2, with CUDA 10: masks change and so do kernels)")
    parser.add_argument("--only", choices=MODES, help="measure this mode in this process and print JSON")
    options = parser.parse_args(arguments)
    if options.warm_up is None:
        options.warm_up = 10 if torch.cuda.is_available() else 2
    if options.only:
        row = measure(options.models[0], options.only, options.steps, options.warm_up, options.batch_size)
        print(json.dumps(row))
        return
    modes = list(MODES) if torch.cuda.is_available() else ["fp32"]
    print(f"{machine()}\nbatch {options.batch_size}, medians of {options.steps} steps after {options.warm_up}\n")
    print("| model | encoder parameters | precision | ms per step | fastest-slowest | images/s | peak memory (GiB) |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for model in options.models:
        for mode in modes:
            row = in_a_process_of_its_own(model, mode, options)
            speed = options.batch_size / row["seconds"]
            spread = f"{1e3 * row['fastest']:.0f}-{1e3 * row['slowest']:.0f}"
            cells = [model, f"{row['parameters'] / 1e6:.1f} M", mode, f"{1e3 * row['seconds']:.0f}", spread]
            cells += [f"{speed:.1f}", f"{row['gib']:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
