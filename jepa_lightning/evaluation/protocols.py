"""What is read off frozen features, and how its few numbers are chosen without a look at the split that is reported.

Nearest neighbours and logistic regression learn from the whole training split, the latter also from few of its labels.
Everything that is chosen (k, temperature, weight decay) is chosen by its accuracy on samples that are neither learned
from nor reported on: where the validation split is reported, on a tenth of the training split, and then learned anew
with it; where the test split is reported, on the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from jepa_lightning.distributed import rank
from jepa_lightning.evaluation.features import Features
from jepa_lightning.evaluation.logistic import logistic_path
from jepa_lightning.evaluation.low_shot import fraction, shots
from jepa_lightning.evaluation.nearest import Neighbours
from jepa_lightning.masking import seeded

Outcome = tuple[tuple[float, ...], dict[str, Any]]
"""Accuracies, and what was chosen."""
HELD_BACK = 0.1
"""Share of the training split on which is chosen, where nothing else may be."""


class Splits(NamedTuple):
    """Features by what they are for; no sample stands in two of ``fit``, ``choose`` and ``report``.

    Attributes:
        train: What the reported classifiers learn from.
        fit: What the classifiers learn from that are compared on ``choose``.
        choose: Where they are compared.
        report: Where accuracy is reported.
    """

    train: Features
    fit: Features
    choose: Features
    report: Features

    def task(self, number: int) -> Splits:
        """With one of several labels, and without the samples that lack it."""
        train, fit, choose, report = (part.task(number).labelled() for part in self)
        return Splits(train, fit, choose, report)

    def labelled(self) -> Splits:
        """Without the samples that have no label."""
        train, fit, choose, report = (part.labelled() for part in self)
        return Splits(train, fit, choose, report)


def split_features(train: Features, report: Features, choose: Features | None, seed: int = 0) -> Splits:
    """Parts for choosing: ``choose`` if there is one, otherwise a tenth of ``train`` by ``seed``."""
    if choose is not None:
        return Splits(train, train, choose, report)
    order = torch.randperm(len(train.x), generator=seeded("held back", seed)).to(train.x.device)
    count = max(1, round(HELD_BACK * len(train.x)))
    back, rest = order[:count].sort().values, order[count:].sort().values
    fit, held_back = (Features(train.x[part], train.y[part]) for part in (rest, back))
    return Splits(train, fit, held_back, report)


class Result(NamedTuple):
    """One line of a report.

    Attributes:
        protocol: What was done, in words.
        label: Which of several labels; empty for the only one.
        encoder: Of which encoder the features are.
        values: Accuracy in [0, 1], one for each draw or run; none if it was not possible.
        samples: On how many samples each is measured.
        chosen: What was chosen, and the accuracy that decided; or why nothing is there.
    """

    protocol: str
    label: str
    encoder: str
    values: tuple[float, ...]
    samples: int
    chosen: dict[str, Any]


@dataclass(frozen=True)
class Protocols:
    """What is fitted, over which grids.

    Args:
        k: Numbers of neighbours that vote; empty for no nearest neighbours.
        temperature: Neighbours vote with exp(similarity / temperature); .inf for one vote each.
        weight_decay: Weight decays of logistic regression on standardised features (1 / (N C) of scikit-learn's C).
        shots: Labels of each class in the low-shot protocols.
        fractions: Shares of all labels, likewise.
        seeds: Draws of few labels.
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

    def results(self, splits: Splits, encoder: str, label: str = "") -> list[Result]:
        """All protocols on the features of one encoder, for one label.

        Args:
            splits: Its features, all with labels.
            encoder: What to call it.
            label: What to call the label.
        """
        work = {"nearest neighbours": self._nearest} if self.k else {}
        if self.weight_decay:
            work |= {"logistic regression": self._logistic, **self._low_shots()}
        title = f"{encoder}, {label}" if label else encoder
        progress = tqdm(work.items(), desc=title, leave=False, disable=rank() > 0 or None, unit="protocol")
        results = []
        for name, run in progress:
            progress.set_postfix_str(name)
            values, chosen = run(splits)
            results.append(Result(name, label, encoder, values, len(splits.report.y), chosen))
        return results

    # ------------------------------------------------------------------ one protocol each

    def _nearest(self, splits: Splits) -> Outcome:
        compared = Neighbours(splits.fit, splits.choose.x, max(self.k))
        grid = {
            (k, temperature): _accuracy(compared.vote(k, temperature), splits.choose.y)
            for k in self.k
            for temperature in self.temperature
        }
        k, temperature = _best(grid)
        predicted = Neighbours(splits.train, splits.report.x, k).vote(k, temperature)
        chosen = {"k": k, "temperature": temperature, "top1_where_chosen": grid[k, temperature]}
        return (_accuracy(predicted, splits.report.y),), chosen

    def _logistic(self, splits: Splits) -> Outcome:
        path = logistic_path(splits.fit, self.weight_decay)
        grid = {decay: _accuracy(c.predict(splits.choose.x), splits.choose.y) for decay, c in path.items()}
        decay = _best(grid)
        same = len(splits.fit.y) == len(splits.train.y)  # nothing was held back
        classifier = path[decay] if same else logistic_path(splits.train, [decay])[decay]
        chosen = {"weight_decay": decay, "top1_where_chosen": grid[decay]}
        return (_accuracy(classifier.predict(splits.report.x), splits.report.y),), chosen

    def _low_shots(self) -> dict[str, Callable[[Splits], Outcome]]:
        few = {f"{n} label{'s' * (n > 1)} a class": partial(shots, count=n) for n in self.shots}
        some = {f"{100 * share:g} % of the labels": partial(fraction, share=share) for share in self.fractions}
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
            decay: sum(_accuracy(p[decay].predict(splits.choose.x), splits.choose.y) for p in paths) / len(paths)
            for decay in paths[0]
        }
        decay = _best(grid)
        values = tuple(_accuracy(path[decay].predict(splits.report.x), splits.report.y) for path in paths)
        return values, {"weight_decay": decay, "top1_where_chosen": grid[decay], "labels": len(draws[0])}


def _best(grid: Mapping[Any, float]) -> Any:
    """The point with the highest accuracy, of equals the first."""
    return max(grid, key=lambda point: grid[point])


def _accuracy(predicted: Int[Tensor, " samples"], y: Int[Tensor, " samples"]) -> float:
    return float((predicted == y.to(predicted.device)).double().mean())
