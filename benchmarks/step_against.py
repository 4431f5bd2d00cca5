"""One I-JEPA training step of ours beside one that computes as the official code does, on the same weights and masks.

The opponent is plain PyTorch on timm's blocks: all patches are embedded before the context is cut out, each target
block is a sequence of its own with the context in it, every token of the predictor passes through every layer, smooth
L1 on layer-normalised targets. It is given what makes it fast: scaled_dot_product_attention, fused AdamW, an EMA in
one foreach call. `shared_context` is ours with the option of that name, which is another function.

All steps are taken in turns in one process, on the same batches; ratios are medians over rounds. Peak memory (Linux) is
that of a process of its own for each row, less what it had before its first step.

    python benchmarks/step_against.py [--models vits16 vitb16] [--batch-size 16] [--rounds 10]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from step_time import MODELS, batches, machine
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from tqdm import tqdm

import jepa_lightning as jl
from jepa_lightning.masking import MaskedBatch
from jepa_lightning.models import SIZES, ema_update
from jepa_lightning.schedules import Constant

ROWS = ("official", "ours", "shared_context")
RATE, DECAY, MOMENTUM = 1e-4, 0.05, 0.996


def build(model: str, shared_context: bool = False) -> jl.IJEPA:
    """I-JEPA at 224 pixels with a predictor of 384 channels and 6 blocks."""
    torch.manual_seed(0)
    encoder = jl.VisionTransformer(img_size=224, patch_size=16, **SIZES[MODELS[model]])
    predictor = partial(jl.Predictor, embed_dim=384, depth=6, shared_context=shared_context)
    return jl.IJEPA(encoder, predictor, Constant(RATE), Constant(DECAY), Constant(MOMENTUM))


def blocks(ours: nn.ModuleList, dim: int, heads: int) -> nn.Sequential:
    """Blocks of timm with the weights of ours, whose names are the same."""
    made = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)) for _ in ours))
    made.load_state_dict(ours.state_dict())
    return made


class Encoder(nn.Module):
    """Patches, positions, then the context is cut out."""

    def __init__(self, ours: jl.VisionTransformer) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, ours.embed_dim, 16, 16)
        self.proj.load_state_dict(ours.patch_embed.proj.state_dict())
        self.register_buffer("positions", ours.pos_embed.clone())
        self.blocks = blocks(ours.blocks, ours.embed_dim, ours.num_heads)
        self.norm = nn.LayerNorm(ours.embed_dim, eps=1e-6)

    def forward(self, pictures: Tensor, context: Tensor | None = None) -> Tensor:
        """Tokens of all patches, or of the context."""
        x = self.proj(pictures).flatten(2).transpose(1, 2) + self.positions
        x = x if context is None else torch.gather(x, 1, context.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return self.norm(self.blocks(x))


class Predictor(nn.Module):
    """The context once for each block of targets."""

    def __init__(self, ours: jl.Predictor) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(ours.input_dim, ours.embed_dim), nn.Linear(ours.embed_dim, ours.input_dim)
        self.embed.load_state_dict(ours.predictor_embed.state_dict())
        self.proj.load_state_dict(ours.predictor_proj.state_dict())
        self.mask_token = nn.Parameter(ours.mask_token.detach().clone())
        self.register_buffer("positions", ours.predictor_pos_embed.clone())
        self.blocks = blocks(ours.predictor_blocks, ours.embed_dim, ours.num_heads)
        self.norm = nn.LayerNorm(ours.embed_dim, eps=1e-6)

    def forward(self, z: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predicted tokens, (B, M, Nt, D)."""
        shown = self.embed(z) + self.positions[0][context]
        repeated = shown.repeat_interleave(targets.shape[1], dim=0)
        asked = (self.mask_token + self.positions[0][targets]).flatten(0, 1)
        x = self.norm(self.blocks(torch.cat([repeated, asked], dim=1)))
        return self.proj(x[:, shown.shape[1] :]).unflatten(0, targets.shape[:2])


