from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.data import embedded, moving_digits
from jepa_lightning.data.decode import PyAVDecoder
from jepa_lightning.data.dense_labels import clip_labels, scene_labels

SMALL = {"train": 4, "val": 3, "test": 2}


def test_labels_of_scenes_lie_on_the_digit_that_the_file_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "COUNTS", SMALL)
    source = embedded.DigitScenes(64, str(tmp_path))
    source.prepare()
    files = sorted(source.root.rglob("*.jpg"))
    assert len(files) == 9
    for file in files:
        split, digit = file.parts[-3], int(file.parts[-2])
        labels = scene_labels(split, int(file.stem))
        assert set(labels.unique().tolist()) == {0, 1 + digit}
        bright = torch.from_numpy(np.array(Image.open(file)).astype(np.float32)).mean(dim=-1)  # light before dark
        assert bright[labels > 0].min() > bright[labels == 0].median()
        assert bright[labels > 0].mean() > bright[labels == 0].mean() + 50


@pytest.mark.parametrize("plain", [True, False])
def test_labels_of_clips_follow_the_digit_in_the_file(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_digits, "COUNTS", SMALL)
    source = moving_digits.MovingDigits(64, str(tmp_path), plain=plain)
    source.prepare()
    for split, count in SMALL.items():
        clips = source.split(split)  # type: ignore[arg-type]
        assert len(clips) == count
        for index in range(count):
            labels = clip_labels(split, int(Path(clips.name(index)).stem), style=source.style)
            assert set(labels.unique().tolist()) == {0, 1 + clips.labels[index][0]}
            with clips.open(index, PyAVDecoder()) as video:
                frames = video.frames(range(len(labels))).float().mean(dim=-1)
            assert labels.shape == frames.shape == (moving_digits.FRAMES, 64, 64)
            free = labels == 0
            behind = (frames * free).sum(dim=0) / free.sum(dim=0).clamp(min=1)  # it stands still
            change = (frames - behind).abs()[:, free.any(dim=0)]
            digit = ~free[:, free.any(dim=0)]
            assert change[digit].mean() > 40
            assert change[~digit].mean() < 10


def test_a_mask_is_where_the_digit_changes_the_picture() -> None:
    digits, _, photographs = embedded.parts("val")
    drawn, mask = embedded.render_with_mask(digits[3], photographs, 64, np.random.default_rng(5))
    blank, nothing = embedded.render_with_mask(0 * digits[3], photographs, 64, np.random.default_rng(5))
    changed = (np.asarray(drawn) != np.asarray(blank)).any(axis=-1)
    assert not np.asarray(nothing).any()
    assert (changed <= (np.asarray(mask) > 0)).all()
    assert changed[np.asarray(mask) > 128].all()
