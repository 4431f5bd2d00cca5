from __future__ import annotations

from typing import Any

import pytest

from jepa_lightning.export import support
from jepa_lightning.export.source import Source
from jepa_lightning.models import BlockOptions, Predictor, RoPE, SinCos3D, TargetNoise
from jepa_lightning.models.backbones import TorchvisionBackbone
from jepa_lightning.models.energy_transformer import EnergyBlocks

FORMATS = {
    "huggingface": support.not_in_huggingface,
    "timm": support.not_in_timm,
    "meta": support.not_in_meta,
    "safetensors": support.not_in_safetensors,
    "graph": support.never_refused,
}


def reasons(source: Source) -> dict[str, str]:
    """Of the formats that have no place for it."""
    found = {name: refused(source) for name, refused in FORMATS.items()}
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
