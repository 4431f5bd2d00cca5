from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jepa_lightning
from jepa_lightning.interop.meta import load_meta
from jepa_lightning.methods import IJEPA
from jepa_lightning.models import Predictor, VisionTransformer
from jepa_lightning.schedules import Constant

Content = dict[str, Any]
Saver = Callable[[Content], Path]


@pytest.fixture
def content(golden_checkpoint: Path) -> Content:
    return torch.load(golden_checkpoint, weights_only=True)


@pytest.fixture
def saved(tmp_path: Path) -> Saver:
    def save(content: Content) -> Path:
        path = tmp_path / "tampered.pth.tar"
        torch.save(content, path)
        return path

    return save


def in_metas_layout(encoder: VisionTransformer, predictor: Predictor) -> Content:
    def prefixed(module: torch.nn.Module) -> dict[str, Tensor]:
        return {f"module.{name}": tensor for name, tensor in module.state_dict().items()}

    return {"encoder": prefixed(encoder), "predictor": prefixed(predictor), "target_encoder": prefixed(encoder)}


def test_every_tensor_of_the_file_ends_up_where_it_belongs(golden_checkpoint: Path, content: Content) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    for network in ("encoder", "predictor", "target_encoder"):
        state = module.get_submodule(network).state_dict()
        assert {f"module.{name}" for name in state} == set(content[network])
        assert all(torch.equal(tensor, content[network][f"module.{name}"]) for name, tensor in state.items())


def test_the_architecture_is_read_off_the_tensors(golden_checkpoint: Path) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    assert isinstance(module, IJEPA)
    assert module.encoder.img_size == (48, 48)
    assert (module.encoder.patch_size, module.encoder.embed_dim, len(module.encoder.blocks)) == (8, 64, 3)
    assert (module.predictor.predictor_embed.out_features, len(module.predictor.predictor_blocks)) == (32, 2)
    assert {block.attn.num_heads for block in module.predictor.predictor_blocks} == {4}


def test_the_loaded_target_encoder_is_still_frozen(golden_checkpoint: Path) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    assert not any(p.requires_grad for p in module.target_encoder.parameters())
    assert not module.target_encoder.training
    assert all(p.requires_grad for p in module.encoder.parameters())


def test_heads_of_the_predictor_and_other_arguments_can_be_given(golden_checkpoint: Path) -> None:
    module = load_meta(str(golden_checkpoint), num_heads=4, predictor_num_heads=2, lr=Constant(0.5), ipe_scale=1.25)
    assert {block.attn.num_heads for block in module.predictor.predictor_blocks} == {2}
    assert module.lr(1, 10.0, 10) == 0.5
    assert module.ipe_scale == 1.25


def test_the_schedules_default_to_the_published_ones(golden_checkpoint: Path) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    assert module.lr(25_000, 187_500.0, 625) == pytest.approx(1e-3)
    assert module.weight_decay(187_500, 187_500.0, 625) == pytest.approx(0.4)
    assert module.momentum(1, 187_500.0, 625) == pytest.approx(0.996)


def test_the_heads_of_a_published_width_are_known(saved: Saver) -> None:
    encoder = VisionTransformer(32, 16, embed_dim=192, depth=1, num_heads=3)
    module = load_meta(saved(in_metas_layout(encoder, Predictor(encoder, 24, 1))))
    assert module.encoder.num_heads == 3


def test_a_fractional_mlp_ratio_is_found(saved: Saver) -> None:
    encoder = VisionTransformer(32, 16, embed_dim=88, depth=1, num_heads=2, mlp_ratio=48 / 11)
    module = load_meta(saved(in_metas_layout(encoder, Predictor(encoder, 24, 1, mlp_ratio=3.5))), num_heads=2)
    assert module.encoder.blocks[0].mlp.fc1.out_features == 384
    assert module.predictor.predictor_blocks[0].mlp.fc1.out_features == 84


def test_a_hidden_width_that_its_ratio_does_not_give_back_is_found_too(saved: Saver) -> None:
    assert int(28 * (61 / 28)) == 60
    encoder = VisionTransformer(32, 16, embed_dim=28, depth=1, num_heads=2, mlp_ratio=61.5 / 28)
    module = load_meta(saved(in_metas_layout(encoder, Predictor(encoder, 24, 1))), num_heads=2)
    assert module.encoder.blocks[0].mlp.fc1.out_features == 61


def test_a_file_without_the_prefix_of_ddp_is_read_too(golden_checkpoint: Path, content: Content, saved: Saver) -> None:
    for network in ("encoder", "predictor", "target_encoder"):
        content[network] = {name.removeprefix("module."): tensor for name, tensor in content[network].items()}
    plain, prefixed = load_meta(saved(content), num_heads=4), load_meta(golden_checkpoint, num_heads=4)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), prefixed.parameters(), strict=True))


