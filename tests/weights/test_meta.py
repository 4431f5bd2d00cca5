from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jepa_lightning
from jepa_lightning.interop.meta import load_meta, meta_networks
from jepa_lightning.methods import IJEPA, VJEPA
from jepa_lightning.models import SIZES, Predictor, RoPE, SinCos3D, VisionTransformer
from jepa_lightning.schedules import Constant

NETWORKS = ("encoder", "predictor", "target_encoder")
FOLDER = Path(__file__).parent.parent / "golden"
HEADS = {"vjepa1_tiny": (4, 4), "vjepa2_tiny": (3, 3)}
"""Of encoder and predictor."""
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


def in_metas_layout(encoder: VisionTransformer, predictor: Predictor, prefix: str = "module.") -> Content:
    def prefixed(module: torch.nn.Module) -> dict[str, Tensor]:
        return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}

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


# ---------------------------------------------------------------------- clips


def clip_content(positions: Any, mask_tokens: int = 2, **overrides: Any) -> Content:
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    encoder = VisionTransformer(**{**sizes, "num_frames": 6, "tubelet_size": 3, "positions": positions, **overrides})
    predictor = Predictor(encoder, 24, 1, num_mask_tokens=mask_tokens)
    return in_metas_layout(encoder, predictor, "module.backbone.")


def without_values(encoder: VisionTransformer, predictor: Predictor) -> Content:
    """Files of large networks that take no space; only position tables have values."""
    content = in_metas_layout(encoder, predictor, "module.backbone.")
    for network, module, table in (
        ("encoder", encoder, "pos_embed"),
        ("predictor", predictor, "predictor_pos_embed"),
        ("target_encoder", encoder, "pos_embed"),
    ):
        state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in content[network].items()}
        if f"module.backbone.{table}" in state:
            grid, dim = module.grid, getattr(module, table).shape[-1]
            state[f"module.backbone.{table}"] = module.positions.table(grid, dim)
        content[network] = state
    return content


@pytest.mark.parametrize("name", HEADS)
def test_every_tensor_of_a_video_file_ends_up_where_it_belongs(name: str) -> None:
    path = FOLDER / name / "checkpoint.pt"
    content, (heads, predictor_heads) = torch.load(path, weights_only=True), HEADS[name]
    module = load_meta(path, num_heads=heads, predictor_num_heads=predictor_heads)
    assert isinstance(module, VJEPA)
    for network in NETWORKS:
        state = module.get_submodule(network).state_dict()
        assert {f"module.backbone.{key}" for key in state} == set(content[network])
        assert all(torch.equal(tensor, content[network][f"module.backbone.{key}"]) for key, tensor in state.items())
    assert not any(p.requires_grad for p in module.target_encoder.parameters())
    assert all(p.requires_grad for p in module.encoder.parameters())


def test_the_architecture_of_v1_is_read_off_the_tensors() -> None:
    module = load_meta(FOLDER / "vjepa1_tiny" / "checkpoint.pt", num_heads=4)
    encoder, predictor = module.encoder, module.predictor
    assert encoder.positions == predictor.positions == SinCos3D(uniform_power=True)
    assert (encoder.img_size, encoder.patch_size, encoder.num_frames, encoder.tubelet_size) == ((32, 32), 8, 8, 2)
    assert (encoder.embed_dim, len(encoder.blocks), encoder.grid) == (48, 2, (4, 4, 4))
    assert (predictor.predictor_embed.out_features, len(predictor.predictor_blocks)) == (24, 2)
    assert len(predictor.mask_tokens) == 2
    assert {block.attn.num_heads for block in predictor.predictor_blocks} == {4}


def test_the_architecture_of_v2_is_read_off_the_tensors() -> None:
    module = load_meta(FOLDER / "vjepa2_tiny" / "checkpoint.pt", num_heads=3, predictor_num_heads=3)
    encoder = module.encoder
    assert encoder.positions == module.predictor.positions == RoPE(layout="tiled")
    assert (encoder.img_size, encoder.num_frames, encoder.tubelet_size) == ((256, 256), 16, 2)
    assert (encoder.embed_dim, len(encoder.blocks), encoder.grid) == (48, 2, (8, 32, 32))
    assert len(module.predictor.mask_tokens) == 10


