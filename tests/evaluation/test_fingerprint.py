from __future__ import annotations

import torch
from torch import nn

from jepa_lightning.evaluation.fingerprint import fingerprint


class Stateful(nn.Linear):
    """Keeps something that is no tensor."""

    def get_extra_state(self) -> object:
        return {"a": 1}


def test_it_follows_from_names_shapes_and_numbers() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    print_of = fingerprint(network)
    assert fingerprint(nn.Sequential(network)) != print_of
    assert len(print_of) == 16
    with torch.no_grad():
        network.weight[1, 2] += 1e-3
    assert fingerprint(network) != print_of


def test_it_is_the_one_that_checkpoints_of_probes_hold() -> None:
    network = nn.Linear(3, 2)
    network.load_state_dict({"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)})
    assert fingerprint(network) == "e131cdbef0c83e29"


def test_state_that_is_no_tensor_does_not_count() -> None:
    stateful, plain = Stateful(3, 2), nn.Linear(3, 2)
    plain.load_state_dict({name: value for name, value in stateful.state_dict().items() if "extra" not in name})
    assert fingerprint(stateful) == fingerprint(plain)
