from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning.callbacks.config import CONFIG_KEY
from jepa_lightning.checkpoint import build
from jepa_lightning.interop.huggingface_writer import write_huggingface
from jepa_lightning.interop.inspection import main
from jepa_lightning.interop.safetensors_file import write_safetensors
from jepa_lightning.interop.timm import write_timm
from jepa_lightning.models import Predictor, RoPE, VisionTransformer
from jepa_lightning.models.energy_transformer import EnergyBlocks
from jepa_lightning.models.pooling import AttentiveClassifier

Shown = Callable[[Path], str]
SCHEDULE = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """What `jepa inspect` prints, spaces made equal."""

    def show(path: Path) -> str:
        main([str(path)])
        return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())

    return show


def meta_file(path: Path, **more: Any) -> Path:
    """Of ViT-Tiny's width."""
    encoder = VisionTransformer(32, 16, embed_dim=192, depth=2, num_heads=3)
    networks = {"encoder": encoder, "target_encoder": encoder, "predictor": Predictor(encoder, 24, 1)}
    content = {name: {f"module.{k}": v for k, v in net.state_dict().items()} for name, net in networks.items()}
    torch.save({**content, **more}, path)
    return path


def test_of_a_file_of_metas_everything_a_person_asks(shown: Shown, tmp_path: Path) -> None:
    state = {number: {"step": torch.tensor(1200.0), "exp_avg": torch.zeros(1)} for number in range(3)}
    path = meta_file(tmp_path / "a.pth.tar", epoch=12, opt={"state": state, "param_groups": []})
    lines = shown(path).splitlines()
    assert lines[0] == str(path)
    assert lines[1].startswith("layout checkpoint in Meta's layout, 4.")
    assert lines[2:6] == [
        "family I-JEPA",
        "encoder ViT, 192 channels, 2 blocks, 3 heads, patches of 16, positions SinCos2D",
        "inputs 32x32 pixels: 2 x 2 tokens",
        "networks encoder 1.0 M, predictor 16,824, target_encoder 1.0 M parameters (float32)",
    ]
    assert lines[6] == "trained 12 epochs, 1,200 steps; the optimizer is there"
    assert lines[7] == "licence if these are Meta's weights, also converted ones: CC BY-NC 4.0, no commercial use"
    assert f"jepa validate --config ijepa.yaml --ckpt_path {path} --data.root FOLDER" in lines
    assert f'encoder = jepa_lightning.load_encoder("{path}")' in lines


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "ijepa_tiny",
            ["family I-JEPA", "inputs 48x48 pixels: 6 x 6 tokens", "64 channels, 3 blocks, number of heads not"],
        ),
        (
            "vjepa1_tiny",
            ["family V-JEPA", "inputs 8 frames of 32x32 pixels, tubelets of 2: 4 x 4 x 4 tokens", "SinCos3D"],
        ),
        ("vjepa2_tiny", ["family V-JEPA 2", "positions RoPE", "licence if these are Meta's weights: MIT"]),
    ],
)
def test_families_are_told_apart_and_what_is_not_in_the_file_is_said(
    name: str, expected: list[str], shown: Shown
) -> None:
    text = shown(Path(__file__).parent.parent / "golden" / name / "checkpoint.pt")
    assert all(part in text for part in expected)
    assert "trained 0 epochs; no optimizer to go on with" in text
    assert "--model.overrides.num_heads N" in text
    assert ", num_heads=N)" in text


def test_of_ours_the_training_is_told(shown: Shown, tmp_path: Path) -> None:
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    encoder = {"class_path": "jepa_lightning.VisionTransformer", "init_args": sizes}
    predictor = {"class_path": "jepa_lightning.Predictor", "init_args": {"embed_dim": 8, "depth": 1}}
    schedules = dict.fromkeys(("lr", "weight_decay", "momentum"), SCHEDULE)
    model = {
        "class_path": "jepa_lightning.IJEPA",
        "init_args": {"encoder": encoder, "predictor": predictor, **schedules},
    }
    data = {"class_path": "jepa_lightning.data.ImageDataModule", "init_args": {"root": "cats", "batch_size": 7}}
    text = yaml.safe_dump({"model": model, "data": data, "trainer": {"max_epochs": 9}})
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    content = {"state_dict": build(model).state_dict(), CONFIG_KEY: text, "epoch": 4, "global_step": 1234}
    torch.save(content, run / "last.ckpt")
    shown_text = shown(run / "last.ckpt")
    assert "layout checkpoint of jepa_lightning" in shown_text
    assert "family IJEPA" in shown_text
    assert "trained step 1,234, in epoch 5 of 9" in shown_text
    assert "data ImageDataModule, cats, batches of 7" in shown_text
    assert "licence as whoever trained it decides" in shown_text
    assert f"jepa validate --ckpt_path {run / 'last.ckpt'} --data.root FOLDER" in shown_text


