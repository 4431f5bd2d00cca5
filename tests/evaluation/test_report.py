from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from jepa_lightning.evaluation.intervals import student
from jepa_lightning.evaluation.report import SHOWN, Report, read
from jepa_lightning.evaluation.results import Result

RESULTS = [
    Result("nearest neighbours", "", "trained", (0.419,), 1000, {"k": 20, "temperature": math.inf}, "cats", "val", 50),
    Result("1 label a class", "", "trained", (0.2, 0.3, 0.4), 1000, {"weight_decay": 0.1}, "cats", "val", 10),
    Result("RankMe", "", "trained", (7.0,), 1000, {}, "cats", "val"),
]
HEADS = [RESULTS[0]._replace(chosen={"lr": 10.0**-number}, values=(0.1 * number,)) for number in range(3)]
REPORT = Report(
    "Evaluation of last.ckpt", RESULTS, ["One sentence."], {"commit": "abc"}, "split: val\n", HEADS, ["Take care."]
)


def test_both_files_are_written_and_the_json_is_read_back(tmp_path: Path) -> None:
    written = REPORT.write(tmp_path / "deep" / "folder", "validation")
    assert [path.name for path in written] == ["validation.json", "validation.md"]
    assert read(written[0]) == REPORT._replace(heads=HEADS)
    content = json.loads(written[0].read_text(), parse_constant=pytest.fail)  # no NaN or Infinity, which is no JSON
    assert content["results"][1]["interval"]["kind"] == "Student's t"
    assert content["results"][1]["interval"]["low"] == pytest.approx(student([0.2, 0.3, 0.4]).low)
    assert "interval" not in content["results"][2]
    assert {(r["data"], r["split"], r["samples"]) for r in content["results"]} == {("cats", "val", 1000)}


def test_the_page_says_everything() -> None:
    lines = REPORT.markdown().splitlines()
    for line in (
        "# Evaluation of last.ckpt",
        "cats, validation split, n = 1,000; fitted on 50 training samples",
        "|  | trained |",
        "- One sentence.",
        "Take care.",
        "| nearest neighbours | trained | k 20, temperature inf | - |",
        "| lr | top-1 (%) | best in validation |",
        "| commit | abc |",
        "split: val",
    ):
        assert line in lines


def test_a_terminal_shows_the_tables_and_where_the_files_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    REPORT.publish(tmp_path)
    shown = capsys.readouterr().out
    assert "cats, validation split, n = 1,000" in shown
    assert "41.9 [38.9, 45.0]" in shown
    assert "best in validation" in shown
    assert "Take care." in shown
    assert f"written to {tmp_path / 'report.md'}" in shown
    REPORT._replace(intervals=False).publish(None)
    shown = capsys.readouterr().out
    assert any(line.split() == ["k-NN", "top-1", "(%)", "41.9"] for line in shown.splitlines())
    assert "written" not in shown


def test_of_too_many_heads_a_terminal_shows_those_that_were_chosen() -> None:
    many = [HEADS[0]._replace(chosen={"lr": float(number)}) for number in range(SHOWN + 1)]
    lines = REPORT._replace(results=many[3:4], heads=many).text().splitlines()
    table = lines[lines.index("") + 1 : -2]
    assert [line.split()[:1] for line in table[2:]] == [["3"]]
    assert len(REPORT._replace(results=many[3:4], heads=many).markdown().splitlines()) > SHOWN


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    for text in ("hello", "[]", '{"title": 1}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x.json is no report of jepa"):
            read(tmp_path / "x.json")
