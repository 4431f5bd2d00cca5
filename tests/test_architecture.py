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
    "trajectory": set(),
    "preprocessing": set(),
    "lars": set(),
    "log_steps": set(),
    "trainer": set(),
    "ranges": set(),
    "muon": {"distributed"},
    "losses": {"distributed"},
    # A BatchNorm's batch is that of all processes.
    "models": {"masking.tokens", "masking.padded", "distributed", "ranges"},
    "methods": {
        "models",
        "losses",
        "masking",
        "schedules",
        "distributed",
        "metrics",
        "log_steps",
        "trajectory",
        "ranges",
        "weights",  # a teacher comes out of a checkpoint
    },
    # A probe opens the checkpoint that it is given, when it is built.
    "probing": {
        *("methods.base", "methods.groups", "models", "masking", "schedules", "distributed", "log_steps"),
        *("evaluation", "weights"),
    },
    "environments": set(),
    # A world model is a Protocol, which the true simulator fills too.
    "planning": {"models", "environments", "trajectory"},
    "data": {"masking", "distributed", "preprocessing", "environments", "trajectory", "ranges"},
    "evaluation": {"metrics", "distributed", "masking"},
    # What a run stores is what weights reads.
    "callbacks": {"evaluation", "metrics", "distributed", "masking", "log_steps", "ranges", "weights.ours"},
    # Descriptions and tensors: never a method, never Lightning.
    "weights": {"models", "masking", "preprocessing"},
    "checkpoint_io": {"weights"},
    "loading": {"weights", "methods", "probing", "models", "schedules", "data.preprocess"},
    # Exports are compared on real pictures.
    "export": {"weights", "loading", "models", "masking", "preprocessing", "data.embedded", "data.moving_digits"},
    # A page, and `jepa predict` draws the same: principal components as the pictures of a training show them.
    "explore": {
        "callbacks.pictures",
        "evaluation.propagation",
        "data",
        "models",
        "masking",
        "distributed",
        "preprocessing",
    },
    "commands": {
        *("planning", "environments", "methods"),
        *("weights", "loading", "export", "explore", "evaluation", "probing", "data", "models", "masking", "metrics"),
        *("preprocessing", "distributed"),
    },
}
WITHOUT_LIGHTNING = (
    "models",
    "masking",
    "losses",
    "schedules",
    "metrics",
    "distributed",
    "lars",
    "muon",
    "log_steps",
    "ranges",
    "preprocessing",
    "weights",
)


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
    assert {"masking", "models", "methods.base"} <= ours(PACKAGE / "methods" / "masked.py")
    assert "metrics" in ours(PACKAGE / "methods" / "base.py")
    assert "lightning" in imports(PACKAGE / "methods" / "progress.py")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    files = [path for path in FILES if module_of(path).split(".")[0] == part]
    allowed = MAY_IMPORT[part] | {part}
    wrong = {label(path): sorted(n for n in ours(path) if not covers(n, allowed)) for path in files}
    assert not {name: found for name, found in wrong.items() if found}


def test_every_part_of_the_package_has_a_rule_or_is_a_single_file_on_top() -> None:
    on_top = {"", "__main__", "cli", "lightning_cli", "strategies"}
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


