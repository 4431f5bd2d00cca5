"""Runs that end early or go wrong: signals, numbers that are not finite, folders, logs."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jepa_lightning.cli import main

TINY = [
    "fit", "--config=ijepa.yaml", "--model.encoder.img_size=32", "--model.encoder.embed_dim=32",
    "--model.encoder.depth=1", "--model.encoder.num_heads=2", "--model.predictor.embed_dim=16",
    "--model.predictor.depth=1", "--model.lr.warmup_epochs=0", "--data.masks.min_keep=1", "--data.batch_size=4",
    "--probe.every_n_epochs=0", "--pictures.every_n_epochs=0", "--monitor.flush_every_n_steps=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
]  # fmt: skip
LONG = "--trainer.max_epochs=10000"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(folder: Path, *extra: str) -> list[str]:
    return [*TINY, f"--data.root={folder}", *extra]


def message(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return str(stop.value.code)


def rows(path: Path) -> list[tuple[int, int]]:
    with path.open() as file:
        return [(int(row["epoch"]), int(row["itr"])) for row in csv.DictReader(file)]


# ---------------------------------------------------------------------- signals


def started(arguments: list[str], output: Path) -> subprocess.Popen[bytes]:
    """A process group of its own that has made some steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with output.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "jepa_lightning", *arguments], stdout=file, env=environment,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 90
    while not any(len(rows(path)) > 3 for path in Path("runs").rglob("train.csv")):
        if process.poll() is not None or time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(output.read_text())
        time.sleep(0.1)
    return process


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code; nothing of the group is left."""
    try:
        return process.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def processes_of(group: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
@pytest.mark.parametrize(
    ("name", "whole_group"),
    [
        ("SIGTERM", True),
        pytest.param("SIGTERM", False, marks=pytest.mark.slow),
        pytest.param("SIGHUP", True, marks=pytest.mark.slow),
        pytest.param("SIGUSR1", True, marks=pytest.mark.slow),
        pytest.param("SIGINT", True, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(name: str, whole_group: bool, image_folder: Path) -> None:
    process = started(options(image_folder, "--data.num_workers=2", LONG), Path("out.txt"))
    number = getattr(signal, name)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    assert ended(process) == 128 + number
    shown = Path("out.txt").read_text()
    assert shown.count("finishing this step") == 1  # no worker repeats it
    assert "Traceback" not in shown
    (last,) = Path("runs").rglob("last.ckpt")
    assert f"resume with --ckpt_path {last}" in shown
    (log,) = Path("runs").rglob("train.csv")
    assert len(rows(log)) == torch.load(last, weights_only=True)["global_step"]
    assert not list(Path("runs").rglob("*.part"))


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
@pytest.mark.parametrize("which", [pytest.param("second", marks=pytest.mark.slow), "all"])
def test_of_two_processes_one_or_both_may_get_the_signal(which: str, image_folder: Path) -> None:
    pair = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.num_workers=0", LONG]
    process = started(options(image_folder, *pair), Path("out.txt"))
    second = max(processes_of(process.pid))
    if which == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(second, signal.SIGTERM)
    assert ended(process) == 128 + signal.SIGTERM
    (last,) = Path("runs").rglob("last.ckpt")
    step = torch.load(last, weights_only=True)["global_step"]
    logs = sorted(Path("runs").rglob("train*.csv"))
    assert [len(rows(log)) for log in logs] == [step, step]


def test_a_file_that_a_killed_save_left_goes_with_the_next_save(tmp_path: Path) -> None:
    from jepa_lightning.checkpoint_io import AtomicCheckpointIO

    code = (
        "import os, signal, sys, torch\n"
        "from jepa_lightning.checkpoint_io import AtomicCheckpointIO\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "AtomicCheckpointIO().save_checkpoint({'a': torch.zeros(3)}, sys.argv[1])\n"
    )
    path = tmp_path / "last.ckpt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".last.ckpt.*.part"))) == 1
    (tmp_path / ".of_another.part").touch()
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", ".of_another.part"}


# ---------------------------------------------------------------------- numbers that are not finite


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(image_folder: Path) -> None:
    short = options(image_folder, "--data.num_workers=0", "--checkpoints.every_n_steps=1")
    main([*short, "--trainer.max_steps=3"])
    (last,) = Path("runs").rglob("last.ckpt")
    wild = [*short, "--trainer.max_epochs=2", "--model.lr.peak=1e30", f"--ckpt_path={last}"]
    said = message(wild)
    assert "FloatingPointError" in said
    assert "learning rate" in said
    assert "--trainer.gradient_clip_val" in said
    for path in Path("runs").rglob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(tensor.isfinite().all()) for tensor in state.values()), path
    kept = said.split("--ckpt_path ")[1].split(";")[0]
    assert Path(kept).is_file()
    main([*wild, "--alarm.stop_on_nan=false"])
    for path in Path("runs").rglob("*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(bool(tensor.isfinite().all()) for tensor in state.values()), path


# ---------------------------------------------------------------------- folders and logs


@pytest.mark.parametrize("logger", [["--trainer.logger=false"], ["--trainer.logger=plain_logger.Plain"]])
def test_a_second_run_touches_nothing_of_the_first_whatever_the_logger(
    logger: list[str], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_logger.py").write_text(
        "from lightning.pytorch.loggers.logger import DummyLogger\n"
        "class Plain(DummyLogger):\n"
        "    save_dir = 'runs'\n"
        "    log_dir = root_dir = None\n"
        "    def __getattr__(self, name):\n"
        "        raise AttributeError(name)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    short = options(image_folder, "--data.num_workers=0", "--trainer.max_epochs=1", *logger)
    main(short)
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}
    assert any(path.name == "last.ckpt" for path in before)
    main(short)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(Path("runs").rglob("last.ckpt"))) == 2


def test_a_failed_start_leaves_no_folder_of_a_run(image_folder: Path) -> None:
    assert "no such folder" in message([*TINY, "--data.root=absent", "--data.num_workers=0"])
    assert "fewer than one batch" in message(options(image_folder, "--data.batch_size=99", "--data.num_workers=0"))
    assert not list(Path("runs").rglob("version_*"))


def test_a_version_that_has_a_training_is_not_overwritten(image_folder: Path) -> None:
    short = options(image_folder, "--data.num_workers=0", "--trainer.max_steps=2", "--trainer.logger.version=7")
    main(short)
    assert "version_7 has another training in it" in message(short)
    main([*short, "--trainer.max_steps=4", "--ckpt_path=last.ckpt"])
    assert rows(Path("runs/ijepa/version_7/train.csv")) == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_the_log_of_a_resumed_run_has_every_row_once(image_folder: Path) -> None:
    short = options(image_folder, "--data.num_workers=0", "--monitor.flush_every_n_steps=50")
    main([*short, "--trainer.max_steps=11", "--checkpoints.every_n_steps=5"])
    log = Path("runs/ijepa/version_0/train.csv")
    with log.open("a") as file:
        file.write("2,3,0.5,1,1,1,1,1,1,1,1,1,1,1\n2,4,0.")  # after the checkpoint, and cut off
    main([*short, "--trainer.max_epochs=2", "--ckpt_path=last.ckpt"])
    expected = [(epoch, itr) for epoch in (1, 2) for itr in range(8)]
    assert rows(Path("runs/ijepa/version_1/train.csv")) == expected


def test_a_log_that_is_removed_begins_again_with_its_header(image_folder: Path, tmp_path: Path) -> None:
    from lightning import Callback

    class Remove(Callback):
        def on_train_batch_start(self, trainer: object, module: object, batch: object, batch_idx: int) -> None:
            if batch_idx == 4:
                (log,) = Path("runs").rglob("train.csv")
                log.unlink()

    module = type(sys)("remover")
    module.Remove = Remove  # type: ignore[attr-defined]
    Remove.__module__ = "remover"
    sys.modules["remover"] = module
    try:
        short = options(image_folder, "--data.num_workers=0", "--trainer.max_epochs=1")
        main([*short, "--trainer.callbacks+=remover.Remove"])
    finally:
        del sys.modules["remover"]
    (log,) = Path("runs").rglob("train.csv")
    assert rows(log) == [(1, itr) for itr in range(4, 8)]
