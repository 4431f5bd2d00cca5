"""A stranger's checkpoint, through every command: nothing is imported, written or built, and one line says why."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.weights import NotTrusted
from jepa_lightning.weights.ours import CONFIG_KEY

FILE = "stranger/runs/x/version_0/checkpoints/last.ckpt"
QUIET = ["--data.num_workers=0", "--trainer.enable_progress_bar=false"]
COMMANDS = {
    "validate": ["validate", "--ckpt_path", FILE],
    "validate with config": ["validate", "--config=ijepa.yaml", "--ckpt_path", FILE],
    "test": ["test", "--ckpt_path", FILE],
    "predict": ["predict", "--ckpt_path", FILE],
    "resume": ["fit", "--ckpt_path", FILE],
    "resume with config": ["fit", "--config=ijepa.yaml", "--ckpt_path", FILE],
    "init_from": ["fit", "--config=ijepa.yaml", "--init_from", FILE, *QUIET],
    "linear probe": ["fit", "--config=linear_probe.yaml", "--model.checkpoint", FILE],
    "attentive probe": ["fit", "--config=attentive_probe.yaml", "--model.checkpoint", FILE],
    "finetune": ["fit", "--config=finetune.yaml", "--model.checkpoint", FILE],
    "pretrained": ["validate", "--config=ijepa.yaml", "--model=PretrainedEncoder", "--model.checkpoint", FILE],
    "evaluate": ["evaluate", "--ckpt_path", FILE],
    "explore": ["explore", "--ckpt_path", FILE],
    "export": ["export", "--ckpt_path", FILE, "--to", "safetensors", "--out", "exported"],
    "inspect": ["inspect", FILE],
}
TRAPS: dict[str, tuple[str, Any]] = {
    "a function as text": ("model.init_args.predictor", "evilmod.f"),
    "a file as text": ("model.init_args.encoder", "enc.yaml"),
    "a class of another package": ("data.init_args.source", {"class_path": "evilmod.S"}),
    "a class of the system": ("model.init_args.lr", {"class_path": "subprocess.Popen", "init_args": {"args": "id"}}),
    "an enormous depth": ("model.init_args.encoder.init_args.depth", 10**9),
    "a text in an object without a class": ("model.init_args.predictor", {"blocks": "evilmod.f"}),
    "a network from elsewhere": (
        "model.init_args.encoder",
        {"class_path": "jepa_lightning.models.TimmBackbone", "init_args": {"name": "HF-HUB:o/m"}},
    ),
    "an enormous width": ("model.init_args.encoder.init_args.embed_dim", 3_000_000),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a module that leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    Path("evilmod.py").write_text("open('imported', 'w').close()\nf = S = print\n")
    Path("enc.yaml").write_text("class_path: evilmod.S\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    assert not Path("imported").exists()
    assert "evilmod" not in sys.modules


def set_trap(save_checkpoint: Callable[..., str], place: str, value: Any) -> Path:
    path = Path(save_checkpoint(Path(FILE)))
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load(content[CONFIG_KEY])
    config["features"] = {"output": "victim.txt"}
    config["trainer"] = {"logger": {"class_path": "evilmod.S"}, "default_root_dir": "elsewhere"}
    section, (*keys, last) = config, place.split(".")
    for key in keys:
        section = section.setdefault(key, {})
    section[last] = value
    torch.save({**content, CONFIG_KEY: yaml.safe_dump(config)}, path)
    return path


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in str(path)}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_command_refuses_it_and_leaves_no_trace(
    trap: str, save_checkpoint: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    set_trap(save_checkpoint, *TRAPS[trap])
    before = files()
    for name, arguments in COMMANDS.items():
        begun = time.monotonic()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        said = f"{stop.value.code}\n{capfd.readouterr().err}"
        assert FILE in said, name
        assert time.monotonic() - begun < 10, name  # of which reading the file is little
        assert files() == before, name


@pytest.mark.parametrize("load", [jl.load, jl.load_encoder])
def test_python_refuses_it_too(load: Callable[[Path], Any], save_checkpoint: Callable[..., str]) -> None:
    path = set_trap(save_checkpoint, *TRAPS["a class of another package"])
    with pytest.raises(NotTrusted, match=r"--trust evilmod"):
        load(path)


def test_what_it_says_of_loggers_callbacks_and_outputs_is_never_read(
    save_checkpoint: Callable[..., str], image_folder: Path
) -> None:
    Path("victim.txt").write_text("dear")
    set_trap(save_checkpoint, "data.init_args.root", str(image_folder))
    main(["predict", "--ckpt_path", FILE, "--maps.count=0", *QUIET])
    assert Path("victim.txt").read_text() == "dear"
    assert not Path("elsewhere").exists()


def test_a_package_that_the_user_names_may_be_in_it(save_checkpoint: Callable[..., str], tmp_path: Path) -> None:
    Path("mypackage.py").write_text(
        "from jepa_lightning.schedules import Constant\nclass Mine(Constant):\n    '''Mine.'''\n"
    )
    mine = {"class_path": "mypackage.Mine", "init_args": {"value": 0.5}}
    path = set_trap(save_checkpoint, "model.init_args.lr", mine)
    with pytest.raises(NotTrusted):
        jl.load(path)
    assert type(jl.load(path, trust="mypackage").lr).__name__ == "Mine"
    main(["inspect", FILE, "--trust", "mypackage"])


def test_trust_does_not_outlive_its_block(save_checkpoint: Callable[..., str]) -> None:
    path = set_trap(save_checkpoint, *TRAPS["a class of another package"])
    Path("evilmod.py").write_text("from jepa_lightning.data import DigitScenes\nclass S(DigitScenes):\n    pass\n")
    with weights.trusting("evilmod"):
        held = weights.open(path)
    del sys.modules["evilmod"]
    with pytest.raises(NotTrusted):
        weights.open(path)
    assert held.config


def test_the_name_of_a_file_is_no_package_to_trust(save_checkpoint: Callable[..., str]) -> None:
    set_trap(save_checkpoint, *TRAPS["a class of another package"]).rename("evilmod.ckpt")
    with pytest.raises(SystemExit, match="nothing was imported"):
        main(["fit", "--config=linear_probe.yaml", "--model.checkpoint=evilmod.ckpt"])


def test_an_index_that_is_a_pickle_is_not_read() -> None:
    folder = Path("parts.ckpt")
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    for extra in ([], ["--trainer.strategy=fsdp2"]):
        with pytest.raises(SystemExit, match="pickle that can run code"):
            main(["validate", "--config=ijepa.yaml", "--ckpt_path=parts.ckpt", *QUIET, *extra])


class Evil:
    def __reduce__(self) -> Any:
        return open, ("imported", "w")


@pytest.mark.parametrize("command", ["validate", "resume", "predict"])
def test_weights_of_another_kind_are_refused(command: str, save_checkpoint: Callable[..., str]) -> None:
    path = Path(save_checkpoint(Path(FILE)))
    content = torch.load(path, weights_only=True)
    name = "target_encoder.blocks.0.norm1.weight"
    content["state_dict"][name] = content["state_dict"][name].long()
    torch.save(content, path)
    with pytest.raises(SystemExit, match=r"blocks.0.norm1.weight is torch.int64"):
        main(COMMANDS[command])
