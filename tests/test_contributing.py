"""CONTRIBUTING.md says which files and lines added LeJEPA: that is kept true here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| (\+?)(\d+) \|", TEXT, flags=re.MULTILINE)


def test_the_tables_were_found_and_have_the_method_its_test_and_its_config() -> None:
    files = [path for path, _, _ in ROWS]
    assert len(files) == len(set(files))
    assert {"jepa_lightning/methods/lejepa.py", "configs/lejepa.yaml", "tests/methods/test_lejepa.py"} <= set(files)


@pytest.mark.parametrize(("path", "part", "lines"), ROWS, ids=[path for path, _, _ in ROWS])
def test_a_file_has_as_many_lines_as_it_says(path: str, part: str, lines: str) -> None:
    found = (ROOT / path).read_text(encoding="utf-8").splitlines()
    if part:  # of a file that all methods share, those that name this one
        found = [line for line in found if "LeJEPA" in line]
    assert len(found) == int(lines), f"write {len(found)} for {path} into the table of CONTRIBUTING.md"


def names(path: Path) -> set[str]:
    """Names, attributes, imported names and strings that are a whole name; words of docstrings are none."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.ClassDef | ast.alias):
            found.add(node.id if isinstance(node, ast.Name) else node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_no_other_file_of_the_package_knows_the_method() -> None:
    files = [path for path in (ROOT / "jepa_lightning").rglob("*.py") if "LeJEPA" in names(path)]
    told = {path for path, _, _ in ROWS}
    assert len(files) == 3
    assert {path.relative_to(ROOT).as_posix() for path in files} <= told
