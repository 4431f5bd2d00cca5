"""The command line on a person's own videos: with images among them, and with mistakes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
import yaml

from jepa_lightning.cli import main
from jepa_lightning.data.moving_digits import write_video
from jepa_lightning.evaluation import logged, read

TINY = [
    "fit", "--config=vjepa2.yaml", "--model.encoder.embed_dim=24", "--model.encoder.depth=1",
    "--model.encoder.num_heads=2", "--model.encoder.num_frames=4", "--model.encoder.img_size=32",
    "--model.predictor.embed_dim=12", "--model.predictor.num_heads=2", "--model.predictor.depth=1",
    "--data.batch_size=4", "--data.num_workers=0", "--trainer.max_epochs=1", "--pictures.every_n_epochs=0",
]  # fmt: skip


def joint() -> str:
    """The example in the comments of vjepa2.yaml, as a configuration of its own."""
    lines = (Path(__file__).parent.parent / "configs" / "vjepa2.yaml").read_text().splitlines()
    source = dedent("\n".join(line[6:] for line in lines if line.startswith("    #   ")))
    arguments = yaml.safe_load(source.replace("my_", ""))
    assert set(arguments) == {"source"}
    return yaml.safe_dump({"data": {"class_path": "VideoDataModule", "init_args": arguments}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Videos of twelve frames, two lists of them, one of files that are not there, and images."""
    root = tmp_path_factory.mktemp("own")
    for number in range(8):
        path = root / "videos" / ("train" if number < 6 else "val") / f"class{number % 2}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, np.full((12, 32, 48, 3), 20 * number, np.uint8), fps=8)
    (root / "images").symlink_to(image_folder)
    (root / "joint.yaml").write_text(joint())
    (root / "moved.csv").write_text("gone/a.mp4 0\ngone/b.mp4 1\ngone/c.mp4 1\n")
    return root


@pytest.fixture(autouse=True)
def _here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


def test_images_and_videos_train_together_from_one_file(capfd: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--config=joint.yaml", "--probe.k=3"])
    assert "linear probe top-1 (%)" in capfd.readouterr().out
    run = Path("runs/vjepa2/version_0")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == (6 + 34) // 4
    sources = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["source"]["init_args"]["sources"]
    assert [source["class_path"].split(".")[-1] for source in sources] == ["VideoFolder", "StillImages"]
    results = read(run / "validation.json").results
    share = 6 * logged([r for r in results if r.encoder == "trained"])["linear_top1"]  # of two videos and four images
    assert share == pytest.approx(round(share), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data.root=nowhere", "no such folder: nowhere (set --data.root to a folder of videos)"),
        ("--data.root=nowhere.csv", "no such list of videos: nowhere.csv (set --data.root to a file with a path and a"),
        (
            "--data.root=moved.csv",
            "no such file: gone/a.mp4; correct the list, whose paths start from the folder it is",
        ),
        (
            "--data.root=videos --data.clips.fps=1 --data.clips.short=reject",
            "train/class0/0.mp4 has 1.5 seconds for a clip of 3.125: remove it, or set short to loop or hold",
        ),
        (
            "--data.root=videos --data.clips.frame_step=4",
            "ValueError: give exactly one of frame_step, fps and duration, got {'frame_step': 4, 'fps': 4.0}",
        ),
        (
            "--data.root=videos --data.clips.short=cut",
            "data.clips.short: Expected one of 'loop', 'hold', 'reject'. Got",
        ),
        ("--data.root=videos --data.clips.fps=fast", "data.clips.fps: Expected a <class 'float'>. Got value: fast"),
        ("--data.root=videos --data.batch_size=40", "6 samples, 6 for each of 1 processes, fewer than one batch of 40"),
    ],
)
def test_mistakes_with_videos_end_in_file_value_and_remedy(
    options: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*TINY, *options.split()])
    code = stop.value.code
    last = code if isinstance(code, str) else capfd.readouterr().err.strip().splitlines()[-1]
    assert message in last.splitlines()[-1]


def test_an_option_of_a_part_can_be_taken_back_with_null(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*TINY, "--data.clips.fps=null", "--data.clips.frame_step=4", "--model.encoder.init_std=null",
              "--trainer.limit_val_batches=1", "--print_config"])  # fmt: skip
    config = yaml.safe_load(capfd.readouterr().out)
    clips = config["data"]["init_args"]["clips"]["init_args"]
    assert (clips["fps"], clips["frame_step"]) == (None, 4)
    assert config["model"]["init_args"]["encoder"]["init_args"]["init_std"] is None
    assert isinstance(config["trainer"]["limit_val_batches"], int)  # one batch; 1.0 would be the whole split
