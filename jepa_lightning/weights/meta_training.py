"""Resumes a training of Meta's code: optimizer, epoch and step.

| in the file | here |
|---|---|
| moments of AdamW | assigned by the names of the parameters; the groups are in the same order |
| learning rate, weight decay, momentum | follow from the number of the step, as in the official code |
| number of the step | the count in AdamW's state; the file itself holds only the epoch |
| GradScaler | not used: bfloat16 needs none |
| order of the data, masks, random numbers | not in the file; they follow from our seed and the epoch |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from jepa_lightning.weights.base import Progress, States, Weights
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def progress(content: dict[str, Any]) -> Progress:
    """Epoch and step of a file in Meta's format; it is resumable if there is an optimizer after an epoch at least."""
    optimizer = content.get("opt")
    states = (optimizer.get("state") if isinstance(optimizer, dict) else None) or {}
    steps = [int(state["step"]) for state in states.values() if "step" in state]
    epoch = content.get("epoch")
    if not isinstance(epoch, int):
        return Progress(max(steps, default=None))
    return Progress(max(steps, default=None), epoch, bool(steps) and epoch >= 1)


def resumed(weights: Weights, module: Any) -> dict[str, Any]:
    """What a Lightning checkpoint has beside the state of the module: optimizer, step, epoch and the state of the loop.

    Args:
        weights: The file.
        module: A JEPA that is set up for training.

    Raises:
        CheckpointError: If there is no training in it to resume.
    """
    check_resumable(weights)
    done = weights.progress
    epoch, step = int(done.epoch or 0), int(done.step or 0)
    return {
        "epoch": epoch,
        "global_step": step,
        "optimizer_states": [weights.optimizer_state(module)],
        "lr_schedulers": [],
        "loops": {"fit_loop": fit_loop(module.trainer.fit_loop.state_dict(), epoch, step)},
    }


def check_resumable(weights: Weights) -> None:
    """Check that a training can be resumed.

    Raises:
        CheckpointError: If there is no optimizer, or no finished epoch.
    """
    done = weights.progress
    if not done.resumable:
        raise CheckpointError(
            f"{weights.path} has no training to resume (finished epochs: {done.epoch}, optimizer steps: "
            f"{done.step}): start a new one from its networks with --init_from"
        )


def optimizer_state(path: Path, content: dict[str, Any], networks: States, module: Any) -> dict[str, Any] | None:
    """The state of the file's AdamW, as that of ``module.adamw()``; None if the file has none.

    Args:
        path: The file, for messages.
        content: What is in it.
        networks: The tensors of its networks, without prefixes.
        module: A JEPA that is set up for training, because that decides which parameters are trained.

    Raises:
        DoesNotFit: If the file's optimizer is not that of its networks, or lacks the moments of a parameter.
    """
    optimizer = content.get("opt")
    if not isinstance(optimizer, dict) or not optimizer.get("state"):
        return None
    theirs = dict(zip(_names(path, networks, optimizer), _numbers(optimizer), strict=True))
    ours = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = module.adamw().param_groups
    state: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(p for group in groups for p in group["params"]):
        name = ours[id(parameter)]
        found = optimizer["state"].get(theirs.get(name))
        if found is None or any(key not in found for key in MOMENTS):
            raise DoesNotFit(f"{path}: its optimizer has no state of {name}, which is trained here")
        if found["exp_avg"].shape != parameter.shape:
            raise DoesNotFit(f"{path}: its optimizer's state of {name} is {list(found['exp_avg'].shape)}")
        # Copies: an optimizer updates its moments in place.
        state[number] = {key: torch.as_tensor(found[key], dtype=torch.float32).clone() for key in MOMENTS}
    return {"state": state, "param_groups": _grouped(groups)}


def _names(path: Path, networks: States, optimizer: dict[str, Any]) -> list[str]:
    """Names of the parameters in the order in which the official code gave them to its optimizer.

    Decayed ones of the encoder, then of the predictor, then the others of each; position tables count as decayed
    parameters, although nothing trains them.
    """
    names = []
    for decayed in (True, False):
        for network, state in ((name, networks[name]) for name in ("encoder", "predictor")):
            kept = [name for name, tensor in state.items() if decayed == (tensor.ndim > 1 and "bias" not in name)]
            names += [f"{network}.{name}" for name in kept]
    count = len(_numbers(optimizer))
    if len(names) != count:
        raise DoesNotFit(f"{path}: its optimizer has {count} parameters, its encoder and predictor have {len(names)}")
    return names


def _numbers(optimizer: dict[str, Any]) -> list[Any]:
    return [number for group in optimizer["param_groups"] for number in group["params"]]


def _grouped(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with numbers in place of parameters, as a state dict has them."""
    first, numbered = 0, []
    for group in groups:
        last = first + len(group["params"])
        numbered.append({**group, "params": list(range(first, last))})
        first = last
    return numbered


def fit_loop(state: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """The state of Lightning's loop after so many epochs and optimizer steps, each of one batch.

    Args:
        state: Of a loop that has done nothing.
        epoch: Finished epochs.
        step: Finished steps.
    """
    epochs = dict.fromkeys(("ready", "started", "processed", "completed"), epoch)
    batches = dict.fromkeys(epochs, step)
    current = dict.fromkeys(epochs, step // epoch)
    steps = {"ready": step, "completed": step}
    zeroed = {**steps, "started": step}
    optimizer = {"step": {"total": steps, "current": steps}, "zero_grad": {"total": zeroed, "current": zeroed}}
    return {
        **state,
        "epoch_progress": {"total": epochs, "current": epochs},
        "epoch_loop.batch_progress": {"total": batches, "current": current, "is_last_batch": True},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
    }
