from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.cli import main
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.evaluation import read
from jepa_lightning.loading import build
from jepa_lightning.weights.ours import CONFIG_KEY

SCRIPT = Path(__file__).parent / "distributed_run.py"
LOSSES = Path(__file__).parent / "distributed_losses.py"
pytestmark = pytest.mark.xdist_group("distributed")  # so that one worker runs each pair once (--dist loadgroup)
METHODS = ("ijepa", "cjepa", "ijepa_sigreg", "energy", "muon", "lejepa", "saccade", "vjepa")
SHARDED = ("ijepa", "energy", "muon", "lejepa", "saccade")  # Muon puts matrices together, LeJEPA has BatchNorm
# The projector's BatchNorm takes the bias before it away. Its gradient is rounding noise, which Adam makes as large as
# any other.
NOISE = {"lejepa": ("encoder.norm.bias", "projector.layers.1.running_mean")}


def run(devices: int, strategy: str, out: Path, images: Path) -> dict[str, list[dict[str, Any]]]:
    """What each process saw, by method."""
    methods = SHARDED if strategy == "fsdp2" else METHODS
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(devices), strategy, str(out), str(images), *methods]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: [torch.load(out / f"{strategy}-{name}-{rank}.pt") for rank in range(devices)] for name in methods}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("seen")
    return cache(lambda devices, strategy: run(devices, strategy, folder, image_folder))


