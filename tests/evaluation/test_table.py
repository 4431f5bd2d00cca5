from __future__ import annotations

import math

from jepa_lightning.evaluation.intervals import student, wilson
from jepa_lightning.evaluation.results import Result
from jepa_lightning.evaluation.table import about_intervals, choices, heading, markdown, plain, settings, table

KNN = {"k": 20, "temperature": math.inf, "top1_where_chosen": 0.5}
ON = ("photos (Folder)", "val", 5000)
RESULTS = [
    Result("nearest neighbours", "", "trained", (0.419,), 1000, KNN, *ON),
    Result("1 label a class", "", "trained", (0.2, 0.3, 0.4), 1000, {"weight_decay": 0.1, "labels": 10}, *ON[:2], 10),
    Result("10 labels a class", "", "trained", (), 1000, {"left_out": "class 3 has 7"}, *ON),
    Result("nearest neighbours", "", "raw pixels", (0.374,), 1000, KNN, *ON),
    Result("RankMe", "", "trained", (61.26,), 1000, {}, *ON[:2]),
]


def test_data_set_split_and_numbers_of_samples_stand_in_one_line() -> None:
    line = "photos (Folder), validation split, n = 1,000; fitted on 5,000 training samples"
    assert heading(RESULTS) == line
    test = RESULTS[0]._replace(split="test", samples=90, fitted=None)
    assert heading([*RESULTS, test]).splitlines() == [line, "photos (Folder), test split, n = 90"]


def test_cells_hold_mean_and_interval_and_columns_go_from_pixels_to_trained() -> None:
    rows = table(RESULTS)
    assert rows[0] == ["", "raw pixels", "trained"]
    one, several = wilson(0.419, 1000), student([0.2, 0.3, 0.4])
    assert rows[1] == ["nearest neighbours", "37.4 [34.5, 40.4]", f"41.9 [{100 * one.low:.1f}, {100 * one.high:.1f}]"]
    assert rows[2] == ["1 label a class", "-", f"30.0 [{100 * several.low:.1f}, {100 * several.high:.1f}]"]
    assert rows[3:] == [["10 labels a class", "-", "-"], ["RankMe", "-", "61.3"]]


def test_the_table_of_a_running_training_is_compact() -> None:
    found = [
        Result("logistic regression", "", "trained", (0.9,), 10, {}),
        Result("RankMe", "", "trained", (40.0,), 10, {}),
        Result("nearest neighbours", "", "trained", (0.87654,), 10, {}),
        Result("nearest neighbours", "", "other.ckpt", (0.1,), 10, {}),
        Result("logistic regression", "motion", "trained", (0.5,), 10, {}),
    ]
    assert table(found, intervals=False) == [
        ["", "other.ckpt", "trained"],
        ["linear probe top-1 (%)", "-", "90.0"],
        ["linear probe top-1, motion (%)", "-", "50.0"],
        ["RankMe", "-", "40.0"],
        ["k-NN top-1 (%)", "10.0", "87.7"],
    ]


def test_ends_of_an_interval_stay_in_the_possible() -> None:
    (_, row) = table([RESULTS[0]._replace(values=(0.0, 0.9))])
    assert row[1] == "45.0 [0.0, 100.0]"


def test_labels_data_sets_and_splits_have_rows_of_their_own() -> None:
    rows = table([RESULTS[0]._replace(label="digit"), RESULTS[0]._replace(label="motion")])
    assert [row[0] for row in rows[1:]] == ["nearest neighbours, digit", "nearest neighbours, motion"]
    rows = table([RESULTS[0], RESULTS[0]._replace(data="cats", split="test")])
    assert [row[0] for row in rows[1:]] == [
        "nearest neighbours (photos (Folder), validation split)", "nearest neighbours (cats, test split)",
    ]  # fmt: skip


def test_alternatives_have_a_row_for_each_choice_and_a_column_for_each_setting_and_label() -> None:
    def head(lr: float, label: str, value: float) -> Result:
        return Result("probe", label, "trained", (value,), 9, {"lr": lr, "batch_norm": "no"})

    heads = [head(0.1, "digit", 0.5), head(0.1, "motion", 0.25), head(3.0, "digit", 0.75), head(3.0, "motion", 1.0)]
    assert settings(heads, heads[2:]) == [
        ["lr", "batch norm", "top-1 digit (%)", "top-1 motion (%)", "best in validation"],
        ["0.1", "no", "50.0", "25.0", ""],
        ["3", "no", "75.0", "100.0", "yes"],
    ]
    other = heads[0]._replace(encoder="raw pixels", label="")
    assert settings([other, heads[0]])[0] == ["encoder", "lr", "batch norm", "top-1 (%)", "top-1 digit (%)"]


def test_what_was_chosen_is_told_with_the_accuracy_that_decided() -> None:
    assert choices(RESULTS)[1:3] == [
        ["nearest neighbours", "trained", "k 20, temperature inf", "50.0"],
        ["1 label a class", "trained", "weight decay 0.1, labels 10", "-"],
    ]
    assert choices(RESULTS[2:3]) == []


def test_how_intervals_were_made_and_what_is_missing_is_told() -> None:
    assert about_intervals(RESULTS) == (
        "One run: Wilson's interval, for 1,000 samples. Several: Student's t over 3 draws or seeds. "
        "10 labels a class: class 3 has 7."
    )


def test_a_plain_table_is_aligned_and_one_of_markdown_escapes_bars() -> None:
    lines = plain(table(RESULTS)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"-"}
    assert markdown([["a", "b"], ["x|y", "1"]], numbers=True) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"
