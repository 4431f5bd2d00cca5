from __future__ import annotations

import pytest
import torch

from jepa_lightning.models import CausalVisionTransformer, DenseVisionTransformer, VisionTransformer
from jepa_lightning.models.dense_tokens import frame_tokens, pixel_tokens

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "init_std": None}


@torch.no_grad()
def test_an_image_encoder_sees_each_frame_alone() -> None:
    encoder, frames = VisionTransformer(**SIZES).eval(), torch.randn(2, 3, 3, 16, 24)  # type: ignore[arg-type]
    found = frame_tokens(encoder, frames)
    assert found.shape == (2, 3, 2, 3, 24)
    torch.testing.assert_close(found[1, 2].flatten(0, 1), encoder(frames[1, 2][None])[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", [VisionTransformer, DenseVisionTransformer])
def test_an_encoder_of_clips_sees_tubelets_an_image_and_long_sequences_in_pieces(kind: type[VisionTransformer]) -> None:
    encoder = kind(**SIZES, num_frames=4, tubelet_size=2).eval()  # type: ignore[arg-type]
    frames = torch.randn(1, 9, 3, 16, 16)
    clips = frames.transpose(1, 2)
    found = frame_tokens(encoder, frames)
    assert found.shape == (1, 5, 2, 2, 24)  # the last frame fills its tubelet
    torch.testing.assert_close(found[:, :2].flatten(1, 3), encoder(clips[:, :, :4]))
    torch.testing.assert_close(found[:, 2:4].flatten(1, 3), encoder(clips[:, :, 4:8]))
    end = torch.cat([clips[:, :, 6:], clips[:, :, -1:]], dim=2)
    torch.testing.assert_close(found[:, 4].flatten(1, 2), encoder(end)[:, -4:])
    torch.testing.assert_close(frame_tokens(encoder, frames[:, :1])[:, 0].flatten(1, 2), encoder(frames[:, 0]))


@torch.no_grad()
def test_any_layer_can_be_read_and_others_are_refused() -> None:
    encoder, frames = CausalVisionTransformer(**SIZES, num_frames=2).eval(), torch.randn(1, 2, 3, 16, 16)  # type: ignore[arg-type]
    torch.testing.assert_close(frame_tokens(encoder, frames, 3), frame_tokens(encoder, frames))
    assert not torch.equal(frame_tokens(encoder, frames, 0), frame_tokens(encoder, frames))
    with pytest.raises(ValueError, match="layer 4: CausalVisionTransformer shows blocks 0 to 3"):
        frame_tokens(encoder, frames, 4)


def test_raw_pixels_have_the_place_of_their_patch() -> None:
    frames = torch.arange(2 * 3 * 16 * 8).float().reshape(1, 2, 3, 16, 8)
    found = pixel_tokens(frames, (2, 1))
    assert found.shape == (1, 2, 2, 1, 48)
    patch = frames[0, 1, :, 8:, :]  # second frame, lower patch: averaged to 4 x 4
    expected = patch.reshape(3, 4, 2, 4, 2).mean(dim=(2, 4))
    torch.testing.assert_close(found[0, 1, 1, 0].reshape(3, 4, 4), expected)
