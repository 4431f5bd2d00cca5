from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jepa_lightning.interop.networks import (
    Preprocessing,
    check,
    check_depth,
    describing,
    family,
    filled,
    mlp_ratio,
    papers_preprocessing,
)
from jepa_lightning.models import SinCos3D, VisionTransformer


def test_a_filled_network_is_frozen_and_has_the_tensors_that_were_given() -> None:
    weight = torch.randn(2, 3, dtype=torch.float16)
    network = filled(Path("x"), "net", lambda: nn.Linear(3, 2, bias=False), {"weight": weight})
    assert torch.equal(network.weight, weight.float())
    assert not network.training
    assert not network.weight.requires_grad


def test_nothing_is_initialised_on_the_way_unless_asked() -> None:
    devices: list[str] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(2))
            devices.append(str(self.weight.device))

    filled(Path("x"), "net", Watching, {"weight": torch.ones(2)})
    filled(Path("x"), "net", Watching, {"weight": torch.ones(2)}, "cpu")
    assert devices == ["meta", "cpu"]


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


def test_the_papers_cut_the_centre_out_of_what_is_a_seventh_larger() -> None:
    assert papers_preprocessing((224, 224)).shorter_side == 256
    assert papers_preprocessing((64, 64)).covered == (73, 73)
    assert papers_preprocessing((32, 48)).covered == (37, 55)
    assert Preprocessing((32, 48), shorter_side=40).covered == (40, 60)
    assert Preprocessing((32, 48)).covered == (32, 48)


def test_whatever_a_description_raises_names_the_file() -> None:
    message = r"^x/a.pt describes a network that cannot be built \(.*\): check what was given \(num_heads, img_s"
    faults: list[Any] = [lambda: 1 % None, lambda: {}["a"], lambda: 1 / 0, lambda: torch.empty(-1)]
    for fault in faults:
        with pytest.raises(ValueError, match=message), describing(Path("x/a.pt")):
            fault()
    with pytest.raises(ValueError, match=r"^x/a.pt has no tensor$"), describing(Path("x/a.pt")):
        raise ValueError("x/a.pt has no tensor")


def test_a_file_cannot_ask_for_a_million_blocks() -> None:
    check_depth(Path("a.pt"), 48, None, "24")
    with pytest.raises(ValueError, match=r"a.pt describes a network of 1,000,000 blocks, which none has"):
        check_depth(Path("a.pt"), 12, 10**6)
