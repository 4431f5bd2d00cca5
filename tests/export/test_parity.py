from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from jepa_lightning.export.parity import TOLERANCE, Comparison, Parity, compare
from jepa_lightning.export.samples import samples
from jepa_lightning.export.source import Functions, functions_of


def with_difference(difference: float) -> Parity:
    return Parity("x 1.0", [Comparison("tokens", "random", (2, 3), difference, 4.0)])


@pytest.mark.parametrize(
    ("difference", "passed"), [(0.0, True), (TOLERANCE, True), (1.1 * TOLERANCE, False), (float("inf"), False)]
)
def test_a_difference_above_the_tolerance_fails(difference: float, passed: bool) -> None:
    assert with_difference(difference).passed == passed


def test_nothing_compared_is_nothing_proven() -> None:
    assert not Parity("x 1.0", []).passed


def test_the_same_networks_agree_in_all_that_they_compute(clip_source: Any) -> None:
    source = clip_source(predictor=True, classes=3)
    found = compare(functions_of(source.networks), functions_of(source.networks), samples(source), "torch")
    assert found.passed
    assert [(each.what, each.inputs) for each in found.comparisons] == [
        (what, inputs) for inputs in ("random", "clips") for what in ("tokens", "logits", "predicted tokens")
    ]
    assert all(each.difference == 0 and each.magnitude > 0.1 for each in found.comparisons)
    assert found.library == f"torch {torch.__version__.split('+')[0]}" or found.library.startswith("torch ")


@pytest.mark.parametrize("what", ["encoder", "predictor", "classifier"])
def test_one_changed_weight_is_found(clip_source: Any, what: str) -> None:
    ours = clip_source(predictor=True, classes=3)
    torch.manual_seed(0)
    same = clip_source(predictor=True, classes=3)
    for mine, theirs in zip(ours.networks, same.networks, strict=True):
        if isinstance(mine, torch.nn.Module):
            theirs.load_state_dict(mine.state_dict())
    assert compare(functions_of(ours.networks), functions_of(same.networks), samples(ours), "torch").passed
    with torch.no_grad():
        list(getattr(same.networks, what).parameters())[-1][0] += 0.01
    assert not compare(functions_of(ours.networks), functions_of(same.networks), samples(ours), "torch").passed


def test_another_mask_token_is_found(clip_source: Any) -> None:
    source = clip_source(predictor=True)
    other = source._replace(networks=source.networks._replace(mask_index=1))
    found = compare(functions_of(source.networks), functions_of(other.networks), samples(source), "torch").comparisons
    assert [each.difference > TOLERANCE for each in found] == [False, True, False, True]


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x * float("nan"), lambda x: x + float("inf")])
def test_another_shape_or_no_number_is_an_infinite_difference(image_source: Any, wrong: Any) -> None:
    ours = functions_of(image_source().networks)
    assert ours.encode is not None
    encode = ours.encode
    theirs = Functions(encode=lambda inputs: wrong(encode(inputs)))
    found = compare(ours, theirs, samples(image_source()), "torch")
    assert {each.difference for each in found.comparisons} == {float("inf")}
    assert not found.passed


def test_the_report_is_a_table_for_people_and_data_for_programs() -> None:
    parity = with_difference(3e-6)
    assert "| tokens | random | 2x3   | 4             | 3.0e-06            |" in parity.table()
    content = json.loads(json.dumps(parity.content()))
    assert (content["passed"], content["tolerance"], content["reloaded_in"]) == (True, 1e-4, "x 1.0")
    assert content["comparisons"][0]["shape"] == [2, 3]
