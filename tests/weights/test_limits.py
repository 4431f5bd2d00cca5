"""Numbers and folders of a stranger's checkpoint: what asks for too much, or counts wrongly, is refused by its name."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import jepa_lightning as jl
from jepa_lightning import weights
from jepa_lightning.cli import main
from jepa_lightning.weights import CheckpointError, Unreadable
from jepa_lightning.weights.ours import CONFIG_KEY

FILE = "last.ckpt"
QUIET = ["--trainer.enable_progress_bar=false", "--data.num_workers=0"]
EVERYWHERE = {
    "validate": ["validate", FILE],
    "predict": ["predict", FILE],
    "resume": ["fit", "--ckpt_path", FILE],
    "init_from": ["fit", "--config=ijepa.yaml", "--init_from", FILE],
    "probe": ["fit", "--config=linear_probe.yaml", "--model.checkpoint", FILE],
    "finetune": ["fit", "--config=finetune.yaml", "--model.checkpoint", FILE],
    "evaluate": ["evaluate", FILE],
    "explore": ["explore", FILE],
    "export": ["export", FILE, "--to", "safetensors", "--out", "exported"],
    "inspect": ["inspect", FILE],
    "plan": ["plan", FILE],
}
READ_DATA = ("validate", "predict", "resume", "probe", "finetune", "evaluate", "explore")
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def stranger(save_checkpoint: Callable[..., str]) -> Callable[..., Path]:
    """Writes a checkpoint whose configuration or content was changed."""

    def write(change: Change = lambda config: None, **content: Any) -> Path:
        path = Path(save_checkpoint(Path(FILE)))
        found = torch.load(path, weights_only=True)
        config = yaml.safe_load(found[CONFIG_KEY])
        change(config)
        torch.save({**found, CONFIG_KEY: yaml.safe_dump(config), **content}, path)
        return path

    return write


def of_data(**values: Any) -> Change:
    return lambda config: config["data"]["init_args"].update(values)


def digits(size: int) -> Change:
    return of_data(source={"class_path": "jepa_lightning.data.DigitScenes", "init_args": {"size": size}})


def two_rooms(**arguments: Any) -> Change:
    made = {"class_path": "jepa_lightning.data.two_rooms.TwoRoomsEpisodes", "init_args": arguments}
    data = {"class_path": "jepa_lightning.data.TrajectoryDataModule", "init_args": {"source": made}}
    return lambda config: config.update(data=data)


def said(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that fails within two seconds, and leaves nothing behind."""
    before, begun = sorted(Path("..").rglob("*")), time.process_time()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert time.process_time() - begun < 2
    assert sorted(Path("..").rglob("*")) == before
    shown = str(stop.value.code) if isinstance(stop.value.code, str) else capfd.readouterr().err
    return shown.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_data(batch_size=10**9), r"data\S*batch_size is 1e\+09, more than the 16,384"),
        (digits(size=10**6), r"data\S*size is 1e\+06, more than the 1,024"),
        (two_rooms(episodes=10**9), r"episodes is 1e\+09"),
        (two_rooms(episodes=20_000, steps=1_000), r"20,000 episodes of 1,000 steps"),
        (of_data(batch_size="1000000000"), r"batch_size is 1e\+09"),
        (of_data(batch_size="0x3b9aca00"), "is the text '0x3b9aca00' where a number goes"),
        (of_data(batch_size="[1000000000]"), "where a number goes"),
        (lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(depth="1000000000"), "depth 1e"),
        (lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(img_size="[1000000000, 8]"), "a number goes"),
        (lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(depth="0x3b9aca00"), "where a number goes"),
        (of_data(transform={"class_path": "jepa_lightning.data.PretrainTransform", "init_args": {"crop_pct": 1e-9}}),
         r"crop_pct 1e-09"),
        (of_data(img_size=[10**7, 32]), r"img_size\[0\] is 1e\+07"),
        (lambda c: c["data"]["init_args"]["masks"]["init_args"].update(min_keep=-(10**9)), r"min_keep is -1e\+09"),
    ],
)  # fmt: skip
def test_data_of_no_measure_are_refused_by_name(
    change: Change, message: str, stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = stranger(change)
    for load in (weights.open, jl.load, jl.load_encoder):
        with pytest.raises(CheckpointError, match=message):
            load(path)
    for arguments in EVERYWHERE.values() if "16,384" in message else [EVERYWHERE["validate"]]:
        line = said(arguments, capfd)
        assert FILE in line, arguments
        assert re.search(message, line), arguments


def test_a_probe_has_no_million_heads(stranger: Callable[..., Path]) -> None:
    grid = {"lr": [1e-3] * 900, "weight_decay": [1e-2] * 900, "checkpoint": "encoder.ckpt"}
    probe = {"class_path": "jepa_lightning.LinearProbe", "init_args": grid}
    with pytest.raises(Unreadable, match="810,000 heads"):
        weights.open(stranger(lambda config: config.update(model=probe)))


# ---------------------------------------------------------------------- folders


def folder(*names: str) -> str:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(name)
    return str(Path(names[0]).parent)


@pytest.mark.parametrize(
    ("root", "message", "command"),
    [("/", "was not read", command) for command in READ_DATA]
    + [
        ("~", "was not read", "resume"),
        ("/proc/1/root", "was not read|not in", "evaluate"),
        ("gone", "not in /", "explore"),
    ],
)
def test_a_checkpoint_does_not_choose_these_folders(
    root: str, message: str, command: str, stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger(of_data(root=root))
    line = said(EVERYWHERE[command], capfd)
    assert re.search(message, line), line
    assert "--data.root" in line or "--root" in line


@pytest.mark.parametrize("root", ["../home", "..", "empty", "//host/share", "s3://bucket/x", "m" * 300, "a\0b"])
def test_folders_without_samples_and_networks_are_refused(
    root: str, stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("empty/notes.md").touch()
    stranger(of_data(root=root))
    assert "--data.root" in said(EVERYWHERE["validate"], capfd)


def test_a_large_folder_without_samples_is_not_listed_to_its_end(
    stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepa_lightning.commands.stored_folders.MOST_ENTRIES", 50)
    for number in range(300):
        Path(f"many/{number % 7}").mkdir(parents=True, exist_ok=True)
        Path(f"many/{number % 7}/{number}.dat").touch()
    stranger(of_data(root="many"))
    assert "no images" in said(EVERYWHERE["validate"], capfd)


def test_the_folder_that_is_read_is_named_with_its_whole_path(
    stranger: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    place = Path(folder("photos/a/1.png", "photos/b/1.png")).parent.resolve()
    for name in ("a", "b"):
        folder(*(f"photos/{name}/{number}.png" for number in range(2, 9)))
    stranger(of_data(root="../here/photos"))
    main(["predict", FILE, "--maps.count=0", *QUIET])
    assert f"the data are read from {place}" in caplog.text


def test_the_root_of_an_option_needs_no_check(stranger: Callable[..., Path]) -> None:
    folder("mine/a/1.png", "mine/a/2.png", "mine/b/1.png")
    stranger(of_data(root="/"))
    main(["predict", FILE, "--data.root=mine", "--maps.count=0", *QUIET])


# ---------------------------------------------------------------------- a training that goes on


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": -1}, "epoch is -1"),
        ({"epoch": 10**18}, "epoch is 1e"),
        ({"epoch": "3"}, "epoch is a str"),
        ({"epoch": None}, "epoch is a NoneType"),
        ({"global_step": math.nan}, "global_step is nan"),
        ({"global_step": -7}, "global_step is -7"),
        ({"global_step": True}, "global_step is"),
        ({"loops": {"fit_loop": {"epoch_progress": {"total": {"ready": -(10**9)}}}}}, "loops.*ready is -1e"),
        ({"loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": {"ready": 0.5}}}}}, "ready is 0.5"),
        ({"loops": {"fit_loop": {"n": torch.tensor(math.inf)}}}, "n is inf"),
        ({"loops": [1]}, "loops is a list"),
        ({"optimizer_states": {"state": {}}}, "optimizer_states"),
        ({"optimizer_states": [{"state": {0: {"step": torch.tensor(-5.0)}}, "param_groups": []}]}, "step is -5"),
        ({"optimizer_states": [{"state": {}, "param_groups": [{"lr": math.nan}]}]}, "lr is nan"),
        ({"optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e300}]}]}, r"lr is 1e\+300"),
        ({"lr_schedulers": [{"last_epoch": math.inf}]}, "last_epoch is inf"),
    ],
)
def test_counters_that_no_training_has_are_refused_by_name(
    content: dict[str, Any], message: str, stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger(**content)
    line = said(EVERYWHERE["resume"], capfd)
    assert FILE in line
    assert re.search(message, line), line


def test_a_file_starts_no_compiler(
    stranger: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = stranger(lambda config: config["model"]["init_args"].update(compile=True))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert not jl.load(path).compile_networks
    folder("photos/a/1.png", "photos/a/2.png", "photos/b/1.png")
    main(["predict", FILE, "--data.root=photos", "--maps.count=0", *QUIET])


# ---------------------------------------------------------------------- words


def test_inspect_refuses_sizes_that_are_not_those_of_the_tensors(
    stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    for size, value in (("embed_dim", 32), ("patch_size", 4), ("depth", 5), ("img_size", 32)):
        stranger(lambda c, k=size, v=value: c["model"]["init_args"]["encoder"]["init_args"].update({k: v}))
        assert "target_encoder does not fit" in said(["inspect", FILE], capfd)


def test_another_image_size_names_file_tensor_and_option(
    stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder("photos/a/1.png", "photos/a/2.png", "photos/b/1.png")
    stranger()
    with pytest.raises(SystemExit) as stop:
        main(["validate", FILE, "--data.root=photos", "--model.encoder.init_args.img_size=32", *QUIET])
    line = str(stop.value.code).strip().splitlines()[-1]
    assert FILE in line
    assert "pos_embed" in line
    assert "--model.encoder.img_size" in line


def test_a_path_after_fit_is_answered_with_the_two_options(
    stranger: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    stranger()
    line = said(["fit", "--config=ijepa.yaml", FILE], capfd)
    assert f"--ckpt_path {FILE}" in line
    assert f"--init_from {FILE}" in line
