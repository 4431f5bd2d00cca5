from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jepa_lightning as jl
from jepa_lightning.callbacks.config import CONFIG_KEY
from jepa_lightning.checkpoint import AtomicCheckpointIO, build

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
    with pytest.raises(ValueError, match="`import evil_package` first if you trust the file"):
        jl.load(save(tmp_path / "evil.ckpt", config))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build(CONFIG).state_dict()
    del state["encoder.norm.weight"]
    with pytest.raises(ValueError, match=r"(?s)do not fit its configuration.*encoder.norm.weight"):
        jl.load(save(tmp_path / "a.ckpt", state_dict=state))


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "last.ckpt")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data.pkl")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last.ckpt.*the one that was there is whole"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
