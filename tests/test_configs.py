"""Every shipped configuration builds, and every one on the embedded data runs, stops, resumes and validates."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from inspect import isabstract
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml

import jepa_lightning as jl
from jepa_lightning.cli import main
from jepa_lightning.data import JEPADataModule
from jepa_lightning.loading import build
from jepa_lightning.methods import Method
from jepa_lightning.trajectory import Trajectory

CONFIGS = Path(__file__).parent.parent / "configs"
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
FEW = [
    "--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=2",  # 1 means all
    "--data.batch_size=8", "--data.num_workers=0", "--probe.max_train=64", "--probe.max_held_out=64",
]  # fmt: skip


def config_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


def model_of(name: str) -> dict[str, Any]:
    return config_of(name)["model"]


def is_embedded(name: str) -> bool:
    """Whether its data comes with the package."""
    return source_of(name) in ("DigitScenes", "MovingDigits", "TwoRoomsEpisodes")


def source_of(name: str) -> str:
    """The class of its data."""
    return (config_of(name)["data"]["init_args"].get("source") or {}).get("class_path", "")


EMBEDDED = [name for name in ALL if is_embedded(name)]


def given(name: str, pretrained: Path) -> list[str]:
    """Options that name the checkpoint that a configuration starts from, or that keep data short; none for most."""
    model = model_of(name)
    option = "model.checkpoint" if is_probe(name) else "model.teacher" if "teacher" in model["init_args"] else None
    short = ["--data.source.episodes=60"] if source_of(name) == "TwoRoomsEpisodes" else []
    return [*short, *([f"--{option}={pretrained}"] if option else [])]


def is_probe(name: str) -> bool:
    """Whether it reads the checkpoint of a pretraining."""
    return "checkpoint" in model_of(name)["init_args"]


def reads_trajectories(method: type) -> bool:
    """Whether its batches hold actions, which the images and clips of the embedded data do not have."""
    return hasattr(method, "losses") and get_type_hints(method.losses)["batch"] is Trajectory


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one step, for the probes."""
    folder = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        off = ["--probe.every_n_epochs=0", "--pictures.every_n_epochs=0", "--trainer.max_steps=1"]
        main(["fit", "--config=vjepa.yaml", *FEW, *off])
    (found,) = folder.rglob("last.ckpt")
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_config_is_complete_and_says_what_it_is(name: str) -> None:
    text = (CONFIGS / name).read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert f"jepa fit --config {name}" in "\n".join(head)
    assert "arXiv" in head[0]
    assert any(line.startswith("# Expected:") for line in head)
    assert any(line.startswith("# Hardware:") for line in head)
    assert {"seed_everything", "model", "data", "trainer"} <= set(yaml.safe_load(text))


@pytest.mark.parametrize("name", ALL)
def test_a_config_builds_its_module(name: str, request: pytest.FixtureRequest) -> None:
    config = model_of(name)
    if is_probe(name):  # holds tensors of a file
        config["init_args"]["checkpoint"] = str(request.getfixturevalue("pretrained"))
        trained = any(p.requires_grad for p in build(config).encoder.parameters())
        assert trained == (config["class_path"] == "FineTune")
        return
    with torch.device("meta"):  # the largest has a billion parameters
        module = build(config)
    assert isinstance(module, jl.JEPA)
    assert all(p.is_meta for p in module.parameters())


def test_every_method_has_a_config() -> None:
    ours = [method for method in subclasses(Method) if method.__module__.startswith("jepa_") and not isabstract(method)]
    assert len(ours) >= 7
    shown = [method for method in ours if not reads_trajectories(method)]  # no recipe on the embedded data has actions
    trained = {method.__name__ for method in shown} - {"PretrainedEncoder"}  # which nothing trains
    assert trained <= {model_of(name)["class_path"] for name in EMBEDDED}


