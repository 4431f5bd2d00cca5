"""Goes on with a training of Meta's code: its optimizer, its epoch, its step.

| in the file | here |
|---|---|
| moments of AdamW | taken over by the names of the parameters; the groups stand in the same order |
| learning rate, weight decay, momentum | follow from the number of the step, as in the official code |
| number of the step | the count in AdamW's state; the file itself holds only the epoch |
| GradScaler | left: bfloat16 needs none |
| order of the data, masks, random numbers | not in the file; they follow from our seed and the epoch |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import __version__
from torch import Tensor

from jepa_lightning.checkpoint import AtomicCheckpointIO
from jepa_lightning.interop.meta import NETWORKS, MetaFile, plain, read_meta
from jepa_lightning.interop.networks import check
from jepa_lightning.methods.base import JEPA

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Progress(NamedTuple):
    """How far a training had come.

    Attributes:
        epoch: Finished epochs.
        step: Finished optimizer steps.
    """

    epoch: int
    step: int


def progress(path: Path, content: dict[str, Any]) -> Progress:
    """Epoch and step of a file in Meta's layout.

    Raises:
        ValueError: If there is no training in it to go on with.
    """
    states = (content.get("opt") or {}).get("state") or {}
    steps = [int(state["step"]) for state in states.values() if "step" in state]
    if not isinstance(content.get("epoch"), int) or not steps or content["epoch"] < 1:
        raise ValueError(
            f"{path} has no training to go on with (finished epochs: {content.get('epoch')}, optimizer: "
            f"{len(steps)} parameters): start a new one from its networks with --init_from"
        )
    return Progress(content["epoch"], max(steps))


def optimizer_state(path: Path, content: dict[str, Any], module: JEPA) -> dict[str, Any] | None:
    """The state of the file's AdamW, as that of ``module.adamw()``; None if the file has none.

    Args:
        path: The file, for messages.
        content: What is in it.
        module: A JEPA that is set up for training, because that decides which parameters are trained.

    Raises:
        ValueError: If the file's optimizer is not that of its networks, or lacks the moments of a parameter.
    """
    optimizer = content.get("opt")
    if not isinstance(optimizer, dict) or not optimizer.get("state"):
        return None
    theirs = dict(zip(_names(path, content, optimizer), _numbers(optimizer), strict=True))
    ours = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = module.adamw().param_groups
    state: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(p for group in groups for p in group["params"]):
        name = ours[id(parameter)]
        found = optimizer["state"].get(theirs.get(name))
        if found is None or any(key not in found for key in MOMENTS):
            raise ValueError(f"{path}: its optimizer has no state of {name}, which is trained here")
        if found["exp_avg"].shape != parameter.shape:
            raise ValueError(f"{path}: its optimizer's state of {name} is {list(found['exp_avg'].shape)}")
        # Copies: an optimizer updates its moments in place.
        state[number] = {key: torch.as_tensor(found[key], dtype=torch.float32).clone() for key in MOMENTS}
    return {"state": state, "param_groups": _grouped(groups)}


def _names(path: Path, content: dict[str, Any], optimizer: dict[str, Any]) -> list[str]:
    """Names of the parameters in the order in which the official code gave them to its optimizer.

    Decayed ones of the encoder, then of the predictor, then the others of each; position tables count as decayed
    parameters, although nothing trains them.
    """
    networks = [(name, plain(path, name, content[name])) for name in ("encoder", "predictor")]
    names = []
    for decayed in (True, False):
        for network, state in networks:
            kept = [name for name, tensor in state.items() if decayed == (tensor.ndim > 1 and "bias" not in name)]
            names += [f"{network}.{name}" for name in kept]
    count = len(_numbers(optimizer))
    if len(names) != count:
        raise ValueError(f"{path}: its optimizer has {count} parameters, its encoder and predictor have {len(names)}")
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


class MetaCheckpointIO(AtomicCheckpointIO):
    """Lets a trainer read a file in Meta's layout as if Lightning had written it; writes as always.

    Args:
        module: The method that is trained.
    """

    def __init__(self, module: JEPA) -> None:
        self.module = module

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content of a Lightning checkpoint of the same training.

        Raises:
            ValueError: If the file is not of this method, or has no training to go on with.
        """
        file = read_meta(Path(path))
        state = self._networks(file)
        if self.module.trainer.training:
            epoch, step = progress(file.path, file.content)
            moments = optimizer_state(file.path, file.content, self.module)
            loops = {"fit_loop": fit_loop(self.module.trainer.fit_loop.state_dict(), epoch, step)}
            training = {"optimizer_states": [moments], "lr_schedulers": [], "loops": loops}
        else:
            epoch, step, training = 0, 0, {}
        about = {"epoch": epoch, "global_step": step, "pytorch-lightning_version": __version__}
        return {**about, "state_dict": state, **training}

    def _networks(self, file: MetaFile) -> dict[str, Tensor]:
        """The state of the method, its networks compared one by one."""
        missing = [name for name in NETWORKS if name not in file.networks]
        if missing:
            raise ValueError(f"{file.path} has no {', '.join(missing)}")
        for name in NETWORKS:
            network = getattr(self.module, name, None)
            if network is None:
                raise ValueError(f"{file.path} has a {name}, {type(self.module).__name__} has none")
            try:
                check(file.path, name, network.state_dict(), file.networks[name])
            except ValueError as error:
                raise ValueError(f"{error}. Give the model of that training, or --init_from") from error
        return {f"{name}.{key}": tensor for name in NETWORKS for key, tensor in file.networks[name].items()}


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
