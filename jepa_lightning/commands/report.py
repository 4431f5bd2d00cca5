"""`jepa report`: several reports in one, with the mean and the 95 % interval over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jepa_lightning.commands.messages import JepaParser
from jepa_lightning.evaluation.provenance import commit
from jepa_lightning.evaluation.report import Report, read, written_now
from jepa_lightning.evaluation.results import merged


def main(arguments: Sequence[str]) -> None:
    """Combine the reports, print the table, write both files.

    Args:
        arguments: Those after `jepa report`: JSON files of reports, and perhaps ``--out FOLDER``.

    Raises:
        ValueError: If a file is no report.
    """
    parser = JepaParser(prog="jepa report", description=__doc__)
    parser.add_argument("reports", type=str, nargs="+", help="JSON files of reports, one of each seed.")
    parser.add_argument("--out", type=str, default="runs/report", help="Folder of the new report.")
    given = parser.parse_args(list(arguments))
    reports = [read(Path(name)) for name in given.reports]
    titles = ", ".join(report.title for report in reports)
    sentences = list(dict.fromkeys(sentence for report in reports for sentence in report.protocol))
    about = {"reports": ", ".join(given.reports), "of": titles, "commit": commit(), "written": written_now()}
    results = merged(result for report in reports for result in report.results)
    measure = reports[0].measure
    Report(f"{len(reports)} runs together", results, sentences, about, measure=measure).publish(
        Path(given.out).expanduser()
    )
