from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jepa_lightning.weights.names import Table, to_ours, to_theirs

TABLE: Table = (
    ("blocks.*.qkv.", ("layer.*.q.", "layer.*.k.", "layer.*.v.")),
    ("blocks.*.norm1.", ("layer.*.before.",)),
    ("norm.", ("last.",)),
    ("table", ("positions",)),
)


def state() -> dict[str, torch.Tensor]:
    return {
        "blocks.0.qkv.weight": torch.arange(12.0).reshape(6, 2),
        "blocks.11.qkv.bias": torch.arange(6.0),
        "blocks.11.norm1.weight": torch.ones(2),
        "norm.bias": torch.zeros(2),
        "table": torch.ones(1, 4, 2),
    }


def test_names_are_translated_and_fused_rows_are_split_in_order() -> None:
    theirs = to_theirs(state(), TABLE)
    assert set(theirs) == {
        "layer.0.q.weight", "layer.0.k.weight", "layer.0.v.weight", "layer.11.q.bias", "layer.11.k.bias",
        "layer.11.v.bias", "layer.11.before.weight", "last.bias", "positions",
    }  # fmt: skip
    assert theirs["layer.0.k.weight"].tolist() == [[4, 5], [6, 7]]
    assert theirs["layer.11.v.bias"].tolist() == [4, 5]


def test_there_and_back_gives_the_same_tensors_in_any_order() -> None:
    theirs = to_theirs(state(), TABLE)
    ours = to_ours(Path("x"), dict(reversed(theirs.items())), TABLE)
    assert set(ours) == set(state())
    assert all(torch.equal(ours[name], tensor) for name, tensor in state().items())


def test_a_name_without_a_place_is_an_error_in_both_directions() -> None:
    with pytest.raises(ValueError, match=r"^model: unexpected tensor layer.0.gamma"):
        to_ours(Path("model"), {"layer.0.gamma": torch.ones(1)}, TABLE)
    with pytest.raises(KeyError, match="gamma"):
        to_theirs({"gamma": torch.ones(1)}, TABLE)


def test_a_part_that_is_missing_is_named() -> None:
    theirs = to_theirs(state(), TABLE)
    del theirs["layer.0.k.weight"]
    with pytest.raises(ValueError, match=r"^model: of blocks.0.qkv.weight only 2 of 3 parts are there"):
        to_ours(Path("model"), theirs, TABLE)
