"""The groups in which an optimizer gets the parameters of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
Group = dict[str, Any]


@dataclass(frozen=True)
class LayerDecay:
    """An optimizer for going on from trained weights: early blocks learn less, a new predictor learns first.

    Args:
        decay: Learning rate of a block of the encoder over that of the next one; 1 for the same everywhere. With L
            blocks the patch embedding has it to the power of L + 1, the first block of L, the final norm of 0.
        predictor_first: Epochs in which the encoder stands still, for a predictor that is freshly initialised: its
            first gradients would lead the encoder away from what it knows.
        optimizer: Makes the optimizer, for example jepa_lightning.muon.Muon; null for AdamW.

    Raises:
        ValueError: If the decay is not above 0 and at most 1, or an epoch is negative.
    """

    decay: float = 0.9
    predictor_first: float = 0.0
    optimizer: MakeOptimizer | None = None

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.predictor_first < 0:
            raise ValueError(
                f"decay must be above 0 and at most 1, predictor_first at least 0, got {self.decay} and "
                f"{self.predictor_first}"
            )

    def build(self, groups: Iterable[Any]) -> Optimizer:
        """The optimizer of groups of parameters."""
        return AdamW(groups, lr=0.0) if self.optimizer is None else self.optimizer(groups)

    def groups(self, method: nn.Module) -> list[Group]:
        """Those of groups_with_matrices, split by block; ``scale`` and ``from_epoch`` say how each learns."""
        encoder: Any = method.get_submodule("encoder")
        depth = len(getattr(encoder, "blocks", ()))
        steps = {parameter: _steps_to_the_end(name, depth) for name, parameter in encoder.named_parameters()}
        found = []
        for group in groups_with_matrices(method):
            for number in sorted({steps.get(parameter, -1) for parameter in group["params"]}):
                here = [parameter for parameter in group["params"] if steps.get(parameter, -1) == number]
                options = {"scale": self.decay ** max(0, number), "from_epoch": self.predictor_first * (number >= 0)}
                found.append({**group, "params": here, **options})
        return found


OptimizerFactory = LayerDecay | MakeOptimizer
"""What a configuration gives for an optimizer."""


def learning_rate(group: Group, value: float, epoch: float) -> float:
    """The learning rate of a group where the schedule has this value, in this epoch, counted with fractions from 0."""
    return value * group.get("scale", 1.0) if epoch >= group.get("from_epoch", 0.0) else 0.0


def _steps_to_the_end(name: str, depth: int) -> int:
    """Blocks from a parameter of the encoder to its output: 0 in the norm, ``depth`` + 1 before the blocks."""
    if name.startswith("blocks."):
        return depth - int(name.split(".")[1])
    return 0 if name.startswith("norm") or not depth else depth + 1


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
