from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from jepa_lightning.evaluation import knn
from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.knn import Neighbours, knn_top1

GRID = [(k, t) for k in (1, 2, 10, 100) for t in (0.01, 0.07, math.inf)]


@pytest.fixture(scope="module")
def noisy_digits() -> tuple[Features, Features]:
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    x = x + 6.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return Features(x[:600], y[:600]), Features(x[600:1400], y[600:1400])


def by_scikit_learn(train: Features, held_out: Features, k: int, temperature: float) -> np.ndarray:
    """Brute force on cosine distances, d = 1 - similarity, with our weights."""

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((distances[:, :1] - distances) / temperature)

    classifier = KNeighborsClassifier(
        n_neighbors=k, metric="cosine", algorithm="brute", weights="uniform" if math.isinf(temperature) else weights
    )
    classifier.fit(train.x.double().numpy(), train.y.numpy())
    return classifier.predict(held_out.x.double().numpy())


@pytest.mark.parametrize(("k", "temperature"), GRID)
def test_every_prediction_is_scikit_learns(noisy_digits: tuple[Features, Features], k: int, temperature: float) -> None:
    train, held_out = noisy_digits
    found = Neighbours(train, held_out.x, 100).vote(k, temperature).numpy()
    expected = by_scikit_learn(train, held_out, k, temperature)
    assert (found == expected).all()
    assert 0.2 < (expected == held_out.y.numpy()).mean() < 0.95


def test_equal_votes_go_to_the_first_class_as_in_scikit_learn() -> None:
    torch.manual_seed(3)
    train = Features(torch.randn(60, 4), torch.randint(6, (60,)))
    held_out = Features(torch.randn(400, 4), torch.zeros(400, dtype=torch.long))
    neighbours = Neighbours(train, held_out.x, 4)
    counts = F.one_hot(neighbours.labels, 6).sum(dim=1)
    ties = (counts == counts.amax(dim=1, keepdim=True)).sum(dim=1) > 1
    assert ties.sum() > 100
    found = neighbours.vote(4)
    assert (found.numpy() == by_scikit_learn(train, held_out, 4, math.inf)).all()
    assert torch.equal(found, counts.argmax(dim=1))


def naive(train: Features, x: torch.Tensor, k: int) -> list[list[int]]:
    """All samples, sorted by similarity, then by place."""
    bank = F.normalize(train.x.double(), dim=1)
    rows = []
    for query in F.normalize(x.double(), dim=1):
        similarity = [round(float((query * row).sum()), 9) for row in bank]
        rows.append(sorted(range(len(bank)), key=lambda i: (-similarity[i], i))[:k])
    return rows


@pytest.mark.parametrize("k", [1, 2, 3, 7, 29, 30])
def test_equally_near_samples_stand_in_their_order(k: int) -> None:
    directions = torch.randn(6, 5)
    order = torch.randint(6, (30,))  # five copies of each or so, of lengths that lose no digit
    train = Features(directions[order] * 2.0 ** torch.randint(3, (30, 1)), torch.randint(4, (30,)))
    x = torch.randn(40, 5)
    neighbours = Neighbours(train, x, k)
    assert neighbours.index.tolist() == naive(train, x, k)
    assert torch.equal(neighbours.labels, train.y[neighbours.index])


def test_many_small_chunks_give_the_same(
    noisy_digits: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, held_out = noisy_digits
    whole = Neighbours(train, held_out.x, 20)
    monkeypatch.setattr(knn, "CHUNK", 7 * len(train.x))
    parts = Neighbours(train, held_out.x, 20)
    assert torch.equal(whole.index, parts.index)
    torch.testing.assert_close(whole.similarity, parts.similarity, rtol=0, atol=1e-9)


def test_a_sample_is_its_own_nearest_neighbour(noisy_digits: tuple[Features, Features]) -> None:
    train, _ = noisy_digits
    neighbours = Neighbours(train, train.x, 3)
    assert torch.equal(neighbours.index[:, 0], torch.arange(len(train.x)))
    assert (neighbours.similarity.diff(dim=1) <= 0).all()


def test_a_low_temperature_leaves_the_nearest_alone_and_does_not_overflow(
    noisy_digits: tuple[Features, Features],
) -> None:
    train, held_out = noisy_digits
    neighbours = Neighbours(train, held_out.x, 50)
    assert torch.equal(neighbours.vote(50, 1e-4), neighbours.vote(1, 0.07))
    assert not torch.equal(neighbours.vote(50, 0.07), neighbours.vote(1, 0.07))


def test_more_neighbours_than_samples_are_all_of_them() -> None:
    train = Features(torch.randn(9, 3), torch.arange(9) % 3)
    x = torch.randn(5, 3)
    assert torch.equal(Neighbours(train, x, 500).vote(500, 0.1), Neighbours(train, x, 9).vote(9, 0.1))


def test_impossible_numbers_are_refused() -> None:
    train = Features(torch.randn(9, 3), torch.arange(9) % 3)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Neighbours(train, train.x, 0)
    with pytest.raises(ValueError, match=r"k must be at least 1 and temperature above 0, got 1 and 0.0"):
        Neighbours(train, train.x, 3).vote(1, 0.0)


# ---------------------------------------------------------------------- accuracy


def naive_knn(train: Features, held_out: Features, k: int, temperature: float) -> float:
    right = 0
    for x, y in zip(held_out.x, held_out.y, strict=True):
        similarity = torch.stack([F.cosine_similarity(x, other, dim=0) for other in train.x])
        votes: dict[int, float] = {}
        for i in sorted(range(len(similarity)), key=lambda i: -float(similarity[i]))[:k]:
            votes[int(train.y[i])] = votes.get(int(train.y[i]), 0.0) + math.exp(float(similarity[i]) / temperature)
        right += max(votes, key=lambda label: votes[label]) == int(y)
    return right / len(held_out.y)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (100, 0.02)])
def test_neighbours_equal_a_naive_implementation(
    noisy_digits: tuple[Features, Features], k: int, temperature: float
) -> None:
    train, held_out = (Features(part.x[:120], part.y[:120]) for part in noisy_digits)
    assert knn_top1(train, held_out, k, temperature) == pytest.approx(naive_knn(train, held_out, k, temperature))


def test_neighbours_see_directions_not_lengths(noisy_digits: tuple[Features, Features]) -> None:
    train, held_out = noisy_digits
    scaled = Features(held_out.x * torch.linspace(0.1, 9.0, len(held_out.x))[:, None], held_out.y)
    assert knn_top1(train, scaled) == knn_top1(train, held_out)


@pytest.mark.parametrize("kind", ["spread", "close", "copies"])
def test_the_search_in_float32_finds_what_float64_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(3000, 24, generator=generator), torch.randn(200, 24, generator=generator)
    if kind == "close":  # differences below what float32 can tell
        bank = torch.randn(24, generator=generator) + 1e-5 * bank
    if kind == "copies":
        bank = bank[torch.arange(3000) % 40]
    train = Features(bank, torch.arange(3000) % 7)
    fast = knn.Neighbours(train, queries, 20)
    searched = []
    nearest = knn._nearest
    monkeypatch.setattr(knn, "_nearest", lambda q, b, k: searched.append(len(q)) or nearest(q, b, k))
    knn.Neighbours(train, queries, 20)
    assert sum(searched) == 200 if kind != "spread" else sum(searched) < 20
    monkeypatch.setattr(knn, "SPARE", 3000)  # more candidates than samples: float64 alone
    slow = knn.Neighbours(train, queries, 20)
    assert torch.equal(fast.index, slow.index)
    assert torch.equal(fast.similarity, slow.similarity)
