from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

import jepa_lightning
from jepa_lightning.evaluation import provenance


def test_the_commit_is_that_of_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "jepa_lightning"
    package.mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.commit() == f"jepa-lightning {jepa_lightning.__version__}"  # as installed
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    assert head.startswith(provenance.commit())
    assert re.fullmatch(r"[0-9a-f]{7,}", provenance.commit())


def test_a_clone_that_is_broken_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "p").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "p")
    assert provenance.commit().endswith("in a clone that git cannot describe")


def test_machine_and_versions_are_told() -> None:
    assert re.match(r"\d+ cores of \S", provenance.hardware(torch.device("cpu")))
    assert f"torch {torch.__version__}" in provenance.software()
