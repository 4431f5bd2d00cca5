from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent / "distributed_run.py"


def run(devices: int, strategy: str, method: str, out: Path, images: Path) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(devices), strategy, method, str(out), str(images)]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(out / f"{strategy}-{rank}.pt") for rank in range(devices)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {method: run(1, "auto", method, folder, image_folder)[0] for method in ("ijepa", "vjepa")}


@pytest.mark.parametrize(("method", "strategy"), [("ijepa", "ddp"), ("ijepa", "fsdp2"), ("vjepa", "ddp")])
def test_two_processes_equal_one_on_the_concatenated_batch(
    method: str, strategy: str, alone: dict[str, Any], tmp_path: Path, image_folder: Path
) -> None:
    alone = alone[method]
    first, second = run(2, strategy, method, tmp_path, image_folder)
    for together in (first, second):
        assert together["losses"] == pytest.approx(alone["losses"], abs=1e-6)
        for step, gradients in enumerate(together["gradients"]):
            assert gradients.keys() == alone["gradients"][step].keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, alone["gradients"][step][name], atol=1e-6, rtol=1e-4)
    for name, tensor in first["state"].items():  # the EMA of the target encoder is among them
        torch.testing.assert_close(tensor, alone["state"][name], atol=2e-6, rtol=1e-4)


def test_processes_draw_different_samples_and_masks(tmp_path: Path, image_folder: Path) -> None:
    first, second = run(2, "ddp", "ijepa", tmp_path, image_folder)
    assert not set(first["index"].tolist()) & set(second["index"].tolist())
    assert first["masks"].shape != second["masks"].shape or not torch.equal(first["masks"], second["masks"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_command_line_trains_in_two_processes_and_its_checkpoint_goes_on_in_one(
    strategy: str, tmp_path: Path, image_folder: Path
) -> None:
    arguments = [
        "fit", "--config=ijepa.yaml", f"--data.root={image_folder}", "--model.encoder.img_size=32",
        "--model.encoder.embed_dim=32", "--model.encoder.depth=1", "--model.encoder.num_heads=2",
        "--model.predictor.embed_dim=16", "--model.predictor.depth=1", "--data.masks.min_keep=1",
        "--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu", "--model.lr.warmup_epochs=1",
    ]  # fmt: skip

    def jepa(*more: str) -> str:
        command = [sys.executable, "-m", "jepa_lightning", *arguments, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=200
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    shown = jepa("--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_epochs=1")
    assert shown.count("linear probe top-1") == 1  # one process tells
    run = tmp_path / "runs" / "ijepa" / "version_0"
    left = {path.name for path in run.iterdir()}
    assert {"validation.json", "train.csv", "train_r1.csv", "checkpoints", "pictures"} <= left
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4  # 34 images, 17 a process, 4 a batch
    jepa("--trainer.devices=1", "--trainer.max_epochs=2", f"--ckpt_path={last}")
    again = torch.load(tmp_path / "runs" / "ijepa" / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert again["global_step"] == 4 + 8
