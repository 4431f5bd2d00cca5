from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer

import jepa_lightning as jl
from jepa_lightning.checkpoint_io import AtomicCheckpointIO
from jepa_lightning.loading import build
from jepa_lightning.weights.ours import CONFIG_KEY

CONFIG: dict[str, Any] = {
    "class_path": "jepa_lightning.IJEPA",
    "init_args": {
        "encoder": {
            "class_path": "jepa_lightning.VisionTransformer",
            "init_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        },
        "predictor": {"class_path": "jepa_lightning.Predictor", "init_args": {"embed_dim": 8, "depth": 1}},
        "lr": {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 1e-3}},
        "weight_decay": {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.0}},
        "momentum": {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.9}},
    },
}
PROBE = "jepa_lightning.methods.AttentiveProbe"  # as older checkpoints name it


def save(path: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    content = {"state_dict": build(CONFIG).state_dict(), CONFIG_KEY: yaml.safe_dump({"model": config or CONFIG})}
    AtomicCheckpointIO().save_checkpoint({**content, **changes}, path)
    return path


def test_a_module_comes_back_with_its_weights_in_eval_mode(tmp_path: Path) -> None:
    path = save(tmp_path / "some" / "folder" / "a.ckpt")
    module = jl.load(path)
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in module.state_dict().items())
    assert not module.training
    assert [file.name for file in path.parent.iterdir()] == ["a.ckpt"]


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*absent.ckpt"):
        jl.load(tmp_path / "absent.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.ckpt is not a PyTorch checkpoint"):
        jl.load(tmp_path / "text.ckpt")
    whole = save(tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.ckpt is not a PyTorch checkpoint"):
        jl.load(tmp_path / "half.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of jepa_lightning"):
        jl.load(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="holds no configuration"):
        jl.load(tmp_path / "plain.ckpt")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harmful()}, "harmful.ckpt")
    with pytest.raises(ValueError, match="can be read safely"):
        jl.load("harmful.ckpt")
    assert not Path("harm").exists()


def test_a_checkpoint_does_not_decide_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {**CONFIG, "init_args": {**CONFIG["init_args"], "encoder": {"class_path": "evil_package.Encoder"}}}
    with pytest.raises(
        ValueError, match=r"encoder is of the class evil_package.Encoder.* nothing was imported. .*--trust evil_package"
    ):
        jl.load(save(tmp_path / "evil.ckpt", config))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build(CONFIG).state_dict()
    del state["encoder.norm.weight"]
    with pytest.raises(ValueError, match=r"a.ckpt: state_dict does not fit: missing encoder.norm.weight"):
        jl.load(save(tmp_path / "a.ckpt", state_dict=state))


# ---------------------------------------------------------------------- encoders


def test_the_encoder_of_ours_is_the_branch_that_was_asked_for_frozen(tmp_path: Path) -> None:
    module: Any = build(CONFIG)
    torch.nn.init.normal_(module.target_encoder.norm.bias)
    path, inputs = save(tmp_path / "a.ckpt", state_dict=module.state_dict()), torch.randn(2, 3, 32, 32)
    for arguments, expected in (
        ((), module.target_encoder),
        (("target",), module.target_encoder),
        (("context",), module.encoder),
    ):
        encoder = jl.load_encoder(path, *arguments)
        assert torch.equal(encoder(inputs), expected(inputs))
        assert not any(p.requires_grad for p in encoder.parameters())
        assert not any(part.training for part in encoder.modules())
        assert (encoder.embed_dim, encoder.img_size) == (16, (32, 32))


