from __future__ import annotations

from typing import Any

import pytest

from jepa_lightning.export import formats as module
from jepa_lightning.export.formats import check_packages, formats, prepared
from jepa_lightning.models import SinCos3D


def test_a_predictor_goes_where_the_format_always_has_one(image_source: Any, clip_source: Any) -> None:
    clips, images = clip_source(predictor=True), image_source(predictor=True)
    written = {name for name in formats() if name != "timm" and prepared(name, clips).networks.predictor is not None}
    assert written == {"huggingface", "meta"}
    written = {name for name in formats() if prepared(name, images).networks.predictor is not None}
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
    monkeypatch.setattr(module, "find_spec", lambda name: None if name.startswith("onnx") else object())
    message = r"^--to onnx needs onnxruntime and onnx and onnxscript: pip install 'jepa-lightning\[export\]'$"
    with pytest.raises(ImportError, match=message):
        check_packages("onnx")
    check_packages("timm")
    check_packages("torch_export")
