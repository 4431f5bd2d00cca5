"""The `jepa` command, and ``python -m jepa_lightning``: answers in a moment what needs neither Lightning nor PyTorch.

Importing the whole command line takes seconds. The page of commands, the version, the list of configurations, a command
that does not exist and a configuration that is not found are answered before that.
"""

from __future__ import annotations

import difflib
import sys
import textwrap
from typing import NoReturn

from jepa_lightning import __version__, commands
from jepa_lightning.commands import configs

SUMMARIES = {
    **{name: texts["description"] for name, texts in commands.DESCRIPTIONS.items()},
    **{name: command.summary for name, command in commands.COMMANDS.items()},
}
"""One line for each command."""


def main() -> None:
    """Run the arguments of the process."""
    if answered(sys.argv[1:]):
        return
    from jepa_lightning.cli import main as run

    run()


def answered(arguments: list[str]) -> bool:
    """Answer at once where that is possible; if not, nothing was done.

    Raises:
        SystemExit: If the arguments name no command, or a configuration that does not exist.
    """
    first = arguments[0] if arguments else None
    if first in ("-h", "--help"):
        print(page())  # noqa: T201  # what was asked for
    elif first == "--version":
        print(f"jepa {__version__}")  # noqa: T201
    elif first is None:
        refuse(f"{page()}\n\njepa: no command was given")
    elif first == "list":
        configs.main(arguments[1:])
    elif first.startswith("-") or first in commands.COMMANDS:
        return False
    elif first in SUMMARIES:
        try:
            configs.with_shipped_configs(arguments)
        except (OSError, ValueError) as error:
            refuse(f"jepa: {type(error).__name__}: {error}")
        return False
    else:
        near = difflib.get_close_matches(first, SUMMARIES, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        refuse(f"jepa: no command is called '{first}'; {meant}Commands: {', '.join(SUMMARIES)}")
    return True


def refuse(message: str) -> NoReturn:
    """Leave as argparse does."""
    print(message, file=sys.stderr)  # noqa: T201
    sys.exit(2)


def page() -> str:
    """What `jepa --help` prints."""
    width = max(map(len, SUMMARIES))
    lines = [
        "usage: jepa COMMAND [OPTION ...]",
        "",
        "Train, evaluate and use joint-embedding predictive architectures.",
    ]
    lines += ["", "commands:"]
    for name, text in SUMMARIES.items():
        lines += textwrap.wrap(
            text, 100, initial_indent=f"  {name.ljust(width)}  ", subsequent_indent=" " * (width + 4)
        )
    lines += ["", "`jepa COMMAND --help` lists the options of a command, `jepa list` the configurations.", ""]
    lines += ["  jepa fit --config ijepa.yaml        train on data that ships with the package"]
    lines += ["  jepa inspect last.ckpt              say what a checkpoint is"]
    lines += ["  jepa --version                      print the version"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