def test_size_and_length_can_be_given_where_no_tensor_shows_them() -> None:
    path = FOLDER / "vjepa2_tiny" / "checkpoint.pt"
    encoder = load_meta(path, num_heads=3, predictor_num_heads=3, img_size=(24, 48), num_frames=8).encoder
    assert (encoder.img_size, encoder.num_frames, encoder.grid) == ((24, 48), 8, (4, 3, 6))


@pytest.mark.parametrize(
    ("sizes", "img_size", "num_frames"),
    [({"tubelet_size": 3}, 256, 15), ({"patch_size": 24}, 240, 15), ({"num_frames": 20, "tubelet_size": 20}, 256, 20)],
)
def test_size_and_length_are_assumed_such_that_patches_and_tubelets_divide_them(
    saved: Saver, sizes: dict[str, int], img_size: int, num_frames: int
) -> None:
    encoder = load_meta(saved(clip_content(RoPE(), 10, **sizes)), num_heads=2).encoder
    assert (encoder.img_size, encoder.num_frames) == ((img_size, img_size), num_frames)


def test_positions_left_in_a_file_of_v2_are_not_used(saved: Saver) -> None:
    content = torch.load(FOLDER / "vjepa2_tiny" / "checkpoint.pt", weights_only=True)
    plain = load_meta(saved(content), num_heads=3, predictor_num_heads=3, img_size=32, num_frames=8)
    for network in NETWORKS:
        name = "predictor_pos_embed" if network == "predictor" else "pos_embed"
        content[network][f"module.backbone.{name}"] = torch.randn(1, 64, 36 if network == "predictor" else 48)
    module = load_meta(saved(content), num_heads=3, predictor_num_heads=3, img_size=32, num_frames=8)
    assert module.encoder.positions == RoPE(layout="tiled")
    assert list(module.state_dict()) == list(plain.state_dict())
    clip = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(module.encode(clip), plain.encode(clip))


@pytest.mark.parametrize(
    ("positions", "mask_tokens", "rotary"),
    [
        (SinCos3D(), 2, False),
        (SinCos3D(), 1, False),
        (SinCos3D(), 4, False),
        (SinCos3D(), 10, True),
        (RoPE(), 1, True),
        (RoPE(), 2, True),
        (RoPE(), 10, True),
    ],
)
def test_v1_and_v2_are_told_apart_by_position_tables_and_the_number_of_mask_tokens(
    saved: Saver, positions: Any, mask_tokens: int, rotary: bool
) -> None:
    module = load_meta(saved(clip_content(positions, mask_tokens)), num_heads=2)
    assert isinstance(module, VJEPA)
    assert module.encoder.positions == (RoPE(layout="tiled") if rotary else SinCos3D())
    assert module.share_mask_token == rotary
    assert len(module.predictor.mask_tokens) == mask_tokens


def test_the_caller_has_the_last_word_on_rotary_positions(saved: Saver) -> None:
    path = saved(clip_content(SinCos3D(), 2))
    assert load_meta(path, num_heads=2, rotary=True).encoder.positions == RoPE(layout="tiled")
    path = saved(clip_content(SinCos3D(), 10))
    assert load_meta(path, num_heads=2, rotary=False).encoder.positions == SinCos3D()
    path = saved(clip_content(RoPE(), 10))
    with pytest.raises(ValueError, match=r"tampered.pth.tar: encoder has no tensor pos_embed"):
        load_meta(path, num_heads=2, rotary=False)


@pytest.mark.parametrize("uniform_power", [True, False])
@pytest.mark.parametrize(("frames", "tubelet", "size"), [(6, 3, 24), (8, 2, 16), (10, 1, 8)])
def test_size_length_and_kind_of_positions_are_read_off_the_table(
    saved: Saver, uniform_power: bool, frames: int, tubelet: int, size: int
) -> None:
    positions = SinCos3D(uniform_power=uniform_power)
    content = clip_content(positions, num_frames=frames, tubelet_size=tubelet, img_size=size)
    module = load_meta(saved(content), num_heads=2)
    encoder = module.encoder
    assert (encoder.num_frames, encoder.tubelet_size, encoder.img_size) == (frames, tubelet, (size, size))
    assert encoder.positions == module.predictor.positions == positions
    assert torch.equal(encoder.pos_embed, content["encoder"]["module.backbone.pos_embed"])


