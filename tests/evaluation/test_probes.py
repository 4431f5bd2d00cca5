from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jepa_lightning.evaluation import Features, knn_top1, linear_top1


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


def naive_knn(train: Features, held_out: Features, k: int, temperature: float) -> float:
    right = 0
    for x, y in zip(held_out.x, held_out.y, strict=True):
        similarity = torch.stack([F.cosine_similarity(x, other, dim=0) for other in train.x])
        votes: dict[int, float] = {}
        for i in sorted(range(len(similarity)), key=lambda i: -float(similarity[i]))[:k]:
            votes[int(train.y[i])] = votes.get(int(train.y[i]), 0.0) + math.exp(float(similarity[i]) / temperature)
        right += max(votes, key=lambda label: votes[label]) == int(y)
    return right / len(held_out.y)


# ---------------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (100, 0.02)])
def test_neighbours_equal_a_naive_implementation(digits: tuple[Features, Features], k: int, temperature: float) -> None:
    train, held_out = (Features(part.x[:120], part.y[:120]) for part in digits)
    assert knn_top1(train, held_out, k, temperature) == pytest.approx(naive_knn(train, held_out, k, temperature))


def test_one_neighbour_equals_scikit_learn_on_normalised_features(digits: tuple[Features, Features]) -> None:
    train, held_out = digits
    classifier = KNeighborsClassifier(n_neighbors=1).fit(F.normalize(train.x, dim=1).numpy(), train.y.numpy())
    expected = classifier.score(F.normalize(held_out.x, dim=1).numpy(), held_out.y.numpy())
    assert 0.2 < expected < 0.95
    assert knn_top1(train, held_out, k=1) == pytest.approx(expected)


def test_more_than_one_chunk_of_samples_gives_the_same(digits: tuple[Features, Features]) -> None:
    train, held_out = digits
    many = Features(held_out.x.repeat(4, 1), held_out.y.repeat(4))  # 1600 rows, chunks have 1024
    assert knn_top1(train, many) == pytest.approx(knn_top1(train, held_out))


def test_more_neighbours_than_samples_are_all_of_them() -> None:
    train, held_out = blobs(9, 2.0), blobs(30, 2.0)
    assert knn_top1(train, held_out, k=500) == knn_top1(train, held_out, k=9)


def test_neighbours_see_directions_not_lengths(digits: tuple[Features, Features]) -> None:
    train, held_out = digits
    scaled = Features(held_out.x * torch.linspace(0.1, 9.0, len(held_out.x))[:, None], held_out.y)
    assert knn_top1(train, scaled) == knn_top1(train, held_out)


# ---------------------------------------------------------------------- linear


def standardised(train: Tensor, x: Tensor) -> Tensor:
    return (x - train.mean(dim=0)) / train.std(dim=0).clamp_min(1e-6)


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1, 10.0])
def test_the_linear_probe_equals_scikit_learns_logistic_regression(
    digits: tuple[Features, Features], weight_decay: float
) -> None:
    train, held_out = digits
    strength = 1.0 / (len(train.y) * weight_decay)  # mean loss + wd / 2 |W|^2, times C N
    classifier = LogisticRegression(C=strength, max_iter=2000, tol=1e-6)
    classifier.fit(standardised(train.x, train.x).numpy(), train.y.numpy())
    expected = classifier.score(standardised(train.x, held_out.x).numpy(), held_out.y.numpy())
    assert 0.3 < expected < 0.97
    assert linear_top1(train, held_out, weight_decay) == pytest.approx(expected, abs=0.01)


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
