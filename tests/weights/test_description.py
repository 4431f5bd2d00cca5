from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.models import (
    BlockOptions,
    Predictor,
    RoPE,
    SinCos2D,
    SinCos3D,
    TargetNoise,
    VisionTransformer,
)
from jepa_lightning.models.energy_transformer import EnergyBlocks
from jepa_lightning.weights.description import (
    describe_encoder,
    describe_predictor,
    encoder_builder,
    predictor_builder,
)
from jepa_lightning.weights.networks import outlined
from jepa_lightning.weights.policy import CheckpointError, NotTrusted

CLIP = {"num_frames": 4, "tubelet_size": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "images": {},
    "not square, one channel": {"img_size": (16, 24), "in_chans": 1, "positions": SinCos2D(column_first=False)},
    "clips": {**CLIP, "positions": SinCos3D(uniform_power=False)},
    "rotary": {**CLIP, "positions": RoPE(layout="tiled", theta=100.0)},
    "SwiGLU": {"mlp_ratio": 2.7, "blocks": BlockOptions(swiglu=True, drop_path=0.1)},
    "energies": {"mlp_ratio": 1.5, "blocks": EnergyBlocks(alpha=0.2, hopfield="softmax", attend_to_self=False)},
}


def encoder_of(**changes: Any) -> VisionTransformer:
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, **changes}
    return VisionTransformer(**settings).eval()


def travelled(description: dict[str, Any]) -> dict[str, Any]:
    """As it comes back out of a file."""
    return json.loads(json.dumps(description))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_built_again_from_its_description(name: str) -> None:
    encoder = encoder_of(**ENCODERS[name])
    twin = encoder_builder(Path("x"), travelled(describe_encoder(encoder)), encoder.state_dict())().eval()
    twin.load_state_dict(encoder.state_dict())
    frames = (4,) if encoder.num_frames > 1 else ()
    inputs = torch.randn(2, ENCODERS[name].get("in_chans", 3), *frames, *encoder.img_size)
    assert torch.equal(twin(inputs), encoder(inputs))
    assert (twin.img_size, twin.num_heads, twin.positions, twin.options) == (
        encoder.img_size, encoder.num_heads, encoder.positions, encoder.options,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_mask_tokens": 3},
        {"num_heads": 2, "mlp_ratio": 2.3},
        {"target_noise": TargetNoise(steps=3)},
        {"blocks": EnergyBlocks()},
    ],
)
def test_a_predictor_is_built_again_for_its_encoder(changes: dict[str, Any]) -> None:
    encoder = encoder_of()
    predictor = Predictor(encoder, 12, 2, **changes)
    build = predictor_builder(
        Path("x"), travelled(describe_predictor(predictor)), encoder, predictor.state_dict(), type(predictor)
    )
    twin = build()
    twin.load_state_dict(predictor.state_dict())
    assert (twin.num_heads, twin.depth, twin.target_noise, twin.options) == (
        predictor.num_heads, predictor.depth, predictor.target_noise, predictor.options,
    )  # fmt: skip


def test_a_file_does_not_decide_what_is_imported() -> None:
    with pytest.raises(NotTrusted, match=r"^x: network is of the class antigravity.Encoder, .* nothing was imported"):
        encoder_builder(Path("x"), {"class_path": "antigravity.Encoder"}, {})
    nested = describe_encoder(encoder_of())
    nested["init_args"]["positions"] = {"class_path": "antigravity.Positions"}
    with pytest.raises(NotTrusted, match=r"network.positions is of the class antigravity.Positions"):
        encoder_builder(Path("x"), nested, {})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["init_args"].update(widht=3),
        lambda d: d["init_args"].update(embed_dim="wide"),
        lambda d: d["init_args"].update(patch_size=7),
        lambda d: d.update(class_path="jepa_lightning.models.Predictor"),
        lambda d: d.update(class_path="jepa_lightning.commands.configs.find_config"),
    ],
)
def test_a_description_that_makes_no_sense_is_an_error_that_names_the_file(
    spoil: Callable[[dict[str, Any]], None],
) -> None:
    encoder = encoder_of()
    description = describe_encoder(encoder)
    spoil(description)
    with pytest.raises(CheckpointError, match=r"some.file"):
        outlined(Path("some.file"), encoder_builder(Path("some.file"), description, encoder.state_dict()))
