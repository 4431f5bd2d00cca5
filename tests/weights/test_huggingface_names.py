from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa_lightning.weights.huggingface_names import (
    IJEPA,
    IJEPA_IN_MEMORY,
    VJEPA2,
    VJEPA2_PREDICTOR,
    VJEPA2_PROBE,
    rescaled,
)
from jepa_lightning.weights.names import to_theirs


def test_every_tensor_of_our_networks_has_a_name(image_source: Any, clip_source: Any) -> None:
    encoder = image_source().networks.encoder
    networks = clip_source(predictor=True, classes=2).networks
    predicting = {k: v for k, v in networks.predictor.state_dict().items() if not k.startswith("mask_tokens")}
    for table, state, parts in (
        (IJEPA, encoder.state_dict(), 2),
        (IJEPA_IN_MEMORY, encoder.state_dict(), 2),
        (VJEPA2, networks.encoder.state_dict(), 2),
        (VJEPA2_PREDICTOR, predicting, 1),
        (VJEPA2_PROBE, networks.classifier.state_dict(), 2),
    ):
        count = len(state) + 4 * parts + 2 * (table is VJEPA2_PROBE)  # weight and bias of qkv become six; kv four
        assert len(to_theirs(state, table)) == count


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_rescaled_tensors_with_another_epsilon_compute_the_same(
    clip_source: Any, image_source: Any, epsilon: float
) -> None:
    for source in (clip_source(predictor=True), image_source(predictor=True)):
        inputs = torch.randn(source.shape(2))
        encoder, predictor = source.networks.encoder, source.networks.predictor
        tokens = encoder(inputs)
        context, targets = torch.arange(3).expand(2, -1), torch.tensor([[[3]], [[2]]])
        predicted = predictor(tokens[:, :3], context, targets)
        for network in (encoder, predictor):
            network.load_state_dict(rescaled(network.state_dict(), 1e-6, epsilon))
            for module in network.modules():
                if isinstance(module, torch.nn.LayerNorm):
                    module.eps = epsilon
        torch.testing.assert_close(encoder(inputs), tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(predictor(tokens[:, :3], context, targets), predicted, rtol=0, atol=1e-5)


def test_without_the_rescaling_another_epsilon_shows(image_source: Any) -> None:
    source = image_source()
    inputs, encoder = torch.randn(source.shape(2)), source.networks.encoder
    tokens = encoder(inputs)
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-3
    assert (encoder(inputs) - tokens).abs().max() > 1e-4


def test_the_same_epsilon_changes_nothing(image_source: Any) -> None:
    state = image_source().networks.encoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in rescaled(state, 1e-6, 1e-6).items())
