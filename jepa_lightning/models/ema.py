"""The exponential moving average that makes a target encoder out of an encoder."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A deep copy that gets no gradient and stays in eval mode (Lightning leaves the mode of each module alone)."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """``average <- momentum * average + (1 - momentum) * source`` over all parameters, in place.

    Args:
        average: The module that follows.
        source: The module that is followed, of the same architecture.
        momentum: 1 keeps the average, 0 copies the source.
    """
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), 1.0 - momentum)
