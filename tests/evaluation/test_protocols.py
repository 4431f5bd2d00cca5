from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.low_shot import fraction, shots
from jepa_lightning.evaluation.protocols import Protocols, Splits, split_features
from jepa_lightning.evaluation.results import Result, logged
from jepa_lightning.metrics import rankme

SMALL = Protocols(k=(1, 5, 30), temperature=(0.05, math.inf), weight_decay=(0.01, 1.0), shots=(1, 3), seeds=3)


def noisy(samples: int, seed: int, classes: int = 4) -> Features:
    """Overlapping blobs."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (samples,), generator=generator)
    return Features(2.0 * F.one_hot(y, 12).float() + torch.randn(samples, 12, generator=generator), y)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split_features(noisy(300, 1), noisy(200, 2), None)


@pytest.fixture(scope="module")
def results(splits: Splits) -> dict[str, Result]:
    return {result.protocol: result for result in SMALL.results(splits, "trained")}


def standardised(train: Tensor, *parts: Tensor) -> list[np.ndarray]:
    mean, std = train.double().mean(dim=0), train.double().std(dim=0)
    return [((x.double() - mean) / std).numpy() for x in parts]


def logistic(train: Features, x: Tensor, weight_decay: float) -> np.ndarray:
    classifier = LogisticRegression(C=1 / (weight_decay * len(train.y)), max_iter=10_000, tol=1e-6)
    inputs, others = standardised(train.x, train.x, x)
    return classifier.fit(inputs, train.y.numpy()).predict(others)


def neighbours(train: Features, x: Tensor, k: int, temperature: float) -> np.ndarray:
    weights = (
        "uniform" if math.isinf(temperature) else lambda d: np.exp((d.min(axis=1, keepdims=True) - d) / temperature)
    )
    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    return classifier.fit(train.x.double().numpy(), train.y.numpy()).predict(x.double().numpy())


def share(predicted: np.ndarray, y: Tensor) -> float:
    return float((predicted == y.numpy()).mean())


# ---------------------------------------------------------------------- by hand, with scikit-learn


def test_neighbours_are_chosen_and_scored_as_by_hand(splits: Splits, results: dict[str, Result]) -> None:
    grid = {
        (k, t): share(neighbours(splits.fit, splits.choose.x, k, t), splits.choose.y)
        for k in SMALL.k
        for t in SMALL.temperature
    }
    best = max(grid, key=lambda point: grid[point])
    found = results["nearest neighbours"]
    assert (found.chosen["k"], found.chosen["temperature"]) == best
    assert found.chosen["top1_where_chosen"] == pytest.approx(grid[best])
    assert found.values == (pytest.approx(share(neighbours(splits.train, splits.report.x, *best), splits.report.y)),)
    assert len(set(grid.values())) > 2


def test_logistic_regression_is_chosen_and_scored_as_by_hand(splits: Splits, results: dict[str, Result]) -> None:
    grid = {wd: share(logistic(splits.fit, splits.choose.x, wd), splits.choose.y) for wd in (1.0, 0.01)}
    best = max(grid, key=lambda point: grid[point])
    found = results["logistic regression"]
    assert found.chosen == {"weight_decay": best, "top1_where_chosen": pytest.approx(grid[best])}
    assert found.values == (pytest.approx(share(logistic(splits.train, splits.report.x, best), splits.report.y)),)
    assert found.samples == 200


def test_few_labels_are_scored_as_by_hand(splits: Splits, results: dict[str, Result]) -> None:
    for name, draw in {
        "3 labels a class": lambda seed: shots(splits.fit.y, 3, seed),
        "1 % of the labels": lambda seed: fraction(splits.fit.y, 0.01, seed),
    }.items():
        few = [Features(splits.fit.x[chosen], splits.fit.y[chosen]) for chosen in map(draw, range(3))]
        grid = {
            wd: np.mean([share(logistic(part, splits.choose.x, wd), splits.choose.y) for part in few])
            for wd in (1.0, 0.01)
        }
        best = max(grid, key=lambda point: grid[point])
        assert results[name].chosen["weight_decay"] == best
        assert results[name].chosen["labels"] == len(few[0].y)
        expected = [share(logistic(part, splits.report.x, best), splits.report.y) for part in few]
        assert results[name].values == pytest.approx(expected)


# ---------------------------------------------------------------------- who sees what


def test_no_sample_is_learned_from_and_compared_on(splits: Splits) -> None:
    rows = {name: {tuple(r) for r in getattr(splits, name).x.tolist()} for name in ("train", "fit", "choose", "report")}
    assert len(rows["choose"]) == 30
    assert rows["fit"] | rows["choose"] == rows["train"]
    assert not rows["fit"] & rows["choose"]
    assert not rows["train"] & rows["report"]
    assert torch.equal(splits.fit.x, split_features(noisy(300, 1), noisy(9, 3), None).fit.x)  # the same every time


def test_the_reported_split_changes_no_choice(splits: Splits, results: dict[str, Result]) -> None:
    other = splits._replace(report=noisy(500, 9))
    again = {result.protocol: result for result in SMALL.results(other, "trained")}
    assert {name: result.chosen for name, result in again.items()} == {n: r.chosen for n, r in results.items()}
    assert again["logistic regression"].values != results["logistic regression"].values


def test_where_a_split_for_choosing_is_given_all_of_training_is_learned_from() -> None:
    train, choose, report = noisy(100, 1), noisy(80, 2), noisy(60, 3)
    splits = split_features(train, report, choose)
    assert splits.fit is train
    assert splits.choose is choose
    (found,) = [r for r in SMALL.results(splits, "x") if r.protocol == "logistic regression"]
    best = found.chosen["weight_decay"]
    assert found.values[0] == pytest.approx(share(logistic(train, report.x, best), report.y))
    assert found.chosen["top1_where_chosen"] == pytest.approx(share(logistic(train, choose.x, best), choose.y))


def test_draws_are_the_same_for_all_encoders(splits: Splits) -> None:
    moved = Splits(*(Features(part.x + 3.0, part.y) for part in splits[:4]))  # standardisation takes it away
    first = {r.protocol: r.values for r in SMALL.results(splits, "a")}
    second = {r.protocol: r.values for r in SMALL.results(moved, "b")}
    for name in ("1 label a class", "3 labels a class", "1 % of the labels"):
        assert first[name] == pytest.approx(second[name], abs=0.011)


def test_each_of_several_labels_is_scored_by_itself_without_the_samples_that_lack_it() -> None:
    parts = [noisy(120, seed) for seed in (1, 2)]
    both = [Features(p.x, torch.stack([p.y, (p.x[:, 0] > 1).long()], dim=1)) for p in parts]
    both[1].y[:20, 0] = -1
    *found, rank = SMALL.results(split_features(*both), "x", ("shape", "motion"))
    one, two = ([r for r in found if r.label == label] for label in ("shape", "motion"))
    assert [len(one), len(two)] == [5, 5]
    assert ({r.samples for r in one}, {r.samples for r in two}, rank.samples) == ({100}, {120}, 120)
    alone = split_features(parts[0], Features(parts[1].x[20:], parts[1].y[20:]))
    assert [r.values for r in one] == [r.values for r in SMALL.results(alone, "x")[:-1]]
    assert rank.values == (pytest.approx(float(rankme(both[1].x))),)


def test_results_name_data_split_and_numbers_of_samples(splits: Splits) -> None:
    found = SMALL.results(splits._replace(data="blobs", name="test"), "x")
    assert {(r.data, r.split, r.samples) for r in found} == {("blobs", "test", 200)}
    fitted = {r.protocol: r.fitted for r in found}
    assert fitted["logistic regression"] == fitted["nearest neighbours"] == 300
    assert (fitted["3 labels a class"], fitted["RankMe"]) == (12, None)


def test_with_one_value_nothing_is_chosen_and_all_of_training_is_learned_from(splits: Splits) -> None:
    fixed = Protocols(k=(5,), temperature=(0.05,), weight_decay=(0.01,), shots=(), fractions=())
    other = splits._replace(fit=noisy(20, 5), choose=noisy(20, 6))
    (regression, knn, _) = fixed.results(other, "x")
    expected = share(logistic(splits.train, splits.report.x, 0.01), splits.report.y)
    assert (regression.values, regression.chosen) == ((pytest.approx(expected),), {"weight_decay": 0.01})
    expected = share(neighbours(splits.train, splits.report.x, 5, 0.05), splits.report.y)
    assert (knn.values, knn.chosen) == ((pytest.approx(expected),), {"k": 5, "temperature": 0.05})


def test_samples_without_a_label_count_for_the_rank_alone() -> None:
    parts = [noisy(90, seed) for seed in (1, 2)]
    unknown = Features(torch.randn(50, 12), torch.full((50,), -1))
    more = [Features(torch.cat([p.x, unknown.x]), torch.cat([p.y, unknown.y])) for p in parts]
    fixed = Protocols(k=(5,), temperature=(0.07,), weight_decay=(0.01,), shots=(), fractions=())
    found, alone = (logged(fixed.results(split_features(*pair), "x")) for pair in (more, parts))
    assert (found["linear_top1"], found["knn_top1"]) == (alone["linear_top1"], alone["knn_top1"])
    assert found["rankme"] == pytest.approx(float(rankme(more[1].x)))


def test_without_two_classes_only_the_rank_is_there() -> None:
    one_class = Features(torch.randn(30, 8), torch.zeros(30, dtype=torch.long))
    no_class = Features(torch.randn(30, 8), torch.full((30,), -1))
    for part in (one_class, no_class):
        assert [r.protocol for r in SMALL.results(split_features(part, part), "x")] == ["RankMe"]


# ---------------------------------------------------------------------- what is left out


def test_more_labels_than_a_class_has_leave_a_line_that_says_so(splits: Splits) -> None:
    wanted = Protocols(k=(), weight_decay=(0.1,), shots=(1, 90), fractions=(), seeds=2)
    names = {r.protocol: r for r in wanted.results(splits, "x")}
    assert set(names) == {"RankMe", "logistic regression", "1 label a class", "90 labels a class"}
    assert names["90 labels a class"].values == ()
    assert "90 are needed" in names["90 labels a class"].chosen["left_out"]


def test_empty_grids_leave_protocols_out() -> None:
    splits = split_features(noisy(60, 1), noisy(20, 2), None)
    assert [r.protocol for r in Protocols(weight_decay=()).results(splits, "x")] == ["nearest neighbours", "RankMe"]


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds, k and shots must be at least 1, got 0"):
        Protocols(seeds=0)
    with pytest.raises(ValueError, match="temperature is empty"):
        Protocols(temperature=())
