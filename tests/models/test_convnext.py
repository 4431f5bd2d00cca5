from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from jepa_lightning.models import ConvNeXt, frozen_copy


def small(**overrides: Any) -> ConvNeXt:
    return ConvNeXt(**{"img_size": 32, "widths": (8, 16, 24), "depths": (1, 2, 1), "init_std": None, **overrides})


def test_it_equals_timm() -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("convnext_atto", num_classes=0, global_pool="", conv_mlp=False).eval()
    ours = ConvNeXt(img_size=64, widths=(40, 80, 160, 320), depths=(2, 2, 6, 2)).eval()
    for block in ours.modules():
        if getattr(block, "gamma", None) is not None:
            nn.init.normal_(block.gamma)
    state = {("head." if name.startswith("norm.") else "") + name: t for name, t in ours.state_dict().items()}
    theirs.load_state_dict(state)  # strict: every name and shape
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(ours(images), theirs(images).flatten(2).transpose(1, 2), rtol=0, atol=1e-4)


def test_the_tiny_one_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = ConvNeXt()
    head = 1000 * 768 + 1000  # of the classifier
    assert sum(p.numel() for p in encoder.parameters()) == 28_589_128 - head


def test_tokens_are_the_last_map_in_raster_order() -> None:
    encoder = small(depths=(0, 0, 0))  # only patches see each other: 16 pixels for each token
    images = torch.randn(1, 3, 32, 48)
    before = encoder(images)
    assert encoder.grid_of(images) == (1, 2, 3)
    assert before.shape == (1, 6, 24)
    images[:, :, 16:32, 32:48] += 1.0
    changed = (encoder(images) - before).abs().amax(dim=2)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [5]


def test_sizes_follow_from_stem_and_stages() -> None:
    encoder = small(img_size=(32, 64), stem=2, num_heads=3)
    assert (encoder.patch_size, encoder.grid, encoder.embed_dim, encoder.num_heads) == (8, (1, 4, 8), 24, 3)
    assert encoder(torch.randn(2, 3, 32, 64)).shape == (2, 32, 24)


def test_wrong_sizes_clips_and_contexts_are_refused_with_what_to_do() -> None:
    encoder = small()
    with pytest.raises(ValueError, match=r"40x32 image .*patch_size 16"):
        encoder(torch.randn(1, 3, 40, 32))
    with pytest.raises(ValueError, match=r"clip of shape \(1, 3, 4, 32, 32\): use a VisionTransformer"):
        encoder.grid_of(torch.randn(1, 3, 4, 32, 32))
    with pytest.raises(ValueError, match="method with masks needs a VisionTransformer"):
        encoder(torch.randn(1, 3, 32, 32), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"widths \[8, 16\] and depths \[1\]"):
        small(widths=(8, 16), depths=(1,))


def test_every_parameter_gets_a_gradient_and_a_frozen_copy_none() -> None:
    encoder = small(layer_scale=None, drop_path=0.0)
    encoder(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert not any(p.requires_grad for p in frozen_copy(encoder).parameters())


def test_drop_path_grows_over_all_blocks_and_stops_in_eval_mode() -> None:
    encoder, images = small(drop_path=0.3, depths=(1, 2, 1), layer_scale=None), torch.randn(8, 3, 32, 32)
    rates = [block.drop_path.rate for stage in encoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert not torch.equal(encoder(images), encoder(images))
    assert torch.equal(encoder.eval()(images), encoder(images))
