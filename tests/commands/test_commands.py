from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from jepa_lightning.cli import main
from jepa_lightning.commands import COMMANDS, Command, run


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_a_function_that_takes_arguments(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    assert callable(getattr(import_module(module), function))
    assert COMMANDS[name].summary.endswith(".")


def test_the_arguments_after_the_name_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "echo", Command("builtins:print", "Print."))
    heard: list[list[str]] = []
    monkeypatch.setattr("builtins.print", heard.append)
    assert run(["echo", "--option", "1"])
    assert heard == [["--option", "1"]]


@pytest.mark.parametrize("arguments", [[], ["fit", "inspect"], ["--help"], ["inspct", "a.ckpt"]])
def test_whatever_is_no_command_of_ours_is_left_alone(arguments: list[str]) -> None:
    assert not run(arguments)


def test_nothing_of_a_command_is_imported_before_it_is_called() -> None:
    code = "import sys, jepa_lightning.commands as c; assert 'torch' not in sys.modules; assert c.COMMANDS"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_they_stand_in_the_help_and_beside_a_typing_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capfd.readouterr().out
    assert all(
        name in text.split("subcommands:")[0] and command.summary[:30] in text for name, command in COMMANDS.items()
    )
    with pytest.raises(SystemExit):
        main(["inspct"])
    assert "'inspect'" in capfd.readouterr().err.splitlines()[-1]


def test_their_errors_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JEPA_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["inspect", "absent.ckpt"])
    assert str(stop.value.code).startswith("jepa: FileNotFoundError: no such checkpoint: absent.ckpt")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("JEPA_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        main(["inspect", "absent.ckpt"])
    assert "Traceback" in capfd.readouterr().err