def official(module: jl.IJEPA) -> Callable[[MaskedBatch], float]:
    """A step as the official code takes it."""
    encoder, target, predictor = Encoder(module.encoder), Encoder(module.encoder), Predictor(module.predictor)
    target.requires_grad_(False)
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=True)

    def step(batch: MaskedBatch) -> float:
        (masks,) = batch.masks
        with torch.no_grad():
            h = F.layer_norm(target(batch.inputs), (module.embed_dim,))
            index = masks.targets.flatten(1).unsqueeze(-1).expand(-1, -1, h.shape[-1])
            h = torch.gather(h, 1, index).unflatten(1, masks.targets.shape[1:])
        predicted = predictor(encoder(batch.inputs, masks.context), masks.context, masks.targets)
        loss = F.smooth_l1_loss(predicted, h)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(encoder.parameters()), 1 - MOMENTUM)
        return loss.item()

    return step


def ours(module: jl.IJEPA) -> Callable[[MaskedBatch], float]:
    """A step of the package."""
    optimizer = module.configure_optimizers()
    for group in optimizer.param_groups:
        group["lr"] = RATE  # Lightning's hooks set it in a real run

    def step(batch: MaskedBatch) -> float:
        loss = module.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema_update(module.target_encoder, module.encoder, MOMENTUM)
        return loss.item()

    return step


def make(row: str, model: str) -> Callable[[MaskedBatch], float]:
    """The step of a row, on the same initial weights."""
    module = build(model, shared_context=row == "shared_context")
    return official(module) if row == "official" else ours(module)


def memory(row: str, options: argparse.Namespace) -> float:
    """Peak memory in GiB of a process that takes three steps."""
    command = [sys.executable, __file__, "--models", options.models[0], "--batch-size", str(options.batch_size)]
    return float(json.loads(subprocess.run([*command, "--memory", row], check=True, stdout=subprocess.PIPE).stdout))


def resident(name: str) -> int:
    """Resident memory of this process in KiB, as it is (VmRSS) or was at most (VmHWM)."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vits16", "vitb16"], help="(vits16 vitb16)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures in a batch (16)")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each row (10)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    parser.add_argument("--memory", choices=ROWS, help="print the peak memory of this row alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    drawn = batches(build(options.models[0]), options.rounds + 2, options.batch_size, torch.device("cpu"))
    if options.memory:
        step = make(options.memory, options.models[0])
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far counts no more
        before = resident("VmRSS")
        for batch in drawn[:3]:
            step(batch)
        print((resident("VmHWM") - before) / 2**20)
        return
    print(f"{machine()}\nbatch {options.batch_size}, {options.rounds} rounds in turns after 2\n")
    print("| model | step | first loss | ms (median) | 10-90 % | times as fast | peak memory (GiB) |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for model in options.models:
        options.models = [model]
        steps = {row: make(row, model) for row in ROWS}
        taken: dict[str, list[float]] = {row: [] for row in ROWS}
        losses: dict[str, float] = {}
        for batch in tqdm(drawn, desc=model, leave=False, file=sys.stderr):
            for row, step in steps.items():
                start = time.process_time() if options.threads == 1 else time.perf_counter()
                loss = step(batch)
                taken[row].append((time.process_time() if options.threads == 1 else time.perf_counter()) - start)
                losses.setdefault(row, loss)
        del steps
        for row in ROWS:
            times = sorted(taken[row][2:])
            ratio = statistics.median(a / b for a, b in zip(taken["official"][2:], taken[row][2:], strict=True))
            low, high = times[len(times) // 10], times[-1 - len(times) // 10]
            cells = [model, row, f"{losses[row]:.6f}", f"{1e3 * statistics.median(times):.0f}"]
            cells += [f"{1e3 * low:.0f}-{1e3 * high:.0f}", f"{ratio:.2f}", f"{memory(row, options):.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
