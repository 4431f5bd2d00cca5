"""What a checkpoint says wins until the user says otherwise: command lines before anything parses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning.commands.configs import find_config
from jepa_lightning.commands.find import option_values
from jepa_lightning.commands.stored import Call, changes, trusted_packages, with_checkpoint
from jepa_lightning.weights import CheckpointError
from jepa_lightning.weights.ours import CONFIG_KEY

Save = Callable[..., str]
Section = dict[str, Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()


@pytest.fixture
def saved(save_checkpoint: Save) -> Callable[..., str]:
    """A checkpoint of a training on the folder ``photos``, with changes to its configuration."""

    def save(path: str = "a.ckpt", **sections: Any) -> str:
        save_checkpoint(Path(path))
        content = torch.load(path, weights_only=True)
        config = yaml.safe_load(content[CONFIG_KEY])
        config["data"]["init_args"] |= {"root": "photos", "batch_size": 16, "normalization": [[0.1] * 3, [0.2] * 3]}
        for name, value in sections.items():
            config[name] = {**config.get(name, {}), **value}
        torch.save({**content, CONFIG_KEY: yaml.safe_dump(config)}, path)
        return path

    return save


def said(call: Call) -> Section:
    """The configuration that the checkpoint adds."""
    return dict(yaml.safe_load(option_values(call.arguments, "--config")[-1]))


def ijepa(*arguments: str, command: str = "validate") -> list[str]:
    return [command, "--config", find_config("ijepa.yaml"), *arguments]


# ---------------------------------------------------------------------- without a configuration


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_alone_says_model_and_data(saved: Save, command: str) -> None:
    call = with_checkpoint([command, "--ckpt_path", saved()])
    found = said(call)
    assert found["model"]["class_path"] == "jepa_lightning.IJEPA"
    assert found["data"]["init_args"]["root"] == "photos"
    assert found["data"]["init_args"]["batch_size"] == 16
    assert found["seed_everything"] == 5
    assert "--ckpt_path=a.ckpt" in call.arguments
    assert call.opened is not None


def test_of_the_rest_only_numbers_count_and_nothing_that_names_a_place(saved: Save) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "/elsewhere"}}
    trainer = {"max_epochs": 3, "logger": logger, "default_root_dir": "/elsewhere", "callbacks": [logger], "devices": 9}
    path = saved(trainer=trainer, features={"output": "/elsewhere/victim"}, probe={"k": 5, "every_n_epochs": 3})
    found = said(with_checkpoint(["fit", "--ckpt_path", path]))
    assert found["trainer"] == {"max_epochs": 3}
    assert found["probe"] == {"k": 5}
    assert set(found) == {"seed_everything", "model", "data", "trainer", "probe"}
    assert "elsewhere" not in yaml.safe_dump(found)
    assert "trainer" not in said(with_checkpoint(["validate", "--ckpt_path", path]))


def test_a_log_goes_beside_that_of_the_run_that_the_checkpoint_is_in(saved: Save) -> None:
    Path("runs/mine/version_3/checkpoints").mkdir(parents=True)
    found = said(with_checkpoint(["validate", "--ckpt_path", saved("runs/mine/version_3/checkpoints/last.ckpt")]))
    log = found["trainer"]["logger"]["init_args"]
    assert (Path(log["save_dir"]).resolve(), log["name"]) == (Path("runs").resolve(), "mine")


def test_options_come_after_what_the_checkpoint_says(saved: Save) -> None:
    call = with_checkpoint(["validate", "--ckpt_path", saved(), "--data.root", "others", "--data.batch_size=2"])
    assert call.arguments[1].startswith("--config=")
    assert call.arguments[2:] == ["--ckpt_path=a.ckpt", "--data.root", "others", "--data.batch_size=2"]


def test_a_source_on_the_command_line_is_not_hidden_by_the_root_of_the_training(saved: Save) -> None:
    found = said(with_checkpoint(["validate", "--ckpt_path", saved(), "--data.source", "DigitScenes"]))
    assert found["data"]["init_args"]["root"] is None


# ---------------------------------------------------------------------- beside a configuration


def test_the_data_set_and_the_networks_are_those_of_the_checkpoint_and_that_is_said(
    saved: Save, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        call = with_checkpoint(ijepa("--ckpt_path", saved(), "--trainer.max_epochs", "3"))
    found = said(call)
    assert found["data"]["init_args"] == {"root": "photos", "normalization": [[0.1] * 3, [0.2] * 3]}
    assert found["model"]["init_args"]["encoder"]["init_args"]["img_size"] == 16
    assert set(found["model"]["init_args"]) == {"encoder", "predictor"}
    assert "trainer" not in found
    text = " ".join(caplog.messages)
    assert "photos" in text
    assert "DigitScenes" in text
    assert "encoder.img_size 16 (48 in the configuration)" in text
    names = [argument.partition("=")[0] for argument in call.arguments]
    assert names[:4] == ["validate", "--config", find_config("ijepa.yaml"), "--config"]


@pytest.mark.parametrize("option", [["--data.root", "mine"], ["--data.root=mine"], ["--data.init_args.root=mine"]])
def test_data_on_the_command_line_is_used_with_the_statistics_of_the_encoder(saved: Save, option: list[str]) -> None:
    found = said(with_checkpoint(ijepa("--ckpt_path", saved(), *option)))
    assert found["data"]["init_args"] == {"normalization": [[0.1] * 3, [0.2] * 3]}


def test_another_method_than_that_of_the_checkpoint_is_refused(saved: Save) -> None:
    arguments = ["validate", "--config", find_config("vjepa.yaml"), "--ckpt_path", saved()]
    with pytest.raises(CheckpointError, match=r"holds IJEPA, the configuration is for VJEPA: leave out --config"):
        with_checkpoint(arguments)


def test_a_folder_of_several_parts_that_is_trusted_is_described_by_the_configuration_beside_it(saved: Save) -> None:
    folder = Path("runs/x/version_0/checkpoints/last.ckpt")
    folder.mkdir(parents=True)
    (folder / ".metadata").touch()
    text = torch.load(saved(), weights_only=True)[CONFIG_KEY]
    (folder.parent.parent / "config.yaml").write_text(text)
    assert (
        said(with_checkpoint(["validate", "--ckpt_path", str(folder), "--trust", str(folder)]))["data"]["init_args"][
            "root"
        ]
        == "photos"
    )


@pytest.mark.parametrize("arguments", [["fit"], ["list"], ["fit", "--help"], ["fit", "--ckpt_path", "last"], []])
def test_other_command_lines_are_left_alone(arguments: list[str]) -> None:
    assert with_checkpoint(arguments) == Call(arguments)


# ---------------------------------------------------------------------- probes


@pytest.mark.parametrize("config", ["linear_probe.yaml", "finetune.yaml"])
def test_a_probe_learns_on_the_data_set_of_the_encoder(
    saved: Save, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        call = with_checkpoint(["fit", "--config", find_config(config), "--model.checkpoint", saved()])
    assert said(call) == {
        "data": {
            "class_path": "jepa_lightning.data.ImageDataModule",
            "init_args": {"root": "photos", "normalization": [[0.1] * 3, [0.2] * 3]},
        }
    }
    assert "photos" in caplog.text


def test_a_probe_of_clips_takes_the_data_module_of_an_encoder_of_images(saved: Save) -> None:
    arguments = ["fit", "--config", find_config("attentive_probe.yaml"), "--model.checkpoint", saved()]
    data = said(with_checkpoint(arguments))["data"]
    assert data["class_path"] == "jepa_lightning.data.ImageDataModule"
    assert data["init_args"]["root"] == "photos"
    assert data["init_args"]["masks"] is None


def test_a_probe_takes_other_data_if_it_is_told_so(saved: Save) -> None:
    arguments = ["fit", "--config", find_config("linear_probe.yaml"), "--model.checkpoint", saved()]
    found = said(with_checkpoint([*arguments, "--data.root", "others"]))
    assert found["data"]["init_args"] == {"normalization": [[0.1] * 3, [0.2] * 3]}


def test_that_a_foreign_encoder_does_not_say_its_data_is_said(
    golden_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["fit", "--config", find_config("linear_probe.yaml"), "--model.checkpoint", str(golden_checkpoint)]
    with caplog.at_level("INFO"):
        call = with_checkpoint(arguments)
    assert len(option_values(call.arguments, "--config")) == 1
    assert "does not say its data set: the probe learns from that of the configuration, DigitScenes" in caplog.text


# ---------------------------------------------------------------------- what differs, and whom the user trusts


def test_options_that_differ_from_the_training_are_listed() -> None:
    stored = {"data": {"init_args": {"batch_size": 16, "seed": None, "num_workers": 3, "betas": [1, 2]}}}
    chosen = {"data": {"init_args": {"batch_size": 64, "seed": 1, "num_workers": 0, "betas": (1, 2), "new": 3}}}
    assert changes(stored, chosen) == ["data.batch_size 64 (was 16)"]


def test_packages_that_the_user_names_may_stand_in_a_checkpoint() -> None:
    Path("mine.yaml").write_text("model: {class_path: mymethod.MyJEPA, init_args: {encoder: {class_path: other.E}}}")
    arguments = ["fit", "--config", "mine.yaml", "--data.source=third.S", "--trust", "fourth", "--data.root=photos"]
    assert trusted_packages(arguments) == {"mymethod", "other", "third", "fourth"}
