from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jepa_lightning.data import embedded
from jepa_lightning.data.embedded import COLUMNS, DIGITS, DigitScenes


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DigitScenes:
    monkeypatch.setattr(embedded, "COUNTS", {"train": 40, "val": 10, "test": 10})
    source = DigitScenes(cache=str(tmp_path))
    source.prepare()
    return source


def test_scenes_are_written_once_as_jpeg_files(scenes: DigitScenes) -> None:
    files = sorted(scenes.root.rglob("*.jpg"))
    assert len(files) == 60
    assert {path.parts[-3] for path in files} == {"train", "val", "test"}
    times = [path.stat().st_mtime_ns for path in files]
    scenes.prepare()
    assert times == [path.stat().st_mtime_ns for path in files]
    assert scenes.split("train").image(0).size == (64, 64)
    assert list(scenes.root.parent.iterdir()) == [scenes.root]


def test_scenes_are_the_same_on_every_machine(scenes: DigitScenes, tmp_path: Path) -> None:
    again = DigitScenes(cache=str(tmp_path / "again"))
    again.prepare()
    for one, other in zip(sorted(scenes.root.rglob("*.jpg")), sorted(again.root.rglob("*.jpg")), strict=True):
        assert one.relative_to(scenes.root) == other.relative_to(again.root)
        assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_attempt_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    source = DigitScenes(cache=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            source.prepare()
    assert list(tmp_path.iterdir()) == []


def test_splits_share_neither_digits_nor_photographs() -> None:
    digits = [set(range(part.start, part.stop)) for part in DIGITS.values()]
    assert not digits[0] & digits[1] | digits[0] & digits[2] | digits[1] & digits[2]
    edges = [edge for part in COLUMNS.values() for edge in part]
    assert edges == sorted(edges)


def test_a_scene_differs_from_its_background_where_the_digit_is() -> None:
    from sklearn.datasets import load_digits, load_sample_images

    digit, photographs = load_digits().images[0], load_sample_images().images
    drawn = np.asarray(embedded.render(digit, photographs, 64, np.random.default_rng(0)), dtype=int)
    blank = np.asarray(embedded.render(0 * digit, photographs, 64, np.random.default_rng(0)), dtype=int)
    changed = np.abs(drawn - blank).sum(axis=2) > 0
    assert 0.2 < changed.mean() < 0.8
    assert drawn[changed].mean() > 2 * blank[changed].mean()  # light before dark
    # What an evaluation looks at, the middle 7/8 of each side, shows nearly all of it.
    assert changed[4:-4, 4:-4].sum() > 0.95 * changed.sum()
