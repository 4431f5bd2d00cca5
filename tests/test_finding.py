from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from jepa_lightning.finding import find_checkpoint, find_config, with_shipped_configs


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


def test_the_newest_run_is_meant_by_a_bare_name() -> None:
    for number in (1, 2):
        path = Path(f"runs/x/version_{number}/checkpoints/last.ckpt")
        path.parent.mkdir(parents=True)
        torch.save({"state_dict": {}}, path)
        os.utime(path, (1e9 - number, 1e9 - number))
    assert "version_1" in find_checkpoint("last.ckpt", "runs")
    assert find_checkpoint("runs/x/version_2/checkpoints/last.ckpt", "runs").endswith("version_2/checkpoints/last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: best.ckpt"):
        find_checkpoint("best.ckpt", "runs")