def test_non_square_images_need_their_size(saved: Saver) -> None:
    encoder = VisionTransformer((16, 24), 8, embed_dim=16, depth=1, num_heads=2)
    path = saved(in_metas_layout(encoder, Predictor(encoder, 8, 1)))
    with pytest.raises(ValueError, match=r"tampered.pth.tar: 6 positions are no square grid: give img_size="):
        load_meta(path, num_heads=2)
    assert load_meta(path, num_heads=2, img_size=(16, 24)).encoder.grid == (1, 2, 3)


def test_it_is_part_of_the_public_interface() -> None:
    assert jepa_lightning.load_meta is load_meta


# ---------------------------------------------------------------------- files that do not fit


@pytest.mark.parametrize("network", ["encoder", "predictor", "target_encoder"])
def test_a_missing_tensor_is_named(content: Content, saved: Saver, network: str) -> None:
    name = "predictor_norm.bias" if network == "predictor" else "blocks.1.mlp.fc2.bias"
    del content[network][f"module.{name}"]
    with pytest.raises(ValueError, match=rf"tampered.pth.tar: {network} does not fit: missing {name}"):
        load_meta(saved(content), num_heads=4)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("encoder", "patch_embed.proj.weight"),
        ("encoder", "pos_embed"),
        ("encoder", "blocks.0.mlp.fc1.weight"),
        ("predictor", "predictor_embed.weight"),
    ],
)
def test_a_missing_tensor_that_the_sizes_are_read_off_is_named(
    content: Content, saved: Saver, network: str, name: str
) -> None:
    del content[network][f"module.{name}"]
    with pytest.raises(ValueError, match=rf"tampered.pth.tar: {network} has no tensor {name}"):
        load_meta(saved(content), num_heads=4)


@pytest.mark.parametrize("network", ["encoder", "predictor", "target_encoder"])
def test_an_extra_tensor_is_named(content: Content, saved: Saver, network: str) -> None:
    content[network]["module.cls_token"] = torch.zeros(1, 1, 64)
    with pytest.raises(ValueError, match=rf"tampered.pth.tar: {network} does not fit: unexpected cls_token"):
        load_meta(saved(content), num_heads=4)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(content: Content, saved: Saver) -> None:
    content["target_encoder"]["module.norm.weight"] = torch.zeros(65)
    with pytest.raises(ValueError, match=r"target_encoder does not fit: norm.weight is \[65\], expected \[64\]"):
        load_meta(saved(content), num_heads=4)


def test_many_problems_are_counted(content: Content, saved: Saver) -> None:
    for i in range(9):
        content["encoder"][f"module.extra{i}"] = torch.zeros(1)
    with pytest.raises(ValueError, match="unexpected extra4 and 4 more"):
        load_meta(saved(content), num_heads=4)


def test_a_missing_network_is_named(content: Content, saved: Saver) -> None:
    del content["predictor"]
    with pytest.raises(ValueError, match=r"tampered.pth.tar is no JEPA checkpoint .* has no predictor"):
        load_meta(saved(content), num_heads=4)


def test_a_width_that_was_never_published_needs_the_number_of_heads(golden_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint.pt: embed_dim 64 is no published size: give num_heads="):
        load_meta(golden_checkpoint)


@pytest.mark.parametrize("text", ["", "epoch,itr,loss\n1,0,0.5\n"])
def test_a_text_file_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"log.csv is not a PyTorch checkpoint"):
        load_meta(tmp_path / "log.csv")


def test_a_truncated_file_is_no_checkpoint(golden_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "half.pt").write_bytes(golden_checkpoint.read_bytes()[:500_000])
    with pytest.raises(ValueError, match=r"half.pt is not a PyTorch checkpoint"):
        load_meta(tmp_path / "half.pt", num_heads=4)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from a checkpoint was run",)


def test_a_file_that_holds_code_is_refused_without_running_it(
    content: Content, saved: Saver, capsys: pytest.CaptureFixture[str]
) -> None:
    content["extra"] = Harmful()
    with pytest.raises(ValueError, match=r"tampered.pth.tar is not a PyTorch checkpoint that can be read safely"):
        load_meta(saved(content), num_heads=4)
    assert "was run" not in capsys.readouterr().out


@pytest.mark.parametrize("other", [[1, 2], {"state_dict": {}}, torch.zeros(3)])
def test_a_checkpoint_of_another_layout_is_refused(saved: Saver, other: Any) -> None:
    with pytest.raises(ValueError, match=r"tampered.pth.tar is no JEPA checkpoint in Meta's layout"):
        load_meta(saved(other))


def test_networks_that_are_no_state_dicts_are_refused(content: Content, saved: Saver) -> None:
    with pytest.raises(ValueError, match=r"tampered.pth.tar"):
        load_meta(saved({**content, "encoder": 3}), num_heads=4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*nowhere.pth.tar"):
        load_meta(tmp_path / "nowhere.pth.tar")
