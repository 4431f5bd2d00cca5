from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning.models import TimmBackbone, TorchvisionBackbone, ema_copy, frozen_copy


@pytest.fixture(scope="module")
def resnet() -> TorchvisionBackbone:
    return TorchvisionBackbone("resnet18", 64)


def test_tokens_are_the_last_map_of_torchvisions_resnet_in_raster_order(resnet: TorchvisionBackbone) -> None:
    from torchvision.models import resnet18

    theirs, images, seen = resnet18().eval(), torch.randn(2, 3, 64, 96), {}
    missing = theirs.load_state_dict(resnet.backbone.state_dict(), strict=False).missing_keys
    assert missing == ["fc.weight", "fc.bias"]
    theirs.layer4.register_forward_hook(lambda _, __, out: seen.update(map=out))
    theirs(images)
    tokens = frozen_copy(resnet)(images)
    assert tokens.shape == (2, 6, 512)
    torch.testing.assert_close(tokens, seen["map"].flatten(2).transpose(1, 2), rtol=0, atol=1e-5)


def test_sizes_are_those_of_the_network(resnet: TorchvisionBackbone) -> None:
    assert (resnet.embed_dim, resnet.patch_size, resnet.img_size, resnet.grid) == (512, 32, (64, 64), (1, 2, 2))
    for height, width in [(64, 64), (32, 32), (40, 100), (20, 224)]:
        images = torch.randn(1, 3, height, width)
        grid = resnet.grid_of(images)
        assert grid == (1, -(-height // 32), -(-width // 32))
        assert frozen_copy(resnet)(images).shape == (1, grid[1] * grid[2], 512)


def test_measuring_changes_nothing_and_stores_nothing(resnet: TorchvisionBackbone) -> None:
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    resnet.grid_of(torch.randn(1, 3, 96, 96))
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())
    assert not any(p.is_meta for p in resnet.parameters())
    assert before["backbone.bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v3_small", "squeezenet1_1"])
def test_other_networks_of_torchvision_are_cut_before_their_last_pooling(name: str) -> None:
    with torch.device("meta"):
        backbone, images = TorchvisionBackbone(name, 64), torch.empty(2, 3, 64, 64)
        tokens = backbone(images)
    rows, dim = {"densenet121": (2, 1024), "mobilenet_v3_small": (2, 576), "squeezenet1_1": (3, 1000)}[name]
    assert tokens.shape == (2, rows * rows, dim)


def test_a_head_projects_every_token() -> None:
    backbone = TorchvisionBackbone("resnet18", 32, out_dim=20)
    images = torch.randn(2, 3, 64, 64)
    norm, linear = backbone.eval().head
    raw = backbone.feature_map(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(backbone(images), linear(norm(raw)), rtol=0, atol=1e-5)
    assert backbone(images).shape == (2, 4, backbone.embed_dim) == (2, 4, 20)


def test_every_parameter_gets_a_gradient() -> None:  # DDP stops at one without
    backbone = TorchvisionBackbone("resnet18", 32, out_dim=8)
    backbone(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_a_copy_is_separate_and_its_batch_norms_keep_their_own_statistics(resnet: TorchvisionBackbone) -> None:
    target = ema_copy(resnet)
    target(torch.randn(4, 3, 32, 32))
    assert target.backbone.bn1.num_batches_tracked == 1
    assert resnet.backbone.bn1.num_batches_tracked == 0
    assert not {p.data_ptr() for p in target.parameters()} & {p.data_ptr() for p in resnet.parameters()}


def test_a_mode_reaches_the_traced_network() -> None:
    backbone, images = TorchvisionBackbone("efficientnet_b0", 32), torch.randn(2, 3, 32, 32)
    copied = frozen_copy(backbone)
    assert torch.equal(copied(images), copied(images))  # no stochastic depth
    for part in copied.modules():  # one by one, as Lightning does after validation
        part.training = True
    assert not torch.equal(copied(images), copied(images))


def test_masks_clips_and_sizes_that_do_not_work_are_refused_with_what_to_do(resnet: TorchvisionBackbone) -> None:
    with pytest.raises(ValueError, match=r"resnet18 cannot leave tokens out: .* needs a VisionTransformer"):
        resnet(torch.randn(1, 3, 64, 64), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"clip of shape \(1, 3, 2, 64, 64\): use a VisionTransformer"):
        resnet(torch.randn(1, 3, 2, 64, 64))
    with torch.device("meta"):
        alexnet = TorchvisionBackbone("alexnet", 64)
    with pytest.raises(ValueError, match=r"torchvision's alexnet cannot take 16x16 images \(.*\): use another size"):
        alexnet.grid_of(torch.empty(1, 3, 16, 16))


def test_a_refused_size_leaves_the_terminal_clean(capfd: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="use another size"):
        TorchvisionBackbone("alexnet", 16)
    assert capfd.readouterr() == ("", "")


def test_a_network_without_a_pooled_map_is_refused() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="vit_b_16 has no feature map that is pooled"):
        TorchvisionBackbone("vit_b_16", 224)


# ---------------------------------------------------------------------- timm


def tokens_of(name: str, **arguments: Any) -> tuple[TimmBackbone, Tensor]:
    pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = TimmBackbone(name, **arguments)
        return backbone, backbone(torch.empty(2, 3, *backbone.img_size))


@pytest.mark.parametrize(
    ("name", "img_size", "grid", "patch_size", "dim"),
    [
        ("resnet18", 64, (1, 2, 2), 32, 512),
        ("convnext_atto", (64, 96), (1, 2, 3), 32, 320),
        ("vit_tiny_patch16_224", 64, (1, 4, 4), 16, 192),
    ],
)
def test_networks_of_timm_are_encoders(name: str, img_size: Any, grid: Any, patch_size: int, dim: int) -> None:
    backbone, tokens = tokens_of(name, img_size=img_size)
    assert (backbone.grid, backbone.patch_size, backbone.embed_dim) == (grid, patch_size, dim)
    assert tokens.shape == (2, grid[1] * grid[2], dim)


def test_class_tokens_of_timm_are_left_out_and_options_reach_it() -> None:
    timm = pytest.importorskip("timm")
    backbone = TimmBackbone("vit_tiny_patch16_224", 32, options={"depth": 1, "in_chans": 1, "dynamic_img_size": True})
    images = torch.randn(2, 1, 32, 48)
    theirs = backbone.backbone.forward_features(images)
    assert theirs.shape == (2, 1 + 6, 192)
    assert torch.equal(backbone(images), theirs[:, 1:])
    assert backbone.grid_of(images) == (1, 2, 3)
    assert timm.__name__ in type(backbone.backbone).__module__


def test_channels_last_maps_of_timm_are_read_in_raster_order() -> None:
    pytest.importorskip("timm")

    class ChannelsLast(torch.nn.Module):
        output_fmt = "NHWC"

        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    backbone = TimmBackbone("resnet18", 32)
    backbone.backbone = ChannelsLast()
    images = torch.randn(2, 3, 4, 5)
    assert torch.equal(backbone.feature_map(images), images)


def test_every_parameter_of_a_timm_network_gets_a_gradient() -> None:
    pytest.importorskip("timm")
    backbone = TimmBackbone("convnext_atto", 32)
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_without_timm_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"needs timm: pip install 'jepa-lightning\[export\]'"):
        TimmBackbone("resnet18", 32)
