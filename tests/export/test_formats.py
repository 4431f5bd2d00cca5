from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.export import base, graphs
from jepa_lightning.export.formats import FIXED_SIZE, FORMATS, check_packages, prepared
from jepa_lightning.export.source import Source
from jepa_lightning.models import BlockOptions, Predictor, RoPE, SinCos3D, TargetNoise
from jepa_lightning.models.backbones import TorchvisionBackbone
from jepa_lightning.models.energy_transformer import EnergyBlocks


def test_a_predictor_goes_where_the_format_always_has_one(image_source: Any, clip_source: Any) -> None:
    clips, images = clip_source(predictor=True), image_source(predictor=True)
    written = {name for name in FORMATS if name != "timm" and prepared(name, clips).networks.predictor is not None}
    assert written == {"huggingface", "meta"}
    written = {name for name in FORMATS if prepared(name, images).networks.predictor is not None}
    assert written == {"meta"}


def test_the_person_has_the_last_word_on_the_predictor(clip_source: Any) -> None:
    source = clip_source(predictor=True)
    assert prepared("huggingface", source, False).networks.predictor is None
    assert prepared("safetensors", source, True).networks.predictor is source.networks.predictor
    with pytest.raises(ValueError, match=r"some.ckpt has no predictor: leave out --with_predictor"):
        prepared("onnx", clip_source(), True)
    config = {"model": {"init_args": {"predictor": {"class_path": "jepa_lightning.models.ActionPredictor"}}}}
    with pytest.raises(ValueError, match=r"has no predictor of tokens at positions, but ActionPredictor: leave ou"):
        prepared("onnx", clip_source()._replace(config=config), True)


def test_the_mask_token_is_that_of_the_library(clip_source: Any) -> None:
    source = clip_source(predictor=True)
    assert prepared("huggingface", source).networks.mask_index == 1
    assert prepared("meta", source).networks.mask_index == 0


def test_what_has_no_place_is_told_who_takes_it(clip_source: Any, image_source: Any) -> None:
    vjepa = clip_source(predictor=True, positions=SinCos3D())
    message = (
        r"^some.ckpt \(V-JEPA\) cannot be exported to huggingface: VJEPA2Model has rotary positions, this encoder of "
        r"clips \(V-JEPA\) adds a table. Use --to onnx or torch_export or safetensors or meta$"
    )
    with pytest.raises(ValueError, match=message):
        prepared("huggingface", vjepa)
    message = r"exported to meta: .* holds a predictor, and here is none. Use --to huggingface or timm or onnx"
    with pytest.raises(ValueError, match=message):
        prepared("meta", image_source())


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None if name.startswith("onnx") else object())
    message = r"^--to onnx needs onnxruntime and onnx and onnxscript: pip install 'jepa-lightning\[export\]'$"
    with pytest.raises(ImportError, match=message):
        check_packages("onnx")
    check_packages("timm")
    check_packages("torch_export")


# ---------------------------------------------------------------------- which formats can hold a model


