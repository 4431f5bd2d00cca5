"""The attentive probe against the official code: its weights under the official names, on golden tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning.models.pooling import AttentiveClassifier

Golden = Callable[[str], dict[str, Any]]
UNUSED = "pooler.cross_attention_block.xattn.proj."
"""In the files of V-JEPA, but never applied; V-JEPA 2 has dropped it."""


def official(golden: Golden, name: str) -> tuple[AttentiveClassifier, dict[str, Tensor], dict[str, Tensor]]:
    """Our classifier with the official weights, those weights, and all numbers."""
    probe, numbers = golden(f"{name}/golden.json")["model"]["probe"], golden(f"{name}/golden.safetensors")
    state = {key.removeprefix("probe.state."): x for key, x in numbers.items() if key.startswith("probe.state.")}
    classifier = AttentiveClassifier(probe["embed_dim"], probe["num_classes"], probe["num_heads"], probe["depth"])
    classifier.load_state_dict({key: x for key, x in state.items() if not key.startswith(UNUSED)})
    return classifier, state, numbers


@pytest.mark.parametrize("name", ["vjepa1_tiny", "vjepa2_tiny"])
def test_logits(golden: Golden, name: str) -> None:
    classifier, _, numbers = official(golden, name)
    found = classifier(numbers["target_full"])
    assert found.shape == numbers["probe.logits"].shape == (3, 5)
    torch.testing.assert_close(found, numbers["probe.logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "depth", "unused"), [("vjepa1_tiny", 1, 2), ("vjepa2_tiny", 4, 0)])
def test_depth_and_what_is_left_out_of_the_file(golden: Golden, name: str, depth: int, unused: int) -> None:
    classifier, state, _ = official(golden, name)
    assert 1 + len(getattr(classifier.pooler, "blocks", ())) == depth
    assert sum(key.startswith(UNUSED) for key in state) == unused


@pytest.mark.parametrize("name", ["vjepa1_tiny", "vjepa2_tiny"])
def test_the_encoders_epsilon_would_give_other_logits(golden: Golden, name: str) -> None:
    classifier, _, numbers = official(golden, name)
    for module in classifier.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    assert (classifier(numbers["target_full"]) - numbers["probe.logits"]).abs().max() > 2e-5
