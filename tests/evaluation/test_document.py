from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jepa_lightning.evaluation.document import Report, merged, plain, read, table
from jepa_lightning.evaluation.intervals import student, wilson
from jepa_lightning.evaluation.protocols import Result

KNN = {"k": 20, "temperature": math.inf, "top1_where_chosen": 0.5}
RESULTS = [
    Result("nearest neighbours", "", "trained", (0.419,), 1000, KNN),
    Result("1 label a class", "", "trained", (0.2, 0.3, 0.4), 1000, {"weight_decay": 0.1, "labels": 10}),
    Result("10 labels a class", "", "trained", (), 1000, {"left_out": "class 3 has 7"}),
    Result("nearest neighbours", "", "raw pixels", (0.374,), 1000, KNN),
]
REPORT = Report("Evaluation of last.ckpt", RESULTS, ["One sentence."], {"commit": "abc"}, "split: val\n")


def run(values: tuple[float, ...], encoder: str = "trained", **chosen: object) -> Result:
    return Result("nearest neighbours", "", encoder, values, 50, dict(chosen))


def test_cells_hold_mean_and_interval_and_columns_go_from_pixels_to_trained() -> None:
    rows = table(RESULTS)
    assert rows[0] == ["", "raw pixels", "trained"]
    one, several = wilson(0.419, 1000), student([0.2, 0.3, 0.4])
    assert rows[1] == ["nearest neighbours", "37.4 [34.5, 40.4]", f"41.9 [{100 * one.low:.1f}, {100 * one.high:.1f}]"]
    assert rows[2] == ["1 label a class", "-", f"30.0 [{100 * several.low:.1f}, {100 * several.high:.1f}]"]
    assert rows[3] == ["10 labels a class", "-", "-"]


def test_ends_of_an_interval_stay_in_the_possible() -> None:
    (_, row) = table([run((0.0, 0.9))])
    assert row[1] == "45.0 [0.0, 100.0]"


def test_labels_have_rows_of_their_own() -> None:
    rows = table([RESULTS[0]._replace(label="digit"), RESULTS[0]._replace(label="motion")])
    assert [row[0] for row in rows[1:]] == ["nearest neighbours, digit", "nearest neighbours, motion"]


def test_both_files_are_written_and_the_json_is_read_back(tmp_path: Path) -> None:
    written = REPORT.write(tmp_path / "deep" / "folder")
    assert [path.name for path in written] == ["report.json", "report.md"]
    again = read(written[0])
    assert again.results == RESULTS
    assert (again.title, list(again.protocol), dict(again.about), again.config) == (
        REPORT.title, ["One sentence."], {"commit": "abc"}, "split: val\n",
    )  # fmt: skip
    content = json.loads(written[0].read_text(), parse_constant=pytest.fail)  # no NaN or Infinity, which is no JSON
    assert content["results"][1]["interval"]["kind"] == "Student's t"
    assert content["results"][1]["interval"]["low"] == pytest.approx(student([0.2, 0.3, 0.4]).low)


def test_the_page_says_everything() -> None:
    text = REPORT.markdown()
    for line in (
        "# Evaluation of last.ckpt",
        "|  | raw pixels | trained |",
        "- One sentence.",
        "| nearest neighbours | trained | k 20, temperature inf | 50.0 |",
        "| commit | abc |",
        "split: val",
        "One run: Wilson's interval, for 1,000 samples. Several: Student's t over 3 draws or seeds. "
        "10 labels a class: class 3 has 7.",
    ):
        assert line in text.splitlines()


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


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("hello", "[]", '{"title": 1}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x.json is no report of jepa"):
            read(tmp_path / "x.json")


def test_a_plain_table_is_aligned() -> None:
    lines = plain(table(RESULTS)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) == {"-"}
