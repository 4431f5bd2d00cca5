"""The groups in which an optimizer gets the parameters of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
Group = dict[str, Any]


def groups_of(method: nn.Module) -> list[Group]:
    """Decayed parameters of each network, then the others; last those of the method itself, a temperature for example.

    Each group says under ``decay`` whether weight decay applies: to the mask token and weight matrices, not to vectors
    and biases.
    """
    trained = [part for part in method.children() if any(p.requires_grad for p in part.parameters())]
    groups = [_group(network.named_parameters(), decay) for decay in (True, False) for network in trained]
    own = [_group(method.named_parameters(recurse=False), decay) for decay in (True, False)]
    return groups + [group for group in own if group["params"]]


def groups_with_matrices(method: nn.Module) -> list[Group]:
    """The same, with the matrices of Transformer blocks in groups of their own that say ``matrices: True``."""
    matrices = {p for part in method.children() for name, p in part.named_parameters() if _is_matrix_of_block(name, p)}
    split = []
    for group in groups_of(method):
        for kind in (True, False):
            parameters = [p for p in group["params"] if (p in matrices) == kind]
            if parameters:
                split.append({**group, "params": parameters, "matrices": kind})
    return split


def _group(named: Iterable[tuple[str, nn.Parameter]], decay: bool) -> Group:
    """The trained parameters that are (not) decayed."""
    parameters = [p for name, p in named if p.requires_grad and decay == (p.ndim > 1 and "bias" not in name)]
    return {"params": parameters, "decay": decay}


def _is_matrix_of_block(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and any(part.endswith("blocks") for part in name.split(".")[:-1])