@pytest.mark.parametrize(("write", "title"), [(write_huggingface, "Hugging Face's"), (write_timm, "timm's")])
def test_folders_of_other_libraries_are_known(
    write: Any, title: str, image_source: Any, shown: Shown, tmp_path: Path
) -> None:
    write(image_source(embed_dim=192, num_heads=3).networks, tmp_path)
    text = shown(tmp_path)
    assert f"in {title} layout" in text
    assert "ViT, 192 channels, 2 blocks, 3 heads" in text
    assert "networks encoder" in text
    assert "target_encoder" not in text


def test_probes_are_described_and_where_they_go(shown: Shown, tmp_path: Path) -> None:
    state = AttentiveClassifier(48, 5, 4, 4).state_dict()
    torch.save({"classifiers": [state, state]}, tmp_path / "probe.pt")
    text = shown(tmp_path / "probe.pt")
    assert "layout attentive probe in Meta's layout" in text
    assert "family V-JEPA 2" in text
    assert "probe 5 classes, tokens of 48 channels, 4 layers" in text
    assert "head 0 " in text
    assert "jepa validate --config attentive_probe.yaml --model.checkpoint ENCODER" in text


def test_what_is_not_supported_yet_is_said_and_no_command_is_offered(shown: Shown, tmp_path: Path) -> None:
    state = {
        "patch_embed_img.proj.weight": torch.zeros(8, 3, 1, 4, 4),
        "patch_embed.proj.weight": torch.zeros(8, 3, 2, 4, 4),
    }
    torch.save({"encoder": state, "target_encoder": state}, tmp_path / "a.pt")
    text = shown(tmp_path / "a.pt")
    assert "family V-JEPA 2.1" in text
    assert "not supported yet, nothing here loads it" in text
    assert "jepa " not in text


def test_of_v2_with_actions_the_world_model_is_offered_beside_the_encoder(shown: Shown, tmp_path: Path) -> None:
    encoder = VisionTransformer(
        32, 16, embed_dim=192, depth=1, num_heads=3, num_frames=4, tubelet_size=2, positions=RoPE("tiled")
    )
    predictor = {"module.action_encoder.weight": torch.zeros(24, 7)}
    torch.save({"encoder": encoder.state_dict(), "predictor": predictor}, tmp_path / "a.pt")
    text = shown(tmp_path / "a.pt")
    assert "family V-JEPA 2-AC" in text
    assert "world model, 0 blocks, has layers for action (7 numbers)" in text
    assert "1 block, 3 heads, patches of 16, positions RoPE (tiled)" in text
    assert "jepa_lightning.load_encoder" in text
    assert "jepa_lightning.load_meta" in text


def test_only_formats_that_have_a_place_are_offered(
    image_source: Any, clip_source: Any, shown: Shown, tmp_path: Path
) -> None:
    write_safetensors(image_source().networks, tmp_path)
    assert "--to huggingface # or timm, onnx, torch_export, safetensors" in shown(tmp_path)
    write_safetensors(clip_source(positions=RoPE()).networks, tmp_path)
    text = shown(tmp_path)
    assert "--to onnx # or torch_export, safetensors" in text
    assert "--config attentive_probe.yaml" in text
    write_safetensors(image_source(blocks=EnergyBlocks()).networks, tmp_path)
    assert "2 blocks (EnergyTransformer), 3 heads" in shown(tmp_path)


def test_heads_that_a_configuration_says_are_told(image_source: Any, shown: Shown, tmp_path: Path) -> None:
    write_timm(image_source(num_heads=2).networks, tmp_path)
    assert "24 channels, 2 blocks, 2 heads" in shown(tmp_path)
    (tmp_path / "config.json").unlink()
    text = shown(tmp_path / "model.safetensors")
    assert "24 channels, 2 blocks, number of heads not in the file" in text
    assert "--num_heads N --out FOLDER --to huggingface" in text


def test_an_encoder_of_an_unknown_package_is_named_and_not_imported(shown: Shown, tmp_path: Path) -> None:
    model = {"class_path": "jepa_lightning.IJEPA", "init_args": {"encoder": {"class_path": "evil_package.Encoder"}}}
    content = {"state_dict": {"encoder.a": torch.zeros(3)}, CONFIG_KEY: yaml.safe_dump({"model": model})}
    torch.save(content, tmp_path / "a.ckpt")
    text = shown(tmp_path / "a.ckpt")
    assert "names the class evil_package.Encoder, whose package is not imported" in " ".join(text.split())
    assert "networks encoder 3 parameters" in text


def test_no_weight_is_looked_at(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    path = meta_file(tmp_path / "a.pt")

    def looked(tensor: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("jepa_lightning.interop.networks.own", looked)
    monkeypatch.setattr("jepa_lightning.interop.meta.own", looked)
    assert "family I-JEPA" in shown(path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = meta_file(tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"a.pt is not a PyTorch checkpoint that can be read safely: it is truncated"):
        main([str(path)])


def test_a_file_without_the_tensor_that_shows_the_sizes_is_an_error(tmp_path: Path) -> None:
    torch.save({"encoder": {}, "target_encoder": {}, "predictor": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt: encoder has no tensor patch_embed.proj.weight; is it a JEPA"):
        main([str(tmp_path / "a.pt")])
