from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.commands.plan import main, world_of
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.loading import build
from jepa_lightning.weights import open as open_weights
from jepa_lightning.weights.ours import CONFIG_KEY

FEW = ["--episodes=3", "--max_steps=4", "--horizon=2", "--samples=6", "--iterations=1", "--elites=2"]


def saved(path: Path, **predictor: Any) -> str:
    schedule = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.1}}
    encoder = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    narrow = {"embed_dim": 16, "depth": 1, "num_heads": 2, "action_dim": 2, "state_dim": None, **predictor}
    config = {
        "class_path": "jepa_lightning.VJEPA2AC",
        "init_args": {
            "encoder": {"class_path": "jepa_lightning.VisionTransformer", "init_args": encoder},
            "predictor": {"class_path": "jepa_lightning.models.ActionPredictor", "init_args": narrow},
            "lr": schedule,
            "weight_decay": schedule,
        },
    }
    data = {
        "class_path": "jepa_lightning.data.TrajectoryDataModule",
        "init_args": {"root": "x", "normalization": [[0.5] * 3, [0.25] * 3]},
    }
    module = build(config=config, path=path)
    text = yaml.safe_dump({"seed_everything": 0, "model": config, "data": data, "trainer": {}})
    content = {"state_dict": module.state_dict(), CONFIG_KEY: text, "global_step": 1, "epoch": 0}
    AtomicCheckpointIO().save_checkpoint({**content, "pytorch-lightning_version": "2.6"}, path)
    return str(path)


def test_a_report_has_the_world_model_and_all_baselines_with_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FEW, "--ckpt_path", saved(tmp_path / "last.ckpt"), "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    names = [row["policy"] for row in report["policies"]]
    assert names == [
        "world model", "random actions", "straight to the goal", "true simulator, distance",
        "true simulator, length of the way",
    ]  # fmt: skip
    for row in report["policies"]:
        assert 0 <= row["low"] <= row["success"] <= row["high"] <= 1
        assert row["seconds"] > 0
    assert (report["episodes"], report["seed"], report["horizon"]) == (3, 10000, 2)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Two Rooms, 3 episodes, random walls, at most 4 steps" in text
    assert text in capsys.readouterr().out
    strip = np.asarray(Image.open(tmp_path / "out" / "world_model.png"))
    assert strip.shape == (3 * 260, 8 * 260, 3)
    with PyAVDecoder().open(tmp_path / "out" / "world_model.mp4") as video:
        assert (video.info.frames, video.info.height, video.info.width) == (5, 260, 780)


@pytest.mark.parametrize("planner", ["mppi", "cem", "shooting"])
def test_without_a_checkpoint_the_baselines_run_and_repeat(tmp_path: Path, planner: str) -> None:
    found = []
    for name in ("a", "b"):
        main([*FEW, "--planner", planner, "--out", str(tmp_path / name)])
        rows = json.loads((tmp_path / name / "report.json").read_text())["policies"]
        found.append([(row["policy"], row["success"], row["median_steps"]) for row in rows])
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_images_reach_the_world_model_as_in_its_training(tmp_path: Path) -> None:
    world, observe = world_of(open_weights(saved(tmp_path / "last.ckpt")))
    seen = np.full((2, 65, 65, 3), 255, np.uint8)
    inputs = observe(seen, {})
    assert inputs.shape == (2, 3, 32, 32)
    assert torch.allclose(inputs, torch.tensor(2.0))
    state = world.step(world.encode(inputs), torch.zeros(2, 2))
    assert state.features.shape == (2, 4, 16)


@pytest.mark.parametrize(
    ("predictor", "message"),
    [({"action_dim": 7}, "actions of 7 numbers: Two Rooms has"), ({"state_dim": 4}, "2 numbers and states: Two Rooms")],
)
def test_world_models_of_other_robots_are_refused(tmp_path: Path, predictor: Any, message: str) -> None:
    path = saved(tmp_path / "last.ckpt", **predictor)
    with pytest.raises(ValueError, match=message):
        main([*FEW, "--ckpt_path", path, "--out", str(tmp_path / "out")])


def test_what_is_no_world_model_is_refused(tmp_path: Path, save_checkpoint: Any) -> None:
    path = save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="is a IJEPA, no world model"):
        main([*FEW, "--ckpt_path", path, "--out", str(tmp_path / "out")])
