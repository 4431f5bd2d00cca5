"""Results of readouts: accuracy or effective rank, of one encoder on one data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

KNN, LOGISTIC, RANKME = "nearest neighbours", "logistic regression", "RankMe"
RMSE = "RMSE of depth"
UNSCALED = {RANKME, RMSE}
"""Readouts whose values are no fractions."""
LOGGED = {LOGISTIC: "linear_top1", KNN: "knn_top1", RANKME: "rankme"}
"""Log names of the readouts of the probe during training."""


class Result(NamedTuple):
    """The result of one readout.

    Attributes:
        protocol: Name of the readout.
        label: Which of several labels; empty for the only one.
        encoder: Name of the encoder whose features were read.
        values: Accuracy in [0, 1], one for each draw or run, or RankMe; empty if the readout was not possible.
        samples: n, the number of samples that each value is measured on.
        chosen: The settings, chosen ones with their accuracy in model selection; or why there is no value.
        data: Name of the data set.
        split: ``val`` or ``test``.
        fitted: Number of training samples that were learned from; None if that is not known, or nothing was learned.
        bounds: 95 % interval of the only value, where it is no fraction of the samples; None for Wilson's.
    """

    protocol: str
    label: str
    encoder: str
    values: tuple[float, ...]
    samples: int
    chosen: dict[str, Any]
    data: str = ""
    split: str = ""
    fitted: int | None = None
    bounds: tuple[float, float] | None = None

    @property
    def scale(self) -> int:
        """What values are multiplied by in tables: 100 for %, 1 for those with a unit of their own."""
        return 1 if self.protocol in UNSCALED else 100

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return math.fsum(self.values) / len(self.values)


def logged(results: Sequence[Result]) -> dict[str, float]:
    """The results of one encoder by their log names.

    With several labels, ``linear_top1_NAME`` of each and their mean as ``linear_top1``, likewise for k-NN.
    """
    found: dict[str, float] = {}
    for protocol, name in LOGGED.items():
        means = {result.label: result.mean for result in results if result.protocol == protocol and result.values}
        if means:
            found[name] = math.fsum(means.values()) / len(means)
        found |= {f"{name}_{label}": value for label, value in means.items() if label}
    return found


def merged(results: Iterable[Result]) -> list[Result]:
    """The same protocol on several runs as one result with a value for each run.

    A run of several draws counts by their mean. Raw pixels are the same in all runs and stay one value; seeds that
    agree by chance are still several.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.protocol, result.label, result.encoder, result.data, result.split), []).append(result)
    found = []
    for group in groups.values():
        done = [result for result in group if result.values]
        first = (done or group)[0]
        same = len({result.values for result in done}) <= 1 and first.encoder == "raw pixels"
        if len(done) <= 1 or same:
            found.append(first)
            continue
        chosen = {} if any(result.chosen != first.chosen for result in done) else first.chosen
        values = tuple(result.mean for result in done)
        found.append(first._replace(values=values, chosen=chosen, bounds=None))
    return found
