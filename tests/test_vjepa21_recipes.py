"""The recipes of V-JEPA 2.1 have the values of the released configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning.loading import build
from jepa_lightning.methods import VJEPA21

PAPERS = Path(__file__).parent.parent / "configs" / "papers"
ROWS = {  # width, depth, heads, blocks of the predictor, nodes, clips of a process, images of a process
    "vjepa2_1_vitb16": (768, 12, 12, 12, 8, 96, 144),
    "vjepa2_1_vitl16": (1024, 24, 16, 24, 16, 48, 72),
    "vjepa2_1_vitg16": (1408, 40, 22, 24, 16, 48, 72),
    "vjepa2_1_vitgigantic16": (1664, 48, 26, 24, 32, 24, 36),
    "vjepa2_1_vitb16_cooldown": (768, 12, 12, 12, 16, 48, 144),
    "vjepa2_1_vitl16_cooldown": (1024, 24, 16, 24, 32, 24, 72),
    "vjepa2_1_vitg16_cooldown": (1408, 40, 22, 24, 32, 24, 72),
    "vjepa2_1_vitgigantic16_cooldown": (1664, 48, 26, 24, 64, 12, 36),
}
PARAMETERS = {768: (86_833_152, 26_318_208), 1024: (304_680_960, 50_333_824)}
PARAMETERS |= {1408: (1_013_267_968, 55_399_936), 1664: (1_845_216_768, 59_432_704)}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((PAPERS / f"{name}.yaml").read_text())


def module_of(name: str) -> VJEPA21:
    with torch.device("meta"):
        module = build(path=PAPERS / f"{name}.yaml", config=read(name)["model"])
    assert isinstance(module, VJEPA21)
    return module


def test_every_recipe_is_here() -> None:
    assert {path.stem for path in PAPERS.glob("vjepa2_1_*.yaml")} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_sizes_batches_and_lengths(name: str) -> None:
    config, cools = read(name), name.endswith("cooldown")
    encoder, predictor = (config["model"]["init_args"][net]["init_args"] for net in ("encoder", "predictor"))
    data, trainer = config["data"]["init_args"], config["trainer"]
    turns = data["images"]["init_args"]
    images = turns["data"]["init_args"]
    assert ROWS[name] == (
        encoder["embed_dim"], encoder["depth"], encoder["num_heads"], predictor["depth"], trainer["num_nodes"],
        data["batch_size"], images["batch_size"],
    )  # fmt: skip
    processes = trainer["devices"] * trainer["num_nodes"] // 2
    assert (turns["share"], turns["own_ranks"]) == (0.5, True)
    assert processes * data["batch_size"] == 3072
    assert processes * images["batch_size"] == (9216 if cools else 4608)
    assert (encoder["num_frames"], trainer["max_epochs"]) == ((64, 40) if cools else (16, 1000))
    assert (trainer["limit_train_batches"], config["seed_everything"]) == (300, 239)
    assert trainer["strategy"] == "ddp_find_unused_parameters_true"
    families = [data["masks"], images["masks"]]
    blocks = [[(f["num_blocks"], f["spatial_scale"]) for f in m["init_args"]["families"]] for m in families]
    assert blocks == [[(8, [0.15, 0.15]), (2, [0.7, 0.7])], [(10, [0.15, 0.15])]]
    assert data["source"]["init_args"]["weights"] == [0.335, 0.1, 0.565]


@pytest.mark.parametrize("name", ROWS)
def test_networks_and_schedules_are_those_of_the_released_configurations(name: str) -> None:
    module, total = module_of(name), 1.25 * 300 * read(name)["trainer"]["max_epochs"]
    counts = tuple(sum(p.numel() for p in net.parameters()) for net in (module.encoder, module.predictor))
    assert counts == PARAMETERS[module.embed_dim]
    assert module.ipe_scale == 1.25
    weights = [module.context_weight(step + 1, total, 300) for step in (0, 15_000, 22_500, 30_000)]
    if name.endswith("cooldown"):
        assert module.lr(12_000, total, 300) == pytest.approx(1.208e-4)
        assert weights == [0.5] * 4
        assert not module.weight_by_distance
    else:
        assert module.lr(6_000, total, 300) == pytest.approx(3.5e-4)
        assert module.lr(12_000, total, 300) == module.lr(300_000, total, 300) == pytest.approx(6e-4)
        assert weights == [0, 0, 0.25, 0.5]
        assert module.weight_by_distance
