from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jepa_lightning.cli import main

TINY = [
    "--config=ijepa.yaml", "--model.encoder.embed_dim=32", "--model.encoder.depth=1", "--model.encoder.num_heads=2",
    "--model.predictor.embed_dim=16", "--model.predictor.depth=1", "--data.masks.min_keep=1", "--data.batch_size=4",
    "--data.num_workers=0", "--model.lr.warmup_epochs=0", "--probe.every_n_epochs=1", "--pictures.every_n_epochs=0",
]  # fmt: skip


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    main(["fit", *TINY, f"--data.root={image_folder}", "--model.encoder.img_size=32", "--trainer.max_epochs=1"])
    return Path("runs/ijepa/version_0/checkpoints/last.ckpt")


def test_a_new_training_starts_from_networks_and_moments_of_another_one(
    pretrained: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*TINY, f"--data.root={image_folder}", "--model.encoder.img_size=48", "--trainer.max_epochs=1"]
    # With learning rate 0 and momentum 1 nothing moves: what is saved is what was taken over.
    frozen = ["--model.lr=Constant", "--model.lr.value=0", "--model.momentum=Constant", "--model.momentum.value=1"]
    main(["fit", *settings, *frozen, "--init_from=last.ckpt"])
    shown = capsys.readouterr().out
    before, after = (torch.load(f"runs/ijepa/version_{n}/checkpoints/last.ckpt", weights_only=True) for n in (0, 1))
    assert after["global_step"] == 8  # a new training, not steps 9 to 16
    tables = {name for name in before["state_dict"] if name.endswith("pos_embed")}
    assert len(tables) == 3
    for name, tensor in before["state_dict"].items():
        assert torch.equal(tensor, after["state_dict"][name]) == (name not in tables), name
    steps = {int(state["step"]) for state in after["optimizer_states"][0]["state"].values()}
    assert steps == {16}  # the moments have seen both trainings
    assert "last.ckpt  trained" in shown
    assert "random initialisation" not in shown


def test_another_architecture_is_refused_by_name(pretrained: Path, image_folder: Path) -> None:
    settings = [*TINY, f"--data.root={image_folder}", "--model.encoder.img_size=32", "--model.encoder.depth=2"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *settings, f"--init_from={pretrained}"])
    assert "blocks.1" in str(stop.value.code)
    assert "last.ckpt" in str(stop.value.code)
