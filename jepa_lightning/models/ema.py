"""The exponential moving average that makes a target encoder out of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A deep copy that gets no gradient and stays in eval mode (Lightning leaves the mode of each module alone)."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def ema_copy(module: Module) -> Module:
    """A frozen copy for ``ema_update`` whose BatchNorms keep their own statistics.

    In training they normalise with the statistics of their batch, as the BatchNorms of ``module`` do, and update their
    running statistics: averages of the other network's would lag far behind its weights (BYOL and MoCo do the same).
    Everything else is in eval mode.
    """
    copied = frozen_copy(module)
    for norm in _batch_norms(copied):
        norm.train()
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
    return copied


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode inside the block, then restore the mode of each of its modules."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """``average <- momentum * average + (1 - momentum) * source`` over all parameters, in place.

    Running statistics of BatchNorm are averaged too, unless ``average`` has run in training: then it has its own.

    Args:
        average: The module that follows.
        source: The module that is followed, of the same architecture.
        momentum: 1 keeps the average, 0 copies the source.
    """
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1.0 - momentum)
    for mine, other in zip(_batch_norms(average), _batch_norms(source), strict=True):
        share = (1.0 - momentum) * (mine.num_batches_tracked == 0)  # on the device: nobody waits for the number
        for name in ("running_mean", "running_var"):
            kept = mine.get_buffer(name)
            kept.lerp_(other.get_buffer(name), share.to(kept))  # type: ignore[union-attr]


def _batch_norms(module: nn.Module) -> list[_NormBase]:
    """Those with running statistics."""
    return [m for m in module.modules() if isinstance(m, _NormBase) and m.num_batches_tracked is not None]
