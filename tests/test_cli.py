"""The command line as a person uses it, in the process of the test wherever that is possible."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jepa_lightning as jl
from jepa_lightning.cli import main
from jepa_lightning.evaluation import logged, read

TINY = [
    "--config=ijepa.yaml", "--model.encoder.img_size=32", "--model.encoder.embed_dim=32", "--model.encoder.depth=1",
    "--model.encoder.num_heads=2", "--model.predictor.embed_dim=16", "--model.predictor.depth=1",
    "--data.masks.min_keep=1", "--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=2",
    "--model.lr.warmup_epochs=1", "--trainer.log_every_n_steps=1", "--monitor.flush_every_n_steps=3",
    "--maps.count=0",
]  # fmt: skip

PROBE = [
    "--config=attentive_probe.yaml", "--data=ImageDataModule", "--data.masks=null", "--data.batch_size=4",
    "--data.num_workers=0", "--trainer.max_epochs=2", "--model.num_heads=4", "--trainer.log_every_n_steps=1",
    "--model.lr=[1e-3,1e-2,1e-1]", "--model.weight_decay=[0.01]",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def failing(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What stands in the last line when this fails; SystemExit's own text is printed by the interpreter."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code not in (0, None)
    shown = capfd.readouterr().err
    return str(stop.value.code) if isinstance(stop.value.code, str) else last_line(shown)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> tuple[Path, str]:
    """The folder and the output of one run, shared by the tests that look at it."""
    folder, output = tmp_path_factory.mktemp("run"), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(folder)
        main(["fit", *TINY, f"--data.root={image_folder}"])
    return folder, output.getvalue()


@pytest.fixture
def run(finished_run: tuple[Path, str]) -> str:
    """A copy of it in this folder."""
    shutil.copytree(finished_run[0], Path.cwd(), dirs_exist_ok=True)
    return finished_run[1]


def scores_in(folder: Path) -> dict[str, dict[str, float]]:
    """What the probe found, by encoder and log name."""
    results = read(folder / "validation.json").results
    encoders = dict.fromkeys(result.encoder for result in results)
    return {name: logged([result for result in results if result.encoder == name]) for name in encoders}


def test_fit_leaves_everything_that_a_person_looks_for(run: str, image_folder: Path) -> None:
    folder = Path("runs/ijepa/version_0")
    assert "random initialisation  trained" in run
    assert "linear probe top-1 (%)" in run
    assert f"{image_folder.name} (Folder), validation split, n = " in run
    scores = scores_in(folder)
    assert list(scores) == ["random initialisation", "trained"]
    assert set(scores["trained"]) == {"linear_top1", "knn_top1", "rankme"}
    assert (folder / "validation.md").is_file()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["class_path"].endswith("IJEPA")
    assert len(list((folder / "pictures").glob("step_*.png"))) == 1


def test_the_csv_has_the_columns_of_the_official_code(run: str) -> None:
    with Path("runs/ijepa/version_0/train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["epoch", "itr", "loss", "mask-A", "mask-B", "time (ms)"]
    assert len(rows) == 16
    assert [row["epoch"] for row in rows] == ["1"] * 8 + ["2"] * 8
    assert [row["itr"] for row in rows] == [str(i) for i in range(8)] * 2
    last = {name: float(value) for name, value in rows[-1].items()}
    assert last["lr"] == pytest.approx(1e-6)
    assert last["weight decay"] == pytest.approx(0.04)
    assert 0 < last["grad min"] <= last["grad first qkv"] <= last["grad max"]
    assert last["mask-A"] >= 1
    assert last["mask-B"] >= 1


def test_tensorboard_has_curves_pictures_and_the_configuration(run: str) -> None:
    events = EventAccumulator("runs/ijepa/version_0").Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "train/loss", "train/explained_variance", "train/context_std", "train/target_std", "train/context_tokens",
        "train/target_tokens", "train/images_per_s", "schedule/lr", "schedule/weight_decay", "schedule/momentum",
        "val/loss", "val/linear_top1", "val/knn_top1", "val/rankme", "init/linear_top1", "init/knn_top1", "init/rankme",
    }  # fmt: skip
    assert set(events.Tags()["images"]) == {"masks and features", "mask coverage"}
    assert "config/text_summary" in events.Tags()["tensors"]
    assert len(events.Scalars("train/loss")) == 16


def test_a_checkpoint_rebuilds_its_module(run: str, image_folder: Path) -> None:
    path = Path("runs/ijepa/version_0/checkpoints/last.ckpt")
    module = jl.load(path)
    assert type(module) is jl.IJEPA
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())
    assert module.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 32)


def test_validate_and_test_repeat_the_numbers_of_the_training(
    run: str, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = scores_in(Path("runs/ijepa/version_0"))
    main(["validate", *TINY, f"--data.root={image_folder}", "--ckpt_path=last.ckpt"])
    assert "linear probe top-1 (%)" in capfd.readouterr().out
    folder = Path("runs/ijepa/version_1")
    assert scores_in(folder) == {
        name: pytest.approx(values, abs=1e-6) for name, values in trained.items()
    }  # also the baseline: built from the seed, not read from the checkpoint
    assert read(folder / "validation.json").about["checkpoint"].endswith("last.ckpt")
    assert "no test split" in failing(["test", *TINY, f"--data.root={image_folder}", "--ckpt_path=last.ckpt"], capfd)


def test_predict_writes_features_with_names(run: str, image_folder: Path) -> None:
    main(
        [
            "predict",
            *TINY,
            f"--data.root={image_folder}",
            "--ckpt_path=last.ckpt",
            "--features.output=out/f.safetensors",
        ]
    )
    with safe_open("out/f.safetensors", "pt") as file:
        names = json.loads(file.metadata()["names"])
        features, labels = file.get_tensor("features"), file.get_tensor("labels")
    assert features.shape == (38, 32)
    assert names == sorted(p.relative_to(image_folder).as_posix() for p in image_folder.rglob("*.jpg"))
    assert len(labels) == 38
    module = jl.load("runs/ijepa/version_0/checkpoints/last.ckpt")
    data = jl.data.ImageDataModule(root=str(image_folder), img_size=32, patch_size=8)
    image = data.normalize(data.dataset("all", augment=False)[5].inputs.unsqueeze(0))
    torch.testing.assert_close(features[5], module.encode(image).mean(dim=1)[0], atol=1e-5, rtol=1e-4)


def test_a_damaged_file_costs_predict_one_row(run: str, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    shutil.copytree(image_folder, root)
    damaged = sorted(root.rglob("*.jpg"))[7]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"cannot decode .*{damaged.name}"):
        main(["predict", *TINY, f"--data.root={root}", "--ckpt_path=last.ckpt", "--features.output=f.safetensors"])
    with safe_open("f.safetensors", "pt") as file:
        assert file.get_tensor("features").shape == (37, 32)
        assert damaged.relative_to(root).as_posix() not in json.loads(file.metadata()["names"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nothing.yaml"], "no such config: nothing.yaml; shipped are attentive_probe.yaml, cjepa.yaml"),
        (["--config=broken.yaml"], "broken.yaml, line 2 is no valid YAML"),
        ([*TINY, "--model.encoder.depht=3"], "VisionTransformer has no option 'depht'; did you mean 'depth'?"),
        (
            [*TINY, "--config=typo.yaml"],
            "does not accept option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?",
        ),
        ([*TINY, "--trainer.max_epochz=3"], "did you mean 'trainer.max_epochs'?"),
        ([*TINY, "--trainer.devices=9999"], "trainer.devices 9999: use 1 to "),
        ([*TINY, "--model.encoder.depth=deep"], "model.encoder.depth: Expected a <class 'int'>. Got value: deep"),
        ([*TINY, "--model.encoder=ViT"], "model.encoder: no class is called 'ViT'"),
        ([*TINY, "--model.encoder.img_size=33"], "a 33x33 image cannot be cut into 8x8 patches"),
        ([*TINY, "--model.encoder.num_heads=5"], "embed_dim 32 is not divisible by num_heads 5"),
        ([*TINY, "--model.encoder.patch_size=0"], "patch_size 0: use at least 1"),
        ([*TINY, "--model.encoder.num_heads=0"], "num_heads 0: use at least 1"),
        ([*TINY, "--model.encoder.img_size=-32"], "img_size -32: use at least 1"),
        ([*TINY, "--model.encoder.depth=0"], "depth 0: use at least 1"),
        ([*TINY, "--model.lr.peak=-1"], "lr.peak -1.0: use at least 0"),
        ([*TINY, "--model.momentum.start=2"], "momentum.start 2.0: use 0.0 to 1.0"),
        ([*TINY, "--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches 0: use at least 1"),
        (["--config=nothing_in_it.yaml"], "--config nothing_in_it.yaml is empty"),
        (["--config=empty"], "--config empty is a folder"),
        ([*TINY, "--data.root=nowhere"], "no such folder: nowhere"),
        ([*TINY, "--data.root=empty"], "no image files in empty"),
        ([*TINY, "--data.masks.min_keep=10", "--data.root=images"], "lower min_keep to"),
        ([*TINY, "--ckpt_path=absent.ckpt"], "no such checkpoint: absent.ckpt"),
        ([*TINY, "--ckpt_path=typo.yaml"], "typo.yaml is not a PyTorch checkpoint"),
        ([*TINY, "--trainer.max_epochs=-1", "--data.root=images"], "set --trainer.max_epochs or --trainer.max_steps"),
    ],
)
def test_mistakes_end_in_the_line_that_matters(
    arguments: list[str], message: str, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text("model: {class_path: IJEPA\n")
    Path("typo.yaml").write_text("trainer: {max_epoch: 3}\n")
    Path("nothing_in_it.yaml").touch()
    Path("empty").mkdir()
    Path("images").symlink_to(image_folder)
    assert message in failing(["fit", *arguments], capfd)


def test_a_shipped_config_is_found_from_any_folder_and_prints(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "papers/ijepa_in1k_vith14.yaml", "--model.predictor.depth", "3", "--print_config"])
    config = yaml.safe_load(capfd.readouterr().out)
    assert config["model"]["init_args"]["encoder"]["init_args"]["embed_dim"] == 1280
    assert config["model"]["init_args"]["predictor"]["init_args"]["depth"] == 3


def test_help_is_a_page_with_our_words(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capfd.readouterr().out
    assert text.startswith("usage: jepa fit --config NAME_OR_FILE [--option VALUE ...]\n")
    assert "Neighbours that vote" in text
    with pytest.raises(SystemExit):
        main(["fit", "--model.help=IJEPA"])
    assert "Momentum of the target encoder by optimizer step" in capfd.readouterr().out


def test_the_module_runs_like_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jepa_lightning", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"jepa {jl.__version__}"


def test_hyper_parameters_in_a_checkpoint_do_not_overrule_the_command_line(run: str, image_folder: Path) -> None:
    main(["fit", *TINY, f"--data.root={image_folder}", "--ckpt_path=last.ckpt", "--trainer.max_epochs=3",
          "--model.lr.peak=7e-4"])  # fmt: skip
    config = yaml.safe_load(Path("runs/ijepa/version_1/config.yaml").read_text())
    assert config["model"]["init_args"]["lr"]["init_args"]["peak"] == 7e-4
    assert config["trainer"]["max_epochs"] == 3


def test_precision_suits_the_machine_unless_it_is_given(run: str) -> None:
    config = yaml.safe_load(Path("runs/ijepa/version_0/config.yaml").read_text())
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    assert config["trainer"]["precision"] == ("bf16-mixed" if bf16 else "32-true")


def test_a_full_disk_keeps_the_checkpoint_that_was_there(
    run: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = Path("runs/ijepa/version_0/checkpoints/last.ckpt").resolve()
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    message = failing(
        ["fit", *TINY, f"--data.root={image_folder}", f"--ckpt_path={path}", "--trainer.max_epochs=3"], capfd
    )
    assert "cannot write the checkpoint" in message
    assert "No space left on device" in message
    assert path.read_bytes() == before
    assert not list(Path("runs").rglob("*.part"))


def test_the_logger_of_a_config_is_tensorboard_in_runs(run: str) -> None:
    assert TensorBoardLogger.__name__ in Path("runs/ijepa/version_0/config.yaml").read_text()


@pytest.mark.parametrize("option", ["--trainer.enable_progress_bar=false", "--trainer.fast_dev_run=true"])
def test_lightning_options_that_forbid_observers_work(option: str, image_folder: Path) -> None:
    main(["fit", *TINY, f"--data.root={image_folder}", "--probe.every_n_epochs=0", option])
    assert any(Path.cwd().rglob("last.ckpt")) == ("fast_dev_run" not in option)


def test_images_without_labels_are_probed_for_rank_alone(
    image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(image_folder.rglob("*.jpg"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.jpg")
    with pytest.warns(UserWarning, match="no labels"):
        main(["fit", *TINY, "--data.root=flat"])
    assert "RankMe" in capfd.readouterr().out
    assert not Path("runs/ijepa/version_0/checkpoints/best.ckpt").exists()


# ---------------------------------------------------------------------- the attentive probe


def test_a_probe_is_trained_on_the_newest_pretraining_and_validated(
    run: str, image_folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    few = [*PROBE, f"--data.root={image_folder}"]
    with caplog.at_level("INFO"):
        main(["fit", *few])
    assert "--model.checkpoint last.ckpt: the newest is runs/ijepa/version_0/checkpoints/last.ckpt" in caplog.text
    folder, shown = Path("runs/attentive_probe/version_0"), capfd.readouterr().out
    found = read(folder / "heads_validation.json")
    assert [head.chosen["lr"] for head in found.heads] == [1e-3, 1e-2, 1e-1]
    assert shown.count("best in validation") == 1
    (best,) = found.results
    assert ("of the grid: a" in shown) == (best.chosen["lr"] != 1e-2)  # at an edge of the three learning rates
    assert f"written to {folder / 'heads_validation.json'}" in shown
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    events = EventAccumulator(str(folder)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss_of_best", "schedule/lr_factor", "val/top1"} <= tags
    assert sum(tag.startswith("val_heads/") for tag in tags) == 3
    caplog.clear()
    with caplog.at_level("INFO"):  # by now the probe is the newest run, and neither option confuses the two
        main(["validate", *few, "--ckpt_path=last.ckpt"])
    assert "--model.checkpoint last.ckpt: the newest is runs/ijepa/version_0/" in caplog.text
    assert "--ckpt_path last.ckpt: the newest is runs/attentive_probe/version_0/" in caplog.text
    assert "top-1" in capfd.readouterr().out
    again = read(Path("runs/attentive_probe/version_1/heads_validation.json"))
    assert (again.heads, again.results) == (found.heads, found.results)
    assert again.about["checkpoint"].endswith("attentive_probe/version_0/checkpoints/last.ckpt")
    assert again.about["encoder"].endswith("ijepa/version_0/checkpoints/last.ckpt")


def test_a_probe_is_not_read_with_the_encoder_of_another_pretraining(
    run: str, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = [*PROBE, f"--data.root={image_folder}", "--trainer.max_epochs=1"]
    main(["fit", *few])
    main(["fit", *TINY, f"--data.root={image_folder}", "--trainer.max_epochs=1", "--seed_everything=5"])
    message = failing(["validate", *few, "--ckpt_path=last.ckpt"], capfd)
    assert "not trained on the encoder of runs/ijepa/version_1/checkpoints/last.ckpt" in message
    assert message.endswith("--model.checkpoint runs/ijepa/version_0/checkpoints/last.ckpt")
    capfd.readouterr()
    main(["validate", *few, "--ckpt_path=last.ckpt", f"--model.checkpoint={message.split()[-1]}"])
    assert "best in validation" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.checkpoint=nowhere/a.ckpt"],
            "no such checkpoint: nowhere/a.ckpt; --model.checkpoint takes the path",
        ),
        (["--model.checkpoint=absent.ckpt"], "the runs below runs, which have best.ckpt, last.ckpt"),
        (["--model.checkpoint=text.ckpt"], "text.ckpt is not a PyTorch checkpoint that can be read safely"),
        (["--model.num_heads=5"], "embed_dim 32 is not divisible by num_heads 5 of the probe: set num_heads to a"),
        (["--data.root=flat"], "labels of two classes or more, the data have 0: sort the files into a folder for each"),
        (["--ckpt_path=last.ckpt"], "none of the 1 runs below runs that have one is of the right kind"),
        (["--model.lr=[]"], "lr [] and weight_decay [0.01] make no head"),
    ],
)
def test_mistakes_with_a_probe_end_in_the_line_that_matters(
    run: str, arguments: list[str], message: str, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("flat").mkdir()
    for path in image_folder.rglob("*.jpg"):
        shutil.copy(path, "flat")
    Path("text.ckpt").write_text("hello")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the images have no labels")
        shown = failing(["fit", *PROBE, f"--data.root={image_folder}", *arguments], capfd)
    assert message in shown