def test_a_width_that_only_uniform_positions_can_share_is_read_too(saved: Saver) -> None:
    module = load_meta(saved(clip_content(SinCos3D(), embed_dim=36)), num_heads=2)
    assert module.encoder.positions == SinCos3D(uniform_power=True)
    assert module.encoder.grid == (2, 3, 3)


def test_clips_that_are_not_square_need_their_size(saved: Saver) -> None:
    path = saved(clip_content(SinCos3D(), img_size=(16, 40)))
    with pytest.raises(ValueError, match=r"tampered.pth.tar: 10 positions are no square grid: give img_size=\(height"):
        load_meta(path, num_heads=2)
    encoder = load_meta(path, num_heads=2, img_size=(16, 40)).encoder
    assert (encoder.grid, encoder.num_frames) == ((2, 2, 5), 6)


@pytest.mark.parametrize("wrong", [{"num_frames": 12}, {"img_size": 32}, {"img_size": (8, 72)}])
def test_a_table_that_does_not_fit_is_refused_with_what_was_assumed(saved: Saver, wrong: dict[str, Any]) -> None:
    path = saved(clip_content(SinCos3D()))
    frames, size = wrong.get("num_frames", 6), str(wrong.get("img_size", 24))
    message = (
        f"pos_embed [18, 24] is no sine-cosine table for clips of {frames} frames of {size} pixels: give img_size="
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_meta(path, num_heads=2, **wrong)


def test_a_table_that_was_trained_is_refused(saved: Saver) -> None:
    content = clip_content(SinCos3D())
    content["encoder"]["module.backbone.pos_embed"][0, 5, 7] += 0.01
    with pytest.raises(ValueError, match=r"is no sine-cosine table for clips of 6 frames of 24 pixels"):
        load_meta(saved(content), num_heads=2)


@pytest.mark.parametrize(
    ("positions", "mask_tokens", "size", "heads", "predictor_heads"),
    [(SinCos3D(), 2, "giant", 16, 16), (RoPE(), 10, "giant_xformers", 22, 12), (RoPE(), 10, "tiny", 3, 12)],
)
def test_the_heads_of_published_widths_are_known(
    saved: Saver, positions: Any, mask_tokens: int, size: str, heads: int, predictor_heads: int
) -> None:
    settings: dict[str, Any] = {**SIZES[size], "depth": 1, "mlp_ratio": 0.01, "num_frames": 4, "tubelet_size": 2}
    with torch.device("meta"):
        encoder = VisionTransformer(32, 16, positions=positions, **settings)
        predictor = Predictor(encoder, 384, 1, predictor_heads, 0.01, num_mask_tokens=mask_tokens)
    module = load_meta(saved(without_values(encoder, predictor)))
    assert {block.attn.num_heads for block in module.encoder.blocks} == {heads}
    assert {block.attn.num_heads for block in module.predictor.predictor_blocks} == {predictor_heads}


def test_a_narrow_predictor_of_v2_has_as_many_heads_as_the_encoder_unless_said(saved: Saver) -> None:
    path = saved(clip_content(RoPE(), 10))
    assert {block.attn.num_heads for block in load_meta(path, num_heads=2).predictor.predictor_blocks} == {2}
    module = load_meta(path, num_heads=2, predictor_num_heads=4)
    assert {block.attn.num_heads for block in module.predictor.predictor_blocks} == {4}


def test_the_schedules_of_v1_default_to_the_published_ones(saved: Saver) -> None:
    module = load_meta(saved(clip_content(SinCos3D())), num_heads=2)
    total = module.ipe_scale * 90_000
    assert module.ipe_scale == 1.25
    assert module.lr(12_000, total, 300) == pytest.approx(6.25e-4)
    assert module.lr(90_000, total, 300) == pytest.approx(7.504222442956086e-05)
    assert module.weight_decay(90_000, total, 300) == pytest.approx(0.36562305898749053)
    assert module.momentum(1, total, 300) == pytest.approx(0.998)
    assert not module.share_mask_token
    assert module.loss_exp == 1.0


def test_the_schedules_of_v2_default_to_the_published_ones(saved: Saver) -> None:
    module = load_meta(saved(clip_content(RoPE(), 10)), num_heads=2)
    assert module.lr(6_000, 300_000, 300) == pytest.approx(3.125e-4)
    assert {module.lr(step, 300_000, 300) for step in (12_000, 240_000)} == {5.25e-4}
    assert {module.weight_decay(step, 300_000, 300) for step in (1, 240_000)} == {0.04}
    assert {module.momentum(step, 300_000, 300) for step in (1, 240_000)} == {0.99925}
    assert module.share_mask_token


def test_other_arguments_of_the_method_can_be_given(saved: Saver) -> None:
    path = saved(clip_content(RoPE(), 10))
    module = load_meta(path, num_heads=2, share_mask_token=False, loss_exp=2.0, lr=Constant(0.5))
    assert (module.share_mask_token, module.loss_exp, module.lr(7, 10.0, 10)) == (False, 2.0, 0.5)


@pytest.mark.parametrize("positions", [SinCos3D(), RoPE()])
@pytest.mark.parametrize("network", NETWORKS)
def test_tensors_of_a_video_file_that_are_missing_or_too_many_are_named(
    saved: Saver, positions: Any, network: str
) -> None:
    name = "predictor_norm.bias" if network == "predictor" else "norm.bias"
    content = clip_content(positions)
    content[network]["module.backbone.extra"] = content[network].pop(f"module.backbone.{name}")
    with pytest.raises(
        ValueError, match=rf"tampered.pth.tar: {network} does not fit: missing {name}; unexpected extra"
    ):
        load_meta(saved(content), num_heads=2)


def test_a_video_file_of_an_unpublished_width_needs_the_number_of_heads() -> None:
    with pytest.raises(ValueError, match=r"checkpoint.pt: embed_dim 48 is no published size: give num_heads="):
        load_meta(FOLDER / "vjepa2_tiny" / "checkpoint.pt")


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


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("prefix", ["module.", "module.backbone.", "backbone."])
def test_a_prefix_on_some_of_the_tensors_is_refused(saved: Saver, network: str, prefix: str) -> None:
    content = clip_content(RoPE())
    names = list(content[network])
    kept = {name: content[network][name] for name in names[: len(names) // 2]}
    rest = {name.replace("module.backbone.", ""): content[network][name] for name in names[len(names) // 2 :]}
    content[network] = {**{name.replace("module.backbone.", prefix): x for name, x in kept.items()}, **rest}
    message = rf"tampered.pth.tar: \d+ of \d+ tensors of {network} have the prefix \w+\., the others, for example \w+"
    with pytest.raises(ValueError, match=message):
        load_meta(saved(content), num_heads=2)


def test_only_one_prefix_of_ddp_is_taken_off(content: Content, saved: Saver) -> None:
    content["encoder"] = {f"module.{name}": tensor for name, tensor in content["encoder"].items()}
    with pytest.raises(ValueError, match=r"encoder has no tensor patch_embed.proj.weight"):
        load_meta(saved(content), num_heads=4)


@pytest.mark.parametrize("kind", [torch.int32, torch.bool])
def test_tensors_of_other_numbers_are_refused(content: Content, saved: Saver, kind: torch.dtype) -> None:
    content["encoder"]["module.norm.weight"] = content["encoder"]["module.norm.weight"].to(kind)
    with pytest.raises(ValueError, match=rf"encoder does not fit: norm.weight is {kind} .*, expected torch.float32"):
        load_meta(saved(content), num_heads=4)


def test_sparse_tensors_are_refused(content: Content, saved: Saver) -> None:
    name = "module.blocks.0.attn.proj.weight"
    content["encoder"][name] = content["encoder"][name].to_sparse()
    with pytest.raises(ValueError, match=r"tampered.pth.tar"):
        load_meta(saved(content), num_heads=4)


@pytest.mark.parametrize("shape", [(64,), (64, 3), (0, 3, 8, 8), (64, 3, 0, 8)])
def test_tensors_that_show_no_sizes_are_refused(content: Content, saved: Saver, shape: tuple[int, ...]) -> None:
    content["encoder"]["module.patch_embed.proj.weight"] = torch.zeros(shape)
    message = re.escape(
        f"patch_embed.proj.weight of encoder is {list(shape)}, expected 4 or 5 dimensions, none of them 0"
    )
    with pytest.raises(ValueError, match=message):
        load_meta(saved(content), num_heads=4)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32(content: Content, saved: Saver, half: torch.dtype) -> None:
    for network in NETWORKS:
        content[network] = {name: tensor.to(half) for name, tensor in content[network].items()}
    module = load_meta(saved(content), num_heads=4)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert torch.equal(module.encoder.norm.weight, content["encoder"]["module.norm.weight"].float())


def test_networks_that_share_their_tensors_in_the_file_are_apart_afterwards(content: Content, saved: Saver) -> None:
    content["target_encoder"] = content["encoder"]
    module = load_meta(saved(content), num_heads=4)
    with torch.no_grad():
        module.encoder.norm.weight.zero_()
    assert module.target_encoder.norm.weight.abs().min() > 0


def test_a_loaded_module_is_where_its_tensors_are(golden_checkpoint: Path) -> None:
    module = load_meta(golden_checkpoint, num_heads=4)
    assert module.device == torch.device("cpu")
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])


def test_one_encoder_is_read_without_looking_at_the_other_networks(content: Content, saved: Saver) -> None:
    expected = meta_networks(saved(content), num_heads=4).encoder
    content["encoder"] = {"module.something": torch.zeros(1)}
    content["predictor"] = {"module.something": torch.zeros(1)}
    found = meta_networks(saved(content), num_heads=4)
    assert found.branch == "target"
    assert torch.equal(found.encoder.norm.weight, expected.norm.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(("branch", "there"), [("target", "encoder"), ("context", "target_encoder")])
def test_where_a_network_is_missing_the_other_is_taken_and_told(
    content: Content, saved: Saver, branch: Any, there: str
) -> None:
    wanted = {"target": "target_encoder", "context": "encoder"}[branch]
    del content[wanted]
    with pytest.warns(UserWarning, match=rf"has no {wanted}: its {there} is taken"):
        found = meta_networks(saved(content), branch, num_heads=4)
    assert found.branch != branch
    assert torch.equal(found.encoder.norm.weight, content[there]["module.norm.weight"])  # type: ignore[arg-type]


def test_of_v2_with_actions_the_encoder_can_be_read(saved: Saver) -> None:
    content = clip_content(RoPE())
    content["predictor"] = {"module.action_encoder.weight": torch.zeros(24, 7)}
    path = saved(content)
    encoder = meta_networks(path, num_heads=2, img_size=24, num_frames=6).encoder
    assert encoder.positions == RoPE(layout="tiled")
    assert encoder(torch.randn(1, 3, 6, 24, 24)).shape == (1, 18, 24)
    with pytest.raises(ValueError, match="predictor has no tensor predictor_embed.weight"):
        load_meta(path, num_heads=2)


def test_v2_1_is_refused_by_name(saved: Saver) -> None:
    content = clip_content(RoPE())
    for network in ("encoder", "target_encoder"):
        content[network]["module.backbone.patch_embed_img.proj.weight"] = torch.zeros(24, 3, 1, 8, 8)
    path = saved(content)
    with pytest.raises(ValueError, match=r"is of V-JEPA 2.1, which is not supported yet; the methods here are I-JEPA"):
        load_meta(path)
    with pytest.raises(ValueError, match=r"is of V-JEPA 2.1, whose encoder .* is not supported yet: give a"):
        meta_networks(path)


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
