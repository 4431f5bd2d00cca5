from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from jepa_lightning.export.graphs import (
    ONNX,
    TorchExport,
    Traceable,
    dynamic_sizes,
)
from jepa_lightning.export.source import Source, functions_of
from jepa_lightning.models import Positions, RoPE, SinCos2D, SinCos3D
from jepa_lightning.models.backbones import TorchvisionBackbone
from jepa_lightning.models.energy_transformer import EnergyBlocks

pytestmark = pytest.mark.usefixtures("without_type_checks")


def agrees(theirs: Any, ours: Any, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(theirs(*inputs), ours(*inputs), rtol=0, atol=1e-5)


def test_batch_and_sizes_of_images_are_dynamic_in_onnx_and_have_names(image_source: Any, tmp_path: Path) -> None:
    source: Source = image_source(depth=1)
    ONNX().write(source, tmp_path)
    theirs, ours = ONNX().reload(tmp_path, source).encode, functions_of(source.networks).encode
    for shape in (source.shape(2), source.shape(1), (3, 3, 40, 24)):
        agrees(theirs, ours, torch.randn(shape))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.name for node in (*graph.input, *graph.output)] == ["inputs", "tokens"]
    axes = [axis.dim_param or axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "8*rows", "8*columns"]
    assert isinstance(source.networks.encoder.positions, SinCos2D)  # tracing has left the encoder as it was


def test_batch_sizes_and_length_of_rotary_clips_are_dynamic_in_onnx(clip_source: Any, tmp_path: Path) -> None:
    source: Source = clip_source(depth=1)
    ONNX().write(source, tmp_path)
    theirs, ours = ONNX().reload(tmp_path, source).encode, functions_of(source.networks).encode
    for shape in (source.shape(2), source.shape(1), (3, 3, 6, 40, 24)):
        agrees(theirs, ours, torch.randn(shape))


def test_sizes_are_dynamic_in_torch_export_beside_an_axis_of_one_token(clip_source: Any, tmp_path: Path) -> None:
    source: Source = clip_source(depth=1, num_frames=2, positions=SinCos3D())
    TorchExport().write(source, tmp_path)
    theirs, ours = TorchExport().reload(tmp_path, source).encode, functions_of(source.networks).encode
    for shape in (source.shape(2), source.shape(1), (3, 3, 2, 40, 24)):
        agrees(theirs, ours, torch.randn(shape))


def test_a_predictor_is_a_graph_of_its_own_for_any_number_of_tokens(clip_source: Any, tmp_path: Path) -> None:
    source: Source = clip_source(predictor=True, depth=1, embed_dim=12, num_heads=2)
    source = source._replace(networks=source.networks._replace(mask_index=1))
    TorchExport(fixed_size=True).write(source, tmp_path)
    theirs, ours = TorchExport().reload(tmp_path, source).predict, functions_of(source.networks).predict
    for context, targets in ((2, 4), (5, 1), (1, 3)):
        order = torch.rand(3, 8).argsort(dim=1)
        agrees(theirs, ours, torch.randn(3, 8, 12), order[:, :context], order[:, -targets:])


def test_a_probe_of_several_blocks_gives_logits_in_one_graph(clip_source: Any, tmp_path: Path) -> None:
    source: Source = clip_source(classes=3)
    source = source._replace(networks=source.networks._replace(out_layers=(1, 0)))
    TorchExport(fixed_size=True).write(source, tmp_path)
    theirs = TorchExport().reload(tmp_path, source)
    assert theirs.encode is None
    agrees(theirs.classify, functions_of(source.networks).classify, torch.randn(3, 3, 4, 16, 16))


def test_what_only_we_have_is_a_graph_like_any_other(image_source: Any, tmp_path: Path) -> None:
    source: Source = image_source(depth=2, blocks=EnergyBlocks())
    ONNX(fixed_size=True).write(source, tmp_path)
    agrees(ONNX().reload(tmp_path, source).encode, functions_of(source.networks).encode, torch.randn(3, 3, 16, 16))


def test_large_weights_stand_in_a_file_of_their_own(
    image_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_lightning.export.graphs.EXTERNAL", 1000)
    source: Source = image_source(depth=1)
    (tmp_path / "here").mkdir()
    ONNX(fixed_size=True).write(source, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there" / "model.onnx.data").is_file()
    agrees(
        ONNX().reload(tmp_path / "there", source).encode,
        functions_of(source.networks).encode,
        torch.randn(source.shape(2)),
    )


def test_a_graph_of_fixed_size_refuses_another(image_source: Any, tmp_path: Path) -> None:
    source: Source = image_source(depth=1)
    TorchExport(fixed_size=True).write(source, tmp_path)
    encode = TorchExport().reload(tmp_path, source).encode
    assert encode is not None
    agrees(encode, functions_of(source.networks).encode, torch.randn(5, 3, 16, 16))
    with pytest.raises(AssertionError, match="16"):
        encode(torch.randn(1, 3, 24, 16))


def test_a_convolutional_network_keeps_its_size(image_source: Any, tmp_path: Path) -> None:
    encoder = TorchvisionBackbone("alexnet", img_size=64).requires_grad_(False).eval()
    source: Source = image_source()
    source = source._replace(networks=source.networks._replace(encoder=encoder))
    assert not dynamic_sizes(encoder)
    TorchExport().write(source, tmp_path)
    agrees(TorchExport().reload(tmp_path, source).encode, encoder, torch.randn(3, 3, 64, 64))


@pytest.mark.parametrize(
    ("positions", "frames"),
    [(SinCos2D(), 1), (SinCos3D(), 3), (SinCos3D(), 1), (RoPE(), 3), (RoPE(layout="tiled"), 1)],
)
def test_traceable_positions_are_the_same_positions(positions: Positions, frames: int) -> None:
    traceable = Traceable(positions)
    table = positions.table((frames, 2, 4), 24)
    for wanted in ((frames, 2, 4), (frames, 3, 5)):
        index = torch.arange(wanted[0] * wanted[1] * wanted[2]).unsqueeze(0)
        if table is not None:
            torch.testing.assert_close(
                traceable.fit(table, (frames, 2, 4), wanted), positions.fit(table, (frames, 2, 4), wanted)
            )
        found, expected = (each.rotation(index, wanted, 12) for each in (traceable, positions))
        assert (found is None) == (expected is None)
        for a, b in zip(found or (), expected or (), strict=True):
            torch.testing.assert_close(a, b)
