from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.masking import padded
from jepa_lightning.models import (
    SIZES,
    BlockOptions,
    Encoder,
    EnergyBlocks,
    Positions,
    RoPE,
    SinCos2D,
    SinCos3D,
    VisionTransformer,
)
from jepa_lightning.models.vision_transformer import pair, token_grid

EncoderFactory = Callable[..., VisionTransformer]

COUNTS = {
    "tiny": (5_486_400, 149),
    "small": (21_589_632, 149),
    "base": (85_646_592, 149),
    "large": (303_098_880, 293),
    "huge": (630_664_960, 389),
    "giant": (1_011_092_608, 485),
    "giant_xformers": (1_011_092_608, 485),
}
VIDEO_COUNTS = {
    "tiny": 5_633_856,
    "small": 21_884_544,
    "base": 86_236_416,
    "large": 303_885_312,
    "huge": 631_648_000,
    "giant": 1_012_173_952,
    "giant_xformers": 1_012_173_952,
}
ALL_POSITIONS = [SinCos3D(), SinCos3D(uniform_power=False), RoPE(layout="interleaved"), RoPE(layout="tiled")]


def on_meta(**settings: Any) -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(**settings)


@pytest.mark.parametrize("size", COUNTS)
def test_the_published_sizes_have_the_published_parameter_counts(size: str) -> None:
    encoder = on_meta(**SIZES[size])
    assert (sum(p.numel() for p in encoder.parameters()), len(encoder.state_dict())) == COUNTS[size]


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
@pytest.mark.parametrize("size", VIDEO_COUNTS)
def test_the_published_sizes_for_clips_have_the_published_parameter_counts(size: str, positions: Positions) -> None:
    encoder = on_meta(num_frames=16, tubelet_size=2, positions=positions, **SIZES[size])
    assert sum(p.numel() for p in encoder.parameters()) == VIDEO_COUNTS[size]
    assert len(encoder.state_dict()) == COUNTS[size][1] - isinstance(positions, RoPE)
    assert encoder.grid == (8, 14, 14)


def test_the_giant_of_v2_has_heads_of_64_channels() -> None:
    encoder = on_meta(num_frames=16, tubelet_size=2, positions=RoPE(layout="tiled"), **SIZES["giant_xformers"])
    assert {block.attn.num_heads for block in encoder.blocks} == {22}
    assert encoder.blocks[0].mlp.fc1.out_features == 6144
    assert encoder.embed_dim // encoder.num_heads == 64


def test_huge_with_patches_of_14_has_the_published_parameter_count() -> None:
    encoder = on_meta(patch_size=14, **SIZES["huge"])
    assert sum(p.numel() for p in encoder.parameters()) == 630_434_560
    assert encoder.grid == (1, 16, 16)


def test_every_published_size_is_covered_by_a_count() -> None:
    assert set(COUNTS) == set(VIDEO_COUNTS) == set(SIZES)


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


# ---------------------------------------------------------------------- clips


@pytest.fixture
def video_encoder(tiny_encoder: EncoderFactory) -> EncoderFactory:
    def build(**overrides: Any) -> VisionTransformer:
        # Heads of 12 channels, and patches that show in the tokens.
        settings = {"embed_dim": 48, "num_frames": 4, "tubelet_size": 2, "patch_init_std": 0.1}
        return tiny_encoder(**{**settings, **overrides})

    return build


