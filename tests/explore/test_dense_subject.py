from __future__ import annotations

import pytest
import torch

from jepa_lightning.explore.subject import Subject
from jepa_lightning.models import DensePredictor, DenseVisionTransformer


@pytest.mark.parametrize(("frames", "tokens"), [(4, 8), (1, 4)])
def test_networks_of_v_jepa_2_1_are_looked_at_and_predict_all_levels(frames: int, tokens: int) -> None:
    encoder = DenseVisionTransformer(16, 8, 3, 24, 5, 2, num_frames=4)
    subject = Subject(encoder, encoder, DensePredictor(encoder, 16, 1, 2), (0.5,) * 3, (0.25,) * 3)
    pixels = torch.randint(256, (3, frames, 16, 16), dtype=torch.uint8)
    for layer in range(5):
        maps, features = subject.look(pixels, layer)
        assert maps.shape == (2, tokens, tokens)
        assert torch.equal(features, subject.tokens(pixels, layer))
    assert torch.equal(subject.tokens(pixels), subject.tokens(pixels, 4))
    targets = subject.targets(pixels)
    levels = targets.unflatten(1, (4, 24))
    assert targets.shape == (tokens, 96)
    torch.testing.assert_close(levels.mean(dim=-1), torch.zeros(tokens, 4), rtol=0, atol=1e-5)
    expected = subject.expect(pixels, torch.arange(tokens) % 2 == 0)
    assert expected.predicted.shape == expected.seen.shape == (tokens // 2, 96)
    assert subject.surprise(pixels).shape == (tokens,)
