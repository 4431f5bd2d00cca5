"""Heads on a frozen encoder: all heads of a grid are trained in parallel on one pass of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import AdamW, Optimizer

from jepa_lightning.evaluation.fingerprint import fingerprint
from jepa_lightning.methods.groups import MakeOptimizer
from jepa_lightning.models import Encoder
from jepa_lightning.probing.classifier import Classifier, Group
from jepa_lightning.schedules import Constant, Schedule, WarmupCosine


class FrozenProbe(Classifier):
    """Heads on a frozen encoder, each with its own learning rate, weight decay, moments and gradient clipping.

    Each head is trained as if it were alone. A checkpoint holds the heads, not the encoder.

    Args:
        checkpoint: Where the encoder comes from.
        encoder: The encoder, frozen.
        grid: Learning rate and weight decay of each head.
        lr_schedule: Factor of the learning rates by optimizer step.
        weight_decay_schedule: Factor of the weight decays by optimizer step.
        optimizer: Makes the optimizer of groups of parameters; null for AdamW.
    """

    def __init__(
        self,
        checkpoint: str,
        encoder: Encoder,
        grid: Sequence[tuple[float, float]],
        lr_schedule: Schedule | None = None,
        weight_decay_schedule: Schedule | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        super().__init__(checkpoint, encoder, grid, optimizer or partial(AdamW, lr=0.0))
        self._fingerprint = fingerprint(self.encoder)
        self.lr_schedule = lr_schedule or WarmupCosine(start=1.0, peak=1.0, final=0.0)
        self.weight_decay_schedule = weight_decay_schedule or Constant(1.0)
        self.strict_loading = False  # a checkpoint holds no encoder; that no head is missing is checked below

    @property
    def title(self) -> str:
        """What tables call its encoder."""
        return f"frozen encoder of {Path(self.checkpoint).name}"

    @torch.no_grad()
    def encode(self, inputs: Float[Tensor, "batch channels *size"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of the frozen encoder."""
        return cast(Tensor, self.encoder(inputs))

    # ------------------------------------------------------------------ optimisation

    def trained(self) -> list[Group]:
        """Two groups for each head: matrices and vectors."""
        found = []
        for head, (rate, decay) in zip(self.heads, self.grid, strict=True):
            parameters = list(head.parameters())
            found.append(Group([p for p in parameters if p.ndim > 1], rate, decay, True))
            found.append(Group([p for p in parameters if p.ndim <= 1], rate, decay, False))
        return found

    def schedules(self) -> dict[str, Schedule]:
        """Factors of the learning rates and weight decays of the grid."""
        return {"lr_factor": self.lr_schedule, "weight_decay_factor": self.weight_decay_schedule}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """`trainer.gradient_clip_val` for each head by itself."""
        if gradient_clip_algorithm == "value":  # each element by itself already
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for head in self.heads if gradient_clip_val else ():
            torch.nn.utils.clip_grad_norm_(head.parameters(), cast(float, gradient_clip_val))

    # ------------------------------------------------------------------ checkpoints

    def settings(self) -> str:
        """What a checkpoint with other heads is told to give."""
        return f"lr and weight_decay make {len(self.heads)}: give the lr and weight_decay"

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The heads, without the frozen encoder."""
        state = cast(dict[str, Any], super().state_dict(*args, **kwargs))
        return {name: tensor for name, tensor in state.items() if not self._is_frozen(name)}

    @staticmethod
    def _is_frozen(name: str) -> bool:
        return name.split(".")[0] in ("encoder", "untrained")

    def get_extra_state(self) -> dict[str, Any]:
        """The classes of the outputs, and the file and fingerprint of the encoder."""
        return {**super().get_extra_state(), "encoder": self._fingerprint}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Heads from the file, beside the encoder that is there; ``strict`` or not, all of them must be in it.

        Raises:
            ValueError: If the heads are for another encoder, or for data with other classes.
        """
        frozen = {name: tensor for name, tensor in super().state_dict().items() if self._is_frozen(name)}
        return super().load_state_dict({**frozen, **state_dict}, strict=True, assign=assign)

    def accept(self, state_dict: Any) -> None:
        """Refuse heads for another encoder or other data before any is loaded; build the heads if there are none."""
        about = state_dict["_extra_state"]
        if about["encoder"] != self._fingerprint:
            raise ValueError(
                f"these heads were not trained on the encoder of {self.checkpoint}: give the one that they were "
                f"trained on, --model.checkpoint {about['checkpoint']}"
            )
        super().accept(state_dict)
        names, mine = (
            {name for name in state if name.startswith("heads.")} for state in (state_dict, self.state_dict())
        )
        if names != mine:
            there = len({name.split(".")[1] for name in names})
            raise ValueError(f"the checkpoint has {there} heads, {self.settings()} that they were trained with")


def grid_of(lr: Sequence[float], weight_decay: Sequence[float]) -> list[tuple[float, float]]:
    """Every pair of a learning rate and a weight decay.

    Raises:
        ValueError: If there is none.
    """
    grid = [(rate, decay) for rate in lr for decay in weight_decay]
    if not grid:
        raise ValueError(f"lr {list(lr)} and weight_decay {list(weight_decay)} make no head: give one of each")
    return grid
