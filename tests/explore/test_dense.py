from __future__ import annotations

import torch

from jepa_lightning.callbacks.pictures import pca_rgb
from jepa_lightning.explore.dense import DARK, components, followed


def test_components_at_the_size_of_tokens_are_those_of_the_pictures_of_a_training() -> None:
    tokens = torch.randn(24, 8)
    expected = (pca_rgb(tokens[None], (2, 3, 4))[0] * 255).round().to(torch.uint8)
    assert torch.equal(components(tokens, (2, 3, 4), finer=1), expected)
    assert components(tokens, (2, 3, 4)).shape == (3, 2, 12, 16)


def test_a_threshold_hides_one_side_of_the_first_component_and_its_opposite_the_other() -> None:
    tokens = 0.01 * torch.randn(16, 6)
    tokens[:8, 0] += 5.0
    above, below = (components(tokens, (1, 4, 4), finer=1, threshold=value) for value in (0.5, -0.5))
    dark = [(shown == DARK).all(dim=0).flatten() for shown in (above, below)]
    halves = torch.arange(16) < 8
    assert any(torch.equal(dark[0], side) and torch.equal(dark[1], ~side) for side in (halves, ~halves))


def test_a_patch_is_followed_to_where_its_features_are() -> None:
    tokens = torch.randn(12, 16)  # 3 steps of 2 x 2
    tokens[5] = tokens[1] + 0.01 * torch.randn(16)
    tokens[10] = tokens[1] + 0.01 * torch.randn(16)
    found = followed(tokens, (3, 2, 2), 1)
    assert found[:4].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert (int(found[4:8].argmax()), int(found[8:].argmax())) == (1, 2)
    later = followed(tokens, (3, 2, 2), 5)
    assert later[:4].isnan().all()
    assert not later[4:].isnan().any()
