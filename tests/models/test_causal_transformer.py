from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepa_lightning.models import CausalVisionTransformer, VisionTransformer
from jepa_lightning.models.attention_maps import attention_maps

CLIP = (2, 3, 4, 16, 24)


def encoder(**options: int) -> CausalVisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_frames": 4}
    made = CausalVisionTransformer(**{**sizes, **options}, init_std=None).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        made.cls_token.normal_()
    return made


def naive(made: CausalVisionTransformer, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and class token by one pass of an ordinary encoder for each frame, over the frames up to it."""
    per_frame = (clip.shape[3] // 8) * (clip.shape[4] // 8)
    x = made.embed(clip)
    index = torch.arange(x.shape[1])[None]
    rotation = made.positions.rotation(index, made.grid_of(clip), made.embed_dim // made.num_heads)
    assert rotation is not None
    x, cls = x.clone(), made.cls_token.expand(len(clip), -1, -1)
    for block in made.blocks:
        attn, found = block.attn, torch.empty_like(x)
        h, c = block.norm1(x), block.norm1(cls)
        for query in range(x.shape[1] + 1):
            known = x.shape[1] if query == x.shape[1] else (query // per_frame + 1) * per_frame
            tokens = torch.cat([h[:, :known], c], dim=1) if query == x.shape[1] else h[:, :known]
            q, k, v = attn.qkv(tokens).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            cos, sin = rotation.cos[:, :, :known], rotation.sin[:, :, :known]
            turn = lambda t: torch.stack([-t[..., 1::2], t[..., ::2]], dim=-1).flatten(-2)  # noqa: E731
            q[:, :, :known] = q[:, :, :known] * cos + turn(q[:, :, :known]) * sin
            k[:, :, :known] = k[:, :, :known] * cos + turn(k[:, :, :known]) * sin
            scores = (q[:, :, query : query + 1] @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
            mixed = attn.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
            if query == x.shape[1]:
                new_class = cls + mixed
            else:
                found[:, query : query + 1] = x[:, query : query + 1] + mixed
        x, cls = found + block.mlp(block.norm2(found)), new_class + block.mlp(block.norm2(new_class))
    return made.norm(x), made.norm(cls[:, 0])


@torch.no_grad()
def test_tokens_and_class_token_equal_a_naive_loop() -> None:
    made, clip = encoder(), torch.randn(CLIP)
    tokens, summary = naive(made, clip)
    torch.testing.assert_close(made(clip), tokens, rtol=0, atol=2e-5)
    torch.testing.assert_close(made.summary(clip), summary, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_token_sees_its_frame_and_earlier_ones_and_no_class_token() -> None:
    made, clip = encoder(), torch.randn(CLIP)
    before, other = made(clip), clip.clone()
    other[:, :, 2, :, 16:] += 1.0  # one patch column of the third frame
    after = made(other).sub(before).abs().amax(dim=(0, 2)).reshape(4, 6)
    assert (after[:2] == 0).all()
    assert (after[2:] > 0).all()
    made.cls_token.add_(1.0)
    assert torch.equal(made(clip), before)


@torch.no_grad()
@pytest.mark.parametrize("tubelet_size", [1, 2])
@pytest.mark.parametrize("pieces", [[2, 2, 2, 2], [2, 6], [8]])
def test_a_stream_gives_the_tokens_of_the_full_pass(tubelet_size: int, pieces: list[int]) -> None:
    made, clip = encoder(tubelet_size=tubelet_size), torch.randn(2, 3, 8, 16, 24)
    stream, found = made.stream(), []
    with pytest.raises(ValueError, match="no frame"):
        stream.summary()
    for frames in clip.split(pieces, dim=2):
        found.append(stream(frames))
        seen = clip[:, :, : stream.steps * tubelet_size]
        torch.testing.assert_close(stream.summary(), made.summary(seen), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(found, dim=1), made(clip), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_stream_takes_single_frames_and_computes_no_token_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clip = encoder(), torch.randn(2, 3, 5, 16, 24)
    counted: list[int] = []
    made.blocks[0].mlp.register_forward_hook(lambda _module, args, _output: counted.append(args[0].shape[1]))
    stream = made.stream()
    found = [stream(clip[:, :, t]) for t in range(5)]
    assert counted == [6] * 5
    torch.testing.assert_close(torch.cat(found, dim=1), made(clip), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_context_gives_what_is_seen_without_the_other_tokens() -> None:
    made, clip = encoder(), torch.randn(CLIP)
    whole = torch.arange(24)[None].expand(2, -1)
    torch.testing.assert_close(made(clip, whole), made(clip))
    first = torch.arange(12)[None].expand(2, -1)  # two frames: what they would be without the others
    torch.testing.assert_close(made(clip, first), made(clip)[:, :12], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.summary(clip, first), made.summary(clip[:, :, :2]), rtol=0, atol=1e-5)
    layers = made(clip, layers=[0, -1])
    torch.testing.assert_close(layers[1], made(clip))
    assert layers[0].shape == layers[1].shape


def test_the_class_token_gets_a_gradient_and_an_image_encoder_is_refused() -> None:
    made = encoder()
    made.train().summary(torch.randn(CLIP)).square().sum().backward()
    assert made.cls_token.grad is not None
    assert all(parameter.grad is not None for parameter in made.parameters())
    with pytest.raises(ValueError, match="takes clips, got num_frames 1"):
        encoder(num_frames=1)


def test_attention_maps_are_those_of_patches_and_their_rows_sum_to_1() -> None:
    made, clip = encoder(), torch.randn(CLIP)
    (found,) = attention_maps(made, clip)
    assert found.shape == (2, 2, 24, 24)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 2, 24))
    assert (found[:, :, :6, 6:] == 0).all()


@torch.no_grad()
def test_the_summary_of_other_encoders_is_the_mean_of_their_tokens() -> None:
    made = VisionTransformer(16, 8, embed_dim=24, depth=1, num_heads=2)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(made.summary(images), made(images).mean(dim=1))
