from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.export.meta import FILE, Meta, hints_for
from jepa_lightning.export.source import Source
from jepa_lightning.loading import load_meta
from jepa_lightning.models import SinCos3D
from jepa_lightning.weights import Progress


@pytest.fixture(params=["I-JEPA", "V-JEPA", "V-JEPA 2"])
def source(request: pytest.FixtureRequest, image_source: Any, clip_source: Any) -> Source:
    if request.param == "I-JEPA":
        return image_source(predictor=True)
    return clip_source(predictor=True, **({"positions": SinCos3D()} if request.param == "V-JEPA" else {}))


def same(found: torch.nn.Module, expected: Any) -> bool:
    state = found.state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("branch", ["target", "context"])
def test_load_meta_reads_it_back_each_encoder_under_its_name(
    source: Source, random_weights: Any, tmp_path: Path, branch: Any
) -> None:
    other = random_weights(copy.deepcopy(source.networks.encoder))
    source = source._replace(networks=source.networks._replace(branch=branch), other=other)
    Meta().write(source, tmp_path)
    module = load_meta(tmp_path / FILE, **hints_for(source).given)
    ours, others = ("target_encoder", "encoder") if branch == "target" else ("encoder", "target_encoder")
    assert same(module.get_submodule(ours), source.networks.encoder)
    assert same(module.get_submodule(others), source.other)
    assert same(module.predictor, source.networks.predictor)


def test_one_encoder_stands_for_both(source: Source, tmp_path: Path) -> None:
    Meta().write(source._replace(progress=Progress(epoch=5)), tmp_path)
    content = torch.load(tmp_path / FILE, weights_only=True)
    assert content["epoch"] == 5
    assert content["opt"] is None
    assert set(content["encoder"]) == set(content["target_encoder"])
    assert all(torch.equal(content["encoder"][name], x) for name, x in content["target_encoder"].items())


def test_names_have_the_prefix_that_metas_code_expects(source: Source, tmp_path: Path) -> None:
    Meta().write(source, tmp_path)
    content = torch.load(tmp_path / FILE, weights_only=True)
    prefix = "module.backbone." if source.networks.encoder.num_frames > 1 else "module."
    for network, module in (("encoder", source.networks.encoder), ("predictor", source.networks.predictor)):
        assert module is not None
        assert set(content[network]) == {f"{prefix}{name}" for name in module.state_dict()}
