from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.models import VisionTransformer
from jepa_lightning.models.average_pool import PIXEL_FEATURES, AveragePool, pooled, raw_pixels

EncoderFactory = Callable[..., VisionTransformer]


def scattered(encoder: VisionTransformer) -> VisionTransformer:
    nn.init.normal_(encoder.norm.weight)
    nn.init.normal_(encoder.norm.bias)
    return encoder.eval()


def test_the_last_block_is_the_mean_of_the_tokens(tiny_encoder: EncoderFactory) -> None:
    encoder, images = scattered(tiny_encoder()), torch.randn(3, 3, 32, 32)
    (found,) = pooled(encoder, images, [AveragePool()])
    assert torch.equal(found, encoder(images).mean(dim=1))


@pytest.mark.parametrize("frames", [1, 4])
def test_several_blocks_are_side_by_side_with_the_last_at_the_end(tiny_encoder: EncoderFactory, frames: int) -> None:
    clips = {"num_frames": 4, "tubelet_size": 2} if frames > 1 else {}
    encoder = scattered(tiny_encoder(depth=4, **clips))
    inputs = torch.randn(2, 3, *([frames] if frames > 1 else []), 32, 32)
    kinds = [AveragePool(3), AveragePool(1), AveragePool(2), AveragePool(4)]
    found = pooled(encoder, inputs, kinds)
    layers = [layer.mean(dim=1) for layer in encoder(inputs, layers=[0, 1, 2, 3])]
    for kind, features in zip(kinds, found, strict=True):
        torch.testing.assert_close(features, torch.cat(layers[-kind.blocks :], dim=1), rtol=0, atol=1e-6)
    assert not any(block._forward_hooks for block in encoder.blocks)


def test_inner_blocks_pass_through_the_final_norm(tiny_encoder: EncoderFactory) -> None:
    encoder, images = scattered(tiny_encoder(depth=3)), torch.randn(2, 3, 32, 32)
    inner: list[Tensor] = []
    encoder.blocks[1].register_forward_hook(lambda _, __, out: inner.append(out))
    (found,) = pooled(encoder, images, [AveragePool(2)])
    assert torch.equal(found[:, :32], encoder.norm(inner[0]).mean(dim=1))
    assert (found[:, :32] - inner[0].mean(dim=1)).abs().max() > 0.1


def test_more_blocks_than_there_are_and_encoders_without_blocks_are_refused(tiny_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match="of 3 blocks are wanted, VisionTransformer shows 2: use fewer"):
        pooled(tiny_encoder(), torch.randn(1, 3, 32, 32), [AveragePool(3)])
    with pytest.raises(ValueError, match="Identity shows 1: use fewer"):
        pooled(nn.Identity(), torch.randn(1, 3, 32, 32), [AveragePool(2)])
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        AveragePool(0)


def test_kinds_have_names() -> None:
    assert [str(AveragePool()), str(AveragePool(4))] == ["last block", "last 4 blocks"]


def test_raw_pixels_are_averages_of_boxes() -> None:
    images = torch.randn(2, 3, 64, 96)
    expected = images.unflatten(2, (16, 4)).unflatten(4, (16, 6)).mean(dim=(3, 5)).flatten(1)
    torch.testing.assert_close(raw_pixels(images), expected)
    clips = torch.randn(2, 3, 8, 32, 32)
    expected = clips.unflatten(2, (4, 2)).unflatten(4, (8, 4)).unflatten(6, (8, 4)).mean(dim=(3, 5, 7)).flatten(1)
    torch.testing.assert_close(raw_pixels(clips), expected)
    assert raw_pixels(images).shape == (2, PIXEL_FEATURES) == raw_pixels(clips).shape


def test_small_images_are_repeated() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(raw_pixels(images), images.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1))
    assert raw_pixels(torch.randn(2, 3, 2, 8, 8)).shape == (2, PIXEL_FEATURES)
