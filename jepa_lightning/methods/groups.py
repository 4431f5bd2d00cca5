"""The groups in which an optimizer gets the parameters of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


def groups_of(method: nn.Module) -> tuple[list[dict[str, Any]], set[nn.Parameter]]:
    """Decayed groups of every network that is trained, then the others; and which parameters are matrices of blocks."""
    networks = [list(n.named_parameters()) for n in method.children() if any(p.requires_grad for p in n.parameters())]
    groups = [_group(net, decay) for decay in (True, False) for net in networks]
    own = [_group(method.named_parameters(recurse=False), decay) for decay in (True, False)]
    groups += [group for group in own if group["params"]]  # of the method itself, a temperature for example
    return groups, {parameter for net in networks for name, parameter in net if _in_a_block(name, parameter)}


def apart(group: dict[str, Any], matrices: set[nn.Parameter]) -> list[dict[str, Any]]:
    """The matrices of blocks in a group, and what else is in it."""
    kinds = {kind: [p for p in group["params"] if (p in matrices) == kind] for kind in (True, False)}
    return [{**group, "params": params, "matrices": kind} for kind, params in kinds.items() if params]


def _group(named: Iterable[tuple[str, nn.Parameter]], decay: bool) -> dict[str, Any]:
    """Parameters that are (not) decayed: vectors and biases are not, the mask token is."""
    parameters = [
        parameter
        for name, parameter in named
        if parameter.requires_grad and decay == (parameter.ndim > 1 and "bias" not in name)
    ]
    return {"params": parameters, "decay": decay}


def _in_a_block(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is a matrix of a Transformer block."""
    return parameter.ndim == 2 and any(part.endswith("blocks") for part in name.split(".")[:-1])
