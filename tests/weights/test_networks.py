from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jepa_lightning.models import SinCos3D, VisionTransformer
from jepa_lightning.weights.file import File
from jepa_lightning.weights.networks import check, check_depth, describing, family, filled, mlp_ratio
from jepa_lightning.weights.policy import CheckpointError, DoesNotFit, trusting

FILE = File(Path("x"), {}, {}, by_torch=False)


def test_a_filled_network_is_frozen_and_has_the_tensors_that_were_given() -> None:
    weight = torch.randn(2, 3, dtype=torch.float16)
    network = filled(FILE, "net", lambda: nn.Linear(3, 2, bias=False), {"weight": weight})
    assert torch.equal(network.weight, weight.float())
    assert not network.training
    assert not network.weight.requires_grad


def test_nothing_is_initialised_on_the_way_unless_a_tensor_is_not_in_the_file() -> None:
    devices: list[str] = []

    class Watching(nn.Module):
        def __init__(self, table: bool = False) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2))
            if table:
                self.register_buffer("table", torch.arange(3.0), persistent=False)
            devices.append(str(self.weight.device))

    filled(FILE, "net", Watching, {"weight": torch.ones(2)})
    assert devices == ["meta"]
    network = filled(FILE, "net", lambda: Watching(table=True), {"weight": torch.ones(2)})
    assert devices == ["meta", "meta", "cpu"]
    assert torch.equal(network.get_buffer("table"), torch.arange(3.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_unless_allowed(value: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 2] = value
    with pytest.raises(DoesNotFit, match=r"^x: net.weight has 1 of 6 values .*--allow_non_finite"):
        filled(FILE, "net", lambda: nn.Linear(3, 2, bias=False), {"weight": weight})
    with trusting(allow_non_finite=True):
        network = filled(FILE, "net", lambda: nn.Linear(3, 2, bias=False), {"weight": weight})
    torch.testing.assert_close(network.weight, weight, equal_nan=True)


def test_what_does_not_fit_is_named_with_file_and_network() -> None:
    expected = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(
        ValueError, match=r"^model.bin: net does not fit: missing a; unexpected c; b is \[4\], expected"
    ):
        check(Path("model.bin"), "net", expected, {"b": torch.ones(4), "c": torch.ones(1)})
    check(Path("model.bin"), "net", expected, expected)


def test_of_many_problems_five_are_shown() -> None:
    with pytest.raises(ValueError, match=r"and 4 more$"):
        check(Path("x"), "net", {str(number): torch.ones(1) for number in range(9)}, {})


@pytest.mark.parametrize(("hidden", "dim"), [(3072, 768), (6144, 1408), (79, 24), (61, 28), (1, 24)])
def test_the_ratio_gives_the_hidden_width_back(hidden: int, dim: int) -> None:
    assert int(dim * mlp_ratio(hidden, dim)) == hidden


def test_families_are_told_by_what_the_encoder_has(image_source: Any, clip_source: Any) -> None:
    assert family(image_source().networks.encoder) == "I-JEPA"
    assert family(clip_source().networks.encoder) == "V-JEPA 2"
    assert family(clip_source(positions=SinCos3D()).networks.encoder) == "V-JEPA"
    assert isinstance(clip_source().networks.encoder, VisionTransformer)


def test_whatever_a_description_raises_names_the_file() -> None:
    message = r"^x/a.pt describes a network that cannot be built \(.*\): check what was given \(num_heads, img_s"
    faults: list[Any] = [lambda: 1 % None, lambda: {}["a"], lambda: 1 / 0, lambda: torch.empty(-1)]
    for fault in faults:
        with pytest.raises(ValueError, match=message), describing(Path("x/a.pt")):
            fault()
    with pytest.raises(CheckpointError, match=r"^x/a.pt has no tensor$"), describing(Path("x/a.pt")):
        raise CheckpointError("x/a.pt has no tensor")


def test_a_file_cannot_ask_for_a_million_blocks() -> None:
    check_depth(Path("a.pt"), 48, None, "24")
    with pytest.raises(ValueError, match=r"a.pt describes a network of 1,000,000 blocks, which none has"):
        check_depth(Path("a.pt"), 12, 10**6)
