from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_lightning.explore.items import Item
from jepa_lightning.explore.subject import Subject, similarity
from jepa_lightning.masking import MultiBlock

pytest.importorskip("dash")
from jepa_lightning.explore.answers import Answers

SubjectFactory = Callable[..., Subject]
ItemFactory = Callable[..., list[Item]]


@pytest.fixture
def answers(subject: SubjectFactory, items: ItemFactory) -> Answers:
    return Answers(subject(), items(4), MultiBlock((1, 4, 4), min_keep=2))


def values(figure: Any) -> np.ndarray:
    (heat,) = [trace for trace in figure.data if trace.type == "heatmap"]
    return np.array(heat.z)


def picture(figure: Any) -> np.ndarray:
    (image,) = figure.layout.images
    return np.array(Image.open(io.BytesIO(base64.b64decode(image.source.partition(",")[2]))))


def test_attention_to_and_from_a_patch_and_its_similarity(answers: Answers) -> None:
    shown = answers.look(0, 5, 1, 2, 0.6)
    attention = answers.subject.attention(answers.items[0].pixels, 1)[2]
    np.testing.assert_allclose(values(shown[1]), attention[5].reshape(4, 4), rtol=1e-6)
    np.testing.assert_allclose(values(shown[2]), attention[:, 5].reshape(4, 4), rtol=1e-6)
    tokens = answers.subject.tokens(answers.items[0].pixels, 1)
    np.testing.assert_allclose(values(shown[5]), similarity(tokens, 5).reshape(4, 4), rtol=1e-6)


def test_the_mean_of_the_heads_is_shown_if_no_head_is_chosen(answers: Answers) -> None:
    attention = answers.subject.attention(answers.items[0].pixels, 0).mean(dim=0)
    np.testing.assert_allclose(values(answers.look(0, 3, 0, None, 0.6)[1]), attention[3].reshape(4, 4), rtol=1e-6)


def test_the_frames_of_a_clip_stand_side_by_side(subject: SubjectFactory, items: ItemFactory) -> None:
    answers = Answers(subject(num_frames=4, tubelet_size=2), items(2, frames=4), None)
    shown = answers.look(1, 20, 1, None, 0.6)
    assert values(shown[1]).shape == (4, 8)
    attention = answers.subject.attention(answers.items[1].pixels, 1).mean(dim=0)[20]
    np.testing.assert_allclose(values(shown[1])[1, 4 + 2], attention[16 + 6], rtol=1e-6)


def test_surprise_is_drawn_where_something_was_hidden_and_nowhere_else(answers: Answers) -> None:
    shown, says = answers.surprise(1, [9, 2])
    surprise = values(shown)
    assert np.isfinite(surprise).sum() == 2
    assert np.isfinite(surprise[0, 2])
    assert np.isfinite(surprise[2, 1])
    assert says.startswith("2 hidden patches")


def test_the_expectation_replaces_hidden_patches_by_those_of_other_samples(answers: Answers) -> None:
    own, expected = picture(answers.hidden_picture(1, [])), picture(answers.expect(1, [2])[0])
    assert own.shape == expected.shape
    side = own.shape[0] // 4
    changed = (own != expected).any(axis=2)
    assert changed[:side, 2 * side : 3 * side].any()
    changed[:side, 2 * side : 3 * side] = False
    assert not changed.any()


def test_hidden_patches_are_dark(answers: Answers) -> None:
    shown, hidden = picture(answers.hidden_picture(0, [])), picture(answers.hidden_picture(0, [0]))
    side = shown.shape[0] // 4
    assert (hidden[:side, :side] == shown[:side, :side] // 4).all()
    assert (hidden[side:] == shown[side:]).all()


def test_masks_are_sampled_anew_every_time(answers: Answers) -> None:
    draws = [answers.sample_mask(0) for _ in range(6)]
    assert all(draw and max(draw) < 16 for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 1


def test_without_a_sampler_a_mask_has_to_be_drawn(subject: SubjectFactory, items: ItemFactory) -> None:
    with pytest.raises(ValueError, match="draw a box or click patches"):
        Answers(subject(), items(), None).sample_mask(0)


def test_neighbours_of_a_hidden_patch_are_images_and_of_a_shown_one_none(answers: Answers) -> None:
    found = answers.neighbours(0, [1, 2], 2, count=3)
    assert len(found) == 3
    assert all(source.startswith("data:image/png;base64,") for source in found)
    assert answers.neighbours(0, [1, 2], 7) == []


def test_a_network_without_attention_still_shows_its_features(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise ValueError("no softmax attention to show")

    monkeypatch.setattr(answers, "attention", refuse)
    shown = answers.look(0, 0, 0, None, 0.6)
    assert len(shown) == 7
    assert "no softmax attention" in shown[1].layout.annotations[0].text
    assert values(shown[5]).shape == (4, 4)


def test_a_dropped_file_comes_behind_the_samples_and_stays_out_of_the_map(answers: Answers) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), (9, 9, 9)).save(buffer, "PNG")
    assert answers.drop("mine.png", buffer.getvalue()) == 4
    assert answers.samples == 4
    assert len(answers.look(4, 0, 0, None, 0.5)) == 7


def test_a_map_of_few_samples_is_refused(answers: Answers) -> None:
    with pytest.raises(ValueError, match="--samples"):
        answers.plane()


def test_the_map_has_every_sample_once_in_the_colour_of_its_label(
    subject: SubjectFactory, items: ItemFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(subject(), items(9), None)
    monkeypatch.setattr(answers, "_places", lambda count: np.arange(2.0 * count).reshape(-1, 2))
    shown = answers.plane()
    assert [trace.name for trace in shown.data] == ["0", "1"]
    assert sorted(number for trace in shown.data for number in trace.customdata) == list(range(9))
    assert list(shown.data[1].x) == [2.0, 6.0, 10.0, 14.0]
