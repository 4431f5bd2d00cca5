"""What a planner asks of a world model."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class WorldModel(Protocol):
    """Encodes what is seen and says what follows from an action. The true simulator can stand in.

    A state is a tensor of features with a batch axis, or a NamedTuple with such tensors whose field ``features`` is
    compared with the goal.
    """

    def encode(self, observation: Any) -> Any:
        """The state of what is seen."""

    def step(self, state: Any, action: Tensor) -> Any:
        """The state after actions (B, A)."""


def features_of(state: Any) -> Tensor:
    """What of a state is compared with the goal, (B, ...)."""
    return state if isinstance(state, Tensor) else state.features


def repeat(state: Any, count: int) -> Any:
    """Each row ``count`` times, one after the other, in all tensors of a state."""
    if isinstance(state, Tensor):
        return torch.repeat_interleave(state, count, dim=0)
    if isinstance(state, tuple):
        parts = [repeat(part, count) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
