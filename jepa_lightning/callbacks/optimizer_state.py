"""Start a training with the optimizer state of another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.tensor import DTensor

State = dict[str, Any]


class OptimizerState(Callback):
    """Loads the moments of another training into the optimizer, once, when training begins.

    The module's schedules set learning rate and weight decay in every step, so these are not loaded.

    Args:
        state: The ``state_dict`` of the other optimizer; or a function that makes it, or None, for a module that is set
            up for training.
    """

    def __init__(self, state: State | Callable[[LightningModule], State | None]) -> None:
        self.state: State | Callable[[LightningModule], State | None] | None = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the moments; under FSDP2, or from another kind of optimizer, only warn.

        Raises:
            ValueError: If the moments are of other parameters.
        """
        state, self.state = self.state, None
        if callable(state):
            state = state(pl_module)
        if state is None:
            return
        (optimizer,) = trainer.optimizers
        if any(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"]):
            rank_zero_warn("--init_from: under FSDP2 only the networks are loaded, and the optimizer starts anew")
            return
        mine = optimizer.state_dict()["param_groups"]
        theirs, ours = ([len(group["params"]) for group in groups] for groups in (state["param_groups"], mine))
        if sum(theirs) == sum(ours) and len(theirs) != len(ours):
            rank_zero_warn("--init_from: that training had another optimizer than this one, which starts anew")
            return
        if theirs != ours:
            raise ValueError("--init_from: the optimizer of that checkpoint has other parameters than this model")
        optimizer.load_state_dict({"state": state["state"], "param_groups": mine})
