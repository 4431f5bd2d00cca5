from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch

from jepa_lightning.callbacks.pictures import GREY, Pictures, pca_rgb, show_only
from jepa_lightning.masking import MaskedBatch, TokenMasks
from jepa_lightning.models import VisionTransformer


def test_only_the_kept_patches_are_bright() -> None:
    shown = show_only(torch.ones(2, 3, 1, 8, 16), torch.tensor([[0, 7], [1, 1]]), (1, 2, 4))[:, :, 0]
    patches = shown.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(1, 4, 5)).flatten(1)  # (2, 8)
    expected = torch.full((2, 8), GREY)
    expected[0, [0, 7]] = expected[1, 1] = 1.0
    torch.testing.assert_close(patches, expected)


def test_padding_brightens_no_patch() -> None:
    kept = torch.tensor([[0, 7, -1], [1, -1, -1]])
    shown = show_only(torch.ones(2, 3, 1, 8, 16), kept, (1, 2, 4))
    assert torch.equal(shown[:1], show_only(torch.ones(1, 3, 1, 8, 16), kept[:1, :2], (1, 2, 4)))
    assert torch.equal(shown[1:], show_only(torch.ones(1, 3, 1, 8, 16), kept[1:, :1], (1, 2, 4)))


def test_tubes_are_bright_in_their_frames_only() -> None:
    shown = show_only(torch.ones(1, 3, 2, 4, 4), torch.tensor([[0, 7]]), (2, 2, 2))
    assert (shown[0, :, 0, :2, :2] == 1).all()
    assert (shown[0, :, 1, 2:, 2:] == 1).all()
    assert float(shown.sum()) == 3 * (8 * 1.0 + 24 * GREY)


def test_a_clip_has_time_in_columns_and_masks_in_rows(tiny_encoder: Callable[..., VisionTransformer]) -> None:
    encoder = tiny_encoder(num_frames=4, tubelet_size=2)
    masks = tuple(TokenMasks(torch.tensor([[0], [1]]), torch.tensor([[[2, 3]], [[4, 5]]])) for _ in range(2))
    batch = MaskedBatch(torch.rand(2, 3, 4, 32, 32), masks)
    module = SimpleNamespace(encoder=encoder, encode=encoder)
    data = SimpleNamespace(denormalize=lambda inputs: inputs)
    picture = Pictures(images=6, side=32).draw(batch, module, data)
    cell = 32 + 4
    assert tuple(picture.shape) == (3, 2 * 6 * cell + 4, 2 * cell + 4)  # 2 clips x (frames, 4 masks, PCA); 2 steps
    first, second = batch.inputs[0, :, 0], batch.inputs[0, :, 2]
    torch.testing.assert_close(picture[:, 4:36, 4:36], first)
    torch.testing.assert_close(picture[:, 4:36, 40:72], second)


def test_of_several_clips_of_a_video_the_first_is_drawn(tiny_encoder: Callable[..., VisionTransformer]) -> None:
    encoder = tiny_encoder(num_frames=4, tubelet_size=2)
    module = SimpleNamespace(encoder=encoder, encode=encoder)
    data, clips = SimpleNamespace(denormalize=lambda inputs: inputs), torch.rand(2, 3, 3, 4, 32, 32)
    picture = Pictures(images=6, side=32)
    alone = picture.draw(MaskedBatch(clips[:, 0], ()), module, data)
    assert torch.equal(picture.draw(MaskedBatch(clips, ()), module, data), alone)


def test_groups_of_patches_with_like_features_get_one_colour() -> None:
    kinds = torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2]).view(1, 9)
    centres = torch.randn(3, 16)
    colours = pca_rgb(centres[kinds] + 1e-4 * torch.randn(1, 9, 16), (1, 3, 3)).flatten(2)[0].T  # (9, 3)
    for kind in range(3):
        group = colours[kinds[0] == kind]
        assert float((group - group[0])[:, :2].abs().max()) < 0.05
    assert float(colours.min()) >= 0.0
    assert float(colours.max()) <= 1.0


def test_two_pictures_of_the_same_features_are_equal() -> None:
    tokens = torch.randn(2, 9, 16)
    torch.testing.assert_close(
        pca_rgb(tokens, (1, 3, 3)), pca_rgb(tokens.flip(0), (1, 3, 3)).flip(0), atol=1e-4, rtol=0
    )
