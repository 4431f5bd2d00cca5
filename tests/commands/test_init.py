"""`jepa init`: a configuration that fits a folder and a machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from jepa_lightning.commands.init import main, sizes
from jepa_lightning.commands.survey import Machine, look
from jepa_lightning.data.episodes import write_episode


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    random = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (root / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(0, 256, (70, 50 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    (root / "cats" / "copy.png").write_bytes((root / "cats" / "0.png").read_bytes())
    (root / "dogs" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    return root


def test_a_folder_of_images_is_counted_with_its_faults(photos: Path) -> None:
    survey = look(photos)
    assert (survey.kind, survey.files, survey.classes) == ("images", 42, {"cats": 21, "dogs": 21})
    assert (survey.duplicates, list(survey.bad)) == (1, ["dogs/broken.jpg"])
    assert survey.training == 42 - 10  # a quarter of each class is held out
    assert (min(survey.sides), max(survey.sides)) == (50, 69)


@pytest.mark.filterwarnings("ignore:cannot decode", "ignore:the warm-up")
def test_the_written_configuration_trains(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jepa_lightning.cli import main as jepa

    monkeypatch.chdir(tmp_path)
    main([str(photos), "--steps", "8"])
    said = capsys.readouterr().out
    assert "jepa fit --config photos.yaml" in said
    assert "released weights are the better start" in said
    assert "cannot be read: dogs/broken.jpg" in said
    config = yaml.safe_load((tmp_path / "photos.yaml").read_text())
    assert config["data"]["init_args"]["source"]["init_args"]["root"] == str(photos)
    jepa(["fit", "--config", "photos.yaml", "--trainer.max_epochs", "1", "--data.num_workers", "0"])
    said = capsys.readouterr().out
    assert "no certain gain: the linear probe went from" in said
    assert "jepa explore --ckpt_path runs/photos/version_0/checkpoints/last.ckpt" in said
    with pytest.raises(FileExistsError, match=r"photos\.yaml exists"):
        main([str(photos)])


def test_episodes_are_seen_by_their_actions(tmp_path: Path) -> None:
    for number in range(3):
        frames = np.zeros((5, 32, 32, 3), dtype=np.uint8)
        write_episode(tmp_path, str(number), frames, actions=np.zeros((4, 2), dtype=np.float32))
    assert look(tmp_path).kind == "episodes"


def test_what_there_is_to_learn_from_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        look(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="neither images nor videos"):
        look(tmp_path)


@pytest.mark.parametrize(("memory", "batch"), [(24.0, 64), (80.0, 256)])
def test_networks_grow_with_the_machine_and_inputs_with_the_pictures(photos: Path, memory: float, batch: int) -> None:
    survey = look(photos)._replace(sides=(300,))
    assert sizes(survey, Machine(2, 8.0)).img_size == 64
    assert sizes(survey, Machine(16, 128.0, "a GPU", memory))[:2] == (224, 16)
    assert sizes(survey, Machine(16, 128.0, "a GPU", memory)).batch_size == batch
    tiny = sizes(survey._replace(sides=(28,)), Machine(2, 8.0))
    assert tiny.img_size % tiny.patch_size == 0
    assert tiny.img_size <= 32
