from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jepa_lightning.masking import padded
from jepa_lightning.models import DensePredictor, DenseVisionTransformer

GRID = (2, 3, 2)
CONTEXT = torch.tensor([[0, 1, 4, 5, 6], [2, 3, 8, 9, 11]])
TARGETS = torch.tensor([[[10, 11], [7, 2]], [[0, 1], [4, 5]]])


def encoder(**sizes: Any) -> DenseVisionTransformer:
    settings = {"img_size": (24, 16), "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_frames": 4}
    return DenseVisionTransformer(**{**settings, **sizes})  # type: ignore[arg-type]


def predictor(**options: Any) -> DensePredictor:
    settings = {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_std": None, "mask_token_std": 0.5}
    built = DensePredictor(encoder(), **{**settings, **options})  # type: ignore[arg-type]
    for embedding in (built.img_mod_embed, built.video_mod_embed):
        nn.init.normal_(embedding)
    return built


def naive(module: DensePredictor, tokens: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence for each sample and block of targets, sorted by place as in the official code."""
    found = []
    for sample in range(2):
        for block in range(2):
            index = torch.cat([CONTEXT[sample], TARGETS[sample, block]])
            shown = module.predictor_embed(tokens[sample])
            x = torch.cat([shown, module.mask_tokens[0][0].expand(2, -1)]) + kind[0]
            order = index.argsort()
            x, rotation = x[order][None], module.positions.rotation(index[order][None], GRID, 12)
            for layer in module.predictor_blocks:
                x = layer(x, rotation)
            x = module.predictor_norm(x)[0, order.argsort()]
            found.append((module.predictor_proj(x[5:]), module.predictor_proj_context(x[:5])))
    targets, context = (torch.stack(part).unflatten(0, (2, 2)) for part in zip(*found, strict=True))
    return targets, context


@pytest.mark.parametrize("image", [False, True])
def test_targets_and_context_equal_a_naive_loop_over_samples_and_blocks(image: bool) -> None:
    module, tokens = predictor(), torch.randn(2, 5, 64)
    kind = module.img_mod_embed if image else module.video_mod_embed
    expected = naive(module, tokens, kind)
    found = module(tokens, CONTEXT, TARGETS, grid=GRID, image=image, with_context=True)
    for part, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(part, wanted, rtol=0, atol=1e-5)
    assert torch.equal(module(tokens, CONTEXT, TARGETS, grid=GRID, image=image), found[0])


def test_samples_of_different_lengths_equal_each_alone() -> None:
    module, tokens = predictor(), torch.randn(2, 5, 64)
    context, targets = CONTEXT.clone(), TARGETS.clone()
    context[1, 3:], targets[0, 1, 1] = -1, -1
    asked, shown = module(tokens, padded(context), padded(targets), grid=GRID, with_context=True)
    alone = module(tokens[1:, :3], context[1:, :3], targets[1:], grid=GRID, with_context=True)
    torch.testing.assert_close(asked[1], alone[0][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shown[1, :, :3], alone[1][0], rtol=0, atol=1e-5)
    assert not shown[1, :, 3:].any()
    assert not asked[0, 1, 1].any()
    alone = module(tokens[:1], context[:1], targets[:1, 1:, :1], grid=GRID, with_context=True)
    torch.testing.assert_close(asked[0, 1, 0], alone[0][0, 0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(shown[0, 1], alone[1][0, 0], rtol=0, atol=1e-5)


def test_padding_of_the_context_alone_leaves_the_targets_in_their_shape() -> None:
    module, tokens = predictor(), torch.randn(2, 5, 64)
    context = CONTEXT.clone()
    context[0, 4] = -1
    assert module(tokens, context, TARGETS, grid=GRID).shape == (2, 2, 2, 64)


def test_what_the_inputs_are_follows_from_the_grid_unless_it_is_said() -> None:
    module, tokens = predictor(), torch.randn(2, 5, 64)
    clip = module(tokens, CONTEXT, TARGETS, grid=GRID)
    assert torch.equal(clip, module(tokens, CONTEXT, TARGETS, grid=GRID, image=False))
    image = module(tokens, CONTEXT, TARGETS, grid=(1, 4, 3))
    assert torch.equal(image, module(tokens, CONTEXT, TARGETS, grid=(1, 4, 3), image=True))
    assert not torch.equal(image, module(tokens, CONTEXT, TARGETS, grid=(1, 4, 3), image=False))


def test_it_reads_the_last_levels_of_the_encoder_side_by_side() -> None:
    built, clips = encoder(), torch.randn(2, 3, 4, 24, 16)
    levels = built(clips, CONTEXT, layers=built.levels)
    for count in (1, 2, 4):
        module = DensePredictor(built, embed_dim=24, depth=1, num_heads=2, levels=count)
        assert module.input_dim == module.target_dim == 16 * count
        assert torch.equal(module.reads(built, clips, CONTEXT), torch.cat(levels[-count:], dim=-1))
        assert isinstance(module.predictor_embed, nn.Linear) == (count == 1)


@pytest.mark.parametrize("levels", [0, 5])
def test_levels_that_the_encoder_does_not_have_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"levels {levels} of an encoder with 4"):
        predictor(levels=levels)


RELEASED = {"num_mask_tokens": 8, "depth": 12, "levels": 1, "target_dim": 1664}


@pytest.mark.parametrize(
    ("sizes", "options", "parameters"),
    [
        ({"embed_dim": 768, "depth": 12}, RELEASED, 22_874_752),
        ({"embed_dim": 1024, "depth": 24}, RELEASED, 22_973_056),
        ({"embed_dim": 1408, "depth": 40}, {"num_mask_tokens": 8}, 55_400_704),
        ({"embed_dim": 1664, "depth": 48}, {"num_mask_tokens": 8}, 59_433_472),
        ({"embed_dim": 768, "depth": 12}, {"num_mask_tokens": 6, "depth": 12}, 26_318_208),
        ({"embed_dim": 1024, "depth": 24}, {"num_mask_tokens": 6}, 50_333_824),
    ],
)
def test_the_published_predictors_have_the_published_parameter_counts(
    sizes: dict[str, int], options: dict[str, int], parameters: int
) -> None:
    with torch.device("meta"):
        module = DensePredictor(encoder(**sizes), **options)  # type: ignore[arg-type]
    assert sum(p.numel() for p in module.parameters()) == parameters
