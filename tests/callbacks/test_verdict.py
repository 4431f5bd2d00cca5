"""What is said at the end of a training, and before one that is too short."""

from __future__ import annotations

import pytest

from jepa_lightning.callbacks.verdict import Verdict, judged
from jepa_lightning.evaluation.intervals import difference
from jepa_lightning.evaluation.results import KNN, LOGISTIC, RANKME, Result


def _results(before: float, after: float, samples: int, protocol: str = LOGISTIC) -> list[Result]:
    return [Result(protocol, "", name, (v,), samples, {}) for name, v in (("random", before), ("trained", after))]


@pytest.mark.parametrize(
    ("before", "after", "samples", "verdict"),
    [
        (0.60, 0.90, 1000, "it learned"),
        (0.60, 0.62, 100, "no certain gain"),
        (0.90, 0.60, 1000, "it got worse"),
    ],
)
def test_a_gain_counts_where_its_interval_is_above_zero(
    before: float, after: float, samples: int, verdict: str
) -> None:
    assert judged(_results(before, after, samples), "")[0].startswith(f"{verdict}: the linear probe")


def test_the_interval_of_a_gain_is_that_of_newcombe() -> None:
    # Far from the ends and with many samples it is the usual one, of the normal distribution.
    gain = difference(48 / 80, 56 / 80, 80)
    assert gain.mean == pytest.approx(0.1)
    assert gain.low < 0 < gain.high
    narrow = difference(0.6, 0.7, 8000)
    assert narrow.low == pytest.approx(0.1 - 1.96 * (0.6 * 0.4 / 8000 + 0.7 * 0.3 / 8000) ** 0.5, abs=1e-4)


def test_the_label_that_gained_most_and_the_ranks_and_the_alarm_are_named() -> None:
    results = _results(0.2, 0.9, 500, KNN) + _results(9.8, 27.4, 500, RANKME)
    said = judged([r._replace(label="motion") if r.protocol == KNN else r for r in results], "targets become constant")
    assert "k-NN of the motion went from 20.0% to 90.0%" in said[0]
    assert "RankMe 9.8 to 27.4" in said[0]
    assert said[1] == "the collapse alarm is on: targets become constant"


def test_without_results_nothing_is_judged() -> None:
    assert judged([], "") == []


def test_fewer_than_no_steps_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="fewest_steps"):
        Verdict(fewest_steps=-1)
