from __future__ import annotations

import os
from pathlib import Path

import pytest

from jepa_lightning.evaluation import Report, Result
from jepa_lightning.export.results import results


def result(encoder: str, value: float) -> Result:
    return Result("logistic regression", "", encoder, (value,), 100, {}, "cats (Folder)", "val", 900)


RESULTS = [result("random initialisation", 0.5), result("trained", 0.75)]
TABLE = """cats (Folder), validation split, n = 100; fitted on 900 training samples

Top-1 in %, with 95 % intervals.

|  | random initialisation | trained |
| --- | ---: | ---: |
| logistic regression | 50.0 [40.4, 59.6] | 75.0 [65.7, 82.5] |

One run: Wilson's interval, for 100 samples."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """In a run as `jepa fit` leaves it, written at second 1000."""
    path = tmp_path / "runs" / "ijepa" / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (1000, 1000))
    return path


def evaluation(folder: Path, of: str, second: int = 2000, name: str = "validation") -> Path:
    for path in Report("Probes", RESULTS, ["A sentence."], {"checkpoint": of}).write(folder, name):
        os.utime(path, (second, second))
    return folder


def test_an_evaluation_in_a_folder_of_its_own_is_found_and_says_its_data(checkpoint: Path) -> None:
    evaluation(checkpoint.parents[2] / "version_1", "runs/ijepa/version_0/checkpoints/last.ckpt")
    assert results(checkpoint) == [f"## Results (version_1/validation.md)\n\n{TABLE}"]


def test_evaluations_of_other_checkpoints_and_of_earlier_ones_are_left(checkpoint: Path) -> None:
    runs = checkpoint.parents[2]
    evaluation(runs / "version_1", "runs/ijepa/version_5/checkpoints/last.ckpt")
    evaluation(runs / "version_2", "runs/ijepa/version_0/checkpoints/best.ckpt")
    evaluation(runs / "version_3", "runs/ijepa/version_0/checkpoints/last.ckpt", second=500)
    evaluation(runs / "version_4", "as trained")
    assert results(checkpoint) == []


@pytest.mark.parametrize("place", ["run/checkpoints/last.ckpt", "run/last.ckpt"])
def test_what_lies_beside_a_checkpoint_counts_without_a_question(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    evaluation(tmp_path / "run", "anything", name="heads_test")
    evaluation(tmp_path, place)  # in the folder above
    assert results(path) == [f"## Results (run/heads_test.md)\n\n{TABLE}"]


def test_reports_of_jepa_evaluate_are_found(checkpoint: Path) -> None:
    evaluation(checkpoint.parents[1] / "evaluation" / "last_val", "", name="report")
    assert results(checkpoint) == [f"## Results (last_val/report.md)\n\n{TABLE}"]


def test_a_damaged_file_is_named(checkpoint: Path) -> None:
    folder = evaluation(checkpoint.parents[2] / "version_1", "x")
    (folder / "validation.json").write_text("{")
    with pytest.raises(ValueError, match=r"version_1/validation.json is no report of jepa .*: remove it, or"):
        results(checkpoint)