def reasons(source: Source) -> dict[str, str]:
    """Of the formats that have no place for it."""
    found = {name: form.unsupported(source) for name, form in FORMATS.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def test_an_ijepa_encoder_has_a_place_wherever_no_predictor_is_needed(image_source: Any) -> None:
    assert set(reasons(image_source())) == {"meta"}


def test_an_ijepa_with_its_predictor_goes_to_metas_format(image_source: Any) -> None:
    found = reasons(image_source(predictor=True))
    assert set(found) == {"huggingface", "timm"}
    assert "leave out --with_predictor" in found["timm"]


def test_a_vjepa2_goes_everywhere_but_to_timm(clip_source: Any) -> None:
    assert set(reasons(clip_source(predictor=True))) == {"timm"}


def test_a_vjepa_has_no_class_in_transformers(clip_source: Any) -> None:
    found = reasons(clip_source(predictor=True, positions=SinCos3D()))
    assert set(found) == {"huggingface", "timm"}
    assert "VJEPA2Model has rotary positions, this encoder of clips (V-JEPA) adds a table" in found["huggingface"]


@pytest.mark.parametrize("positions", [RoPE(), RoPE(layout="tiled", theta=100.0)])
def test_rotary_positions_of_another_kind_have_no_place_with_meta_and_transformers(
    clip_source: Any, positions: RoPE
) -> None:
    found = reasons(clip_source(predictor=True, positions=positions))
    assert set(found) == {"huggingface", "timm", "meta"}
    assert "RoPE(layout: tiled, theta: 10000)" in found["huggingface"]
    assert "train with positions: {class_path: RoPE, init_args: {layout: tiled}}" in found["meta"]


@pytest.mark.parametrize("blocks", [BlockOptions(swiglu=True), EnergyBlocks()])
def test_other_blocks_are_only_known_here(image_source: Any, clip_source: Any, blocks: Any) -> None:
    for source in (image_source(predictor=True, blocks=blocks), clip_source(predictor=True, blocks=blocks)):
        assert set(reasons(source)) == {"huggingface", "timm", "meta"}


@pytest.mark.parametrize("options", [{"blocks": BlockOptions(swiglu=True)}, {"target_noise": TargetNoise()}])
def test_a_predictor_that_transformers_lacks_can_be_left_out(clip_source: Any, options: dict[str, Any]) -> None:
    source: Source = clip_source()
    predictor = Predictor(source.networks.encoder, 24, 1, 2, **options)
    found = reasons(source._replace(networks=source.networks._replace(predictor=predictor)))
    assert set(found) == {"huggingface", "timm", "meta"}
    assert "--no-with_predictor leaves it out" in found["huggingface"]


def test_clips_that_are_not_square_do_not_go_to_transformers(clip_source: Any) -> None:
    assert "square clips, not 16x24" in reasons(clip_source(img_size=(16, 24)))["huggingface"]


def test_a_probe_goes_to_transformers_if_its_heads_are_those_of_the_encoder(clip_source: Any) -> None:
    assert set(reasons(clip_source(classes=3))) == {"timm", "meta", "safetensors"}
    found = reasons(clip_source(classes=3, probe_heads=4))
    assert (
        "as many heads as the encoder, 3, and this one has 4: train it with --model.num_heads 3"
        in (found["huggingface"])
    )


def test_a_probe_of_several_blocks_or_on_images_goes_into_graphs_only(clip_source: Any, image_source: Any) -> None:
    layers = clip_source(classes=3)
    layers = layers._replace(networks=layers.networks._replace(out_layers=(0, 1)))
    images = image_source()
    probe = clip_source(classes=3).networks.classifier
    images = images._replace(networks=images.networks._replace(classifier=probe))
    for source in (layers, images):
        assert set(reasons(source)) == {"huggingface", "timm", "meta", "safetensors"}


def test_another_encoder_goes_into_graphs_and_with_its_configuration_into_our_own_file(image_source: Any) -> None:
    source: Source = image_source()
    encoder = TorchvisionBackbone("mobilenet_v3_small", img_size=32)
    source = source._replace(networks=source.networks._replace(encoder=encoder))
    assert set(reasons(source)) == {"huggingface", "timm", "meta", "safetensors"}
    config = {
        "model": {"init_args": {"encoder": {"class_path": "jepa_lightning.models.backbones.TorchvisionBackbone"}}}
    }
    assert set(reasons(source._replace(config=config))) == {"huggingface", "timm", "meta"}


# ---------------------------------------------------------------------- the section of a model card


def code_of(section: str) -> str:
    found = re.match(r"```python\n(.*?)\n```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("name", FORMATS)
def test_the_lines_are_python(image_source: Any, clip_source: Any, name: str) -> None:
    for source in (image_source(predictor=True), clip_source(predictor=True), clip_source(classes=3)):
        compile(code_of(FORMATS[name].usage(source)), name, "exec")


@pytest.mark.parametrize("name", ["torch_export", "safetensors", "meta"])
def test_the_lines_do_what_they_say(
    image_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source: Source = prepared(name, image_source(predictor=True, depth=1))
    form = FIXED_SIZE.get(name, FORMATS[name])
    form.write(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"inputs": torch.randn(source.shape(1))}
    exec(code_of(form.usage(source)), scope)
    tokens = scope["module"].encode(scope["inputs"]) if name == "meta" else scope["tokens"]
    torch.testing.assert_close(tokens, source.networks.encoder(scope["inputs"]), rtol=0, atol=1e-5)


def test_what_is_dynamic_is_said(image_source: Any) -> None:
    assert "sizes of two tokens or more: multiples of 8 pixels" in FORMATS["onnx"].usage(image_source())
    assert "only the size above" in FIXED_SIZE["onnx"].usage(image_source())


def test_traps_are_said(clip_source: Any) -> None:
    assert "mask token 1" in FORMATS["huggingface"].usage(clip_source(predictor=True))
    assert "multiplied by a constant" in FORMATS["huggingface"].usage(clip_source(classes=3))
    assert "one encoder, which is written as both" in FORMATS["meta"].usage(clip_source(predictor=True))
    assert "predictor.onnx" in FORMATS["onnx"].usage(clip_source(predictor=True))
    assert "uses mask token 0, counted round" in FORMATS["onnx"].usage(clip_source(predictor=True))


def test_the_only_mask_token_is_not_counted(image_source: Any) -> None:
    assert "mask token" not in FORMATS["torch_export"].usage(image_source(predictor=True))


def test_weights_in_a_file_of_their_own_are_told(image_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "model.onnx.data" not in FORMATS["onnx"].usage(image_source())
    monkeypatch.setattr(graphs, "EXTERNAL", 1000)
    assert "The weights are in `model.onnx.data`" in FORMATS["onnx"].usage(image_source())
