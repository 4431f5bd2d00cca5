"""CONTRIBUTING.md says which files added LeJEPA: that is kept true here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TOLD = re.findall(r"^\| `([^`]+)` \|", TEXT, flags=re.MULTILINE)


def test_the_tables_name_files_that_exist_among_them_the_method_its_test_and_its_config() -> None:
    assert {"jepa_lightning/methods/lejepa.py", "configs/lejepa.yaml", "tests/methods/test_lejepa.py"} <= set(TOLD)
    assert not [path for path in TOLD if not (ROOT / path).is_file()]


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
    assert len(files) == 3
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(TOLD)
