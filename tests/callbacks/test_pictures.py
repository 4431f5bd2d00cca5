from __future__ import annotations

import torch

from jepa_lightning.callbacks.pictures import GREY, pca_rgb, show_only


def test_only_the_kept_patches_are_bright() -> None:
    shown = show_only(torch.ones(2, 3, 8, 16), torch.tensor([[0, 7], [1, 1]]), (2, 4))
    patches = shown.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(1, 4, 5)).flatten(1)  # (2, 8)
    expected = torch.full((2, 8), GREY)
    expected[0, [0, 7]] = expected[1, 1] = 1.0
    torch.testing.assert_close(patches, expected)


def test_groups_of_patches_with_like_features_get_one_colour() -> None:
    kinds = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2]).view(1, 9)
    centres = torch.randn(3, 16)
    colours = pca_rgb(centres[kinds] + 1e-4 * torch.randn(1, 9, 16), (3, 3)).flatten(2)[0].T  # (9, 3)
    for kind in range(3):
        group = colours[kinds[0] == kind]
        assert float((group - group[0])[:, :2].abs().max()) < 0.05
    assert float(colours.min()) >= 0.0
    assert float(colours.max()) <= 1.0


def test_two_pictures_of_the_same_features_are_equal() -> None:
    tokens = torch.randn(2, 9, 16)
    torch.testing.assert_close(pca_rgb(tokens, (3, 3)), pca_rgb(tokens.flip(0), (3, 3)).flip(0), atol=1e-4, rtol=0)
