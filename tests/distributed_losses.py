"""Terms that look at the whole batch: value and gradients of two processes as DDP averages them, and of one alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from jepa_lightning.losses import SIGReg, VarianceCovariance
from jepa_lightning.masking import MaskedBatch, MultiBlock, TokenMasks
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, Projector, VisionTransformer
from jepa_lightning.schedules import Constant

SAMPLES, DIM = 10, 6
SPLITS = {"even": [(0, 5), (5, 10)], "uneven": [(0, 3), (3, 10)]}
TERMS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "sigreg": lambda z, _: SIGReg(num_slices=8)(z, step=3),
    "variance and covariance": lambda z, _: VarianceCovariance(std=2.0)(z),
    "sigreg of projections": lambda z, projector: SIGReg(num_slices=8)(projector(z), step=1),
}


def compute(part: slice) -> dict[str, Any]:
    """Each term of some of the samples, in two sets, with the gradients of the networks that made their features."""
    results = {}
    for name, term in TERMS.items():
        torch.manual_seed(0)
        linear = nn.Linear(DIM, DIM)
        projector = Projector(SimpleNamespace(embed_dim=DIM), hidden_dim=5, out_dim=4)  # type: ignore[arg-type]
        inputs = torch.randn(2, SAMPLES, DIM)[:, part]
        results[name] = result(term(linear(inputs).tanh(), projector), nn.ModuleList([linear, projector]))
    return results


def result(value: Tensor, networks: nn.Module) -> dict[str, Any]:
    value.backward()
    return {
        "value": value.detach(),
        "gradients": [p.grad for p in networks.parameters() if p.grad is not None],
        "buffers": [buffer.float() for buffer in networks.buffers()],
    }


def method(part: slice) -> dict[str, Any]:
    """I-JEPA without EMA and stop-gradient, with SIGReg."""
    torch.manual_seed(0)
    encoder = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    module = IJEPA(
        encoder, partial(Predictor, embed_dim=8, depth=1), Constant(0.0), Constant(0.0), None,
        regularizer=SIGReg(num_slices=8), stop_gradient=False,
    )  # fmt: skip
    inputs = torch.randn(SAMPLES, 3, 16, 16)[part]
    (masks,) = MultiBlock(4, min_keep=2, num_targets=2).sample(SAMPLES)
    losses = module.losses(MaskedBatch(inputs, (TokenMasks(masks.context[part], masks.targets[part]),)))
    return result(losses["loss"], module)


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for split, parts in SPLITS.items():
        found[split] = compute(slice(*parts[rank]))
        if split == "even":  # the prediction is a mean over the samples of each process
            found[split]["ijepa"] = method(slice(*parts[rank]))
        for result in found[split].values():
            for gradient in result["gradients"]:
                dist.all_reduce(gradient)
                gradient /= 2
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    mp.start_processes(run, args=(folder,), nprocs=2, start_method="fork")  # before the first backward pass
    torch.save(compute(slice(None)) | {"ijepa": method(slice(None))}, folder / "alone.pt")
