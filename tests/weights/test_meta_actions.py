"""Files of V-JEPA 2-AC: read strictly, written, described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jepa_lightning.commands.inspect import report
from jepa_lightning.export.opening import open_source
from jepa_lightning.export.writing import export
from jepa_lightning.loading import load_encoder, load_meta
from jepa_lightning.methods import VJEPA2AC
from jepa_lightning.schedules import WarmupStableDecay
from jepa_lightning.weights import Hints
from jepa_lightning.weights import open as open_weights

PATH = Path(__file__).parent.parent / "golden" / "vjepa2_ac_tiny" / "checkpoint.pt"
SIZES: dict[str, Any] = {"num_heads": 3, "predictor_num_heads": 2, "img_size": 32, "num_frames": 16}
Change = Callable[[dict[str, Any]], Any]


def changed(tmp_path: Path, change: Change) -> Path:
    content = torch.load(PATH, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_sizes_and_schedules_are_read_and_options_given() -> None:
    module = load_meta(PATH, **SIZES, auto_steps=3, use_extrinsics=True)
    assert isinstance(module, VJEPA2AC)
    predictor = module.predictor
    assert (predictor.num_heads, predictor.depth, predictor.grid) == (2, 2, (4, 4))
    assert (module.auto_steps, predictor.use_extrinsics) == (3, True)
    assert isinstance(module.lr, WarmupStableDecay)
    assert (module.lr.start, module.lr.peak, module.lr.final, module.lr.warmup_epochs) == (7.5e-5, 4.25e-4, 0.0, 15)
    assert all(parameter.requires_grad for parameter in predictor.parameters())


def test_a_released_file_has_one_encoder(tmp_path: Path) -> None:
    path = changed(
        tmp_path, lambda content: [content.pop(name) for name in list(content) if name not in ("encoder", "predictor")]
    )
    module, content = load_meta(path, **SIZES), torch.load(PATH, weights_only=True)
    state = module.encoder.state_dict()
    assert all(torch.equal(content["encoder"][f"module.{name}"], tensor) for name, tensor in state.items())


def test_states_and_extrinsics_may_be_absent_from_a_file(tmp_path: Path) -> None:
    def without(content: dict[str, Any]) -> None:
        for name in [name for name in content["predictor"] if "state_enc" in name or "extrinsics" in name]:
            del content["predictor"][name]

    predictor = load_meta(changed(tmp_path, without), **SIZES).predictor
    assert predictor.state_encoder is None
    assert predictor.extrinsics_encoder is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["predictor"].pop("module.predictor_blocks.1.norm2.bias"), "missing predictor_blocks.1.norm2.bias"),
        (lambda c: c["predictor"].update({"module.more": torch.zeros(2)}), "unexpected more"),
        (lambda c: c["encoder"].pop("module.norm.bias"), "encoder does not fit: missing norm.bias"),
        (lambda c: c["target_encoder"].update({"module.norm.bias": torch.zeros(3)}), r"norm.bias is \[3\]"),
        (lambda c: c["predictor"].update({"module.state_encoder.weight": torch.zeros(64)}), "expected 2 dimensions"),
    ],
)
def test_every_tensor_is_used_or_it_is_an_error(tmp_path: Path, change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_meta(changed(tmp_path, change), **SIZES)


def test_heads_of_the_predictor_must_be_given_where_its_width_is_no_published_one() -> None:
    with pytest.raises(ValueError, match="give predictor_num_heads="):
        load_meta(PATH, num_heads=3)


def test_the_encoder_alone_is_read_too() -> None:
    encoder = load_encoder(PATH, num_heads=3, img_size=32)
    content = torch.load(PATH, weights_only=True)["target_encoder"]
    assert torch.equal(encoder.state_dict()["norm.bias"], content["module.norm.bias"])


def test_inspect_says_what_the_predictor_reads() -> None:
    text = report(open_weights(PATH), "checkpoint.pt")
    assert "V-JEPA 2-AC" in text
    assert "world model, 2 blocks, has layers for action (7 numbers), state (7 numbers)," in text
    assert "the optimizer is there" in text
    assert "load_meta" in text


def test_an_export_is_read_back_with_all_tensors(tmp_path: Path) -> None:
    hints = Hints(num_heads=3, predictor_num_heads=2, img_size=32, num_frames=16)
    parity = export(open_source(open_weights(PATH), both=True, hints=hints), "meta", tmp_path / "out")
    assert {comparison.what for comparison in parity.comparisons} == {"tokens", "predicted tokens"}
    written = torch.load(tmp_path / "out" / "checkpoint.pth.tar", weights_only=True)
    content = torch.load(PATH, weights_only=True)
    for network in ("encoder", "target_encoder", "predictor"):
        assert set(written[network]) == set(content[network])
        assert all(torch.equal(written[network][name], tensor) for name, tensor in content[network].items())
