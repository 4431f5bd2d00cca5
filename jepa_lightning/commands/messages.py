"""Condenses the errors of jsonargparse to one line."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class JepaParser(LightningArgumentParser):
    """A parser whose errors end in one condensed line, and which accepts `null` at any depth."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Parse; an option of an option comes from the parser around this one, which has written null as None."""
        if not self.exit_on_error and args is not None:
            args = [f"{argument[:-4]}null" if argument.endswith("=None") else argument for argument in args]
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message of jsonargparse, then the condensed line."""
        if not self.exit_on_error:  # a parser inside another one: the outermost tells
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        short = condense(message, [action.dest for action in parser._actions])
        print(*[message] * (short != message), f"jepa: {short}", sep="\n\n", file=sys.stderr)  # noqa: T201
        sys.exit(2)


class RankZeroHandler(logging.StreamHandler[Any]):
    """Prints log messages in the first process only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print, if this is the first process."""
        if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
            super().emit(record)


MEANT = (
    r"Found \d+ module\(s\) in eval mode",  # the target encoder
    "`weights_only` was not set",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 on torch 2.15
    "The '.*dataloader' does not have many workers",
    "FSDP2-wrapped module .* returned a view tensor",  # which nothing changes in place
)
"""Warnings of Lightning that mean no problem here."""


def quieten() -> None:
    """Print the log messages of the package, and hide warnings of Lightning that mean no problem here."""
    ours = logging.getLogger("jepa_lightning")
    ours.setLevel(logging.INFO)
    if not any(isinstance(handler, RankZeroHandler) for handler in ours.handlers):
        ours.addHandler(RankZeroHandler())
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for message in MEANT:
        warnings.filterwarnings("ignore", message=message)


def _no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning recommends cloud products between the lines that a person needs."""
    return "Tip: " not in record.getMessage()


def told(error: Exception) -> str:
    """The last line about an error; prints the traceback before it unless one of our own checks raised the error."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(Path(__file__).parent.parent) or "Union subtypes" in str(error)
    if os.environ.get("JEPA_TRACEBACK") or not ours:
        traceback.print_exc()
    return f"jepa: {type(error).__name__}: {condense(str(error))}"


STRUCTURE = re.compile(
    r"^(Does not validate|Subtypes:|Errors:|Given value|Parser key|Problem with given class_path"
    r"|Expected a <class 'NoneType'>)"
)
"""Lines that say where, not what."""

FACTORY = re.compile(r"^Type .* expects a function or a callable class: ")
"""Stands before the same lines where a part is built by a function, as masks and clips are."""


def condense(message: str, known: Iterable[str] = ()) -> str:
    """One line with the option, the mistake, and a suggestion.

    Args:
        message: The message of jsonargparse.
        known: Names of all options, for suggestions.
    """
    if message.startswith("Error(s) in loading state_dict"):
        wrong = [line.strip() for line in message.splitlines()[1:] if line.strip()]
        more = f"; {len(wrong) - 2} more" if len(wrong) > 2 else ""
        return (
            f"the checkpoint does not fit the networks: {' '.join(wrong[:2])}{more}. Sizes are options of the model, "
            "--model.encoder.img_size, patch_size, embed_dim, depth: give those of the training, or leave them out"
        )
    lines = [FACTORY.sub("", line.strip().removeprefix("- ")) for line in message.splitlines()]
    keys, owner = [], ""
    for number, line in enumerate(lines):
        if key := re.match(r'Parser key "([^"]+)"', line):
            keys.append(key[1])
        elif problem := re.match(r"Problem with given class_path '([^']+)'", line):
            owner = problem[1]
        if line and not STRUCTURE.match(line):
            return _with_place(".".join(keys), _reason(_with_value(line, lines[number:]), owner, list(known)))
    return message


def _with_value(line: str, after: list[str]) -> str:
    """What was expected and what was given, which stands further below where several types would do."""
    line = re.sub(r"\. Got value: Namespace\(.*", "", line)
    if line.startswith("Expected a <class") and "Got value" not in line:
        values = [
            found[1] for text in after if (found := re.match(r"Given value: (?!NestedArg)(.*?)(\. Got value|$)", text))
        ]
        return f"{line}. Got value: {values[0]}" if values else line
    return re.sub(r"^Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1", line)


def _with_place(place: str, reason: str) -> str:
    return f"{place}: {reason}" if place else reason


def _reason(line: str, owner: str, known: list[str]) -> str:
    if option := re.match(r"Option '([^']+)' is not accepted", line):
        return f"{owner.rpartition('.')[2]} has no option '{option[1]}'{_meant(option[1], _options(owner))}"
    if option := re.search(r"does not accept option '([^']+)'", line):
        return f"{line}{_meant(option[1], known)}"
    if option := re.match(r"unrecognized arguments: --([^ =]+)", line):
        return f"{line}{_meant(option[1], known)}"
    if path := re.match(r"unrecognized arguments: ([^-\s]\S*\.(?:ckpt|pth|pt|tar|safetensors))", line):
        return (
            f"{line}; --ckpt_path {path[1]} goes on with that training, --init_from {path[1]} starts a new one from it"
        )
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
