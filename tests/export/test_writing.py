from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepa_lightning import weights
from jepa_lightning.export import writing as module
from jepa_lightning.export.graphs import TorchExport
from jepa_lightning.export.opening import open_source
from jepa_lightning.export.source import Functions
from jepa_lightning.export.writing import export
from jepa_lightning.masking import gather_tokens
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.weights import Hints

Golden = Callable[[str], dict[str, Any]]
FOLDER = Path(__file__).parent.parent / "golden"
pytestmark = pytest.mark.usefixtures("without_type_checks")


def close(found: Tensor, expected: Tensor, most: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=most)


def test_the_golden_probe_of_v2_gives_its_logits_in_a_graph_and_has_too_many_heads_for_transformers(
    golden: Golden, tmp_path: Path
) -> None:
    numbers, about = golden("vjepa2_tiny/golden.safetensors"), golden("vjepa2_tiny/golden.json")["model"]["probe"]
    hints = Hints(num_heads=3, predictor_num_heads=3, img_size=32, num_frames=8)
    source = open_source(weights.open(FOLDER / "vjepa2_tiny" / "checkpoint.pt"), hints=hints)
    probe = AttentiveClassifier(about["embed_dim"], about["num_classes"], about["num_heads"], about["depth"])
    prefix = "probe.state."
    probe.load_state_dict({k.removeprefix(prefix): x for k, x in numbers.items() if k.startswith(prefix)})
    source = source._replace(networks=source.networks._replace(classifier=probe.requires_grad_(False).eval()))
    with pytest.raises(ValueError, match="as many heads as the encoder, 3, and this one has 4: train it with"):
        export(source, "huggingface", tmp_path / "out")
    parity = export(source, "torch_export", tmp_path / "out", with_predictor=False, fixed_size=True)
    assert {each.what for each in parity.comparisons} == {"logits"}
    source = source._replace(networks=source.networks._replace(predictor=None))
    classify = TorchExport().reload(tmp_path / "out", source).classify
    assert classify is not None
    close(classify(numbers["images"]), numbers["probe.logits"], 1e-5)


def test_a_probe_with_the_heads_of_its_encoder_goes_to_transformers(clip_source: Any, tmp_path: Path) -> None:
    parity = export(clip_source(classes=3), "huggingface", tmp_path / "out")
    assert {each.what for each in parity.comparisons} == {"tokens", "logits"}
    assert "VJEPA2ForVideoClassification" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------- what goes wrong


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that computes a little else."""

    def reload(folder: Path, source: Any) -> Functions:
        return Functions(encode=lambda inputs: source.networks.encoder(inputs) + 2e-4)

    monkeypatch.setattr(module.FORMATS["timm"], "reload", reload, raising=True)


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


def test_tokens_of_a_reloaded_predictor_are_those_of_the_context(clip_source: Any) -> None:
    source = clip_source(predictor=True)
    predict = module.functions_of(source.networks).predict
    assert predict is not None
    tokens, context, targets = torch.randn(2, 8, 36), torch.tensor([[0, 3]] * 2), torch.tensor([[5]] * 2)
    expected = source.networks.predictor(gather_tokens(tokens, context), context, targets.unsqueeze(1))
    assert torch.equal(predict(tokens, context, targets), expected[:, 0])
