from __future__ import annotations

from typing import Any

import torch

from jepa_lightning.export.source import functions_of
from jepa_lightning.models import SinCos3D


def test_inputs_have_the_shape_that_the_encoder_was_built_for(image_source: Any, clip_source: Any) -> None:
    assert image_source(img_size=(16, 24), in_chans=2).shape(3) == (3, 2, 16, 24)
    assert clip_source().shape(2) == (2, 3, 4, 16, 16)


def test_kinds_are_told_by_the_method_or_else_by_the_tensors(image_source: Any, clip_source: Any) -> None:
    assert image_source().kind == "I-JEPA"
    assert clip_source(positions=SinCos3D()).kind == "V-JEPA"
    assert image_source()._replace(config={"model": {"class_path": "jepa_lightning.LeJEPA"}}).kind == "LeJEPA"


def test_only_what_is_there_is_computed(image_source: Any, clip_source: Any) -> None:
    found = functions_of(image_source().networks)
    assert (found.classify, found.predict) == (None, None)
    found = functions_of(clip_source(predictor=True, classes=3).networks)
    clips = torch.randn(2, 3, 4, 16, 16)
    assert found.encode is not None
    assert found.classify is not None
    assert found.predict is not None
    assert found.classify(clips).shape == (2, 3)
    index = torch.tensor([[0, 3], [2, 1]])
    assert found.predict(found.encode(clips), index, index[:, :1] + 4).shape == (2, 1, 36)