def naive_clip_tokens(encoder: VisionTransformer, clip: Tensor, context: list[int]) -> Tensor:
    frames, size = encoder.tubelet_size, encoder.patch_size
    rows, columns = clip.shape[-2] // size, clip.shape[-1] // size
    tokens, rotations = [], []
    for index in context:
        step, place = divmod(index, rows * columns)
        row, column = divmod(place, columns)
        box = clip[:, step * frames : (step + 1) * frames]
        box = box[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
        tokens.append((encoder.patch_embed.proj.weight * box).sum(dim=(1, 2, 3, 4)) + encoder.patch_embed.proj.bias)
        if encoder.pos_embed is not None:
            tokens[-1] = tokens[-1] + encoder.pos_embed[0, index]
        grid = (clip.shape[1] // frames, rows, columns)
        head_dim = encoder.embed_dim // encoder.num_heads
        rotations.append(encoder.positions.rotation(torch.tensor([[index]]), grid, head_dim))
    x = torch.stack(tokens).unsqueeze(0)
    rotation = None
    if rotations[0] is not None:
        rotation = type(rotations[0])(*(torch.cat(parts, dim=2) for parts in zip(*rotations, strict=True)))
    for block in encoder.blocks:
        x = block(x, rotation)
    return encoder.norm(x)[0]


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_context_tokens_of_clips_equal_a_naive_loop_over_samples_and_tubelets(
    video_encoder: EncoderFactory, positions: Positions
) -> None:
    encoder, clips = video_encoder(img_size=(16, 32), positions=positions), torch.randn(2, 3, 4, 16, 32)
    context = torch.tensor([[0, 3, 6, 15], [7, 11, 2, 8]])
    naive = torch.stack([naive_clip_tokens(encoder, clips[i], context[i].tolist()) for i in range(2)])
    torch.testing.assert_close(encoder(clips, context), naive, rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_tokens_of_a_whole_clip_equal_a_naive_loop(video_encoder: EncoderFactory, positions: Positions) -> None:
    encoder, clip = video_encoder(img_size=16, positions=positions), torch.randn(1, 3, 4, 16, 16)
    naive = naive_clip_tokens(encoder, clip[0], list(range(8)))
    torch.testing.assert_close(encoder(clip)[0], naive, rtol=0, atol=1e-5)


def test_clips_have_tubelets_in_raster_order_time_first(video_encoder: EncoderFactory) -> None:
    embed = video_encoder(img_size=(16, 24)).patch_embed
    clip, token = torch.zeros(1, 3, 4, 16, 24), 1 * 6 + 1 * 3 + 2
    clip[:, :, 2:4, 8:16, 16:24] = 1.0
    changed = (embed(clip) != embed(torch.zeros_like(clip)))[0].any(dim=1)
    assert changed.nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_context_tokens_of_clips_ignore_everything_outside_the_context(
    video_encoder: EncoderFactory, positions: Positions
) -> None:
    encoder, clips = video_encoder(positions=positions), torch.randn(1, 3, 4, 32, 32)
    context = torch.tensor([[5, 22, 9]])
    shown = torch.zeros(2, 4, 4, dtype=torch.bool)
    shown.view(-1)[context] = True
    pixels = shown.repeat_interleave(2, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    outside = torch.where(pixels, clips, torch.randn_like(clips) * 100.0)
    inside = torch.where(pixels, clips + 0.1, clips)
    torch.testing.assert_close(encoder(outside, context), encoder(clips, context), rtol=0, atol=1e-6)
    assert (encoder(inside, context) - encoder(clips, context)).abs().max() > 1e-3


def test_tubelets_that_are_not_shown_are_not_computed_also_in_the_gradient(video_encoder: EncoderFactory) -> None:
    embed, clips = video_encoder(img_size=(16, 24)).patch_embed, torch.randn(2, 3, 4, 16, 24)
    rows = torch.tensor([5, 0, 11, 12 + 3, 12 + 3])  # 12 tubelets a clip, of (2, 2, 3)
    weight = torch.randn(len(rows), embed.proj.out_channels)
    every = embed(clips).flatten(0, 1)[rows]
    wanted = torch.autograd.grad((every * weight).sum(), list(embed.parameters()))
    shown = torch.zeros(2 * 12, dtype=torch.bool).index_fill(0, rows, value=True).reshape(2, 2, 2, 3)
    pixels = shown.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3).unsqueeze(1)
    found = embed(clips.masked_fill(~pixels, torch.nan), rows)  # what is computed of these shows in the gradient
    torch.testing.assert_close(found, every, rtol=0, atol=1e-5)
    gradient = torch.autograd.grad((found * weight).sum(), list(embed.parameters()))
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_an_image_is_one_tubelet_of_equal_frames(video_encoder: EncoderFactory, positions: Positions) -> None:
    encoder, image = video_encoder(positions=positions), torch.randn(2, 3, 32, 32)
    repeated = image.unsqueeze(2).repeat(1, 1, 2, 1, 1)
    assert encoder.grid_of(image) == encoder.grid_of(repeated) == (1, 4, 4)
    assert encoder(image).shape == (2, 16, 48)
    torch.testing.assert_close(encoder(image), encoder(repeated), rtol=0, atol=1e-6)
    context = torch.tensor([[1, 7], [15, 2]])
    torch.testing.assert_close(encoder(image, context), encoder(repeated, context), rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ALL_POSITIONS)
@pytest.mark.parametrize("size", [(2, 32, 32), (6, 32, 32), (4, 16, 40), (8, 24, 48)])
def test_clips_of_other_sizes_and_lengths_work(
    video_encoder: EncoderFactory, positions: Positions, size: tuple[int, int, int]
) -> None:
    encoder, clips = video_encoder(positions=positions), torch.randn(1, 3, *size)
    grid = (size[0] // 2, size[1] // 8, size[2] // 8)
    assert encoder.grid_of(clips) == grid
    tokens = encoder(clips)
    assert tokens.shape == (1, grid[0] * grid[1] * grid[2], 48)
    assert torch.isfinite(tokens).all()


def test_with_rotary_positions_a_part_of_a_longer_and_wider_clip_is_the_clip(video_encoder: EncoderFactory) -> None:
    encoder, clip = video_encoder(positions=RoPE()), torch.randn(1, 3, 8, 24, 40)
    inside = torch.arange(4 * 3 * 5).reshape(4, 3, 5)[1:3, :2, 2:].reshape(1, -1)
    part = encoder(clip[:, :, 2:6, :16, 16:])
    torch.testing.assert_close(encoder(clip, inside), part, rtol=0, atol=1e-5)  # distances only


@pytest.mark.parametrize("positions", ALL_POSITIONS)
def test_the_time_of_a_frame_shows(video_encoder: EncoderFactory, positions: Positions) -> None:
    encoder, clip = video_encoder(positions=positions), torch.randn(1, 3, 4, 32, 32)
    backwards = encoder(clip[:, :, [2, 3, 0, 1]]).reshape(1, 2, 16, 48).flip(1).flatten(1, 2)
    assert (backwards - encoder(clip)).abs().max() > 1e-3


def test_clips_default_to_sine_cosine_positions_in_three_dimensions(video_encoder: EncoderFactory) -> None:
    encoder = video_encoder()
    assert encoder.positions == SinCos3D()
    assert torch.equal(encoder.pos_embed, SinCos3D().table((2, 4, 4), 48))


def test_encoders_of_images_and_of_clips_have_the_same_names(
    tiny_encoder: EncoderFactory, video_encoder: EncoderFactory
) -> None:
    images, clips = tiny_encoder(embed_dim=48), video_encoder()
    assert list(images.state_dict()) == list(clips.state_dict())
    different = {name for name, tensor in clips.state_dict().items() if tensor.shape != images.state_dict()[name].shape}
    assert different == {"pos_embed", "patch_embed.proj.weight"}
    assert images.state_dict()["blocks.0.attn.qkv.weight"].shape == (144, 48)


def test_with_rotary_positions_no_table_is_stored(tiny_encoder: EncoderFactory, video_encoder: EncoderFactory) -> None:
    names = list(video_encoder().state_dict())
    assert names[0] == "pos_embed"
    assert list(video_encoder(positions=RoPE()).state_dict()) == names[1:]
    image_encoder = tiny_encoder(positions=RoPE())
    assert list(image_encoder.state_dict()) == names[1:]
    assert image_encoder(torch.randn(1, 3, 24, 40)).shape == (1, 15, 32)


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
def test_outputs_of_inner_blocks_pass_the_final_norm(video_encoder: EncoderFactory, positions: Positions) -> None:
    encoder, clip = video_encoder(positions=positions, depth=3), torch.randn(1, 3, 4, 32, 32)
    context = torch.tensor([[4, 31, 2]])
    seen: dict[int, Tensor] = {}
    for number, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    for where in (None, context):
        layers = encoder(clip, where, layers=[2, 0])
        assert len(layers) == 2
        torch.testing.assert_close(layers[0], encoder.norm(seen[2]), rtol=0, atol=0)
        torch.testing.assert_close(layers[1], encoder.norm(seen[0]), rtol=0, atol=0)
        torch.testing.assert_close(layers[0], encoder(clip, where), rtol=0, atol=1e-6)
    assert encoder(clip, layers=[]) == []


def test_an_inner_block_that_does_not_exist_is_refused(video_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match=r"layers \[0, 2\] of 2 blocks: use numbers from 0 to 1"):
        video_encoder()(torch.randn(1, 3, 4, 32, 32), layers=[0, 2])


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_frames_that_the_tubelets_do_not_divide_are_refused_with_the_numbers(
    video_encoder: EncoderFactory, frames: int
) -> None:
    message = rf"clip of {frames} frames cannot be cut into tubelets of 2: use a number of frames divisible by tubelet"
    with pytest.raises(ValueError, match=message):
        video_encoder()(torch.randn(1, 3, frames, 32, 32))
    with pytest.raises(ValueError, match=message):
        token_grid(32, 32, 8, frames, 2)


def test_a_clip_for_an_image_encoder_is_refused_with_its_shape_and_what_to_set(tiny_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match=r"clip of shape \(2, 3, 4, 32, 32\): set num_frames and tubelet_size"):
        tiny_encoder()(torch.randn(2, 3, 4, 32, 32))


def test_image_positions_for_a_clip_are_refused_when_built(video_encoder: EncoderFactory) -> None:
    with pytest.raises(ValueError, match=r"SinCos2D has no time, but the grid is \(2, 4, 4\)"):
        video_encoder(positions=SinCos2D())


def test_options_reach_every_block(video_encoder: EncoderFactory) -> None:
    options = BlockOptions(swiglu=True, drop_path=0.2, checkpoint_activations=True)
    encoder, clip = video_encoder(blocks=options, depth=3, positions=RoPE()), torch.randn(2, 3, 4, 16, 16)
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert {block.mlp.fc3.in_features for block in encoder.blocks} == {128}
    encoder(clip).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert torch.equal(encoder.eval()(clip), encoder(clip))


def test_autocast_changes_tokens_only_by_rounding(video_encoder: EncoderFactory) -> None:
    encoder, clip = video_encoder(positions=RoPE()), torch.randn(1, 3, 4, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = encoder(clip)
    torch.testing.assert_close(cast.float(), encoder(clip), rtol=0, atol=0.1)


# ---------------------------------------------------------------------- samples with different numbers of tokens

ROWS = [[5, 0, 9, 3, 14, 2], [7], [1, 8, 15]]


@pytest.mark.parametrize("blocks", [BlockOptions(), EnergyBlocks(alpha=0.5)])
@pytest.mark.parametrize("positions", [None, RoPE()])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 4, 16, 32)])
def test_samples_with_different_numbers_of_tokens_equal_each_alone_also_in_gradient(
    tiny_encoder: EncoderFactory, video_encoder: EncoderFactory, blocks: Any, positions: Any, size: tuple[int, ...]
) -> None:
    build = tiny_encoder if len(size) == 3 else video_encoder
    encoder, inputs = build(positions=positions, blocks=blocks, patch_init_std=0.1), torch.randn(3, *size)
    context = torch.tensor([row + [-1] * (6 - len(row)) for row in ROWS])
    alone = [encoder(inputs[b : b + 1], torch.tensor([row])) for b, row in enumerate(ROWS)]
    together = encoder(inputs, padded(context))
    assert torch.equal(encoder(inputs, context), together)  # the CPU can look for padding
    assert not together[context < 0].any()
    torch.testing.assert_close(together[context >= 0], torch.cat(alone, dim=1)[0], rtol=0, atol=1e-5)
    weights, parameters = torch.randn(10, encoder.embed_dim), list(encoder.parameters())
    gradients = [
        torch.autograd.grad((tokens * weights).sum(), parameters)
        for tokens in (together[context >= 0], torch.cat(alone, dim=1)[0])
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_inner_layers_of_samples_with_different_numbers_of_tokens_equal_those_of_each_alone(
    tiny_encoder: EncoderFactory,
) -> None:
    encoder, inputs = tiny_encoder(depth=3), torch.randn(3, 3, 32, 32)
    context = torch.tensor([row + [-1] * (6 - len(row)) for row in ROWS])
    layers = encoder(inputs, padded(context), layers=[2, 0])
    for b, row in enumerate(ROWS):
        alone = encoder(inputs[b : b + 1], torch.tensor([row]), layers=[2, 0])
        for layer, expected in zip(layers, alone, strict=True):
            torch.testing.assert_close(layer[b : b + 1, : len(row)], expected, rtol=0, atol=1e-5)


def test_a_transformer_has_nothing_to_log(tiny_encoder: EncoderFactory) -> None:
    encoder = tiny_encoder()
    encoder(torch.randn(1, 3, 32, 32))
    assert encoder.diagnostics() == {}
