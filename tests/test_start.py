"""What `jepa` answers before it imports PyTorch and Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import jepa_lightning as jl
from jepa_lightning.__main__ import SUMMARIES, answered


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(["--version"])
    assert capsys.readouterr().out == f"jepa {jl.__version__}\n"


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_has_one_entry_for_each_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered([option])
    lines = capsys.readouterr().out.splitlines()
    assert {"fit", "validate", "test", "predict", "inspect", "evaluate", "list"} <= set(SUMMARIES)
    assert all(sum(line.startswith(f"  {name} ") for line in lines) == 1 for name in SUMMARIES)


def test_list_has_every_shipped_configuration_with_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(["list"])
    text = capsys.readouterr().out
    configs = Path(__file__).parent.parent / "configs"
    assert len(text.splitlines()) == len(list(configs.rglob("*.yaml")))
    assert "papers/ijepa_in1k_vith14.yaml" in text
    assert "I-JEPA (Assran et al. 2023" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "jepa: no command was given"),
        (["fitt"], "jepa: no command is called 'fitt'; did you mean 'fit'? Commands: fit, validate"),
        (["xyz", "--help"], "jepa: no command is called 'xyz'; Commands: fit, "),
        (["fit", "--config", "ijeap.yaml"], "jepa: FileNotFoundError: no such config: ijeap.yaml; shipped are "),
        (["predict", "-c=ijeap.yaml"], "jepa: FileNotFoundError: no such config: ijeap.yaml; shipped are "),
    ],
)
def test_wrong_usage_ends_in_one_line_that_says_what_is_right(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        answered(arguments)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith(message)


@pytest.mark.parametrize(
    "arguments", [["fit", "--config", "ijepa.yaml"], ["inspect", "absent.ckpt"], ["--print_config"], ["fit", "--help"]]
)
def test_everything_else_is_left_to_the_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not answered(arguments)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["fitt"], []])
def test_nothing_heavy_is_imported_for_a_quick_answer(arguments: list[str]) -> None:
    code = (
        "import sys, runpy, atexit\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'numpy', 'sklearn'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['jepa', *{arguments!r}]\n"
        "runpy.run_module('jepa_lightning', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "heavy: []"
