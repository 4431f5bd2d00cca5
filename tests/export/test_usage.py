from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.export import graphs, usage
from jepa_lightning.export.formats import formats, prepared
from jepa_lightning.export.source import Source

FUNCTIONS = {name: getattr(usage, name) for name in formats()}


def code_of(section: str) -> str:
    found = re.match(r"```python\n(.*?)\n```", section, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_lines_are_python(image_source: Any, clip_source: Any, name: str) -> None:
    for source in (image_source(predictor=True), clip_source(predictor=True), clip_source(classes=3)):
        compile(code_of(FUNCTIONS[name](source)), name, "exec")


@pytest.mark.parametrize("name", ["torch_export", "safetensors", "meta"])
def test_the_lines_do_what_they_say(
    image_source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source: Source = prepared(name, image_source(predictor=True, depth=1))
    form = formats(fixed_size=True)[name]
    form.write(source, tmp_path)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"inputs": torch.randn(source.shape(1))}
    exec(code_of(form.usage(source)), scope)
    tokens = scope["module"].encode(scope["inputs"]) if name == "meta" else scope["tokens"]
    torch.testing.assert_close(tokens, source.networks.encoder(scope["inputs"]), rtol=0, atol=1e-5)


def test_what_is_dynamic_is_said(image_source: Any) -> None:
    assert "sizes of two tokens or more: multiples of 8 pixels" in usage.onnx(image_source())
    assert "only the size above" in usage.onnx(image_source(), fixed_size=True)


def test_traps_are_said(clip_source: Any) -> None:
    assert "mask token 1" in usage.huggingface(clip_source(predictor=True))
    assert "multiplied by a constant" in usage.huggingface(clip_source(classes=3))
    assert "one encoder, which stands for both" in usage.meta(clip_source(predictor=True))
    assert "predictor.onnx" in usage.onnx(clip_source(predictor=True))
    assert "uses mask token 0, counted round" in usage.onnx(clip_source(predictor=True))


def test_the_only_mask_token_is_not_counted(image_source: Any) -> None:
    assert "mask token" not in usage.torch_export(image_source(predictor=True))


def test_weights_in_a_file_of_their_own_are_told(image_source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "model.onnx.data" not in usage.onnx(image_source())
    monkeypatch.setattr(graphs, "EXTERNAL", 1000)
    assert "The weights are in `model.onnx.data`" in usage.onnx(image_source())
