"""Makes one line, the one that matters, of the many that jsonargparse prints."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class JepaParser(LightningArgumentParser):
    """A parser whose errors end in the line that matters."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what jsonargparse says, then one line of ours."""
        if not self.exit_on_error:  # a parser inside another one: the outermost tells
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        short = condense(message, [action.dest for action in parser._actions])
        print(*[message] * (short != message), f"jepa: {short}", sep="\n\n", file=sys.stderr)  # noqa: T201
        sys.exit(2)


STRUCTURE = re.compile(
    r"^(Does not validate|Subtypes:|Errors:|Given value|Parser key|Problem with given class_path"
    r"|Expected a <class 'NoneType'>)"
)
"""Lines that say where, not what."""


def condense(message: str, known: Iterable[str] = ()) -> str:
    """Where the mistake is, what it is, and what may have been meant.

    Args:
        message: What jsonargparse says.
        known: All options there are, for suggestions.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys, owner = [], ""
    for line in lines:
        if key := re.match(r'Parser key "([^"]+)"', line):
            keys.append(key[1])
        elif problem := re.match(r"Problem with given class_path '([^']+)'", line):
            owner = problem[1]
        if line and not STRUCTURE.match(line):
            return _with_place(".".join(keys), _reason(line, owner, list(known)))
    return message


def _with_place(place: str, reason: str) -> str:
    return f"{place}: {reason}" if place else reason


def _reason(line: str, owner: str, known: list[str]) -> str:
    if option := re.match(r"Option '([^']+)' is not accepted", line):
        return f"{owner.rpartition('.')[2]} has no option '{option[1]}'{_meant(option[1], _options(owner))}"
    if option := re.search(r"does not accept option '([^']+)'", line):
        return f"{line}{_meant(option[1], known)}"
    if option := re.match(r"unrecognized arguments: --([^ =]+)", line):
        return f"{line}{_meant(option[1], known)}"
    if name := re.match(r"Expected a (?:dot import path string: |path but )(\S+)", line):
        return f"no class is called '{name[1]}'; `jepa fit --model.help` and `--data.help` list the classes"
    return line


def _meant(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'depth'?`` if there is something like it."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close and (first := difflib.get_close_matches(word.split(".")[0], known, n=1, cutoff=0.6)):
        close = [".".join([first[0], *word.split(".")[1:]])]
    return f"; did you mean '{close[0]}'?" if close else ""


def _options(class_path: str) -> list[str]:
    """Constructor arguments of a class, none if it cannot be found."""
    module, _, name = class_path.rpartition(".")
    try:
        return list(signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []
