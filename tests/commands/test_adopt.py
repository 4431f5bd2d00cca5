"""Checkpoints of others on the command line, wherever one of ours may be given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from safetensors.torch import load_file

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.commands.adopt import adopt
from jepa_lightning.data import ImageDataModule, PretrainTransform
from jepa_lightning.data.preprocess import Preprocess
from jepa_lightning.evaluation import logged, read
from jepa_lightning.export.huggingface import HuggingFace
from jepa_lightning.export.source import Source
from jepa_lightning.loading import build
from jepa_lightning.models.pooling import AttentiveClassifier
from jepa_lightning.preprocessing import Preprocessing
from jepa_lightning.weights import Networks, Unreadable

SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 192, "depth": 1, "num_heads": 3}  # a published width
TINY = [
    "--config=ijepa.yaml", "--data.masks.min_keep=1", "--data.masks.target_scale=[0.2, 0.3]", "--data.batch_size=4",
    "--data.num_workers=0",
    *(f"--model.encoder.{name}={value}" for name, value in SIZES.items()), "--model.encoder.mlp_ratio=0.5",
    "--model.predictor.embed_dim=12", "--model.predictor.depth=1", "--model.predictor.num_heads=3",
    "--model.predictor.mlp_ratio=0.5", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=1",
    "--pictures.every_n_epochs=0", "--probe.every_n_epochs=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def networks(image_source: Any) -> Networks:
    found: Networks = image_source(True, **{**SIZES, "mlp_ratio": 0.5}).networks
    return found


@pytest.fixture
def folder(networks: Networks) -> str:
    Path("model").mkdir()
    HuggingFace().write(
        Source(Path("a.ckpt"), networks._replace(predictor=None), "All rights reserved."), Path("model")
    )
    return "model"


@pytest.fixture
def meta(networks: Networks) -> str:
    state = {f"module.{name}": tensor for name, tensor in networks.encoder.state_dict().items()}
    predictor = {f"module.{k}": v for k, v in networks.predictor.state_dict().items()}  # type: ignore[union-attr]
    torch.save({"encoder": state, "target_encoder": state, "predictor": predictor, "epoch": 3}, "meta.pth.tar")
    return "meta.pth.tar"


def failing(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return str(stop.value.code)


def test_validate_probes_the_encoder_of_a_file_of_metas(
    meta: str, image_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "validate",
            "--config=ijepa.yaml",
            "--data.num_workers=0",
            f"--data.root={image_folder}",
            f"--ckpt_path={meta}",
        ]
    )
    assert "linear probe top-1 (%)" in capfd.readouterr().out
    written = read(Path("runs/ijepa/version_0/validation.json"))
    assert {result.encoder for result in written.results} == {meta}
    assert set(logged(written.results)) == {"linear_top1", "knn_top1", "rankme"}
    config = yaml.safe_load(Path("runs/ijepa/version_0/config.yaml").read_text())
    assert config["model"]["class_path"].endswith("PretrainedEncoder")
    assert config["model"]["init_args"]["checkpoint"] == meta


def test_predict_writes_the_features_of_the_encoder_of_a_folder(folder: str, image_folder: Path) -> None:
    options = [
        "--config=ijepa.yaml",
        "--data.num_workers=0",
        f"--data.root={image_folder}",
        "--features.output=f.safetensors",
    ]
    main(["predict", *options, f"--ckpt_path={folder}", "--maps.count=0"])
    found = load_file("f.safetensors")
    encoder = jl.load_encoder(folder)
    names = sorted(image_folder.rglob("*.jpg"))
    expected = torch.stack([encoder.preprocess(name) for name in names[:3]])
    torch.testing.assert_close(found["features"][:3], encoder(expected).mean(dim=1), rtol=1e-4, atol=1e-5)
    assert len(found["features"]) == len(names)


def test_a_new_training_starts_from_an_encoder_alone(
    folder: str, image_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [*TINY, f"--data.root={image_folder}", "--trainer.max_steps=1", "--model.lr.peak=0", "--model.lr.start=0"]
    with caplog.at_level("INFO"):
        main(["fit", *options, "--model.lr.final=0", "--model.init_from", folder])
    assert (
        "--init_from model has one encoder; both encoders start from it; freshly initialised: predictor" in caplog.text
    )
    encoder = jl.load_encoder("runs/ijepa/version_0/checkpoints/last.ckpt")
    for name, tensor in jl.load_encoder(folder).state_dict().items():
        torch.testing.assert_close(encoder.state_dict()[name], tensor, rtol=0, atol=1e-6)


def test_an_encoder_prepares_pictures_as_the_evaluation_of_its_training_did(image_folder: Path) -> None:
    options = [*TINY, f"--data.root={image_folder}", "--data.transform.crop_pct=1", "--trainer.max_steps=1"]
    main(["fit", *options])
    encoder = jl.load_encoder("runs/ijepa/version_0/checkpoints/last.ckpt")
    data = ImageDataModule(root=str(image_folder), img_size=32, transform=partial(PretrainTransform, crop_pct=1.0))
    name = next(image_folder.rglob("*.jpg"))
    seen = data.dataset("all", augment=False)
    names = [Path(seen.images.name(i)).name for i in range(len(seen))]
    expected = encoder.normalize(seen[names.index(name.name)].inputs)
    torch.testing.assert_close(encoder.preprocess(name), expected)
    cut = Preprocess(Preprocessing((32, 32)))(name)
    assert not torch.equal(cut, expected)


def test_fit_goes_on_with_a_training_of_metas(
    image_folder: Path, as_meta_writes_it: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    options = [*TINY, f"--data.root={image_folder}", "--model.optimizer=null"]  # AdamW, as the file's
    with pytest.raises(SystemExit):
        main(["fit", *options, "--print_config"])
    module: Any = build(yaml.safe_load(capfd.readouterr().out)["model"])
    optimizer = module.configure_optimizers()
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter] = {"step": torch.tensor(8.0)} | {
            name: torch.rand_like(parameter) for name in ("exp_avg", "exp_avg_sq")
        }
    as_meta_writes_it(module, optimizer, Path("meta.pth.tar"), 1)
    main(["fit", *options, "--ckpt_path=meta.pth.tar"])
    content = torch.load("runs/ijepa/version_0/checkpoints/last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (1, 16)
    assert {float(state["step"]) for state in content["optimizer_states"][0]["state"].values()} == {16.0}
    muon = "--model.optimizer=jepa_lightning.muon.Muon"
    assert "to go on with it set --model.optimizer null" in failing("fit", *options, muon, "--ckpt_path=meta.pth.tar")


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_what_cannot_be_done_with_a_checkpoint_is_said_in_one_line(
    command: str, folder: str, meta: str, image_folder: Path
) -> None:
    options = [*TINY, f"--data.root={image_folder}"]
    torch.save({"classifier": AttentiveClassifier(8, 2, 1).state_dict()}, "probe.pt")
    probing = ["--config=attentive_probe.yaml", f"--model.checkpoint={meta}"]
    assert "probe.pt holds attentive probes: give --config attentive_probe.yaml" in failing(
        command, *options, "--ckpt_path=probe.pt"
    )
    assert f"{meta} (checkpoint in Meta's format) holds no heads of a probe: give the encoder as --model." in failing(
        command, *probing, f"--ckpt_path={meta}"
    )
    if command == "fit":
        assert "model (folder in Hugging Face's format) has no training to resume: start a new one" in failing(
            command, *options, f"--ckpt_path={folder}"
        )
        assert "has no training to resume (finished epochs: 3, optimizer steps: None): start a new" in failing(
            command, *options, f"--ckpt_path={meta}"
        )


def section(kind: str, **arguments: Any) -> Namespace:
    model = Namespace(class_path=f"jepa_lightning.methods.{kind}", init_args=Namespace(arguments))
    return Namespace(model=model, ckpt_path="x")


def test_the_model_of_the_file_takes_the_place_of_that_of_the_configuration(meta: str) -> None:
    config = section("IJEPA")
    adopt(config, weights.open(meta), fitting=False)
    assert config.model.class_path == "jepa_lightning.probing.pretrained.PretrainedEncoder"
    assert config.model.init_args.checkpoint == meta
    assert config.ckpt_path is None


def test_heads_that_a_file_does_not_say_are_asked_for_in_the_way_that_works(golden_checkpoint: Path) -> None:
    message = r"give --model PretrainedEncoder --model.checkpoint \S+ --model.overrides.num_heads N in place of --ckpt"
    with pytest.raises(ValueError, match=message):
        adopt(section("IJEPA"), weights.open(golden_checkpoint), fitting=False)


@pytest.mark.parametrize("fitting", [True, False])
def test_of_ours_every_tensor_that_is_used_is_compared_with_its_checksum(
    fitting: bool, save_checkpoint: Callable[..., str], tmp_path: Path
) -> None:
    path = Path(save_checkpoint(tmp_path / "a.ckpt"))
    moments = torch.arange(1000.0) + 0.5
    content = {**torch.load(path, weights_only=True), "optimizer_states": [{"state": {0: {"exp_avg": moments}}}]}
    torch.save(content, path)
    config = section("IJEPA")
    adopt(config, weights.open(path), fitting)
    assert config.ckpt_path == "x"
    raw = bytearray(path.read_bytes())
    raw[raw.index(moments.numpy().tobytes()) + 1001] ^= 16
    path.write_bytes(raw)
    if not fitting:  # the optimizer is not used
        adopt(config, weights.open(path), fitting)
        return
    with pytest.raises(Unreadable, match=r"damaged: the checksum of optimizer_states.0.state.0.exp_avg is wrong"):
        adopt(config, weights.open(path), fitting)
