from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from jepa_lightning import weights
from jepa_lightning.checkpoint_io import AtomicCheckpointIO, WeightsIO
from jepa_lightning.loading import load, load_meta

CheckpointFactory = Callable[..., str]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data.pkl")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last.ckpt.*the one that was there is whole"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def trained(module: Any) -> Any:
    """With a trainer that evaluates."""
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return module


def test_a_trainer_reads_a_file_of_metas_as_if_lightning_had_written_it(golden_checkpoint: Path) -> None:
    module = trained(load_meta(golden_checkpoint, num_heads=4))
    found = WeightsIO(module, weights.open(golden_checkpoint)).load_checkpoint(golden_checkpoint)
    assert set(found) == {"pytorch-lightning_version", "epoch", "global_step", "state_dict"}
    module.load_state_dict(found["state_dict"])


def test_a_trainer_reads_names_that_torch_compile_has_changed(
    tmp_path: Path, save_checkpoint: CheckpointFactory
) -> None:
    path = save_checkpoint(tmp_path / "a.ckpt")
    assert weights.open(path).by_lightning
    module, content = trained(load(path)), torch.load(path, weights_only=True)
    state = content["state_dict"]
    content["state_dict"] = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save(content, tmp_path / "compiled.ckpt")
    opened = weights.open(tmp_path / "compiled.ckpt")
    assert not opened.by_lightning
    found = WeightsIO(module, opened).load_checkpoint(tmp_path / "compiled.ckpt")
    assert (found["global_step"], found["epoch"]) == (7, 0)
    assert list(found["state_dict"]) == list(state)
    module.load_state_dict(found["state_dict"])


def test_a_folder_of_tensors_has_no_training_to_go_on_with(image_source: Any, tmp_path: Path) -> None:
    from jepa_lightning.export.formats import FORMATS

    FORMATS["timm"].write(image_source(), tmp_path)
    io = WeightsIO(trained(torch.nn.Linear(1, 1)), weights.open(tmp_path))
    with pytest.raises(ValueError, match=r"file in timm's format\) has no training to resume: .*--init_from"):
        io.load_checkpoint(tmp_path)
