from __future__ import annotations

import os
from pathlib import Path

import pytest

from jepa_lightning.data import ImageDataModule, workers
from jepa_lightning.data.workers import available_cores, own_cores


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)), raising=False)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(workers, "_limits", lambda cgroups: iter(()))
    return 32


def test_there_is_a_worker_for_every_core_but_one(cores: int) -> None:
    assert ImageDataModule().num_workers == cores - 1
    assert ImageDataModule(num_workers=3).num_workers == 3
    with pytest.raises(ValueError, match="num_workers -1: use at least 0"):
        ImageDataModule(num_workers=-1)


def test_the_cores_are_divided_among_the_processes_that_there_are(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_cores(4) == 8
    assert own_cores(64) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # torchrun
    assert own_cores() == 4


def test_slurm_may_have_divided_them_already(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "32")
    assert own_cores(4) == 32
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")  # not bound: the process sees those of all four
    assert own_cores(4) == 8


@pytest.mark.parametrize(("content", "expected"), [("max 100000", 32), ("300000 100000", 3), ("50000 100000", 1)])
def test_the_limit_of_a_container_counts(
    content: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)), raising=False)
    (tmp_path / "cpu.max").write_text(content + "\n")
    assert available_cores(tmp_path) == expected


def test_the_limit_of_an_older_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", 450000), ("period", 100000)):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(str(value))
    assert available_cores(tmp_path) == 5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    assert available_cores(tmp_path) == 32
