from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jepa_lightning as jl
from jepa_lightning.interop import export as module
from jepa_lightning.interop.export import export, main
from jepa_lightning.export.huggingface import reload_huggingface
from jepa_lightning.loading import load_meta
from jepa_lightning.export.opening import open_source
from jepa_lightning.interop.safetensors_file import read_networks
from jepa_lightning.export.source import Functions
from jepa_lightning.interop.timm import reload_timm
from jepa_lightning.export.graphs import reload_onnx, reload_torch_export
from jepa_lightning.masking import gather_tokens
from jepa_lightning.models.pooling import AttentiveClassifier

Golden = Callable[[str], dict[str, Any]]
FOLDER = Path(__file__).parent.parent / "golden"
SIZES = {
    "ijepa_tiny": {"num_heads": 4, "img_size": 48},
    "vjepa1_tiny": {"num_heads": 4, "img_size": 32, "num_frames": 8},
    "vjepa2_tiny": {"num_heads": 3, "predictor_num_heads": 3, "img_size": 32, "num_frames": 8},
}
HOMES = {
    "ijepa_tiny": ("huggingface", "timm", "onnx", "torch_export", "safetensors", "meta"),
    "vjepa1_tiny": ("onnx", "torch_export", "safetensors", "meta"),
    "vjepa2_tiny": ("huggingface", "onnx", "torch_export", "safetensors", "meta"),
}
RELOAD = {
    "huggingface": reload_huggingface,
    "timm": reload_timm,
    "onnx": reload_onnx,
    "torch_export": reload_torch_export,
}
GRAPHS = ("onnx", "torch_export")
pytestmark = pytest.mark.usefixtures("without_type_checks")


def arguments(name: str, to: str, out: Path, *more: str) -> list[str]:
    sizes = [word for option, size in SIZES[name].items() for word in (f"--{option}", str(size))]
    return [*map(str, ("--ckpt_path", FOLDER / name / "checkpoint.pt", "--to", to, "--out", out, *sizes, *more))]


def close(found: Tensor, expected: Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, known in HOMES.items() for to in known])
def test_golden_checkpoints_go_to_every_format_that_has_a_home_and_come_back(
    name: str, to: str, golden: Golden, tmp_path: Path
) -> None:
    numbers, out = golden(f"{name}/golden.safetensors"), tmp_path / "out"
    given = {option: size for option, size in SIZES[name].items() if option != "img_size"}
    main(arguments(name, to, out, *["--fixed_size"] * (to in GRAPHS)))
    if to in RELOAD:  # what the official code computed, in the foreign library
        source = open_source(FOLDER / name / "checkpoint.pt", **given)
        encode = RELOAD[to](out, source._replace(networks=source.networks._replace(predictor=None))).encode
        assert encode is not None
        close(encode(numbers["images"]), numbers["target_full"], 1e-4)
    if to not in GRAPHS:  # state and outputs, back here
        path = out / "checkpoint.pth.tar" if to == "meta" else out
        encoder = jl.load_encoder(path, **(given if to == "meta" else {}))
        close(encoder(numbers["images"]), numbers["target_full"], 1e-5)
        before = load_meta(FOLDER / name / "checkpoint.pt", **SIZES[name]).target_encoder.state_dict()
        for key, tensor in encoder.state_dict().items():
            close(tensor, before[key], 1e-6)
    assert json.loads((out / "parity.json").read_text())["passed"] is True
    assert {"README.md", "preprocessing.json", "parity.json"} < {path.name for path in out.iterdir()}


@pytest.mark.parametrize(("name", "to"), [("vjepa2_tiny", "huggingface"), ("vjepa1_tiny", "safetensors")])
def test_predictors_travel_too(name: str, to: str, golden: Golden, tmp_path: Path) -> None:
    numbers, out = golden(f"{name}/golden.safetensors"), tmp_path / "out"
    main(arguments(name, to, out, "--with_predictor"))
    back = open_source(out).networks if to == "huggingface" else read_networks(out)
    assert back.predictor is not None
    context, targets = numbers["masks_context.0"], numbers["masks_target.0"].unsqueeze(1)
    close(back.predictor(numbers["context.0"], context, targets, 0)[:, 0], numbers["prediction.0"], 1e-5)