@pytest.mark.parametrize("unwanted", ["lightning", "torch.distributed.tensor"])
def test_importing_the_plain_parts_imports_neither_lightning_nor_dtensor(unwanted: str) -> None:
    pixels = {"preprocessing", "weights"} if unwanted != "lightning" else set()  # torchvision brings DTensor
    parts = [part for part in WITHOUT_LIGHTNING if exists(part) and part not in pixels]
    assert {"models", "masking"} <= set(parts)
    lines = [f"import {ROOT}.{part}" for part in parts]
    code = "; ".join([*lines, "import sys", f"assert {unwanted!r} not in sys.modules, 'it was imported'"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_imports_the_old_name_of_lightning() -> None:
    assert not [label(path) for path in FILES for name in imports(path) if name.startswith("pytorch_lightning")]


# ---------------------------------------------------------------------- circles


def graph_of(files: list[Path]) -> dict[str, set[str]]:
    """Which modules each module imports, also inside functions; a name taken from a package counts as the package."""
    modules = {module_of(path) for path in files}
    return {module_of(path): ours(path) & modules - {module_of(path)} for path in files}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components with more than one module (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            found.append(set(stack[place:]))
            del stack[place:]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return [component for component in found if len(component) > 1]


def round_trip(graph: dict[str, set[str]], component: set[str]) -> list[str]:
    """A shortest way from the first module of a component back to it."""
    start = min(component)
    ways = [[start]]
    for way in ways:  # grows while it is read: breadth first
        for other in sorted(graph[way[-1]] & component):
            if other == start:
                return [*way, start]
            if all(other not in earlier for earlier in ways):
                ways.append([*way, other])
    raise AssertionError(f"{start} is in no circle")


def test_a_circle_is_found_and_shown_as_a_round_trip() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"d", "a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [{"d", "e"}, {"a", "b", "c"}]
    assert [round_trip(graph, circle) for circle in circles(graph)] == [["d", "e", "d"], ["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_graph_has_imports_inside_functions_and_those_through_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "inner/__init__.py").write_text(f"from {ROOT}.inner.deep import name")
    (tmp_path / "inner/deep.py").write_text(f"def late():\n    from {ROOT} import top\n    import torch")
    (tmp_path / "top.py").write_text(f"from {ROOT}.inner import name")
    graph = graph_of(sorted(tmp_path.rglob("*.py")))
    assert graph == {"": set(), "inner": {"inner.deep"}, "inner.deep": {"top"}, "top": {"inner"}}
    assert circles(graph) == [{"inner", "inner.deep", "top"}]


def test_inside_the_package_public_names_are_taken_from_where_they_are_defined() -> None:
    # The top of the package offers names of nearly all files: who takes one from there, imports them all.
    taken = {
        alias.name
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == ROOT
        for alias in node.names
    }
    assert {name for name in taken if not exists(name)} == {"__version__"}


def test_no_files_of_the_package_import_each_other_in_a_circle() -> None:
    graph = graph_of(FILES)
    found = [f"{' -> '.join(round_trip(graph, circle))}, among {sorted(circle)}" for circle in circles(graph)]
    assert not found, "\n".join(found)


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


def constructors(path: Path) -> dict[str, ast.arguments]:
    """The constructor arguments of each class that has its own ``__init__``."""
    return {
        f"{label(path)}:{node.name}": f.args
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        for f in node.body
        if isinstance(f, ast.FunctionDef) and f.name == "__init__"
    }


def test_no_constructor_has_more_than_10_arguments() -> None:
    # A network takes the field's flat list of sizes; grouping them would only make the command line longer.
    # The options of a probe are as flat, and what its encoder's file does not say comes on top.
    budget = {
        "data/alternating.py:VideoImageDataModule": 11,  # what clips have, and the images
        "data/images.py:ImageDataModule": 11,
        "methods/base.py:JEPA": 11,  # what every method has, a flat list in each configuration
        "methods/masked.py:MaskedJEPA": 12,
        "methods/lejepa.py:LeJEPA": 11,
        "methods/saccade.py:SaccadeJEPA": 14,
        "methods/vjepa.py:VJEPA": 14,
        "models/action_predictor.py:ActionPredictor": 11,
        "models/vision_transformer.py:VisionTransformer": 14,
        "methods/vjepa21.py:VJEPA21": 12,
        "models/dense_predictor.py:DensePredictor": 12,
        "models/causal_transformer.py:CausalVisionTransformer": 14,
        "models/dense_transformer.py:DenseVisionTransformer": 15,
        "models/predictor.py:Predictor": 14,
        "probing/attentive.py:AttentiveProbe": 11,
        "probing/linear.py:LinearProbe": 11,
    }
    counts = {
        name: len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - 1
        for path in FILES
        for name, arguments in constructors(path).items()
    }
    assert len(counts) > 20
    assert set(budget) <= set(counts)
    assert not {name: count for name, count in counts.items() if count > budget.get(name, 10)}


def test_every_constructor_names_its_arguments() -> None:
    open_ended = {
        name
        for path in FILES
        for name, arguments in constructors(path).items()
        if arguments.vararg is not None or arguments.kwarg is not None
    }
    assert open_ended <= {
        "data/reading.py:ReadingDataModule"
    }  # abstract: ImageDataModule and VideoDataModule name them


def test_there_is_no_file_for_everything_else() -> None:
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not names & {"utils", "util", "common", "helpers", "misc", "registry"}


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert not [label(path) for path in FILES if marks.search(path.read_text(encoding="utf-8"))]


def test_each_folder_of_the_package_has_a_folder_of_tests_and_no_other_folder_has() -> None:
    tests = Path(__file__).parent
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    mirrors = {path.name for path in tests.iterdir() if any(path.glob("test_*.py"))}
    assert "models" in folders
    assert mirrors - {"numerics"} == folders  # numbers of the official code cross all folders