@pytest.mark.parametrize(("method", "frames"), [("IJEPA", 1), ("VJEPA", 4)])
def test_the_encoder_of_a_file_in_metas_format(tmp_path: Path, method: str, frames: int) -> None:
    arguments = CONFIG["init_args"]
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 192, "depth": 1, "num_heads": 3}  # a published width
    tubelets = {"num_frames": frames, "tubelet_size": 2} if frames > 1 else {}
    encoder = {**arguments["encoder"], "init_args": {**sizes, **tubelets}}
    predictor = {
        **arguments["predictor"],
        "init_args": {"embed_dim": 12, "depth": 1, "num_mask_tokens": frames // 2 or None},
    }
    module: Any = build(
        {
            "class_path": f"jepa_lightning.{method}",
            "init_args": {**arguments, "encoder": encoder, "predictor": predictor},
        }
    )
    torch.nn.init.normal_(module.target_encoder.norm.bias)
    networks = ("encoder", "predictor", "target_encoder")
    content = {n: {f"module.{k}": v for k, v in module.get_submodule(n).state_dict().items()} for n in networks}
    torch.save({**content, "epoch": 3}, tmp_path / "meta.pth.tar")
    inputs = torch.randn(2, 3, *([frames] if frames > 1 else []), 16, 16)
    for branch, network in (("target", module.target_encoder), ("context", module.encoder)):
        found = jl.load_encoder(tmp_path / "meta.pth.tar", branch)
        torch.testing.assert_close(found(inputs), network(inputs), rtol=0, atol=1e-6)
        assert not any(p.requires_grad for p in found.parameters())
        assert not found.training


@pytest.mark.parametrize("name", ["ijepa_tiny", "vjepa1_tiny", "vjepa2_tiny"])
def test_a_file_of_metas_of_an_unpublished_width_needs_what_cannot_be_given(name: str) -> None:
    path = Path(__file__).parent / "golden" / name / "checkpoint.pt"
    with pytest.raises(ValueError, match=rf"{name}/checkpoint.pt: embed_dim \d+ is no published size: give num_heads="):
        jl.load_encoder(path)


def test_what_has_no_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*absent.ckpt"):
        jl.load_encoder(tmp_path / "absent.ckpt")
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(ValueError, match=r"folder.ckpt is a folder, not a checkpoint: give a file in it"):
        jl.load_encoder(tmp_path / "folder.ckpt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other.pt is a checkpoint of no known format; it holds weights"):
        jl.load_encoder(tmp_path / "other.pt")
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain.ckpt holds no configuration"):
        jl.load_encoder(tmp_path / "plain.ckpt")


def test_the_checkpoint_of_a_probe_is_no_pretraining(tmp_path: Path) -> None:
    arguments = {"checkpoint": str(save(tmp_path / "a.ckpt")), "num_heads": 2}
    config = {"class_path": PROBE, "init_args": arguments}
    probe: Any = jl.AttentiveProbe(**arguments)
    probe.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    probe.trainer.datamodule = jl.data.ImageDataModule(img_size=32, patch_size=8)  # type: ignore[attr-defined]
    probe.configure_model()
    path = save(tmp_path / "probe.ckpt", config, state_dict=probe.state_dict())
    assert type(jl.load(path)) is type(probe)
    with pytest.raises(ValueError, match=r"probe.ckpt holds AttentiveProbe, which has no encoder of its own: give the"):
        jl.load_encoder(path)
    (tmp_path / "a.ckpt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"probe.ckpt needs the encoder .*/a.ckpt is neither .*load\(path, checkpoint=\.\.\.\)$"
    ):
        jl.load(path)


def test_a_fine_tuned_encoder_is_read_as_any_other(tmp_path: Path) -> None:
    schedule = {"class_path": "jepa_lightning.schedules.Constant", "init_args": {"value": 0.1}}
    arguments = {"checkpoint": str(save(tmp_path / "a.ckpt")), "lr": schedule}
    config = {"class_path": "jepa_lightning.probing.FineTune", "init_args": arguments}
    module: Any = build(config)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.datamodule = jl.data.ImageDataModule(img_size=32, patch_size=8)  # type: ignore[attr-defined]
    module.configure_model()
    with torch.no_grad():
        module.encoder.norm.bias += 1.0
    encoder = jl.load_encoder(save(tmp_path / "tuned.ckpt", config, state_dict=module.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(images), module.encoder.eval()(images))
    assert not torch.equal(encoder(images), jl.load_encoder(tmp_path / "a.ckpt")(images))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
