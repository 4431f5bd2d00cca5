from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from jepa_lightning.evaluation import logistic
from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.logistic import logistic_path

DECAYS = (1e-3, 1e-2, 1.0)


@pytest.fixture(scope="module")
def noisy_digits() -> tuple[Features, Features]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    x = x + 6.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return Features(x[:300], y[:300]), Features(x[300:1300], y[300:1300])


def standardised(train: Tensor, x: Tensor) -> np.ndarray:
    train, x = train.double(), x.double()
    return ((x - train.mean(dim=0)) / train.std(dim=0).clamp_min(1e-6)).numpy()


def by_scikit_learn(train: Features, x: Tensor, weight_decay: float) -> LogisticRegression:
    twice = 2 if len(train.y.unique()) == 2 else 1  # of two classes scikit-learn decays one vector, not both
    classifier = LogisticRegression(C=twice / (len(train.y) * weight_decay), max_iter=20_000, tol=1e-9)
    classifier.fit(standardised(train.x, train.x), train.y.numpy())
    return classifier.predict(standardised(train.x, x))


@pytest.mark.parametrize("classes", [10, 2])
def test_every_prediction_is_scikit_learns(noisy_digits: tuple[Features, Features], classes: int) -> None:
    train, held_out = (Features(part.x[part.y < classes], part.y[part.y < classes]) for part in noisy_digits)
    for weight_decay, classifier in logistic_path(train, DECAYS).items():
        expected = by_scikit_learn(train, held_out.x, weight_decay)
        assert (classifier.predict(held_out.x).numpy() == expected).all(), weight_decay
        assert 0.3 < (expected == held_out.y.numpy()).mean() < 0.995


@pytest.mark.parametrize("changed", [{"LARGEST_BLOCKS": 0}, {"SAMPLES": 1, "SAMPLES_PER_NUMBER": 2}, {"STALE": 0}])
def test_where_blocks_come_from_does_not_change_the_optimum(
    noisy_digits: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
) -> None:
    train, _ = noisy_digits
    (expected,) = logistic_path(train, [1e-3]).values()
    for name, value in changed.items():
        monkeypatch.setattr(logistic, name, value)
    (found,) = logistic_path(train, [1e-3]).values()
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=1e-4)


def test_blocks_save_conjugate_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    step, rounds = logistic._step, [0]

    def counted(*given: Any) -> Any:
        found = step(*given)
        rounds[-1] += found[1]
        return found

    monkeypatch.setattr(logistic, "_step", counted)
    pixels, labels = load_digits(return_X_y=True)
    train = Features(torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels))
    logistic_path(train, [1e-4])
    monkeypatch.setattr(logistic, "LARGEST_BLOCKS", 0)
    rounds.append(0)
    logistic_path(train, [1e-4])
    assert 1.5 * rounds[0] < rounds[1]


def test_the_end_is_the_optimum_wherever_it_started(noisy_digits: tuple[Features, Features]) -> None:
    train, _ = noisy_digits
    path = logistic_path(train, [0.01, 1.0])
    alone = logistic_path(train, [0.01])
    torch.testing.assert_close(path[0.01].weight, alone[0.01].weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(path[0.01].bias, alone[0.01].bias, rtol=0, atol=1e-4)  # not regularised: flatter


def test_classes_keep_their_numbers_also_where_some_are_missing(noisy_digits: tuple[Features, Features]) -> None:
    train, held_out = noisy_digits
    kept = (train.y == 2) | (train.y == 5) | (train.y == 9)
    few = Features(train.x[kept], train.y[kept])
    (classifier,) = logistic_path(few, [0.1]).values()
    predicted = classifier.predict(held_out.x)
    assert set(predicted.tolist()) == {2, 5, 9}
    assert (predicted.numpy() == by_scikit_learn(few, held_out.x, 0.1)).all()


def test_a_feature_that_never_changes_and_scales_do_no_harm(noisy_digits: tuple[Features, Features]) -> None:
    train, held_out = noisy_digits
    scale = torch.logspace(-3, 3, 64)
    wide = [torch.cat([part.x * scale + scale, torch.full((len(part.x), 1), 7.0)], dim=1) for part in noisy_digits]
    (first,) = logistic_path(train, [0.01]).values()
    (second,) = logistic_path(Features(wide[0], train.y), [0.01]).values()
    assert (first.predict(held_out.x) == second.predict(wide[1])).float().mean() > 0.995


@pytest.mark.parametrize("samples", [4, 12, 60])
def test_fewer_samples_than_features_and_copies_make_no_difference(
    noisy_digits: tuple[Features, Features], samples: int
) -> None:
    train, held_out = noisy_digits
    few = Features(train.x[:samples].repeat(2, 1), train.y[:samples].repeat(2))
    for weight_decay, classifier in logistic_path(few, (1e-2, 1.0)).items():
        expected = by_scikit_learn(few, held_out.x, weight_decay)
        assert (classifier.predict(held_out.x).numpy() == expected).all()


def test_one_sample_a_class_and_one_class_alone_work() -> None:
    x = torch.eye(3) * 5
    (classifier,) = logistic_path(Features(x, torch.arange(3)), [0.1]).values()
    assert classifier.predict(x).tolist() == [0, 1, 2]
    (classifier,) = logistic_path(Features(x, torch.full((3,), 7)), [0.1]).values()
    assert classifier.predict(x).tolist() == [7, 7, 7]


def test_an_end_before_the_optimum_is_told(noisy_digits: tuple[Features, Features]) -> None:
    train, _ = noisy_digits
    with pytest.warns(UserWarning, match="weight decay 0.0001 stopped before its optimum"):
        logistic_path(train, [1e-4], iterations=2)


@pytest.mark.parametrize("weight_decay", [0.0, -1.0])
def test_without_decay_there_is_no_optimum(weight_decay: float) -> None:
    train = Features(torch.randn(9, 3), torch.arange(9) % 3)
    with pytest.raises(ValueError, match=f"weight_decay must be above 0 for logistic regression, got {weight_decay}"):
        logistic_path(train, [1.0, weight_decay])