def test_the_published_recipes_have_the_published_values() -> None:
    rows = {  # reference: the official configurations and appendix A.1
        "ijepa_in1k_vith14": (224, 14, 1280, 32, 12, 40, 128, 300, 2),
        "ijepa_in1k_vith16_448": (448, 16, 1280, 32, 12, 40, 16, 300, 16),
        "ijepa_in22k_vith14": (224, 14, 1280, 32, 12, 3, 32, 66, 8),
        "ijepa_in22k_vitg16": (224, 16, 1408, 40, 16, 3, 16, 44, 16),
        "ijepa_in1k_vitb16": (224, 16, 768, 12, 6, 15, 128, 600, 2),
        "ijepa_in1k_vitl16": (224, 16, 1024, 24, 12, 15, 128, 600, 2),
    }
    for name, expected in rows.items():
        config = yaml.safe_load((CONFIGS / "papers" / f"{name}.yaml").read_text())
        model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
        encoder, predictor = model["encoder"]["init_args"], model["predictor"]["init_args"]
        assert expected == (
            encoder["img_size"], encoder["patch_size"], encoder["embed_dim"], encoder["depth"], predictor["depth"],
            model["lr"]["init_args"]["warmup_epochs"], data["batch_size"], trainer["max_epochs"], trainer["num_nodes"],
        )  # fmt: skip
        assert data["batch_size"] * trainer["devices"] * trainer["num_nodes"] == 2048
        assert predictor["embed_dim"] == 384


def test_the_giant_has_the_published_number_of_parameters() -> None:
    config = yaml.safe_load((CONFIGS / "papers/ijepa_in22k_vitg16.yaml").read_text())
    with torch.device("meta"):
        module = build(config["model"])
    assert sum(p.numel() for p in module.encoder.parameters()) == 1_011_092_608
    assert sum(p.numel() for p in module.get_submodule("predictor").parameters()) == 29_475_712


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_config_runs_stops_resumes_validates_loads_and_is_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    few = [f"--config={name}", *FEW, *given(name, request.getfixturevalue("pretrained"))]
    main(["fit", *few, "--trainer.max_steps=4"])
    main(["fit", *few, "--ckpt_path=last.ckpt"])
    main(["validate", *few, "--ckpt_path=last.ckpt"])
    checkpoints = sorted(Path("runs").rglob("last.ckpt"))
    assert torch.load(checkpoints[-1], weights_only=True)["global_step"] == 6
    module = jl.load(checkpoints[-1])
    assert isinstance(module, Method)
    assert type(module).__name__ == model_of(name)["class_path"]
    assert JEPADataModule.__subclasses__()
    if isinstance(module, jl.JEPA):
        main(["export", "--ckpt_path=last.ckpt", "--to=safetensors", "--out=exported"])
        parity = json.loads(Path("exported/parity.json").read_text())
        assert parity["passed"]


def leaves(content: Any) -> list[Any]:
    """What is in dictionaries and lists, at any depth, with the keys."""
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in [key, *leaves(value)]]
    return [leaf for part in content for leaf in leaves(part)] if isinstance(content, list | tuple) else [content]


KILL = """
import os, signal, sys
from lightning import Callback
from jepa_lightning.cli import main
class Kill(Callback):
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
main([*sys.argv[1:], "--trainer.callbacks+=__main__.Kill"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_killed_run_of_a_config_resumes_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["fit", f"--config={name}", *FEW, "--checkpoints.every_n_steps=2"]
    few += given(name, request.getfixturevalue("pretrained"))
    main([*few, "--trainer.logger.init_args.name=whole"])
    few.append("--trainer.logger.init_args.name=parts")
    killed = subprocess.run([sys.executable, "-c", KILL, *few], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = Path("runs/parts").rglob("last.ckpt")
    assert torch.load(left, weights_only=True)["global_step"] == 4
    main([*few, f"--ckpt_path={left}"])
    ends = [max(Path("runs", run).rglob("last.ckpt")) for run in ("whole", "parts")]
    whole, parts = (torch.load(path, weights_only=True) for path in ends)
    assert whole["global_step"] == parts["global_step"] == 6
    for part in ("state_dict", "optimizer_states"):
        for a, b in zip(leaves(parts[part]), leaves(whole[part]), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
