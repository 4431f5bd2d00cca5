from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from jepa_lightning.masking import MaskedBatch
from jepa_lightning.methods import IJEPA
from jepa_lightning.methods.groups import LayerDecay, learning_rate
from jepa_lightning.muon import Muon


def test_every_parameter_learns_at_the_rate_of_its_block(tiny_ijepa: Callable[..., IJEPA]) -> None:
    module = tiny_ijepa(optimizer=LayerDecay(0.5, predictor_first=2.0, optimizer=Muon))
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, Muon)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    depth = module.encoder.depth
    for name, parameter in module.encoder.named_parameters():
        before = depth + 1 if name.startswith("patch_embed") else 0
        steps = depth - int(name.split(".")[1]) if name.startswith("blocks") else before
        assert found[parameter]["scale"] == 0.5**steps, name
        assert learning_rate(found[parameter], 1.0, 1.9) == 0.0
        assert learning_rate(found[parameter], 1.0, 2.0) == 0.5**steps
    for parameter in module.predictor.parameters():
        assert learning_rate(found[parameter], 1.0, 0.0) == 1.0
    wanted = {p for p in module.parameters() if p.requires_grad}
    assert set(found) == wanted
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(wanted)  # each once
    assert all(group["decay"] == (p.ndim > 1) for p, group in found.items())


def test_the_encoder_stands_still_while_the_predictor_learns_first(
    tiny_ijepa: Callable[..., IJEPA], tiny_batch: Callable[..., MaskedBatch], quiet_trainer: Callable[..., Trainer]
) -> None:
    module = tiny_ijepa(optimizer=LayerDecay(0.9, predictor_first=1.0))
    start = {name: p.clone() for name, p in module.named_parameters()}
    seen: list[dict[str, bool]] = []

    def moved() -> dict[str, bool]:
        parts = ("encoder", "predictor")
        now = dict(module.named_parameters())
        return {
            part: any(not torch.equal(now[n], start[n]) for n in start if n.startswith(part + ".")) for part in parts
        }

    module.on_train_epoch_end = lambda: seen.append(moved())  # type: ignore[method-assign]
    one: Any = DataLoader([tiny_batch()] * 2, batch_size=None)
    quiet_trainer(max_epochs=2).fit(module, one)
    assert seen[0] == {"encoder": False, "predictor": True}
    assert all(seen[1].values())


@pytest.mark.parametrize("wrong", [{"decay": 0.0}, {"decay": 1.1}, {"predictor_first": -1.0}])
def test_rates_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="decay must be above 0"):
        LayerDecay(**wrong)
