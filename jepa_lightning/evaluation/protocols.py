"""Readouts of frozen features; their hyperparameters are chosen without the split that is reported.

Nearest neighbours and logistic regression learn from the whole training split, the latter also from few of its labels.
A hyperparameter with several values (k, temperature, weight decay) is chosen by the accuracy on held-out samples. If
the validation split is reported, these are a tenth of the training split, and the classifier is then fitted again on
all of it. If the test split is reported, they are the validation split. With one value nothing is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.distributed import rank
from jepa_lightning.evaluation.features import Features, accuracy
from jepa_lightning.evaluation.knn import Neighbours, knn_top1
from jepa_lightning.evaluation.logistic import linear_top1, logistic_path
from jepa_lightning.evaluation.low_shot import fraction, shots
from jepa_lightning.evaluation.results import KNN, LOGISTIC, RANKME, Result
from jepa_lightning.masking import seeded
from jepa_lightning.metrics import rankme

Outcome = tuple[tuple[float, ...], dict[str, Any]]
"""Accuracies, and what was chosen."""
HELD_BACK = 0.1
"""Fraction of the training split held out for model selection where no other split may be used."""


class Splits(NamedTuple):
    """Features of the splits by their use; no sample is in two of ``fit``, ``choose`` and ``report``.

    Attributes:
        train: The reported classifiers are fitted on these.
        fit: The classifiers of model selection are fitted on these.
        choose: Held out for model selection.
        report: Accuracy is reported on these.
        data: Name of the data set.
        name: Which split is reported: ``val`` or ``test``.
    """

    train: Features
    fit: Features
    choose: Features
    report: Features
    data: str = ""
    name: str = ""

    def labelled(self, task: int | None = None) -> Splits:
        """Without the samples that have no label; with several labels those of one ``task``."""
        parts = [(part if task is None else part.task(task)).labelled() for part in self[:4]]
        return self._replace(train=parts[0], fit=parts[1], choose=parts[2], report=parts[3])


def split_features(train: Features, report: Features, choose: Features | None = None, seed: int = 0) -> Splits:
    """Split features by their use; without ``choose`` a tenth of ``train``, drawn by ``seed``, is held out."""
    if choose is not None:
        return Splits(train, train, choose, report)
    order = torch.randperm(len(train.x), generator=seeded("held back", seed)).to(train.x.device)
    count = max(1, round(HELD_BACK * len(train.x)))
    back, rest = order[:count].sort().values, order[count:].sort().values
    fit, held_back = (Features(train.x[part], train.y[part]) for part in (rest, back))
    return Splits(train, fit, held_back, report)


@dataclass(frozen=True)
class Protocols:
    """The readouts and the grids of their hyperparameters.

    Args:
        k: Numbers of neighbours that vote; empty for no nearest neighbours.
        temperature: Neighbours vote with exp(similarity / temperature); .inf for one vote each.
        weight_decay: Weight decays of logistic regression on standardised features (1 / (N C) of scikit-learn's C).
        shots: Labels of each class in the low-shot protocols.
        fractions: Fractions of all labels in the low-shot protocols.
        seeds: Number of draws of few labels.
    """

    k: Sequence[int] = (1, 5, 10, 20, 50, 100, 200)
    temperature: Sequence[float] = (0.03, 0.07, 0.2, math.inf)
    weight_decay: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    shots: Sequence[int] = (1, 5, 10)
    fractions: Sequence[float] = (0.01,)
    seeds: int = 5

    def __post_init__(self) -> None:
        if self.seeds < 1 or min([*self.k, *self.shots], default=1) < 1:
            raise ValueError(f"seeds, k and shots must be at least 1, got {self.seeds}, {self.k} and {self.shots}")
        if self.k and not self.temperature:
            raise ValueError("temperature is empty: give at least one, .inf for neighbours with one vote each")

    def results(self, splits: Splits, encoder: str, label_names: Sequence[str] = ()) -> list[Result]:
        """All protocols on the features of one encoder, for each label that has two classes or more, and RankMe.

        Args:
            splits: The features.
            encoder: Name of the encoder.
            label_names: Names of the labels, if a sample has several.
        """
        tasks = {name: splits.labelled(number) for number, name in enumerate(label_names)}
        found = []
        for label, task in (tasks or {"": splits.labelled()}).items():
            if len(task.train.y.unique()) > 1 and len(task.report.y):
                found += self._of_task(task, encoder, label)
        effective = float(rankme(splits.report.x))
        return [*found, Result(RANKME, "", encoder, (effective,), len(splits.report.x), {}, splits.data, splits.name)]

    def _of_task(self, task: Splits, encoder: str, label: str) -> list[Result]:
        work: dict[str, Callable[[Splits], Outcome]] = {LOGISTIC: self._logistic} if self.weight_decay else {}
        work |= {KNN: self._nearest} if self.k else {}
        work |= self._low_shots() if self.weight_decay else {}
        title = f"{encoder}, {label}" if label else encoder
        progress = tqdm(work.items(), desc=title, leave=False, disable=rank() > 0 or None, unit="protocol")
        found = []
        for name, run in progress:
            progress.set_postfix_str(name)
            values, chosen = run(task)
            fitted = chosen.get("labels", len(task.train.y))
            found.append(Result(name, label, encoder, values, len(task.report.y), chosen, task.data, task.name, fitted))
        return found

    def sentences(self) -> list[str]:
        """How the results are made, for a report."""
        found = []
        if self.weight_decay:
            decays = _listed("weight decay", self.weight_decay)
            found.append(f"Logistic regression: standardised features, to the optimum, {decays}.")
        if self.k:
            numbers = f"{_listed('k', self.k)}, {_listed('temperature', self.temperature)} (inf: one vote each)"
            found.append(f"Nearest neighbours: cosine similarity, exact, {numbers}.")
        if self.weight_decay and (self.shots or self.fractions):
            found.append(
                f"Low-shot: logistic regression on {self.seeds} balanced draws (seeds 0 to {self.seeds - 1}), the same "
                "for all encoders; one weight decay for all draws, and the choice sees more labels than the classifier."
            )
        return [*found, "RankMe: effective rank of the reported features."]

    # ------------------------------------------------------------------ one protocol each

    def _nearest(self, splits: Splits) -> Outcome:
        points = [(k, temperature) for k in self.k for temperature in self.temperature]
        decided = {}
        if len(points) > 1:
            compared = Neighbours(splits.fit, splits.choose.x, max(self.k))
            grid = {point: accuracy(compared.vote(*point), splits.choose.y) for point in points}
            points = [_best(grid)]
            decided = {"top1_where_chosen": grid[points[0]]}
        k, temperature = points[0]
        return (knn_top1(splits.train, splits.report, k, temperature),), {"k": k, "temperature": temperature, **decided}

    def _logistic(self, splits: Splits) -> Outcome:
        if len(self.weight_decay) == 1:
            (decay,) = self.weight_decay
            return (linear_top1(splits.train, splits.report, decay),), {"weight_decay": decay}
        path = logistic_path(splits.fit, self.weight_decay)
        grid = {decay: accuracy(c.predict(splits.choose.x), splits.choose.y) for decay, c in path.items()}
        decay = _best(grid)
        same = len(splits.fit.y) == len(splits.train.y)  # nothing was held back
        classifier = path[decay] if same else logistic_path(splits.train, [decay])[decay]
        chosen = {"weight_decay": decay, "top1_where_chosen": grid[decay]}
        return (accuracy(classifier.predict(splits.report.x), splits.report.y),), chosen

    def _low_shots(self) -> dict[str, Callable[[Splits], Outcome]]:
        few = {f"{n} label{'s' * (n > 1)} a class": partial(shots, count=n) for n in self.shots}
        some = {f"{100 * part:g} % of the labels": partial(fraction, part=part) for part in self.fractions}
        return {name: partial(self._low_shot, draw=draw) for name, draw in {**few, **some}.items()}

    def _low_shot(self, splits: Splits, draw: Callable[..., Tensor]) -> Outcome:
        """One weight decay for all draws: the best on average."""
        x, y = splits.fit
        try:
            draws = [draw(y, seed=seed).to(x.device) for seed in range(self.seeds)]
        except ValueError as error:  # a class has fewer labels
            return (), {"left_out": str(error)}
        paths = [logistic_path(Features(x[few], y[few]), self.weight_decay) for few in draws]
        grid = {
            decay: sum(accuracy(p[decay].predict(splits.choose.x), splits.choose.y) for p in paths) / len(paths)
            for decay in paths[0]
        }
        decay = _best(grid)
        values = tuple(accuracy(path[decay].predict(splits.report.x), splits.report.y) for path in paths)
        return values, {"weight_decay": decay, "top1_where_chosen": grid[decay], "labels": len(draws[0])}


def _best(grid: Mapping[Any, float]) -> Any:
    """The point with the highest accuracy, of equals the first."""
    return max(grid, key=lambda point: grid[point])


def _listed(name: str, values: Sequence[float]) -> str:
    """``k 20``, or ``k of 1, 5, 20``."""
    return f"{name} {'of ' * (len(values) > 1)}{', '.join(f'{value:g}' for value in values)}"
