"""`jepa export` on the golden checkpoints: to every format that has a place for them, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.commands.export import main
from jepa_lightning.export.formats import FORMATS
from jepa_lightning.export.opening import open_source
from jepa_lightning.weights import Hints

Golden = Callable[[str], dict[str, Any]]
FOLDER = Path(__file__).parent.parent / "golden"
SIZES = {
    "ijepa_tiny": {"num_heads": 4, "img_size": 48},
    "vjepa1_tiny": {"num_heads": 4, "img_size": 32, "num_frames": 8},
    "vjepa2_tiny": {"num_heads": 3, "predictor_num_heads": 3, "img_size": 32, "num_frames": 8},
}
TAKERS = {
    "ijepa_tiny": ("huggingface", "timm", "onnx", "torch_export", "safetensors", "meta"),
    "vjepa1_tiny": ("onnx", "torch_export", "safetensors", "meta"),
    "vjepa2_tiny": ("huggingface", "onnx", "torch_export", "safetensors", "meta"),
}
FOREIGN = ("huggingface", "timm", "onnx", "torch_export")
GRAPHS = ("onnx", "torch_export")
pytestmark = pytest.mark.usefixtures("without_type_checks")


def arguments(name: str, to: str, out: Path, *more: str) -> list[str]:
    sizes = [word for option, size in SIZES[name].items() for word in (f"--{option}", str(size))]
    return [*map(str, ("--ckpt_path", FOLDER / name / "checkpoint.pt", "--to", to, "--out", out, *sizes, *more))]


def close(found: Tensor, expected: Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, known in TAKERS.items() for to in known])
def test_golden_checkpoints_go_to_every_format_that_has_a_place_and_come_back(
    name: str, to: str, golden: Golden, tmp_path: Path
) -> None:
    numbers, out = golden(f"{name}/golden.safetensors"), tmp_path / "out"
    given = {option: size for option, size in SIZES[name].items() if option != "img_size"}
    main(arguments(name, to, out, *["--fixed_size"] * (to in GRAPHS)))
    if to in FOREIGN:  # what the official code computed, in the foreign library
        source = open_source(weights.open(FOLDER / name / "checkpoint.pt"), hints=Hints(**given))
        encode = FORMATS[to].reload(out, source._replace(networks=source.networks._replace(predictor=None))).encode
        assert encode is not None
        close(encode(numbers["images"]), numbers["target_full"], 1e-4)
    if to not in GRAPHS:  # state and outputs, back here
        path = out / "checkpoint.pth.tar" if to == "meta" else out
        encoder = jl.load_encoder(path, **(given if to == "meta" else {}))
        close(encoder(numbers["images"]), numbers["target_full"], 1e-5)
        before = jl.load_meta(FOLDER / name / "checkpoint.pt", **SIZES[name]).target_encoder.state_dict()
        for key, tensor in encoder.state_dict().items():
            close(tensor, before[key], 1e-6)
    assert json.loads((out / "parity.json").read_text())["passed"] is True
    assert {"README.md", "preprocessing.json", "parity.json"} < {path.name for path in out.iterdir()}


@pytest.mark.parametrize(("name", "to"), [("vjepa2_tiny", "huggingface"), ("vjepa1_tiny", "safetensors")])
def test_predictors_travel_too(name: str, to: str, golden: Golden, tmp_path: Path) -> None:
    numbers, out = golden(f"{name}/golden.safetensors"), tmp_path / "out"
    main(arguments(name, to, out, "--with_predictor"))
    back = weights.open(out).networks(predictor=True)
    assert back.predictor is not None
    context, targets = numbers["masks_context.0"], numbers["masks_target.0"].unsqueeze(1)
    close(back.predictor(numbers["context.0"], context, targets, 0)[:, 0], numbers["prediction.0"], 1e-5)


def test_the_branch_that_is_asked_for_goes_out(golden: Golden, tmp_path: Path) -> None:
    numbers = golden("ijepa_tiny/golden.safetensors")
    main(arguments("ijepa_tiny", "timm", tmp_path / "out", "--branch", "context"))
    close(jl.load_encoder(tmp_path / "out")(numbers["images"]), numbers["encoder_full"], 1e-5)
    assert (numbers["encoder_full"] - numbers["target_full"]).abs().max() > 1e-3
    assert "the context encoder" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------- what goes wrong


def test_nothing_is_written_where_there_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"V-JEPA\) cannot be exported to timm: .* Use --to onnx or torch_export"):
        main(arguments("vjepa1_tiny", "timm", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_heads_that_are_missing_are_asked_for_with_the_option(tmp_path: Path) -> None:
    path = str(FOLDER / "ijepa_tiny" / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"give num_heads=.* \(export, explore: --num_heads N;"):
        main(["--ckpt_path", path, "--to", "timm", "--out", str(tmp_path / "out")])


def test_a_fixed_size_is_for_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments("ijepa_tiny", "timm", tmp_path / "out", "--fixed_size"))
    assert "--fixed_size is for --to onnx and torch_export" in capsys.readouterr().err


def test_help_says_what_every_option_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--ckpt_path", "--to", "--out", "--branch", "--with_predictor", "--fixed_size", "--task"):
        assert option in text
    assert "if they differ by more than 0.0001, nothing is left behind" in text
