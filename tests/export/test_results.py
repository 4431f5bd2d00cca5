from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from jepa_lightning.export.results import results

SCORES = {"random initialisation": {"linear_top1": 0.5}, "trained": {"linear_top1": 0.75, "rankme": 9.21234}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """In a run as `jepa fit` leaves it, written at second 1000."""
    path = tmp_path / "runs" / "ijepa" / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1000, 1000))
    return path


def evaluation(folder: Path, of: str, second: int = 2000, name: str = "validation.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"checkpoint": of, "step": 0, "scores": SCORES}))
    os.utime(folder / name, (second, second))
    return folder


def test_an_evaluation_in_a_folder_of_its_own_is_found_and_says_its_data(checkpoint: Path) -> None:
    runs = checkpoint.parents[2]
    folder = evaluation(runs / "version_1", "runs/ijepa/version_0/checkpoints/last.ckpt")
    data = {"class_path": "jepa_lightning.data.ImageDataModule", "init_args": {"root": "my.cats/small"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    assert results(checkpoint) == [
        "## Results (version_1/validation.json)\n\n"
        "On ImageDataModule, my.cats/small.\n\n"
        "| | random initialisation | trained |\n"
        "|---|---:|---:|\n"
        "| linear_top1 | 0.5 | 0.75 |\n"
        "| rankme | - | 9.212 |"
    ]


def test_evaluations_of_other_checkpoints_and_of_earlier_ones_are_left(checkpoint: Path) -> None:
    runs = checkpoint.parents[2]
    evaluation(runs / "version_1", "runs/ijepa/version_5/checkpoints/last.ckpt")
    evaluation(runs / "version_2", "runs/ijepa/version_0/checkpoints/best.ckpt")
    evaluation(runs / "version_3", "runs/ijepa/version_0/checkpoints/last.ckpt", second=500)
    evaluation(runs / "version_4", "")
    assert results(checkpoint) == []


@pytest.mark.parametrize("place", ["run/checkpoints/last.ckpt", "run/last.ckpt"])
def test_what_lies_beside_a_checkpoint_counts_without_a_question(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    (tmp_path / "run" / "heads_test.json").write_text('{"best": 3}')
    evaluation(tmp_path, place)  # in the folder above
    assert results(path) == ['## Results (run/heads_test.json)\n\n```json\n{\n  "best": 3\n}\n```']


def test_of_the_report_of_jepa_evaluate_the_table_is_taken(checkpoint: Path) -> None:
    folder = checkpoint.parents[1] / "evaluation" / "last_val"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text(
        "# Evaluation of last.ckpt\n\nTop-1 in %.\n\n| a |\n|---|\n\n## Protocol\n\n- b\n"
    )
    assert results(checkpoint) == ["## Results (last_val/report.md)\n\nTop-1 in %.\n\n| a |\n|---|"]


def test_a_damaged_file_is_named(checkpoint: Path) -> None:
    (checkpoint.parents[1] / "validation.json").write_text("{")
    with pytest.raises(ValueError, match=r"version_0/validation.json is no valid JSON .*: remove it, or"):
        results(checkpoint)
