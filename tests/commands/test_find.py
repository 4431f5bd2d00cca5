from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jepa_lightning import weights
from jepa_lightning.commands.configs import find_config, with_shipped_configs
from jepa_lightning.commands.find import find_checkpoint, with_named_option


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["ijepa.yaml", "papers/ijepa_in1k_vith14.yaml", "ijepa_in1k_vith14.yaml"])
def test_shipped_configs_are_found_by_name(name: str) -> None:
    assert Path(find_config(name)).is_file()


def test_a_file_here_comes_first() -> None:
    Path("ijepa.yaml").write_text("trainer: {}")
    assert find_config("ijepa.yaml") == "ijepa.yaml"


@pytest.mark.parametrize("arguments", [["-c", "ijepa.yaml"], ["--config", "ijepa.yaml"], ["--config=ijepa.yaml"]])
def test_every_spelling_of_the_option_is_known(arguments: list[str]) -> None:
    found = with_shipped_configs(["fit", *arguments, "--trainer.max_epochs", "3"])
    assert Path(found[len(arguments)].removeprefix("--config=")).is_absolute()
    assert found[-2:] == ["--trainer.max_epochs", "3"]


def leave(name: str, age: int, model: dict[str, Any] | None = None, content: Any = None) -> str:
    """What a run leaves behind, so many seconds old; without its configuration if there is no model."""
    path = Path(f"runs/{name}/checkpoints/last.ckpt")
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": {}} if content is None else content, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    if model is not None:
        (path.parent.parent / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    return str(path)


def kind(name: str) -> dict[str, Any]:
    probe = {"checkpoint": "some.ckpt"} if name == "AttentiveProbe" else {}
    return {"class_path": f"jepa_lightning.methods.{name}", "init_args": probe}


def of_kind(name: str) -> Any:
    """As the command line asks for --ckpt_path."""
    return lambda model: model["class_path"].split(".")[-1] in (name, "")


def is_pretraining(model: dict[str, Any]) -> bool:
    """As the command line asks for --model.checkpoint."""
    return "checkpoint" not in model.get("init_args", {})


def test_the_newest_run_is_meant_by_a_bare_name() -> None:
    first, second = leave("x/version_1", age=1), leave("x/version_2", age=2)
    assert find_checkpoint("last.ckpt", "runs") == first
    assert find_checkpoint(second, "runs") == second
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: best.ckpt; .* below runs, which have last.ckpt"):
        find_checkpoint("best.ckpt", "runs")


def test_what_was_found_is_told_with_the_option(caplog: pytest.LogCaptureFixture) -> None:
    path = leave("x/version_0", age=0)
    with caplog.at_level("INFO"):
        find_checkpoint("last.ckpt", option="--model.checkpoint")
    assert caplog.messages == [f"--model.checkpoint last.ckpt: the newest is {path}"]


def test_a_file_here_comes_before_the_runs() -> None:
    leave("x/version_0", age=0)
    torch.save({"state_dict": {}}, "last.ckpt")
    assert find_checkpoint("last.ckpt", "runs") == "last.ckpt"


def test_what_is_probed_is_the_newest_pretraining_not_the_newest_probe() -> None:
    leave("probe/version_0", 0, kind("AttentiveProbe"))
    newest = leave("vjepa/version_3", 1, kind("VJEPA"))
    leave("ijepa/version_0", 2, kind("IJEPA"))
    assert find_checkpoint("last.ckpt", "runs", "--model.checkpoint", is_pretraining) == newest


@pytest.mark.parametrize("name", ["AttentiveProbe", "VJEPA", "IJEPA"])
def test_what_is_resumed_is_the_newest_run_of_the_same_method(name: str) -> None:
    paths = {n: leave(f"{n}/version_0", age, kind(n)) for age, n in enumerate(["AttentiveProbe", "VJEPA", "IJEPA"])}
    assert find_checkpoint("last.ckpt", "runs", "--ckpt_path", of_kind(name)) == paths[name]


def test_a_run_that_left_no_configuration_may_be_of_any_kind() -> None:
    path = leave("unknown", age=0)
    leave("ijepa/version_0", 1, kind("IJEPA"))
    assert find_checkpoint("last.ckpt", "runs", "--ckpt_path", of_kind("AttentiveProbe")) == path
    assert find_checkpoint("last.ckpt", "runs", "--model.checkpoint", is_pretraining) == path
    (Path(path).parent.parent / "config.yaml").write_text("model: [")  # damaged
    assert find_checkpoint("last.ckpt", "runs", "--ckpt_path", of_kind("AttentiveProbe")) == path


def test_runs_of_other_kinds_are_counted_and_the_newest_is_named() -> None:
    leave("probe/version_0", 1, kind("AttentiveProbe"))
    leave("probe/version_1", 0, kind("AttentiveProbe"))
    message = (
        r"--model.checkpoint last.ckpt: none of the 2 runs below runs .*probe/version_1/.*, AttentiveProbe\): give"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_checkpoint("last.ckpt", "runs", "--model.checkpoint", is_pretraining)


def test_the_name_of_a_folder_on_the_hub_is_asked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def download(name: str, **_: Any) -> str:
        asked.append(name)
        raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    said = r"no such folder: a/b-256, .*\(no network\): .*hf download a/b-256 --local-dir FOLDER.* give the folder$"
    with pytest.raises(FileNotFoundError, match=said):
        weights.open(find_checkpoint("a/b-256", "runs"))
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: a/b.ckpt"):
        find_checkpoint("a/b.ckpt", "runs")
    assert asked == ["a/b-256"]


def test_a_folder_of_several_parts_is_for_a_trainer_and_nothing_else() -> None:
    Path("sharded.ckpt").mkdir()
    Path("sharded.ckpt/.metadata").touch()
    assert find_checkpoint("sharded.ckpt", "runs") == "sharded.ckpt"
    with pytest.raises(weights.UnknownFormat, match=r"sharded.ckpt is a checkpoint in several parts .* make one file"):
        weights.open("sharded.ckpt")


def test_a_path_behind_a_command_or_the_task_of_dense_is_that_of_a_checkpoint() -> None:
    assert with_named_option(["evaluate", "a.ckpt", "--k", "5"]) == ["evaluate", "--ckpt_path", "a.ckpt", "--k", "5"]
    assert with_named_option(["dense", "depth", "a.ckpt"]) == ["dense", "depth", "--ckpt_path", "a.ckpt"]
    for given in (["dense", "depth"], ["dense", "depth", "--steps", "5"], ["fit", "a.ckpt"], ["evaluate"], []):
        assert with_named_option(given) == given
