"""Interrupted and resumed runs repeat the uninterrupted run bit for bit (CPU)."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jepa_lightning.cli import main

OPTIONS = [
    "fit", "--config", "ijepa.yaml",
    "--model.encoder.img_size=32", "--model.encoder.embed_dim=32", "--model.encoder.depth=1",
    "--model.encoder.num_heads=2", "--model.predictor.embed_dim=16", "--model.predictor.depth=1",
    "--data.masks.min_keep=1", "--data.batch_size=4", "--probe.every_n_epochs=0", "--pictures.every_n_epochs=0",
    "--monitor.flush_every_n_steps=1", "--checkpoints.every_n_steps=3", "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
STEPS = 3 * 8
pytestmark = pytest.mark.xdist_group("resume")  # one worker, for the run that others are compared with

KILLER = """
import os, signal
from lightning import Callback
class Kill(Callback):
    def __init__(self, step: int):
        self.step = step
    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
class Stop(Callback):
    def __init__(self, step: int, hook: str = "on_train_batch_end"):
        setattr(self, hook, lambda trainer, *rest: self._stop(trainer, step))
    def _stop(self, trainer, step):
        if trainer.global_step == step and not trainer.sanity_checking:
            raise RuntimeError("stopped by the test")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))


def options(folder: Path, name: str, *extra: str) -> list[str]:
    return [*OPTIONS, f"--data.root={folder}", f"--trainer.logger.init_args.name={name}", *extra]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> str:
    """The run that nothing interrupts: its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(options(image_folder, "whole", "--data.num_workers=0"))
    return str(folder / "runs" / "whole")


def losses(name: str) -> dict[int, str]:
    """The loss of each step, exact to the last bit of float32."""
    found: dict[int, str] = {}
    for path in sorted(Path("runs", name).rglob("train.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                found[(int(row["epoch"]) - 1) * 8 + int(row["itr"])] = row["loss"]
    return found


def assert_same_end(one: str, other: str) -> None:
    assert len(losses(one)) == STEPS
    assert losses(one) == losses(other)
    states = [torch.load(max(Path("runs", name).rglob("last.ckpt")), weights_only=True) for name in (one, other)]
    for key, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][key]), key
    moments = [state["optimizer_states"][0]["state"] for state in states]
    for key, values in moments[0].items():
        assert values, key
        for name, tensor in values.items():  # of AdamW, or of Muon
            assert torch.equal(tensor, moments[1][key][name]), (key, name)


def test_a_killed_run_resumes_bit_for_bit(whole: str, image_folder: Path) -> None:
    killed = options(image_folder, "parts", "--data.num_workers=2", "--trainer.callbacks+=killer.Kill",
                     "--trainer.callbacks.step=13")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-m", "jepa_lightning", *killed], env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    assert max(losses("parts")) < 13
    main(options(image_folder, "parts", "--data.num_workers=1", "--ckpt_path=last.ckpt"))
    assert_same_end(whole, "parts")


@pytest.mark.parametrize("name", ["vjepa.yaml", "vjepa2_1.yaml", pytest.param("vjepa2.yaml", marks=pytest.mark.slow)])
def test_a_killed_run_on_videos_resumes_bit_for_bit(name: str) -> None:
    video = ["fit", "--config", name, *OPTIONS[3:], "--model.encoder.num_frames=4", "--trainer.limit_train_batches=8"]
    video.append("--trainer.limit_val_batches=1")
    if name == "vjepa2_1.yaml":  # it reads four blocks, and masks images too
        video += ["--model.encoder.depth=4", "--model.encoder.img_size=64"]
    main([*video, "--trainer.logger.init_args.name=whole", "--data.num_workers=0"])
    killed = [*video, "--trainer.logger.init_args.name=parts", "--data.num_workers=2",
              "--trainer.callbacks+=killer.Kill", "--trainer.callbacks.step=13"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-m", "jepa_lightning", *killed], env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    main([*video, "--trainer.logger.init_args.name=parts", "--data.num_workers=1", "--ckpt_path=last.ckpt"])
    assert_same_end("whole", "parts")


@pytest.mark.parametrize(
    ("step", "hook"),
    [
        (1, "on_train_batch_start"),  # before the first checkpoint there is nothing to resume from but the start
        (8, "on_validation_start"),
        (8, "on_train_epoch_end"),
        (9, "on_train_batch_end"),
        (16, "on_train_epoch_start"),
        (23, "on_train_batch_end"),
    ],
)
def test_a_run_resumes_from_wherever_it_stopped(whole: str, image_folder: Path, step: int, hook: str) -> None:
    with pytest.raises(SystemExit):
        main(options(image_folder, "parts", "--data.num_workers=0", "--trainer.callbacks+=killer.Stop",
                     f"--trainer.callbacks.step={step}", f"--trainer.callbacks.hook={hook}"))  # fmt: skip
    saved = [f"--ckpt_path={path}" for path in Path("runs", "parts").rglob("last.ckpt")]
    main(options(image_folder, "parts", "--data.num_workers=0", *saved))
    assert_same_end(whole, "parts")


def test_accumulated_gradients_resume_bit_for_bit(image_folder: Path) -> None:
    accumulate = ("--data.num_workers=0", "--trainer.accumulate_grad_batches=2", "--checkpoints.every_n_steps=1")
    main(options(image_folder, "whole", *accumulate))
    with pytest.raises(SystemExit):
        main(options(image_folder, "parts", *accumulate, "--trainer.callbacks+=killer.Stop",
                     "--trainer.callbacks.step=6"))  # fmt: skip
    main(options(image_folder, "parts", *accumulate, "--ckpt_path=last.ckpt"))
    assert_same_end("whole", "parts")


def test_ctrl_c_saves_and_stops(whole: str, image_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (Path.cwd() / "killer2.py").write_text(KILLER.replace("SIGKILL", "SIGINT"))
    before = signal.getsignal(signal.SIGINT)  # ignored, if a shell without job control started the tests with &
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        main(options(image_folder, "parts", "--data.num_workers=0", "--trainer.callbacks+=killer2.Kill",
                     "--trainer.callbacks.step=10"))  # fmt: skip
    assert "resume with --ckpt_path" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before
    main(options(image_folder, "parts", "--data.num_workers=0", "--ckpt_path=last.ckpt"))
    assert_same_end(whole, "parts")


def test_a_run_that_max_steps_ended_goes_on_in_the_same_epoch(image_folder: Path) -> None:
    main(options(image_folder, "whole", "--data.num_workers=0", "--model.ipe_scale=2"))
    # The schedules follow the length of the run: twice 12 steps are as long as 24.
    main(options(image_folder, "parts", "--data.num_workers=0", "--trainer.max_steps=12", "--model.ipe_scale=4"))
    main(options(image_folder, "parts", "--data.num_workers=0", "--ckpt_path=last.ckpt", "--model.ipe_scale=2"))
    assert_same_end("whole", "parts")


def test_the_checkpoint_alone_resumes_bit_for_bit(whole: str, image_folder: Path) -> None:
    """`jepa fit --ckpt_path last.ckpt`: model, data, seed and length are in it; observers may differ."""
    with pytest.raises(SystemExit):
        main(options(image_folder, "parts", "--data.num_workers=0", "--trainer.callbacks+=killer.Stop",
                     "--trainer.callbacks.step=13"))  # fmt: skip
    main(["fit", "--ckpt_path=last.ckpt", "--trainer.enable_progress_bar=false", "--monitor.flush_every_n_steps=1"])
    assert_same_end(whole, "parts")


def test_moments_of_another_shape_are_refused_by_name(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(options(image_folder, "parts", "--data.num_workers=0", "--trainer.callbacks+=killer.Stop",
                     "--trainer.callbacks.step=13"))  # fmt: skip
    content = torch.load(max(Path("runs").rglob("last.ckpt")), weights_only=True)
    next(iter(content["optimizer_states"][0]["state"].values()))["exp_avg"] = torch.zeros(3)
    torch.save(content, tmp_path / "other.ckpt")
    for option in ("--ckpt_path=other.ckpt", "--init_from=other.ckpt"):
        with pytest.raises(SystemExit) as stop:
            main(options(image_folder, "more", "--data.num_workers=0", option))
        assert re.search(r"exp_avg of encoder\.\S+ is \(3,\), the parameter is ", str(stop.value.code)), stop.value.code


# ---------------------------------------------------------------------- with other settings than before


def schedules(name: str) -> dict[tuple[int, int], tuple[float, float]]:
    """Learning rate and momentum by epoch and batch, of the latest run."""
    path = max(Path("runs", name).rglob("train.csv"))
    with path.open() as file:
        return {
            (int(row["epoch"]), int(row["itr"])): (float(row["lr"]), float(row["momentum"]))
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--data.batch_size=8", "--trainer.max_epochs=4"], r"batch size 8 \(was 4\), epochs 4 \(was 2\).* 50%"),
        (["--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=4"], "accumulated batches 2 .* 50%"),
        (["--trainer.max_epochs=4"], r"epochs 4 \(was 2\).* 50% of the training, step 17 of 32"),
    ],
)
def test_other_batches_and_epochs_go_on_at_the_same_fraction_of_the_schedules(
    changed: list[str], says: str, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = options(image_folder, "parts", "--data.num_workers=0", "--model.lr.warmup_epochs=0")
    main([*short, "--trainer.max_epochs=2"])
    with caplog.at_level("INFO"):
        main([*short, "--ckpt_path=last.ckpt", *changed])
    assert len(re.findall(f"resumed with .*{says}", caplog.text)) == 1
    parts = schedules("parts")
    main([*options(image_folder, "whole", *short[-2:]), *changed])  # from the start with these settings
    whole = schedules("whole")
    assert {epoch for epoch, _ in parts} == {1, 2, 3, 4}
    for place in (place for place in parts if place[0] > 2):
        assert parts[place] == pytest.approx(whole[place]), place


def test_a_change_in_the_middle_of_an_epoch_leaves_out_what_was_seen_and_stays_after_another_resume(
    image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = options(image_folder, "parts", "--data.num_workers=0", "--model.lr.warmup_epochs=0")
    with pytest.raises(SystemExit):
        main([*short, "--trainer.callbacks+=killer.Stop", "--trainer.callbacks.step=13"])  # saved in step 12 of 24
    larger = [*short, "--data.batch_size=8", "--ckpt_path=last.ckpt"]
    with pytest.raises(SystemExit), caplog.at_level("INFO"):
        main([*larger, "--trainer.callbacks+=killer.Stop", "--trainer.callbacks.step=16"])
    assert "50% of the training, step 7 of 12" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        main(larger)
    assert "resumed with" not in caplog.text
    parts = schedules("parts")
    main([*options(image_folder, "whole", *short[-2:]), "--data.batch_size=8"])
    whole = schedules("whole")
    behind = [(epoch, itr) for epoch, itr in parts if epoch < 2 or (epoch == 2 and itr < 2)]
    assert [place for place in parts if place not in behind and place[0] == 2][:2] == [(2, 2), (2, 3)]
    for place in parts.keys() & {(2, 2), (2, 3), *((3, itr) for itr in range(4))}:
        assert parts[place] == pytest.approx(whole[place]), place
    assert (3, 3) in parts