@pytest.mark.parametrize(
    ("strategy", "method"),
    [*[("ddp", method) for method in METHODS], *[("fsdp2", method) for method in SHARDED]],
)
def test_two_processes_equal_one_on_the_concatenated_batch(
    strategy: str, method: str, seen: Callable[..., Any]
) -> None:
    expected = seen(1, "auto")[method][0]
    first, second = seen(2, strategy)[method]
    for together in (first, second):
        assert together["losses"] == pytest.approx(expected["losses"], abs=1e-6)
        for step, gradients in enumerate(together["gradients"]):
            assert gradients.keys() == expected["gradients"][step].keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, expected["gradients"][step][name], atol=1e-6, rtol=1e-4)
    for name, tensor in first["state"].items():  # the EMA of the target encoder is among them
        if name not in NOISE.get(method, ()):
            torch.testing.assert_close(tensor, expected["state"][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2"])
def test_a_checkpoint_written_when_a_batch_ends_holds_the_update_of_that_step(
    strategy: str, seen: Callable[..., Any]
) -> None:
    for method in ("ijepa", "saccade"):  # saccade has BatchNorm, whose statistics are averaged too
        for process in seen(1 if strategy == "auto" else 2, strategy)[method]:
            assert process["saved"].keys() == process["state"].keys()
            for name, tensor in process["state"].items():
                assert torch.equal(process["saved"][name], tensor), name


@pytest.mark.parametrize(
    ("strategy", "method"), [*[("ddp", m) for m in ("ijepa", "energy", "vjepa")], ("fsdp2", "ijepa")]
)
def test_the_loss_on_held_out_data_is_the_mean_over_samples_also_where_processes_have_different_numbers(
    strategy: str, method: str, seen: Callable[..., Any]
) -> None:
    expected = seen(1, "auto")[method][0]["val/loss"]
    assert [process["val/loss"] for process in seen(2, strategy)[method]] == pytest.approx([expected] * 2, rel=1e-5)


def test_terms_of_the_whole_batch_are_in_two_processes_what_they_are_in_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(LOSSES), str(tmp_path)]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    alone, *together = (torch.load(tmp_path / f"{name}.pt") for name in ("alone", 0, 1))
    for found in together:
        for split in ("even", "uneven"):
            for name in found[split]:
                expected = alone[name]
                assert expected["gradients"], name
                if name != "ijepa":  # whose value is the mean over processes
                    assert found[split][name]["value"].item() == pytest.approx(expected["value"].item(), rel=1e-5)
                for part in ("gradients", "buffers"):
                    for a, b in zip(found[split][name][part], expected[part], strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_processes_draw_different_samples_and_masks(seen: Callable[..., Any]) -> None:
    first, second = seen(2, "ddp")["ijepa"]
    assert not set(first["index"].tolist()) & set(second["index"].tolist())
    assert first["masks"].shape != second["masks"].shape or not torch.equal(first["masks"], second["masks"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_command_line_trains_in_two_processes_and_its_checkpoint_goes_on_in_one(
    strategy: str, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "fit", "--config=ijepa.yaml", f"--data.root={image_folder}", "--model.encoder.img_size=32",
        "--model.encoder.embed_dim=32", "--model.encoder.depth=1", "--model.encoder.num_heads=2",
        "--model.predictor.embed_dim=16", "--model.predictor.depth=1", "--data.masks.min_keep=1",
        "--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu", "--model.lr.warmup_epochs=1",
    ]  # fmt: skip

    pair = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "jepa_lightning", *arguments, *pair]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("linear probe top-1") == 1  # one process tells
    run = Path("runs/ijepa/version_0")
    left = {path.name for path in run.iterdir()}
    assert {"validation.json", "train.csv", "train_r1.csv", "checkpoints", "pictures"} <= left
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 4  # 34 images, 17 a process, 4 a batch
    main([*arguments, "--trainer.devices=1", "--trainer.max_epochs=2", f"--ckpt_path={last}"])
    again = torch.load("runs/ijepa/version_1/checkpoints/last.ckpt", weights_only=True)
    assert again["global_step"] == 4 + 8


# ---------------------------------------------------------------------- the attentive probe


def encoder_file(path: Path) -> str:
    """A pretrained encoder of clips as `jepa fit` leaves it."""
    rate = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.5}}
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_std": None}
    clips, narrow = {"num_frames": 4, "tubelet_size": 2}, {"embed_dim": 12, "depth": 1, "num_heads": 2}
    networks = {
        "encoder": {"class_path": "jepa_lightning.VisionTransformer", "init_args": {**sizes, **clips}},
        "predictor": {"class_path": "jepa_lightning.Predictor", "init_args": narrow},
    }
    arguments = {**networks, **dict.fromkeys(("lr", "weight_decay", "momentum"), rate)}
    config = {"class_path": "jepa_lightning.VJEPA", "init_args": arguments}
    content = {"state_dict": build(config).state_dict(), CONFIG_KEY: yaml.safe_dump({"model": config})}
    AtomicCheckpointIO().save_checkpoint(content, path)
    return str(path)


def probe_run(devices: int, strategies: list[str], out: Path, encoder: str) -> dict[str, list[dict[str, Any]]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    script = SCRIPT.with_name("distributed_probe.py")
    command = [sys.executable, str(script), str(devices), str(out), encoder, *strategies]
    result = subprocess.run(command, cwd=out, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    # once for fit and once for validate, in one process
    assert result.stdout.count("best in validation") == 2 * len(strategies)
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(devices)] for name in strategies}


def test_heads_trained_in_two_processes_are_those_of_one_and_their_accuracy_is_exact(tmp_path: Path) -> None:
    encoder = encoder_file(tmp_path / "encoder.ckpt")
    (alone,) = probe_run(1, ["auto"], tmp_path, encoder)["auto"]
    heads = torch.load(tmp_path / "auto.ckpt", weights_only=True)["state_dict"]
    assert alone["fit"]["val/top1"] * 5 == pytest.approx(round(float(alone["fit"]["val/top1"]) * 5))  # of 7 videos
    for strategy, pair in probe_run(2, ["ddp", "fsdp2"], tmp_path, encoder).items():
        for together in pair:
            assert together["losses"] == pytest.approx(alone["losses"], abs=1e-6)
            for stage in ("fit", "validate"):  # in validate heads come from the file
                names = [name for name in alone[stage] if name.startswith("val")]
                assert len(names) == 3
                assert {name: float(together[stage][name]) for name in names} == pytest.approx(
                    {name: float(alone[stage][name]) for name in names}, abs=1e-6
                )
        state = torch.load(tmp_path / f"{strategy}.ckpt", weights_only=True)["state_dict"]
        assert state.keys() == heads.keys()
        for name, tensor in heads.items():
            if name.startswith("heads."):
                torch.testing.assert_close(state[name], tensor, rtol=0, atol=2e-5)


def test_the_command_line_trains_heads_on_videos_in_two_processes_and_goes_on_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder_file(tmp_path / "encoder.ckpt")
    for number in range(13):  # eight to train on, five to validate on
        path = tmp_path / "videos" / ("train" if number < 8 else "val") / f"class{number % 2}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = np.full((10, 24, 40, 3), 20 * number % 250, np.uint8)
        write_video(path, frames, fps=8)
    arguments = [
        "--config=attentive_probe.yaml", "--model.checkpoint=encoder.ckpt", "--data.source=null", "--data.root=videos",
        "--data.batch_size=2", "--data.num_workers=0", "--data.clips.num_clips=2", "--data.inputs.views=2",
        "--model.num_heads=2", "--model.attend_across_clips=true", "--trainer.accelerator=cpu",
    ]  # fmt: skip

    def jepa(*more: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "jepa_lightning", "fit", *arguments, *more]
        result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr[-3000:]
        assert result.stdout.count("best in validation") == 1

    def top1(version: int) -> list[float]:
        heads = read(tmp_path / f"runs/attentive_probe/version_{version}/heads_validation.json").heads
        return [head.mean for head in heads]

    jepa("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1")
    last = "--ckpt_path=runs/attentive_probe/version_0/checkpoints/last.ckpt"
    assert torch.load(last.split("=")[1], weights_only=True)["global_step"] == 2  # 8 videos, 4 a process, 2 a batch
    main(["validate", *arguments, "--trainer.devices=1", last])
    assert top1(1) == top1(0)
    assert all(5 * share == pytest.approx(round(5 * share)) for share in top1(0))
    main(["fit", *arguments, "--trainer.devices=1", "--trainer.max_epochs=2", last])
    again = tmp_path / "runs/attentive_probe/version_2/checkpoints/last.ckpt"
    assert torch.load(again, weights_only=True)["global_step"] == 2 + 4
