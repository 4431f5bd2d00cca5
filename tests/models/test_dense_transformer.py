from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.masking import padded
from jepa_lightning.models import DenseVisionTransformer, RoPE, is_image
from jepa_lightning.models.dense_transformer import published_levels

CLIPS, IMAGES = (2, 3, 4, 24, 16), (2, 3, 24, 16)


def encoder(**overrides: Any) -> DenseVisionTransformer:
    settings = {"img_size": (24, 16), "patch_size": 8, "embed_dim": 24, "depth": 5, "num_heads": 2, "num_frames": 4}
    built = DenseVisionTransformer(**{**settings, "init_std": None, **overrides})  # type: ignore[arg-type]
    for embedding in (built.img_mod_embed, built.video_mod_embed):
        nn.init.normal_(embedding)
    for norm in built.norms_block:
        nn.init.normal_(norm.weight, mean=1.0)  # type: ignore[arg-type]
    return built


def naive(encoder: DenseVisionTransformer, inputs: Tensor) -> list[Tensor]:
    """The four levels, from the parts of the network, one tubelet or patch after the other."""
    image = inputs.ndim == 4
    frames = inputs.unsqueeze(2) if image else inputs
    part, kind = (
        (encoder.patch_embed_img, encoder.img_mod_embed) if image else (encoder.patch_embed, encoder.video_mod_embed)
    )
    steps, (tubelet, side, _) = [], part.get_submodule("proj").kernel_size  # type: ignore[misc]
    for t in range(frames.shape[2] // tubelet):
        for row in range(frames.shape[3] // side):
            for column in range(frames.shape[4] // side):
                at = slice(t * tubelet, (t + 1) * tubelet), *(slice(i * side, (i + 1) * side) for i in (row, column))
                steps.append(part(frames[:, :, *at])[:, 0])
    x = torch.stack(steps, dim=1) + kind
    rotation = encoder.positions.rotation(torch.arange(x.shape[1])[None], encoder.grid_of(inputs), 12)
    levels = []
    for number, block in enumerate(encoder.blocks):
        x = block(x, rotation)
        if number in encoder.levels:
            levels.append(encoder.norms_block[encoder.levels.index(number)](x))
    return levels


@pytest.mark.parametrize("shape", [CLIPS, IMAGES])
def test_the_levels_equal_a_naive_loop_and_the_last_one_is_the_output(shape: tuple[int, ...]) -> None:
    module, inputs = encoder(), torch.randn(shape)
    levels, expected = module(inputs, layers=module.levels), naive(module, inputs)
    assert len(levels) == 4
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=0, atol=1e-5)
    assert torch.equal(module(inputs), levels[-1])


def test_images_and_clips_have_embeddings_of_their_own() -> None:
    module = encoder()
    for inputs, used, other in ((torch.randn(CLIPS), "video", "img"), (torch.randn(IMAGES), "img", "video")):
        module.zero_grad()
        module(inputs).sum().backward()
        trained = {name for name, p in module.named_parameters() if p.grad is not None}
        assert f"{used}_mod_embed" in trained
        assert f"{other}_mod_embed" not in trained
        assert ("patch_embed_img.proj.weight" in trained) == (used == "img")
        assert ("patch_embed.proj.weight" in trained) == (used == "video")


def test_an_image_has_one_token_for_each_patch_with_an_axis_of_time_or_without() -> None:
    module, images = encoder(), torch.randn(IMAGES)
    assert module.grid_of(images) == module.grid_of(images.unsqueeze(2)) == (1, 3, 2)
    assert torch.equal(module(images), module(images.unsqueeze(2)))
    assert is_image(images)
    assert is_image(images.unsqueeze(2))
    assert not is_image(torch.empty(CLIPS))


def test_a_clip_of_one_tubelet_is_no_image() -> None:
    module, clip = encoder(), torch.randn(1, 3, 2, 24, 16)
    assert module.grid_of(clip) == (1, 3, 2)
    assert module(clip).shape == module(clip[:, :, 0]).shape
    assert not torch.allclose(module(clip), module(clip[:, :, 0]))


@pytest.mark.parametrize("shape", [CLIPS, IMAGES])
def test_samples_with_different_numbers_of_tokens_equal_each_alone(shape: tuple[int, ...]) -> None:
    module, inputs = encoder(), torch.randn(shape)
    context = torch.tensor([[0, 3, 5], [1, 4, -1]])
    levels = module(inputs, padded(context), layers=module.levels)
    for sample, kept in enumerate((3, 2)):
        alone = module(inputs[sample : sample + 1], context[sample : sample + 1, :kept], layers=module.levels)
        for level, wanted in zip(levels, alone, strict=True):
            torch.testing.assert_close(level[sample, :kept], wanted[0], rtol=0, atol=1e-5)
            assert not level[sample, kept:].any()


def test_a_block_between_levels_has_the_norm_of_the_next_level() -> None:
    module, clip = encoder(levels=[1, 4]), torch.randn(CLIPS)
    seen: list[Tensor] = []
    module.blocks[2].register_forward_hook(lambda _, args, output: seen.append(output))
    tokens = module(clip, layers=2)
    torch.testing.assert_close(tokens, module.norms_block[1](seen[0]), rtol=0, atol=0)


def test_the_published_levels_are_the_ends_of_quarters_but_for_the_largest() -> None:
    published = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 40: (9, 19, 29, 39), 48: (11, 23, 37, 47)}
    assert {depth: published_levels(depth) for depth in published} == published
    assert published_levels(4) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        ({"depth": 3}, "at least 4"),
        ({"levels": [3, 1, 4]}, "ascending"),
        ({"levels": [0, 1]}, "from 0 to 4"),
        ({"levels": [-2, 4]}, "ascending"),
        ({"levels": []}, "ascending"),
        ({"num_frames": 1}, "at least 2, got 1"),
    ],
)
def test_levels_that_make_no_sense_are_refused(wrong: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        encoder(**wrong)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ({"embed_dim": 768, "depth": 12, "num_heads": 12}, 86_833_152),
        ({"embed_dim": 1024, "depth": 24, "num_heads": 16}, 304_680_960),
        ({"embed_dim": 1408, "depth": 40, "num_heads": 22, "mlp_ratio": 48 / 11}, 1_013_267_968),
        ({"embed_dim": 1664, "depth": 48, "num_heads": 26, "mlp_ratio": 64 / 13}, 1_845_216_768),
    ],
)
def test_the_published_sizes_have_the_published_parameter_counts(size: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        module = DenseVisionTransformer(**size)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert isinstance(module.positions, RoPE)
    assert not any(name.startswith("norm.") for name in module.state_dict())


@pytest.mark.parametrize("shape", [CLIPS, IMAGES])
def test_it_works_in_pure_bfloat16(shape: tuple[int, ...]) -> None:
    module, inputs = encoder(), torch.randn(shape)
    exact = module(inputs)
    tokens = module.bfloat16()(inputs.bfloat16())
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), exact, rtol=0, atol=0.15)
