from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dash import Dash

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.commands.explore import data_for, sampler, subject_of
from jepa_lightning.data import ImageDataModule, VideoDataModule
from jepa_lightning.models import VisionTransformer

SMALL = [
    "--config=ijepa.yaml", "--trainer.max_steps=1", "--data.num_workers=0", "--probe.every_n_epochs=0",
    "--pictures.every_n_epochs=0", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *SMALL])
    (found,) = folder.rglob("last.ckpt")
    return found


def test_the_command_serves_a_page_about_a_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr(Dash, "run", lambda app, **options: served.update(app=app, **options))
    main(["explore", "--ckpt_path", str(trained), "--samples", "5", "--port", "8123"])
    assert (served["host"], served["port"], served["debug"]) == ("127.0.0.1", 8123, False)
    layout = (
        served["app"].server.test_client().get("/_dash-layout", headers={"Host": "localhost"}).get_data(as_text=True)
    )
    assert "VisionTransformer, 4 layers, 5 samples" in layout


def test_both_encoders_and_the_predictor_of_a_training_are_opened(trained: Path) -> None:
    opened = weights.open(trained)
    subject, config = subject_of(opened), opened.config
    state = torch.load(trained, weights_only=True)["state_dict"]
    for network, part in ((subject.encoder, "target_encoder"), (subject.context_encoder, "encoder")):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[f"{part}.{name}"])
    assert subject.predictor is not None
    data = data_for(subject.encoder, config, None, None)
    masks = sampler(data)
    assert masks is not None
    assert masks.sample(1)[0].targets.max() < 64


def test_what_was_seen_is_what_the_training_predicts(trained: Path) -> None:
    """ijepa.yaml makes its targets of all blocks."""
    subject = subject_of(weights.open(trained))
    assert subject.target_layers == 4
    module = jl.load(trained)
    assert isinstance(module, jl.IJEPA)
    pixels = torch.randint(256, (3, 1, 48, 48), dtype=torch.uint8)
    expected = F.layer_norm(module.targets_of(subject.inputs(pixels)), (module.embed_dim,))[0]
    torch.testing.assert_close(subject.targets(pixels), expected)
    torch.testing.assert_close(subject.expect(pixels, torch.arange(36) < 9).seen, expected[:9])
    assert not torch.allclose(F.layer_norm(subject.tokens(pixels), (module.embed_dim,)), expected, atol=0.1)


def test_a_file_of_meta_is_shown_with_the_embedded_data(golden_checkpoint: Path) -> None:
    opened = weights.open(golden_checkpoint)
    subject = subject_of(opened, weights.Hints(num_heads=4))
    assert not opened.config
    assert subject.context_encoder is not subject.encoder
    assert type(data_for(subject.encoder, {}, None, None)) is ImageDataModule


def test_folders_and_configurations_replace_the_data_of_the_training(
    tiny_encoder: Callable[..., VisionTransformer], image_folder: Path
) -> None:
    data = data_for(tiny_encoder(), {"data": {"class_path": "VideoDataModule"}}, None, str(image_folder))
    assert type(data) is ImageDataModule
    assert data.size() == (32, 32)
    assert len(data.probe_dataloader("val", 3).dataset) == 3
    assert type(data_for(tiny_encoder(num_frames=4, tubelet_size=2), {}, "vjepa.yaml", None)) is VideoDataModule


def test_a_missing_checkpoint_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"jepa: FileNotFoundError: .*nowhere\.ckpt"):
        main(["explore", "--ckpt_path", "nowhere.ckpt"])
