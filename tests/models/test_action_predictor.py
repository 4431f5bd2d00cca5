from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_lightning.models import ActionPredictor, RoPE, VisionTransformer
from jepa_lightning.models.positions import rotate

GOLDEN = Path(__file__).parent.parent / "golden" / "rope.json"
STEPS, GRID, WIDTH = 4, (2, 3), 24


def encoder(**sizes: Any) -> VisionTransformer:
    return VisionTransformer(
        **{"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
        | {"num_frames": 4, "tubelet_size": 2, "positions": RoPE("tiled"), **sizes}
    )


def predictor(**options: Any) -> ActionPredictor:
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2, "init_std": None, "action_dim": 3, "state_dim": 5}
    return ActionPredictor(encoder(), **{**sizes, **options})


def inputs(batch: int = 2, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, steps * 6, 16), torch.randn(batch, steps, 3), torch.randn(batch, steps, 5)


def dense(network: ActionPredictor, *given: Tensor) -> Tensor:
    """The same prediction with a table of which token sees which, over all tokens of all steps."""
    features, *conditions = given
    layers = [network.action_encoder, network.state_encoder, network.extrinsics_encoder][: len(conditions)]
    steps, count = conditions[0].shape[1], len(conditions)
    before = torch.stack([layer(x) for layer, x in zip(layers, conditions, strict=True)], dim=2)  # type: ignore[misc]
    x = torch.cat([before, network.predictor_embed(features).unflatten(1, (steps, -1))], dim=2)
    step = torch.arange(steps).repeat_interleave(x.shape[2])
    sees = step.unsqueeze(1) >= step
    x = x.flatten(1, 2)
    rotation = network._rotation(0, steps, count, network.grid, x)
    for block in network.predictor_blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, network.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v, attn_mask=sees)
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    x = x.unflatten(1, (steps, -1))[:, :, count:].flatten(1, 2)
    return network.predictor_proj(network.predictor_norm(x))


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("extrinsics", [False, True])
def test_steps_one_after_the_other_are_equal_to_one_dense_mask(steps: int, extrinsics: bool) -> None:
    network, given = predictor(use_extrinsics=extrinsics), inputs(steps=steps)
    if extrinsics:
        given = (*given, torch.randn(2, steps, 6))  # type: ignore[assignment]
    found, expected = network(*given), dense(network, *given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(found)
    ours, theirs = (
        torch.autograd.grad((x * weights).sum(), list(network.predictor_blocks.parameters())) for x in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_sees_a_later_step() -> None:
    network, (features, actions, states) = predictor(), inputs()
    before = network(features, actions, states)
    features[:, -6:], actions[:, -1], states[:, -1] = 9.0, 9.0, 9.0
    after = network(features, actions, states)
    assert torch.equal(before[:, :-6], after[:, :-6])
    assert not torch.allclose(before[:, -6:], after[:, -6:], atol=0.1)


@pytest.mark.parametrize("change", ["features", "actions", "states"])
def test_all_of_a_step_and_of_earlier_ones_is_seen(change: str) -> None:
    network, given = predictor(), dict(zip(("features", "actions", "states"), inputs(), strict=True))
    before = network(**given)
    given[change] = given[change].clone()
    given[change][:, 0] += 1.0
    moved = (network(**given) - before).abs().amax(dim=2)
    assert (moved > 1e-6).all()


def test_a_roll_out_with_memory_is_equal_to_a_full_pass() -> None:
    network, (features, actions, states) = predictor(), inputs()
    expected, memory, found = network(features, actions, states), None, []
    for first, last in ((0, 1), (1, 3), (3, 4)):
        part = features[:, 6 * first : 6 * last], actions[:, first:last], states[:, first:last]
        predicted, memory = network.advance(*part, memory=memory)
        found.append(predicted)
    assert memory is not None
    assert memory.steps == STEPS
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=1e-6)


def test_positions_of_patches_and_of_tokens_before_them_are_the_official_ones() -> None:
    for case in json.loads(GOLDEN.read_text())["action_conditioned"]["cases"]:
        side, (steps, height, width) = case["grid_size"], case["grid_thw"]
        network = predictor(embed_dim=2 * case["head_dim"])
        network.grid = (side, side)
        x = torch.tensor(case["x"])[None, None]
        rotation = network._rotation(
            0, steps, case["conditioning_tokens"], (height, width), torch.empty(1, 1, 2 * x.shape[-1])
        )
        torch.testing.assert_close(rotate(x, rotation)[0, 0], torch.tensor(case["rotated"]), rtol=0, atol=1e-6)


def test_frames_of_another_size_stand_where_they_would_in_the_encoders_grid() -> None:
    network = predictor()
    x = torch.empty(1, 1, WIDTH)
    small, large = (network._rotation(0, 1, 1, grid, x) for grid in ((2, 3), (4, 6)))
    corners = [0, 1 + 0, 1 + 2 * 6, 1 + 2, 1 + 2 * 6 + 2]  # of which every second one is in the small grid
    assert torch.allclose(large.cos[0, 0, corners], small.cos[0, 0, [0, 1, 1 + 3, 1 + 1, 1 + 3 + 1]], atol=1e-6)
    assert network(torch.randn(1, 24, 16), torch.randn(1, 1, 3), torch.randn(1, 1, 5), grid=(4, 6)).shape == (1, 24, 16)


@pytest.mark.parametrize("action", [1, 11])
def test_actions_have_any_size_and_states_may_be_absent(action: int) -> None:
    network = predictor(action_dim=action, state_dim=None, extrinsics_dim=None)
    assert network(torch.randn(2, 12, 16), torch.randn(2, 2, action)).shape == (2, 12, 16)
    assert not [name for name, _ in network.named_parameters() if name.startswith(("state", "extrinsics"))]


def test_extrinsics_that_are_not_used_change_nothing_and_are_not_trained() -> None:
    network, given = predictor(), inputs()
    assert torch.equal(network(*given, torch.randn(2, STEPS, 6)), network(*given))
    assert {n for n, p in network.named_parameters() if not p.requires_grad} == {
        "extrinsics_encoder.weight", "extrinsics_encoder.bias",
    }  # fmt: skip
    assert all(parameter.requires_grad for parameter in predictor(use_extrinsics=True).parameters())


def test_an_encoder_without_rotary_positions_gets_a_predictor_with_rotary_ones() -> None:
    image = encoder(num_frames=1, tubelet_size=1, positions=None)
    assert ActionPredictor(image, WIDTH, 1, 2).positions == RoPE("interleaved")
    assert predictor().positions == RoPE("tiled")


def test_activation_checkpointing_changes_no_gradient() -> None:
    network, given = predictor(), inputs()
    gradients = []
    for again in (False, True):
        network.checkpoint_activations = again
        network.zero_grad()
        network(*given).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, a, s: (f[:, 1:], a, s), "features have 23 tokens, 4 actions and frames of 2 x 3 tokens need 24"),
        (lambda f, a, s: (f, a[..., 1:], s), r"action is \[2, 4, 2\], the predictor reads 3 numbers"),
        (lambda f, a, s: (f, a), "reads states, and none are given: build it with state_dim: null"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor()(*change(*inputs()))


def test_extrinsics_cannot_be_used_without_a_size() -> None:
    with pytest.raises(ValueError, match="needs extrinsics_dim"):
        predictor(use_extrinsics=True, extrinsics_dim=None)


def test_the_size_of_the_paper_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        giant = VisionTransformer(256, 16, embed_dim=1408, depth=1, num_heads=22, num_frames=16, tubelet_size=2,
                                  positions=RoPE("tiled"))  # fmt: skip
        network = ActionPredictor(giant)
    assert sum(parameter.numel() for parameter in network.parameters()) == 305_220_992
