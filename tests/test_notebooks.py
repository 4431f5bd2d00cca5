"""The notebooks run from top to bottom, and their .ipynb files are what their .py twins say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
TWINS = sorted(FOLDER.glob("*.py"))
MACHINE_PATH = re.compile(r"(?<![\w.~/])/(?:tmp|root|home|Users|private|var|work)/\S*")
REMEDY = (
    "make it anew: cd notebooks; jupytext --to ipynb --set-kernel python3 {0}.py; jupyter execute --inplace {0}.ipynb"
)


def code_cells(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What the cells printed, and their results as text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.fixture(params=TWINS, ids=lambda path: path.stem)
def twin(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_images_video_and_small_data_have_a_notebook() -> None:
    assert {"01_ijepa", "02_vjepa", "03_small_data"} <= {twin.stem for twin in TWINS}
    assert {twin.stem for twin in TWINS} == {stored.stem for stored in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize(
    "twin",
    [pytest.param(path, id=path.stem, marks=() if path is TWINS[0] else pytest.mark.slow) for path in TWINS],
)
def test_notebook_runs_from_top_to_bottom(twin: Path, tmp_path: Path) -> None:
    notebook = jupytext.read(twin)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert not list(tmp_path.iterdir()), "a notebook writes into temporary folders only"


def test_ipynb_has_the_code_of_its_twin(twin: Path) -> None:
    stored = nbformat.read(twin.with_suffix(".ipynb"), as_version=4)
    assert code_cells(stored) == code_cells(jupytext.read(twin)), REMEDY.format(twin.stem)


def test_ipynb_has_the_text_of_its_twin(twin: Path) -> None:
    stored = nbformat.read(twin.with_suffix(".ipynb"), as_version=4)
    assert [c.source for c in stored.cells] == [c.source for c in jupytext.read(twin).cells], REMEDY.format(twin.stem)


def test_ipynb_was_executed_in_order_and_stores_its_pictures(twin: Path) -> None:
    stored = nbformat.read(twin.with_suffix(".ipynb"), as_version=4)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), REMEDY.format(twin.stem)
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert twin.with_suffix(".ipynb").stat().st_size < 1_000_000


def test_ipynb_shows_no_path_of_the_machine_it_was_executed_on(twin: Path) -> None:
    stored = nbformat.read(twin.with_suffix(".ipynb"), as_version=4)
    found = [path for text in texts(stored) for path in MACHINE_PATH.findall(text)]
    assert not found, "print paths relative to a folder; " + REMEDY.format(twin.stem)
