from __future__ import annotations

import pytest

from jepa_lightning.evaluation.results import Result, logged, merged


def run(values: tuple[float, ...], encoder: str = "trained", data: str = "cats", **chosen: object) -> Result:
    return Result("nearest neighbours", "", encoder, values, 50, dict(chosen), data, "val")


def test_runs_become_values_and_a_run_of_several_draws_counts_by_its_mean() -> None:
    (found,) = merged([run((0.2, 0.4), k=5), run((0.5,), k=7)])
    assert found.values == pytest.approx((0.3, 0.5))
    assert found.chosen == {}
    (found,) = merged([run((0.2,), k=5), run((0.5,), k=5)])
    assert found.chosen == {"k": 5}


def test_what_is_the_same_in_all_runs_stays_one_value() -> None:
    trained = [run((0.2,)), run((0.3,))]
    pixels = [run((0.4,), "raw pixels"), run((0.4,), "raw pixels")]
    found = merged([*trained, *pixels])
    assert [r.values for r in found] == [(0.2, 0.3), (0.4,)]
    assert merged([run(()), run((0.4,))])[0].values == (0.4,)


def test_runs_on_other_data_or_another_split_are_no_seeds_of_each_other() -> None:
    results = [run((0.2,)), run((0.3,), data="dogs"), run((0.4,))._replace(split="test")]
    assert merged(results) == results


def test_log_names_are_those_of_each_label_and_of_their_mean() -> None:
    results = [
        Result(protocol, label, "x", (value,), 9, {})
        for protocol, label, value in (
            ("logistic regression", "digit", 0.25),
            ("logistic regression", "motion", 0.75),
            ("nearest neighbours", "motion", 0.5),
            ("1 label a class", "motion", 0.1),
            ("RankMe", "", 7.5),
        )
    ]
    assert logged(results) == {
        "linear_top1": 0.5, "linear_top1_digit": 0.25, "linear_top1_motion": 0.75,
        "knn_top1": 0.5, "knn_top1_motion": 0.5, "rankme": 7.5,
    }  # fmt: skip
    assert logged(results[-1:]) == {"rankme": 7.5}
