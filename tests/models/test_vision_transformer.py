from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.models import SIZES, Encoder, VisionTransformer
from jepa_lightning.models.vision_transformer import pair, token_grid

EncoderFactory = Callable[..., VisionTransformer]

COUNTS = {
    "tiny": (5_486_400, 149),
    "small": (21_589_632, 149),
    "base": (85_646_592, 149),
    "large": (303_098_880, 293),
    "huge": (630_664_960, 389),
    "giant": (1_011_092_608, 485),
}


def on_meta(**settings: Any) -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(**settings)


@pytest.mark.parametrize("size", COUNTS)
def test_the_published_sizes_have_the_published_parameter_counts(size: str) -> None:
    encoder = on_meta(**SIZES[size])
    assert (sum(p.numel() for p in encoder.parameters()), len(encoder.state_dict())) == COUNTS[size]


def test_huge_with_patches_of_14_has_the_published_parameter_count() -> None:
    encoder = on_meta(patch_size=14, **SIZES["huge"])
    assert sum(p.numel() for p in encoder.parameters()) == 630_434_560
    assert encoder.grid == (1, 16, 16)


def test_every_published_size_is_covered_by_a_count() -> None:
    assert set(COUNTS) == set(SIZES)


def test_the_names_in_the_state_dict_are_the_official_ones(tiny_encoder: EncoderFactory) -> None:
    layers = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    names = ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    names += [f"blocks.{i}.{layer}.{part}" for i in range(2) for layer in layers for part in ("weight", "bias")]
    names += ["norm.weight", "norm.bias"]
    assert list(tiny_encoder(depth=2).state_dict()) == names


def test_positions_are_stored_but_not_trained(tiny_encoder: EncoderFactory) -> None:
    assert "pos_embed" not in dict(tiny_encoder().named_parameters())


def naive_tokens(encoder: VisionTransformer, image: Tensor, context: Tensor) -> Tensor:
    size, columns = encoder.patch_size, image.shape[-1] // encoder.patch_size
    weight, bias = encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias
    tokens = []
    for index in context.tolist():
        row, column = divmod(index, columns)
        patch = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        tokens.append((weight * patch).sum(dim=(1, 2, 3)) + bias + encoder.pos_embed[0, index])
    x = torch.stack(tokens).unsqueeze(0)
    for block in encoder.blocks:
        x = block(x)
    return encoder.norm(x)[0]


def test_context_tokens_equal_a_naive_loop_over_samples_and_patches(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(img_size=(16, 32)), torch.randn(2, 3, 16, 32)
    context = torch.tensor([[0, 3, 6], [7, 1, 2]])
    naive = torch.stack([naive_tokens(encoder, images[i], context[i]) for i in range(2)])
    torch.testing.assert_close(encoder(images, context), naive, rtol=0, atol=1e-5)


def test_without_a_context_all_tokens_are_read_in_raster_order(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(), torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(images), encoder(images, everything), rtol=0, atol=1e-6)
    assert encoder(images).shape == (2, 16, 32)


def test_context_tokens_ignore_the_pixels_outside_the_context(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(), torch.randn(1, 3, 32, 32)
    context = torch.tensor([[5, 6, 9]])
    shown = torch.zeros(4, 4, dtype=torch.bool)
    shown.view(-1)[context] = True
    pixels = shown.repeat_interleave(8, 0).repeat_interleave(8, 1)
    outside = torch.where(pixels, images, torch.randn_like(images) * 100.0)
    inside = torch.where(pixels, images + 0.1, images)
    torch.testing.assert_close(encoder(outside, context), encoder(images, context), rtol=0, atol=1e-6)
    assert (encoder(inside, context) - encoder(images, context)).abs().max() > 1e-3


def test_pixels_outside_the_context_get_no_gradient(tiny_encoder: EncoderFactory) -> None:
    encoder, images = tiny_encoder(), torch.randn(1, 3, 32, 32, requires_grad=True)
    encoder(images, torch.tensor([[0, 15]])).square().sum().backward()
    reached = images.grad.abs().sum(dim=1).reshape(4, 8, 4, 8).sum(dim=(0, 1, 3))
    assert (images.grad[..., :8, 8:] == 0).all()
    assert (images.grad[..., 8:24, :] == 0).all()
    assert reached[0] > 0
    assert reached[3] > 0


@pytest.mark.parametrize("size", [(16, 16), (48, 48), (16, 40), (64, 24)])
def test_other_sizes_work_with_resampled_positions(tiny_encoder: EncoderFactory, size: tuple[int, int]) -> None:
    encoder = tiny_encoder(img_size=32)
    images = torch.randn(2, 3, *size)
    grid = (1, size[0] // 8, size[1] // 8)
    assert encoder.grid_of(images) == grid
    assert encoder(images).shape == (2, grid[1] * grid[2], 32)
    assert torch.isfinite(encoder(images)).all()


def test_a_non_square_encoder_has_a_non_square_grid(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder(img_size=(16, 40))
    assert encoder.grid == (1, 2, 5)
    assert encoder.img_size == (16, 40)
    assert encoder(torch.randn(1, 3, 16, 40)).shape == (1, 10, 32)


def test_a_list_from_yaml_becomes_a_size() -> None:
    assert pair(14) == (14, 14)
    assert pair((14, 28)) == (14, 28)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (7, 9)])
def test_a_size_that_the_patches_do_not_divide_is_refused_with_the_numbers(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height}x{width} image .* 8x8 patches.*patch_size 8"):
        token_grid(height, width, 8)


def test_the_encoder_refuses_such_a_size_when_built_and_when_called(tiny_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match="36x36"):
        tiny_encoder(img_size=36)
    with pytest.raises(ValueError, match="32x36"):
        tiny_encoder()(torch.randn(1, 3, 32, 36))


@pytest.mark.parametrize(("asked", "std"), [(None, 0.02), (0.2, 0.2)])
def test_the_patch_projection_starts_with_the_std_asked_for(
    tiny_encoder: EncoderFactory, asked: float | None, std: float
) -> None:
    projection = tiny_encoder(patch_init_std=asked).patch_embed.proj
    assert projection.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not projection.bias.any()


def test_channels_other_than_three_work(tiny_encoder: EncoderFactory) -> None:
    assert tiny_encoder(in_chans=1)(torch.randn(2, 1, 32, 32)).shape == (2, 16, 32)


def test_an_encoder_without_forward_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (Encoder,), {})()
    assert issubclass(VisionTransformer, Encoder)
    assert issubclass(Encoder, nn.Module)
