from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import jepa_lightning

PACKAGE = Path(jepa_lightning.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
ROOT = "jepa_lightning"

# Which of our own modules a part of the package may import, besides itself. A name stands for all that is below it.
MAY_IMPORT = {
    "masking": set(),
    "schedules": set(),
    "metrics": set(),
    "distributed": set(),
    "lars": set(),
    "writing": set(),
    "muon": {"distributed"},
    "losses": {"distributed"},
    # A BatchNorm's batch is that of all processes.
    "models": {"masking.tokens", "masking.padded", "distributed"},
    "methods": {"models", "losses", "masking", "schedules", "distributed", "metrics", "writing"},
    # A probe reads the checkpoint that it is given, when it is built.
    "probing": {"methods", "models", "masking", "schedules", "distributed", "evaluation", "checkpoint", "interop"},
    "data": {"masking", "distributed", "messages"},
    "evaluation": {"metrics", "distributed", "masking", "messages"},
    "commands": {
        *("checkpoint", "data", "evaluation", "finding", "messages", "models", "probing"),
    },
    # `jepa predict` draws the same as the page, which looks at networks.
    "callbacks": {"evaluation", "metrics", "distributed", "masking", "checkpoint", "messages", "explore", "writing"},
    "explore": {"callbacks.pictures", "data", "models", "masking", "interop", "checkpoint", "finding"},
    # Its commands parse their arguments and find checkpoints as all commands do; exports are compared on real pictures.
    "interop": {
        *("models", "methods", "probing", "schedules", "masking", "checkpoint", "messages", "untrusted", "finding"),
        *("data.embedded", "data.moving_digits"),
    },
}
WITHOUT_LIGHTNING = ("models", "masking", "losses", "schedules", "metrics", "distributed", "lars", "muon", "writing")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def exists(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(path: Path) -> set[str]:
    """Full names of everything imported anywhere in a file; names imported from ours are resolved to modules."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            if base.split(".")[0] == ROOT:
                below = base.removeprefix(ROOT).lstrip(".")
                for alias in node.names:
                    inner = f"{below}.{alias.name}".lstrip(".")
                    found.add(f"{ROOT}.{inner if exists(inner) else below}".rstrip("."))
            else:
                found.add(base)
    return found


def ours(path: Path) -> set[str]:
    names = {name for name in imports(path) if name.split(".")[0] == ROOT}
    return {name.removeprefix(ROOT).lstrip(".") for name in names} - {""}


def covers(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def label(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_the_package_was_found_and_imports_were_read() -> None:
    assert len(FILES) > 30
    assert "masking.tokens" in ours(PACKAGE / "models" / "vision_transformer.py")
    assert {"masking", "models", "methods.base"} <= ours(PACKAGE / "methods" / "ijepa.py")
    assert "metrics" in ours(PACKAGE / "methods" / "base.py")
    assert "lightning" in imports(PACKAGE / "methods" / "base.py")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    files = [path for path in FILES if module_of(path).split(".")[0] == part]
    allowed = MAY_IMPORT[part] | {part}
    wrong = {label(path): sorted(n for n in ours(path) if not covers(n, allowed)) for path in files}
    assert not {name: found for name, found in wrong.items() if found}


def test_every_part_of_the_package_has_a_rule_or_is_a_single_file_on_top() -> None:
    on_top = {
        "",
        "__main__",
        "cli",
        "checkpoint",
        "finding",
        "messages",
        "strategies",
        "untrusted",
    }
    assert {module_of(path).split(".")[0] for path in FILES} - on_top <= set(MAY_IMPORT)


def test_nobody_imports_the_command_line() -> None:
    assert [label(path) for path in FILES if covers("cli", ours(path)) or "cli" in ours(path)] == ["__main__.py"]


@pytest.mark.parametrize("part", ["callbacks", "evaluation", "data"])
def test_observers_and_data_never_import_a_model_or_a_method(part: str) -> None:
    files = [path for path in FILES if module_of(path).split(".")[0] == part]
    assert files
    assert not [label(path) for path in files for name in ours(path) if covers(name, {"models", "methods", "probing"})]


def test_only_indices_of_tokens_go_from_masking_to_the_models() -> None:
    names = set()
    for path in PACKAGE.glob("models/*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{ROOT}.masking"):
                names |= {alias.name for alias in node.names}
    assert names == {"rows_of", "Padded", "known", "longest"}


@pytest.mark.parametrize("part", WITHOUT_LIGHTNING)
def test_plain_parts_do_not_name_lightning(part: str) -> None:
    files = [path for path in FILES if module_of(path).split(".")[0] == part]
    assert not [label(path) for path in files for name in imports(path) if name.split(".")[0].endswith("lightning")
                and name.split(".")[0] != ROOT]  # fmt: skip


def test_importing_the_plain_parts_does_not_import_lightning() -> None:
    parts = [part for part in WITHOUT_LIGHTNING if exists(part)]
    assert {"models", "masking"} <= set(parts)
    lines = [f"import {ROOT}.{part}" for part in parts]
    code = "; ".join([*lines, "import sys", "assert 'lightning' not in sys.modules, 'lightning was imported'"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_imports_the_old_name_of_lightning() -> None:
    assert not [label(path) for path in FILES for name in imports(path) if name.startswith("pytorch_lightning")]


# ---------------------------------------------------------------------- budgets


def test_no_file_is_longer_than_400_lines_and_the_median_is_at_most_150() -> None:
    lengths = {label(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 400}
    assert statistics.median(lengths.values()) <= 150


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_40_lines() -> None:
    assert not {
        f"{label(path)}:{function.lineno} {function.name}": body_lines(function)
        for path in FILES
        for function in functions(path)
        if body_lines(function) > 40
    }


def constructors(path: Path) -> dict[str, int]:
    """Number of constructor arguments of each class that has its own ``__init__``."""
    return {
        node.name: len(f.args.posonlyargs) + len(f.args.args) + len(f.args.kwonlyargs) - 1
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        for f in node.body
        if isinstance(f, ast.FunctionDef) and f.name == "__init__"
    }


def test_no_constructor_has_more_than_10_arguments() -> None:
    # A network takes the field's flat list of sizes; grouping them would only make the command line longer.
    # The options of a probe are as flat, and what its encoder's file does not say comes on top.
    budget = {
        "methods/base.py:JEPA": 11,  # what every method has
        "methods/lejepa.py:LeJEPA": 11,
        "models/vision_transformer.py:VisionTransformer": 14,
        "models/predictor.py:Predictor": 14,
        "probing/attentive.py:AttentiveProbe": 11,
        "probing/linear.py:LinearProbe": 11,
    }
    counts = {f"{label(path)}:{name}": count for path in FILES for name, count in constructors(path).items()}
    assert len(counts) > 20
    assert set(budget) <= set(counts)
    assert not {name: count for name, count in counts.items() if count > budget.get(name, 10)}


def test_there_is_no_file_for_everything_else() -> None:
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "helpers", "misc", "registry"}


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert not [label(path) for path in FILES if marks.search(path.read_text(encoding="utf-8"))]


def test_every_test_file_of_a_part_mirrors_a_file_of_the_package() -> None:
    tests = Path(__file__).parent
    parts = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    mirrors = [path for part in parts for path in (tests / part).rglob("test_*.py")]
    assert mirrors
    orphans = [
        path.relative_to(tests).as_posix()
        for path in mirrors
        if not (PACKAGE / path.parent.relative_to(tests) / f"{path.stem.removeprefix('test_')}.py").is_file()
    ]
    assert not orphans
