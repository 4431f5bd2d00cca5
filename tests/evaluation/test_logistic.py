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
from jepa_lightning.evaluation.knn import knn_top1
from jepa_lightning.evaluation.logistic import linear_top1, logistic_path

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


@pytest.mark.parametrize("changed", [{}, {"LARGEST_BLOCKS": 0}, {"SAMPLES": 1, "SAMPLES_PER_FEATURE": 2}])
def test_where_blocks_come_from_does_not_change_the_optimum(
    noisy_digits: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
) -> None:
    train, _ = noisy_digits
    (expected,) = logistic_path(train, [1e-3]).values()
    for name, value in {**changed, "_price": lambda _: 0.0}.items():  # new blocks in every step
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


# ---------------------------------------------------------------------- accuracy, beside nearest neighbours


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    x = x + 6.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))  # so that nobody is perfect
    return Features(x[:300], y[:300]), Features(x[300:700], y[300:700])


def blobs(samples: int, spread: float, classes: int = 3) -> Features:
    y = torch.arange(samples) % classes
    centres = 5.0 * torch.eye(classes, 8)
    return Features(centres[y] + spread * torch.randn(samples, 8), y)


def test_the_bias_is_not_decayed() -> None:
    y = (torch.arange(200) % 10 > 0).long()  # nine of ten are of class 1, features say nothing
    train, held_out = Features(torch.randn(200, 4), y), Features(torch.randn(200, 4), y)
    assert linear_top1(train, held_out, weight_decay=100.0) == pytest.approx(0.9)


def test_the_linear_probe_sees_neither_scale_nor_offset(digits: tuple[Features, Features]) -> None:
    train, held_out = digits
    scale, offset = torch.logspace(-3, 3, 64), torch.linspace(-5, 5, 64)
    moved = [Features(part.x * scale + offset * scale, part.y) for part in digits]
    assert linear_top1(*moved) == pytest.approx(linear_top1(train, held_out), abs=0.01)


def test_the_linear_probe_gives_the_same_number_every_time(digits: tuple[Features, Features]) -> None:
    first = linear_top1(*digits)
    torch.rand(5)
    assert linear_top1(*digits) == first


def test_the_linear_probe_works_where_gradients_are_off() -> None:
    train, held_out = blobs(60, 0.5), blobs(60, 0.5)
    with torch.no_grad():
        assert linear_top1(train, held_out) == 1.0


def test_the_linear_probe_works_in_the_inference_mode_of_lightnings_validation() -> None:
    with torch.inference_mode():
        train, held_out = blobs(60, 0.5), blobs(60, 0.5)
        assert linear_top1(train, held_out) == 1.0


@pytest.mark.parametrize("probe", [linear_top1, knn_top1])
def test_both_are_perfect_on_separate_blobs_and_near_chance_on_noise(probe: object) -> None:
    assert callable(probe)
    assert probe(blobs(90, 0.3), blobs(90, 0.3)) == 1.0
    noise = [Features(torch.randn(600, 8), torch.randint(4, (600,))) for _ in range(2)]
    assert 0.15 < probe(*noise) < 0.35


@pytest.mark.parametrize("probe", [linear_top1, knn_top1])
def test_a_class_that_training_never_saw_counts_as_wrong(probe: object) -> None:
    assert callable(probe)
    held_out = blobs(90, 0.3, classes=3)
    train = blobs(90, 0.3, classes=3)
    seen = train.y < 2
    assert probe(Features(train.x[seen], train.y[seen]), held_out) == pytest.approx(2 / 3, abs=0.01)


@pytest.mark.parametrize("probe", [linear_top1, knn_top1])
def test_a_feature_that_never_changes_does_no_harm(digits: tuple[Features, Features], probe: object) -> None:
    assert callable(probe)
    train, held_out = (Features(torch.cat([part.x, torch.zeros(len(part.x), 1)], dim=1), part.y) for part in digits)
    assert probe(train, held_out) == pytest.approx(probe(*digits), abs=0.01)