def test_the_golden_probe_of_v2_gives_its_logits_in_a_graph_and_has_too_many_heads_for_transformers(
    golden: Golden, tmp_path: Path
) -> None:
    numbers, about = golden("vjepa2_tiny/golden.safetensors"), golden("vjepa2_tiny/golden.json")["model"]["probe"]
    sizes: dict[str, Any] = SIZES["vjepa2_tiny"]
    source = open_source(FOLDER / "vjepa2_tiny" / "checkpoint.pt", **sizes)
    probe = AttentiveClassifier(about["embed_dim"], about["num_classes"], about["num_heads"], about["depth"])
    prefix = "probe.state."
    probe.load_state_dict({k.removeprefix(prefix): x for k, x in numbers.items() if k.startswith(prefix)})
    source = source._replace(networks=source.networks._replace(classifier=probe.requires_grad_(False).eval()))
    with pytest.raises(ValueError, match="as many heads as the encoder, 3, and this one has 4: train it with"):
        export(source, "huggingface", tmp_path / "out")
    parity = export(source, "torch_export", tmp_path / "out", with_predictor=False, fixed_size=True)
    assert {each.what for each in parity.comparisons} == {"logits"}
    source = source._replace(networks=source.networks._replace(predictor=None))
    classify = reload_torch_export(tmp_path / "out", source).classify
    assert classify is not None
    close(classify(numbers["images"]), numbers["probe.logits"], 1e-5)


def test_a_probe_with_the_heads_of_its_encoder_goes_to_transformers(clip_source: Any, tmp_path: Path) -> None:
    parity = export(clip_source(classes=3), "huggingface", tmp_path / "out")
    assert {each.what for each in parity.comparisons} == {"tokens", "logits"}
    assert "VJEPA2ForVideoClassification" in (tmp_path / "out" / "README.md").read_text()


def test_the_branch_that_is_asked_for_goes_out(golden: Golden, tmp_path: Path) -> None:
    numbers = golden("ijepa_tiny/golden.safetensors")
    main(arguments("ijepa_tiny", "timm", tmp_path / "out", "--branch", "context"))
    close(jl.load_encoder(tmp_path / "out")(numbers["images"]), numbers["encoder_full"], 1e-5)
    assert (numbers["encoder_full"] - numbers["target_full"]).abs().max() > 1e-3
    assert "the context encoder" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------- what goes wrong


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes a little else."""

    def reload(folder: Path, source: Any) -> Functions:
        return Functions(encode=lambda inputs: source.networks.encoder(inputs) + 2e-4)

    known = module.formats()
    monkeypatch.setattr(module, "formats", lambda *_: {**known, "timm": known["timm"]._replace(reload=reload)})


@pytest.mark.usefixtures("wrong")
def test_what_another_library_computes_otherwise_is_not_left_behind(image_source: Any, tmp_path: Path) -> None:
    message = r"timm computes something else than jepa_lightning .*out was not written"
    with pytest.raises(ValueError, match=message):
        export(image_source(), "timm", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("wrong")
def test_an_earlier_export_survives_one_that_fails(image_source: Any, tmp_path: Path) -> None:
    export(image_source(), "safetensors", tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="was not written"):
        export(image_source(), "timm", tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_replaced_only_if_asked_and_only_if_it_is_an_export(image_source: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(image_source(), "safetensors", out)
    with pytest.raises(FileExistsError, match="is there already: give another --out, or --overwrite"):
        export(image_source(), "timm", out)
    export(image_source(), "timm", out, overwrite=True)
    assert "timm" in (out / "README.md").read_text()
    (out / "parity.json").unlink()
    with pytest.raises(FileExistsError, match=r"has no parity.json, so it is no earlier export"):
        export(image_source(), "timm", out, overwrite=True)
    assert (out / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_others_may_read_the_folder_as_any_other(image_source: Any, tmp_path: Path) -> None:
    export(image_source(), "safetensors", tmp_path / "new" / "out")
    (tmp_path / "other").mkdir()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new/out", "other")]
    assert modes[0] == modes[1]


def test_nothing_is_written_where_there_is_no_home(tmp_path: Path) -> None:
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


def test_tokens_of_a_reloaded_predictor_are_those_of_the_context(clip_source: Any) -> None:
    source = clip_source(predictor=True)
    predict = module.functions(source).predict
    assert predict is not None
    tokens, context, targets = torch.randn(2, 8, 36), torch.tensor([[0, 3]] * 2), torch.tensor([[5]] * 2)
    expected = source.networks.predictor(gather_tokens(tokens, context), context, targets.unsqueeze(1))
    assert torch.equal(predict(tokens, context, targets), expected[:, 0])
