"""The published V-JEPA and V-JEPA 2 recipes have the published values (reference: configurations and papers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning.loading import build
from jepa_lightning.schedules import Schedule

PAPERS = Path(__file__).parent.parent / "configs" / "papers"
ROWS = {  # img, frames, width, depth, heads, batch of a GPU, GPUs, epochs of 300 steps
    "vjepa_vitl16": (224, 16, 1024, 24, 16, 24, 128, 300),
    "vjepa_vith16": (224, 16, 1280, 32, 16, 24, 128, 300),
    "vjepa_vith16_384": (384, 16, 1280, 32, 16, 10, 240, 300),
    "vjepa2_vitl_256": (256, 16, 1024, 24, 16, 24, 128, 800),
    "vjepa2_vith_256": (256, 16, 1280, 32, 16, 24, 128, 800),
    "vjepa2_vitg_256": (256, 16, 1408, 40, 22, 24, 128, 800),
    "vjepa2_vitl_256_cooldown": (256, 64, 1024, 24, 16, 12, 256, 40),
    "vjepa2_vith_256_cooldown": (256, 64, 1280, 32, 16, 12, 256, 40),
    "vjepa2_vitg_256_cooldown": (256, 64, 1408, 40, 22, 6, 512, 40),
    "vjepa2_vitg_384_cooldown": (384, 64, 1408, 40, 22, 6, 512, 40),
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((PAPERS / f"{name}.yaml").read_text())


def learning_rate(name: str) -> tuple[Schedule, float]:
    with torch.device("meta"):
        module = build(read(name)["model"])
    return module.lr, module.ipe_scale * read(name)["trainer"]["max_epochs"] * 300


def test_every_video_recipe_is_here() -> None:
    recipes = {path.stem for path in PAPERS.glob("vjepa*.yaml")}
    assert {name for name in recipes if not name.startswith(("vjepa2_1", "vjepa2_ac"))} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_sizes_batches_and_lengths(name: str) -> None:
    config = read(name)
    encoder, predictor = (config["model"]["init_args"][net]["init_args"] for net in ("encoder", "predictor"))
    data, trainer = config["data"]["init_args"], config["trainer"]
    assert trainer["limit_train_batches"] == 300
    assert ROWS[name] == (
        encoder["img_size"], encoder["num_frames"], encoder["embed_dim"], encoder["depth"], encoder["num_heads"],
        data["batch_size"], trainer["devices"] * trainer["num_nodes"], trainer["max_epochs"],
    )  # fmt: skip
    assert (encoder["patch_size"], encoder["tubelet_size"]) == (16, 2)
    assert (predictor["embed_dim"], predictor["depth"]) == (384, 12)
    assert predictor.get("num_heads") == (12 if "vjepa2" in name else None)
    assert encoder["depth_rescale"] == predictor["depth_rescale"] == ("vjepa2" in name)
    scales = [(f["num_blocks"], f["spatial_scale"]) for f in data["masks"]["init_args"]["families"]]
    assert scales == [(8, [0.15, 0.15]), (2, [0.7, 0.7])]


def test_the_learning_rate_of_v_jepa_warms_up_for_12000_steps_and_is_cut_off_by_ipe_scale() -> None:
    lr, total = learning_rate("vjepa_vitl16")
    assert lr(1, total, 300) == pytest.approx(2.00035417e-4)
    assert lr(12_000, total, 300) == pytest.approx(6.25e-4)
    assert lr(90_000, total, 300) == pytest.approx(7.504e-5, rel=1e-4)


def test_v_jepa_2_stays_at_the_peak_and_its_cool_down_ends_at_the_papers_1e_6() -> None:
    lr, total = learning_rate("vjepa2_vitl_256")
    assert lr(6_000, total, 300) == pytest.approx(3.125e-4)
    assert lr(12_000, total, 300) == lr(240_000, total, 300) == pytest.approx(5.25e-4)
    lr, total = learning_rate("vjepa2_vitg_384_cooldown")
    assert total == 12_000
    assert lr(6_000, total, 300) == pytest.approx(2.63e-4, rel=1e-3)
    assert lr(12_000, total, 300) == pytest.approx(1e-6)


def test_the_weights_of_the_data_are_the_papers() -> None:
    mixture = read("vjepa2_vitg_256")["data"]["init_args"]["source"]["init_args"]
    assert mixture["weights"] == [0.056, 0.188, 0.318, 0.188, 0.25]
    assert len(mixture["sources"]) == 5


@pytest.mark.parametrize(("name", "count"), [("vjepa_vitl16", 303_885_312), ("vjepa2_vitg_256", 1_012_173_952)])
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    with torch.device("meta"):
        module = build(read(name)["model"])
    assert sum(p.numel() for p in module.encoder.parameters()) == count
